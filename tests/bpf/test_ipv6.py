# SPDX-License-Identifier: Apache-2.0
"""Translation of IPv6: masquerading, published ports and ICMPv6 errors, whole packets in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from datapath.errors import KernelError
from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    B2,
    HOST,
    HOST6,
    IDENTIFIERS,
    NAT_FIRST,
    NAT_LAST,
    NET1,
    NET2,
    NEXT_HOP6,
    OTHER6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
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
ROUTER6 = "2001:db8:77::7"  # somewhere on the way
SYN_ACK = p.SYN | p.ACK
OPTIONS = p.extension(p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4))
HOPS = p.extension(p.HOP_OPTIONS, b"\0\1\4" + bytes(4))
ROUTE = p.extension(p.ROUTING, b"\0" + bytes(6))


class Step(NamedTuple):
    """One packet of a conversation: who sends it (None: the outside), what it becomes."""

    sender: Member | None
    packet: bytes
    reason: Any
    out: bytes


def out_and_back(there: list[p.Transport], back: list[p.Transport], **header: Any) -> list[Step]:
    """a1 speaks with the outside; its own port is kept."""
    steps: list[Step] = []
    for ask, reply in zip(there, back, strict=True):
        asked = A1.sends(OUTSIDE6, ask, **header)
        steps.append(Step(A1, asked, Reason.TO_OUTSIDE, A1.leaves(HOST6, OUTSIDE6, ask, **header)))
        came = outside_sends(HOST6, reply, **header)
        steps.append(Step(None, came, Reason.DELIVERED, A1.gets(OUTSIDE6, reply, hops=63, **header)))
    return steps


def served(server: Member, port: int, inner: int, at: p.Address) -> list[Step]:
    """A client outside and a published TCP port."""
    return [
        Step(
            None,
            outside_sends(at, p.tcp(9, port, p.SYN, options=b"\2\4\5\xa0")),
            Reason.DELIVERED,
            server.gets(OUTSIDE6, p.tcp(9, inner, p.SYN, options=b"\2\4\5\xa0"), hops=63),
        ),
        Step(
            server,
            server.sends(OUTSIDE6, p.tcp(inner, 9, SYN_ACK)),
            Reason.TO_OUTSIDE,
            server.leaves(at, OUTSIDE6, p.tcp(port, 9, SYN_ACK)),
        ),
        Step(
            None,
            outside_sends(at, p.tcp(9, port, p.ACK, b"GET /")),
            Reason.DELIVERED,
            server.gets(OUTSIDE6, p.tcp(9, inner, p.ACK, b"GET /"), hops=63),
        ),
        Step(
            server,
            server.sends(OUTSIDE6, p.tcp(inner, 9, p.ACK, b"odd")),
            Reason.TO_OUTSIDE,
            server.leaves(at, OUTSIDE6, p.tcp(port, 9, p.ACK, b"odd")),
        ),
    ]


def crossing(client: Member, server: Member, at: p.Address, port: int, inner: int) -> list[Step]:
    """A client of another network: its own address is seen."""
    ask, reply = p.udp(9, port), p.udp(inner, 9, b"answer")
    return [
        Step(
            client,
            client.sends(at, ask),
            Reason.DELIVERED,
            server.gets(client.ip6, p.udp(9, inner), hops=63),
        ),
        Step(
            server,
            server.sends(client.ip6, reply),
            Reason.DELIVERED,
            client.gets(at, p.udp(port, 9, b"answer"), hops=63),
        ),
    ]


def hairpin(client: Member, server: Member, at: p.Address, port: int, inner: int) -> list[Step]:
    """A client of the server's own network, or the server itself: it comes from the gateway."""
    gateway = server.net.gateway6
    return [
        Step(
            client,
            client.sends(at, p.tcp(SPORT, port, p.SYN)),
            Reason.DELIVERED,
            server.gets(gateway, p.tcp(SPORT, inner, p.SYN), hops=63),
        ),
        Step(
            server,
            server.sends(gateway, p.tcp(inner, SPORT, SYN_ACK)),
            Reason.DELIVERED,
            client.gets(at, p.tcp(port, SPORT, SYN_ACK), hops=63),
        ),
        Step(
            client,
            client.sends(at, p.tcp(SPORT, port, p.ACK, b"x")),
            Reason.DELIVERED,
            server.gets(gateway, p.tcp(SPORT, inner, p.ACK, b"x"), hops=63),
        ),
    ]


