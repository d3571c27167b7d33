# SPDX-License-Identifier: Apache-2.0
"""Which port a connection gets where its address is changed (RFC 4787, 5382, 5508).

Masquerading, in this order:
1. the mapping that this address, port and protocol of this endpoint has already, whatever the destination (RFC 4787
   REQ-1, RFC 5382 REQ-1; an echo's identifier is its port, RFC 5508 REQ-1): one a source address, as the route says it;
2. the port at which the endpoint publishes its own: then the peer meets one address and port, whoever began;
3. its own, if no other endpoint's mapping, no published port and no socket of the host's has it (REQ-2, preservation):
   but an echo's identifier never, and a port not where the host's packet filter masquerades, too;
4. another of its class: below 1024 stays there (REQ-3a), all others are of the range that is kept for this. Identifiers
   have one of their own.
It is refused if none is free, and only then. A mapping lasts at least as long as a connection that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model.connections import CLOSED, Connection, Connections
from tests.model.expected import ANY, Expected, passed, same
from tests.model.packet import ICMP, ICMPV6, LATER, Key, Packet
from tests.model.situations import Situation
from tests.model.sums import num
from tests.model.topology import Member, Topology, Uplink

if TYPE_CHECKING:
    from tests.model.services import Service
    from tests.model.watching import Watch

PRIVILEGED = range(1, 1024)
IDENTIFIERS = range(32768, 65536)

Internal = tuple[int, bytes, int, int, bytes]  # endpoint, its address, port, protocol, the host's address
External = tuple[bytes, int, int]  # the host's address, port, protocol


@dataclass
class Opening:
    """A connection to be: whatever the port, it has this answer and leaves so. `passes`: the packet is let through,
    and the connection hears it."""

    p: Packet
    wanted: int
    answer: Callable[[int], Key]
    out: Callable[[int], bytes]
    reason: str
    opener: Member | None
    server: Member | None
    uplink: Uplink | None = None
    passes: bool = True
    service: Service | None = None
    begins: Callable[[Key], object] = lambda answer: None  # once it is remembered
    held: Callable[[Key], bool] = lambda answer: False  # another host's client has it


@dataclass(eq=False)
class Mapping:
    internal: Internal
    external: External
    connections: list[Connection] = field(default_factory=list)
    shared: bool = False  # with another, towards other destinations


@dataclass
class Choice:
    """One of `fixed`, or any that is free of `others`."""

    fixed: set[int]
    others: range = range(0)

    @property
    def only(self) -> int | None:
        return next(iter(self.fixed)) if len(self.fixed) == 1 and not self.others else None


class Ports:
    def __init__(
        self, topology: Topology, connections: Connections, watch: Watch, meet: Callable[[Situation], None]
    ) -> None:
        self.topology, self.connections, self.watch, self.meet = topology, connections, watch, meet
        self.range = range(topology.nat_first, topology.nat_last + 1)
        self.displaced: tuple[
            Key, ...
        ] = ()  # halves of a gone endpoint's connection, which this packet replaces
        self.by_internal: dict[Internal, list[Mapping]] = {}
        self.by_external: dict[External, Mapping] = {}

    def bury(self, number: int) -> None:
        """The external ports of an endpoint whose removal is complete are free."""
        for external, mapping in [*self.by_external.items()]:
            if mapping.internal[0] == number:
                del self.by_external[external]
        for internal in [*self.by_internal]:
            if internal[0] == number:
                del self.by_internal[internal]

    # ---- masquerading --------------------------------------------------------------------------------------

    def masquerade(self, opening: Opening, sender: Member, source: bytes) -> Expected | None:
        p = opening.p
        internal = (sender.number, p.src, opening.wanted, p.proto, source)
        choice = self._choice(internal, sender)
        if any(
            opening.answer(one) in self.connections or opening.answer(one) in self.displaced
            for one in choice.fixed
        ):
            # Towards this destination it has another use, or has had until now: then it is one more.
            choice = Choice(choice.fixed | {opening.wanted}, range(1, 65536))
        only = choice.only
        if only != opening.wanted or only not in self.range:
            self.meet(Situation.OTHER_PORT)
        if only is not None and opening.answer(only) not in self.connections:
            self._open(opening, only, internal)
            return passed(opening.reason, opening.out(only))
        if p.fragment == LATER:
            return None  # nothing in it says which port was chosen

        def check(got: bytes) -> str:
            port = chosen(p, got)
            wrong = self._wrong(opening, choice, port, internal) or self._taken(opening.answer(port))
            if not wrong:
                self._open(opening, port, internal)
                wanted = opening.out(port)
                wrong = "" if same(got, wanted) else f"wanted {wanted.hex()}"
            return wrong

        expected = Expected(ANY, (opening.reason, "DROP_NAT_PORTS"), check=check)
        expected.refusal = lambda: self._refused(opening, choice, internal)
        return expected

    def reach(
        self, opening: Opening, sender: Member, source: bytes
    ) -> tuple[int, Callable[[], Connection]] | None:
        """Of a container that talks to another's external port (RFC 4787 REQ-9): it has one itself, as outside, which
        is told, and how to open the connection. None: nobody can see which, as the packet does not leave with it."""
        internal = (sender.number, opening.p.src, opening.wanted, opening.p.proto, source)
        only = self._choice(internal, sender).only
        if only is None or opening.answer(only) in self.connections or opening.answer(only) in self.displaced:
            return None
        return only, lambda: self._open(opening, only, internal)

    def _choice(self, internal: Internal, sender: Member) -> Choice:
        _, address, port, proto, source = internal
        known = self.by_internal.get(internal, [])
        fixed: set[int] = set()
        if 0 < port < 1024:
            self.meet(Situation.LOW_PORT)
        if known:
            fixed = {one.external[1] for one in known}
            if any(self._firm(one) for one in known):
                self.meet(Situation.SAME_SOCKET)
                return Choice(fixed)
        published, disputed = self._published_as(sender, address, port, proto, source)
        if published:
            self.meet(Situation.PUBLISHED_SOURCE)
        if published and not disputed:
            held = any(self._free(number, internal, own=True) is None for number in published)
            return Choice(fixed | published, self._others(port, proto) if held else range(0))
        fixed |= published
        free = self._free(port, internal) if port and self._keeps(proto) else False
        if free is not False:
            fixed.add(port)
        return Choice(fixed, range(0) if free else self._others(port, proto))

    def _keeps(self, proto: int) -> bool:
        return not self.topology.other_nat and proto not in (ICMP, ICMPV6)

    def _others(self, port: int, proto: int) -> range:
        """Of the port's class."""
        if proto in (ICMP, ICMPV6):
            return IDENTIFIERS
        # 0 has no class: it says of UDP's source that there is none (RFC 768).
        return self.range if port >= 1024 else PRIVILEGED if port else range(1, 65536)

    def _published_as(
        self, sender: Member, address: bytes, port: int, proto: int, source: bytes
    ) -> tuple[set[int], bool]:
        """Those of the host at which the endpoint's own is published; and whether one of them is another's at this
        address: if it is the first of several, it may be as if there were none (docs/nat.md)."""
        found = {
            number
            for (where, number, kind), published in self.topology.ports.items()
            if kind == proto
            and published.member is sender
            and not published.service
            and published.port == port
            and where in (source, bytes(len(source)))
        }
        if found and not sender.owns(address):  # that of who is behind it is another's
            self.meet(Situation.PUBLISHED_BEHIND)
            return set(), False
        # Published at all addresses, but at this one by another.
        others = {number for number in found if self._answers(source, number, proto) is not sender}
        if others:
            self.meet(Situation.PUBLISHED_BY_TWO)
        return found - others, bool(others)

    def _answers(self, address: bytes, port: int, proto: int) -> Member | None:
        published = self.topology.published(address, port, proto)
        return published.member if published and not published.service else None

    def _free(self, port: int, internal: Internal, own: bool = False) -> bool | None:
        """None: it may be, as what has it is over, or published elsewhere on the host. `own`: it is published by who
        asks."""
        _, _, _, proto, source = internal
        if (port, proto) in self.topology.sockets:
            return False
        published = [where for where, number, kind in self.topology.ports if (number, kind) == (port, proto)]
        if own:
            published.clear()
        if any(where in (source, bytes(len(source))) for where in published):
            return False
        owner = self.by_external.get((source, port, proto))
        if owner and (owner.internal != internal or owner.shared):
            return False if self._firm(owner) else None
        return None if published else True

    def _firm(self, mapping: Mapping) -> bool:
        """A connection that is not over holds it, of an endpoint that is not gone."""
        if mapping.shared or all(mapping.internal[0] != member.number for member in self.topology.members):
            return False
        return any(
            one.state != CLOSED and not one.resumed and self.connections.has(one)
            for one in mapping.connections
        )

    def _wrong(self, opening: Opening, choice: Choice, port: int, internal: Internal) -> str:
        if port in choice.fixed:
            return ""
        if port not in choice.others:
            return f"port {port} must not be chosen, but of {choice}"
        if self._free(port, internal) is not False:
            return ""
        # Where none is left one is shared towards different destinations, as the kernel always does it (decision 26).
        owner = self.by_external.get((internal[4], port, internal[3]))
        if owner is None or self._left(opening, choice, internal):
            return f"port {port} is not free"
        self.meet(Situation.PORT_SHARED)
        owner.shared = True
        return ""

    def _left(self, opening: Opening, choice: Choice, internal: Internal) -> int:
        """A port that it could have; 0: none."""
        for port in (*choice.fixed, *self._others(opening.wanted, opening.p.proto)):
            if opening.answer(port) not in self.connections and self._free(port, internal):
                return int(port)
        return 0

    def _refused(self, opening: Opening, choice: Choice, internal: Internal) -> str:
        self.meet(Situation.NO_PORT)
        left = self._left(opening, choice, internal)
        return f"refused, but {left} is free" if left else ""

    def _open(self, opening: Opening, port: int, internal: Internal) -> Connection:
        external = (internal[4], port, internal[3])
        mapping = self.by_external.get(external)
        if mapping and mapping.shared:
            return self.remember(opening, port)
        taken = mapping is not None and mapping.internal != internal
        if mapping and taken:  # what had it is over, or has still some time to go: then it is shared
            self.by_internal[mapping.internal].remove(mapping)
            mapping = None
        if mapping is None:
            mapping = self.by_external[external] = Mapping(internal, external, shared=taken)
            self.by_internal.setdefault(internal, []).append(mapping)
        mapping.connections.append(self.remember(opening, port))
        return mapping.connections[-1]

    # ---- published ports -----------------------------------------------------------------------------------

    def client(self, opening: Opening, own: bool) -> Expected | None:
        """Of a client of a published port. Its address is its `own`, and so is its port unless another connection
        has it (decision 15); where the host's address is put in its place, any port of the host's range will do."""
        p, wanted = opening.p, opening.wanted
        kept = wanted and opening.answer(wanted) not in self.connections
        kept = kept and not opening.held(opening.answer(wanted))
        if kept and own:
            self.remember(opening, wanted)
            return passed(opening.reason, opening.out(wanted))
        if p.fragment == LATER:
            return None

        def check(got: bytes) -> str:
            port = chosen(p, got)
            wrong = self.fits(opening, port, own)
            if not wrong:
                self.remember(opening, port)
                wrong = "" if same(got, opening.out(port)) else f"wanted {opening.out(port).hex()}"
            return wrong

        expected = Expected(ANY, (opening.reason, "DROP_NAT_PORTS"), check=check)
        expected.refusal = lambda: self._no_room(opening)
        return expected

    def fits(self, opening: Opening, port: int, own: bool) -> str:
        """What is wrong with a port that was chosen; "": nothing."""
        if port not in self.range and not (port == opening.wanted and not own):
            return f"port {port} must not be chosen"
        if opening.held(opening.answer(port)):
            return f"port {port} is another host's client's"
        return self._taken(opening.answer(port))

    def _no_room(self, opening: Opening) -> str:
        self.meet(Situation.NO_PORT)
        topology, proto = self.topology, opening.p.proto
        for port in self.range:
            taken = (port, proto) in topology.sockets or (port, proto) in topology.reserved
            taken = taken or opening.held(opening.answer(port))
            if not taken and opening.answer(port) not in self.connections:
                return f"refused, but {port} is free"
        return ""

    # ---- for both ------------------------------------------------------------------------------------------

    def _taken(self, answer: Key) -> str:
        used = self.connections.find(answer)
        return f"{answer} is another connection's" if used and used.connection.state != CLOSED else ""

    def remember(self, opening: Opening, port: int) -> Connection:
        connection = self.connections.remember(
            opening.p.key, opening.answer(port), opening.opener, opening.server
        )
        connection.service = opening.service
        self.watch.follows(connection)
        if opening.service and opening.server:
            opening.service.ledger.of(opening.server).opened += 1
        opening.begins(opening.answer(port))
        if opening.uplink:
            connection.masquerades, connection.uplink = True, opening.uplink
        if opening.passes:
            connection.spoken(opening.p, True)
        return connection


def chosen(p: Packet, got: bytes) -> int:
    """The port, or an echo's identifier, that it has left with."""
    at = p.l4 + (4 if p.icmp >= 0 else 0)
    return num(got[at : at + 2])
