# SPDX-License-Identifier: Apache-2.0
"""Limits of bandwidth: which packets an endpoint's buckets count, by how many bytes, and what they let through.

The rate is a byte a second, so that a bucket holds what a test has put into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from datapath.dataplane.layout import LIMIT_DIRECTIONS
from datapath.kernel import abi
from tests.bpf import names as n
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    HOST,
    HOST6,
    LO,
    NET1,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    Member,
    Programs,
    Reason,
    Sender,
    host_says,
    host_sends,
    outside_sends,
)
from tests.bpf.test_forwarding import change
from tests.bpf.test_fragments_race import CPUS, Other

SPORT = 20100
DATA = bytes(range(200))
RATE = 8  # bits a second
SECOND = 10**9
IDLE = 1000  # seconds that an empty bucket takes until it is full, or longer
INGRESS, EGRESS = LIMIT_DIRECTIONS["ingress"], LIMIT_DIRECTIONS["egress"]


class Limited:
    """A limit of one member in one direction, as the control plane makes it."""

    def __init__(self, programs: Programs, member: Member, direction: int) -> None:
        self.programs, self.member = programs, member
        self.key = abi.limit_key(member.number, direction)
        self._flag(direction)

    def _flag(self, direction: int) -> None:
        devices, endpoints = self.programs.maps["devices"], self.programs.maps["endpoints"]
        key = abi.device_key(self.programs.topology.index[self.member.name])
        devices[key] = devices[key]._replace(limited=direction)
        for known, value in list(endpoints.items()):
            if value.number == self.member.number:
                endpoints[known] = value._replace(limited=direction)

    def holds(self, size: int, *, left: int | None = None) -> None:
        """The bucket holds so many bytes, of which `left` are there (None: all of them)."""
        due = time.monotonic_ns() + (size - (size if left is None else left)) * SECOND
        self.programs.maps["limits"][self.key] = abi.limit(rate=RATE, burst=size * SECOND, due=due)

    @property
    def row(self) -> Any:
        return self.programs.maps["limits"][self.key]

    @property
    def taken(self) -> int:
        """Bytes that the bucket lacks."""
        return int((self.row.due - time.monotonic_ns()) // SECOND)

    def end(self) -> None:
        self._flag(0)
        self.programs.maps["limits"].delete_many(list(self.programs.maps["limits"]))


@pytest.fixture
def limit(programs: Programs) -> Iterator[Callable[[Member, int], Limited]]:
    made: list[Limited] = []

    def make(member: Member, direction: int) -> Limited:
        made.append(Limited(programs, member, direction))
        return made[-1]

    yield make
    for one in made:
        one.end()


class Way(NamedTuple):
    """A packet, whose bucket counts it, and what becomes of it while that has enough. `opening`: what comes before."""

    member: Member
    direction: int
    sender: Sender
    frame: bytes
    reason: Any
    opening: tuple[tuple[Sender, bytes], ...] = ()


ASK, REPLY = p.udp(SPORT, 53), p.udp(53, SPORT, DATA)
SENT = p.udp(SPORT, 53, DATA)
TO_A2, TO_A2_6 = A1.sends(A2.ip, SENT, to=A2.mac), A1.sends(A2.ip6, SENT, to=A2.mac)
WAYS = {
    "to a member": Way(A1, EGRESS, A1, TO_A2, Reason.DELIVERED),
    "to a member, IPv6": Way(A1, EGRESS, A1, TO_A2_6, Reason.DELIVERED),
    "to the host": Way(A1, EGRESS, A1, A1.sends(NET1.gateway, p.tcp(SPORT, 22, p.SYN)), Reason.TO_HOST),
    "to the outside": Way(A1, EGRESS, A1, A1.sends(OUTSIDE, SENT), Reason.TO_OUTSIDE),
    "to the outside, IPv6": Way(A1, EGRESS, A1, A1.sends(OUTSIDE6, SENT), Reason.TO_OUTSIDE),
    "to a published port": Way(B1, EGRESS, B1, B1.sends(HOST, p.udp(9, 8081, DATA)), Reason.DELIVERED),
    "to all": Way(A1, EGRESS, A1, A1.sends(NET1.broadcast, SENT, to=p.BROADCAST, fragment=0), Reason.FLOODED),
    "from a member": Way(A2, INGRESS, A1, TO_A2, Reason.DELIVERED),
    "from a member, IPv6": Way(A2, INGRESS, A1, TO_A2_6, Reason.DELIVERED),
    "from the host": Way(A2, INGRESS, NET1, host_sends(A2, SENT), Reason.DELIVERED),
    "an answer from outside": Way(
        A1, INGRESS, None, outside_sends(HOST, REPLY), Reason.DELIVERED, ((A1, A1.sends(OUTSIDE, ASK)),)
    ),
    "an answer from outside, IPv6": Way(
        A1, INGRESS, None, outside_sends(HOST6, REPLY), Reason.DELIVERED, ((A1, A1.sends(OUTSIDE6, ASK)),)
    ),
    "published, from outside": Way(
        A2, INGRESS, None, outside_sends(HOST, p.udp(9, 8081, DATA)), Reason.DELIVERED
    ),
    "published, from another network": Way(
        A2, INGRESS, B1, B1.sends(HOST, p.udp(9, 8081, DATA)), Reason.DELIVERED
    ),
    "published, from the host": Way(
        A2, INGRESS, LO, host_says("127.0.0.1", p.tcp(9, 8083, p.SYN)), Reason.DELIVERED
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_packet_is_counted_once_and_dropped_when_the_bucket_is_empty(
    programs: Programs, limit: Callable[[Member, int], Limited], name: str
) -> None:
    way = WAYS[name]
    for sender, frame in way.opening:
        programs.run(sender, frame)
    limited, size = limit(way.member, way.direction), len(way.frame)
    limited.holds(2 * size + size // 2)
    for number in (1, 2):
        got = programs.run(way.sender, way.frame)
        assert (got.verdict, got.reasons) == (REDIRECT, {way.reason.name: 1})
        assert abs(limited.taken - number * size) <= 1
    got = programs.run(way.sender, way.frame)
    assert (got.verdict, got.reasons) == (SHOT, {"DROP_BANDWIDTH": 1})
    assert (limited.row.packets, limited.row.bytes) == (1, size)
    assert abs(limited.taken - 2 * size) <= 1, "what was dropped takes nothing"


@pytest.mark.parametrize("name", WAYS)
def test_the_other_direction_and_other_endpoints_are_not_counted(
    programs: Programs, limit: Callable[[Member, int], Limited], name: str
) -> None:
    way = WAYS[name]
    limited = limit(way.member, INGRESS + EGRESS - way.direction)
    limited.holds(0, left=-IDLE)
    for sender, frame in way.opening:  # the question goes out; its answer is what this is about
        if limited.key.direction == EGRESS:
            limited.holds(10**6)
        programs.run(sender, frame)
    limited.holds(0, left=-IDLE)
    assert programs.run(way.sender, way.frame).reasons == {way.reason.name: 1}
    assert limited.row.packets == 0


def test_a_broadcast_goes_only_to_those_who_may_still_receive(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    frame = A1.sends(NET1.broadcast, SENT, to=p.BROADCAST, fragment=0)
    limited = limit(A2, INGRESS)
    programs.topology.received("a2")
    programs.topology.received("a3")
    limited.holds(len(frame))
    for expected in ([frame], []):
        assert programs.run(A1, frame).reasons == {"FLOODED": 1}
        assert [one for one in programs.topology.received("a2") if one == frame] == expected
        assert frame in programs.topology.received("a3")
    assert (limited.row.packets, limited.row.bytes) == (1, len(frame))


def test_an_error_of_the_programs_counts_as_received(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    frame = A1.sends(OUTSIDE, SENT, ttl=1)
    limited = limit(A1, INGRESS)
    limited.holds(10**6)
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TTL, p.own_error(frame, NET1.gateway))
    assert abs(limited.taken - len(p.own_error(frame, NET1.gateway))) <= 1
    limited.holds(10**6, left=0)
    got = programs.run(A1, frame)
    assert (got.verdict, got.reasons, limited.row.packets) == (SHOT, {"DROP_TTL": 1}, 1)


def test_a_question_for_a_name_counts_as_sent_and_its_answer_as_received(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    n.fill(programs)
    frame = A1.sends(n.RESOLVER, p.udp(SPORT, 53, n.question("web")), fragment=0)
    for direction in (EGRESS, INGRESS):
        limited = limit(A1, direction)
        limited.holds(10**6)
        got = programs.run(A1, frame)
        assert (got.verdict, got.reasons) == (REDIRECT, {"ANSWERED": 1})
        assert abs(limited.taken - len(frame if direction == EGRESS else got.packet)) <= 1
        limited.holds(10**6, left=0)
        got = programs.run(A1, frame)
        assert (got.verdict, got.reasons, limited.row.packets) == (SHOT, {"DROP_BANDWIDTH": 1}, 1)


def test_who_may_send_nothing_is_still_found(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    """ARP is between the container and its host, and lasts no longer than its table of neighbours."""
    limit(A1, EGRESS + INGRESS).holds(0, left=-IDLE)
    frame = p.ethernet(p.BROADCAST, A1.mac, p.ETH_ARP, p.arp(1, A1.mac, A1.ip, p.NOBODY, A2.ip))
    assert programs.run(A1, frame).reasons == {"ANSWERED": 1}


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["sent", "received"])
def test_a_large_packet_counts_the_headers_of_its_segments(
    programs: Programs, limit: Callable[[Member, int], Limited], direction: int, six: bool
) -> None:
    carried, size = p.tcp(SPORT, 80, p.ACK, bytes(3001)), 700
    frame = A1.sends(A2.ip6 if six else A2.ip, carried, to=A2.mac)
    headers = len(frame) - 3001
    limited = limit(A1 if direction == EGRESS else A2, direction)
    limited.holds(10**6)
    assert programs.run(A1, frame, gso=size).reasons == {"DELIVERED": 1}
    assert abs(limited.taken - (3001 + 5 * headers)) <= 1


def test_what_is_larger_than_the_bucket_passes_when_that_is_full_and_is_paid_for(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    limited = limit(A1, EGRESS)
    limited.holds(10)
    assert programs.run(A1, TO_A2).reasons == {"DELIVERED": 1}
    assert abs(limited.taken - len(TO_A2)) <= 1
    assert programs.run(A1, TO_A2).reasons == {"DROP_BANDWIDTH": 1}
    limited.holds(10, left=9)
    assert programs.run(A1, TO_A2).reasons == {"DROP_BANDWIDTH": 1}


def test_a_bucket_fills_at_its_rate(programs: Programs, limit: Callable[[Member, int], Limited]) -> None:
    """As time passes, no more than it holds, however long nothing came."""
    limited, size = limit(A1, EGRESS), len(TO_A2)
    now = time.monotonic_ns()
    row = abi.limit(rate=RATE, burst=3 * size * SECOND, due=now + (3 * size - 60) * SECOND)
    for ago, passes in ((0, 0), (size - 60 + 1, 1), (2 * size, 2), (IDLE * size, 3)):
        programs.maps["limits"][limited.key] = row._replace(due=max(row.due - ago * SECOND, 1))
        found = [programs.run(A1, TO_A2).reasons for _ in range(5)]
        assert found == [{"DELIVERED": 1}] * passes + [{"DROP_BANDWIDTH": 1}] * (5 - passes)


def test_the_last_eighth_of_a_bucket_is_for_small_packets(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    large = A1.sends(A2.ip, p.udp(SPORT, 53, bytes(257)), to=A2.mac)
    limited = limit(A1, EGRESS)
    limited.holds(8000, left=1000 + len(large) - 3)
    assert programs.run(A1, large).reasons == {"DROP_BANDWIDTH": 1}
    assert programs.run(A1, TO_A2).reasons == {"DELIVERED": 1}
    limited.holds(8000, left=1000 + len(large))
    assert programs.run(A1, large).reasons == {"DELIVERED": 1}
    for _ in range(1000 // len(TO_A2)):
        assert programs.run(A1, TO_A2).reasons == {"DELIVERED": 1}
    assert programs.run(A1, TO_A2).reasons == {"DROP_BANDWIDTH": 1}


@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["sent", "received"])
def test_what_goes_to_a_member_that_forwards_is_counted(
    programs: Programs, limit: Callable[[Member, int], Limited], direction: int
) -> None:
    frame = A1.sends("10.99.0.5", SENT, to=A3.mac)
    change(programs, A3, True)
    try:
        limited = limit(A1 if direction == EGRESS else A3, direction)
        for router in (abi.router_key(1, 0, A3.mac), abi.router_key(1, A3.number, p.NOBODY)):
            row = programs.maps["routers"][router]
            programs.maps["routers"][router] = row._replace(limited=direction if direction == INGRESS else 0)
        limited.holds(len(frame) + 60)
        assert programs.run(A1, frame).reasons == {"DELIVERED": 1}
        assert abs(limited.taken - len(frame)) <= 1
        assert programs.run(A1, frame).reasons == {"DROP_BANDWIDTH": 1}
    finally:
        change(programs, A3, False)


def test_who_has_no_row_has_no_limit(programs: Programs, limit: Callable[[Member, int], Limited]) -> None:
    limit(A1, EGRESS)
    assert programs.run(A1, TO_A2).reasons == {"DELIVERED": 1}


def test_pieces_of_a_datagram_are_counted_when_they_go_on(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    """One that waits for the first piece passes the hook again, and is counted then."""
    first, later = p.cut(A1.sends(OUTSIDE, SENT, fragment=0), 104)
    limited = limit(A1, EGRESS)
    limited.holds(10**6)
    assert programs.run(A1, later).reasons == {"HELD": 1}
    assert limited.taken <= 0
    programs.topology.received("va1")
    assert programs.run(A1, first).reasons == {"TO_OUTSIDE": 1}
    (again,) = (one for one in programs.topology.received("va1") if one[:12] == later[:12])
    assert programs.run(A1, again).reasons == {"TO_OUTSIDE": 1}
    assert abs(limited.taken - len(first) - len(later)) <= 1


def test_a_packet_that_is_cut_is_counted_once(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    frame = A1.sends(OUTSIDE, p.udp(SPORT, 53, bytes(2000)), fragment=0)
    limited = limit(A1, EGRESS)
    limited.holds(10**6)
    programs.topology.received("va1")
    assert programs.run(A1, frame).reasons == {"TO_OUTSIDE": 1}
    (rest,) = (one for one in programs.topology.received("va1") if one[:12] == frame[:12])
    if programs.run(A1, rest).reasons == {"TO_OUTSIDE": 1}:  # else it came too late to be known
        assert abs(limited.taken - len(frame)) <= 1


@pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU")
def test_two_cpus_at_once_get_no_more_than_the_bucket_holds(
    programs: Programs, limit: Callable[[Member, int], Limited]
) -> None:
    """Nor do they take from each other more than a few packets, as both look at what is left."""
    limited, wanted = limit(A1, EGRESS), 300
    limited.holds((wanted + 1) * len(TO_A2) - 60)
    other = Other(programs)
    try:
        passed = sum(verdict == REDIRECT for _ in range(wanted) for verdict in other.at_once(TO_A2, TO_A2))
    finally:
        other.close()
    assert wanted - 1 <= passed <= wanted
    assert limited.row.packets == 2 * wanted - passed
    assert limited.row.bytes == limited.row.packets * len(TO_A2)
