# SPDX-License-Identifier: Apache-2.0
"""Connections: two halves each, how far it has come (RFC 9293, 3.3.2, as seen from the middle), and the table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.model.counts import Sums
from tests.model.packet import ACK, FIN, LATER, RST, SYN, TCP, Key, Packet, backwards
from tests.model.sums import num
from tests.model.topology import Member, Uplink

if TYPE_CHECKING:
    from tests.model.services import Service

NEW, REPLIED, ESTABLISHED, CLOSING, CLOSED = range(5)
# Bytes: a reset as near as this behind what its receiver has acknowledged is within any window, one as far is within
# none; between the two it is a matter of the window's scale, which is not followed.
NEAR, FAR = 1 << 16, 1 << 24


class Connection:
    """Two halves: each arrives as its key and leaves as the other's, backwards. `confirmed`: both sides have spoken,
    and since then no flood may push it out. Of a side: None is the outside, LOCAL_SENDER the host itself."""

    __slots__ = (
        "acks",
        "again",
        "answer",
        "answered",
        "confirmed",
        "counts",
        "fins",
        "heard",
        "judged",
        "masquerades",
        "numbers",
        "opener",
        "original",
        "resumed",
        "server",
        "service",
        "state",
        "uplink",
        "watch",
    )

    def __init__(self, original: Key, answer: Key, opener: Member | None, server: Member | None) -> None:
        self.original, self.answer, self.opener, self.server = original, answer, opener, server
        self.numbers = (opener.number if opener else 0, server.number if server else 0)
        self.state, self.fins, self.confirmed = NEW, 0, False
        self.answered = self.resumed = False
        self.again = False  # its port was used again after both sides had spoken
        self.heard = False  # the other side has spoken, now or before the port was used again
        self.masquerades = False
        self.judged = [0, 0]  # by which policies each half was, 0: by none
        self.service: Service | None = None  # that it is one to
        self.uplink: Uplink | None = None  # by which it leaves, if it is masqueraded
        self.acks = [0, 0]  # the last one that the opener, and the other side, has sent
        self.counts = Sums()
        self.watch: Callable[[int, int, bool], None] | None = None  # where it is counted beside that

    def spoken(self, p: Packet, original: bool) -> None:
        """One packet of either half."""
        passed = self.counts.add(p, original)
        if self.service and self.server:
            self.service.ledger.of(self.server).pass_on(*passed, original)
        if self.watch:
            self.watch(*passed, original)
        if p.proto != TCP:
            self.confirmed = self.confirmed or not original
            return
        if p.fragment == LATER:
            return
        header = p.frame[p.l4 : p.l4 + 20]
        flags, me = header[13], 0 if original else 1
        fin, syn, reset, ack = flags & FIN, flags & SYN, flags & RST, flags & ACK
        if ack:
            self.acks[me] = num(header[8:12])
        if reset:
            self._reset(num(header[4:8]), self.acks[1 - me])
            return
        if original and syn and not ack:
            if self.state >= CLOSING:  # the port is used again (RFC 6191), with numbers of its own
                self.again = self.again or self.confirmed
                self.state, self.fins, self.answered, self.acks = NEW, 0, False, [0, 0]
                self.counts.begin(p)
            return
        self.answered = self.answered or not original
        self.heard = self.heard or not original
        if self.state == CLOSED and self.fins != 3:
            # What was taken for a reset was none: it goes on as it was, and when it is confirmed is not said.
            self.state = ESTABLISHED if self.confirmed else REPLIED if self.answered else NEW
            self.resumed = True
        if fin:
            self.fins |= 1 if original else 2
            if self.fins == 3:
                self.state = CLOSED
            elif self.state >= ESTABLISHED:
                self.state = CLOSING
        if not original and self.state == NEW:
            self.state = REPLIED
        elif original and self.state == REPLIED and ack:
            self.state = ESTABLISHED
            self.confirmed = True

    def begins(self, p: Packet) -> bool | None:
        """Nobody will have answered yet, once the opener's packet has passed, over TCP with more than a first answer.
        None: how far it is nobody says."""
        if p.proto != TCP:
            return not self.confirmed
        then = copy.copy(self)
        then.acks, then.counts, then.service, then.watch = [*self.acks], Sums(), None, None
        then.spoken(p, True)
        return None if then.resumed or then.again else then.state < ESTABLISHED

    def _reset(self, number: int, acknowledged: int) -> None:
        ahead = (number - acknowledged) % (1 << 32)
        if not acknowledged or ahead < NEAR:
            self.state = CLOSED
        elif ahead < FAR:
            self.resumed = True


class Half(NamedTuple):
    """One direction of a connection."""

    connection: Connection
    original: bool  # it is the half that opened

    @property
    def sender(self) -> Member | None:
        return self.connection.opener if self.original else self.connection.server

    @property
    def receiver(self) -> Member | None:
        return self.connection.server if self.original else self.connection.opener

    @property
    def opposite(self) -> Key:
        return self.connection.answer if self.original else self.connection.original

    @property
    def out(self) -> Key:
        """As its packets leave."""
        return backwards(self.opposite)

    def is_by(self, sender: Member | None) -> bool:
        """The sender is the endpoint that the half is of, not only one that has its address now."""
        if sender is None:
            return self.sender is None
        return self.connection.numbers[0 if self.original else 1] == sender.number

    @property
    def stale(self) -> bool:
        """Who would receive it is gone, though another has the address."""
        receiver = self.receiver
        return receiver is not None and receiver.number != self.connection.numbers[1 if self.original else 0]


class Connections:
    def __init__(self) -> None:
        self.table: dict[Key, Half] = {}
        self.all: list[Connection] = []  # that there ever were
        self.generation = 0  # of the policies in force
        self.find = self.table.get

    def __contains__(self, key: Key) -> bool:
        return key in self.table

    def has(self, connection: Connection) -> bool:
        half = self.table.get(connection.original)
        return half is not None and half.connection is connection

    def remember(
        self, original: Key, answer: Key, opener: Member | None, server: Member | None
    ) -> Connection:
        connection = Connection(original, answer, opener, server)
        connection.judged = [self.generation, self.generation]
        for key in (original, answer):
            old = self.table.get(key)
            if old:
                self.forget(old.connection)
        self.restore(connection)
        self.all.append(connection)
        return connection

    def restore(self, connection: Connection) -> None:
        self.table[connection.original] = Half(connection, True)
        self.table[connection.answer] = Half(connection, False)

    def bury(self, number: int) -> bool:
        """Those of an endpoint whose removal is complete are none. Whether there were any."""
        found = [half.connection for half in self.table.values() if number in half.connection.numbers]
        for connection in found:
            self.forget(connection)
        return bool(found)

    def forget(self, connection: Connection) -> None:
        for key in (connection.original, connection.answer):
            if key in self.table and self.table[key].connection is connection:
                del self.table[key]
