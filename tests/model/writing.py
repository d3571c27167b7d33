# SPDX-License-Identifier: Apache-2.0
"""Packets, written."""

from __future__ import annotations

import itertools
import random

from tests.model.packet import ICMPV6, TCP, UDP, Key
from tests.model.sums import checksum


def summed(src: bytes, dst: bytes, proto: int, body: bytes, at: int) -> bytes:
    pseudo = src + dst + (len(body) << 32 | proto).to_bytes(8, "big")
    check = checksum(pseudo + body)
    if proto == UDP and not check:
        check = 0xFFFF
    return body[:at] + check.to_bytes(2, "big") + body[at + 2 :]


def carried(key: Key, flags: int, data: bytes, sequence: int = 1, options: bytes = b"") -> bytes:
    """The transport part of a packet of a connection's half. `options`: TCP's, a multiple of 4 bytes."""
    proto, src, sport, dst, dport = key
    if proto == TCP:
        body = (
            (sport << 16 | dport).to_bytes(4, "big")
            + b"\1\2\3\4\5\6\7\x08"
            + bytes((0x50 + len(options) * 4, flags))
            + b"\xff\xff\0\0\0\0"
            + options
            + data
        )
        return summed(src, dst, proto, body, 16)
    if proto == UDP:
        body = (sport << 48 | dport << 32 | (8 + len(data)) << 16).to_bytes(8, "big") + data
        return summed(src, dst, proto, body, 6)
    six = proto == ICMPV6
    # Identifier 0 on one side says which of the two asks.
    kind = (128 if six else 8) if sport or not dport else (129 if six else 0)
    body = bytes((kind, 0, 0, 0)) + (sport or dport).to_bytes(2, "big") + sequence.to_bytes(2, "big") + data
    return icmp(src, dst, body)


def icmp(src: bytes, dst: bytes, body: bytes) -> bytes:
    """With its sum, of the family of its addresses."""
    if len(src) == 16:
        return summed(src, dst, ICMPV6, body, 2)
    return body[:2] + checksum(body[:2] + b"\0\0" + body[4:]).to_bytes(2, "big") + body[4:]


def ip4(
    src: bytes,
    dst: bytes,
    proto: int,
    body: bytes,
    *,
    ttl: int = 64,
    word: int = 0x4000,
    ident: int = 0x1234,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    size = 20 + len(options)
    head = (
        bytes((0x40 | size >> 2, tos))
        + ((size + len(body)) << 32 | ident << 16 | word).to_bytes(6, "big")
        + bytes((ttl, proto, 0, 0))
        + src
        + dst
        + options
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def ip6(
    src: bytes,
    dst: bytes,
    proto: int,
    body: bytes,
    *,
    ttl: int = 64,
    label: int = 0,
    chain: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    kinds = [kind for kind, _ in chain] + [proto]
    more = b"".join(bytes((kinds[i + 1],)) + rest for i, (_, rest) in enumerate(chain))
    return (
        (6 << 28 | label).to_bytes(4, "big")
        + (len(more) + len(body)).to_bytes(2, "big")
        + bytes((kinds[0], ttl))
        + src
        + dst
        + more
        + body
    )


def frame_of(dst_mac: bytes, src_mac: bytes, packet: bytes) -> bytes:
    return dst_mac + src_mac + (b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


def pieces_of(body: bytes, rng: random.Random, least: int) -> list[tuple[int, bytes, bool]]:
    """(offset, bytes, more to come): at most six, cut at eighths; sometimes one of them lies."""
    if len(body) < least + 16:
        body += rng.randbytes(rng.choice((16, 40, 200, 800)))
    count = rng.choice((2, 2, 2, 3, 3, 4, 6))
    lowest = -(-least // 8)
    cuts = sorted({rng.randint(lowest, max(lowest, (len(body) - 1) // 8)) * 8 for _ in range(count - 1)})
    marks = [0, *(c for c in cuts if 0 < c < len(body)), len(body)]
    result = [(a, body[a:b], b < len(body)) for a, b in itertools.pairwise(marks)]
    at = rng.random()
    if at < 0.12 and len(result) > 1:
        number = rng.randrange(1, len(result))
        offset, data, more = result[number]
        change = rng.choice((-8, 8, -16, 65000 - offset))
        result[number] = (max(0, offset + change) & 0xFFF8, data, more)
    elif at < 0.16:
        number = rng.randrange(len(result))
        offset, data, more = result[number]
        result[number] = (offset, data, not more)
    elif at < 0.2:
        number = rng.randrange(len(result))
        offset, data, more = result[number]
        result[number] = (offset, data[: rng.randint(0, len(data))], more)
    return result


def cut4(packet: bytes, ident: int, rng: random.Random) -> list[bytes]:
    size = (packet[0] & 15) * 4
    least = 20 if packet[9] == TCP else 8
    result = []
    for offset, data, more in pieces_of(packet[size:], rng, least if rng.random() < 0.9 else 1):
        head = (
            packet[:2]
            + (size + len(data)).to_bytes(2, "big")
            + (ident & 0xFFFF).to_bytes(2, "big")
            + (offset // 8 | (0x2000 if more else 0)).to_bytes(2, "big")
            + packet[8:10]
            + b"\0\0"
            + packet[12:size]
        )
        result.append(head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + data)
    return result


def cut6(packet: bytes, ident: int, rng: random.Random) -> list[bytes]:
    """Behind the fixed header, so that extension headers are in the first fragment only."""
    kind, body = packet[6], packet[40:]
    at, next_ = 0, kind
    while next_ in (0, 43, 60) and at + 8 <= len(body):
        next_, at = body[at], at + (body[at + 1] + 1) * 8
    least = at + (20 if next_ == TCP else 8)
    result = []
    for offset, data, more in pieces_of(body, rng, least if rng.random() < 0.9 else 1):
        fragment = bytes((kind, 0)) + (offset | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
        length = (8 + len(data)).to_bytes(2, "big")
        result.append(packet[:4] + length + b"\x2c" + packet[7:40] + fragment + data)
    return result
