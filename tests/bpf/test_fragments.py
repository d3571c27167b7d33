# SPDX-License-Identifier: Apache-2.0
"""Fragments where ports decide: in order, out of order, overlapping, doubled, too many, too late. What was kept
comes again on a real device, and is then given to the program as the kernel would."""

from __future__ import annotations

import itertools
import time
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    B2,
    HOST,
    HOST6,
    NAT_FIRST,
    NAT_LAST,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    Member,
    Outcome,
    Programs,
    Reason,
    host_sends,
    outside_sends,
)

BOTH_UPLINKS = True
SPORT = 20100
DATA = bytes(range(1, 57))  # with a UDP header 64 bytes
ENDS = (24, 40)  # three pieces; a TCP header fits the first
Opening = tuple[tuple[Member | None, bytes], ...]


class Way(NamedTuple):
    """A datagram: who sends it (None: the outside), whole, and what it would become whole."""

    opening: Opening  # packets that come before
    sender: Member | None
    frame: bytes
    reason: Any
    out: bytes

    @property
    def device(self) -> str:
        """The one that it arrives at on the host."""
        return f"v{self.sender.name}" if self.sender else "up0"


def to_outside(member: Member, carried: p.Transport) -> Way:
    return Way(
        (), member, member.sends(OUTSIDE, carried), Reason.TO_OUTSIDE, member.leaves(HOST, OUTSIDE, carried)
    )


def to_outside6(member: Member, carried: p.Transport) -> Way:
    return Way(
        (),
        member,
        member.sends(OUTSIDE6, carried),
        Reason.TO_OUTSIDE,
        member.leaves(HOST6, OUTSIDE6, carried),
    )


ASK, REPLY = p.udp(SPORT, 53), p.udp(53, SPORT, DATA)
WAYS = {
    "masqueraded UDP": to_outside(A1, p.udp(SPORT, 53, DATA)),
    "masqueraded UDP without checksum": to_outside(A1, p.udp(SPORT, 53, DATA, summed=False)),
    "masqueraded TCP": to_outside(A1, p.tcp(SPORT, 80, p.ACK, DATA)),
    "masqueraded ping": to_outside(A1, p.echo(p.ECHO, SPORT, DATA)),
    "masqueraded UDP, IPv6": to_outside6(A1, p.udp(SPORT, 53, DATA)),
    "masqueraded TCP, IPv6": to_outside6(A1, p.tcp(SPORT, 80, p.ACK, DATA)),
    "masqueraded ping, IPv6": to_outside6(A1, p.echo6(p.ECHO6, SPORT, DATA)),
    "an answer": Way(
        ((A1, A1.sends(OUTSIDE, ASK)),),
        None,
        outside_sends(HOST, REPLY),
        Reason.DELIVERED,
        A1.gets(OUTSIDE, REPLY, ttl=63),
    ),
    "an answer, IPv6": Way(
        ((A1, A1.sends(OUTSIDE6, ASK)),),
        None,
        outside_sends(HOST6, REPLY),
        Reason.DELIVERED,
        A1.gets(OUTSIDE6, REPLY, hops=63),
    ),
    "published": Way(
        (),
        None,
        outside_sends(HOST, p.udp(9, 8081, DATA)),
        Reason.DELIVERED,
        A2.gets(OUTSIDE, p.udp(9, 53, DATA), ttl=63),
    ),
    "published, IPv6": Way(
        (),
        None,
        outside_sends(HOST6, p.udp(9, 8081, DATA)),
        Reason.DELIVERED,
        A2.gets(OUTSIDE6, p.udp(9, 53, DATA), hops=63),
    ),
    "published, from another network": Way(
        (),
        B1,
        B1.sends(HOST, p.udp(9, 8081, DATA)),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.udp(9, 53, DATA), ttl=63),
    ),
    "published, hairpin, IPv6": Way(
        (),
        A1,
        A1.sends(HOST6, p.udp(SPORT, 8081, DATA)),
        Reason.DELIVERED,
        A2.gets(A2.net.gateway6, p.udp(SPORT, 53, DATA), hops=63),
    ),
    "linked without icc": Way(
        (),
        B1,
        B1.sends(B2.ip, p.udp(9, 53, DATA), to=B2.mac),
        Reason.DELIVERED,
        B2.gets(B1.ip, p.udp(9, 53, DATA), by=B1.mac),
    ),
    "linked without icc, IPv6": Way(
        (),
        B1,
        B1.sends(B2.ip6, p.udp(9, 53, DATA), to=B2.mac),
        Reason.DELIVERED,
        B2.gets(B1.ip6, p.udp(9, 53, DATA), by=B1.mac),
    ),
    "to the host": Way(
        (),
        A1,
        A1.sends(HOST, p.udp(9, 40000, DATA)),
        Reason.TO_HOST,
        A1.sends(HOST, p.udp(9, 40000, DATA)),
    ),
    "to the host, IPv6": Way(
        (),
        A1,
        A1.sends(HOST6, p.udp(9, 40000, DATA)),
        Reason.TO_HOST,
        A1.sends(HOST6, p.udp(9, 40000, DATA)),
    ),
}
BOTH = pytest.mark.parametrize(
    "name", ["masqueraded UDP", "masqueraded UDP, IPv6", "published", "published, IPv6"]
)


