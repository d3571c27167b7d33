# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom: each packet of a watched network's members is in one row, or in one total, and no two."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import A1, A2, A3, B1, B2, NET1, NET2, Member, Programs, Sender, wait_until

HOST_PARTY = int(abi.OtherParty.PARTY_HOST)
FLOWS = int(abi.NetworkFlag.NETWORK_FLOWS)
SYN_ACK, FIN_ACK = p.SYN | p.ACK, p.FIN | p.ACK
OBJECTS = ("from_container", "from_host", "conn_gc")
BOTH = pytest.mark.parametrize("family", [4, 6])


def watch(programs: Programs, *numbers: int) -> Programs:
    """The networks with these numbers are watched."""
    networks = programs.maps["networks"]
    for number in numbers:
        networks[number] = networks[number]._replace(flags=networks[number].flags | FLOWS)
    return programs


@pytest.fixture
def watched(make_programs: MakePrograms) -> Programs:
    return watch(make_programs(objects=OBJECTS), NET1.number, NET2.number)


def address(member: Member, family: int) -> Any:
    return member.ip if family == 4 else member.ip6


def says(programs: Programs, sender: Member, to: Member, carried: p.Transport, family: int = 4) -> int:
    """Sends it, and says how many bytes of IP that are."""
    frame = sender.sends(address(to, family), carried, to=to.mac)
    programs.run(sender, frame)
    return len(frame) - 14


def talk(programs: Programs, client: Member, server: Member, port: int, family: int = 4) -> tuple[int, int]:
    """A whole connection to port 80; how many bytes the client has sent, and the server."""
    sent = received = 0
    for ours, flags in (
        *((True, p.SYN), (False, SYN_ACK), (True, p.ACK), (True, p.PSH | p.ACK)),
        *((False, FIN_ACK), (True, FIN_ACK), (False, p.ACK)),
    ):
        payload = b"question" if flags & p.PSH else b""
        if ours:
            sent += says(programs, client, server, p.tcp(port, 80, flags, payload), family)
        else:
            received += says(programs, server, client, p.tcp(80, port, flags, payload), family)
    return sent, received


def totals(programs: Programs) -> dict[tuple[int, int, int, int, int], tuple[int, int, int, int, int]]:
    """All that was counted: (from, to, port, protocol, reason) -> connections, packets and bytes sent, and received.
    What has no room there is of (0, 0, 0, 0, 0)."""
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for key, flow in programs.maps["flows"].read_all():
        first, second, port = (flow.a, flow.b, key.port_b) if flow.a.opener else (flow.b, flow.a, key.port_a)
        edge = (first.from_, first.to, port, key.proto, 0)
        counted = (first.openings, first.packets, first.bytes, second.packets, second.bytes)
        for i, number in enumerate(counted):
            found[edge, i] += number
    for key, total in (
        *programs.maps["edges"].read_all(),
        (abi.edge_id(), programs.maps["flow_rest"][0].over),
    ):
        for i, number in enumerate(total[:5]):
            found[(key.from_, key.to, key.port, key.proto, key.reason), i] += number
    edges = {edge for (edge, _), number in found.items() if number}
    return {edge: tuple(found[edge, i] for i in range(5)) for edge in edges}  # type: ignore[misc]


@BOTH
def test_v4_both_directions_of_a_connection_are_one_row_of_who_has_opened_it(
    watched: Programs, family: int
) -> None:
    """SEE.md, V4: by whichever of the two, so by either end of the row."""
    sent, received = talk(watched, A1, A2, 40001, family)
    back = talk(watched, A2, A1, 40002, family)
    assert len(watched.maps["flows"]) == 2
    assert totals(watched) == {
        (A1.number, A2.number, 80, p.TCP, 0): (1, 4, sent, 3, received),
        (A2.number, A1.number, 80, p.TCP, 0): (1, 4, back[0], 3, back[1]),
    }


