# SPDX-License-Identifier: Apache-2.0
"""Containers that talk to each other's external ports (RFC 4787, REQ-9; RFC 5382, REQ-8)."""

from __future__ import annotations

import socket
import subprocess
from ipaddress import ip_address
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    C1,
    D1,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    Member,
    Programs,
    Reason,
    outside_sends,
)

OWN = 40000  # of both containers, so that one of them has another external port
PAIRS = pytest.mark.parametrize("other", [A3, B1], ids=["of one network", "of another network"])
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])


class Ends:
    """a1 and another, both known outside by the port that a server has told them."""

    def __init__(self, programs: Programs, other: Member, six: bool = False, proto: int = p.UDP) -> None:
        self.programs, self.proto = programs, proto
        self.host: p.Address = HOST6 if six else HOST
        self.server: p.Address = OUTSIDE6 if six else OUTSIDE
        self.at = 54 if six else 34
        self.hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
        self.members = (A1, other)
        self.external = tuple(self._told(member) for member in self.members)

    def carried(self, sport: int, dport: int, flags: int = p.SYN) -> p.Transport:
        return p.udp(sport, dport) if self.proto == p.UDP else p.tcp(sport, dport, flags)

    def _told(self, member: Member) -> int:
        got = self.programs.run(member, member.sends(self.server, self.carried(OWN, 53)))
        assert got.reasons == {"TO_OUTSIDE": 1}
        return int.from_bytes(got.packet[self.at : self.at + 2], "big")

    def say(self, who: int, flags: int = p.SYN) -> tuple[str, bytes]:
        """What becomes of what one of them sends to the other's external port."""
        me = self.members[who]
        frame = me.sends(self.host, self.carried(OWN, self.external[1 - who], flags))
        got = self.programs.run(me, frame)
        (reason,) = got.reasons
        return reason, got.packet

    def heard(self, who: int, flags: int = p.SYN) -> bytes:
        """That it arrived at the other, from the sender's external port."""
        carried = self.carried(self.external[who], OWN, flags)
        return self.members[1 - who].gets(self.host, carried, **self.hop)

    def meets(self, who: int, flags: int = p.SYN) -> None:
        reason, packet = self.say(who, flags)
        assert reason == "DELIVERED"
        assert not (text := p.difference(packet, self.heard(who, flags))), text


@PAIRS
@FAMILIES
def test_each_hears_the_other_from_its_external_port(programs: Programs, other: Member, six: bool) -> None:
    """The first word, which the other does not wait for, is the host's, as it would be from outside."""
    ends = Ends(programs, other, six)
    assert ends.external[0] == OWN != ends.external[1]
    assert ends.say(0)[0] == "TO_HOST"
    ends.meets(1)
    for _ in range(2):
        ends.meets(0)
        ends.meets(1)
    for name in ("pending", "conns"):
        table = programs.table(name)
        assert all(table[conn.other].other == key for key, conn in table.items())
    assert len(programs.table("conns")) == 4


@PAIRS
def test_tcp_that_is_opened_from_both_ends(programs: Programs, other: Member) -> None:
    """A simultaneous open (RFC 9293, 3.5), as for passing NATs."""
    ends = Ends(programs, other, proto=p.TCP)
    assert ends.say(0)[0] == "TO_HOST"
    ends.meets(1)
    ends.meets(0)
    for who, flags in ((1, p.SYN | p.ACK), (0, p.SYN | p.ACK), (1, p.ACK), (0, p.ACK), (1, p.PSH | p.ACK)):
        ends.meets(who, flags)
    states = {
        conn.state for conn in programs.table("conns").values() if conn.flags & abi.ConnFlag.CONN_ORIGINAL
    }
    assert states == {abi.ConnState.CONN_ESTABLISHED}


def test_filtering_is_as_from_outside(programs: Programs) -> None:
    """Who was not sent to does not get in, not even from the same container with another port."""
    ends = Ends(programs, B1)
    ends.say(0)
    ends.meets(1)
    for member, sport in ((A3, OWN), (B1, OWN + 1)):
        got = programs.run(member, member.sends(HOST, p.udp(sport, ends.external[0])))
        assert got.reasons == {"TO_HOST": 1}


def test_what_nobody_is_mapped_to_is_the_hosts(programs: Programs) -> None:
    got = programs.run(A1, A1.sends(HOST, p.udp(OWN, 5353)))
    assert (got.reasons, got.packet) == ({"TO_HOST": 1}, A1.sends(HOST, p.udp(OWN, 5353)))
    assert not programs.table("pending")


def test_a_socket_of_the_host_that_has_come_there_is_meant(programs: Programs) -> None:
    ends = Ends(programs, A3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(HOST), ends.external[1]))
        frame = A1.sends(HOST, p.udp(OWN, ends.external[1]))
        got = programs.run(A1, frame)
        assert (got.reasons, got.packet) == ({"TO_HOST": 1}, frame)


