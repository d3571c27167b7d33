# SPDX-License-Identifier: Apache-2.0
"""What is translated is in one total of who has begun it, packet by packet, whatever becomes of its connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf import services as s
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    B2,
    HOST,
    HOST6,
    LO,
    NET1,
    NET2,
    OUTSIDE,
    OUTSIDE6,
    Copies,
    Member,
    Programs,
    Sender,
    host_says,
    outside_sends,
)
from tests.bpf.test_bandwidth import INGRESS, Limited

FLOWS = int(abi.NetworkFlag.NETWORK_FLOWS)
HOST_PARTY = int(abi.OtherParty.PARTY_HOST)
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["tcp", "udp"])
HOSTS: dict[int, p.Address] = {4: HOST, 6: HOST6}
OUTSIDES: dict[int, p.Address] = {4: OUTSIDE, 6: OUTSIDE6}
PORTS = {p.TCP: 80, p.UDP: 53}  # of A2, published at 8081

Edge = tuple[int, int, int, int, int]
Counted = tuple[int, int, int, int, int]


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=s.SERVICE_OBJECTS) as made:
        yield made


@pytest.fixture(autouse=True)
def watched(programs: Programs) -> Iterator[None]:
    """Network 1 is, and the others are not."""
    networks = programs.maps["networks"]
    before = {number: networks[number] for number in (NET1.number, NET2.number)}
    networks[NET1.number] = before[1]._replace(flags=before[1].flags | FLOWS)
    yield
    for number, row in before.items():
        networks[number] = row


def totals(programs: Programs) -> dict[Edge, Counted]:
    """(network, from, to, port, protocol) -> connections, packets and bytes sent, and received."""
    assert not dict(programs.maps["flows"].read_all())
    return {
        (key.network, key.from_, key.to, key.port, key.proto): tuple(row[:5])
        for key, row in programs.maps["edges"].read_all()
    }


class Talk:
    """Frames that pass, and what they come to."""

    def __init__(self, programs: Programs) -> None:
        self.programs, self.sums = programs, Counter[str]()

    def says(self, sender: Sender, frame: bytes, *, back: bool = False) -> None:
        reasons = self.programs.run(sender, frame).reasons
        assert reasons.keys() & {"DELIVERED", "TO_OUTSIDE", "TO_HOST"}, reasons
        self.sums["back" if back else "packets"] += 1
        self.sums["back_bytes" if back else "bytes"] += len(frame) - 14

    def counted(self, connections: int) -> Counted:
        names = ("packets", "bytes", "back", "back_bytes")
        return connections, *(self.sums[name] for name in names)  # type: ignore[return-value]


def carried(proto: int, sport: int, dport: int, flags: int, length: int = 0) -> p.Transport:
    payload = bytes(length)
    return p.udp(sport, dport, payload) if proto == p.UDP else p.tcp(sport, dport, flags, payload)


def own(member: Member, family: int) -> p.Address:
    return member.ip if family == 4 else member.ip6


def reply_of(programs: Programs) -> Any:
    """The answers' tuple of the one connection."""
    rows = {**programs.table("pending"), **programs.table("conns")}
    return next(key for key, row in rows.items() if not row.flags & abi.ConnFlag.CONN_ORIGINAL)


STEPS = (
    *((False, p.SYN, 0), (True, p.SYN | p.ACK, 0), (False, p.ACK, 0)),
    *((False, p.PSH | p.ACK, 9), (True, p.PSH | p.ACK, 300)),
)


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("forgotten", [False, True], ids=["", "forgotten"])
def test_v4_from_outside_to_a_published_port(
    programs: Programs, family: int, proto: int, forgotten: bool
) -> None:
    """Its rows may go at any time, as in a flood: what they have counted stays."""
    talk, port = Talk(programs), PORTS[proto]
    for back, flags, length in STEPS:
        if back:
            frame = A2.sends(OUTSIDES[family], carried(proto, port, 4000, flags, length))
        else:
            frame = outside_sends(HOSTS[family], carried(proto, 4000, 8081, flags, length))
        talk.says(A2 if back else None, frame, back=back)
    if forgotten:
        for table in ("pending", "conns"):
            programs.maps[table].delete_many(list(programs.maps[table]))
    assert totals(programs) == {(1, 0, A2.number, port, proto): talk.counted(1)}


@FAMILIES
@PROTOCOLS
def test_v4_the_way_out(programs: Programs, family: int, proto: int) -> None:
    talk = Talk(programs)
    for back, flags, length in STEPS:
        if back:
            external = reply_of(programs).dport
            talk.says(
                None, outside_sends(HOSTS[family], carried(proto, 443, external, flags, length)), back=True
            )
        else:
            talk.says(A1, A1.sends(OUTSIDES[family], carried(proto, 4000, 443, flags, length)))
    assert totals(programs) == {(1, A1.number, 0, 443, proto): talk.counted(1)}


@FAMILIES
def test_v4_a_ping_to_the_outside(programs: Programs, family: int) -> None:
    echo, ask = (p.echo, p.ECHO) if family == 4 else (p.echo6, p.ECHO6)
    talk = Talk(programs)
    for _ in range(3):
        talk.says(A3, A3.sends(OUTSIDES[family], echo(ask, 7)))
    proto = p.ICMP if family == 4 else p.ICMPV6
    assert totals(programs) == {(1, A3.number, 0, 0, proto): talk.counted(1)}


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("client", [A1, B1], ids=["of the same network", "of one that is not watched"])
def test_v4_a_container_that_asks_a_published_port(
    programs: Programs, family: int, proto: int, client: Member
) -> None:
    talk, port = Talk(programs), PORTS[proto]
    for back, flags, length in STEPS:
        if not back:
            talk.says(client, client.sends(HOSTS[family], carried(proto, 4000, 8081, flags, length)))
            continue
        key = reply_of(programs)
        talk.says(A2, A2.sends(key.dst, carried(proto, port, key.dport, flags, length)), back=True)
    assert totals(programs) == {(1, client.number, A2.number, port, proto): talk.counted(1)}


