# SPDX-License-Identifier: Apache-2.0
"""Asks other hosts whether packets to them arrive, in tunnels and without: all at once, and for a time that is bounded.

A datagram to the echo port (RFC 862) in a VXLAN frame (RFC 7348) is sent back by the packet program at the tunnel's
other end, and seen here where answers from tunnels come to the host, before its packet filter. An ICMP echo to the
other end says whether there is a host at all.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from datapath.errors import KernelError

Address = IPv4Address | IPv6Address

ECHO = 7  # the UDP port
_SENT, _END = (0.0, 0.3, 1.0), 2.0  # seconds: when what was not answered is sent, and given up
_BESIDES = 0.05  # for what only matters if there is something wrong
_SIZES = (576, 1280, 1350, 1380, 1400, 1420, 1440, 1450, 1460, 1480, 1492, 1500, 4000, 8000, 8950, 9000)
_LINK = 8 + 8 + 14  # bytes of the headers of UDP, VXLAN and Ethernet
_IP = {4: 20, 6: 40}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_BUFFER = 4 << 20
# linux/in.h, in6.h, udp.h, if_packet.h, if_ether.h, asm-generic/socket.h
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DO = 2
_MTU = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
_UNSUMMED = {4: (socket.SOL_SOCKET, 11), 6: (socket.IPPROTO_UDP, 101)}
_SOL_PACKET, _AUXDATA, _NOT_SUMMED = 263, 8, 1 << 3
_ETH_P = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to another host. `near`, `far`: the ends of the tunnel; `macs`: of the inner frame, to and from; `port`:
    UDP, of tunnels; `source`, `target`: inner addresses; `device`: the index of the one at which an answer arrives;
    `most`: bytes of an outer packet that it should take; `bare`: packets of that size should arrive without a tunnel,
    too. `encryption`: bytes that it adds, if the host's stack and its programs write the tunnel's headers and not who
    asks; 0: it is not encrypted."""

    near: Address
    far: Address
    port: int
    vni: int
    macs: tuple[str, str]
    source: Address
    target: Address
    device: int
    most: int = 1500
    bare: bool = False
    encryption: int = 0


@dataclass(slots=True)
class Outcome:
    """What has come back. `host`: an ICMP echo; `tunnel`: a small packet in the tunnel; `size`: bytes of the largest
    outer packet that did, `tried`: of the largest that was sent; `bare`, `bare_tried`: the same without a tunnel.
    `sound`: a checksum that was left to devices arrived as it should; None: that is not known."""

    host: bool = False
    tunnel: bool = False
    size: int = 0
    tried: int = 0
    bare: int = 0
    bare_tried: int = 0
    sound: bool | None = None


def ask(ways: Sequence[Way]) -> list[Outcome]:
    """What comes back on each of the ways; at most about three seconds later. KernelError: the kernel lets nobody
    ask."""
    if not ways:
        return []
    try:
        with _Asking(ways) as asking:
            asking.round()
            asking.narrow()
            return asking.outcomes
    except OSError as error:
        raise KernelError("ask", "other hosts", error.errno or 0) from error


