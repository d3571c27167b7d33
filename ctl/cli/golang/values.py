# SPDX-License-Identifier: Apache-2.0
"""Values of templates, which are those of JSON, as Go prints, compares, indexes and cuts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

NO_VALUE = "<no value>"


class TemplateError(ValueError):
    """The template cannot be parsed, or does not fit the data. One line."""


class Method:
    """A member that is called with the arguments that follow it, as in `{{.Label "x"}}`."""

    def __init__(self, name: str, function: Callable[[str], str]) -> None:
        self.name, self.function = name, function

    def call(self, *arguments: Any) -> str:
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            raise TemplateError(f"wrong arguments for {self.name}: it takes one string")
        return self.function(arguments[0])


class Worded:
    """What tables and templates show in these words, and JSON as the number that it is."""

    words: str

    def __str__(self) -> str:
        return self.words


class Number(Worded, int):
    """A whole number, as in 3600 that is shown as 1h."""

    def __new__(cls, value: int, words: str) -> Number:
        found = super().__new__(cls, value)
        found.words = words
        return found


class Fraction(Worded, float):
    """A number, as in 12.5 that is shown as 12.5%."""

    def __new__(cls, value: float, words: str) -> Fraction:
        found = super().__new__(cls, value)
        found.words = words
        return found


class Labelled(dict[str, T]):
    """A row with a method `.Label`: the value of the label with that name."""

    def __init__(self, row: Mapping[str, T], label: Callable[[str], str]) -> None:
        super().__init__(row)
        self.label = label


def text(value: Any) -> str:
    """A value as Go prints it."""
    return NO_VALUE if value is None else inner_text(value)


def inner_text(value: Any) -> str:
    """The same inside of a map or list."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case Worded():
            return value.words
        case float():
            return _float_text(value)
        case Mapping():
            return "map[" + " ".join(f"{key}:{inner_text(value[key])}" for key in sorted(value)) + "]"
        case list() | tuple():
            return "[" + " ".join(map(inner_text, value)) + "]"
    return str(value)


def _float_text(value: float) -> str:
    """The shortest that is read back as the same, with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    if value and not 1e-4 <= abs(value) < 1e6:
        return next(shown for digits in range(18) if float(shown := f"{value:.{digits}e}") == value)
    return f"{value:.0f}" if value == int(value) else repr(value)


def type_name(value: Any) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case Mapping():
            return "map[string]interface {}"
    return "[]interface {}"


def _is_struct(value: Mapping[str, Any]) -> bool:
    """Docker's own fields are capitalised: with those an unknown name is a mistake; in a map of the
    user's (labels, options) it is only absent."""
    return bool(value) and all(key[:1].isupper() for key in value)


def member(value: Any, name: str) -> Any:
    """The field of that name."""
    if isinstance(value, Labelled) and name == "Label":
        return Method(name, value.label)
    if isinstance(value, Mapping):
        if name not in value and _is_struct(value):
            raise TemplateError(f"there is no field .{name}; there are {', '.join(sorted(value))}")
        return value.get(name)
    if value is None:
        return None
    raise TemplateError(f"cannot take field .{name} of {text(value)!r}")


def index(value: Any, *keys: Any) -> Any:
    """`index X K1 K2`. What a map does not have is the zero value of what it has: for labels the empty string."""
    for key in keys:
        if isinstance(value, Mapping):
            value = value[str(key)] if str(key) in value else _zero(value)
        elif isinstance(value, list | tuple):
            value = value[_position(key, len(value))]
        elif isinstance(value, str):
            code = value.encode("utf-8", "surrogateescape")
            value = code[_position(key, len(code))]
        else:
            raise TemplateError(f"cannot index {text(value)!r}")
    return value


def _zero(mapping: Mapping[str, Any]) -> Any:
    kinds = {type(found) for found in mapping.values() if found is not None} or {str}
    kind = kinds.pop()
    return kind() if not kinds and kind in (str, bool, int, float, list) else None


def _position(key: Any, length: int, last: bool = True) -> int:
    if not isinstance(key, int) or isinstance(key, bool):
        raise TemplateError(f"cannot index a list with {text(key)!r}")
    if not 0 <= key < length + (not last):
        raise TemplateError(f"index {key} is out of range, the length is {length}")
    return key


def cut(value: Any, *bounds: Any) -> Any:
    """`slice X FIRST END`."""
    if not isinstance(value, str | list | tuple) or len(bounds) > 2:
        raise TemplateError(f"cannot slice {text(value)!r}")
    places = [_position(bound, len(value), last=False) for bound in bounds]
    first, end = (*places, *(0, len(value))[len(places) :])
    if first > end:
        raise TemplateError(f"invalid slice: {first} is behind {end}")
    return value[first:end]


def length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if not isinstance(value, list | tuple | Mapping):
        raise TemplateError(f"{text(value)!r} has no length")
    return len(value)


def compared(first: Any, second: Any) -> int:
    """Negative, 0 or positive; of what has no order only whether it is 0. TemplateError for what differs in kind."""
    kinds = {type_name(value) for value in (first, second)}
    if len(kinds) == 1 and kinds <= {"string", "int", "float64", "bool"}:
        return int(first > second) - int(first < second)
    if len(kinds) == 1 or "<nil>" in kinds:
        return int(first != second)
    raise TemplateError(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
