# SPDX-License-Identifier: Apache-2.0
"""Three ways to decide: what policies mean (the evaluator), the rows that they become, and the programs that look these
up, in random worlds. The other two are compared in tests/unit; here the programs are run on the rows.

python -m pytest tests/bpf/test_policy_worlds.py with WORLDS=1000 in the environment compares as many; a world's seed is
in the failure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest

from datapath.kernel import abi, netns
from datapath.model.judging import judge
from datapath.model.policies import Action, By, Kind, Opening, Packet, Party, Verdict
from datapath.plan.policies.compiling import plan_rows
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
    Programs,
    Topology,
)
from tests.bpf.policies import policies_of
from tests.unit.policy_worlds import Draw

WORLDS = int(os.environ.get("WORLDS", "60"))
PACKETS = 50
NETWORKS = {"shop": NET1, "dmz": NET2}
GATEWAYS = {
    "shop": (ip_address("10.0.0.1"), None),
    "dmz": (ip_address("10.0.1.1"), ip_address("fd00:0:0:1::1")),
}
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


@pytest.fixture(scope="module")
def loaded(topology: Topology) -> Iterator[Programs]:
    """A host like that of the worlds, on the fixtures' devices. Its own networks are gone."""
    with netns.enter(topology.host):
        made = Programs(
            topology, objects=("from_container", "from_host", "from_uplink", "from_loopback", "conn_gc")
        )
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
        yield made
        made.close()


class Real:
    """A world whose containers have the fixtures' devices."""

    def __init__(self, programs: Programs, draw: Draw) -> None:
        self.programs = programs
        self.world = replace(draw.world, members=tuple(replace(m, here=True) for m in draw.world.members))
        self.rows = plan_rows(draw.policies, self.world)
        programs.forget()
        self._fill()
        policies_of(programs).clear()
        policies_of(programs).apply(self.rows)

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

    def run(self, packet: Packet, answers: bool) -> dict[str, int] | None:
        """What the hook that it meets has counted; None: none of these meets it."""
        if not meets_a_program(packet):
            return None
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
        return self.programs.run(sender, frame).reasons

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
    return opening.protocol != 47 and not (opening.protocol in (ICMP, ICMPV6) and not packet.source_port)


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


class Sums(NamedTuple):
    """What rules are to have counted."""

    openings: Counter[By]
    packets: Counter[By]

    def add(self, verdict: Verdict, answers: bool) -> None:
        if verdict.action is not Action.ALLOW:
            self.packets.update(step.by for step in verdict.steps[-1:] if step.by)
        elif not answers:
            self.openings.update(step.by for step in verdict.steps if step.by)
            self.packets.update(step.would for step in verdict.steps if step.would)


Ends = tuple[int, Party, int, Party, int]


def compare(programs: Programs, seed: int) -> int:
    """How many packets of that world met a program; AssertionError: one does otherwise than the evaluator says."""
    draw = Draw(seed)
    if not draw.policies:
        return 0
    real, sums = Real(programs, draw), Sums(Counter(), Counter())
    passed: dict[Ends, Opening] = {}
    hidden: set[Ends] = set()
    compared = 0
    for packet in draw.some_packets(PACKETS):
        opening = packet.opening
        opening = replace(opening, source=here(opening.source), destination=here(opening.destination))
        packet = packet._replace(opening=opening)
        ends = (opening.protocol, opening.source, packet.source_port, opening.destination, opening.port)
        turned = (opening.protocol, opening.destination, opening.port, opening.source, packet.source_port)
        if turned in hidden or ends in passed:
            continue
        question = passed.get(turned)
        got = real.run(packet, question is not None)
        if got is None:
            continue
        compared += 1
        verdict = judge(question or opening, draw.policies, real.world)
        wanted = [] if verdict.action is Action.ALLOW else [verdict.steps[-1].reason]
        where = f"seed {seed}: {packet}\n  evaluator: {verdict}\n  program: {got}\n  of {draw.policies}"
        assert [name for name in got if name.startswith("DROP_")] == wanted, where
        if not wanted and question is None:
            would = Counter(step.reason for step in verdict.steps if step.reason)
            assert {name: n for name, n in got.items() if name.startswith("WOULD_")} == would, where
            passed[ends] = opening
        sums.add(verdict, question is not None)
        if opening.published is not None and opening.source.kind is not Kind.OUTSIDE:
            hidden.add(ends)
    hits = policies_of(programs).hits()
    for number, by in enumerate(real.rows.rules, 1):
        assert (hits[number].openings, hits[number].packets) == (sums.openings[by], sums.packets[by]), (
            seed,
            by,
        )
    return compared


def here(party: Party) -> Party:
    return replace(party, member=party.member and replace(party.member, here=True))


@pytest.mark.parametrize("first", range(1, WORLDS + 1, 20))
def test_the_programs_do_what_policies_mean(programs: Programs, first: int) -> None:
    compared = sum(compare(programs, seed) for seed in range(first, first + 20))
    assert compared > 20 * PACKETS // 10, "most packets meet no program"
