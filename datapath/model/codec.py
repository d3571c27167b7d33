# SPDX-License-Identifier: Apache-2.0
"""The dataclasses of `model` as JSON and back, by their type hints: the one place that does it. Pure.

A field that has its default is left out, because most have and every command reads every row. So a changed default
needs a new version of the store, and so does a renamed field (`datapath/store/steps.py`). A new field needs a default,
which it has in older rows. A field that the class does not know is an error: the row was written by a newer version, or
is damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> str:
    """The dataclass as one line of JSON. A StrEnum's member is written as its value."""
    return json.dumps(value, default=_encode, separators=(",", ":"))


def from_json(cls: type[T], text: str) -> T:
    """The dataclass that `to_json` wrote as `text`. ValueError if the text is no row of that class."""
    return from_object(cls, json.loads(text))


def from_object(cls: type[T], value: Any) -> T:
    """The dataclass that `to_json` wrote, from its JSON as the json module has read it. ValueError as `from_json`."""
    kind: Any = cls
    result: T = _decoder(kind)(value)
    return result


def _encode(value: Any) -> Any:
    """A value that the json module cannot write, as one that it can. It asks about the items inside in turn."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        fields = ((name, getattr(value, name), default) for name, default in _defaults(kind))
        return {name: item for name, item, default in fields if item != default}
    return dict(value) if isinstance(value, Mapping) else str(value)


@functools.cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    """The dataclass's fields, each with its default; MISSING, which no value is equal to, if it has none."""
    return tuple(
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(cls)
    )


_IP_CLASSES = {IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network}


@functools.cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """The function that rebuilds a value of the type `kind` from decoded JSON. It raises ValueError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(args)
    if kind in _IP_CLASSES:
        return lambda raw: kind(_checked(raw, str))
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        item = _decoder(args[0])
        kinds = typing.get_args(args[0]) if typing.get_origin(args[0]) is tuple else ()
        if kinds and all(kind in (int, str) for kind in kinds):
            return _table_decoder(kinds, item)
        return lambda raw: tuple([item(x) for x in _checked(raw, list)])
    if origin is tuple:
        items = [_decoder(arg) for arg in args]
        return lambda raw: tuple([f(x) for f, x in zip(items, _checked(raw, list), strict=True)])
    if origin is Mapping:
        item = _decoder(args[1])
        return lambda raw: {str(k): item(v) for k, v in _checked(raw, dict).items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(kind)
    if issubclass(kind, StrEnum):
        return _enum_decoder(kind)
    return lambda raw: _checked(raw, kind)


def _table_decoder(kinds: tuple[Any, ...], row: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The decoder of many short tuples of plain values, as a container's ten thousand ports: it checks by column."""

    def decode(raw: Any) -> Any:
        rows = _checked(raw, list)
        if set(map(type, rows)) == {list} and set(map(len, rows)) == {len(kinds)}:
            columns = zip(*rows, strict=True)
            if [set(map(type, column)) for column in columns] == [{kind} for kind in kinds]:
                return tuple(map(tuple, rows))
        return tuple([row(x) for x in rows])  # the list is empty, or a row is wrong: its decoder says how

    return decode


def _checked(raw: Any, kind: Any) -> Any:
    if type(raw) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


def _enum_decoder(kind: type[StrEnum]) -> Callable[[Any], Any]:
    members = {member.value: member for member in kind}

    def decode(raw: Any) -> Any:
        try:
            return members[_checked(raw, str)]
        except KeyError:
            raise ValueError(f"unknown {kind.__name__} {raw!r}") from None

    return decode


def _union_decoder(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """The decoder of `X | None`, and of an address, network or interface of either family."""
    rest = tuple(arg for arg in args if arg is not type(None))
    decode = _family_decoder(rest) if len(rest) == 2 else _decoder(*rest)
    return decode if len(rest) == len(args) else lambda raw: None if raw is None else decode(raw)


def _family_decoder(kinds: tuple[Any, ...]) -> Callable[[Any], Any]:
    v4, v6 = sorted(kinds, key=lambda kind: str(kind.__name__))
    return lambda raw: v6(raw) if ":" in _checked(raw, str) else v4(raw)


_PLAIN = {"str": str, "int": int, "bool": bool}  # by annotation, which spares most fields its evaluation


def _dataclass_decoder(cls: Any) -> Callable[[Any], Any]:
    others = {f.name: f.type for f in dataclasses.fields(cls) if f.type not in _PLAIN}
    hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=others), cls.__init__.__globals__)
    fields: dict[str, tuple[str, Any, Callable[[Any], Any]]] = {}
    for field in dataclasses.fields(cls):
        kind = hints.get(field.name) or _PLAIN[str(field.type)]
        # With the type of a plain field, so that the usual value needs no call.
        fields[field.name] = (field.name, kind, _decoder(kind))

    def decode(raw: Any) -> Any:
        values = {}
        try:
            for key, item in _checked(raw, dict).items():
                name, plain, rebuild = fields[key]
                values[name] = item if type(item) is plain else rebuild(item)
            return cls(**values)
        except KeyError as error:
            raise ValueError(f"unknown field {error} of {cls.__name__}") from None
        except TypeError as error:
            raise ValueError(str(error)) from None

    return decode
