# SPDX-License-Identifier: Apache-2.0
"""Three ways to decide: what policies mean (the evaluator), the rows that they become, and the programs that look these
up, in random worlds.

    python -m tests.bpf.policy_worlds [--packets N] [--each N] [--seed S]

Everything follows from the seed; each world has one of its own, which a difference names. Each packet is sent once by a
world's policies, and once more when others have taken their place: what is open then is judged by these.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple

from datapath.kernel import abi, netns
from datapath.model.judging import judge
from datapath.model.policies import Action, By, Kind, Opening, Packet, Party, Policy, Verdict
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.rows import rows_verdict
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    HOST,
    HOST6,
    LO,
    MEMBERS,
    NET1,
    NET2,
    NEXT_HOP_MAC,
    OTHER6,
    UPLINK_MAC,
    Flag,
    Member,
    Programs,
    Topology,
)
from tests.bpf.policies import policies_of
from tests.model.fixtures import NAMES, Runner, pinned_to_one_cpu
from tests.unit.policy_worlds import Draw

PACKETS = 50
OBJECTS = ("from_container", "from_host", "from_uplink", "from_loopback", "conn_gc")
# No packet of a world pushes out the row of another.
TABLES = ("admissions", "pending", "conns", "externals", "mappings", "contacts")
NETWORKS = {"shop": NET1, "dmz": NET2}
GATEWAYS = {
    "shop": (ip_address("10.0.0.1"), None),
    "dmz": (ip_address("10.0.1.1"), ip_address("fd00:0:0:1::1")),
}
TCP, UDP, ICMP, ICMPV6, GRE = 6, 17, 1, 58, 47


def programs_of(topology: Topology) -> Programs:
    """A host like that of the worlds, on the fixtures' devices. Its own networks are gone. In the host's namespace."""
    made = Programs(topology, objects=OBJECTS, sizes=dict.fromkeys(TABLES, 1 << 15))
    for name in ("endpoints", "members", "ports"):
        made.maps[name].delete_many(list(made.maps[name]))
    for key, device in dict(made.maps["devices"].read_all()).items():
        if device.kind == abi.DeviceKind.DEVICE_ENDPOINT:
            del made.maps["devices"][key]
    for name, net in NETWORKS.items():
        four, six = GATEWAYS[name]
        flags = net.flags | Flag.NETWORK_ICC | Flag.NETWORK_IPV6
        row = made.maps["networks"][net.number]
        made.maps["networks"][net.number] = row._replace(
            flags=flags, gateway4=four, gateway6=six, broadcast=None
        )
    return made


class Real:
    """A world whose containers have the fixtures' devices."""

    def __init__(self, programs: Programs, draw: Draw) -> None:
        self.programs, self.runner = programs, Runner(programs.maps["counters"].fd)
        self.world = replace(draw.world, members=tuple(replace(m, here=True) for m in draw.world.members))
        programs.forget()
        self._fill()
        policies_of(programs).clear()

    def put(self, policies: list[Policy]) -> None:
        """These are in force from now on, and nothing of theirs is counted yet."""
        self.policies, self.rows = policies, plan_rows(policies, self.world)
        self.said: dict[Opening, Verdict] = {}
        policies_of(self.programs).apply(self.rows)

    def verdict(self, opening: Opening) -> Verdict:
        """Of the evaluator, and the rows have to say the same."""
        if opening in self.said:
            return self.said[opening]
        said, rows = judge(opening, self.policies, self.world), rows_verdict(self.rows, opening)
        self.said[opening] = said
        if said != rows and self.policies:
            raise DifferenceError(f"{opening}\n  evaluator: {said}\n  rows: {rows}\n  of {self.policies}")
        return said

    def is_tracked(self, opening: Opening) -> bool:
        """There is a row of who has begun: it is translated, or a policy is about one of its ends."""
        members = (end.member for end in (opening.source, opening.destination))
        return is_translated(opening) or any(self.rows.members[m.endpoint].directions for m in members if m)

    def _fill(self) -> None:
        maps = self.programs.maps
        for name in ("endpoints", "ports", "reserved"):
            maps[name].delete_many(list(maps[name]))
        for member in self.world.members:
            net, device = NETWORKS[member.network], MEMBERS[member.endpoint - 1]
            four, six = (next((a for a in member.addresses if a.version == v), None) for v in (4, 6))
            index = self.programs.ifindex(device)
            maps["devices"][abi.device_key(index)] = abi.device(
                kind=abi.DeviceKind.DEVICE_ENDPOINT,
                network=net.number,
                endpoint=member.endpoint,
                mac=device.mac,
                addr4=four,
                addr6=six,
            )
            for address in member.addresses:
                row = abi.endpoint(index, member.endpoint, device.mac)
                maps["endpoints"][abi.endpoint_key(net.number, address)] = row

    def is_mapped(self, opening: Opening) -> bool:
        """The host's port is a container's towards the outside: nobody of the host's can answer there."""
        key = abi.external_key(opening.destination.address, opening.port, opening.protocol)
        return key in self.programs.maps["externals"]

    def run(self, packet: Packet, answers: bool) -> dict[str, int]:
        """What the hook that it meets has counted."""
        opening = packet.opening
        source, to = opening.source, opening.destination
        address, port = to.address, opening.port
        assert address is not None
        if opening.published is not None:
            address, port = self._publish(opening), opening.published.port
        carried = transport(opening.protocol, packet.source_port, port, answers, address.version)
        frame = self._frame(source.address, address, carried)
        if source.member is not None:
            sender = MEMBERS[source.member.endpoint - 1]
            straight = to.member is not None and opening.published is None
            receiver = (
                MEMBERS[to.member.endpoint - 1] if straight and to.member else NETWORKS[source.member.network]
            )
            return self._run(sender, p.ethernet(receiver.mac, sender.mac, kind(address), frame))
        assert to.member is not None
        if source.kind is Kind.OUTSIDE:
            return self._run(None, p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, kind(address), frame))
        if opening.published is not None:
            return self._run(LO, p.ethernet(p.NOBODY, p.NOBODY, kind(address), frame))
        net, device = NETWORKS[to.member.network], MEMBERS[to.member.endpoint - 1]
        return self._run(net, p.ethernet(device.mac, net.mac, kind(address), frame))

    def _run(self, sender: Any, frame: bytes) -> dict[str, int]:
        hook = (
            "from_loopback"
            if sender is LO
            else "from_container"
            if isinstance(sender, Member)
            else "from_host"
        )
        fd = self.programs.fds[hook if sender else "from_uplink"]
        ran = self.runner.run(fd, self.programs.ifindex(sender), frame)
        assert ran is not None
        return {NAMES[reason]: packets for reason, packets in self.runner.all_moved()}

    @staticmethod
    def _frame(source: Any, to: Any, carried: p.Transport) -> bytes:
        return p.ipv4(source, to, carried) if to.version == 4 else p.ipv6(source, to, carried)

    def _publish(self, opening: Opening) -> Any:
        """Publishes the port that is asked, which worlds do not say; the address to ask it at."""
        port, member, maps = opening.published, opening.destination.member, self.programs.maps
        assert port is not None and member is not None
        maps["reserved"][abi.reserved_key(port.port, port.protocol)] = abi.reserved(1)
        maps["ports"][abi.port_key(port.address, port.port, port.protocol)] = abi.port(
            network=NETWORKS[member.network].number,
            endpoint=member.endpoint,
            addr=opening.destination.address,
            port=opening.port,
        )
        if not port.address.is_unspecified:
            return port.address
        return HOST if port.address.version == 4 else HOST6


