# SPDX-License-Identifier: Apache-2.0
"""ICMP errors that the programs send themselves: no hop left, too big. Every byte is compared."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    C1,
    D1,
    HOST,
    HOST6,
    NET1,
    NET2,
    NET4,
    OTHER,
    OTHER6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    Member,
    Programs,
    Reason,
    Row,
    dropped,
    outside_sends,
    redirected,
)

BOTH_UPLINKS = True
SPORT = 20100
SYN_ACK = p.SYN | p.ACK
DEST = p.extension(p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4))
LONG = p.extension(p.DESTINATION_OPTIONS, b"\1\1\x0c" + bytes(12))
HOPS = p.extension(p.HOP_OPTIONS, b"\0\1\4" + bytes(4))
BIG, MTU = bytes(1473), 1500  # one byte more than fits behind the IPv4 and UDP headers
BIG6 = bytes(1453)


def told(
    sentence: str, member: Member, dst: p.Address, carried: p.Transport, *, mtu: int = 0, **header: Any
) -> Row:
    """The gateway answers: no hop left, unless it is too big."""
    four = ip_address(dst).version == 4
    hop = {"ttl": 1} if four else {"hops": 1}
    frame = member.sends(dst, carried, **{**({} if mtu else hop), **header})
    gateway = member.net.gateway if four else member.net.gateway6
    reason = Reason.DROP_TOO_BIG if mtu else Reason.DROP_TTL
    return redirected(sentence, member, frame, reason, p.own_error(frame, gateway, mtu=mtu))


NO_HOP = [
    told("UDP", A1, OUTSIDE, p.udp(SPORT, 33434)),
    told("UDP, hop 0", A1, OUTSIDE, p.udp(SPORT, 33434), ttl=0),
    told("UDP, empty: 28 bytes are all of it", A1, OUTSIDE, p.udp(SPORT, 33434, b"")),
    told("UDP of odd length", A1, OUTSIDE, p.udp(SPORT, 33434, b"odd")),
    told("UDP, 60 bytes as traceroute", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(range(32)))),
    told("123 bytes: the header and 8 more", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(95))),
    told("124 bytes: all", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(96))),
    told("125 bytes: the first 124", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(97))),
    told("1500 bytes", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(1472))),
    told("UDP without checksum", A1, OUTSIDE, p.udp(SPORT, 33434, summed=False)),
    told("TCP", A1, OUTSIDE, p.tcp(SPORT, 80, p.SYN, options=b"\2\4\5\xb4")),
    told("ping", A1, OUTSIDE, p.echo(p.ECHO, 7)),
    told("an answer to a ping", A1, OUTSIDE, p.echo(p.ECHO_REPLY, 7)),
    told("timestamp request", A1, OUTSIDE, p.icmp(13, payload=bytes(12))),
    told("a protocol that cannot be translated", A1, OUTSIDE, p.Transport(47, bytes(8))),
    *(
        told(f"IPv4 with {4 * n} bytes of options", A1, OUTSIDE, p.udp(SPORT, 33434), options=b"\1" * 4 * n)
        for n in (1, 2, 3, 9, 10)
    ),
    told("long, with options", A1, OUTSIDE, p.udp(SPORT, 33434, bytes(200)), options=b"\1" * 40),
    told("a first fragment", A1, OUTSIDE, p.udp(SPORT, 9, bytes(32)), fragment=p.MORE_FRAGMENTS),
    told("to another network's member", A1, B1.ip, p.udp(SPORT, 9)),
    told("without icc", B1, OUTSIDE, p.udp(SPORT, 33434)),
    told("without masquerading", D1, OUTSIDE, p.udp(SPORT, 33434)),
    told("IPv6, UDP", A1, OUTSIDE6, p.udp(SPORT, 33434)),
    told("IPv6, UDP, hop 0", A1, OUTSIDE6, p.udp(SPORT, 33434), hops=0),
    told("IPv6, UDP, empty", A1, OUTSIDE6, p.udp(SPORT, 33434, b"")),
    told("IPv6, UDP of odd length", A1, OUTSIDE6, p.udp(SPORT, 33434, b"odd")),
    told("IPv6, 123 bytes", A1, OUTSIDE6, p.udp(SPORT, 33434, bytes(75))),
    told("IPv6, 124 bytes", A1, OUTSIDE6, p.udp(SPORT, 33434, bytes(76))),
    told("IPv6, 1500 bytes", A1, OUTSIDE6, p.udp(SPORT, 33434, bytes(1452))),
    told("IPv6, TCP", A1, OUTSIDE6, p.tcp(SPORT, 80, p.SYN)),
    told("IPv6, ping", A1, OUTSIDE6, p.echo6(p.ECHO6, 7)),
    *(
        told(
            f"IPv6, {n} extension headers",
            A1,
            OUTSIDE6,
            p.udp(SPORT, 9),
            extensions=(HOPS, DEST, DEST, DEST)[:n],
        )
        for n in (1, 2, 3, 4)
    ),
    told("IPv6, longer extension headers", A1, OUTSIDE6, p.udp(SPORT, 9), extensions=(LONG, LONG)),
    told(
        "IPv6, long, with extension headers",
        A1,
        OUTSIDE6,
        p.udp(SPORT, 9, bytes(200)),
        extensions=(LONG, HOPS),
    ),
    told(
        "IPv6, a first fragment",
        A1,
        OUTSIDE6,
        p.udp(SPORT, 9, bytes(32)),
        extensions=(p.fragment_header(0, True),),
    ),
    told("IPv6, to another network's member", A1, B1.ip6, p.udp(SPORT, 9)),
]

TOO_BIG = [
    told("UDP", A1, OUTSIDE, p.udp(SPORT, 9, BIG), mtu=MTU),
    told("UDP of 3000 bytes", A1, OUTSIDE, p.udp(SPORT, 9, bytes(3000)), mtu=MTU),
    told("TCP", A1, OUTSIDE, p.tcp(SPORT, 80, p.ACK, bytes(1461)), mtu=MTU),
    told("ping", A1, OUTSIDE, p.echo(p.ECHO, SPORT, BIG), mtu=MTU),
    told("with options", A1, OUTSIDE, p.udp(SPORT, 9, bytes(1472)), mtu=MTU, options=b"\1" * 4),
    told("without masquerading", D1, OUTSIDE, p.udp(SPORT, 9, BIG), mtu=MTU),
    told("IPv6, UDP", A1, OUTSIDE6, p.udp(SPORT, 9, BIG6), mtu=MTU),
    told("IPv6, TCP", A1, OUTSIDE6, p.tcp(SPORT, 80, p.ACK, bytes(1441)), mtu=MTU),
    told("IPv6, ping", A1, OUTSIDE6, p.echo6(p.ECHO6, SPORT, BIG6), mtu=MTU),
    told(
        "IPv6, extension headers",
        A1,
        OUTSIDE6,
        p.udp(SPORT, 9, bytes(1452)),
        mtu=MTU,
        extensions=(DEST, HOPS),
    ),
]

ABOUT = p.ipv4(OUTSIDE, A1.ip, p.udp(9, 9))
ABOUT6 = p.ipv6(OUTSIDE6, A1.ip6, p.udp(9, 9))
SILENT = [
    *(
        dropped(
            f"no hop left for an error, type {kind}",
            A1,
            A1.sends(OUTSIDE, p.icmp(kind, 0, 0, ABOUT), ttl=1),
            Reason.DROP_TTL,
        )
        for kind in (3, 11, 12)
    ),
    *(
        dropped(
            f"no hop left for an ICMPv6 error, type {kind}",
            A1,
            A1.sends(OUTSIDE6, p.icmp6(kind, 0, 0, ABOUT6), hops=1),
            Reason.DROP_TTL,
        )
        for kind in (1, 2, 3, 4, 100, 127)
    ),
    dropped(
        "an error that is too big",
        A1,
        A1.sends(OUTSIDE, p.icmp(3, 1, 0, ABOUT + BIG)),
        Reason.DROP_TOO_BIG,
    ),
    dropped(
        "an ICMPv6 error that is too big",
        A1,
        A1.sends(OUTSIDE6, p.icmp6(1, 0, 0, ABOUT6 + BIG6)),
        Reason.DROP_TOO_BIG,
    ),
    dropped(
        "for a group's MAC",
        A1,
        A1.sends(OUTSIDE, p.udp(SPORT, 9), ttl=1, to=p.BROADCAST),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "for a group's MAC, IPv6",
        A1,
        A1.sends(OUTSIDE6, p.udp(SPORT, 9), hops=1, to="33:33:00:00:00:01"),
        Reason.DROP_WRONG_MAC,
    ),
    dropped("to a group", A1, A1.sends("224.0.0.9", p.udp(SPORT, 9), ttl=1), Reason.DROP_BAD_ADDR),
    dropped(
        "out of an internal network", C1, C1.sends(OUTSIDE, p.udp(SPORT, 9), ttl=1), Reason.DROP_INTERNAL
    ),
    dropped(
        "to a foreign MAC",
        A1,
        A1.sends(OUTSIDE, p.udp(SPORT, 9), ttl=1, to="02:42:de:ad:be:ef"),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "in another's name",
        A1,
        p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(A2.ip, OUTSIDE, p.udp(SPORT, 9), ttl=1)),
        Reason.DROP_SPOOFED_ADDR,
    ),
    redirected("to the host: no hop is made", A1, A1.sends(HOST, p.udp(SPORT, 9), ttl=1), Reason.TO_HOST),
    redirected(
        "to a member: no hop is made",
        A1,
        A1.sends(A2.ip, p.udp(SPORT, 9), ttl=1, to=A2.mac),
        Reason.DELIVERED,
    ),
    redirected("1500 bytes fit", A1, A1.sends(A2.ip, p.udp(9, 9, bytes(1472)), to=A2.mac), Reason.DELIVERED),
]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{name}: {row.sentence}")
        for name, rows in {"no hop": NO_HOP, "too big": TOO_BIG, "silent": SILENT}.items()
        for row in rows
    ],
)
def test_packet(programs: Programs, row: Row) -> None:
    programs.check(row)
    assert not programs.table("pending"), "what goes no further opens nothing"


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_nothing_is_said_about_a_later_fragment(programs: Programs, six: bool) -> None:
    """Its first one was answered; the errors would be as many as the pieces (RFC 1122, 3.2.2)."""
    hop: dict[str, Any] = {"hops": 1} if six else {"ttl": 1}
    whole = A1.sends(OUTSIDE6 if six else OUTSIDE, p.udp(SPORT, 9, bytes(56)), **hop)
    first, second, last = p.cut(whole, 16, 40)
    told = p.own_error(first, NET1.gateway6 if six else NET1.gateway)
    programs.expect(A1, first, REDIRECT, Reason.DROP_TTL, told)
    programs.expect(A1, second, SHOT, Reason.DROP_TTL)
    programs.expect(A1, last, SHOT, Reason.DROP_TTL)


def test_a_known_connection_is_told_as_well(programs: Programs) -> None:
    """Of a masqueraded one, and of a published server's answers: with the addresses that the container knows."""
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    programs.run(None, outside_sends(HOST, p.udp(53, SPORT)))
    programs.run(None, outside_sends(HOST6, p.tcp(9, 8081, p.SYN)))
    for member, frame, gateway in (
        (A1, A1.sends(OUTSIDE, p.udp(SPORT, 53), ttl=1), NET1.gateway),
        (A2, A2.sends(OUTSIDE6, p.tcp(80, 9, SYN_ACK), hops=1), NET1.gateway6),
    ):
        programs.expect(member, frame, REDIRECT, Reason.DROP_TTL, p.own_error(frame, gateway))
    for member, frame, gateway in (
        (A1, A1.sends(OUTSIDE, p.udp(SPORT, 53, BIG)), NET1.gateway),
        (A2, A2.sends(OUTSIDE6, p.tcp(80, 9, p.ACK, BIG6)), NET1.gateway6),
    ):
        programs.expect(member, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, gateway, mtu=MTU))
    assert {c.state for c in programs.table("pending").values()} == {abi.ConnState.CONN_NEW}