def test_v4_of_two_watched_networks_it_is_in_that_of_who_has_begun(programs: Programs) -> None:
    row = programs.maps["networks"][NET2.number]
    programs.maps["networks"][NET2.number] = row._replace(flags=row.flags | FLOWS)
    talk = Talk(programs)
    talk.says(A1, A1.sends(HOST, p.tcp(4000, 8082, p.SYN)))
    assert totals(programs) == {(1, A1.number, B2.number, 80, p.TCP): talk.counted(1)}


@FAMILIES
def test_v4_the_host_by_its_own_address(programs: Programs, family: int) -> None:
    talk = Talk(programs)
    talk.says(LO, host_says(HOSTS[family], p.tcp(4000, 8081, p.SYN)))
    assert totals(programs) == {(1, HOST_PARTY, A2.number, 80, p.TCP): talk.counted(1)}


@FAMILIES
@PROTOCOLS
def test_v4_a_service_of_the_same_network(programs: Programs, family: int, proto: int) -> None:
    s.fill(programs, [A2])
    talk = Talk(programs)
    for back, flags, length in STEPS:
        if back:
            talk.says(
                A2, A2.sends(own(A1, family), carried(proto, 80, 4000, flags, length), to=A1.mac), back=True
            )
        else:
            talk.says(A1, A1.sends(s.at(family), carried(proto, 4000, 80, flags, length)))
    s.remove(programs)
    assert totals(programs) == {(1, A1.number, A2.number, 80, proto): talk.counted(1)}


def test_v3_a_port_that_is_used_again_is_another_connection_and_a_syn_sent_again_is_none(
    programs: Programs,
) -> None:
    talk = Talk(programs)
    for _ in range(2):
        for back, flags in ((False, p.SYN), (False, p.SYN), (True, p.SYN | p.ACK), (False, p.ACK)):
            if back:
                talk.says(A2, A2.sends(OUTSIDE, p.tcp(80, 4000, flags)), back=True)
            else:
                talk.says(None, outside_sends(HOST, p.tcp(4000, 8081, flags)))
        talk.says(None, outside_sends(HOST, p.tcp(4000, 8081, p.FIN | p.ACK)))
        talk.says(A2, A2.sends(OUTSIDE, p.tcp(80, 4000, p.FIN | p.ACK)), back=True)
    assert totals(programs) == {(1, 0, A2.number, 80, p.TCP): talk.counted(2)}


def test_v4_fragments_are_at_the_port_of_their_datagram(programs: Programs) -> None:
    talk = Talk(programs)
    for piece in p.cut(outside_sends(HOST, p.udp(4000, 8081, bytes(1600)), fragment=0), 800):
        talk.says(None, piece)
    assert totals(programs) == {(1, 0, A2.number, 53, p.UDP): talk.counted(1)}


def test_v3_without_room_it_is_in_the_one_total_by_no_name(programs: Programs) -> None:
    most = programs.maps["edges"].max_entries
    full: dict[Any, Any] = {abi.edge_id(7, number, 1, 0, 1, p.TCP): abi.edge() for number in range(most)}
    programs.maps["edges"].update_many(full)
    before = programs.maps["flow_rest"][0].over
    talk = Talk(programs)
    talk.says(None, outside_sends(HOST, p.tcp(4000, 8081, p.SYN)))
    after = programs.maps["flow_rest"][0].over
    assert tuple(b - a for a, b in zip(before[:5], after[:5], strict=True)) == talk.counted(1)


def test_v4_what_a_service_cannot_lead_anywhere_is_refused_once(programs: Programs) -> None:
    s.fill(programs, [])
    frame = A1.sends(s.vip(), p.tcp(4000, 80, p.SYN))
    assert programs.run(A1, frame).reasons == {"DROP_NO_BACKEND": 1}
    s.remove(programs)
    reason = int(abi.Reason.DROP_NO_BACKEND)
    assert {
        (key.from_, key.to, key.reason): tuple(row[:3]) for key, row in programs.maps["edges"].read_all()
    } == {(A1.number, 0, reason): (1, 1, len(frame) - 14)}


def test_v4_what_is_thrown_away_after_its_connection_has_counted_it_is_not_counted_once_more(
    programs: Programs,
) -> None:
    """Here by a limit of who would get it."""
    frame, limited = A1.sends(HOST, p.tcp(4000, 8081, p.SYN)), Limited(programs, A2, INGRESS)
    limited.holds(1, left=0)
    reasons = programs.run(A1, frame).reasons
    limited.end()
    assert reasons == {"DROP_BANDWIDTH": 1}
    assert totals(programs) == {(1, A1.number, A2.number, 80, p.TCP): (1, 1, len(frame) - 14, 0, 0)}


def test_v5_what_is_not_watched_is_in_no_total(programs: Programs) -> None:
    talk = Talk(programs)
    talk.says(B1, B1.sends(OUTSIDE, p.tcp(4000, 443, p.SYN)))
    talk.says(None, outside_sends(HOST, p.tcp(4000, 8082, p.SYN)))
    assert totals(programs) == {}