def begin(programs: Programs, name: str) -> Way:
    way = WAYS[name]
    for sender, packet in way.opening:
        programs.run(sender, packet)
    programs.topology.received(way.device)
    return way


def again(programs: Programs, way: Way) -> list[bytes]:
    """What has come again at the device. (The host itself may ask for a neighbour there.)"""
    return [frame for frame in programs.topology.received(way.device) if frame[:12] == way.frame[:12]]


def passes(programs: Programs, way: Way, piece: bytes, out: bytes) -> None:
    programs.expect(way.sender, piece, REDIRECT, way.reason, out)


def waits(programs: Programs, way: Way, piece: bytes) -> None:
    """A container's is kept; of one from outside a copy, as it may be the host's."""
    if way.sender:
        programs.expect(way.sender, piece, SHOT, Reason.HELD)
    else:
        assert programs.run(None, piece) == Outcome(UNSPEC, {"NOT_OURS": 1, "HELD": 1}, piece)


def refused(programs: Programs, way: Way, piece: bytes, reason: Any = Reason.DROP_OVERLAP) -> None:
    programs.expect(way.sender, piece, SHOT, reason)


def left(programs: Programs) -> tuple[int, int]:
    """Datagrams that are followed, frames that are kept."""
    return len(list(programs.maps["fragments"])), len(list(programs.maps["frag_queue"]))


@pytest.mark.ethernet
@pytest.mark.parametrize(
    "order", list(itertools.permutations(range(3))), ids=lambda order: "".join(map(str, order))
)
@pytest.mark.parametrize("name", WAYS)
def test_every_order(programs: Programs, name: str, order: tuple[int, ...]) -> None:
    """Each piece arrives once, translated as the whole would be; nothing is left of it."""
    way = begin(programs, name)
    pieces, outs = p.cut(way.frame, *ENDS), p.cut(way.out, *ENDS)
    seen = order.index(0)
    for place, index in enumerate(order):
        if place < seen:
            waits(programs, way, pieces[index])
            continue
        passes(programs, way, pieces[index], outs[index])
        if place == seen:
            kept = again(programs, way)
            assert kept == [pieces[i] for i in order[:seen]]
            for frame in kept:
                passes(programs, way, frame, outs[pieces.index(frame)])
        else:
            assert again(programs, way) == []
    assert left(programs) == (0, 0)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_a_port_that_was_changed(programs: Programs, six: bool) -> None:
    """Only the first fragment has one: the later ones get the addresses alone. (0 is no port to be kept.)"""
    host, outside = (HOST6, OUTSIDE6) if six else (HOST, OUTSIDE)
    got = [programs.run(A1, piece).packet for piece in p.cut(A1.sends(outside, p.udp(0, 53, DATA)), *ENDS)]
    at = 62 if six else 34
    chosen = int.from_bytes(got[0][at : at + 2], "big")
    assert NAT_FIRST <= chosen <= NAT_LAST
    assert got == p.cut(A1.leaves(host, outside, p.udp(chosen, 53, DATA)), *ENDS)


