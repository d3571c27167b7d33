# SPDX-License-Identifier: Apache-2.0
"""One frame, read."""

from __future__ import annotations

from tests.model.sums import num

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58
WHOLE, FIRST, LATER = 0, 1, 2
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32  # flags of TCP
EXTENSIONS, EXTENDED = 4, 40  # IPv6 extension headers that are read, and their bytes; with more it is refused

# protocol, source, its port, destination, its port: as a hook sees the packet arrive
Key = tuple[int, bytes, int, bytes, int]


class Packet:
    """One frame, read once. `fault`: why nobody can make sense of it. `size`: what has to fit into an MTU, which of
    a packet that is still to be cut into segments is one of those. `keep`: no router may cut it in pieces."""

    __slots__ = (
        "dst",
        "dst_mac",
        "end",
        "error",
        "fault",
        "fragment",
        "frame",
        "gso",
        "icmp",
        "ident",
        "keep",
        "kind",
        "l4",
        "more",
        "offset",
        "opens",
        "piece",
        "ports",
        "proto",
        "size",
        "src",
        "src_mac",
        "syn",
        "tos",
        "transport",
        "ttl",
    )

    def __init__(self, frame: bytes, gso: int = 0) -> None:
        self.frame, self.gso = frame, gso
        self.dst_mac, self.src_mac = frame[:6], frame[6:12]
        self.kind = kind = frame[12] << 8 | frame[13]
        self.fault = ""
        self.fragment = WHOLE
        self.ports: tuple[int, int] | None = None
        self.error = self.keep = self.more = self.syn = self.opens = False
        self.icmp = -1
        self.src = self.dst = b""
        self.proto = -1
        self.ttl = self.tos = 0
        self.transport = 0  # bytes of its header
        self.offset = self.ident = 0
        if kind == IPV4:
            self._ipv4()
        elif kind == IPV6:
            self._ipv6()
        elif kind == ARP:
            if len(frame) < 42:
                self.fault = "TRUNCATED"
        elif kind in (0x8100, 0x88A8):
            self.fault = "VLAN"
        else:
            self.fault = "ETHERTYPE"
        if self.proto >= 0:
            # A segment has the headers of the whole, with all their options.
            self.size = gso + self.l4 + self.transport - 14 if gso else self.end - 14

    def _ipv4(self) -> None:
        f = self.frame
        self.src, self.dst = f[26:30], f[30:34]
        header, total = (f[14] & 15) * 4, f[16] << 8 | f[17]
        if f[14] >> 4 != 4 or header < 20 or total < header or 14 + total > len(f):
            self.fault = "TRUNCATED"
            return
        self.proto, self.ttl, self.tos = f[23], f[22], f[15]
        self.l4, self.end = 14 + header, 14 + total
        self.piece = self.l4
        word = f[20] << 8 | f[21]
        self.keep = bool(word & 0x4000)
        self.more, self.offset = bool(word & 0x2000), (word & 0x1FFF) * 8
        if self.more or self.offset:
            self.fragment = LATER if self.offset else FIRST
            self.ident = f[18] << 8 | f[19]
            if self.offset + total - header > 65535:
                self.fault = "TRUNCATED"
        self._transport(ICMP)

    def _ipv6(self) -> None:
        f = self.frame
        self.src, self.dst = f[22:38], f[38:54]
        self.end = 54 + (f[18] << 8 | f[19])
        if f[14] >> 4 != 6 or self.end > len(f):
            self.fault = "TRUNCATED"
            return
        self.ttl, self.keep = f[21], True
        self.tos = (f[14] & 15) << 4 | f[15] >> 4
        at, kind, count = 54, f[20], 0
        while kind in (0, 43, 44, 60):
            count += 1
            if count > EXTENSIONS or at + 8 > len(f):
                self.fault = "TRUNCATED"
                return
            if kind == 44:
                word = f[at + 2] << 8 | f[at + 3]
                self.more, self.offset = bool(word & 1), word & 0xFFF8
                self.ident = num(f[at + 4 : at + 8])
                if self.more or self.offset:
                    self.fragment = LATER if self.offset else FIRST
                    self.piece = at + 8
                kind, at = f[at], at + 8
            else:
                kind, at = f[at], at + (f[at + 1] + 1) * 8
            if at > self.end or (self.fragment != LATER and at > 54 + EXTENDED):
                self.fault = "TRUNCATED"
                return
            if self.fragment == LATER:
                break
        self.proto, self.l4 = kind, at
        if self.fragment and self.offset + self.end - self.piece > 65535:
            self.fault = "TRUNCATED"
        self._transport(ICMPV6)

    def _transport(self, icmp: int) -> None:
        if self.fragment == LATER:
            return
        f, at, proto = self.frame, self.l4, self.proto
        if proto == TCP:
            if at + 20 > self.end:
                self.fault = "TRUNCATED"
                return
            self.syn = f[at + 13] & (SYN | ACK) == SYN
            self.opens = self.syn and not f[at + 13] & RST  # which is looked at first (RFC 9293, 3.10.7)
            self.transport = (f[at + 12] >> 4) * 4
        elif proto in (UDP, icmp):
            if at + 8 > self.end:
                self.fault = "TRUNCATED"
                return
            self.transport = 8
        else:
            return
        if proto != icmp:
            self.ports = (f[at] << 8 | f[at + 1], f[at + 2] << 8 | f[at + 3])
            return
        self.icmp = f[at]
        if self.icmp in ((8,) if icmp == ICMP else (128,)):
            self.ports = (f[at + 4] << 8 | f[at + 5], 0)
        elif self.icmp in ((0,) if icmp == ICMP else (129,)):
            self.ports = (0, f[at + 4] << 8 | f[at + 5])
        else:
            self.error = self.fragment == WHOLE and self.icmp in ((3, 11, 12) if icmp == ICMP else range(128))

    @property
    def key(self) -> Key:
        assert self.ports
        return (self.proto, self.src, self.ports[0], self.dst, self.ports[1])


def backwards(key: Key) -> Key:
    return (key[0], key[3], key[4], key[1], key[2])