def meets_a_program(packet: Packet) -> bool:
    """One of those that are loaded, which comes as far as to ask."""
    opening = packet.opening
    source, to = opening.source, opening.destination
    if source.address is None or to.address is None or not (usable(source.address) and usable(to.address)):
        return False
    if source.member is None:
        return to.member is not None and (source.kind is Kind.HOST or opening.published is not None)
    if opening.published is not None:
        return True
    if to.member is not None:
        return source.member.network == to.member.network
    if to.kind is Kind.HOST:  # the fixtures' host has not all of them
        return to.address in {HOST, OTHER6, *GATEWAYS[source.member.network]}
    # Translated are no other protocols, nor pings that nobody has asked.
    return opening.protocol != GRE and not (opening.protocol in (ICMP, ICMPV6) and not packet.source_port)


def usable(address: Any) -> bool:
    return not (address.is_multicast or (address.version == 6 and address.is_link_local))


def kind(address: Any) -> int:
    return p.ETH_IPV4 if address.version == 4 else p.ETH_IPV6


def transport(protocol: int, sport: int, dport: int, answers: bool, version: int) -> p.Transport:
    if protocol == TCP:
        return p.tcp(sport, dport, p.SYN | p.ACK if answers else p.SYN)
    if protocol == UDP:
        return p.udp(sport, dport)
    if protocol in (ICMP, ICMPV6):
        asks = sport != 0
        if version == 4:
            return p.echo(p.ECHO if asks else p.ECHO_REPLY, sport or dport)
        return p.echo6(128 if asks else 129, sport or dport)
    return p.Transport(protocol, bytes(8))


