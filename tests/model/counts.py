# SPDX-License-Identifier: Apache-2.0
"""How much passes (decision 61): a packet is as many as the segments that it stands for, each with headers of its own,
and its bytes are from the IP header on. Of each connection by direction, and of services' backends whatever becomes of
connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.model.packet import Packet
    from tests.model.topology import Member


def measure(p: Packet) -> tuple[int, int]:
    """Packets and bytes. What a router has cut in pieces counts as it came."""
    whole, headers = p.end - 14, p.l4 - 14 + p.transport
    if not p.gso or whole <= headers:
        return 1, whole
    packets = -(-(whole - headers) // p.gso)
    return packets, whole + (packets - 1) * headers


class Sums:
    """Of both directions of one connection, the opener's first."""

    __slots__ = ("sums",)

    def __init__(self) -> None:
        self.sums = [(0, 0), (0, 0)]

    def add(self, p: Packet, original: bool) -> tuple[int, int]:
        packets, size = measure(p)
        before = self.sums[not original]
        self.sums[not original] = before[0] + packets, before[1] + size
        return packets, size

    def begin(self, p: Packet) -> None:
        """Another connection takes the place of one that is over, with this packet."""
        self.sums = [(1, p.end - 14), (0, 0)]


@dataclass
class Had:
    """What a service has had, or one of its backends: connections, and openings that came to nothing."""

    opened: int = 0
    failed: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0

    def pass_on(self, packets: int, size: int, to_backend: bool) -> None:
        if to_backend:
            self.packets_in += packets
            self.bytes_in += size
        else:
            self.packets_out += packets
            self.bytes_out += size


@dataclass
class Ledger:
    """Of a service and its backends."""

    service: Had = field(default_factory=Had)
    backends: dict[int, Had] = field(default_factory=dict)  # by their objects' identity

    def of(self, backend: Member) -> Had:
        return self.backends.setdefault(id(backend), Had())
