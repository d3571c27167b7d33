# SPDX-License-Identifier: Apache-2.0
"""What arrives from outside, and what it answers: translation in both directions, errors included."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import pytest

from datapath.errors import KernelError
from datapath.kernel import abi, libbpf
from datapath.model.endpoints import linklocal_of
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    ANYWHERE,
    ANYWHERE6,
    B1,
    B2,
    D1,
    HOST,
    HOST6,
    NET1,
    NET2,
    NEXT_HOP,
    NEXT_HOP6,
    NEXT_HOP_MAC,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK_MAC,
    Member,
    Programs,
    Reason,
    Row,
    dropped,
    outside_sends,
    redirected,
    untouched,
)

BOTH_UPLINKS = True
SPORT = 20100  # within the range for masquerading, so that it is kept
ROUTER = "198.51.100.77"  # somewhere on the way
SYN_ACK = p.SYN | p.ACK


def cut(carried: p.Transport) -> p.Transport:
    return p.Transport(carried.proto, carried.data[:-1])


PLAIN = p.tcp(9, 8081, p.SYN)
NOT_OUTSIDE: Mapping[str, p.Address] = {
    "loopback": "127.0.0.1",
    "0.0.0.0": "0.0.0.0",
    "a multicast group": "224.0.0.1",
    "255.255.255.255": "255.255.255.255",
    "a container": A1.ip,
    "the server itself": A2.ip,
    "the gateway": NET1.gateway,
    "another network's container": B1.ip,
    "the host itself": HOST,
}
LIES: tuple[dict[str, Any], ...] = (
    {"ihl": 4},
    {"ihl": 15},
    {"version": 6},
    {"total": 19},
    {"total": 39},
    {"total": 999},
)
UNTOUCHED = [
    untouched("the host's own server", outside_sends(HOST, p.tcp(9, 22, p.SYN))),
    untouched(
        "from a link-local address, which leads to no container",
        outside_sends(linklocal_of(UPLINK_MAC), PLAIN, src="fe80::9"),
    ),
    untouched(
        "to a link-local address that is not the host's",
        outside_sends(IPv6Address("fe80::9"), PLAIN),
    ),
    untouched("beside a prefix that is the host's", outside_sends(ANYWHERE.broadcast_address + 1, PLAIN)),
    untouched("an answer to the host's own connection", outside_sends(HOST, p.tcp(443, 40000, SYN_ACK))),
    untouched("an answer to the host's own question", outside_sends(HOST, p.udp(53, 40000))),
    untouched("a ping", outside_sends(HOST, p.echo(p.ECHO, 7))),
    untouched("an answer to the host's own ping", outside_sends(HOST, p.echo(p.ECHO_REPLY, 7))),
    untouched("a port of the range for masquerading that nobody has", outside_sends(HOST, p.udp(53, SPORT))),
    untouched("an unknown protocol", outside_sends(HOST, p.Transport(47, bytes(8)))),
    untouched(
        "an ICMP error about nothing",
        outside_sends(HOST, p.icmp(3, 3, 0, p.ipv4(HOST, OUTSIDE, p.udp(9, 9)))),
    ),
    untouched("an ICMP error without a quotation", outside_sends(HOST, p.icmp(3, 3))),
    untouched("straight to a container", outside_sends(A1.ip, p.tcp(9, 80, p.SYN))),
    untouched("straight to a server, at the inner port", outside_sends(A2.ip, p.tcp(9, 80, p.SYN))),
    untouched("straight to a server, at the published port", outside_sends(A2.ip, PLAIN)),
    untouched("a published port of an address that is not the host's", outside_sends("203.0.113.9", PLAIN)),
    untouched("a port that is published at another address", outside_sends(OTHER, p.tcp(9, 8082, p.SYN))),
    untouched("a port that is published for TCP, by UDP", outside_sends(HOST, p.udp(9, 8082))),
    untouched("loopback, its published port", outside_sends("127.0.0.1", p.tcp(9, 8083, p.SYN))),
    untouched("loopback, a port that is published everywhere", outside_sends("127.0.0.1", PLAIN)),
    untouched("a published port of 255.255.255.255", outside_sends("255.255.255.255", p.udp(9, 8081))),
    untouched("a published port of a multicast group", outside_sends("224.0.0.251", p.udp(9, 8081))),
    *(
        untouched(f"a published port, from {what}", outside_sends(HOST, PLAIN, src=src))
        for what, src in NOT_OUTSIDE.items()
    ),
    untouched("for another MAC", p.ethernet(A1.mac, NEXT_HOP_MAC, p.ETH_IPV4, p.ipv4(OUTSIDE, HOST, PLAIN))),
    untouched(
        "in a broadcast frame",
        p.ethernet(p.BROADCAST, NEXT_HOP_MAC, p.ETH_IPV4, p.ipv4(OUTSIDE, HOST, PLAIN)),
    ),
    untouched(
        "in a multicast frame",
        p.ethernet("01:00:5e:00:00:01", NEXT_HOP_MAC, p.ETH_IPV4, p.ipv4(OUTSIDE, HOST, PLAIN)),
    ),
    untouched(
        "ARP",
        p.ethernet(
            p.BROADCAST, NEXT_HOP_MAC, p.ETH_ARP, p.arp(p.REQUEST, NEXT_HOP_MAC, NEXT_HOP, p.NOBODY, HOST)
        ),
    ),
    untouched(
        "IPv6",
        p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV6, p.ipv6("2001:db8::1", "2001:db8::2", PLAIN)),
    ),
    *(
        untouched(
            f"a tagged frame, {tag:#x}",
            p.ethernet(
                UPLINK_MAC,
                NEXT_HOP_MAC,
                tag,
                struct.pack("!HH", 5, p.ETH_IPV4) + p.ipv4(OUTSIDE, HOST, PLAIN),
            ),
        )
        for tag in (p.ETH_VLAN, p.ETH_QINQ)
    ),
    *(
        untouched(f"ethertype {kind:#06x}", p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, kind, bytes(46)))
        for kind in (0x88CC, 0x888E, 0x8137, 0x8847, 0x0026, 0xFFFF)
    ),
    *(untouched(f"a lie: {lie}", outside_sends(HOST, PLAIN, **lie)) for lie in LIES),
]


def published(sentence: str, packet: bytes, out: bytes) -> Row:
    return redirected(sentence, None, packet, Reason.DELIVERED, out)


PUBLISHED = [
    published("TCP", outside_sends(HOST, PLAIN), A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63)),
    published(
        "TCP with options and data",
        outside_sends(HOST, p.tcp(9, 8081, p.SYN, b"early", options=b"\2\4\5\xb4")),
        A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN, b"early", options=b"\2\4\5\xb4"), ttl=63),
    ),
    published("UDP", outside_sends(HOST, p.udp(9, 8081)), A2.gets(OUTSIDE, p.udp(9, 53), ttl=63)),
    published(
        "UDP without checksum stays without",
        outside_sends(HOST, p.udp(9, 8081, summed=False)),
        A2.gets(OUTSIDE, p.udp(9, 53, summed=False), ttl=63),
    ),
    published(
        "at another address of the host's",
        outside_sends(OTHER, PLAIN),
        A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63),
    ),
    published(
        "at the gateway's address",
        outside_sends(NET1.gateway, PLAIN),
        A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63),
    ),
    published(
        "at one address, network without icc",
        outside_sends(HOST, p.tcp(9, 8082, p.SYN)),
        B2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63),
    ),
    published(
        "from the next hop",
        outside_sends(HOST, PLAIN, src=NEXT_HOP),
        A2.gets(NEXT_HOP, p.tcp(9, 80, p.SYN), ttl=63),
    ),
    *(
        published(
            f"from {client}, which is an address for the kernel",
            outside_sends(HOST, PLAIN, src=client),
            A2.gets(client, p.tcp(9, 80, p.SYN), ttl=63),
        )
        for client in ("240.0.0.9", "255.255.255.254", "0.0.0.9")
    ),
    *(
        published(
            "at an address of a prefix that is the host's",
            outside_sends(ANYWHERE[5], carried),
            A2.gets(OUTSIDE, got, ttl=63),
        )
        for carried, got in ((PLAIN, p.tcp(9, 80, p.SYN)), (p.udp(9, 8081), p.udp(9, 53)))
    ),
    published(
        "IPv6: at an address of a prefix that is the host's",
        outside_sends(ANYWHERE6[0x77777], PLAIN),
        A2.gets(OUTSIDE6, p.tcp(9, 80, p.SYN), hops=63),
    ),
    published(
        "IPv6: at the uplink's link-local address",
        outside_sends(linklocal_of(UPLINK_MAC), PLAIN),
        A2.gets(OUTSIDE6, p.tcp(9, 80, p.SYN), hops=63),
    ),
    published("TTL 2", outside_sends(HOST, PLAIN, ttl=2), A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=1)),
    published(
        "TTL 1: the address is the host's, it has arrived",
        outside_sends(HOST, PLAIN, ttl=1),
        A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=1),
    ),
    published(
        "with IPv4 options",
        outside_sends(HOST, PLAIN, options=b"\1" * 12),
        A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63, options=b"\1" * 12),
    ),
    published(
        "padding stays",
        outside_sends(HOST, p.udp(9, 8081, b"")) + bytes(range(18)),
        A2.gets(OUTSIDE, p.udp(9, 53, b""), ttl=63) + bytes(range(18)),
    ),
]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{name}: {row.sentence}")
        for name, rows in {"untouched": UNTOUCHED, "published": PUBLISHED}.items()
        for row in rows
    ],
)
def test_packet(programs: Programs, row: Row) -> None:
    programs.check(row)


@pytest.mark.parametrize("frame", [outside_sends(HOST, PLAIN), outside_sends(HOST, p.udp(9, 8081, b""))])
def test_cut_short_is_the_hosts(programs: Programs, frame: bytes) -> None:
    """A test run may refuse what is shorter than an Ethernet and an IPv4 header."""
    for length in range(14, len(frame)):
        try:
            programs.expect(None, frame[:length], UNSPEC, Reason.NOT_OURS)
        except KernelError as error:
            assert "Invalid argument" in str(error) and length < 34


@pytest.mark.xfail(strict=True, reason="bpf_fib_lookup does not tell a broadcast address from the host's own")
def test_published_port_of_the_subnets_broadcast_is_the_hosts(programs: Programs) -> None:
    """In a frame for the host alone, which no honest neighbour sends."""
    programs.expect(None, outside_sends("192.0.2.255", p.udp(9, 8081)), UNSPEC, Reason.NOT_OURS)


# Addresses: the host's, one outside, the next hop's.
FAMILIES: Mapping[str, tuple[int, p.Address, p.Address, p.Address]] = {
    "IPv4": (socket.AF_INET, HOST, OUTSIDE, NEXT_HOP),
    "IPv6": (socket.AF_INET6, HOST6, OUTSIDE6, NEXT_HOP6),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_talking_socket_of_the_hosts_keeps_its_conversation(programs: Programs, family: str) -> None:
    """A port is published while a host process is in a conversation on it: that one goes on."""
    kind, host, outside, _ = FAMILIES[family]
    hop: dict[str, Any] = {"ttl": 63} if family == "IPv4" else {"hops": 63}
    with socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.bind((str(host), 8081))
        out = A2.gets(outside, p.udp(9, 53), **hop)
        programs.expect(None, outside_sends(host, p.udp(9, 8081)), REDIRECT, Reason.DELIVERED, out)
        programs.forget()
        sock.connect((str(outside), 9))
        programs.expect(None, outside_sends(host, p.udp(9, 8081)), UNSPEC, Reason.NOT_OURS)
        out = A2.gets(outside, p.udp(10, 53), **hop)
        programs.expect(None, outside_sends(host, p.udp(10, 8081)), REDIRECT, Reason.DELIVERED, out)
        programs.forget()
        # Fragments of it are the host's as well.
        for piece in p.cut(outside_sends(host, p.udp(9, 8081, bytes(56))), 16, 40):
            programs.expect(None, piece, UNSPEC, Reason.NOT_OURS)
    out = A2.gets(outside, p.udp(9, 53), **hop)
    programs.expect(None, outside_sends(host, p.udp(9, 8081)), REDIRECT, Reason.DELIVERED, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tcp_connection_of_the_hosts_goes_on(programs: Programs, family: str) -> None:
    """It connects from the number of a published port: what comes from the other end is its, all else is not."""
    kind, host, _, next_hop = FAMILIES[family]
    hop: dict[str, Any] = {"ttl": 63} if family == "IPv4" else {"hops": 63}
    with socket.socket(kind) as sock:
        sock.setblocking(False)
        sock.bind((str(host), 8081))
        assert sock.connect_ex((str(next_hop), 9)) == errno.EINPROGRESS
        for flags in (SYN_ACK, p.SYN, p.ACK, p.RST | p.ACK):
            frame = outside_sends(host, p.tcp(9, 8081, flags), src=next_hop)
            programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
        frame = outside_sends(host, p.tcp(10, 8081, p.SYN), src=next_hop)
        out = A2.gets(next_hop, p.tcp(10, 80, p.SYN), **hop)
        programs.expect(None, frame, REDIRECT, Reason.DELIVERED, out)
    assert len(programs.table("pending")) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_listener_of_the_hosts_is_passed_by(programs: Programs, family: str) -> None:
    """It had the port before it was published, and is in no conversation: the container has it now."""
    kind, host, outside, _ = FAMILIES[family]
    hop: dict[str, Any] = {"ttl": 63} if family == "IPv4" else {"hops": 63}
    with socket.socket(kind) as sock:
        sock.bind((str(host), 8081))
        sock.listen()
        out = A2.gets(outside, p.tcp(9, 80, p.SYN), **hop)
        programs.expect(None, outside_sends(host, p.tcp(9, 8081, p.SYN)), REDIRECT, Reason.DELIVERED, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_that_talks_with_a_container_keeps_its_conversation(programs: Programs, family: str) -> None:
    kind, host, _, _ = FAMILIES[family]
    client = B1.ip if family == "IPv4" else B1.ip6
    with socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.bind((str(host), 8081))
        sock.connect((str(client), 9))
        programs.expect(B1, B1.sends(host, p.udp(9, 8081)), REDIRECT, Reason.TO_HOST)
        assert programs.run(B1, B1.sends(host, p.udp(10, 8081))).reasons == {"DELIVERED": 1}


def test_one_client_port_to_two_host_addresses_of_one_server(programs: Programs) -> None:
    """The server could not tell the two apart: the second keeps its address and gets another port."""
    programs.run(None, outside_sends(HOST, p.udp(SPORT, 8081)))
    got = programs.run(None, outside_sends(OTHER, p.udp(SPORT, 8081)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    chosen = int.from_bytes(got.packet[34:36], "big")
    assert chosen != SPORT
    assert got.packet == A2.gets(OUTSIDE, p.udp(chosen, 53), ttl=63)
    for port, address in ((chosen, OTHER), (SPORT, HOST)):
        back = A2.leaves(address, OUTSIDE, p.udp(8081, SPORT))
        programs.expect(A2, A2.sends(OUTSIDE, p.udp(53, port)), REDIRECT, Reason.TO_OUTSIDE, back)


def test_a_forged_packet_of_a_containers_connection_is_not_taken(programs: Programs) -> None:
    """From outside, with the container's own address and ports."""
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    programs.expect(None, outside_sends(OUTSIDE, p.udp(SPORT, 53), src=A1.ip), UNSPEC, Reason.NOT_OURS)
    programs.run(B1, B1.sends(HOST, p.udp(9, 8081)))
    programs.expect(None, outside_sends(HOST, p.udp(9, 8081), src=B1.ip), UNSPEC, Reason.NOT_OURS)


