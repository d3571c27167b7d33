# SPDX-License-Identifier: Apache-2.0
"""ICMP errors (RFC 792, RFC 4443): what they quote, how they are translated (RFC 5508), and those that the
datapath sends by itself."""

from __future__ import annotations

from tests.model.packet import ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, Key, Packet
from tests.model.sums import adjusted, checksum, num


def quotation(p: Packet) -> Key | None:
    """The connection's key of the packet that an ICMP error quotes; None: it cannot be told."""
    f, at, end = p.frame, p.l4 + 8, p.end
    if p.kind == IPV4:
        if at + 20 > end or f[at] >> 4 != 4 or (f[at] & 15) < 5:
            return None
        if num(f[at + 6 : at + 8]) & 0x1FFF:
            return None
        src, dst, proto, l4 = f[at + 12 : at + 16], f[at + 16 : at + 20], f[at + 9], at + (f[at] & 15) * 4
    else:
        if at + 40 > end or f[at] >> 4 != 6:
            return None
        src, dst, proto, l4 = f[at + 8 : at + 24], f[at + 24 : at + 40], f[at + 6], at + 40
    if l4 + 8 > end:
        return None
    if proto in (TCP, UDP):
        return (proto, src, num(f[l4 : l4 + 2]), dst, num(f[l4 + 2 : l4 + 4]))
    if proto == (ICMP if p.kind == IPV4 else ICMPV6):
        ident = num(f[l4 + 4 : l4 + 6])
        ask, answer = (8, 0) if p.kind == IPV4 else (128, 129)
        if f[l4] == ask:
            return (proto, src, ident, dst, 0)
        if f[l4] == answer:
            return (proto, src, 0, dst, ident)
    return None


def error_outs(p: Packet, src: bytes, dst: bytes, inside: Key, hop: int) -> tuple[bytes, ...]:
    """The error with other addresses outside, and `inside` quoted. The quotation's own header sum is kept right
    (RFC 5508, 4.2); its transport sum may be left as it was, or follow: nobody looks at it."""
    f, at = bytearray(p.frame), p.l4 + 8
    size = len(p.src)
    pseudo = num(src) + num(dst) - num(p.src) - num(p.dst)
    if p.kind == IPV4:
        f[22] -= hop
        f[24:34] = adjusted(num(f[24:26]), pseudo - (hop << 8)).to_bytes(2, "big") + src + dst
        inner, l4, place = at + 12, at + (f[at] & 15) * 4, at + 10
        proto = f[at + 9]
    else:
        f[21] -= hop
        f[22:54] = src + dst
        inner, l4, place, proto = at + 8, at + 40, -1, f[at + 6]
    before = bytes(f)
    new = inside[1] + inside[3]
    delta = (
        num(new[:size])
        + num(new[size:])
        - num(f[inner : inner + size])
        - num(f[inner + size : inner + 2 * size])
    )
    f[inner : inner + 2 * size] = new
    if place > 0:
        f[place : place + 2] = adjusted(num(before[place : place + 2]), delta).to_bytes(2, "big")
    if proto in (TCP, UDP):
        old = num(f[l4 : l4 + 4])
        f[l4 : l4 + 4] = (inside[2] << 16 | inside[4]).to_bytes(4, "big")
        check_at = l4 + (16 if proto == TCP else 6)
        inner_delta = ident_delta = delta + num(f[l4 : l4 + 4]) - old
    else:
        old = num(f[l4 + 4 : l4 + 6])
        f[l4 + 4 : l4 + 6] = (inside[2] or inside[4]).to_bytes(2, "big")
        check_at = l4 + 2
        ident_delta = num(f[l4 + 4 : l4 + 6]) - old
        inner_delta = ident_delta + (delta if p.kind == IPV6 else 0)
    left = finished(p, bytes(f), before, pseudo)
    if check_at + 2 > p.end:
        return (left,)
    was = num(f[check_at : check_at + 2])
    if proto == UDP and not was:
        return (left,)
    outs = [left]
    for inner in {inner_delta, ident_delta}:
        f[check_at : check_at + 2] = adjusted(was, inner).to_bytes(2, "big")
        outs.append(finished(p, bytes(f), before, pseudo))
    return tuple(outs)


def finished(p: Packet, after: bytes, before: bytes, pseudo: int) -> bytes:
    """The error's own sum follows what changed behind it."""
    at, place = p.l4, p.l4 + 2
    tail = (p.end - at) % 2 * b"\0"
    changed = num(after[at : p.end] + tail) - num(before[at : p.end] + tail)
    check = adjusted(num(before[place : place + 2]), changed + (pseudo if p.kind == IPV6 else 0))
    return after[:place] + check.to_bytes(2, "big") + after[place + 2 :]


def check_error(p: Packet, got: bytes, sources: list[bytes], head: bytes, word: bytes) -> str:
    """An error of the datapath's own: the form that the RFCs ask for, not byte by byte."""
    if got[:12] != p.src_mac + p.dst_mac or got[12:14] != p.frame[12:14]:
        return "goes back by other MACs"
    if p.kind == IPV4:
        header, most, least = got[14:34], 576, p.l4 - 14 + 8
        if header[0] != 0x45 or num(header[2:4]) != len(got) - 14 or checksum(header) not in (0, 0xFFFF):
            return "IPv4 header"
        src, dst, ttl, proto, pseudo = header[12:16], header[16:20], header[8], header[9], b""
        body = got[34:]
        if proto != ICMP:
            return "protocol"
    else:
        header, most, least = got[14:54], 1280, min(48, len(p.frame) - 14)
        if header[0] >> 4 != 6 or num(header[4:6]) != len(got) - 54 or header[6] != ICMPV6:
            return "IPv6 header"
        src, dst, ttl = header[8:24], header[24:40], header[7]
        body = got[54:]
        pseudo = src + dst + len(body).to_bytes(4, "big") + b"\0\0\0\x3a"
    if src not in sources or dst != p.src:
        return "addresses"
    if ttl < 2:
        return "hops"
    if body[:2] != head or body[4:8] != word:
        return f"type, code or word {body[:8].hex()}, wanted {head.hex()} {word.hex()}"
    if checksum(pseudo + body) not in (0, 0xFFFF):
        return "sum"
    quote = body[8:]
    if len(got) - 14 > most or len(quote) < least or quote != p.frame[14 : 14 + len(quote)]:
        return "quotation"
    return ""