CONVERSATIONS = {
    "masqueraded TCP": out_and_back(
        [
            p.tcp(SPORT, 80, p.SYN, options=b"\2\4\5\xa0"),
            p.tcp(SPORT, 80, p.ACK),
            p.tcp(SPORT, 80, p.ACK, b"GET"),
        ],
        [p.tcp(80, SPORT, SYN_ACK), p.tcp(80, SPORT, p.ACK), p.tcp(80, SPORT, p.ACK, b"odd!!")],
    ),
    "masqueraded UDP": out_and_back([p.udp(SPORT, 53)] * 2, [p.udp(53, SPORT, b"answer.")] * 2),
    "masqueraded UDP, empty": out_and_back([p.udp(SPORT, 53, b"")], [p.udp(53, SPORT, b"")]),
    "masqueraded ping": out_and_back(
        [p.echo6(p.ECHO6, SPORT, sequence=i) for i in (1, 2, 3)],
        [p.echo6(p.ECHO6_REPLY, SPORT, sequence=i) for i in (1, 2, 3)],
    ),
    "masqueraded ping of 1452 bytes": out_and_back(
        [p.echo6(p.ECHO6, SPORT, bytes(range(121)) * 12)],
        [p.echo6(p.ECHO6_REPLY, SPORT, bytes(range(121)) * 12)],
    ),
    "masqueraded UDP behind extension headers": out_and_back(
        [p.udp(SPORT, 53)], [p.udp(53, SPORT)], extensions=(HOPS, ROUTE, OPTIONS)
    ),
    "masqueraded TCP behind an extension header": out_and_back(
        [p.tcp(SPORT, 80, p.SYN)], [p.tcp(80, SPORT, SYN_ACK)], extensions=(OPTIONS,)
    ),
    "masqueraded UDP in a fragment that is the whole": out_and_back(
        [p.udp(SPORT, 53)], [p.udp(53, SPORT)], extensions=(p.fragment_header(0, False),)
    ),
    "published, from outside": served(A2, 8081, 80, HOST6),
    "published, at an address of the host's loopback device": served(A2, 8081, 80, OTHER6),
    "published, at the gateway's address": served(A2, 8081, 80, NET1.gateway6),
    "published, at one address, without icc": served(B2, 8082, 80, HOST6),
    "published, from another network": crossing(B1, A2, HOST6, 8081, 53),
    "published, from another network, at that network's gateway": crossing(B1, A2, NET2.gateway6, 8081, 53),
    "published, from another network, at the server's gateway": crossing(B1, A2, NET1.gateway6, 8081, 53),
    "published, hairpin": hairpin(A1, A2, HOST6, 8081, 80),
    "published, hairpin at the gateway": hairpin(A1, A2, NET1.gateway6, 8081, 80),
    "published, hairpin to itself": hairpin(A2, A2, HOST6, 8081, 80),
    "published, hairpin without icc": hairpin(B1, B2, HOST6, 8082, 80),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(programs: Programs, name: str) -> None:
    for step in CONVERSATIONS[name]:
        programs.expect(step.sender, step.packet, REDIRECT, step.reason, step.out)


PLAIN = p.tcp(9, 8081, p.SYN)
NOT_OUTSIDE: dict[str, p.Address] = {
    "loopback": "::1",
    "::": "::",
    "a multicast group": "ff02::1",
    "a link-local address": "fe80::5",
    "a container": A1.ip6,
    "the server itself": A2.ip6,
    "the gateway": NET1.gateway6,
    "another network's container": B1.ip6,
    "a container's prefix, nobody there": "fd00:2::99",
    "the host itself": HOST6,
}
ROWS = [
    untouched("the host's own server", outside_sends(HOST6, p.tcp(9, 22, p.SYN))),
    untouched("an answer to the host's own question", outside_sends(HOST6, p.udp(53, 40000))),
    untouched("a ping", outside_sends(HOST6, p.echo6(p.ECHO6, 7))),
    untouched("an answer to the host's own ping", outside_sends(HOST6, p.echo6(p.ECHO6_REPLY, 7))),
    untouched("neighbour discovery", outside_sends(HOST6, p.solicitation(HOST6, None), hops=255)),
    untouched("straight to a container", outside_sends(A1.ip6, p.tcp(9, 80, p.SYN))),
    untouched("straight to a server, at the published port", outside_sends(A2.ip6, PLAIN)),
    untouched("a published port of an address that is not the host's", outside_sends(NEXT_HOP6, PLAIN)),
    untouched("a published port of an address beyond", outside_sends("2001:db8:9::9", PLAIN)),
    untouched("a published port of an unreachable address", outside_sends("2001:db8:6::1", PLAIN)),
    untouched("a port that is published at another address", outside_sends(OTHER6, p.tcp(9, 8082, p.SYN))),
    untouched("loopback, its published port", outside_sends("::1", p.tcp(9, 8083, p.SYN))),
    untouched("a published port of a multicast group", outside_sends("ff02::1", p.udp(9, 8081))),
    *(
        untouched(f"a published port, from {what}", outside_sends(HOST6, PLAIN, src=src))
        for what, src in NOT_OUTSIDE.items()
    ),
    untouched("IPv4, mapped", outside_sends(f"::ffff:{A2.ip}", PLAIN)),
    untouched("from IPv4, mapped", outside_sends(HOST6, PLAIN, src="::ffff:203.0.113.5")),
    untouched("a lie: its length", outside_sends(HOST6, PLAIN, length=999)),
    untouched("a lie: its length, within TCP", outside_sends(HOST6, PLAIN, length=19)),
    untouched("a lie: its version", outside_sends(HOST6, PLAIN, version=4)),
    redirected(
        "hop limit 1: the address is the host's, it has arrived",
        None,
        outside_sends(HOST6, PLAIN, hops=1),
        Reason.DELIVERED,
        A2.gets(OUTSIDE6, p.tcp(9, 80, p.SYN), hops=1),
    ),
    redirected(
        "published, behind extension headers, with padding",
        None,
        outside_sends(HOST6, PLAIN, extensions=(OPTIONS, OPTIONS)) + b"padding!",
        Reason.DELIVERED,
        A2.gets(OUTSIDE6, p.tcp(9, 80, p.SYN), hops=63, extensions=(OPTIONS, OPTIONS)) + b"padding!",
    ),
    redirected(
        "published, from the next hop",
        None,
        outside_sends(HOST6, PLAIN, src=NEXT_HOP6),
        Reason.DELIVERED,
        A2.gets(NEXT_HOP6, p.tcp(9, 80, p.SYN), hops=63),
    ),
    redirected(
        "to the next hop itself",
        A1,
        A1.sends(NEXT_HOP6, p.udp(SPORT, 53)),
        Reason.TO_OUTSIDE,
        A1.leaves(HOST6, NEXT_HOP6, p.udp(SPORT, 53)),
    ),
    redirected(
        "without icc",
        B1,
        B1.sends(OUTSIDE6, p.udp(SPORT, 53)),
        Reason.TO_OUTSIDE,
        B1.leaves(HOST6, OUTSIDE6, p.udp(SPORT, 53)),
    ),
    dropped(
        "from its link-local address to the outside, a foreign MAC",
        A1,
        A1.sends(OUTSIDE6, p.udp(SPORT, 53), to="02:42:de:ad:be:ef"),
        Reason.DROP_WRONG_MAC,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.sentence for row in ROWS])
def test_packet(programs: Programs, row: Row) -> None:
    programs.check(row)


def test_udp_whose_checksum_becomes_zero_says_so(programs: Programs) -> None:
    """IPv6 has no UDP without checksum: 0xffff stands for 0 (RFC 8200, 8.1)."""
    empty = p.udp(SPORT, 9, bytes(2))
    whole = empty.finish(p.packed(HOST6), p.packed(OUTSIDE6))
    # The payload takes up what the sum lacks.
    carried = p.udp(SPORT, 9, whole[6:8])
    assert carried.finish(p.packed(HOST6), p.packed(OUTSIDE6))[6:8] == b"\xff\xff"
    frame, out = A1.sends(OUTSIDE6, carried), A1.leaves(HOST6, OUTSIDE6, carried)
    programs.expect(A1, frame, REDIRECT, Reason.TO_OUTSIDE, out)


Speak = Callable[[int], p.Transport]
# What a container says from a port (or with an identifier), and what answers it.
CHANGED: tuple[tuple[Speak, Speak], ...] = (
    (lambda port: p.tcp(port, 80, p.SYN), lambda port: p.tcp(80, port, SYN_ACK)),
    (lambda port: p.udp(port, 53, b"odd"), lambda port: p.udp(53, port, b"answer")),
    (lambda port: p.echo6(p.ECHO6, port), lambda port: p.echo6(p.ECHO6_REPLY, port)),
)


@pytest.mark.parametrize("sport", [7, 40000])
def test_a_port_is_changed_and_comes_back(programs: Programs, sport: int) -> None:
    """Another container has it already. Below 1024 stays there; an identifier has a range of its own."""
    for ask, reply in CHANGED:
        programs.run(A2, A2.sends(OUTSIDE6, ask(sport)))
        got = programs.run(A1, A1.sends(OUTSIDE6, ask(sport)))
        at = 58 if ask(sport).proto == p.ICMPV6 else 54
        chosen = int.from_bytes(got.packet[at : at + 2], "big")
        first, last = (1, 511) if sport == 7 else (NAT_FIRST, NAT_LAST)
        if ask(sport).proto == p.ICMPV6:
            first, last = IDENTIFIERS[0], IDENTIFIERS[-1]
        assert first <= chosen <= last and chosen != sport and got.reasons == {"TO_OUTSIDE": 1}
        assert not (text := p.difference(got.packet, A1.leaves(HOST6, OUTSIDE6, ask(chosen)))), text
        back, came = outside_sends(HOST6, reply(chosen)), A1.gets(OUTSIDE6, reply(sport), hops=63)
        programs.expect(None, back, REDIRECT, Reason.DELIVERED, came)


def test_one_client_port_to_two_host_addresses_of_one_server(programs: Programs) -> None:
    """The second keeps its address and gets another port."""
    programs.run(None, outside_sends(HOST6, p.udp(SPORT, 8081)))
    got = programs.run(None, outside_sends(OTHER6, p.udp(SPORT, 8081)))
    chosen = int.from_bytes(got.packet[54:56], "big")
    assert chosen != SPORT
    assert got.packet == A2.gets(OUTSIDE6, p.udp(chosen, 53), hops=63)
    for port, address in ((chosen, OTHER6), (SPORT, HOST6)):
        back = A2.leaves(address, OUTSIDE6, p.udp(8081, SPORT))
        programs.expect(A2, A2.sends(OUTSIDE6, p.udp(53, port)), REDIRECT, Reason.TO_OUTSIDE, back)


def test_both_families_of_one_port_are_two_connections(programs: Programs) -> None:
    """The same numbers in both families, at once."""
    ask, reply = p.udp(SPORT, 53), p.udp(53, SPORT)
    for host, outside in ((HOST6, OUTSIDE6), (HOST, OUTSIDE)):
        out = A1.leaves(host, outside, ask)
        programs.expect(A1, A1.sends(outside, ask), REDIRECT, Reason.TO_OUTSIDE, out)
    programs.expect(
        None, outside_sends(HOST6, reply), REDIRECT, Reason.DELIVERED, A1.gets(OUTSIDE6, reply, hops=63)
    )
    programs.expect(
        None, outside_sends(HOST, reply), REDIRECT, Reason.DELIVERED, A1.gets(OUTSIDE, reply, ttl=63)
    )
    assert len(programs.table("conns")) == 4


# ---- ICMPv6 errors ----------------------------------------------------------------------------------------

ERRORS = {
    "no route": (1, 0, 0),
    "prohibited": (1, 1, 0),
    "port unreachable": (1, 4, 0),
    "packet too big": (2, 0, 1280),
    "time exceeded": (3, 0, 0),
    "parameter problem": (4, 1, 40),
}


def quotation(
    src: p.Address,
    dst: p.Address,
    carried: p.Transport,
    *,
    summed_for: tuple[p.Address, p.Address, p.Transport] | None = None,
    size: int = 48,
    **header: Any,
) -> bytes:
    """The first bytes of a packet. `summed_for`: whose transport checksum is still in it after translation,
    where nobody looks (RFC 5508, 4.2); an echo's identifier and checksum are changed together."""
    data = bytearray(carried.finish(p.packed(src), p.packed(dst)))
    if summed_for and carried.check_at is not None:
        was_src, was_dst, was = summed_for
        old = was.finish(p.packed(was_src), p.packed(was_dst))
        data[carried.check_at : carried.check_at + 2] = old[carried.check_at : carried.check_at + 2]
        if carried.proto == p.ICMPV6:
            new_id, old_id = (int.from_bytes(raw[4:6], "big") for raw in (data, old))
            kept = int.from_bytes(old[2:4], "big")
            # RFC 1624: what the identifier gains the sum loses.
            value = (~kept & 0xFFFF) + (~old_id & 0xFFFF) + new_id
            value = (value & 0xFFFF) + (value >> 16)
            value = (value & 0xFFFF) + (value >> 16)
            data[2:4] = (~value & 0xFFFF).to_bytes(2, "big")
    whole = p.Transport(carried.proto, bytes(data))
    return p.ipv6(src, dst, whole, **{"hops": 60, **header})[:size]


class Case(NamedTuple):
    """As in test_from_uplink: `sender` sends an error from `src` to `dst` about `before`; it arrives from
    `out_src` about `after`."""

    opening: list[Step]
    sender: Member | None
    src: p.Address
    dst: p.Address
    before: tuple[p.Address, p.Address, p.Transport]
    out_src: p.Address
    receiver: Member | None
    after: tuple[p.Address, p.Address, p.Transport]


UDP_OUT, LATE, ASKED = p.udp(SPORT, 53), p.udp(53, SPORT, b"answer."), p.echo6(p.ECHO6, SPORT)
TCP_OUT = p.tcp(SPORT, 80, p.ACK, b"GET")
UDP_STEPS, PING_STEPS, TCP_STEPS, SERVED, CROSSING, HAIRPIN = (
    CONVERSATIONS[name]
    for name in (
        "masqueraded UDP",
        "masqueraded ping",
        "masqueraded TCP",
        "published, from outside",
        "published, from another network",
        "published, hairpin",
    )
)
SAID = p.tcp(8081, 9, p.ACK, b"odd")
CASES = {
    "a router about masqueraded UDP": Case(
        UDP_STEPS, None, ROUTER6, HOST6, (HOST6, OUTSIDE6, UDP_OUT), ROUTER6, A1, (A1.ip6, OUTSIDE6, UDP_OUT)
    ),
    "the other end about masqueraded UDP": Case(
        UDP_STEPS,
        None,
        OUTSIDE6,
        HOST6,
        (HOST6, OUTSIDE6, UDP_OUT),
        OUTSIDE6,
        A1,
        (A1.ip6, OUTSIDE6, UDP_OUT),
    ),
    "about UDP that is not answered yet": Case(
        UDP_STEPS[:1],
        None,
        ROUTER6,
        HOST6,
        (HOST6, OUTSIDE6, UDP_OUT),
        ROUTER6,
        A1,
        (A1.ip6, OUTSIDE6, UDP_OUT),
    ),
    "a router about masqueraded TCP": Case(
        TCP_STEPS, None, ROUTER6, HOST6, (HOST6, OUTSIDE6, TCP_OUT), ROUTER6, A1, (A1.ip6, OUTSIDE6, TCP_OUT)
    ),
    "a router about a ping": Case(
        PING_STEPS, None, ROUTER6, HOST6, (HOST6, OUTSIDE6, ASKED), ROUTER6, A1, (A1.ip6, OUTSIDE6, ASKED)
    ),
    "the container about a late answer": Case(
        UDP_STEPS, A1, A1.ip6, OUTSIDE6, (OUTSIDE6, A1.ip6, LATE), HOST6, None, (OUTSIDE6, HOST6, LATE)
    ),
    "a router about what a published server sends": Case(
        SERVED,
        None,
        ROUTER6,
        HOST6,
        (HOST6, OUTSIDE6, SAID),
        ROUTER6,
        A2,
        (A2.ip6, OUTSIDE6, p.tcp(80, 9, p.ACK, b"odd")),
    ),
    "a published server about its client": Case(
        SERVED,
        A2,
        A2.ip6,
        OUTSIDE6,
        (OUTSIDE6, A2.ip6, p.tcp(9, 80, p.ACK, b"GET /")),
        HOST6,
        None,
        (OUTSIDE6, HOST6, p.tcp(9, 8081, p.ACK, b"GET /")),
    ),
    "a published server about a client of another network": Case(
        CROSSING,
        A2,
        A2.ip6,
        B1.ip6,
        (B1.ip6, A2.ip6, p.udp(9, 53)),
        HOST6,
        B1,
        (B1.ip6, HOST6, p.udp(9, 8081)),
    ),
    "a client of another network about its server": Case(
        CROSSING,
        B1,
        B1.ip6,
        HOST6,
        (HOST6, B1.ip6, p.udp(8081, 9)),
        B1.ip6,
        A2,
        (A2.ip6, B1.ip6, p.udp(53, 9)),
    ),
    "a published server about a client of its own network": Case(
        HAIRPIN,
        A2,
        A2.ip6,
        NET1.gateway6,
        (NET1.gateway6, A2.ip6, p.tcp(SPORT, 80, p.SYN)),
        HOST6,
        A1,
        (A1.ip6, HOST6, p.tcp(SPORT, 8081, p.SYN)),
    ),
    "a client of the same network about its server": Case(
        HAIRPIN,
        A1,
        A1.ip6,
        HOST6,
        (HOST6, A1.ip6, p.tcp(8081, SPORT, SYN_ACK)),
        NET1.gateway6,
        A2,
        (A2.ip6, NET1.gateway6, p.tcp(80, SPORT, SYN_ACK)),
    ),
}


def error_frames(case: Case, error: tuple[int, int, int], **how: Any) -> tuple[bytes, bytes]:
    """The error as it is sent, and as it must arrive."""
    kind, code, word = error
    sent = p.icmp6(kind, code, word, quotation(*case.before, **how))
    came = p.icmp6(kind, code, word, quotation(*case.after, summed_for=case.before, **how))
    packet = case.sender.sends(case.dst, sent) if case.sender else outside_sends(case.dst, sent, src=case.src)
    if case.receiver is None:
        assert case.sender is not None
        return packet, case.sender.leaves(case.out_src, case.dst, came)
    return packet, case.receiver.gets(case.out_src, came, hops=63)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_icmp_error(programs: Programs, name: str, error: str) -> None:
    case = CASES[name]
    for step in case.opening:
        programs.run(step.sender, step.packet)
    reason = Reason.DELIVERED if case.receiver else Reason.TO_OUTSIDE
    for how in ({}, {"size": 200}, {"hops": 1}):
        packet, out = error_frames(case, ERRORS[error], **how)
        programs.expect(case.sender, packet, REDIRECT, reason, out)


def test_icmp_error_about_a_changed_port(programs: Programs) -> None:
    for ask, _ in CHANGED:
        got = programs.run(A1, A1.sends(OUTSIDE6, ask(7)))
        at = 58 if ask(7).proto == p.ICMPV6 else 54
        chosen = int.from_bytes(got.packet[at : at + 2], "big")
        before, after = (HOST6, OUTSIDE6, ask(chosen)), (A1.ip6, OUTSIDE6, ask(7))
        case = Case([], None, ROUTER6, HOST6, before, ROUTER6, A1, after)
        for error in ERRORS.values():
            for size in (48, 200):
                packet, out = error_frames(case, error, size=size)
                programs.expect(None, packet, REDIRECT, Reason.DELIVERED, out)


def about(carried: p.Transport = UDP_OUT, **how: Any) -> p.Transport:
    return p.icmp6(1, 4, 0, quotation(HOST6, OUTSIDE6, carried, **how))


WRONG_ERRORS = [
    untouched("to another address of the host's", outside_sends(OTHER6, about(), src=ROUTER6)),
    untouched("straight to the container", outside_sends(A1.ip6, about(), src=ROUTER6)),
    untouched("about another port", outside_sends(HOST6, about(p.udp(SPORT + 1, 53)), src=ROUTER6)),
    untouched(
        "about the container's own address",
        outside_sends(HOST6, p.icmp6(1, 4, 0, quotation(A1.ip6, OUTSIDE6, UDP_OUT)), src=ROUTER6),
    ),
    untouched(
        "about an answer",
        outside_sends(HOST6, p.icmp6(1, 4, 0, quotation(OUTSIDE6, HOST6, LATE)), src=ROUTER6),
    ),
    untouched("a quotation cut short", outside_sends(HOST6, about(size=47), src=ROUTER6)),
    untouched(
        "a quotation that padding completes", outside_sends(HOST6, about(size=47), src=ROUTER6) + bytes(9)
    ),
    untouched("a quotation of IPv4's version", outside_sends(HOST6, about(version=4), src=ROUTER6)),
    untouched("without a quotation", outside_sends(HOST6, p.icmp6(1, 4), src=ROUTER6)),
    untouched(
        "the other family's error", outside_sends(HOST6, p.icmp(3, 3, 0, about().data[8:]), src=ROUTER6)
    ),
    untouched(
        "a fragment of an error",
        outside_sends(HOST6, about(), src=ROUTER6, extensions=(p.fragment_header(0, True),)),
    ),
    untouched(
        "informational, whatever it quotes",
        outside_sends(HOST6, p.icmp6(200, 0, 0, about().data[8:]), src=ROUTER6),
    ),
    dropped(
        "another container about the connection",
        A3,
        A3.sends(OUTSIDE6, p.icmp6(1, 4, 0, quotation(OUTSIDE6, A1.ip6, LATE))),
        Reason.DROP_NO_CONN,
    ),
    redirected(
        "a container to the host about its masqueraded connection",
        A3,
        A3.sends(HOST6, about()),
        Reason.TO_HOST,
    ),
    dropped(
        "a container to another network",
        A3,
        A3.sends(B1.ip6, p.icmp6(1, 4, 0, quotation(B1.ip6, A3.ip6, LATE))),
        Reason.DROP_ISOLATED,
    ),
]


@pytest.mark.parametrize("row", WRONG_ERRORS, ids=[row.sentence for row in WRONG_ERRORS])
def test_icmp_error_that_is_not_ours(programs: Programs, row: Row) -> None:
    for step in UDP_STEPS:
        programs.run(step.sender, step.packet)
    programs.check(row)


def test_connection_of_an_endpoint_that_is_gone(programs: Programs) -> None:
    for step in UDP_STEPS:
        programs.run(step.sender, step.packet)
    key = abi.endpoint_key(1, A1.ip6)
    endpoint = programs.maps["endpoints"][key]
    error = outside_sends(HOST6, about(), src=ROUTER6)
    try:
        programs.maps["endpoints"][key] = endpoint._replace(number=99)
        programs.expect(None, outside_sends(HOST6, LATE), SHOT, Reason.DROP_STALE)
        programs.expect(None, error, SHOT, Reason.DROP_STALE)
    finally:
        programs.maps["endpoints"][key] = endpoint
    programs.expect(
        None, outside_sends(HOST6, LATE), REDIRECT, Reason.DELIVERED, A1.gets(OUTSIDE6, LATE, hops=63)
    )


def test_a_forged_packet_of_a_containers_connection_is_not_taken(programs: Programs) -> None:
    programs.run(A1, A1.sends(OUTSIDE6, p.udp(SPORT, 53)))
    programs.expect(None, outside_sends(OUTSIDE6, p.udp(SPORT, 53), src=A1.ip6), UNSPEC, Reason.NOT_OURS)


@pytest.mark.ethernet
def test_sums_of_the_device_stay_right(programs: Programs) -> None:
    """With CHECKSUM_COMPLETE the kernel itself checks (EBADMSG) that no rewrite spoilt the device's sum: an IPv6
    header has no sum of its own that would make up for new addresses."""
    flags = libbpf.BPF_F_TEST_SKB_CHECKSUM_COMPLETE
    try:
        programs.run(A1, A1.sends(A2.ip6, p.udp(1, 2), to=A2.mac), flags=flags)
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