@pytest.fixture
def narrow(programs: Programs) -> Iterator[Programs]:
    """Networks 1 and 4 take 1400 bytes."""
    networks = {net.number: programs.maps["networks"][net.number] for net in (NET1, NET4)}
    for number, network in networks.items():
        programs.maps["networks"][number] = network._replace(mtu=1400)
    yield programs
    programs.maps["networks"].update_many(networks)


@pytest.mark.parametrize("at", [HOST, OTHER, HOST6, OTHER6])
def test_a_client_outside_is_told_by_the_address_that_it_asked(narrow: Programs, at: p.Address) -> None:
    """That is all it knows of (RFC 1191); the server's address never appears."""
    six = ip_address(at).version == 6
    opening = outside_sends(at, p.tcp(9, 8081, p.SYN))
    assert narrow.run(None, opening).reasons == {"DELIVERED": 1}
    room = 1400 - 20 - (40 if six else 20)
    fits = outside_sends(at, p.tcp(9, 8081, p.ACK, bytes(room)))
    assert narrow.run(None, fits).reasons == {"DELIVERED": 1}
    frame = outside_sends(at, p.tcp(9, 8081, p.ACK, bytes(room + 1)))
    narrow.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, at, mtu=1400))


def test_an_answer_from_outside_that_is_too_big(narrow: Programs) -> None:
    for host, outside, room in ((HOST, OUTSIDE, 1372), (HOST6, OUTSIDE6, 1352)):
        narrow.run(A1, A1.sends(outside, p.udp(SPORT, 53)))
        frame = outside_sends(host, p.udp(53, SPORT, bytes(room + 1)))
        narrow.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, host, mtu=1400))
        assert narrow.run(None, outside_sends(host, p.udp(53, SPORT, bytes(room)))).reasons == {
            "DELIVERED": 1
        }