@BOTH
def test_v4_udp_and_pings_are_one_row_each(watched: Programs, family: int) -> None:
    icmp = p.ICMP if family == 4 else p.ICMPV6
    ping = (p.echo, p.ECHO, p.ECHO_REPLY) if family == 4 else (p.echo6, p.ECHO6, p.ECHO6_REPLY)
    asked = says(watched, A1, A2, p.udp(5000, 53, b"x" * 100), family)
    told = says(watched, A2, A1, p.udp(53, 5000, b"y" * 300), family)
    pings = [says(watched, A2, A3, ping[0](ping[1], 77), family) for _ in range(3)]
    pongs = [says(watched, A3, A2, ping[0](ping[2], 77), family) for _ in range(2)]
    assert len(watched.maps["flows"]) == 2
    assert totals(watched) == {
        (A1.number, A2.number, 53, p.UDP, 0): (1, 1, asked, 1, told),
        (A2.number, A3.number, 0, icmp, 0): (1, 3, sum(pings), 2, sum(pongs)),
    }


@BOTH
def test_v4_fragments_are_counted_without_their_port_and_none_is_held(watched: Programs, family: int) -> None:
    whole = A1.sends(address(A2, family), p.udp(5000, 53, b"x" * 2000), to=A2.mac)
    pieces = p.cut(whole, 800, 1600)
    for piece in reversed(pieces):  # the one with the ports comes last
        got = watched.run(A1, piece)
        assert got.reasons == {"DELIVERED": 1} and got.packet == piece
    assert totals(watched) == {
        (A1.number, A2.number, 0, p.UDP, 0): (1, 3, sum(len(piece) - 14 for piece in pieces), 0, 0)
    }


@BOTH
def test_v4_the_host_is_an_end_like_any(watched: Programs, family: int) -> None:
    gateway = NET1.gateway if family == 4 else NET1.gateway6
    asks = A1.gets(gateway, p.udp(6000, 7))
    watched.run(NET1, asks)
    answer = A1.sends(gateway, p.udp(7, 6000, b"four"))
    watched.run(A1, answer)
    opened = A1.sends(gateway, p.tcp(40000, 22, p.SYN))
    watched.run(A1, opened)
    assert totals(watched) == {
        (HOST_PARTY, A1.number, 7, p.UDP, 0): (1, 1, len(asks) - 14, 1, len(answer) - 14),
        (A1.number, HOST_PARTY, 22, p.TCP, 0): (1, 1, len(opened) - 14, 0, 0),
    }


def test_v1_segments_of_a_large_packet_are_counted_one_by_one(watched: Programs) -> None:
    """SEE.md, V1: 14 of 100 bytes, and one of 13, each with headers of its own on a wire."""
    data = b"x" * (14 * 100 + 13)
    carried = p.tcp(40001, 80, p.ACK, data)
    watched.run(A1, A1.sends(A2.ip, carried, to=A2.mac), gso=100)
    assert totals(watched) == {
        (A1.number, A2.number, 80, p.TCP, 0): (0, 15, 15 * 40 + len(data), 0, 0),
    }


@BOTH
def test_v2_a_hundred_refused_openings_are_counted_with_the_reason(watched: Programs, family: int) -> None:
    """SEE.md, V2: of who was not let through to whom, at which port; there is no row of it."""
    size = {says(watched, B1, B2, p.tcp(40000 + i, 5432, p.SYN), family) for i in range(100)}
    assert not watched.maps["flows"]
    assert totals(watched) == {
        (B1.number, B2.number, 5432, p.TCP, int(abi.Reason.DROP_ICC)): (100, 100, 100 * size.pop(), 0, 0)
    }


def test_v2_what_is_refused_before_anybody_would_get_it_names_its_sender_alone(watched: Programs) -> None:
    nobody = A1.ip + 100
    watched.run(A1, A1.sends(nobody, p.udp(1, 2), to=A2.mac))
    assert totals(watched) == {(A1.number, 0, 0, p.UDP, int(abi.Reason.DROP_WRONG_MAC)): (1, 1, 36, 0, 0)}


def test_an_unwatched_network_is_not_counted(make_programs: MakePrograms) -> None:
    programs = make_programs(objects=OBJECTS)
    talk(programs, A1, A2, 40001)
    says(programs, B1, B2, p.tcp(40000, 5432, p.SYN))
    assert totals(programs) == {}