def test_a_mapping_that_is_over_is_nobodys(programs: Programs) -> None:
    ends = Ends(programs, A3)
    programs.maps["externals"].delete_many(list(programs.maps["externals"]))
    assert ends.say(0)[0] == "TO_HOST"
    assert len(programs.table("pending")) == 4  # towards the server only


@pytest.mark.parametrize("member", [C1, D1], ids=["internal", "without masquerading"])
def test_networks_without_external_ports_do_not_take_part(programs: Programs, member: Member) -> None:
    ends = Ends(programs, A3)
    got = programs.run(member, member.sends(HOST, p.udp(OWN, ends.external[0])))
    assert got.reasons == ({"DROP_INTERNAL": 1} if member is C1 else {"TO_HOST": 1})


@FAMILIES
def test_who_is_behind_a_container_is_met_as_well(programs: Programs, six: bool) -> None:
    """a3 forwards for another, which has an external port as a3 itself has one."""
    from tests.bpf.test_forwarding import change, comes, says

    behind, host, server = (
        (ip_address("fd99::5"), HOST6, OUTSIDE6) if six else (ip_address("10.99.0.5"), HOST, OUTSIDE)
    )
    hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
    where = [*(("-6",) if six else ()), "route"], [f"{behind}/{128 if six else 32}"]
    gateway = ["via", str(A3.ip6 if six else A3.ip), "dev", "dp0"]
    subprocess.run(["ip", *where[0], "add", *where[1], *gateway], check=True)
    change(programs, A3, True)
    try:
        ends = [
            (A1, A1.sends(server, p.udp(OWN, 53))),
            (A3, says(A3, behind, server, p.udp(OWN + 7, 53))),
        ]
        for member, frame in ends:
            assert programs.run(member, frame).reasons == {"TO_OUTSIDE": 1}
        first = A1.sends(host, p.udp(OWN, OWN + 7))
        assert programs.run(A1, first).reasons == {"TO_HOST": 1}
        got = programs.run(A3, says(A3, behind, host, p.udp(OWN + 7, OWN)))
        assert got.reasons == {"DELIVERED": 1}
        wanted = comes(A3, host, behind, p.udp(OWN, OWN + 7), **hop)
        programs.expect(A1, first, REDIRECT, Reason.DELIVERED, wanted)
    finally:
        change(programs, A3, False)
        subprocess.run(["ip", *where[0], "del", *where[1]], check=True)


def test_what_is_too_big_for_the_other_is_told(programs: Programs) -> None:
    ends = Ends(programs, B1)
    ends.say(0)
    ends.meets(1)
    key = B1.net.number
    before = programs.maps["networks"][key]
    programs.maps["networks"][key] = before._replace(mtu=1280)
    try:
        frame = A1.sends(HOST, p.udp(OWN, ends.external[1], bytes(1400)))
        got = programs.run(A1, frame)
        assert got.reasons == {"DROP_TOO_BIG": 1} and got.verdict == REDIRECT
    finally:
        programs.maps["networks"][key] = before


def test_the_last_hop_goes_no_further(programs: Programs) -> None:
    ends = Ends(programs, B1)
    ends.say(0)
    ends.meets(1)
    got = programs.run(A1, A1.sends(HOST, p.udp(OWN, ends.external[1]), ttl=1))
    assert got.reasons == {"DROP_TTL": 1}


def test_an_endpoint_that_is_gone_is_not_reached(programs: Programs) -> None:
    ends = Ends(programs, B1)
    ends.say(0)
    ends.meets(1)
    key = abi.endpoint_key(B1.net.number, B1.ip)
    before = programs.maps["endpoints"][key]
    programs.maps["endpoints"].delete_many([key])
    try:
        programs.expect(A1, A1.sends(HOST, p.udp(OWN, ends.external[1])), SHOT, Reason.DROP_STALE)
    finally:
        programs.maps["endpoints"][key] = before


def test_the_outside_still_meets_both(programs: Programs) -> None:
    ends = Ends(programs, A3)
    ends.say(0)
    ends.meets(1)
    for member, external in zip(ends.members, ends.external, strict=True):
        wanted = member.gets(OUTSIDE, p.udp(53, OWN), ttl=63)
        programs.expect(None, outside_sends(HOST, p.udp(53, external)), REDIRECT, Reason.DELIVERED, wanted)


def test_a_published_port_goes_before_a_mapping(programs: Programs) -> None:
    got: Any = programs.run(A1, A1.sends(HOST, p.udp(OWN, 8081)))
    assert got.reasons == {"DELIVERED": 1}
    assert A2.number in {conn.to_endpoint for conn in programs.table("pending").values()}


def test_it_counts_for_both(make_programs: MakePrograms) -> None:
    programs = make_programs(max_conns=100)
    for member in (A1, A3):
        programs.maps["quotas"][abi.quota_key(member.number)] = abi.quota()
    ends = Ends(programs, A3)
    ends.say(0)
    for who in (1, 0, 1, 0):
        ends.meets(who)
    conns = {m.name: programs.maps["quotas"][abi.quota_key(m.number)].conns for m in (A1, A3)}
    assert conns == {"a1": 1, "a3": 1}
