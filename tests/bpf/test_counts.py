# SPDX-License-Identifier: Apache-2.0
"""Packets and bytes of connections, and of services' backends: each is counted once, whatever becomes of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf import services as s
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    Copies,
    Member,
    Programs,
    Sender,
    outside_sends,
)

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PROTOCOLS = pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["tcp", "udp"])
HOSTS: dict[int, p.Address] = {4: HOST, 6: HOST6}
OUTSIDES: dict[int, p.Address] = {4: OUTSIDE, 6: OUTSIDE6}
ETHERNET = 14


class Sums(NamedTuple):
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=s.SERVICE_OBJECTS) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs) -> Iterator[None]:
    s.fill(programs, [A2])
    yield
    s.remove(programs)


def own(member: Member, version: int) -> p.Address:
    return member.ip if version == 4 else member.ip6


def carried(
    proto: int, sport: int, dport: int, flags: int = p.SYN, payload: bytes = b"", **more: Any
) -> p.Transport:
    return p.udp(sport, dport, payload) if proto == p.UDP else p.tcp(sport, dport, flags, payload, **more)


def of_backend(programs: Programs, member: Any = A2) -> Sums:
    """What has passed to and from it, of a service."""
    copies = dict(programs.maps["service_counts"].read_all())[abi.service_count_key(s.backend_of(member))]
    return Sums(*(sum(getattr(one, field) for one in copies) for field in Sums._fields))


def of_connection(programs: Programs) -> Sums:
    """What the rows of the one connection say."""
    found = Sums()
    for conn in (*programs.table("pending").values(), *programs.table("conns").values()):
        if conn.flags & abi.ConnFlag.CONN_ORIGINAL:
            found = found._replace(packets_in=conn.packets, bytes_in=conn.bytes)
        else:
            found = found._replace(packets_out=conn.packets, bytes_out=conn.bytes)
    return found


def passes(programs: Programs, sender: Sender, frame: bytes, **more: Any) -> None:
    assert programs.run(sender, frame, **more).reasons.keys() & {"DELIVERED", "TO_OUTSIDE"}


def exchange(programs: Programs, version: int, proto: int, *, rounds: int = 3) -> Sums:
    """A1 asks the service, and A2 answers, so often; what that has to come to."""
    sums = [0, 0, 0, 0]
    for number in range(rounds):
        flags, back = (p.SYN, p.SYN | p.ACK) if not number else (p.ACK, p.ACK)
        ask = A1.sends(s.at(version), carried(proto, 4000, 80, flags, bytes(number)))
        answer = carried(proto, 80, 4000, back, bytes(100 * number))
        answer_frame = A2.sends(own(A1, version), answer, to=A1.mac)
        for at, sender, frame in ((0, A1, ask), (2, A2, answer_frame)):
            passes(programs, sender, frame)
            sums[at] += 1
            sums[at + 1] += len(frame) - ETHERNET
    return Sums(*sums)


@FAMILIES
@PROTOCOLS
def test_s26_each_packet_of_a_connection_is_counted_in_its_direction(
    programs: Programs, version: int, proto: int
) -> None:
    """Before both sides have spoken, while the rows move, and afterwards: in its row, and for its backend."""
    passes(programs, A1, A1.sends(s.at(version), carried(proto, 4000, 80)))
    assert of_connection(programs) == of_backend(programs)
    assert of_backend(programs).packets_in == 1 and not of_backend(programs).packets_out
    programs.forget()
    programs.maps["service_counts"].delete_many(list(programs.maps["service_counts"]))
    wanted = exchange(programs, version, proto)
    assert len(programs.table("conns")) == 2 and not programs.table("pending")
    assert of_connection(programs) == of_backend(programs) == wanted


@FAMILIES
def test_s26_what_was_counted_for_a_backend_stays_when_its_connection_ends(
    programs: Programs, version: int
) -> None:
    """However it ends: here a flood, the GC, or a command has taken the rows away."""
    wanted = exchange(programs, version, p.UDP)
    programs.forget()
    assert of_backend(programs) == wanted
    again = exchange(programs, version, p.UDP)
    assert of_connection(programs) == again
    assert of_backend(programs) == Sums(*(a + b for a, b in zip(wanted, again, strict=True)))


@FAMILIES
@pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["tcp", "udp"])
def test_s26_a_large_packet_is_counted_as_its_segments(programs: Programs, version: int, proto: int) -> None:
    """As many as its data fills, each with headers of its own; one that is not full is one, too."""
    exchange(programs, version, proto, rounds=2)
    for length, size, segments in ((3001, 700, 5), (2800, 700, 4), (700, 700, 1), (1, 700, 1)):
        before = of_backend(programs)
        frame = A1.sends(s.at(version), carried(proto, 4000, 80, p.ACK, bytes(length)))
        headers = len(frame) - ETHERNET - length
        passes(programs, A1, frame, gso=size)
        assert of_backend(programs).packets_in - before.packets_in == segments
        assert of_backend(programs).bytes_in - before.bytes_in == length + segments * headers
    assert of_connection(programs) == of_backend(programs)


@FAMILIES
def test_s26_a_published_port_is_counted_for_the_backend_that_got_it(
    programs: Programs, version: int
) -> None:
    ask = outside_sends(HOSTS[version], carried(p.UDP, 4000, s.PUBLISHED, payload=b"ask"))
    answer = A2.sends(OUTSIDES[version], carried(p.UDP, 80, 4000, payload=b"answer"))
    passes(programs, None, ask)
    passes(programs, A2, answer)
    wanted = Sums(1, len(ask) - ETHERNET, 1, len(answer) - ETHERNET)
    assert of_connection(programs) == of_backend(programs) == wanted


def test_s26_a_connection_that_begins_in_the_place_of_one_that_is_over_counts_anew(
    programs: Programs,
) -> None:
    """Its row does; what its backend has had goes on."""
    first = exchange(programs, 4, p.TCP)
    for sender, to, ports in ((A1, s.vip(), (4000, 80)), (A2, A1.ip, (80, 4000))):
        frame = sender.sends(to, p.tcp(*ports, p.FIN | p.ACK), to=A1.mac if sender is A2 else None)
        passes(programs, sender, frame)
    again = A1.sends(s.vip(), p.tcp(4000, 80, p.SYN, options=bytes(8)))
    passes(programs, A1, again)
    assert of_connection(programs) == Sums(1, len(again) - ETHERNET, 0, 0)
    assert of_backend(programs).packets_in == first.packets_in + 2


def test_s26_fragments_are_counted_each_by_itself(programs: Programs) -> None:
    passes(programs, A1, A1.sends(s.vip(), p.udp(4000, 80)))
    before = of_backend(programs)
    pieces = p.cut(A1.sends(s.vip(), p.udp(4000, 80, bytes(1600)), fragment=0), 800)
    for piece in pieces:
        programs.run(A1, piece)
    sent = sum(len(piece) - ETHERNET for piece in pieces)
    after = of_backend(programs)
    assert (after.packets_in - before.packets_in, after.bytes_in - before.bytes_in) == (2, sent)


def test_connections_of_no_service_are_counted_in_their_rows_alone(programs: Programs) -> None:
    """Here one to the outside, which is masqueraded."""
    sent = [A1.sends(OUTSIDE, p.udp(4000, 53, bytes(n))) for n in (1, 20, 300)]
    for frame in sent:
        passes(programs, A1, frame)
    found = of_connection(programs)
    assert (found.packets_in, found.bytes_in) == (3, sum(len(frame) - ETHERNET for frame in sent))
    assert not any(conn.backend for conn in programs.table("pending").values())
    assert not list(programs.maps["service_counts"])


def test_s26_a_backend_is_counted_by_itself(programs: Programs) -> None:
    """Two backends, and clients that the table leads to either."""
    s.fill(programs, [A2, A3])
    sent = {A2.name: 0, A3.name: 0}
    for port in range(4000, 4040):
        frame = A1.sends(s.vip(), p.udp(port, 80, bytes(port % 7)))
        got = programs.run(A1, frame)
        to = next(one for one in (A2, A3) if got.packet[30:34] == one.ip.packed)
        sent[to.name] += len(frame) - ETHERNET
    assert all(sent.values())
    for member in (A2, A3):
        assert of_backend(programs, member).bytes_in == sent[member.name]
