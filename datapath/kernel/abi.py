# SPDX-License-Identifier: Apache-2.0
"""The types of abi.h as Python sees them: one NamedTuple a struct, one enum an enum.

Nothing is declared here twice: layouts come from the compiled extension, byte order from the type names in
abi.h. In Python addresses are `ipaddress` objects (None: the zero address), MACs are "02:42:ac:11:00:02",
ports and other numbers are in host order; padding does not appear.
"""

from __future__ import annotations

import enum
import functools
import keyword
import re
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datapath.kernel._libbpf import ffi

OBJECTS = Path(__file__).resolve().parents[1] / "objects"

Address = IPv4Address | IPv6Address

_MAPPED = bytes(10) + b"\xff\xff"
_ZERO = bytes(16)
_OPAQUE = {"struct bpf_timer"}


def pack_address(address: Address | None) -> bytes:
    """An address as struct ip_addr: 16 bytes in network order, IPv4 mapped (::ffff:a.b.c.d), None all zero."""
    if address is None:
        return _ZERO
    return _MAPPED + address.packed if address.version == 4 else address.packed


def address_text(raw: bytes) -> str:
    """A struct ip_addr as people write it. Several times as quick as by way of an address object."""
    if raw[:12] == _MAPPED:
        return socket.inet_ntoa(raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def is_mapped(raw: bytes) -> bool:
    """Whether a struct ip_addr is an IPv4 address."""
    return raw[:12] == _MAPPED


def unpack_address(raw: bytes) -> Address | None:
    """The address that a struct ip_addr is; None: all zero."""
    if raw[:12] == _MAPPED:
        return IPv4Address(raw[12:])
    return IPv6Address(raw) if raw != _ZERO else None


def _v4_pack(address: IPv4Address | None) -> bytes:
    return address.packed if address else bytes(4)


def _v4_unpack(raw: bytes) -> IPv4Address | None:
    return IPv4Address(raw) if raw != bytes(4) else None


def _mac_pack(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "")) if mac else bytes(6)


def _mac_unpack(raw: bytes) -> str:
    return raw.hex(":")


