# SPDX-License-Identifier: Apache-2.0
"""Whole frames, built from what they say. Checksums are right unless a test asks for a lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

ETH_IPV4, ETH_ARP, ETH_IPV6, ETH_VLAN, ETH_QINQ = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_OPTIONS, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "00:00:00:00:00:00"
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
REQUEST, REPLY = 1, 2
ECHO, ECHO_REPLY = 8, 0
ECHO6, ECHO6_REPLY = 128, 129
ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT, REDIRECT = 134, 135, 136, 137

Address = str | IPv4Address | IPv6Address


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def packed(address: Address) -> bytes:
    return ip_address(address).packed


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Transport(NamedTuple):
    """What an IP header carries. `check_at`: where its checksum belongs; None: it is left as it is."""

    proto: int
    data: bytes
    check_at: int | None = None
    pseudo: bool = False

    def finish(self, src: bytes, dst: bytes) -> bytes:
        if self.check_at is None:
            return self.data
        # The sum is the same for both families' pseudo headers (RFC 8200, 8.1).
        pseudo = src + dst + struct.pack("!II", len(self.data), self.proto) if self.pseudo else b""
        value = checksum(pseudo + self.data)
        if self.proto == UDP and value == 0:
            value = 0xFFFF
        return self.data[: self.check_at] + value.to_bytes(2, "big") + self.data[self.check_at + 2 :]


def tcp(
    sport: int,
    dport: int,
    flags: int,
    payload: bytes = b"",
    *,
    options: bytes = b"",
    seq: int = 0x01020304,
    ack: int = 0x05060708,
) -> Transport:
    offset = (20 + len(options)) // 4
    header = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset << 4, flags, 0xFFFF, 0, 0)
    return Transport(TCP, header + options + payload, 16, True)


def udp(sport: int, dport: int, payload: bytes = b"question", *, summed: bool = True) -> Transport:
    header = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    return Transport(UDP, header + payload, 6 if summed else None, True)


def icmp(kind: int, code: int = 0, word: int = 0, payload: bytes = b"") -> Transport:
    """`word`: bytes 4 to 8 of the header."""
    return Transport(ICMP, struct.pack("!BBHI", kind, code, 0, word) + payload, 2)


def echo(kind: int, ident: int, payload: bytes = b"abcdefgh", *, sequence: int = 1) -> Transport:
    return icmp(kind, 0, ident << 16 | sequence, payload)


def icmp6(kind: int, code: int = 0, word: int = 0, payload: bytes = b"") -> Transport:
    return Transport(ICMPV6, struct.pack("!BBHI", kind, code, 0, word) + payload, 2, True)


def echo6(kind: int, ident: int, payload: bytes = b"abcdefgh", *, sequence: int = 1) -> Transport:
    return icmp6(kind, 0, ident << 16 | sequence, payload)


def solicitation(target: Address, source_mac: str | None) -> Transport:
    option = b"\1\1" + mac_bytes(source_mac) if source_mac else b""
    return icmp6(SOLICITATION, payload=packed(target) + option)


def advertisement(target: Address, mac: str, *, solicited: bool, override: bool = True) -> Transport:
    word = solicited << 30 | override << 29
    return icmp6(ADVERTISEMENT, word=word, payload=packed(target) + b"\2\1" + mac_bytes(mac))


def ethernet(dst: str, src: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(dst) + mac_bytes(src) + struct.pack("!H", kind) + payload


def ipv4(
    src: Address,
    dst: Address,
    carried: Transport,
    *,
    ttl: int = 64,
    fragment: int = DONT_FRAGMENT,
    ident: int = 0x1234,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    total: int | None = None,
) -> bytes:
    """`fragment`: the flags and the offset (in eighths). `version`, `ihl`, `total`: to lie."""
    body = carried.finish(packed(src), packed(dst))
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | (words if ihl is None else ihl),
        0,
        words * 4 + len(body) if total is None else total,
        ident,
        fragment,
        ttl,
        carried.proto,
        0,
        packed(src),
        packed(dst),
    )
    header += options
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def extension(kind: int, body: bytes = bytes(7)) -> tuple[int, bytes]:
    """An IPv6 extension header for `ipv6`: all of it but the byte that says what comes next."""
    return kind, body


def fragment_header(offset: int, more: bool, ident: int = 0x11223344) -> tuple[int, bytes]:
    """`offset` in bytes, a multiple of 8."""
    return FRAGMENT, b"\0" + struct.pack("!HI", offset | more, ident)


def ipv6(
    src: Address,
    dst: Address,
    carried: Transport,
    *,
    hops: int = 64,
    extensions: Sequence[tuple[int, bytes]] = (),
    version: int = 6,
    length: int | None = None,
) -> bytes:
    """`version`, `length`: to lie."""
    kinds = [kind for kind, _ in extensions] + [carried.proto]
    body = b"".join(bytes([kinds[i + 1]]) + rest for i, (_, rest) in enumerate(extensions))
    body += carried.finish(packed(src), packed(dst))
    header = struct.pack("!IHBB", version << 28, len(body) if length is None else length, kinds[0], hops)
    return header + packed(src) + packed(dst) + body


def ethertype(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


def cut(frame: bytes, *ends: int, ident: int = 0x4321) -> list[bytes]:
    """An unfragmented frame in fragments: the transport bytes up to each of `ends`, and the rest. An IPv6 one
    must have no extension header."""
    fragments, begin = [], 0
    four = ethertype(frame) == ETH_IPV4
    head = 14 + (frame[14] & 15) * 4 if four else 54
    body = frame[head:]
    for end in (*ends, len(body)):
        fragments.append(piece(frame, begin, end, end < len(body), ident=ident))
        begin = end
    return fragments


def piece(frame: bytes, begin: int, end: int, more: bool, *, ident: int = 0x4321) -> bytes:
    """One fragment of an unfragmented frame: its transport bytes from `begin`, a multiple of 8, to `end`."""
    if ethertype(frame) == ETH_IPV4:
        size = (frame[14] & 15) * 4
        ip = bytearray(frame[14 : 14 + size])
        ip[2:4] = (size + end - begin).to_bytes(2, "big")
        ip[4:6] = ident.to_bytes(2, "big")
        ip[6:8] = (begin // 8 | (MORE_FRAGMENTS if more else 0)).to_bytes(2, "big")
        ip[10:12] = bytes(2)
        ip[10:12] = checksum(bytes(ip)).to_bytes(2, "big")
        return frame[:14] + bytes(ip) + frame[14 + size + begin : 14 + size + end]
    _, rest = fragment_header(begin, more, ident)
    length = (8 + end - begin).to_bytes(2, "big")
    header = frame[14:18] + length + bytes([FRAGMENT]) + frame[21:54] + frame[20:21] + rest
    return frame[:14] + header + frame[54 + begin : 54 + end]


QUOTE = 124  # bytes that an ICMP error of the datapath's own quotes at the most


def own_error(frame: bytes, source: Address, *, mtu: int = 0, prohibited: bool = False) -> bytes:
    """What the datapath answers to a frame: time exceeded, with `mtu` that it is too big, or that it is prohibited."""
    packet = frame[14:]
    four = ethertype(frame) == ETH_IPV4
    if four:
        header, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        sender = IPv4Address(packet[12:16])
    else:
        header, length, kind = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[6]
        while kind in (HOP_OPTIONS, ROUTING, FRAGMENT, DESTINATION_OPTIONS):
            kind, step = packet[header], 8 if kind == FRAGMENT else 8 + packet[header + 1] * 8
            header += step
    quote = packet[: QUOTE if length >= QUOTE else header + 8]
    if four:
        carried = icmp(3, 4, mtu, quote) if mtu else icmp(11, 0, 0, quote)
        carried = icmp(3, 13, 0, quote) if prohibited else carried
        body = ipv4(source, sender, carried, ident=0, fragment=0)
    else:
        carried = icmp6(2, 0, mtu, quote) if mtu else icmp6(3, 0, 0, quote)
        carried = icmp6(1, 1, 0, quote) if prohibited else carried
        body = ipv6(source, IPv6Address(packet[8:24]), carried)
    return frame[6:12] + frame[:6] + frame[12:14] + body


def arp(
    operation: int,
    sender_mac: str,
    sender: Address,
    target_mac: str,
    target: Address,
    *,
    hardware: int = 1,
    protocol: int = ETH_IPV4,
    sizes: tuple[int, int] = (6, 4),
) -> bytes:
    return (
        struct.pack("!HHBBH", hardware, protocol, *sizes, operation)
        + mac_bytes(sender_mac)
        + packed(sender)
        + mac_bytes(target_mac)
        + packed(target)
    )


def solicited_node(address: Address) -> tuple[str, str]:
    """MAC and address of its solicited-node group (RFC 4291, 2.7.1)."""
    last = packed(address)[-3:]
    return "33:33:ff:" + last.hex(":"), str(IPv6Address(packed("ff02::1:ff00:0")[:13] + last))


def difference(got: bytes, wanted: bytes) -> str:
    """Where two packets differ, for people."""
    if got == wanted:
        return ""
    places = [i for i in range(min(len(got), len(wanted))) if got[i] != wanted[i]]
    return (
        f"differ at bytes {places[:16]}, lengths {len(got)} and {len(wanted)}\n"
        f"got    {got.hex(' ')}\nwanted {wanted.hex(' ')}"
    )
