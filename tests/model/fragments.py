# SPDX-License-Identifier: Apache-2.0
"""What the fragments of a datagram have said so far (RFC 791, RFC 8200 4.5, RFC 5722), and how a router makes
fragments (RFC 791 3.2, RFC 1812 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable

from tests.model.packet import IPV4, IPV6, Packet
from tests.model.sums import checksum, num

PIECES, SLOTS = 64, 8  # fragments of one datagram that are kept in mind, and frames kept of it
KEPT = 2048  # bytes of a frame that is kept, at most
DISTANCE, WAITING = 64, 8  # datagrams of one source that are followed, and that wait for their first fragment

# sender's number, source, destination, identification, protocol
Name = tuple[int, bytes, bytes, int, int]


def reach(p: Packet) -> tuple[int, int]:
    """From which byte of its datagram to which the fragment goes."""
    return p.offset, p.offset + p.end - p.piece


class Datagram:
    __slots__ = (
        "foreign",
        "held",
        "icmp",
        "known",
        "name",
        "number",
        "pieces",
        "ports",
        "proto",
        "refused",
        "total",
        "undefined",
    )

    def __init__(self, name: Name, number: int) -> None:
        self.name, self.number = name, number
        self.ports: tuple[int, int] | None = None
        self.pieces: list[tuple[int, int]] = []
        self.held: dict[tuple[int, int], bytes] = {}
        self.refused = ""
        self.known = self.foreign = self.undefined = False
        self.proto, self.icmp, self.total = -1, -1, -1

    def record(self, p: Packet) -> str:
        """Takes note of the fragment; why it may not pass, if so."""
        begin, end = reach(p)
        if self.refused:
            return self.refused
        if (begin, end) in self.pieces:
            return "DROP_OVERLAP"  # the network has doubled it: it is not needed, and harmless
        if any(begin < to and end > fro for fro, to in self.pieces) or self.disputes_the_end(p):
            self.refused = "DROP_OVERLAP"
            return self.refused
        if len(self.pieces) == PIECES:
            return "DROP_FRAGMENT"
        self.pieces.append((begin, end))
        if not p.more:
            self.total = end
        return ""

    def disputes_the_end(self, p: Packet) -> bool:
        """The last fragment says where it is, and there is one last fragment."""
        end = reach(p)[1]
        if self.total >= 0:
            return end > self.total or (not p.more and end != self.total)
        return not p.more and any(to > end for _, to in self.pieces)

    @property
    def complete(self) -> bool:
        return sum(to - fro for fro, to in self.pieces) == self.total

    def copy(self) -> Datagram:
        other = Datagram(self.name, self.number)
        for slot in self.__slots__:
            value = getattr(self, slot)
            setattr(other, slot, value.copy() if isinstance(value, list | dict) else value)
        return other

    def opens(self, first: Packet) -> None:
        self.known = True
        self.ports, self.proto, self.icmp = first.ports, first.proto, first.icmp
        self.pieces.append(reach(first))

    def lend(self, later: Packet) -> None:
        """What only the first one has."""
        later.ports, later.icmp = self.ports, self.icmp
        if later.kind == IPV6:
            later.proto = self.proto

    def hold(self, p: Packet) -> bool:
        """Until the first one is there. What the network has doubled waits once."""
        if len(p.frame) > KEPT or (len(self.held) >= SLOTS and reach(p) not in self.held):
            return False
        self.held[reach(p)] = p.frame
        return True


class Datagrams:
    """Those that are on the way, of each source the latest, as net.ipv4.ipfrag_max_dist has it in the kernel."""

    def __init__(self) -> None:
        self._known: dict[Name, Datagram] = {}
        self._begun: dict[int | tuple[int, bytes], list[Name]] = {}  # by source, in order
        self.far = self.long = 0  # forgotten for their distance, and without a first fragment

    @staticmethod
    def name(p: Packet, sender: int) -> Name:
        # Of IPv6 only addresses and number count (RFC 8200, 4.5).
        return sender, p.src, p.dst, p.ident, p.proto if p.kind == IPV4 else -1

    def _begin(self, p: Packet, sender: int) -> Datagram:
        order = self._begun.setdefault(sender if sender > 0 else (sender, p.src), [])
        for distance in (DISTANCE, WAITING):
            number = len(order) - distance
            old = self._known.get(order[number]) if number >= 0 else None
            if old and old.number == number and (distance == DISTANCE or not old.known):
                del self._known[order[number]]
                if distance == DISTANCE:
                    self.far += 1
                else:
                    self.long += 1
        order.append(self.name(p, sender))
        return Datagram(order[-1], len(order) - 1)

    def find(self, p: Packet, sender: int) -> Datagram | None:
        return self._known.get(self.name(p, sender))

    def of_later(self, p: Packet, sender: int) -> Datagram:
        """The later fragment's; it begins one that waits for its first one."""
        found = self.find(p, sender)
        if found is None:
            if len(p.frame) > KEPT:
                return Datagram(self.name(p, sender), -1)
            found = self._begin(p, sender)
            self._known[found.name] = found
        return found

    def of_first(self, p: Packet, sender: int) -> tuple[Datagram, tuple[bytes, ...]]:
        """It begins its datagram, whatever was known of its number; and the frames that have waited for it."""
        old_one = self._known.get(self.name(p, sender))
        datagram = self._begin(p, sender)
        old = self._known.get(datagram.name)  # unless that was the one that is too far away
        held = old.held if old else {}
        datagram.undefined = bool(old_one and old_one.undefined and old_one.held)
        datagram.opens(p)
        self._known[datagram.name] = datagram
        # What the first one covers was sent for an earlier datagram.
        return datagram, tuple(frame for (begin, _), frame in held.items() if begin >= reach(p)[1])

    def save(self) -> Callable[[], None]:
        """What takes back all that is done from now on."""
        known = {name: one.copy() for name, one in self._known.items()}
        begun = {source: list(order) for source, order in self._begun.items()}

        def undo() -> None:
            self._known, self._begun = known, begun

        return undo

    def keep(self, datagram: Datagram) -> None:
        self._known[datagram.name] = datagram

    def forget(self, datagram: Datagram) -> None:
        if self._known.get(datagram.name) is datagram:
            del self._known[datagram.name]


