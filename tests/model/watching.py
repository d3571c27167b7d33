# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom (decision 62): of networks that are watched each packet is counted once, for whom it was delivered
to or for why it was refused, or with its connection, if it is of one that is translated (decision 69). What another
program goes on with, or what goes to a group, is not."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.model.counts import measure
from tests.model.packet import ARP, Packet
from tests.model.sums import num
from tests.model.topology import FAR, Member, Network

if TYPE_CHECKING:
    from tests.model.connections import Connection
    from tests.model.draws import Sent

HOST = 0xFFFFFFFF  # number of the host itself, as one who talks
PEER = 0xFFFFFFFE  # and of all members of other hosts

Passed = Counter[tuple[int, int, int, int, str]]  # network, from, to, protocol, of what
Refused = Counter[tuple[int, int, str, str]]  # network, from, reason, of what


def party(member: Member | None) -> int:
    """As one who talks; None: somebody outside."""
    if member is None:
        return 0
    return member.number if member.number > 0 else PEER if member.number == FAR else HOST


class Watch:
    """What has to have been counted. `to` of the packet at hand: who gets it, untranslated, and its protocol."""

    def __init__(self) -> None:
        self.passed, self.refused = Passed(), Refused()
        self.to: tuple[int, int] | None = None
        self.handed_on = False
        self.translated = False

    def begins(self) -> None:
        """A packet."""
        self.to, self.handed_on, self.translated = None, False, False

    def follows(self, connection: Connection) -> None:
        """A translated one is counted by the network of who opens it, else of who is asked."""
        ends = connection.opener, connection.server
        number = next((one.network.number for one in ends if one and one.network.flows), 0)
        if number:
            of = number, connection.original[0]
            connection.watch = partial(self._count, of, party(connection.opener), party(connection.server))

    def _count(
        self, of: tuple[int, int], opener: int, other: int, packets: int, size: int, original: bool
    ) -> None:
        self.translated = True
        (network, proto), ends = of, (opener, other) if original else (other, opener)
        self.passed[network, *ends, proto, "packets"] += packets
        self.passed[network, *ends, proto, "bytes"] += size

    def meets(self, p: Packet, number: int) -> None:
        self.to = number, p.proto

    def note(self, sent: Sent, reason: str) -> None:
        """What has become of it."""
        sender = sent.sender
        if sent.hook == "from_container" and isinstance(sender, Member):
            net, number = sender.network, sender.number
        elif sent.hook == "from_host" and isinstance(sender, Network):
            net, number = sender, HOST
        else:
            return
        if not net.flows or self.translated:
            return
        p = Packet(sent.frame, sent.gso)
        packets, size = measure(p) if p.proto >= 0 and not p.fault and p.kind != ARP else (1, 0)
        if p.fault and reason == "DROP_BAD_ADDR":  # which is seen before what is behind
            size = 40 + num(p.frame[18:20])
        if reason.startswith("DROP_"):
            if number != HOST and not self.handed_on:
                self.refused[net.number, number, reason, "packets"] += packets
                self.refused[net.number, number, reason, "bytes"] += size
        elif self.to is not None:
            self.passed[net.number, number, *self.to, "packets"] += packets
            self.passed[net.number, number, *self.to, "bytes"] += size
