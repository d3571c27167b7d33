# SPDX-License-Identifier: Apache-2.0
"""The dataclasses of `model` as JSON and back, by their type hints: the one place that does it. Pure.

A field that has its default is left out: most have, and every command reads every row. So a default that is
changed needs a new version of the store.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> str:
    """A dataclass of this module as one line of JSON."""
    return json.dumps(value, default=_encode, separators=(",", ":"))


def from_json(cls: type[T], text: str) -> T:
    """The dataclass again. ValueError if the text is not what `to_json` wrote for that class."""
    kind: Any = cls
    result: T = _decoder(kind)(json.loads(text))
    return result


def _encode(value: Any) -> Any:
    """What json does not know by itself; what is inside is asked about in turn."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        fields = ((name, getattr(value, name), default) for name, default in _defaults(kind))
        return {name: item for name, item, default in fields if item != default}
    return dict(value) if isinstance(value, Mapping) else str(value)


@functools.cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of the dataclass, each with its default or something that is equal to nothing else."""
    return tuple(
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(cls)
    )


_IP_CLASSES: dict[Any, Callable[[str], Any]] = {
    IPv4Address: ip_address,
    IPv6Address: ip_address,
    IPv4Network: ip_network,
    IPv6Network: ip_network,
    IPv4Interface: ip_interface,
    IPv6Interface: ip_interface,
}


@functools.cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """The function that rebuilds a value of that type from decoded JSON; it raises ValueError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(args)
    if kind in _IP_CLASSES:
        return _union_decoder((kind,))
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
    return lambda raw: _checked(raw, kind)


def _table_decoder(kinds: tuple[Any, ...], row: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of many short rows of plain values, such as a container's ten thousand ports: checked by column."""

    def decode(raw: Any) -> Any:
        rows = _checked(raw, list)
        if set(map(type, rows)) == {list} and set(map(len, rows)) == {len(kinds)}:
            columns = zip(*rows, strict=True)
            if [set(map(type, column)) for column in columns] == [{kind} for kind in kinds]:
                return tuple(map(tuple, rows))
        return tuple([row(x) for x in rows])  # there are none, or one is wrong: this says which way

    return decode


def _checked(raw: Any, kind: Any) -> Any:
    if type(raw) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


def _union_decoder(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    rest = tuple(arg for arg in args if arg is not type(None))
    if rest[0] in _IP_CLASSES:
        make = _IP_CLASSES[rest[0]]

        def inner(raw: Any) -> Any:
            value = make(_checked(raw, str))
            if not isinstance(value, rest):
                raise ValueError(f"wrong address family: {raw}")
            return value

        decode: Callable[[Any], Any] = inner
    else:
        decode = _decoder(rest[0])
    return decode if len(rest) == len(args) else lambda raw: None if raw is None else decode(raw)


def _dataclass_decoder(cls: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    # With the type of a plain field, so that the usual value needs no call.
    decoders = {f.name: (hints[f.name], _decoder(hints[f.name])) for f in dataclasses.fields(cls)}

    def decode(raw: Any) -> Any:
        values = {}
        try:
            for name, item in _checked(raw, dict).items():
                plain, rebuild = decoders[name]
                values[name] = item if type(item) is plain else rebuild(item)
            return cls(**values)
        except KeyError as error:
            raise ValueError(f"unknown field {error} of {cls.__name__}") from None
        except TypeError as error:
            raise ValueError(str(error)) from None

    return decode
