# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom (decision 62): of networks that are watched each packet is counted once, for whom it was delivered
to or for why it was refused. What is translated is counted with its connection, and not here; nor is what another
program goes on with, or what goes to a group."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.model.counts import measure
from tests.model.packet import ARP, Packet
from tests.model.sums import num
from tests.model.topology import Member, Network

if TYPE_CHECKING:
    from tests.model.draws import Sent

HOST = 0xFFFFFFFF  # number of the host itself, as one who talks

Passed = Counter[tuple[int, int, int, int, str]]  # network, from, to, protocol, of what
Refused = Counter[tuple[int, int, str, str]]  # network, from, reason, of what


class Watch:
    """What has to have been counted. `to` of the packet at hand: who gets it, untranslated, and its protocol."""

    def __init__(self) -> None:
        self.passed, self.refused = Passed(), Refused()
        self.to: tuple[int, int] | None = None
        self.handed_on = False

    def begins(self) -> None:
        """A packet."""
        self.to, self.handed_on = None, False

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
        if not net.flows:
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
