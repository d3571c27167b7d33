# SPDX-License-Identifier: Apache-2.0
"""Policies: who may begin something, who goes on, and what is judged again when others have taken their place. What
they mean is asked of their own reference, `datapath.model.judging`; here is when it is asked, and about whom."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from datapath.model.judging import judge
from datapath.model.policies import (
    Action,
    Direction,
    Kind,
    Opening,
    Party,
    Policy,
    Rule,
    Rules,
    Selector,
    World,
)
from datapath.model.policies import Member as Named
from tests.model.addresses import loopback
from tests.model.connections import CLOSING, Half
from tests.model.errors import quotation
from tests.model.packet import FIN, LATER, RST, TCP, UDP, Key, Packet, backwards
from tests.model.situations import Withheld
from tests.model.topology import LOCAL_SENDER, Member, Network, Topology

OUTSIDE, HOST = 0, -1  # who is no container, as numbers of endpoints


class Refusal(NamedTuple):
    """`told`: whoever has sent it hears of it, unless it is somebody outside."""

    reason: str
    told: bool


@dataclass
class Admission:
    """Who has begun what nobody translates: end of the flow, numbers of it and of the other; when it was judged."""

    began: tuple[bytes, int]
    numbers: tuple[int, int]
    generation: int
    finished: bool


class Guard:
    """Those in force. `generation` 0: none."""

    def __init__(self) -> None:
        self.policies: list[Policy] = []
        self.world = World((), (), ())
        self.generation = 0
        self.admissions: dict[tuple[object, ...], Admission] = {}

    def put(self, policies: list[Policy], topology: Topology) -> None:
        self.policies, self.world = policies, world_of(topology)
        self.names = {member.endpoint: member for member in self.world.members}
        self.gateways = {net.linklocal: net.gateway6 for net in topology.networks if net.linklocal}
        self.generation += 1
        self.about = {
            number: {one for one in Direction if any(says(p, one, member, self.world) for p in policies)}
            for number, member in self.names.items()
        }

    def is_open(self, number: int) -> bool:
        """No policy is about it; nor about anybody who is not here."""
        return number <= 0 or self.about.get(number) == set()

    def wants_copies(self, number: int) -> bool:
        """Who refuses anybody anything gets none of what is sent to a group."""
        return not self.generation or Direction.IN not in self.about.get(number, ())

    def judges(
        self, proto: int, source: tuple[int, bytes], to: tuple[int, bytes], port: int
    ) -> Refusal | None:
        """An opening: of whom, by which address, at which port."""
        if source[0] > 0 and source[0] == to[0]:
            return None
        ports = proto in (TCP, UDP)
        opening = Opening(self._party(*source), self._party(*to), proto, port if ports else 0)
        step = judge(opening, self.policies, self.world).steps[-1:]
        if not step or step[0].action is Action.ALLOW:
            return None
        by = step[0].by
        policy = next(one for one in self.policies if by and one.name == by.policy)
        # The host is the host, whatever address it has put there.
        return Refusal(step[0].reason, policy.refuse is Action.REJECT and source[0] != OUTSIDE)

    def _party(self, number: int, raw: bytes) -> Party:
        raw = self.gateways.get(raw, raw) if number == HOST else raw
        address = ip_address(raw)
        if number <= 0:
            return Party(Kind.HOST if address in self.world.host else Kind.OUTSIDE, address)
        member = self.names.get(number)
        for first in member.addresses if member else ():
            if first.version == address.version:
                return Party(Kind.MEMBER, first, member)
        raise Withheld  # it is gone, or nobody by that kind of address

    # ---- what is translated ----------------------------------------------------------------------------------------

    def stands(self, p: Packet, half: Half) -> Refusal | None:
        """May a packet of it, or an error about it, still pass?"""
        connection, at = half.connection, 0 if half.original else 1
        if not self.generation:
            return None
        again = half.original and not p.error and connection.state >= CLOSING and p.opens
        if connection.judged[at] == self.generation and not again:
            return None
        if connection.resumed:
            raise Withheld
        proto, src, _, _, _ = connection.original
        _, to, port, seen, _ = connection.answer
        opener, server = connection.opener, connection.server
        numbers = (
            HOST if opener is LOCAL_SENDER else connection.numbers[0] if opener else OUTSIDE,
            connection.numbers[1] if server else OUTSIDE,
        )
        src = seen if numbers[0] == HOST and loopback(src) else src
        refusal = self.judges(proto, (numbers[0], src), (numbers[1], to), port)
        if refusal is None:
            connection.judged[at] = self.generation
        return refusal

    # ---- what is not -----------------------------------------------------------------------------------------------

    def admits(self, p: Packet, net: Network, sender: int, to: int) -> Refusal | None:
        """Numbers of endpoints, or HOST."""
        if not self.generation or (self.is_open(sender) and self.is_open(to)):
            return None
        quoted = quotation(p) if p.error else None
        key = backwards(quoted) if quoted else p.key if p.ports else (p.proto, p.src, 0, p.dst, 0)
        error, tcp = quoted is not None, quoted is None and p.proto == TCP
        proto, src, sport, dst, dport = key
        ends = (src, sport), (dst, dport)
        name = net.number, proto, frozenset(ends) if ends[0] != ends[1] else ends[0]
        flags = p.frame[p.l4 + 13] if tcp and p.fragment != LATER else 0
        row = self.admissions.get(name)
        turned = row is not None and row.began != ends[0]
        known = row if row and row.numbers == ((to, sender) if turned else (sender, to)) else None
        if known and tcp and p.opens and (turned or known.finished):
            known = None
        ending = bool(flags & (FIN | RST))
        if known and known.generation == self.generation:
            known.finished = known.finished or ending
            return None
        turned = known is not None and turned
        refusal = self._between(key, sender, to, turned)
        middle = error or (tcp and not p.opens)
        if refusal and known is None and middle:
            turned, refusal = True, self._between(key, sender, to, True)
        if refusal or error:
            return refusal
        numbers = (to, sender) if turned else (sender, to)
        finished = ending or (known is not None and known.finished)
        self.admissions[name] = Admission(ends[1 if turned else 0], numbers, self.generation, finished)
        return None

    def _between(self, key: Key, sender: int, to: int, turned: bool) -> Refusal | None:
        proto, src, sport, dst, dport = key
        if turned:
            return self.judges(proto, (to, dst), (sender, src), sport)
        return self.judges(proto, (sender, src), (to, dst), dport)


def says(policy: Policy, direction: Direction, member: Named, world: World) -> bool:
    """Something of that direction of the member's."""
    rules = policy.rules(direction)
    about = policy.subject.fits(Party(Kind.MEMBER, None, member), world)
    return about and (bool(rules.deny) or rules.allow is not None)


