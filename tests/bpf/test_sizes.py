# SPDX-License-Identifier: Apache-2.0
"""Packets that are larger than their way takes, and may be cut: into fragments, whole and once each, as a router does
(RFC 791, 3.2; RFC 1812, 5.2.6). The rest of one arrives once more at its device, and is then given to the program."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    HOST,
    HOST6,
    NET2,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    Member,
    Programs,
    Reason,
    outside_sends,
    wait_until,
)

SPORT = 20100
UPLINK_MTU, NARROW = 1500, 1280
DATA = bytes(index % 251 for index in range(3400))
REST_LASTS = 1.0  # seconds that a rest is waited for: CUT_TIMEOUT of lib/cuts.h
ATTEMPTS = 20


class RestIsLateError(Exception):
    """This machine was too slow for the rest to be waited for."""


def in_time(test: Callable[..., None]) -> Callable[..., None]:
    """A test whose rests have to arrive in time begins anew where one was late, on a busy or an emulated machine."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        programs = next(fixture for fixture in fixtures.values() if isinstance(fixture, Programs))
        for _ in range(ATTEMPTS - 1):
            try:
                return test(**fixtures)
            except RestIsLateError:
                programs.forget()
        return test(**fixtures)

    return run


@pytest.fixture
def narrow(programs: Programs) -> Iterator[Programs]:
    """Network 1 takes 1280 bytes."""
    networks = programs.maps["networks"]
    before = networks[1]
    networks[1] = before._replace(mtu=NARROW)
    yield programs
    networks[1] = before


def fragments(frame: bytes, mtu: int, ident: int = 0x1234) -> list[bytes]:
    """What a router makes of it."""
    size = (frame[14] & 15) * 4
    step = (mtu - size) & ~7
    return p.cut(frame, *range(step, len(frame) - 14 - size, step), ident=ident)


def passes(programs: Programs, sender: Member | None, frame: bytes, reason: str) -> list[bytes]:
    """What becomes of the packet: the first piece at once, and the others when they have arrived again, one by one.
    RestIsLateError."""
    device, topology = f"v{sender.name}" if sender else "up0", programs.topology
    outs: list[bytes] = []

    def same_way(one: bytes) -> bool:
        return one[:12] == frame[:12]

    topology.received(device)
    coming, cut = frame, time.monotonic()
    while True:
        began = time.monotonic()
        got = programs.run(sender, coming)
        if outs and got.reasons == {"HELD": 1} and time.monotonic() - cut > REST_LASTS:
            raise RestIsLateError
        cut = began
        assert (got.verdict, got.reasons) == (REDIRECT, {reason: 1})
        outs.append(got.packet)
        if carried(got.packet) >= carried(coming):
            break
        coming = topology.arrives(device, same_way)  # at once: it is not waited for long
    assert not [one for one in topology.received(device) if same_way(one)]
    assert not list(programs.maps["frag_queue"])
    return outs


def carried(frame: bytes) -> int:
    """Bytes behind the IPv4 header."""
    return int.from_bytes(frame[16:18], "big") - (frame[14] & 15) * 4


class Way(NamedTuple):
    opening: tuple[Member, bytes] | None
    sender: Member | None
    frame: bytes
    reason: str
    out: bytes
    mtu: int