@pytest.mark.parametrize("sizes", [{}, {"edges": 1}], ids=["edges", "no room for edges"])
def test_v3_short_connections_through_a_small_table_are_all_counted(
    make_programs: MakePrograms, sizes: dict[str, int]
) -> None:
    """SEE.md, V3: what has ended, what goes on, and what never had a row, together are what was sent: packets, bytes,
    and connections. Nobody looks meanwhile."""
    programs = watch(make_programs(objects=OBJECTS, sizes={"flows": 16, "flow_queue": 16, **sizes}), 1)
    sent = received = 0
    for port in range(20000, 20500):
        client, server = (A1, A2) if port % 2 else (A3, A1)
        more = talk(programs, client, server, port)
        sent, received = sent + more[0], received + more[1]
    assert len(programs.maps["flows"]) == 16
    assert len(programs.maps["edges"]) == (1 if sizes else 2)
    programs.start_gc()  # not before: a row that ends makes room for a connection that has begun without one
    found = totals(programs)
    assert [sum(column) for column in zip(*found.values(), strict=True)] == [500, 2000, sent, 1500, received]
    if not sizes:
        assert {edge: row[0] for edge, row in found.items()} == {
            (A1.number, A2.number, 80, p.TCP, 0): 250,
            (A3.number, A1.number, 80, p.TCP, 0): 250,
        }


def age(programs: Programs, seconds: float) -> None:
    """The last packet of each row came so long ago."""
    flows = programs.maps["flows"]
    old = max(1, time.monotonic_ns() - int(seconds * 10**9))
    flows.update_many(
        {
            key: flow._replace(a=flow.a._replace(seen=old), b=flow.b._replace(seen=old))
            for key, flow in flows.read_all()
        }
    )


CLOSED: tuple[tuple[str, Callable[[Programs], Any], int], ...] = (
    ("closed", lambda programs: talk(programs, A1, A2, 40001), 10),
    ("unanswered", lambda programs: says(programs, A1, A2, p.tcp(40001, 80, p.SYN)), 60),
    ("one datagram", lambda programs: says(programs, A1, A2, p.udp(40001, 80)), 30),
    ("a ping", lambda programs: says(programs, A1, A2, p.echo(p.ECHO, 7)), 30),
)


@pytest.mark.parametrize("make, limit", [row[1:] for row in CLOSED], ids=[row[0] for row in CLOSED])
def test_v3_a_silent_row_is_ended_and_its_total_stays(
    watched: Programs, make: Callable[[Programs], Any], limit: int
) -> None:
    make(watched)
    before = totals(watched)
    watched.start_gc()
    age(watched, limit - 4)
    swept(watched)
    assert len(watched.maps["flows"]) == 1 and not watched.maps["edges"]
    age(watched, limit + 1)
    wait_until(lambda: not watched.maps["flows"])
    assert totals(watched) == before
    assert len(watched.maps["edges"]) == 1 and watched.maps["flow_rest"][0].queued == 0


def swept(programs: Programs) -> None:
    """Until the GC has looked at everything twice."""
    for _ in range(2):
        ticked = programs.maps["gc_timers"][0].ticked
        wait_until(lambda before=ticked: programs.maps["gc_timers"][0].ticked != before)  # type: ignore[misc]


def test_v4_a_late_answer_is_no_connection_of_who_answers(watched: Programs) -> None:
    """Its question's row was ended before."""
    asked = says(watched, A1, A2, p.udp(5000, 53))
    watched.start_gc()
    age(watched, 31)
    wait_until(lambda: not watched.maps["flows"])
    told = says(watched, A2, A1, p.udp(53, 5000))
    assert totals(watched) == {(A1.number, A2.number, 53, p.UDP, 0): (1, 1, asked, 1, told)}


