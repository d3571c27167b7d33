# SPDX-License-Identifier: Apache-2.0
"""Rows of names as the control plane writes them, and messages of the domain name system as they are sent."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol

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
from tests.bpf.fixtures import A1, A2, A3, B1, C1, NET1, NET2, NET3, Member, Programs

RESOLVER = IPv4Address("127.0.0.11")
A, PTR, MX, TXT, AAAA, SRV, HTTPS, ANY = 1, 12, 15, 16, 28, 33, 65, 255
QR, RA, RD, CD = 0x8000, 0x0080, 0x0100, 0x0010
OPCODE = 0x78  # in the third byte of a message
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


class Filled(Protocol):
    """Programs whose maps are written here."""

    @property
    def maps(self) -> Mapping[str, Any]: ...


def _twice(records: Sequence[bytes]) -> bytes:
    return b"".join(records) * (2 if len(records) > 1 else 1)


def add_name(programs: Filled, scope: int, name: str | Address | int, *sets: Sequence[bytes]) -> None:
    """Writes what is known of a name, or of the addresses of the endpoint with that number, or of an address on another
    host: sets of records, each of one type. What does not fit into the row gets one of its own, the second first."""
    kept, rows, inline = list[int](), list[RrsetValue](), list[bytes]()
    left = 48
    for records in sets:
        kind = int.from_bytes(records[0][2:4], "big")
        size = len(records[0])
        stored = _twice(records)
        if len(stored) <= left:
            kept.append(0)
            rows.append(RrsetValue(kind, len(records), size))
            inline.append(stored)
            left -= len(stored)
            continue
        digest = hashlib.sha256(f"{scope} {name} {kind}".encode()).digest()
        number = int.from_bytes(digest[:8], "little") or 1
        kept.append(number)
        rows.append(RrsetValue(kind, min(len(records), 255), min(size, 255)))
        programs.maps["name_sets"][to_abi(NameSetKey(number))] = to_abi(
            NameSetValue(len(records), size, stored)
        )
    value = to_abi(NameValue(tuple(kept), tuple(rows), b"".join(inline)))
    if not isinstance(name, str):
        if isinstance(name, int):
            owner = b"\xfe\0\0\0" + name.to_bytes(4, "little")
        else:
            owner = b"\xff\0\0\0" + abi.pack_address(name)
        programs.maps["names"][to_abi(NameKey(scope, owner))] = value
        return
    key = wire(name).lower()
    if len(key) <= SHORT:
        programs.maps["names"][to_abi(NameKey(scope, key))] = value
    else:
        programs.maps["long_names"][to_abi(LongNameKey(scope, key))] = value


def add_resolver(
    programs: Filled,
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


def records(*addresses: Address) -> list[bytes]:
    return [address_record(one) for one in addresses]


# ---- what is known in tests ---------------------------------------------------------------

PRIVATE = 0x80000000 | A3.number  # the scope of a3's own names
UPSTREAM = UpstreamValue(ip_address("192.0.2.53"))
MANY4 = [IPv4Address("172.17.1.0") + i for i in range(28)]
MANY6 = [IPv6Address("fd00:1::1:0") + i for i in range(16)]
PAIR = [IPv4Address("172.17.3.1"), IPv4Address("172.17.3.2")]
FULL = "x" * 58  # with its length and its end as long as a key of `names` takes
LONGEST = ".".join(["l" * 63] * 3 + ["m" * 61])  # 255 bytes
POINTED = "web.shop"
LONG_POINTED = "a" * 60 + ".shop"
FAR, FAR6 = IPv4Address("172.17.200.7"), IPv6Address("fd00:1::c8:7")  # of an endpoint on another host
# Scope; a name, who has the addresses, or an address of somebody on another host; and its records by type.
KNOWN: tuple[tuple[int, str | Member | Address, tuple[list[bytes], ...]], ...] = (
    (NET1.number, "web", (records(A2.ip), records(A2.ip6))),
    (NET1.number, "only4", (records(A2.ip),)),
    (NET1.number, "only6", (records(A2.ip6),)),
    (NET1.number, "pair", (records(*PAIR),)),
    (NET1.number, "many", (records(*MANY4), records(*MANY6))),
    (NET1.number, "crowd", (records(*MANY4, *(PAIR[0] + 256 * i for i in range(4))),)),
    (NET1.number, "under_score.a.b.c", (records(A2.ip),)),
    (NET1.number, FULL, (records(A2.ip),)),
    (NET1.number, FULL + "y", (records(A2.ip), records(A2.ip6))),
    (NET1.number, LONGEST, (records(A2.ip),)),
    (NET1.number, A2, ([pointer_record(POINTED)],)),
    (NET1.number, A3, ([pointer_record(LONG_POINTED)],)),
    (NET1.number, "far", (records(FAR), records(FAR6))),
    (NET1.number, FAR, ([pointer_record("far.shop")],)),
    (NET1.number, FAR6, ([pointer_record("far.shop")],)),
    (NET2.number, "other", (records(B1.ip),)),
    (NET2.number, "web", (records(B1.ip),)),
    (NET2.number, B1, ([pointer_record("other.two")],)),
    (PRIVATE, "db", (records(B1.ip),)),
    (NET3.number, "inner", (records(C1.ip),)),
)
# Who has a resolver: its networks, and whether an upstream can be asked. c1 is in an internal network.
RESOLVERS: tuple[tuple[Member, tuple[int, ...], int, bool], ...] = (
    (A1, (NET1.number,), 0, True),
    (A3, (NET1.number, NET2.number), PRIVATE, True),
    (B1, (NET2.number,), 0, False),
    (C1, (NET3.number,), 0, False),
)
SUBNETS = (*((f"172.{16 + net.number}.0.0/16", net.number) for net in (NET1, NET2, NET3)), ("fd00:1::/64", 1))


def fill(programs: Programs) -> None:
    """As a control plane would have written it."""
    for scope, name, sets in KNOWN:
        add_name(programs, scope, name.number if isinstance(name, Member) else name, *sets)
    for member, networks, private, forwards in RESOLVERS:
        egress = 0 if member is C1 else member.net.number
        upstreams = (UPSTREAM,) if forwards or member is C1 else ()
        add_resolver(programs, member.number, networks, private=private, egress=egress, upstreams=upstreams)
    for prefix, number in SUBNETS:
        add_subnet(programs, prefix, number)


def asked_as(name: str | Member | Address) -> list[str]:
    """What is asked for to be told what is known: of addresses the names that lead back from them."""
    if isinstance(name, str):
        return [name]
    addresses = (name.ip, name.ip6, name.linklocal) if isinstance(name, Member) else (name,)
    ipv6 = not isinstance(name, Member) or name.net.ipv6
    return [one.reverse_pointer for one in addresses if one.version == 4 or ipv6]


def seen_by(member: Member) -> dict[bytes, dict[int, set[bytes]]]:
    """Lower-case wire form of each name that it sees, those of addresses too -> the data of its records, by type."""
    (_, networks, private, _), *_ = (row for row in RESOLVERS if row[0] is member)
    found: dict[bytes, dict[int, set[bytes]]] = {}
    for scope in (private, *networks):
        for owner, name, sets in KNOWN:
            if owner == scope:
                types = {int.from_bytes(one[0][2:4], "big"): {rr[12:] for rr in one} for one in sets}
                for asked in asked_as(name):
                    found.setdefault(wire(asked).lower(), types)
    return found


# ---- messages -----------------------------------------------------------------------------


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
    """An answer as an independent parser reads it, which must be one to that question and leave nothing over. The
    parser refuses opcodes that have no name: what is read is a QUERY."""
    assert message[2] & OPCODE == asked[2] & OPCODE
    read = message[:2] + bytes((message[2] & ~OPCODE,)) + message[3:]
    answer = dns.message.from_wire(read, one_rr_per_rrset=True)
    assert answer.id == int.from_bytes(asked[:2], "big")
    assert answer.flags & dns.flags.QR and answer.flags & dns.flags.RA
    assert not answer.flags & (dns.flags.AA | dns.flags.AD | dns.flags.TC)
    if answer.question:
        (one,) = answer.question
        size = len(one.name.to_wire() or b"") + 4
        assert message[12 : 12 + size] == asked[12 : 12 + size]
    return answer