# ---- conversations -----------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One packet of a conversation: who sends it, what it becomes."""

    sender: Member | None
    packet: bytes
    reason: object
    out: bytes


def masquerading(there: list[p.Transport], back: list[p.Transport]) -> list[Step]:
    """a1 speaks with the outside; its own port is kept."""
    steps: list[Step] = []
    for ask, reply in zip(there, back, strict=True):
        steps.append(Step(A1, A1.sends(OUTSIDE, ask), Reason.TO_OUTSIDE, A1.leaves(HOST, OUTSIDE, ask)))
        steps.append(
            Step(None, outside_sends(HOST, reply), Reason.DELIVERED, A1.gets(OUTSIDE, reply, ttl=63))
        )
    return steps


CONVERSATIONS = {
    "masqueraded TCP": masquerading(
        [
            p.tcp(SPORT, 80, p.SYN),
            p.tcp(SPORT, 80, p.ACK),
            p.tcp(SPORT, 80, p.ACK | p.PSH, b"GET / HTTP/1.0\r\n\r\n"),
        ],
        [p.tcp(80, SPORT, SYN_ACK), p.tcp(80, SPORT, p.ACK), p.tcp(80, SPORT, p.ACK, b"odd")],
    ),
    "masqueraded UDP": masquerading([p.udp(SPORT, 53)] * 2, [p.udp(53, SPORT, b"answer")] * 2),
    "masqueraded UDP without checksum": masquerading(
        [p.udp(SPORT, 53, summed=False)], [p.udp(53, SPORT, b"answer", summed=False)]
    ),
    "masqueraded ping": masquerading(
        [p.echo(p.ECHO, SPORT, sequence=i) for i in (1, 2, 3)],
        [p.echo(p.ECHO_REPLY, SPORT, sequence=i) for i in (1, 2, 3)],
    ),
    "not masqueraded": [
        Step(D1, D1.sends(OUTSIDE, p.udp(7, 53)), Reason.TO_OUTSIDE, D1.leaves(D1.ip, OUTSIDE, p.udp(7, 53))),
        Step(
            None,
            outside_sends(D1.ip, p.udp(53, 7)),
            Reason.DELIVERED,
            D1.gets(OUTSIDE, p.udp(53, 7), ttl=63),
        ),
    ],
    "published, from outside": [
        Step(
            None, outside_sends(HOST, PLAIN), Reason.DELIVERED, A2.gets(OUTSIDE, p.tcp(9, 80, p.SYN), ttl=63)
        ),
        Step(
            A2,
            A2.sends(OUTSIDE, p.tcp(80, 9, SYN_ACK)),
            Reason.TO_OUTSIDE,
            A2.leaves(HOST, OUTSIDE, p.tcp(8081, 9, SYN_ACK)),
        ),
        Step(
            None,
            outside_sends(HOST, p.tcp(9, 8081, p.ACK, b"GET /")),
            Reason.DELIVERED,
            A2.gets(OUTSIDE, p.tcp(9, 80, p.ACK, b"GET /"), ttl=63),
        ),
        Step(
            A2,
            A2.sends(OUTSIDE, p.tcp(80, 9, p.ACK, b"200")),
            Reason.TO_OUTSIDE,
            A2.leaves(HOST, OUTSIDE, p.tcp(8081, 9, p.ACK, b"200")),
        ),
    ],
    "published, from another network": [
        Step(B1, B1.sends(HOST, PLAIN), Reason.DELIVERED, A2.gets(B1.ip, p.tcp(9, 80, p.SYN), ttl=63)),
        Step(
            A2,
            A2.sends(B1.ip, p.tcp(80, 9, SYN_ACK)),
            Reason.DELIVERED,
            B1.gets(HOST, p.tcp(8081, 9, SYN_ACK), ttl=63),
        ),
        Step(
            B1,
            B1.sends(HOST, p.tcp(9, 8081, p.ACK)),
            Reason.DELIVERED,
            A2.gets(B1.ip, p.tcp(9, 80, p.ACK), ttl=63),
        ),
    ],
    "published, hairpin": [
        Step(
            A1,
            A1.sends(HOST, p.udp(SPORT, 8081)),
            Reason.DELIVERED,
            A2.gets(NET1.gateway, p.udp(SPORT, 53), ttl=63),
        ),
        Step(
            A2,
            A2.sends(NET1.gateway, p.udp(53, SPORT, b"answer")),
            Reason.DELIVERED,
            A1.gets(HOST, p.udp(8081, SPORT, b"answer"), ttl=63),
        ),
    ],
    "published, hairpin to itself": [
        Step(
            A2,
            A2.sends(NET1.gateway, p.tcp(SPORT, 8081, p.SYN)),
            Reason.DELIVERED,
            A2.gets(NET1.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
        ),
        Step(
            A2,
            A2.sends(NET1.gateway, p.tcp(80, SPORT, SYN_ACK)),
            Reason.DELIVERED,
            A2.gets(NET1.gateway, p.tcp(8081, SPORT, SYN_ACK), ttl=63),
        ),
    ],
    "published, hairpin without icc": [
        Step(
            B1,
            B1.sends(HOST, p.tcp(SPORT, 8082, p.SYN)),
            Reason.DELIVERED,
            B2.gets(NET2.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
        ),
        Step(
            B2,
            B2.sends(NET2.gateway, p.tcp(80, SPORT, SYN_ACK)),
            Reason.DELIVERED,
            B1.gets(HOST, p.tcp(8082, SPORT, SYN_ACK), ttl=63),
        ),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(programs: Programs, name: str) -> None:
    for step in CONVERSATIONS[name]:
        programs.expect(step.sender, step.packet, REDIRECT, step.reason, step.out)


Speak = Callable[[int], p.Transport]
# What a container says from a port (or with an identifier), and what answers it.
CHANGED: tuple[tuple[Speak, Speak], ...] = (
    (lambda port: p.tcp(port, 80, p.SYN), lambda port: p.tcp(80, port, SYN_ACK)),
    (lambda port: p.udp(port, 53, b"odd"), lambda port: p.udp(53, port, b"answer")),
    (lambda port: p.echo(p.ECHO, port), lambda port: p.echo(p.ECHO_REPLY, port)),
)


@pytest.mark.parametrize("sport", [7, 40000])
def test_conversation_whose_port_is_changed(programs: Programs, sport: int) -> None:
    """TCP, UDP and ping: what leaves from the port that was chosen comes back to the container's own. (Another
    container has the number already.)"""
    for ask, reply in CHANGED:
        programs.run(A2, A2.sends(OUTSIDE, ask(sport)))
        got = programs.run(A1, A1.sends(OUTSIDE, ask(sport)))
        at = 38 if ask(sport).proto == p.ICMP else 34
        chosen = int.from_bytes(got.packet[at : at + 2], "big")
        assert chosen != sport
        assert not (text := p.difference(got.packet, A1.leaves(HOST, OUTSIDE, ask(chosen)))), text
        programs.expect(
            None,
            outside_sends(HOST, reply(chosen)),
            REDIRECT,
            Reason.DELIVERED,
            A1.gets(OUTSIDE, reply(sport), ttl=63),
        )


# ---- ICMP errors --------------------------------------------------------------------------------------------

ERRORS = {
    "port unreachable": (3, 3, 0),
    "host unreachable": (3, 1, 0),
    "fragmentation needed": (3, 4, 1280),
    "time exceeded": (11, 0, 0),
    "parameter problem": (12, 0, 0x08000000),
}


def quotation(
    src: p.Address,
    dst: p.Address,
    carried: p.Transport,
    *,
    summed_for: tuple[p.Address, p.Address, p.Transport] | None = None,
    size: int = 28,
    **header: object,
) -> bytes:
    """The first bytes of a packet. `summed_for`: whose transport checksum is still in it after translation,
    where nobody looks (RFC 5508, 4.2)."""
    data = bytearray(carried.finish(p.packed(src), p.packed(dst)))
    if summed_for and carried.check_at is not None and carried.proto != p.ICMP:
        was_src, was_dst, was = summed_for
        old = was.finish(p.packed(was_src), p.packed(was_dst))
        data[carried.check_at : carried.check_at + 2] = old[carried.check_at : carried.check_at + 2]
    whole = p.Transport(carried.proto, bytes(data))
    return p.ipv4(src, dst, whole, **{"ttl": 60, **header})[:size]  # type: ignore[arg-type]


class Case(NamedTuple):
    """A connection, and the packet of it that an error quotes.

    `opening`: the steps that make it. `sender` sends an error from `src` to `dst` about `before`, a packet as it
    was on the sender's side; it arrives from `out_src` at `out_dst` about `after`.
    """

    opening: list[Step]
    sender: Member | None
    src: p.Address
    dst: p.Address
    before: tuple[p.Address, p.Address, p.Transport]
    out_src: p.Address
    receiver: Member | None
    after: tuple[p.Address, p.Address, p.Transport]


UDP_STEPS, PING_STEPS, TCP_STEPS = (
    CONVERSATIONS[name] for name in ("masqueraded UDP", "masqueraded ping", "masqueraded TCP")
)
UDP_OUT = p.udp(SPORT, 53)
LATE = p.udp(53, SPORT, b"answer")
PUBLISHED_UDP = [
    Step(None, outside_sends(HOST, p.udp(9, 8081)), Reason.DELIVERED, A2.gets(OUTSIDE, p.udp(9, 53), ttl=63))
]
CROSSING = [Step(B1, B1.sends(HOST, p.udp(9, 8081)), Reason.DELIVERED, A2.gets(B1.ip, p.udp(9, 53), ttl=63))]
HAIRPIN = CONVERSATIONS["published, hairpin"]
TCP_OUT = p.tcp(SPORT, 80, p.ACK, b"GET /")

CASES = {
    "a router about masqueraded UDP": Case(
        UDP_STEPS, None, ROUTER, HOST, (HOST, OUTSIDE, UDP_OUT), ROUTER, A1, (A1.ip, OUTSIDE, UDP_OUT)
    ),
    "the other end about masqueraded UDP": Case(
        UDP_STEPS, None, OUTSIDE, HOST, (HOST, OUTSIDE, UDP_OUT), OUTSIDE, A1, (A1.ip, OUTSIDE, UDP_OUT)
    ),
    "about UDP that is not answered yet": Case(
        UDP_STEPS[:1], None, ROUTER, HOST, (HOST, OUTSIDE, UDP_OUT), ROUTER, A1, (A1.ip, OUTSIDE, UDP_OUT)
    ),
    "a router about masqueraded TCP": Case(
        TCP_STEPS, None, ROUTER, HOST, (HOST, OUTSIDE, TCP_OUT), ROUTER, A1, (A1.ip, OUTSIDE, TCP_OUT)
    ),
    "a router about a ping": Case(
        PING_STEPS,
        None,
        ROUTER,
        HOST,
        (HOST, OUTSIDE, p.echo(p.ECHO, SPORT)),
        ROUTER,
        A1,
        (A1.ip, OUTSIDE, p.echo(p.ECHO, SPORT)),
    ),
    "the container about a late answer": Case(
        UDP_STEPS, A1, A1.ip, OUTSIDE, (OUTSIDE, A1.ip, LATE), HOST, None, (OUTSIDE, HOST, LATE)
    ),
    "a router about what a published server sends": Case(
        PUBLISHED_UDP,
        None,
        ROUTER,
        HOST,
        (HOST, OUTSIDE, p.udp(8081, 9)),
        ROUTER,
        A2,
        (A2.ip, OUTSIDE, p.udp(53, 9)),
    ),
    "the client about what a published server sends": Case(
        PUBLISHED_UDP,
        None,
        OUTSIDE,
        HOST,
        (HOST, OUTSIDE, p.udp(8081, 9)),
        OUTSIDE,
        A2,
        (A2.ip, OUTSIDE, p.udp(53, 9)),
    ),
    "a published server about its client": Case(
        PUBLISHED_UDP,
        A2,
        A2.ip,
        OUTSIDE,
        (OUTSIDE, A2.ip, p.udp(9, 53)),
        HOST,
        None,
        (OUTSIDE, HOST, p.udp(9, 8081)),
    ),
    "a published server about a client of another network": Case(
        CROSSING, A2, A2.ip, B1.ip, (B1.ip, A2.ip, p.udp(9, 53)), HOST, B1, (B1.ip, HOST, p.udp(9, 8081))
    ),
    "a client of another network about its server": Case(
        CROSSING, B1, B1.ip, HOST, (HOST, B1.ip, p.udp(8081, 9)), B1.ip, A2, (A2.ip, B1.ip, p.udp(53, 9))
    ),
    "a published server about a client of its own network": Case(
        HAIRPIN,
        A2,
        A2.ip,
        NET1.gateway,
        (NET1.gateway, A2.ip, p.udp(SPORT, 53)),
        HOST,
        A1,
        (A1.ip, HOST, p.udp(SPORT, 8081)),
    ),
    "a client of the same network about its server": Case(
        HAIRPIN,
        A1,
        A1.ip,
        HOST,
        (HOST, A1.ip, p.udp(8081, SPORT)),
        NET1.gateway,
        A2,
        (A2.ip, NET1.gateway, p.udp(53, SPORT)),
    ),
}


def error_frames(case: Case, error: tuple[int, int, int], **how: object) -> tuple[bytes, bytes]:
    """The error as it is sent, and as it must arrive."""
    kind, code, word = error
    sent = p.icmp(kind, code, word, quotation(*case.before, **how))  # type: ignore[arg-type]
    came = p.icmp(kind, code, word, quotation(*case.after, summed_for=case.before, **how))  # type: ignore[arg-type]
    packet = case.sender.sends(case.dst, sent) if case.sender else outside_sends(case.dst, sent, src=case.src)
    if case.receiver is None:
        assert case.sender is not None
        return packet, case.sender.leaves(case.out_src, case.dst, came)
    return packet, case.receiver.gets(case.out_src, came, ttl=63)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_icmp_error(programs: Programs, name: str, error: str) -> None:
    case = CASES[name]
    for step in case.opening:
        programs.run(step.sender, step.packet)
    reason = Reason.DELIVERED if case.receiver else Reason.TO_OUTSIDE
    for how in ({}, {"size": 200}, {"options": b"\1" * 8, "size": 36}, {"fragment": 0}):
        packet, out = error_frames(case, ERRORS[error], **how)
        programs.expect(case.sender, packet, REDIRECT, reason, out)


def test_icmp_error_about_a_changed_port(programs: Programs) -> None:
    """Ports inside go back to what the container knows; the outer checksum follows."""
    for ask, _ in CHANGED:
        got = programs.run(A1, A1.sends(OUTSIDE, ask(7)))
        at = 38 if ask(7).proto == p.ICMP else 34
        chosen = int.from_bytes(got.packet[at : at + 2], "big")
        case = Case(
            [], None, ROUTER, HOST, (HOST, OUTSIDE, ask(chosen)), ROUTER, A1, (A1.ip, OUTSIDE, ask(7))
        )
        for error in ERRORS.values():
            for size in (28, 200):
                packet, out = error_frames(case, error, size=size)
                programs.expect(None, packet, REDIRECT, Reason.DELIVERED, out)


ABOUT = p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT))
WRONG_ERRORS = [
    untouched("to another address of the host's", outside_sends(OTHER, ABOUT, src=ROUTER)),
    untouched("straight to the container", outside_sends(A1.ip, ABOUT, src=ROUTER)),
    untouched(
        "about another port",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, p.udp(SPORT + 1, 53)))),
    ),
    untouched(
        "about the container's own address",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(A1.ip, OUTSIDE, UDP_OUT))),
    ),
    untouched("about an answer", outside_sends(HOST, p.icmp(3, 1, 0, quotation(OUTSIDE, HOST, LATE)))),
    untouched(
        "a quotation cut short",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT, size=27))),
    ),
    untouched(
        "a quotation with a lie",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT, ihl=4))),
    ),
    untouched(
        "a quotation of IPv6",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT, version=6))),
    ),
    untouched(
        "a quotation of a later fragment",
        outside_sends(HOST, p.icmp(3, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT, fragment=5))),
    ),
    untouched("a fragment of an error", outside_sends(HOST, ABOUT, src=ROUTER, fragment=p.MORE_FRAGMENTS)),
    untouched(
        "a redirect", outside_sends(HOST, p.icmp(5, 1, 0, quotation(HOST, OUTSIDE, UDP_OUT)), src=ROUTER)
    ),
    dropped(
        "another container about the connection",
        A3,
        A3.sends(OUTSIDE, p.icmp(3, 3, 0, quotation(OUTSIDE, A1.ip, LATE))),
        Reason.DROP_NO_CONN,
    ),
    redirected(
        "a container to the host about its masqueraded connection",
        A3,
        A3.sends(HOST, ABOUT),
        Reason.TO_HOST,
    ),
    dropped(
        "a container to another network",
        A3,
        A3.sends(B1.ip, p.icmp(3, 3, 0, quotation(B1.ip, A3.ip, LATE))),
        Reason.DROP_ISOLATED,
    ),
]


