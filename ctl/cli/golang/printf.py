# SPDX-License-Identifier: Apache-2.0
"""`printf`: Go's verbs for what JSON knows. A mistake is printed, as Go does it, and is no error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .values import inner_text, type_name

_VERB = re.compile(r"%([-+# 0]*)(\*|[0-9]+)?(\.(?:\*|[0-9]+)?)?(.)?", re.DOTALL)
_WIDEST = 1_000_000  # as Go's
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_ESCAPES |= {"\\": "\\\\", '"': '\\"'}


def sprintf(form: str, *arguments: Any) -> str:
    """The arguments in the places of the verbs."""
    rest = list(arguments)

    def number(word: str | None, name: str) -> tuple[int | None, str]:
        """A width or precision, and what Go says if it cannot be."""
        if word is None:
            return None, ""
        value = (rest.pop(0) if rest else None) if word == "*" else int(word[:9] or "0")
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _WIDEST:
            return None, f"%!(BAD{name})"
        return value, ""

    def one(match: re.Match[str]) -> str:
        flags, wide, fine, verb = match.groups()
        width, wrong = number(wide, "WIDTH")
        precision, wrong_too = number(None if fine is None else fine[1:], "PREC")
        said = wrong + wrong_too
        if verb is None:
            return f"{said}%!(NOVERB)"
        if verb == "%":
            return f"{said}%"
        if not rest:
            return f"{said}%!{verb}(MISSING)"
        if width is not None and width < 0:
            flags, width = flags + "-", -width
        shown = _formatted(verb, rest.pop(0), flags, precision)
        zeros = "0" in flags and "-" not in flags and verb not in "vsqTt"
        return said + _padded(shown, width or 0, left="-" in flags, zeros=zeros)

    out = _VERB.sub(one, form)
    if rest:
        out += "%!(EXTRA " + ", ".join(f"{type_name(value)}={inner_text(value)}" for value in rest) + ")"
    return out


def _padded(shown: str, width: int, *, left: bool, zeros: bool) -> str:
    if left:
        return shown.ljust(width)
    if zeros:
        sign = shown[:1] if shown[:1] in ("-", "+", " ") else ""
        return sign + shown[len(sign) :].rjust(width - len(sign), "0")
    return shown.rjust(width)


def _formatted(verb: str, value: Any, flags: str, precision: int | None) -> str:
    if verb == "T":
        return type_name(value)
    if verb == "v":
        return quote(value) if isinstance(value, str) and "#" in flags else inner_text(value)
    if isinstance(value, list | tuple):
        return "[" + " ".join(_formatted(verb, item, flags, precision) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (
            f"{_formatted(verb, key, flags, precision)}:{_formatted(verb, value[key], flags, precision)}"
            for key in sorted(value)
        )
        return "map[" + " ".join(pairs) + "]"
    shown = None
    if isinstance(value, bool):
        shown = inner_text(value) if verb == "t" else None
    elif isinstance(value, str):
        shown = _string(verb, value, precision)
    elif isinstance(value, int):
        shown = _integer(verb, value, flags, precision)
    elif isinstance(value, float) and verb in "eEfFgG":
        shown = f"{value:{'+' if '+' in flags else ''}.{6 if precision is None else precision}{verb}}"
        if verb in "gG" and precision is None:
            shown = inner_text(value)
    if shown is None:
        said = inner_text(value)
        return f"%!{verb}(<nil>)" if value is None else f"%!{verb}({type_name(value)}={said})"
    return shown


def _string(verb: str, value: str, precision: int | None) -> str | None:
    value = value if precision is None else value[:precision]
    match verb:
        case "s":
            return value
        case "q":
            return quote(value)
        case "x" | "X":
            digits = value.encode("utf-8", "surrogateescape").hex()
            return digits.upper() if verb == "X" else digits
    return None


def _integer(verb: str, value: int, flags: str, precision: int | None) -> str | None:
    prefixes = {"d": "", "b": "0b", "o": "0", "x": "0x", "X": "0X"}
    if verb in prefixes:
        sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
        digits = f"{abs(value):{verb}}".rjust(precision or 0, "0")
        return sign + (prefixes[verb] if "#" in flags else "") + digits
    if verb in "cqU" and 0 <= value <= 0x10FFFF:
        return {"c": chr(value), "q": f"'{quote(chr(value))[1:-1]}'", "U": f"U+{value:04X}"}[verb]
    return None


def quote(value: str) -> str:
    """As a string literal."""

    def escaped(letter: str) -> str:
        if letter in _ESCAPES or letter.isprintable():
            return _ESCAPES.get(letter, letter)
        code = ord(letter)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escaped, value)) + '"'