def ways(size: int) -> dict[str, Way]:
    """Packets with so many bytes of data, and what they would become whole."""
    data = DATA[:size]
    loose: dict[str, Any] = {"fragment": 0}
    ask, reply = p.udp(SPORT, 53, data), p.udp(53, SPORT, data)
    published = p.udp(9, 53, data)
    return {
        "masqueraded": Way(
            None,
            A1,
            A1.sends(OUTSIDE, ask, **loose),
            "TO_OUTSIDE",
            A1.leaves(HOST, OUTSIDE, ask, **loose),
            UPLINK_MTU,
        ),
        "masqueraded TCP": Way(
            None,
            A1,
            A1.sends(OUTSIDE, p.tcp(SPORT, 80, p.ACK, data), **loose),
            "TO_OUTSIDE",
            A1.leaves(HOST, OUTSIDE, p.tcp(SPORT, 80, p.ACK, data), **loose),
            UPLINK_MTU,
        ),
        "masqueraded ping": Way(
            None,
            A1,
            A1.sends(OUTSIDE, p.echo(p.ECHO, SPORT, data), **loose),
            "TO_OUTSIDE",
            A1.leaves(HOST, OUTSIDE, p.echo(p.ECHO, SPORT, data), **loose),
            UPLINK_MTU,
        ),
        "an answer": Way(
            (A1, A1.sends(OUTSIDE, p.udp(SPORT, 53))),
            None,
            outside_sends(HOST, reply, **loose),
            "DELIVERED",
            A1.gets(OUTSIDE, reply, ttl=63, **loose),
            NARROW,
        ),
        "published": Way(
            None,
            None,
            outside_sends(HOST, p.udp(9, 8081, data), **loose),
            "DELIVERED",
            A2.gets(OUTSIDE, published, ttl=63, **loose),
            NARROW,
        ),
        "published, its last hop": Way(
            None,
            None,
            outside_sends(HOST, p.udp(9, 8081, data), ttl=1, **loose),
            "DELIVERED",
            A2.gets(OUTSIDE, published, ttl=1, **loose),
            NARROW,
        ),
        "published, from another network": Way(
            None,
            B1,
            B1.sends(HOST, p.udp(9, 8081, data), **loose),
            "DELIVERED",
            A2.gets(B1.ip, published, ttl=63, **loose),
            NARROW,
        ),
    }


@pytest.mark.parametrize("size", [1473, 2952, 2961, 3400])
@pytest.mark.parametrize("name", ways(0))
@in_time
def test_a_packet_is_cut_for_its_way(narrow: Programs, name: str, size: int) -> None:
    """All of its bytes leave once, in fragments as long as the way takes."""
    way = ways(size)[name]
    if way.opening:
        narrow.run(*way.opening)
    assert passes(narrow, way.sender, way.frame, way.reason) == fragments(way.out, way.mtu)
    assert not list(narrow.maps["fragments"]), (
        "a packet that is cut here is no datagram that comes in fragments"
    )


@pytest.mark.parametrize("name", ways(0))
@in_time
def test_fragments_are_cut_again(narrow: Programs, name: str) -> None:
    """Each by itself: in whichever order they come, and though the last one has made the datagram complete."""
    way = ways(3400)[name]
    if way.opening:
        narrow.run(*way.opening)
    whole = p.cut(way.frame, 1600, 3112)
    wanted = p.cut(way.out, 1600, 3112)
    for index in (0, 2, 1):
        cut = fragments(wanted[index], way.mtu)
        # It lies somewhere, and there may be more behind it.
        cut = [moved(piece, wanted[index]) for piece in cut] if len(cut) > 1 else [wanted[index]]
        assert passes(narrow, way.sender, whole[index], way.reason) == cut
    assert not list(narrow.maps["fragments"])


@in_time
def test_a_packet_to_another_containers_external_port_is_cut(narrow: Programs) -> None:
    """Both have told a server outside of themselves, and a1 has sent to b1 already."""
    for member, port in ((A1, 40000), (B1, 40001)):
        assert narrow.run(member, member.sends(OUTSIDE, p.udp(port, 53))).reasons == {"TO_OUTSIDE": 1}
    narrow.run(A1, A1.sends(HOST, p.udp(40000, 40001)))
    carried = p.udp(40001, 40000, DATA[:3000])
    outs = passes(narrow, B1, B1.sends(HOST, carried, fragment=0), "DELIVERED")
    assert outs == fragments(A1.gets(HOST, carried, ttl=63, fragment=0), NARROW)


def moved(piece: bytes, whole: bytes) -> bytes:
    """The piece of what is a fragment itself."""
    word = int.from_bytes(piece[20:22], "big") + (int.from_bytes(whole[20:22], "big") & 0x1FFF)
    header = piece[14:18] + whole[18:20] + (word | whole[20] << 8 & 0x2000).to_bytes(2, "big") + piece[22:24]
    header += b"\0\0" + piece[26:34]
    return piece[:14] + header[:10] + p.checksum(header).to_bytes(2, "big") + header[12:] + piece[34:]