class DifferenceError(Exception):
    """The three do not say the same."""


class Sums(NamedTuple):
    """What rules are to have counted."""

    openings: Counter[By]
    packets: Counter[By]

    def add(self, verdict: Verdict, opens: bool) -> None:
        if verdict.action is not Action.ALLOW:
            self.packets.update(step.by for step in verdict.steps[-1:] if step.by)
            return
        self.packets.update(step.would for step in verdict.steps if step.would)
        if opens:
            self.openings.update(step.by for step in verdict.steps if step.by)


Ends = tuple[int, Party, int, Party, int]


class Known(NamedTuple):
    """What is open: as it was begun, and by which round's policies each half was judged."""

    opening: Opening
    asked: int
    answered: int


class World:
    """One of them, packet by packet. DifferenceError."""

    def __init__(self, programs: Programs, seed: int, packets: int) -> None:
        self.draw, self.seed = Draw(seed), seed
        self.real = Real(programs, self.draw)
        self.rounds = (self.draw.policies, self.draw.some_policies())
        self.packets = [drawn for packet in self.draw.some_packets(packets) if (drawn := as_sent(packet))]
        self.round = self.compared = 0
        self.known: dict[Ends, Known] = {}
        self.hidden: set[Ends] = set()
        self.asked: dict[tuple[Party, int, int, int], Ends] = {}
        self.answers: dict[int, bool] = {}

    def compare(self) -> int:
        """How many packets met a program."""
        with pinned_to_one_cpu():
            return self._compared()

    def _compared(self) -> int:
        for number, policies in enumerate(self.rounds):
            if not policies:
                break
            self.round = number
            self.real.put(policies)
            self.sums = Sums(Counter(), Counter())
            for index, packet in enumerate(self.packets):
                try:
                    self._compare(index, packet)
                except DifferenceError as difference:
                    raise DifferenceError(f"seed {self.seed}, round {self.round}: {difference}") from None
            self._count()
            # Rows of who has begun are there only of what policies were about.
            self.known = {e: one for e, one in self.known.items() if self.real.is_tracked(one.opening)}
        return self.compared

    def _compare(self, index: int, packet: Packet) -> None:
        opening = packet.opening
        ends = (opening.protocol, opening.source, packet.source_port, opening.destination, opening.port)
        turned = (opening.protocol, opening.destination, opening.port, opening.source, packet.source_port)
        if turned in self.hidden or (ends in self.hidden and opening.published is None):
            return  # who is behind a port knows the other by another name
        if not self.round and ends in self.known:
            return
        if opening.published is not None:
            asked = opening.source, packet.source_port, opening.protocol, opening.published.port
            if self.asked.setdefault(asked, ends) != ends:
                return  # a port leads where it did when it was asked
        if opening.published is not None and turned in self.known:
            return  # it asked from that port itself: by which one of the host's is not looked at here
        if opening.destination.kind is Kind.HOST and self.real.is_mapped(opening):
            return
        found = ends if ends in self.known else turned
        known, question = self.known.get(found), found == turned and found in self.known
        answers = self.answers.setdefault(index, question)
        begins_anew = question and not answers and opening.protocol == TCP
        if known and begins_anew and not is_translated(known.opening):
            known = None
        got = self.real.run(packet, answers)
        self.compared += 1
        verdict = self.real.verdict(known.opening if known else opening)
        middle = answers and opening.protocol == TCP
        if known is None and middle and verdict.action is not Action.ALLOW:
            # Either end could have begun it.
            opening, found = self._turned(packet), turned
            verdict = self.real.verdict(opening)
        elif known is None:
            found = ends
        refused = verdict.action is not Action.ALLOW
        wanted = [verdict.steps[-1].reason] if refused else []
        stands = known is not None and known[1 + question] == self.round
        would = Counter(step.reason for step in verdict.steps if step.reason and not refused and not stands)
        said = {name: n for name, n in got.items() if name.startswith("WOULD_")}
        if [name for name in got if name.startswith("DROP_")] != wanted or said != would:
            raise DifferenceError(
                f"{packet}, {'answer' if answers else 'opening'} of {known}\n  evaluator: {verdict}\n  program: {got}"
                f"\n  of {self.real.policies}"
            )
        if not stands:
            self.sums.add(verdict, known is None and not middle)
        if not refused:
            if known is None:
                self.known.pop(turned, None)
            halves = [known.asked, known.answered] if known else [self.round, self.round]
            halves[question] = self.round
            self.known[found] = Known(known.opening if known else opening, *self._judged(halves, opening))
        if opening.published is not None and opening.source.kind is not Kind.OUTSIDE:
            self.hidden.add(ends)

    def _judged(self, halves: list[int], opening: Opening) -> list[int]:
        """Of what is translated each half has a row of its own."""
        return halves if is_translated(opening) else [self.round, self.round]

    @staticmethod
    def _turned(packet: Packet) -> Opening:
        of = packet.opening
        return replace(of, source=of.destination, destination=of.source, port=packet.source_port)

    def _count(self) -> None:
        hits = policies_of(self.real.programs).hits()
        for number, by in enumerate(self.real.rows.rules, 1):
            counted, wanted = hits[number][:2], (self.sums.openings[by], self.sums.packets[by])
            if counted != wanted:
                where = f"seed {self.seed}, round {self.round}"
                raise DifferenceError(
                    f"{where}: {by} counted {counted}, not {wanted}\n  of {self.real.policies}"
                )