@dataclass
class _Asking:
    ways: Sequence[Way]
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.outcomes = [Outcome() for _ in self.ways]
        self._token = os.urandom(8)
        self._id = int.from_bytes(self._token[:2])
        self._back: set[tuple[int, str, int]] = set()
        self._outer: dict[Address, socket.socket] = {}  # by this host's end
        self._icmp: dict[Address, socket.socket] = {}
        self._inner: dict[Address, socket.socket] = {}  # by the inner source
        self._seen: dict[int, socket.socket] = {}  # packets, by descriptor
        self._places: set[tuple[int, int]] = set()  # device and version of IP that are listened at
        self._poll = select.poll()
        with ExitStack() as stack:
            self._stack = stack
            for way in self.ways:
                self._open(way)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # ---- sockets ---------------------------------------------------------------------------------

    def _open(self, way: Way) -> None:
        version = way.near.version
        if way.near not in self._outer:
            udp = self._outer[way.near] = self._socket(_FAMILY[version], socket.SOCK_DGRAM, 0)
            udp.setsockopt(*_MTU_DISCOVER[version], _PMTUDISC_DO)
            udp.setsockopt(*_UNSUMMED[version], 1)
            udp.bind((str(way.near), 0))
            proto = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
            icmp = self._icmp[way.near] = self._socket(_FAMILY[version], socket.SOCK_RAW, proto)
            icmp.setsockopt(*_MTU_DISCOVER[version], _PMTUDISC_DO)
            icmp.bind((str(way.near), 0))
            self._poll.register(icmp, select.POLLIN)
        if way.source not in self._inner:
            summed = self._inner[way.source] = self._socket(_FAMILY[way.source.version], socket.SOCK_DGRAM, 0)
            summed.setsockopt(*_MTU_DISCOVER[way.source.version], _PMTUDISC_DO)
            summed.bind((str(way.source), 0))
        place = (way.device, way.target.version)
        if place not in self._places:
            self._places.add(place)
            seen = self._socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            seen.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            seen.bind((socket.if_indextoname(way.device), _ETH_P[way.target.version]))
            self._seen[seen.fileno()] = seen
            self._poll.register(seen, select.POLLIN)

    def _socket(self, family: int, kind: int, proto: int) -> socket.socket:
        made = self._stack.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK, proto))
        with suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        return made

    # ---- asking ----------------------------------------------------------------------------------

    def round(self) -> None:
        """Sends on each way what says all about it, until that has come back or the time is over."""
        besides = [(index, "host", 0) for index in range(len(self.ways))]
        besides += [(index, "summed", 0) for index, way in enumerate(self.ways) if not way.encryption]
        for due, end in zip(_SENT, (*_SENT[1:], _END), strict=True):
            sizes = {(i, kind, size) for i in range(len(self.ways)) for kind, size in self._sizes(i)}
            if due and sizes <= self._back:
                break
            for one in (*besides, *sizes):
                if one not in self._back:
                    self._send(one)
            self._hear(time.monotonic() + end - due, sizes)  # however long it took to send
            if sizes <= self._back:
                self._hear(time.monotonic() + _BESIDES, besides)
                break
        self._judge()

    def _sizes(self, index: int) -> list[tuple[str, int]]:
        """The smallest packet, and the largest that the way takes by what the kernel knows now, which it may have
        learnt by the packet before."""
        way, outcome = self.ways[index], self.outcomes[index]
        most = min(way.most, self._known_mtu(way))
        outcome.tried = most
        found = [("tunnel", 0), ("tunnel", most)]
        if way.bare:
            outcome.bare_tried = most
            found.append(("bare", most))
        return found

    def narrow(self) -> None:
        """Of ways that only small packets have come by: asks for the sizes in between."""
        asked = []
        for index, outcome in enumerate(self.outcomes):
            for kind, size, tried in (
                ("tunnel", outcome.size if outcome.tunnel else 0, outcome.tried),
                ("bare", outcome.bare if outcome.host else 0, outcome.bare_tried),
            ):
                if 0 < size < tried:
                    asked += [(index, kind, one) for one in _SIZES if size < one < tried]
        if not asked:
            return
        for one in asked:
            self._send(one)
        self._hear(time.monotonic() + _SENT[2], asked)
        self._judge()

    def _judge(self) -> None:
        for index, kind, size in self._back:
            outcome, way = self.outcomes[index], self.ways[index]
            least = _IP[way.near.version] + 64
            if kind in ("host", "bare"):
                outcome.host = True
                outcome.bare = max(outcome.bare, size or least)
            elif kind == "tunnel":
                outcome.tunnel = True
                outcome.size = max(outcome.size, size or least)
            elif kind in ("summed", "unsound"):
                outcome.sound = kind == "summed" and outcome.sound is not False

    def _known_mtu(self, way: Way) -> int:
        """Bytes of a packet that the kernel knows to fit on the whole way."""
        version = way.near.version
        with socket.socket(_FAMILY[version], socket.SOCK_DGRAM) as asked, suppress(OSError):
            asked.bind((str(way.near), 0))
            asked.connect((str(way.far), way.port))
            return asked.getsockopt(*_MTU[version])
        return way.most

    def _send(self, one: tuple[int, str, int]) -> None:
        """What the kernel does not take is lost, as on the way."""
        index, kind, size = one
        way = self.ways[index]
        version, far = way.near.version, str(way.far)
        mark = self._token + struct.pack("!IHH", index, size, _KINDS.index(kind))
        with suppress(OSError):
            if kind in ("host", "bare"):
                body = mark.ljust(size - _IP[version] - 8, b"\0")
                self._icmp[way.near].sendto(_echo(version, self._id, body), (far, 0))
            elif kind == "tunnel" and way.encryption:
                room = size - way.encryption - _IP[way.source.version] - 8
                self._inner[way.source].sendto(mark.ljust(room, b"\0"), (str(way.target), ECHO))
            elif kind == "tunnel":
                frame = _frame(way, self._id | 0x8000, mark, size)
                self._outer[way.near].sendto(frame, (far, way.port))
            else:
                self._inner[way.source].sendto(mark, (str(way.target), ECHO))

    def _hear(self, until: float, wanted: Iterable[tuple[int, str, int]] = ()) -> None:
        """Takes answers until that time, or until all of these have come, if there are any. What is there already is
        taken in any case: this process may have stood still."""
        wanted = set(wanted)
        rest = 1.0
        while rest > 0 and not (wanted and wanted <= self._back):
            rest = until - time.monotonic()
            for fd, _ in self._poll.poll(max(rest, 0.0) * 1000):
                for packet, summed in self._received(fd):
                    self._take(fd in self._seen, packet, summed)

    def _received(self, fd: int) -> Iterator[tuple[bytes, bool]]:
        """Packets, and whether their checksum is finished."""
        receiver = self._seen.get(fd) or next(one for one in self._icmp.values() if one.fileno() == fd)
        with suppress(OSError):  # nothing more; or the device is gone
            while True:
                packet, extra, _, _ = receiver.recvmsg(65536, 64)
                status = struct.unpack_from("I", extra[0][2])[0] if extra else 0
                yield packet, not status & _NOT_SUMMED

    def _take(self, tunnelled: bool, packet: bytes, summed: bool) -> None:
        """An answer has the mark that the question had."""
        at = packet.find(self._token)
        if at < 0 or len(packet) < at + 16:
            return
        index, size, number = struct.unpack_from("!IHH", packet, at + 8)
        if index >= len(self.ways) or number >= len(_KINDS):
            return
        kind = _KINDS[number]
        if not tunnelled and kind in ("host", "bare"):
            # The question itself is heard by nobody but its own host, where it is of another type.
            if packet[at - 8 if at >= 8 else 0] in (0, 129):
                self._back.add((index, kind, size))
        elif tunnelled and kind in ("tunnel", "summed"):
            answer = _datagram(packet)
            if answer is None or answer.target != self.ways[index].source:
                return
            if kind == "summed" and summed and not answer.sound:
                self._back.add((index, "unsound", size))
            self._back.add((index, kind, size))