OVERLAPS = {
    "begins within the first": (16, 40),
    "begins a little before its end": (16, 24),
    "lies within the second": (32, 40),
    "is the beginning of the second": (24, 32),
    "covers the second": (24, 48),
    "covers everything": (8, 64),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@BOTH
def test_overlap_loses_the_datagram(programs: Programs, name: str, overlap: str) -> None:
    """RFC 5722: what came before has passed, nothing more does, until the number is used for another."""
    way = begin(programs, name)
    first, second, last = p.cut(way.frame, *ENDS)
    outs = p.cut(way.out, *ENDS)
    passes(programs, way, first, outs[0])
    passes(programs, way, second, outs[1])
    refused(programs, way, p.piece(way.frame, *OVERLAPS[overlap], True))
    refused(programs, way, last)
    refused(programs, way, second)
    for piece, out in zip(p.cut(way.frame, *ENDS, ident=77), p.cut(way.out, *ENDS, ident=77), strict=True):
        passes(programs, way, piece, out)


@pytest.mark.ethernet
@BOTH
def test_overlap_with_what_was_kept(programs: Programs, name: str) -> None:
    way = begin(programs, name)
    first, _, last = p.cut(way.frame, *ENDS)
    waits(programs, way, last)
    waits(programs, way, p.piece(way.frame, 32, 48, True))
    passes(programs, way, first, p.cut(way.out, *ENDS)[0])
    kept = again(programs, way)
    assert len(kept) == 2
    passes(programs, way, kept[0], p.cut(way.out, *ENDS)[2])
    refused(programs, way, kept[1])


@BOTH
def test_what_lies_behind_the_end_loses_the_datagram(programs: Programs, name: str) -> None:
    """The last fragment says where it is; there is one last fragment."""
    way = begin(programs, name)
    longer = way.frame + bytes(64)
    first, second, last = p.cut(way.frame, *ENDS)
    outs = p.cut(way.out, *ENDS)
    for more in (True, False):
        passes(programs, way, first, outs[0])
        passes(programs, way, last, outs[2])
        refused(programs, way, p.piece(longer, 64, 72, more))
        refused(programs, way, second)
    passes(programs, way, first, outs[0])
    passes(programs, way, second, outs[1])
    refused(programs, way, p.piece(way.frame, 24, 32, False))


@pytest.mark.parametrize("twice", [0, 1])
@BOTH
def test_a_double_does_no_harm(programs: Programs, name: str, twice: int) -> None:
    """Networks double packets (RFC 8200, 4.5): the second of the two goes no further, the datagram does."""
    way = begin(programs, name)
    for index, (piece, out) in enumerate(zip(p.cut(way.frame, *ENDS), p.cut(way.out, *ENDS), strict=True)):
        passes(programs, way, piece, out)
        if index == twice:
            for _ in range(70):
                if index:
                    refused(programs, way, piece)
                else:  # or it is of a newer datagram: nobody can tell
                    passes(programs, way, piece, out)
    assert left(programs) == (0, 0)


@pytest.mark.ethernet
@BOTH
def test_a_double_that_was_kept(programs: Programs, name: str) -> None:
    way = begin(programs, name)
    first, second, last = p.cut(way.frame, *ENDS)
    outs = p.cut(way.out, *ENDS)
    waits(programs, way, second)
    waits(programs, way, second)
    passes(programs, way, first, outs[0])
    assert again(programs, way) == [second]
    passes(programs, way, second, outs[1])
    refused(programs, way, second)
    passes(programs, way, last, outs[2])
    assert left(programs) == (0, 0)


def many(frame: bytes, count: int) -> list[bytes]:
    """So many pieces of 8 bytes."""
    return p.cut(frame, *range(8, 8 * count, 8))


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_64_pieces_are_followed_and_no_more(programs: Programs, six: bool) -> None:
    """64 KiB over a way of 1280 bytes are 53."""
    for count in (64, 65):
        carried = p.udp(SPORT, 53, bytes(8 * count - 8))
        way = to_outside6(A1, carried) if six else to_outside(A1, carried)
        for index, (piece, out) in enumerate(zip(many(way.frame, count), many(way.out, count), strict=True)):
            if index < 64:
                passes(programs, way, piece, out)
            else:
                refused(programs, way, piece, Reason.DROP_FRAGMENT)
        assert left(programs) == (count - 64, 0)
        programs.forget()


@pytest.mark.ethernet
@BOTH
def test_8_are_kept_and_no_more(programs: Programs, name: str) -> None:
    """The ninth of a container's is lost; of one from outside the host alone has it."""
    way = begin(programs, name)
    pieces, outs = p.cut(way.frame, *range(8, 64, 8)), p.cut(way.out, *range(8, 64, 8))
    more = p.piece(way.frame + bytes(8), 64, 72, True)
    last = p.piece(way.frame + bytes(16), 72, 80, False)
    kept = [*pieces[:0:-1], more]
    for piece in kept:
        waits(programs, way, piece)
    if way.sender:
        refused(programs, way, last, Reason.DROP_FRAGMENT)
    else:
        programs.expect(None, last, UNSPEC, Reason.NOT_OURS)
    assert left(programs)[1] == 8
    passes(programs, way, pieces[0], outs[0])
    assert again(programs, way) == kept
    assert left(programs)[1] == 0


def test_a_fragment_too_long_to_be_kept(programs: Programs) -> None:
    way = to_outside(A1, p.udp(SPORT, 53, bytes(2600)))
    long = p.piece(way.frame, 16, 2608, False)
    refused(programs, way, long, Reason.DROP_FRAGMENT)
    first = p.piece(way.frame, 0, 16, True)
    passes(programs, way, first, p.piece(way.out, 0, 16, True))
    passes(programs, way, p.piece(way.frame, 16, 1016, True), p.piece(way.out, 16, 1016, True))


def age(programs: Programs, name: str) -> None:
    """What is in the table was seen 31 s ago."""
    table = programs.maps[name]
    for key in list(table):
        table[key] = table[key]._replace(since=time.monotonic_ns() - 31 * 10**9)


@pytest.mark.ethernet
@BOTH
def test_after_30_seconds_a_datagram_is_forgotten(programs: Programs, name: str) -> None:
    way = begin(programs, name)
    first, second, last = p.cut(way.frame, *ENDS)
    outs = p.cut(way.out, *ENDS)
    passes(programs, way, first, outs[0])
    age(programs, "fragments")
    waits(programs, way, last)
    # The number is used again: its own first fragment is none of the earlier one's doubles.
    passes(programs, way, first, outs[0])
    assert again(programs, way) == [last]
    passes(programs, way, last, outs[2])
    passes(programs, way, second, outs[1])
    assert left(programs) == (0, 0)


@pytest.mark.ethernet
@BOTH
def test_after_30_seconds_what_was_kept_does_not_come_again(programs: Programs, name: str) -> None:
    way = begin(programs, name)
    first, second, last = p.cut(way.frame, *ENDS)
    waits(programs, way, last)
    age(programs, "frag_queue")
    waits(programs, way, second)
    passes(programs, way, first, p.cut(way.out, *ENDS)[0])
    assert again(programs, way) == [second]
    assert left(programs)[1] == 0


@BOTH
def test_a_number_is_used_again_for_other_ports(programs: Programs, name: str) -> None:
    """A complete datagram leaves nothing: the next one has ports of its own."""
    way = begin(programs, name)
    for piece, out in zip(p.cut(way.frame, *ENDS), p.cut(way.out, *ENDS), strict=True):
        passes(programs, way, piece, out)
    six = name.endswith("6")
    if way.sender:
        carried = p.udp(SPORT + 1, 54, DATA)
        other = to_outside6(A1, carried) if six else to_outside(A1, carried)
    else:
        frame = outside_sends(HOST6 if six else HOST, p.udp(10, 8081, DATA))
        hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
        out = A2.gets(OUTSIDE6 if six else OUTSIDE, p.udp(10, 53, DATA), **hop)
        other = Way((), None, frame, Reason.DELIVERED, out)
    for piece, out in zip(p.cut(other.frame, *ENDS), p.cut(other.out, *ENDS), strict=True):
        passes(programs, other, piece, out)


def another(name: str) -> Way:
    """A datagram like that of the way, from the same sender, for another container or from another port."""
    six = name.endswith("6")
    if WAYS[name].sender:
        carried = p.udp(SPORT + 1, 54, DATA)
        return to_outside6(A1, carried) if six else to_outside(A1, carried)
    host, outside = (HOST6, OUTSIDE6) if six else (HOST, OUTSIDE)
    answer = p.udp(53, SPORT + 7, DATA)
    opening = ((B1, B1.sends(outside, p.udp(SPORT + 7, 53))),)
    hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
    return Way(
        opening,
        None,
        outside_sends(host, answer),
        Reason.DELIVERED,
        B1.gets(outside, answer, **hop),
    )


@pytest.mark.parametrize("lost", [1, 2])
@BOTH
def test_a_number_is_used_again_after_a_loss(programs: Programs, name: str, lost: int) -> None:
    """Of a datagram a fragment was lost. The next one with its number arrives whole, where it belongs, at once."""
    way, other = begin(programs, name), another(name)
    for sender, packet in other.opening:
        programs.run(sender, packet)
    for index in range(3):
        if index != lost:
            passes(programs, way, p.cut(way.frame, *ENDS)[index], p.cut(way.out, *ENDS)[index])
    for piece, out in zip(p.cut(other.frame, *ENDS), p.cut(other.out, *ENDS), strict=True):
        passes(programs, other, piece, out)
    assert left(programs) == (0, 0)


@BOTH
def test_a_number_is_used_again_after_an_overlap(programs: Programs, name: str) -> None:
    way = begin(programs, name)
    pieces, outs = p.cut(way.frame, *ENDS), p.cut(way.out, *ENDS)
    passes(programs, way, pieces[0], outs[0])
    passes(programs, way, pieces[1], outs[1])
    refused(programs, way, p.piece(way.frame, 32, 48, True))
    for first in (p.piece(way.frame, 0, 32, True), p.piece(way.frame, 0, 16, True)):
        programs.expect(way.sender, first, REDIRECT, way.reason, p.piece(way.out, *bounds(first), True))
    for piece, out in zip(pieces, outs, strict=True):
        passes(programs, way, piece, out)
    assert left(programs) == (0, 0)


def bounds(first: bytes) -> tuple[int, int]:
    """From where to where the first fragment of one of the ways goes."""
    return 0, len(first) - (34 if p.ethertype(first) == p.ETH_IPV4 else 62)


def next_ones(programs: Programs, way: Way, count: int) -> None:
    """So many datagrams of the same sender, first fragment and last."""
    for ident in range(1000, 1000 + count):
        for piece in p.cut(way.frame, 24, ident=ident):
            assert programs.run(way.sender, piece).verdict == REDIRECT


@pytest.mark.ethernet
@BOTH
def test_64_datagrams_later_a_number_means_another_one(programs: Programs, name: str) -> None:
    """As in the kernel (net.ipv4.ipfrag_max_dist): a fragment that overtakes its first is not taken for the end of a
    datagram of long ago."""
    way, other = begin(programs, name), another(name)
    for sender, packet in other.opening:
        programs.run(sender, packet)
    pieces, outs = p.cut(other.frame, *ENDS), p.cut(other.out, *ENDS)
    passes(programs, way, p.cut(way.frame, *ENDS)[0], p.cut(way.out, *ENDS)[0])
    next_ones(programs, way, 63)
    passes(programs, way, p.cut(way.frame, *ENDS)[1], p.cut(way.out, *ENDS)[1])
    next_ones(programs, way, 1)
    waits(programs, other, pieces[2])
    passes(programs, other, pieces[0], outs[0])
    assert again(programs, other) == [pieces[2]]
    passes(programs, other, pieces[2], outs[2])
    passes(programs, other, pieces[1], outs[1])
    assert left(programs) == (0, 0)


@pytest.mark.ethernet
@BOTH
def test_what_was_queued_for_an_earlier_datagram_does_not_come_again(programs: Programs, name: str) -> None:
    """It lies where the first one of the new datagram does, or its sender has begun 8 others since."""
    way = begin(programs, name)
    first, second, last = p.cut(way.frame, *ENDS)
    outs = p.cut(way.out, *ENDS)
    waits(programs, way, p.piece(way.frame, 16, 24, True))
    waits(programs, way, second)
    passes(programs, way, first, outs[0])
    assert again(programs, way) == [second]
    passes(programs, way, second, outs[1])
    passes(programs, way, last, outs[2])
    waits(programs, way, second)
    next_ones(programs, way, 8)
    passes(programs, way, first, outs[0])
    assert again(programs, way) == []
    passes(programs, way, second, outs[1])
    passes(programs, way, last, outs[2])
    assert left(programs) == (0, 0)


@pytest.mark.parametrize("begins", ["first", "later"])
def test_who_floods_numbers_forgets_its_own(programs: Programs, begins: str) -> None:
    """Others' datagrams, and what waits for their first fragments, stay, whatever one container sends."""
    there, waiting = to_outside(A2, p.udp(SPORT, 53, DATA)), to_outside6(B1, p.udp(SPORT, 53, DATA))
    pieces, outs = p.cut(there.frame, *ENDS), p.cut(there.out, *ENDS)
    passes(programs, there, pieces[0], outs[0])
    passes(programs, there, pieces[1], outs[1])
    programs.topology.received(waiting.device)
    waits(programs, waiting, p.cut(waiting.frame, *ENDS)[1])
    waits(programs, waiting, p.cut(waiting.frame, *ENDS)[2])
    frame = A1.sends(OUTSIDE, p.udp(SPORT, 53, DATA))
    for ident in range(
        300
    ):  # Several times its share, and done well within the 30 s that the others' are kept.
        for at in (0,) if begins == "first" else (24, 32, 40):
            programs.run(A1, p.piece(frame, at, at + (24 if not at else 8), True, ident=ident))
    programs.counted()
    datagrams, frames = left(programs)
    assert datagrams <= 2 + 64 and frames <= 2 + 64
    passes(programs, there, pieces[2], outs[2])
    passes(programs, waiting, p.cut(waiting.frame, *ENDS)[0], p.cut(waiting.out, *ENDS)[0])
    assert again(programs, waiting) == p.cut(waiting.frame, *ENDS)[1:]


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "order", list(itertools.permutations(range(3))), ids=lambda order: "".join(map(str, order))
)
def test_the_hosts_own_are_left_alone(programs: Programs, six: bool, order: tuple[int, ...]) -> None:
    """It gets each of them, once; copies are thrown away when it is known whose they are."""
    way = Way((), None, outside_sends(HOST6 if six else HOST, p.udp(9, 40000, DATA)), Reason.NOT_OURS, b"")
    pieces = p.cut(way.frame, *ENDS)
    programs.topology.received("up0")
    for place, index in enumerate(order):
        if place < order.index(0):
            waits(programs, way, pieces[index])
        else:
            programs.expect(None, pieces[index], UNSPEC, Reason.NOT_OURS)
    assert again(programs, way) == []
    assert left(programs)[1] == 0
    assert not programs.table("pending")