def test_a_container_is_told_by_its_own_gateway(narrow: Programs) -> None:
    """From another network: not by the server, nor by the server's gateway."""
    for at, gateway, room in ((HOST, NET2.gateway, 1372), (HOST6, NET2.gateway6, 1352)):
        assert narrow.run(B1, B1.sends(at, p.udp(9, 8081))).reasons == {"DELIVERED": 1}
        frame = B1.sends(at, p.udp(9, 8081, bytes(room + 1)))
        narrow.expect(B1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, gateway, mtu=1400))
        narrow.run(A2, A2.sends(B1.ip if at is HOST else B1.ip6, p.udp(53, 9)))


@pytest.mark.ethernet
def test_segments_count_not_the_whole(narrow: Programs) -> None:
    narrow.run(None, outside_sends(HOST, p.tcp(9, 8081, p.SYN)))
    carried = p.tcp(9, 8081, p.ACK, bytes(2800))
    out = A2.gets(OUTSIDE, p.tcp(9, 80, p.ACK, bytes(2800)), ttl=63)
    narrow.expect(None, outside_sends(HOST, carried), REDIRECT, Reason.DELIVERED, out, gso=1360)
    frame = outside_sends(HOST, carried)
    narrow.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, HOST, mtu=1400), gso=1361)


def test_the_padding_of_a_short_frame_is_not_quoted(programs: Programs) -> None:
    frame = A1.sends(OUTSIDE, p.udp(SPORT, 9, b""), ttl=1) + b"padding of this frame."
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TTL, p.own_error(frame, NET1.gateway))


def test_the_errors_on_the_wire(programs: Programs) -> None:
    """They go to the one who sent the packet, and to nobody else."""
    with programs.wired(A1):
        for name in ("a1", "a2", "out0"):
            programs.topology.received(name)
        for row in NO_HOP:
            if row.sender is A1:
                programs.topology.tap("a1").send(row.packet)
                assert programs.topology.received("a1") == [row.out], row.sentence
        assert [programs.topology.received(name) for name in ("a2", "out0")] == [[], []]