def _be16_pack(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _be16_unpack(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


class _Field(NamedTuple):
    name: str
    format: str
    pack: Callable[[Any], Any] | None
    unpack: Callable[[Any], Any] | None


@functools.cache
def _big_endian() -> dict[tuple[str, str], str]:
    """(struct, field) of every __be16 and __be32 in abi.h: cffi forgets the names of integer types."""
    found: dict[tuple[str, str], str] = {}
    text = re.sub(r"/\*.*?\*/", "", (OBJECTS / "abi.h").read_text(), flags=re.S)
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, flags=re.S):
        for kind, fields in re.findall(r"(__be16|__be32) ([^;]+);", body):
            for field in fields.split(","):
                found[name, field.strip()] = kind
    return found


def _field(owner: str, name: str, kind: Any) -> _Field:
    order = _big_endian().get((owner, name))
    size = ffi.sizeof(kind)
    if kind.kind == "struct" and kind.cname == "struct ip_addr":
        return _Field(name, "16s", pack_address, unpack_address)
    if kind.kind == "struct" and kind.cname not in _OPAQUE:
        nested = layout(kind.cname.removeprefix("struct "))
        return _Field(name, f"{size}s", nested.pack, nested.unpack)
    if order == "__be16":
        return _Field(name, "2s", _be16_pack, _be16_unpack)
    if order == "__be32":
        return _Field(name, "4s", _v4_pack, _v4_unpack)
    if kind.kind == "array" and name.endswith("mac"):
        return _Field(name, "6s", _mac_pack, _mac_unpack)
    if kind.kind == "primitive":
        return _Field(name, {1: "B", 2: "H", 4: "I", 8: "Q"}[size], None, None)
    return _Field(name, f"{size}s", None, None)


class Layout:
    """How one struct lies in memory. `type` is its NamedTuple; `pack` and `unpack` are exact to the byte."""

    def __init__(self, name: str) -> None:
        kind = ffi.typeof(f"struct {name}")
        fields = [_field(name, field, info.type) for field, info in kind.fields]
        hidden = [
            f.name == "pad" or info.type.cname in _OPAQUE
            for f, (_, info) in zip(fields, kind.fields, strict=True)
        ]
        self.name = name
        self.size: int = ffi.sizeof(kind)
        self._all = fields
        self._fields = [f for f, hide in zip(fields, hidden, strict=True) if not hide]
        # Padding in the struct format is `x`: written as zero, ignored when read.
        formats = [
            f"{ffi.sizeof(info.type)}x" if hide else f.format
            for f, hide, (_, info) in zip(fields, hidden, kind.fields, strict=True)
        ]
        self._struct = struct.Struct("=" + "".join(formats))
        if self._struct.size != self.size:
            raise AssertionError(f"struct {name} of abi.h has padding that is not written out")
        attributes = [f"{f.name}_" if keyword.iskeyword(f.name) else f.name for f in self._fields]
        self.type: Any = NamedTuple(name, [(attribute, Any) for attribute in attributes])  # type: ignore[misc]
        # Everything but what a caller names is zero.
        self.type.__new__.__defaults__ = tuple(_zero(f) for f in self._fields)

    def pack(self, value: Any) -> bytes:
        return self._struct.pack(
            *[f.pack(item) if f.pack else item for f, item in zip(self._fields, value, strict=True)]
        )

    def pack_range(self, value: Any, count: int, field: str = "") -> bytes:
        """The value `count` times, with a field in network byte order that goes up by one each time."""
        packed = bytearray(self.pack(value) * count)
        if field:
            at, first = self.offset(field), getattr(value, field)
            numbers = struct.pack(f">{count}H", *range(first, first + count))
            packed[at :: self.size], packed[at + 1 :: self.size] = numbers[0::2], numbers[1::2]
        return bytes(packed)

    def select(self, *names: str) -> struct.Struct:
        """Unpacks only these fields, in the struct's own order and as they lie there: for large tables."""
        missing = set(names) - {f.name for f in self._fields}
        if missing:
            raise AssertionError(f"struct {self.name} of abi.h has no {', '.join(sorted(missing))}")
        return struct.Struct(
            "="
            + "".join(
                f.format if f.name in names else f"{struct.calcsize('=' + f.format)}x" for f in self._all
            )
        )

    def column(self, packed: bytes, *path: str) -> list[int]:
        """A number of each of the structs that lie one after the other, in the byte order in which it lies there.
        `path`: its name, behind those of the structs in which it is."""
        kind, at = ffi.typeof(f"struct {self.name}"), 0
        for name in path:
            field = dict(kind.fields)[name]
            kind, at = field.type, at + field.offset
        width = ffi.sizeof(kind)
        formats: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
        numbers: list[int] = (
            memoryview(packed).cast(formats[width])[at // width :: self.size // width].tolist()
        )
        return numbers

    def offset(self, name: str) -> int:
        """Of a field, in bytes."""
        return int(ffi.offsetof(f"struct {self.name}", name))

    def width(self, name: str) -> int:
        """Of a field, in bytes."""
        return int(ffi.sizeof(dict(ffi.typeof(f"struct {self.name}").fields)[name].type))

    def unpack(self, raw: bytes) -> Any:
        items = self._struct.unpack(raw)
        return self.type(
            *[f.unpack(item) if f.unpack else item for f, item in zip(self._fields, items, strict=True)]
        )


def _zero(field: _Field) -> Any:
    if field.unpack:
        return field.unpack(bytes(struct.calcsize("=" + field.format)))
    return b"" if field.format.endswith("s") else 0


@functools.cache
def layout(name: str) -> Layout:
    """The layout of `struct name`."""
    return Layout(name)


def _elements(name: str) -> dict[str, int]:
    # By name: by value the second of two names for one number would be missing.
    return dict(sorted(ffi.typeof(f"enum {name}").relements.items(), key=lambda item: item[1]))


_FLAGS, _NUMBERS = enum.IntFlag, enum.IntEnum
_ENUMS: dict[str, tuple[Any, str]] = {
    "NetworkFlag": (_FLAGS, "network_flag"),
    "HostFlag": (_FLAGS, "host_flag"),
    "XfrmDirection": (_NUMBERS, "xfrm_direction"),
    "DeviceKind": (_NUMBERS, "device_kind"),
    "Transport": (_NUMBERS, "transport"),
    "OverlayFlag": (_FLAGS, "overlay_flag"),
    "PeerFlag": (_FLAGS, "peer_flag"),
    "TunnelFlag": (_FLAGS, "tunnel_flag"),
    "ServiceChoice": (_NUMBERS, "service_choice"),
    "BackendState": (_NUMBERS, "backend_state"),
    "ServiceCountFlag": (_FLAGS, "service_count_flag"),
    "EndpointRole": (_FLAGS, "endpoint_role"),
    "OtherParty": (_NUMBERS, "other_party"),
    "LimitDirection": (_NUMBERS, "limit_direction"),
    "ConnFlag": (_FLAGS, "conn_flag"),
    "ConnState": (_NUMBERS, "conn_state"),
    "NameScope": (_FLAGS, "name_scope"),
    "Tail": (_NUMBERS, "tail"),
    "GcOrder": (_NUMBERS, "gc_order"),
    "Reason": (_NUMBERS, "reason"),
}
# Two names for one number would make one an alias: bounds are no members.
_BOUNDS = {"TAIL_COUNT", "REASON_COUNT", "DROP_FIRST"}
DROP_FIRST: int = ffi.typeof("enum reason").relements["DROP_FIRST"]


def __getattr__(name: str) -> Any:
    """An enum of _ENUMS, or the type of the struct that is called so (`tuple_`: a name that Python has is followed by
    an underscore). Each is made when it is first asked for: all of them take longer than a command has use for."""
    if name in _ENUMS:
        kind, enumeration = _ENUMS[name]
        found = kind(name, {k: v for k, v in _elements(enumeration).items() if k not in _BOUNDS})
    else:
        try:
            found = layout(name.removesuffix("_")).type
        except ffi.error:
            raise AttributeError(f"abi.h has no struct {name}") from None
    globals()[name] = found
    return found