def test_a_number_of_the_hosts_is_used_again_for_ours(programs: Programs) -> None:
    way = begin(programs, "published")
    first = p.piece(outside_sends(HOST, p.udp(9, 40000, DATA)), 0, 24, True)
    programs.expect(None, first, UNSPEC, Reason.NOT_OURS)
    for piece, out in zip(p.cut(way.frame, *ENDS), p.cut(way.out, *ENDS), strict=True):
        passes(programs, way, piece, out)


def test_what_is_not_the_containers_to_reach_stays_so(programs: Programs) -> None:
    """The kept ones come again, and get the verdict of their first."""
    for dst, reason in ((B1.ip, Reason.DROP_ISOLATED), (B1.ip6, Reason.DROP_ISOLATED)):
        way = Way((), A1, A1.sends(dst, p.udp(9, 53, DATA)), reason, b"")
        first, second, last = p.cut(way.frame, *ENDS)
        programs.topology.received("va1")
        waits(programs, way, last)
        refused(programs, way, first, reason)
        assert again(programs, way) == [last]
        refused(programs, way, last, reason)
        refused(programs, way, second, reason)
    way = Way((), B1, B1.sends(B2.ip, p.udp(9, 54, DATA), to=B2.mac), Reason.DROP_ICC, b"")
    for piece in p.cut(way.frame, *ENDS):
        refused(programs, way, piece, Reason.DROP_ICC)