def world_of(topology: Topology) -> World:
    """As the control plane has it."""
    members = tuple(
        Named(
            member.number,
            f"n{member.network.number}",
            member.name,
            {"side": str(member.number % 2)},
            tuple(ip_address(raw) for raw in (member.addr4, member.addr6) if raw),
            f"{member.number:064x}",
        )
        for member in topology.members
    )
    lan = {
        ip_network(f"{ip_address(raw)}/{24 if len(raw) == 4 else 64}", strict=False)
        for uplink in topology.uplinks
        for raw in (uplink.addr4, uplink.addr6)
        if raw
    }
    return World(members, tuple(sorted(map(ip_address, topology.host), key=str)), tuple(sorted(lan, key=str)))


# ---- random ones -----------------------------------------------------------------------------------------------------


class Drawn:
    """Policies of a seed. None lets everybody in to everything, which would be as if there were none."""

    def __init__(self, rng: random.Random, topology: Topology, outside: Iterable[bytes]) -> None:
        self.rng, self.topology = rng, topology
        self.addresses = [*outside, *topology.host]
        self.addresses += [raw for m in topology.members for raw in (m.addr4, m.addr6) if raw]
        self.sides = sorted({str(member.number % 2) for member in topology.members})
        self.number = 0

    def policies(self) -> list[Policy]:
        return [self._policy(f"p{number}") for number in range(self.rng.choice((1, 1, 2, 3)))]

    def _policy(self, name: str) -> Policy:
        member: Member = self.rng.choice(self.topology.members)
        subject = self.rng.choice(
            (
                Selector(name=member.name),
                Selector(name=member.name),
                Selector(labels=(("side", self.rng.choice(self.sides)),)),
                Selector(network=f"n{member.network.number}"),
            )
        )
        ingress, egress = (self._rules() for _ in range(2))
        refuse = self.rng.choice((Action.REJECT, Action.REJECT, Action.DROP))
        return Policy(name, subject, ingress, egress, refuse=refuse)

    def _rules(self) -> Rules:
        deny = tuple(self._rule() for _ in range(self.rng.choice((0, 0, 0, 1))))
        if self.rng.random() < 0.5:
            return Rules(deny)
        return Rules(deny, tuple(self._rule() for _ in range(self.rng.choice((0, 1, 2, 3)))))

    def _rule(self) -> Rule:
        self.number += 1
        protocol = self.rng.choice(("", "tcp", "tcp", "udp", "icmp"))
        ports = ((1, 79), (80, 80), (53, 53), (443, 8083), (1024, 65535))
        ranges = tuple(sorted(self.rng.sample(ports[:4], 2))) if self.rng.random() < 0.5 else (ports[4],)
        return Rule(self._peer(), ranges if protocol in ("tcp", "udp") else (), protocol, number=self.number)

    def _peer(self) -> Selector:
        at = self.rng.random()
        if at < 0.4:
            return Selector(name=self.rng.choice(self.topology.members).name)
        if at < 0.55:
            return Selector(labels=(("side", self.rng.choice(self.sides)),))
        if at < 0.75:
            return Selector(self.rng.choice(("outside", "internet", "private", "lan", "host")))
        address = ip_address(self.rng.choice(self.addresses))
        bits = self.rng.choice((8, 24, 32) if address.version == 4 else (32, 64, 128))
        return Selector(prefix=ip_network(f"{address}/{bits}", strict=False))
