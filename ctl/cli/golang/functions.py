# SPDX-License-Identifier: Apache-2.0
"""The functions of templates: Go's own, and those that Docker adds to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .printf import sprintf
from .values import (
    TemplateError,
    compared,
    cut,
    index,
    inner_text,
    length,
    text,
)

_LONGEST = 1_000_000  # characters that a template may add by a number


def _string(value: Any) -> str:
    """Numbers and truth values are taken for their text, which Go does not; lists and maps are a mistake."""
    if value is None or isinstance(value, list | tuple | dict):
        raise TemplateError(f"expected a string, not {text(value)!r}")
    return text(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST:
        raise TemplateError(f"expected a number from 0 to {_LONGEST}, not {text(value)!r}")
    return value


def _split(value: Any, separator: Any) -> list[str]:
    """Between the separators; without one into characters."""
    between = _string(separator)
    return _string(value).split(between) if between else list(_string(value))


def _join(values: Any, separator: Any) -> str:
    if not isinstance(values, list | tuple):
        raise TemplateError(f"cannot join {text(values)!r}: not a list")
    return _string(separator).join(map(text, values))


def _title(value: Any) -> str:
    """The first letter of each word in upper case; the others stay."""
    letters, before = [], " "
    for letter in _string(value):
        inside = before.isalnum() or before == "_" or (before > "\x7f" and not before.isspace())
        letters.append(letter if inside else letter.upper())
        before = letter
    return "".join(letters)


def _pad(value: Any, before: Any, behind: Any) -> str:
    whole = _string(value)
    return f"{' ' * _count(before)}{whole}{' ' * _count(behind)}" if whole else whole


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _print(*values: Any) -> str:
    """With a space between two that are both no strings."""
    parts: list[str] = []
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            parts.append(" ")
        parts.append(inner_text(value))
    return "".join(parts)


def _printf(form: Any, *values: Any) -> str:
    return sprintf(_string(form), *values)


def _html(*values: Any) -> str:
    whole = values[0] if len(values) == 1 and isinstance(values[0], str) else _print(*values)
    for letter, escape in (("&", "&amp;"), ("'", "&#39;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;")):
        whole = whole.replace(letter, escape)
    return str(whole)


def _urlquery(*values: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(_print(*values), safe="~", errors="surrogateescape")


def _ordered(first: Any, second: Any) -> int:
    if isinstance(first, bool) or not isinstance(first, str | int | float):
        raise TemplateError(f"cannot order {text(first)!r}")
    return compared(first, second)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    # Docker's
    "json": _compact_json,
    "join": _join,
    "split": _split,
    "upper": lambda value: _string(value).upper(),
    "lower": lambda value: _string(value).lower(),
    "title": _title,
    "truncate": lambda value, count: _string(value)[: _count(count)],
    "pad": _pad,
    # Go's
    "index": index,
    "slice": cut,
    "len": length,
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(map(inner_text, values)) + "\n",
    "html": _html,
    "urlquery": _urlquery,
    "eq": lambda first, second, *others: any(compared(first, other) == 0 for other in (second, *others)),
    "ne": lambda first, second: compared(first, second) != 0,
    "lt": lambda first, second: _ordered(first, second) < 0,
    "le": lambda first, second: _ordered(first, second) <= 0,
    "gt": lambda first, second: _ordered(first, second) > 0,
    "ge": lambda first, second: _ordered(first, second) >= 0,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}
LAZY = {"and": False, "or": True}  # what ends them: the arguments behind it are not looked at

# What changes a value leaves the heading of its column alone.
HEADING_FUNCTIONS = FUNCTIONS | {
    "json": lambda value: value,
    "title": lambda value: value,
    "lower": lambda value: value,
    "upper": lambda value: value,
    "truncate": lambda value, count: value,
}