def is_translated(opening: Opening) -> bool:
    return opening.published is not None or Kind.OUTSIDE in (opening.source.kind, opening.destination.kind)


def as_sent(packet: Packet) -> Packet | None:
    """By a host that all members are on; None: none of the programs that are loaded meets it."""
    opening = packet.opening
    ends = here(opening.source), here(opening.destination)
    packet = packet._replace(opening=replace(opening, source=ends[0], destination=ends[1]))
    if opening.protocol == GRE:  # which has no ports: all of it between two is one
        packet = packet._replace(source_port=0)
    return packet if meets_a_program(packet) else None


def here(party: Party) -> Party:
    return replace(party, member=party.member and replace(party.member, here=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--each", type=int, default=1000, help="packets that are drawn for a world")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    order = parser.parse_args()
    topology, begun, worlds, compared = Topology(), time.monotonic(), 0, 0
    try:
        with netns.enter(topology.host):
            programs = programs_of(topology)
            try:
                while compared < order.packets:
                    compared += World(programs, order.seed + worlds, order.each).compare()
                    worlds += 1
            finally:
                programs.close()
    except DifferenceError as difference:
        print(f"world {worlds} of seed {order.seed}: {difference}", file=sys.stderr)
        return 1
    finally:
        topology.close()
    took = time.monotonic() - begun
    said = f"{worlds:,} worlds and {compared:,} packets in {took:.0f} s"
    print(f"seed {order.seed}: {said}, and meaning, rows and programs say the same of all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