def test_a_port_that_is_used_again_is_another_connection(watched: Programs) -> None:
    first, again = talk(watched, A1, A2, 40001), talk(watched, A1, A2, 40001)
    says(watched, A1, A2, p.tcp(40002, 80, p.SYN))
    size = says(watched, A1, A2, p.tcp(40002, 80, p.SYN))  # sent again, as nobody has answered
    assert totals(watched) == {
        (A1.number, A2.number, 80, p.TCP, 0): (3, 10, first[0] + again[0] + 2 * size, 6, first[1] + again[1])
    }


def test_v3_a_connection_by_the_ports_of_one_whose_end_alone_was_seen_is_counted(watched: Programs) -> None:
    """That one found no room for a row when it began; its last packets did."""
    size = says(watched, A2, A1, p.tcp(80, 40001, FIN_ACK))
    says(watched, A1, A2, p.tcp(40001, 80, p.ACK))
    assert totals(watched) == {(A1.number, A2.number, 80, p.TCP, 0): (0, 1, size, 1, size)}
    for _ in range(2):  # the second is sent again, as nobody has answered
        says(watched, A1, A2, p.tcp(40001, 80, p.SYN))
    assert totals(watched) == {(A1.number, A2.number, 80, p.TCP, 0): (1, 3, 3 * size, 1, size)}


def test_v6_an_address_that_another_container_has_now_is_another_line(watched: Programs) -> None:
    """SEE.md, V6: what the former holder has sent stays its own."""
    key = abi.endpoint_key(NET1.number, A2.ip)
    old, index = watched.maps["endpoints"][key], abi.device_key(watched.ifindex(A2))
    size = says(watched, A1, A2, p.udp(5000, 53))
    watched.maps["endpoints"][key] = old._replace(number=99)
    watched.maps["devices"][index] = watched.maps["devices"][index]._replace(endpoint=99)
    says(watched, A1, A2, p.udp(5000, 53))
    says(watched, A2, A1, p.udp(53, 5000))
    assert totals(watched) == {
        (A1.number, A2.number, 53, p.UDP, 0): (1, 1, size, 0, 0),
        (A1.number, 99, 53, p.UDP, 0): (1, 1, size, 1, size),
    }


def test_v6_rows_of_a_container_that_is_gone_are_ended_at_once(watched: Programs) -> None:
    talk(watched, A1, A2, 40001)
    says(watched, A1, A3, p.udp(5000, 53))
    before = totals(watched)
    watched.start_gc()
    swept(watched)
    assert len(watched.maps["flows"]) == 2
    watched.maps["endpoints"].pop(abi.endpoint_key(NET1.number, A2.ip), None)
    wait_until(lambda: len(watched.maps["flows"]) == 1)
    assert totals(watched) == before


def test_rows_of_a_network_that_is_gone_leave_no_total(watched: Programs) -> None:
    talk(watched, A1, A2, 40001)
    watched.maps["networks"][NET1.number] = abi.network()
    watched.start_gc()
    wait_until(lambda: not watched.maps["flows"])
    assert not watched.maps["edges"]


@BOTH
def test_v5_packets_are_the_same_whether_they_are_counted_or_not(
    make_programs: MakePrograms, family: int
) -> None:
    """SEE.md, V5: byte for byte, with the same verdict."""
    programs = make_programs(objects=OBJECTS)
    far = p.udp(20100, 9)
    gateway = NET1.gateway if family == 4 else NET1.gateway6
    frames: list[tuple[Sender, bytes]] = [
        (A1, A1.sends(address(A2, family), p.tcp(40000, 80, p.SYN), to=A2.mac)),
        (A2, A2.sends(address(A1, family), p.udp(53, 5000), to=A1.mac)),
        *((A1, f) for f in p.cut(A1.sends(address(A2, family), p.udp(5, 6, b"x" * 99), to=A2.mac), 40)),
        (B1, B1.sends(address(B2, family), p.tcp(40000, 80, p.SYN), to=B2.mac)),
        (A1, A1.sends(gateway, far)),
        (NET1, A1.gets(gateway, far)),
    ]
    plain = [programs.run(sender, frame) for sender, frame in frames]
    watch(programs, NET1.number, NET2.number)
    assert [programs.run(sender, frame) for sender, frame in frames] == plain