def options_of(header: bytes) -> list[bytes] | None:
    """Those of an IPv4 header, fillers left out; None: they lie about their length."""
    options, at, found = header[20:], 0, []
    while at < len(options):
        kind = options[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return None
        found.append(options[at : at + options[at + 1]])
        at += options[at + 1]
    return found


def joined(frames: list[bytes], width: int) -> tuple[bytes, str]:
    """The packet that has become these fragments on a way that takes `width` bytes, and what is wrong with them. How
    long each is, a router decides."""
    first = frames[0]
    ip, size = first[14:], (first[14] & 15) * 4
    offset, copied = (
        (num(ip[6:8]) & 0x1FFF) * 8,
        [one for one in options_of(ip[:size]) or () if one[0] & 0x80],
    )
    data = b""
    if len(frames) < 2:
        return first, "one fragment"
    for frame in frames:
        ip, size = frame[14:], (frame[14] & 15) * 4
        word, piece = num(ip[6:8]), ip[size:]
        for wrong, what in (
            (len(ip) > width, f"{len(ip)} bytes for an MTU of {width}"),
            (frame[:14] != first[:14], "Ethernet header"),
            (num(ip[2:4]) != len(ip), "total length"),
            (ip[0] >> 4 != 4 or ip[1] != first[15] or ip[4:6] != first[18:20], "version, service or number"),
            (ip[8:10] != first[22:24] or ip[12:20] != first[26:34], "hops, protocol or addresses"),
            (checksum(ip[:size]) not in (0, 0xFFFF), "header sum"),
            (frame is not first and options_of(ip[:size]) != copied, "options"),
            (word & 0x4000, "must not be cut"),
            ((word & 0x1FFF) * 8 != offset + len(data), f"offset {(word & 0x1FFF) * 8}"),
            (not word & 0x2000 and frame is not frames[-1], "the last one comes too early"),
            (len(piece) % 8 and frame is not frames[-1], "not a multiple of 8"),
        ):
            if wrong:
                return first, f"fragment at {len(data)}: {what}: {frame.hex()}"
        data += piece
    size = (first[14] & 15) * 4
    header = bytearray(first[14 : 14 + size])
    word = num(first[20:22]) & 0x9FFF | num(frames[-1][20:22]) & 0x2000
    header[2:4], header[6:8] = (size + len(data)).to_bytes(2, "big"), word.to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return first[:14] + bytes(header) + data, ""