def test_numbers_of_different_senders_are_not_mixed(programs: Programs) -> None:
    """The same number, addresses and ports from two containers, of two protocols, and from outside."""
    udp1, udp2 = to_outside(A1, p.udp(SPORT, 53, DATA)), to_outside(A2, p.udp(SPORT + 1, 53, DATA))
    tcp1 = to_outside(A1, p.tcp(SPORT + 2, 80, p.ACK, DATA))
    published = WAYS["published"]
    for index in range(3):
        for way in (udp1, udp2, tcp1, published):
            passes(programs, way, p.cut(way.frame, *ENDS)[index], p.cut(way.out, *ENDS)[index])
    assert left(programs) == (0, 0)


def test_among_members_who_may_talk_nothing_is_followed(programs: Programs) -> None:
    """They are packets like any others, in any order; the receiver's kernel puts them together."""
    for dst in (A2.ip, A2.ip6):
        pieces = p.cut(A1.sends(dst, p.udp(9, 53, DATA), to=A2.mac), *ENDS)
        for piece in (*reversed(pieces), pieces[1]):
            programs.expect(A1, piece, REDIRECT, Reason.DELIVERED)
    assert left(programs) == (0, 0)


def test_from_the_host_nothing_is_followed(programs: Programs) -> None:
    for piece in reversed(p.cut(host_sends(A1, p.udp(9, 53, DATA)), *ENDS)):
        programs.expect(A1.net, piece, REDIRECT, Reason.DELIVERED)
    assert left(programs) == (0, 0)