_KINDS = ("host", "bare", "tunnel", "summed", "unsound")


# ---- packets --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Datagram:
    target: Address
    sound: bool


def _datagram(packet: bytes) -> _Datagram | None:
    """Of a UDP datagram from the echo port, or of an ICMP error about one; None: it is something else."""
    version = packet[0] >> 4
    size = (packet[0] & 15) * 4 if version == 4 else 40
    proto = packet[9] if version == 4 else packet[6]
    addresses = packet[12:20] if version == 4 else packet[8:40]
    half = len(addresses) // 2
    target = IPv4Address(addresses[half:]) if version == 4 else IPv6Address(addresses[half:])
    if proto in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return _Datagram(target, True)
    if proto != socket.IPPROTO_UDP or int.from_bytes(packet[size : size + 2]) != ECHO:
        return None
    length = int.from_bytes(packet[size + 4 : size + 6])
    body = packet[size : size + length]
    unsummed = body[6:8] == b"\0\0"
    return _Datagram(target, unsummed or _sum(_pseudo(addresses, proto, length) + body) == 0xFFFF)


def _frame(way: Way, sport: int, mark: bytes, size: int) -> bytes:
    """A VXLAN header and what is behind it; `size`: of the outer packet that it makes, bytes; 0: the smallest."""
    version = way.source.version
    room = size - _IP[way.near.version] - _LINK - _IP[version] - 8
    body = mark.ljust(room, b"\0")
    length = 8 + len(body)
    addresses = way.source.packed + way.target.packed
    udp = struct.pack("!HHHH", sport, ECHO, length, 0) + body
    check = 0xFFFF - _sum(_pseudo(addresses, socket.IPPROTO_UDP, length) + udp)
    udp = udp[:6] + (check or 0xFFFF).to_bytes(2) + udp[8:]
    if version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        head = head[:10] + (0xFFFF - _sum(head)).to_bytes(2) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + addresses
    macs = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in way.macs)
    return struct.pack("!II", 8 << 24, way.vni << 8) + macs + _ETH_P[version].to_bytes(2) + head + udp


def _echo(version: int, ident: int, body: bytes) -> bytes:
    """An ICMP echo request; the kernel sums that of IPv6."""
    head = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, ident, 0)
    if version == 4:
        head = head[:2] + (0xFFFF - _sum(head + body)).to_bytes(2) + head[4:]
    return head + body


def _pseudo(addresses: bytes, proto: int, length: int) -> bytes:
    return addresses + struct.pack("!II", length, proto)


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16 bits (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