ROUTER_ALERT, TRACEROUTE, RECORD_ROUTE = b"\x94\4\0\0", b"\x52\4\0\0", b"\7\7\4\0\0\0\0"
OPTIONS = {
    "that each fragment has": (ROUTER_ALERT, ROUTER_ALERT),
    "that the first one has": (TRACEROUTE, b"\1\1\1\1"),
    "of both kinds": (ROUTER_ALERT + RECORD_ROUTE + TRACEROUTE + b"\0", ROUTER_ALERT + b"\1" * 11 + b"\0"),
    "the other way round": (
        RECORD_ROUTE + TRACEROUTE + ROUTER_ALERT + b"\0",
        b"\1" * 11 + ROUTER_ALERT + b"\0",
    ),
    "as long as can be": (
        b"\x82\x0b" + bytes(9) + b"\1" + TRACEROUTE * 7,
        b"\x82\x0b" + bytes(9) + b"\1" * 29,
    ),
    "fillers only": (b"\1" * 8, b"\1" * 8),
}


@pytest.mark.parametrize("name", OPTIONS)
@in_time
def test_options_are_no_reason_not_to_cut(narrow: Programs, name: str) -> None:
    """RFC 791, 3.2: those with the copied flag go into each fragment, the others into the first."""
    given, later = OPTIONS[name]
    size = 20 + len(given)
    carried = p.udp(SPORT, 9, DATA[:3000])
    outs = passes(narrow, A1, A1.sends(OUTSIDE, carried, options=given, fragment=0), "TO_OUTSIDE")
    for options, found in zip([given] + [later] * 2, outs, strict=True):
        wanted = A1.leaves(HOST, OUTSIDE, carried, options=options, fragment=0)
        assert found in fragments(wanted, UPLINK_MTU), found.hex()
    step = (UPLINK_MTU - size) & ~7
    assert [int.from_bytes(one[20:22], "big") & 0x1FFF for one in outs] == [0, step // 8, step // 4]
    frame = outside_sends(HOST, p.udp(9, 8081, DATA[:1400]), options=given, fragment=0)
    assert len(passes(narrow, None, frame, "DELIVERED")) == 2


@pytest.mark.parametrize("name", ["masqueraded", "an answer", "published, from another network"])
@in_time
def test_what_was_only_padding_goes_nowhere(narrow: Programs, name: str) -> None:
    way = ways(2000)[name]
    if way.opening:
        narrow.run(*way.opening)
    outs = passes(narrow, way.sender, way.frame + b"padding", way.reason)
    assert outs == fragments(way.out, way.mtu)


@in_time
def test_a_rest_is_waited_for_once(programs: Programs) -> None:
    """The same piece again is a fragment of which nothing is known."""
    way = ways(2000)["masqueraded"]
    cut = time.monotonic()
    programs.topology.received("va1")
    programs.run(A1, way.frame)
    rest = programs.topology.arrives("va1", lambda one: one[:12] == way.frame[:12])
    reasons = programs.run(A1, rest).reasons
    if reasons == {"HELD": 1} and time.monotonic() - cut > REST_LASTS:
        raise RestIsLateError
    assert reasons == {"TO_OUTSIDE": 1}
    programs.expect(A1, rest, SHOT, Reason.HELD)


def test_a_rest_that_was_lost_is_not_waited_for_long(programs: Programs) -> None:
    """A second later the same piece is of another datagram, whose number is the same."""
    programs.topology.received("va1")
    programs.run(A1, ways(2000)["masqueraded"].frame)
    end = time.monotonic() + 1.1
    (rest,) = programs.topology.received("va1")
    wait_until(lambda: time.monotonic() > end)
    programs.expect(A1, rest, SHOT, Reason.HELD)


def test_what_is_refused_is_not_cut(narrow: Programs) -> None:
    """Nothing of it arrives again: decided is first, and cut when it is sent."""
    for sender, frame, reason in (
        (A1, A1.sends(OUTSIDE, p.Transport(47, DATA[:2000]), fragment=0), Reason.DROP_PROTOCOL),
        (A1, A1.sends(OUTSIDE, p.echo(p.ECHO_REPLY, 7, DATA[:2000]), fragment=0), Reason.DROP_NO_CONN),
        (A1, A1.sends(OUTSIDE, p.tcp(7, 80, p.RST, DATA[:2000]), fragment=0), Reason.DROP_NO_CONN),
        (B1, B1.sends(A1.ip, p.udp(7, 53, DATA[:1400]), fragment=0), Reason.DROP_ISOLATED),
    ):
        narrow.topology.received(f"v{sender.name}")
        narrow.expect(sender, frame, SHOT, reason)
        assert narrow.topology.received(f"v{sender.name}") == []


def test_what_must_not_be_cut_is_told_of(narrow: Programs) -> None:
    """IPv4 with DF, and IPv6, whose routers cut nothing."""
    for host, data in ((HOST, 1253), (HOST6, 1233)):
        frame = outside_sends(host, p.udp(9, 8081, bytes(data)))
        narrow.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, host, mtu=NARROW))
        frame = B1.sends(host, p.udp(9, 8081, bytes(data)))
        gateway = NET2.gateway if host is HOST else NET2.gateway6
        narrow.expect(B1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, gateway, mtu=NARROW))


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
def test_what_is_still_to_be_cut_into_segments_is_told_of(narrow: Programs, proto: str) -> None:
    """Its sender's stack can make them smaller; no helper makes fragments of each."""
    data = bytes(2600)
    carried = p.tcp(9, 8081, p.ACK, data) if proto == "TCP" else p.udp(9, 8081, data)
    frame = outside_sends(HOST, carried, fragment=0)
    told = p.own_error(frame, HOST, mtu=NARROW)
    narrow.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, told, gso=1300)
    assert narrow.run(None, frame, gso=1200).reasons == {"DELIVERED": 1}


