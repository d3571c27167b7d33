# SPDX-License-Identifier: Apache-2.0
"""Rows of names as the control plane writes them, and messages of the domain name system as they are sent."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import dns.flags
import dns.message
import dns.name
import dns.rdatatype

from datapath.dataplane.convert import to_abi
from datapath.dataplane.structs import (
    LongNameKey,
    NameKey,
    NameSetKey,
    NameSetValue,
    NameValue,
    ResolverKey,
    ResolverValue,
    RrsetValue,
    SubnetKey,
    SubnetValue,
    UpstreamValue,
)
from datapath.kernel import abi
from tests.bpf.fixtures import Programs

RESOLVER = IPv4Address("127.0.0.11")
A, PTR, MX, TXT, AAAA, SRV, HTTPS, ANY = 1, 12, 15, 16, 28, 33, 65, 255
QR, RA, RD, CD = 0x8000, 0x0080, 0x0100, 0x0010
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
EDNS_SIZE = 1232
SHORT = 60  # bytes of a name that a key of `names` takes
IDENT = 0x1D2C

Address = IPv4Address | IPv6Address


def wire(name: str) -> bytes:
    return dns.name.from_text(name).to_wire() or b""


def record(kind: int, data: bytes, ttl: int = 0) -> bytes:
    """A resource record of the name that is asked for."""
    return struct.pack("!HHHIH", 0xC00C, kind, 1, ttl, len(data)) + data


def address_record(address: Address) -> bytes:
    return record(A if address.version == 4 else AAAA, address.packed)


def pointer_record(name: str) -> bytes:
    return record(PTR, wire(name))


def _twice(records: Sequence[bytes]) -> bytes:
    return b"".join(records) * (2 if len(records) > 1 else 1)


def add_name(programs: Programs, scope: int, name: str | Address, *sets: Sequence[bytes]) -> None:
    """Writes what is known of a name, or of who has an address: sets of records, each of one type. What does not fit
    into the row gets one of its own, the second first."""
    rows, inline = list[RrsetValue](), list[bytes]()
    left = 48
    for records in sets:
        kind = int.from_bytes(records[0][2:4], "big")
        size = len(records[0])
        stored = _twice(records)
        if len(stored) <= left:
            rows.append(RrsetValue(0, kind, len(records), size))
            inline.append(stored)
            left -= len(stored)
            continue
        digest = hashlib.sha256(f"{scope} {name} {kind}".encode()).digest()
        number = int.from_bytes(digest[:8], "little") or 1
        rows.append(RrsetValue(number, kind, min(len(records), 255), min(size, 255)))
        programs.maps["name_sets"][to_abi(NameSetKey(number))] = to_abi(
            NameSetValue(len(records), size, stored)
        )
    value = to_abi(NameValue(tuple(rows), b"".join(inline)))
    if not isinstance(name, str):
        programs.maps["names"][to_abi(NameKey(scope, b"\xff" + abi.pack_address(name)))] = value
        return
    key = wire(name).lower()
    if len(key) <= SHORT:
        programs.maps["names"][to_abi(NameKey(scope, key))] = value
    else:
        programs.maps["long_names"][to_abi(LongNameKey(scope, key))] = value


def add_resolver(
    programs: Programs,
    endpoint: int,
    networks: Sequence[int],
    *,
    private: int = 0,
    egress: int = 0,
    upstreams: Sequence[UpstreamValue] = (),
) -> None:
    value = ResolverValue(tuple(networks), private, egress, tuple(upstreams))
    programs.maps["resolvers"][to_abi(ResolverKey(endpoint))] = to_abi(value)


def add_subnet(programs: Programs, prefix: str, network: int) -> None:
    whole = ip_network(prefix)
    bits = whole.prefixlen + (96 if whole.version == 4 else 0)
    key = SubnetKey(bits, ip_address(whole.network_address))
    programs.maps["subnets"][to_abi(key)] = to_abi(SubnetValue(network))


def question(
    name: str | bytes,
    kind: int = A,
    *,
    flags: int = RD,
    ident: int = IDENT,
    edns: bytes | None = None,
    dnsclass: int = 1,
    counts: tuple[int, int, int, int] | None = None,
) -> bytes:
    """A message that asks for a name (bytes: as they are), with an OPT record or without."""
    found = counts or (1, 0, 0, int(edns is not None))
    asked = name if isinstance(name, bytes) else wire(name)
    return (
        struct.pack("!HHHHHH", ident, flags, *found)
        + asked
        + struct.pack("!HH", kind, dnsclass)
        + (edns or b"")
    )


def opt(*, size: int = 1232, rcode: int = 0, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    return struct.pack("!BHHBBHH", 0, 41, size, rcode, version, flags, len(options)) + options


def reply(
    asked: bytes, *records: bytes, rcode: int = NOERROR, edns: bytes = b"", whole: bool = True
) -> bytes:
    """What a message is answered with; not `whole`: without its question."""
    ident, flags, *_ = struct.unpack_from("!HHHHHH", asked)
    end = asked.index(b"\0", 12) + 5 if whole else 12
    said = QR | RA | (flags & (0x7800 | RD | CD)) | rcode & 15
    header = struct.pack("!HHHHHH", ident, said, int(whole), len(records), 0, int(bool(edns)))
    return header + asked[12:end] + b"".join(records) + edns


def checked(message: bytes, asked: bytes) -> dns.message.Message:
    """An answer as an independent parser reads it, which must be one to that question and leave nothing over."""
    answer = dns.message.from_wire(message, one_rr_per_rrset=True)
    assert answer.id == int.from_bytes(asked[:2], "big")
    assert answer.flags & dns.flags.QR and answer.flags & dns.flags.RA
    assert not answer.flags & (dns.flags.AA | dns.flags.AD | dns.flags.TC)
    if answer.question:
        (one,) = answer.question
        size = len(one.name.to_wire() or b"") + 4
        assert message[12 : 12 + size] == asked[12 : 12 + size]
    return answer
