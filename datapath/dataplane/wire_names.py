# SPDX-License-Identifier: Apache-2.0
"""Names and records as they are sent, which is how the maps have them (RFC 1035), and as people write them. Pure."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

from datapath.dataplane.structs import LongNameKey, NameKey
from datapath.model.digests import sha256
from datapath.model.parsing import Address

A, PTR, AAAA = 1, 12, 28  # types of records (RFC 1035, 3596)
TYPES = {A: "A", AAAA: "AAAA", PTR: "PTR"}
_IN = 1  # class
_SHORT = 60  # bytes of a name in `names`; longer ones are in `long_names`
# What keys begin with that say who has an address: no name does (see `name_key` of abi.h).
_ENDPOINT, _ADDRESS = b"\xfe\0\0\0", b"\xff\0\0\0"
_OWNERS = {
    _ENDPOINT[0]: len(_ENDPOINT) + 4,
    _ADDRESS[0]: len(_ADDRESS) + 16,
}  # bytes of such a key, by its first
_MAPPED = bytes(10) + b"\xff\xff"
RECORD = b"\xc0\x0c"  # what a record begins with: a pointer to the question's name
_HEAD = 12  # bytes of a record before its data

Key = NameKey | LongNameKey


def wire(name: str) -> bytes:
    """The name as it is sent (RFC 1035, 3.1); b"": it cannot be."""
    labels = name.encode("ascii", "replace").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        return b""
    packed = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return packed if len(packed) < 256 else b""


def name_key(scope: int, name: str) -> Key | None:
    """The key of a name's row; None: it cannot be asked for."""
    packed = wire(name.lower())
    if not packed:
        return None
    return NameKey(scope, packed) if len(packed) <= _SHORT else LongNameKey(scope, packed)


def endpoint_key(scope: int, number: int) -> NameKey:
    """The key of the row that says what the addresses of an endpoint on this host are called."""
    return NameKey(scope, _ENDPOINT + number.to_bytes(4, sys.byteorder))


def address_key(scope: int, address: Address) -> NameKey:
    """The key of the row that says who on another host has the address."""
    return NameKey(scope, _ADDRESS + _packed(address))


def number_in(key: bytes) -> int | None:
    """The number of the endpoint that the key's name stands for; None: it is something else."""
    if not key.startswith(_ENDPOINT):
        return None
    return int.from_bytes(key[len(_ENDPOINT) : _OWNERS[_ENDPOINT[0]]], sys.byteorder)


def name_in(field: bytes) -> bytes:
    """The name of a key as it lies in memory, without the zeros that fill it."""
    length = _OWNERS.get(field[0]) or field.index(0) + 1
    return field[:length]


def _packed(address: Address) -> bytes:
    """As a struct ip_addr."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def set_id(key: Key, kind: int) -> int:
    """The key of the row of `name_sets` for records of that type. It is the same whenever it is asked for."""
    text = key.scope.to_bytes(4, "big") + key.name + kind.to_bytes(2, "big")
    return int.from_bytes(sha256(text)[:8], "big") or 1


def record(kind: int, ttl: int, data: bytes) -> bytes:
    """A resource record whose name is the question's (RFC 1035, 3.2.1)."""
    head = kind.to_bytes(2, "big") + _IN.to_bytes(2, "big") + ttl.to_bytes(4, "big")
    if kind == PTR:
        data = data if data.endswith(b"\0") else data + b"\0"
    return RECORD + head + len(data).to_bytes(2, "big") + data


def text_of(name: bytes) -> str:
    """A key's name as people write it; of an address the address, of an endpoint its number."""
    number = number_in(name)
    if number is not None:
        return f"endpoint {number}"
    if name.startswith(_ADDRESS):
        raw = name[len(_ADDRESS) :]
        return str(IPv4Address(raw[12:]) if raw[:12] == _MAPPED else IPv6Address(raw))
    labels, at = [], 0
    while at < len(name) and name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]].decode("ascii", "replace"))
        at += 1 + name[at]
    return ".".join(labels)


def reverse_name(text: str) -> str:
    """What is asked for to know who has an address; the text as it is if it is none."""
    try:
        return ip_address(text).reverse_pointer
    except ValueError:
        return text


def texts_of(kind: int, records: bytes, count: int, size: int) -> list[str]:
    """The data of as many records, each of that size, as people write them."""
    found = [records[at + _HEAD : at + size] for at in range(0, count * size, size)]
    return [text_of(data) if kind == PTR else str(ip_address(data)) for data in found]