def loosely(six: bool) -> tuple[dict[str, Any], ...]:
    """Headers of IPv4: not to be cut, and as one likes."""
    return ({},) if six else ({}, {"fragment": 0})


def test_an_error_that_is_too_big_for_its_network_is_dropped(narrow: Programs) -> None:
    """RFC 4443, 2.4 (c): no error is longer than 1280 bytes; a longer one is no reason to send what does not fit, nor
    to send an error (e). Of IPv4's a router would cut what is longer, which nobody sends (RFC 1812, 4.3.2.3)."""
    for host, outside in ((HOST6, OUTSIDE6), (HOST, OUTSIDE)):
        assert narrow.run(A1, A1.sends(outside, p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}
        six = host is HOST6
        fits = NARROW - (48 if six else 28)
        for length, reason in ((fits, "DELIVERED"), (fits + 1, "DROP_TOO_BIG")):
            packet = (p.ipv6 if six else p.ipv4)(host, outside, p.udp(SPORT, 53, bytes(1300)))
            error = p.icmp6(1, 4, payload=packet[:length]) if six else p.icmp(3, 3, payload=packet[:length])
            for header in loosely(six):
                got = narrow.run(None, outside_sends(host, error, **header))
                assert got.reasons == {reason: 1}
                assert got.verdict == (REDIRECT if reason == "DELIVERED" else SHOT)


def test_an_error_that_is_too_big_for_its_way_out_is_dropped(programs: Programs) -> None:
    for host, outside in ((HOST6, OUTSIDE6), (HOST, OUTSIDE)):
        six = host is HOST6
        assert programs.run(A1, A1.sends(outside, p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}
        own = A1.ip6 if six else A1.ip
        packet = (p.ipv6 if six else p.ipv4)(outside, own, p.udp(53, SPORT, bytes(1500)))
        error = p.icmp6(1, 4, payload=packet) if six else p.icmp(3, 3, payload=packet)
        for header in loosely(six):
            programs.expect(A1, A1.sends(outside, error, **header), SHOT, Reason.DROP_TOO_BIG)