LIES = {
    "the ping of death: beyond 64 KiB": A1.sends(OUTSIDE, p.Transport(p.UDP, bytes(1400)), fragment=0x1FFF),
    "IPv6, beyond 64 KiB": A1.sends(
        OUTSIDE6, p.Transport(p.UDP, bytes(1400)), extensions=(p.fragment_header(65528, False),)
    ),
    "a first one that ends within TCP's header": p.piece(A1.sends(OUTSIDE, p.tcp(9, 53, p.SYN)), 0, 16, True),
    "IPv6, a first one without transport header": p.piece(A1.sends(OUTSIDE6, p.udp(9, 53)), 0, 0, True),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(programs: Programs, name: str) -> None:
    programs.expect(A1, LIES[name], SHOT, Reason.DROP_TRUNCATED)
    assert left(programs) == (0, 0)


def test_later_ones_may_name_another_header(programs: Programs) -> None:
    """IPv6: each names what the first begins with, here options before UDP (RFC 8200, 4.5)."""
    options = (p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4))
    frame = A1.sends(OUTSIDE6, p.udp(SPORT, 53, DATA), extensions=(options,))
    out = A1.leaves(HOST6, OUTSIDE6, p.udp(SPORT, 53, DATA), extensions=(options,))
    way = Way((), A1, frame, Reason.TO_OUTSIDE, out)
    for piece, came in zip(p.cut(frame, *ENDS), p.cut(out, *ENDS), strict=True):
        assert piece[54] == p.DESTINATION_OPTIONS
        passes(programs, way, piece, came)
    assert left(programs) == (0, 0)


def test_of_a_denied_source_no_piece_gets_in(programs: Programs) -> None:
    key = abi.port_key(IPv4Address("0.0.0.0"), 8081, p.UDP)
    port = programs.maps["ports"][key]
    programs.maps["ports"][key] = port._replace(acl=1, default_deny=1)
    try:
        way = WAYS["published"]
        first, second, _ = p.cut(way.frame, *ENDS)
        refused(programs, way, first, Reason.DROP_DENIED)
        refused(programs, way, second, Reason.DROP_FRAGMENT)
    finally:
        programs.maps["ports"][key] = port