@pytest.mark.parametrize("row", WRONG_ERRORS, ids=[row.sentence for row in WRONG_ERRORS])
def test_icmp_error_that_is_not_ours(programs: Programs, row: Row) -> None:
    for step in UDP_STEPS:
        programs.run(step.sender, step.packet)
    programs.check(row)


def test_connection_of_an_endpoint_that_is_gone(programs: Programs) -> None:
    """Neither its packets nor errors about it reach the address's next holder."""
    for step in UDP_STEPS:
        programs.run(step.sender, step.packet)
    key = abi.endpoint_key(1, A1.ip)
    endpoint = programs.maps["endpoints"][key]
    error = outside_sends(HOST, ABOUT, src=ROUTER)
    try:
        programs.maps["endpoints"][key] = endpoint._replace(number=99)
        programs.expect(None, outside_sends(HOST, LATE), SHOT, Reason.DROP_STALE)
        programs.expect(None, error, SHOT, Reason.DROP_STALE)
        del programs.maps["endpoints"][key]
        programs.expect(None, outside_sends(HOST, LATE), SHOT, Reason.DROP_STALE)
        programs.expect(None, error, SHOT, Reason.DROP_STALE)
    finally:
        programs.maps["endpoints"][key] = endpoint
    programs.expect(
        None, outside_sends(HOST, LATE), REDIRECT, Reason.DELIVERED, A1.gets(OUTSIDE, LATE, ttl=63)
    )


@pytest.mark.ethernet
def test_sums_of_the_device_stay_right(programs: Programs) -> None:
    """With CHECKSUM_COMPLETE the kernel itself checks (EBADMSG) that no rewrite spoilt the device's sum."""
    flags = libbpf.BPF_F_TEST_SKB_CHECKSUM_COMPLETE
    plain = A1.sends(A2.ip, p.udp(1, 2), to=A2.mac)
    try:
        programs.run(A1, plain, flags=flags)
    except KernelError:
        pytest.skip("this kernel's test runs cannot check sums")
    for name, steps in CONVERSATIONS.items():
        programs.forget()
        for step in steps:
            assert programs.run(step.sender, step.packet, flags=flags).packet == step.out, name
    for name, case in CASES.items():
        programs.forget()
        for step in case.opening:
            programs.run(step.sender, step.packet, flags=flags)
        for error in ERRORS.values():
            packet, out = error_frames(case, error)
            assert programs.run(case.sender, packet, flags=flags).packet == out, name
