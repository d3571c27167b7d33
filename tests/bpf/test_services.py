# SPDX-License-Identifier: Apache-2.0
"""Services on one host: whoever asks the virtual address, or the published port, is answered by a backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
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
    REDIRECT,
    SHOT,
    UNSPEC,
    Copies,
    Member,
    Programs,
    Reason,
    booted_for,
    host_says,
    outside_sends,
)

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PROTOCOLS = pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["tcp", "udp"])
HOSTS: dict[int, p.Address] = {4: HOST, 6: HOST6}
OUTSIDES: dict[int, p.Address] = {4: OUTSIDE, 6: OUTSIDE6}


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=s.SERVICE_OBJECTS) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs) -> Iterator[None]:
    s.fill(programs, [A2])
    yield
    s.remove(programs)


def hop(version: int) -> dict[str, Any]:
    """The header of what was forwarded."""
    return {"ttl": 63} if version == 4 else {"hops": 63}


def own(member: Member, version: int) -> p.Address:
    return member.ip if version == 4 else member.ip6


def carried(proto: int, sport: int, dport: int, flags: int = p.SYN) -> p.Transport:
    return p.udp(sport, dport) if proto == p.UDP else p.tcp(sport, dport, flags)


def ask(programs: Programs, sport: int, version: int = 4, proto: int = p.TCP) -> str:
    """A1 asks the service from that port; who is asked: the name of a member, or the reason why not."""
    got = programs.run(A1, A1.sends(s.at(version), carried(proto, sport, 80)))
    (reason,) = got.reasons
    if reason != "DELIVERED":
        return reason
    at, size = (30, 4) if version == 4 else (38, 16)
    asked = ip_address(got.packet[at : at + size])
    return next(member.name for member in (A1, A2, A3) if asked in (member.ip, member.ip6))


# ---- clients ---------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_s26_a_member_asks_the_virtual_address_and_is_answered_by_it(
    programs: Programs, version: int, proto: int
) -> None:
    """The backend sees the client's own address and port; its answer goes straight to a member, as the service's."""
    vip = s.at(version)
    programs.expect(
        A1,
        A1.sends(vip, carried(proto, 4000, 80)),
        REDIRECT,
        Reason.DELIVERED,
        A2.gets(own(A1, version), carried(proto, 4000, 80), **hop(version)),
    )
    answer = A2.sends(own(A1, version), carried(proto, 80, 4000, p.SYN | p.ACK), to=A1.mac)
    seen = A1.gets(vip, carried(proto, 80, 4000, p.SYN | p.ACK), **hop(version))
    programs.expect(A2, answer, REDIRECT, Reason.DELIVERED, seen)
    for _ in range(2):
        programs.expect(
            A1,
            A1.sends(vip, carried(proto, 4000, 80, p.ACK)),
            REDIRECT,
            Reason.DELIVERED,
            A2.gets(own(A1, version), carried(proto, 4000, 80, p.ACK), **hop(version)),
        )
    assert len(programs.table("conns")) == 2
    assert s.counts(programs, s.SERVICE) == s.counts(programs, s.backend_of(A2)) == (1, 0)


@FAMILIES
@PROTOCOLS
def test_s26_a_backend_that_asks_itself_hears_the_gateway(
    programs: Programs, version: int, proto: int
) -> None:
    vip, gateway = s.at(version), NET1.gateway if version == 4 else NET1.gateway6
    got = programs.run(A2, A2.sends(vip, carried(proto, 4000, 80)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    at = 34 if version == 4 else 54
    port = int.from_bytes(got.packet[at : at + 2], "big")
    heard = A2.gets(gateway, carried(proto, port, 80), **hop(version))
    assert not (text := p.difference(got.packet, heard)), text
    answer = A2.sends(gateway, carried(proto, 80, port, p.SYN | p.ACK))
    seen = A2.gets(vip, carried(proto, 80, 4000, p.SYN | p.ACK), **hop(version))
    programs.expect(A2, answer, REDIRECT, Reason.DELIVERED, seen)


@FAMILIES
@PROTOCOLS
def test_s26_the_published_port_shows_the_server_a_client_outside(
    programs: Programs, version: int, proto: int
) -> None:
    frame = outside_sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED))
    seen = A2.gets(OUTSIDES[version], carried(proto, 4000, 80), **hop(version))
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, seen)
    answer = A2.sends(OUTSIDES[version], carried(proto, 80, 4000, p.SYN | p.ACK))
    leaves = A2.leaves(HOSTS[version], OUTSIDES[version], carried(proto, s.PUBLISHED, 4000, p.SYN | p.ACK))
    programs.expect(A2, answer, REDIRECT, Reason.TO_OUTSIDE, leaves)
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, seen)


@FAMILIES
@PROTOCOLS
def test_s26_a_member_of_another_network_asks_the_published_port(
    programs: Programs, version: int, proto: int
) -> None:
    """By the service's address it would be one network's member that asks another's."""
    ask_it = B1.sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED))
    seen = A2.gets(own(B1, version), carried(proto, 4000, 80), **hop(version))
    programs.expect(B1, ask_it, REDIRECT, Reason.DELIVERED, seen)
    answer = A2.sends(own(B1, version), carried(proto, 80, 4000, p.SYN | p.ACK))
    back = B1.gets(HOSTS[version], carried(proto, s.PUBLISHED, 4000, p.SYN | p.ACK), **hop(version))
    programs.expect(A2, answer, REDIRECT, Reason.DELIVERED, back)
    programs.expect(B1, B1.sends(s.at(version), carried(proto, 4001, 80)), SHOT, Reason.DROP_ISOLATED)


@FAMILIES
@PROTOCOLS
def test_s26_the_host_asks_the_virtual_address(programs: Programs, version: int, proto: int) -> None:
    vip, gateway = s.at(version), NET1.gateway if version == 4 else NET1.gateway6
    build: Any = p.ipv4 if version == 4 else p.ipv6
    ip = build(gateway, vip, carried(proto, 20500, 80))
    kind = p.ETH_IPV4 if version == 4 else p.ETH_IPV6
    frame = p.ethernet(NET1.mac, NET1.mac, kind, ip)
    seen = A2.gets(gateway, carried(proto, 20500, 80), **hop(version))
    programs.expect(NET1, frame, REDIRECT, Reason.DELIVERED, seen)
    answer = A2.sends(gateway, carried(proto, 80, 20500, p.SYN | p.ACK))
    ip = build(vip, gateway, carried(proto, 80, 20500, p.SYN | p.ACK), **hop(version))
    programs.expect(A2, answer, REDIRECT, Reason.TO_HOST, p.ethernet(NET1.mac, A2.mac, kind, ip))
    programs.expect(NET1, frame, REDIRECT, Reason.DELIVERED, seen)


@FAMILIES
@PROTOCOLS
def test_s26_the_host_asks_its_own_address(programs: Programs, version: int, proto: int) -> None:
    frame = host_says(HOSTS[version], carried(proto, 20500, s.PUBLISHED))
    seen = A2.gets(HOSTS[version], carried(proto, 20500, 80), **hop(version))
    programs.expect(LO, frame, REDIRECT, Reason.DELIVERED, seen)
    got = programs.run(A2, A2.sends(HOSTS[version], carried(proto, 80, 20500, p.SYN | p.ACK)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_HOST": 1})


@FAMILIES
def test_s26_the_virtual_address_answers_an_echo(programs: Programs, version: int) -> None:
    for number, alive in enumerate((True, False)):
        if not alive:
            s.state(programs, A2, s.DOWN)
        asks = (p.echo if version == 4 else p.echo6)(p.ECHO if version == 4 else p.ECHO6, 7, sequence=number)
        says = (p.echo if version == 4 else p.echo6)(
            p.ECHO_REPLY if version == 4 else p.ECHO6_REPLY, 7, sequence=number
        )
        programs.expect(
            A1, A1.sends(s.at(version), asks), REDIRECT, Reason.ANSWERED, A1.gets(s.at(version), says)
        )


@FAMILIES
def test_s26_echoes_in_fragments_are_answered(programs: Programs, version: int) -> None:
    asks, says = (p.echo, p.echo) if version == 4 else (p.echo6, p.echo6)
    kinds = (p.ECHO, p.ECHO_REPLY) if version == 4 else (p.ECHO6, p.ECHO6_REPLY)
    frames = p.cut(A1.sends(s.at(version), asks(kinds[0], 7, bytes(range(200)) * 8)), 800)
    answers = p.cut(A1.gets(s.at(version), says(kinds[1], 7, bytes(range(200)) * 8)), 800)
    for frame, answer in zip(frames, answers, strict=True):
        programs.expect(A1, frame, REDIRECT, Reason.ANSWERED, answer)


# ---- choosing --------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_s26_the_same_client_has_the_same_backend_on_every_host(
    programs: Programs, version: int, proto: int
) -> None:
    """As the hash says, which no number of this host's is in, nor the address that it was asked by."""
    table = [A1, A2, A3, A3, A2, A1, A2]
    s.fill(programs, [A1, A2, A3], slots=table)
    for sport in range(5000, 5040):
        slot = s.slot_of(OUTSIDES[version], sport, 80, proto, len(table))
        frame = outside_sends(HOSTS[version], carried(proto, sport, s.PUBLISHED))
        seen = table[slot].gets(OUTSIDES[version], carried(proto, sport, 80), **hop(version))
        programs.expect(None, frame, REDIRECT, Reason.DELIVERED, seen)


def test_s26_three_backends_share_the_connections(programs: Programs) -> None:
    s.fill(programs, [A1, A2, A3], slots=[A1, A2, A3] * 100)
    got = Counter(ask(programs, sport) for sport in range(10000, 11200))
    assert set(got) == {"a1", "a2", "a3"}
    assert all(0.28 < share / 1200 < 0.39 for share in got.values()), got
    programs.forget()
    s.fill(programs, [A1, A2, A3], slots=[A1, A2, A3] * 100, choice=s.RANDOM)
    got = Counter(ask(programs, sport) for sport in range(10000, 11200))
    assert all(0.28 < share / 1200 < 0.39 for share in got.values()), got


def test_s26_weights_are_how_often_a_backend_is_in_the_table(programs: Programs) -> None:
    s.fill(programs, [A2, A3], slots=[A2, A2, A2, A3] * 50)
    got = Counter(ask(programs, sport) for sport in range(10000, 10800))
    assert 2.2 < got["a2"] / got["a3"] < 4


def test_s26_the_backend_with_fewer_connections_gets_the_next(programs: Programs) -> None:
    """Of two at random; what is loaded twice as much by its weight is as good."""
    s.fill(programs, [A2, A3], slots=[A2, A3] * 8, choice=s.LEAST)
    loads = programs.maps["loads"]
    loads[abi.load_key(A2.number, A2.ip)] = abi.load(conns=100)
    loads[abi.load_key(A3.number, A3.ip)] = abi.load(conns=10)
    got = Counter(ask(programs, sport) for sport in range(10000, 10200))
    assert 0.65 < got["a3"] / 200 < 0.85
    s.state(programs, A2, s.UP, weight=100)
    programs.forget()
    got = Counter(ask(programs, sport) for sport in range(10000, 10200))
    assert 0.65 < got["a2"] / 200 < 0.85


def test_s26_connections_are_counted_while_they_last(programs: Programs) -> None:
    s.fill(programs, [A2], choice=s.LEAST)
    for sport in range(4000, 4003):
        programs.run(A1, A1.sends(s.vip(), p.udp(sport, 80)))
        programs.run(A2, A2.sends(A1.ip, p.udp(80, sport), to=A1.mac))
    key = abi.load_key(A2.number, A2.ip)
    assert programs.maps["loads"][key].conns == 3
    s.state(programs, A2, s.DOWN)  # a flow of UDP ends with it
    assert ask(programs, 4001, proto=p.UDP) == "DROP_NO_BACKEND"
    assert programs.maps["loads"][key].conns == 2


@FAMILIES
def test_s26_a_client_stays_with_its_backend_for_the_time_of_affinity(
    programs: Programs, version: int
) -> None:
    booted_for(62)
    s.fill(programs, [A2, A3], slots=[A2, A3] * 8, affinity=60, choice=s.RANDOM)
    (first,) = {ask(programs, sport, version) for sport in range(4000, 4020)}
    member, other = (A2, A3) if first == "a2" else (A3, A2)
    s.state(programs, member, s.DRAINING)
    assert {ask(programs, sport, version) for sport in range(4100, 4110)} == {other.name}
    s.state(programs, member, s.UP)
    assert {ask(programs, sport, version) for sport in range(4200, 4210)} == {other.name}
    key, found = abi.affinity_key(s.SERVICE, own(A1, version)), set[str]()
    for sport in range(4300, 4330):
        known = programs.maps["affinities"][key]
        programs.maps["affinities"][key] = known._replace(seen=known.seen - 61 * 10**9)
        found.add(ask(programs, sport, version))
    assert found == {"a2", "a3"}


# ---- changes ---------------------------------------------------------------------------------------


@PROTOCOLS
def test_s26_what_is_established_stays_whatever_changes(programs: Programs, proto: int) -> None:
    """Drained, out of the table, the table gone: the old connection goes on, the next is another's."""
    s.fill(programs, [A2, A3], slots=[A2])
    assert ask(programs, 4000, proto=proto) == "a2"
    programs.run(A2, A2.sends(A1.ip, carried(proto, 80, 4000, p.SYN | p.ACK), to=A1.mac))
    go_on = A1.sends(s.vip(), carried(proto, 4000, 80, p.ACK))
    seen = A2.gets(A1.ip, carried(proto, 4000, 80, p.ACK), ttl=63)
    programs.expect(A1, go_on, REDIRECT, Reason.DELIVERED, seen)
    s.state(programs, A2, s.DRAINING)
    programs.expect(A1, go_on, REDIRECT, Reason.DELIVERED, seen)
    s.fill(programs, [A3])
    s.state(programs, A2, s.DRAINING)
    programs.expect(A1, go_on, REDIRECT, Reason.DELIVERED, seen)
    assert ask(programs, 4001, proto=proto) == "a3"
    answer = A2.sends(A1.ip, carried(proto, 80, 4000, p.ACK), to=A1.mac)
    back = A1.gets(s.vip(), carried(proto, 80, 4000, p.ACK), ttl=63)
    programs.expect(A2, answer, REDIRECT, Reason.DELIVERED, back)


def asks_published(
    programs: Programs, whence: str, sport: int, version: int, payload: p.Transport
) -> tuple[Any, bytes]:
    """A client's packet to the published port: where it comes in, and the frame."""
    if whence == "outside":
        return None, outside_sends(HOSTS[version], payload)
    if whence == "host":
        return LO, host_says(HOSTS[version], payload)
    return B1, B1.sends(HOSTS[version], payload)


@FAMILIES
@pytest.mark.parametrize("whence", ["outside", "host", "member"])
def test_s26_a_flow_of_udp_to_a_published_port_leaves_a_backend_that_is_down_or_gone(
    programs: Programs, whence: str, version: int
) -> None:
    """Its next packet chooses again, as it does by the service's address; while it is drained it stays."""
    clients: dict[str, dict[int, p.Address]]
    clients = {"outside": OUTSIDES, "host": HOSTS, "member": {4: B1.ip, 6: B1.ip6}}
    client = clients[whence][version]

    def asked(sport: int) -> str:
        got = programs.run(*asks_published(programs, whence, sport, version, p.udp(sport, s.PUBLISHED)))
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
        at, size = (30, 4) if version == 4 else (38, 16)
        to = ip_address(got.packet[at : at + size])
        return next(member.name for member in (A2, A3) if to in (member.ip, member.ip6))

    for gone in (False, True):
        s.fill(programs, [A2, A3], slots=[A2, A3])
        sport = next(n for n in range(20500, 20600) if asked(n) == "a2")
        programs.run(A2, A2.sends(client, p.udp(80, sport)))
        s.state(programs, A2, s.DRAINING)
        assert asked(sport) == "a2"
        if gone:
            del programs.maps["backends"][abi.backend_key(s.backend_of(A2))]
        else:
            s.state(programs, A2, s.DOWN)
        assert asked(sport) == asked(sport) == "a3"


@FAMILIES
def test_s26_a_flow_of_udp_leaves_a_backend_that_is_down(programs: Programs, version: int) -> None:
    s.fill(programs, [A2, A3], slots=[A2, A3])
    sport = next(n for n in range(4000, 4100) if ask(programs, n, version, p.UDP) == "a2")
    programs.run(A2, A2.sends(own(A1, version), p.udp(80, sport), to=A1.mac))
    s.state(programs, A2, s.DRAINING)
    assert ask(programs, sport, version, p.UDP) == "a2"
    s.state(programs, A2, s.DOWN)
    assert ask(programs, sport, version, p.UDP) == "a3"
    frame = outside_sends(HOSTS[version], p.udp(sport, s.PUBLISHED))
    programs.expect(
        None,
        frame,
        REDIRECT,
        Reason.DELIVERED,
        A3.gets(OUTSIDES[version], p.udp(sport, 80), **hop(version)),
    )


def test_s26_a_port_that_is_used_again_is_a_new_connection(programs: Programs) -> None:
    """RFC 6191; nor does an opening wait for a backend that has not answered and is down."""
    s.fill(programs, [A2, A3], slots=[A2, A3])
    sport = next(n for n in range(4000, 4100) if ask(programs, n) == "a2")
    s.state(programs, A2, s.DOWN)
    assert ask(programs, sport) == "a3"
    programs.run(A3, A3.sends(A1.ip, p.tcp(80, sport, p.SYN | p.ACK), to=A1.mac))
    programs.run(A1, A1.sends(s.vip(), p.tcp(sport, 80, p.ACK)))
    for flags in (p.FIN | p.ACK, p.ACK):
        programs.run(A1, A1.sends(s.vip(), p.tcp(sport, 80, flags)))
        programs.run(A3, A3.sends(A1.ip, p.tcp(80, sport, flags | p.FIN), to=A1.mac))
    s.state(programs, A2, s.UP)
    s.state(programs, A3, s.DRAINING)
    assert ask(programs, sport) == "a2"


def test_s26_a_port_that_is_used_again_for_the_same_backend_starts_its_connection_over(
    programs: Programs,
) -> None:
    """Its entries stay where they are, and it is counted as opened."""
    s.fill(programs, [A2])
    for opened in (1, 2, 3):
        assert ask(programs, 4000) == "a2"
        assert s.counts(programs, s.backend_of(A2)) == (opened, 0)
        assert len(list(programs.maps["pending"].read_all())) == (2 if opened == 1 else 0)
        programs.run(A2, A2.sends(A1.ip, p.tcp(80, 4000, p.SYN | p.ACK), to=A1.mac))
        programs.run(A1, A1.sends(s.vip(), p.tcp(4000, 80, p.ACK)))
        for flags in (p.FIN | p.ACK, p.ACK):
            programs.run(A1, A1.sends(s.vip(), p.tcp(4000, 80, flags)))
            programs.run(A2, A2.sends(A1.ip, p.tcp(80, 4000, flags | p.FIN), to=A1.mac))


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered and over"])
def test_s26_a_reset_that_would_open_is_a_reset(programs: Programs, answered: bool) -> None:
    """RFC 9293, 3.10.7, looks at RST before SYN: it begins nothing anew, and goes to who has the connection."""
    s.fill(programs, [A2])
    assert ask(programs, 4000) == "a2"
    if answered:
        programs.run(A2, A2.sends(A1.ip, p.tcp(80, 4000, p.RST | p.ACK), to=A1.mac))
    rows = programs.table("pending").keys()
    for _ in range(2):
        reset = p.tcp(4000, 80, p.SYN | p.RST)
        programs.expect(
            A1, A1.sends(s.vip(), reset), REDIRECT, Reason.DELIVERED, A2.gets(A1.ip, reset, ttl=63)
        )
    assert programs.table("pending").keys() == rows
    assert s.counts(programs, s.backend_of(A2)) == (1, 0)
    other = A1.sends(s.vip(), p.tcp(4001, 80, p.SYN | p.RST))
    programs.expect(A1, other, SHOT, Reason.DROP_NO_CONN)


@FAMILIES
@pytest.mark.parametrize("whence", ["outside", "host"])
def test_s26_a_port_that_asks_a_published_port_again_starts_its_connection_over(
    programs: Programs, whence: str, version: int
) -> None:
    """As one that asks the service's address does; if another backend is chosen, the entries are made anew."""
    s.fill(programs, [A2])
    client = OUTSIDES[version] if whence == "outside" else HOSTS[version]

    def sends(flags: int) -> Any:
        payload = p.tcp(20500, s.PUBLISHED, flags)
        got = programs.run(*asks_published(programs, whence, 20500, version, payload))
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
        return got

    def answers(member: Member, flags: int) -> None:
        programs.run(member, member.sends(client, p.tcp(80, 20500, flags)))

    for opened in (1, 2, 3):
        sends(p.SYN)
        assert s.counts(programs, s.backend_of(A2)) == (opened, 0)
        assert len(list(programs.maps["pending"].read_all())) == (2 if opened == 1 else 0)
        answers(A2, p.SYN | p.ACK)
        sends(p.ACK)
        for flags in (p.FIN | p.ACK, p.ACK):
            sends(flags)
            answers(A2, flags | p.FIN)
    s.fill(programs, [A2, A3], slots=[A3])
    sends(p.SYN)
    assert s.counts(programs, s.backend_of(A3)) == (1, 0)
    assert len(programs.table("pending")) == 2 and programs.table("conns") == {}


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["down", "no slots", "no table"])
@FAMILIES
def test_s26_without_a_backend_the_sender_is_told_at_once(programs: Programs, version: int, how: str) -> None:
    if how == "down":
        s.state(programs, A2, s.DOWN)
    elif how == "no slots":
        s.fill(programs, [A2], size4=0, size6=0)
    else:
        s.fill(programs, [A2], table4=1, table6=1)
    vip, host = s.at(version), HOSTS[version]
    for sender, syn, datagram in (
        (A1, A1.sends(vip, p.tcp(4000, 80, p.SYN)), A1.sends(vip, p.udp(4000, 80))),
        (
            None,
            outside_sends(host, p.tcp(4000, s.PUBLISHED, p.SYN)),
            outside_sends(host, p.udp(4000, s.PUBLISHED)),
        ),
        (B1, B1.sends(host, p.tcp(4000, s.PUBLISHED, p.SYN)), B1.sends(host, p.udp(4000, s.PUBLISHED))),
    ):
        programs.expect(sender, syn, REDIRECT, Reason.DROP_NO_BACKEND, s.reset(syn))
        programs.expect(sender, datagram, REDIRECT, Reason.DROP_NO_BACKEND, s.closed(datagram))
    assert s.counts(programs, s.SERVICE) == (0, 6)
    assert programs.table("pending") == {}


def test_s26_the_host_itself_is_told_too(programs: Programs) -> None:
    s.state(programs, A2, s.DOWN)
    frame = p.ethernet(NET1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(NET1.gateway, s.vip(), p.tcp(20500, 80, p.SYN)))
    programs.expect(NET1, frame, REDIRECT, Reason.DROP_NO_BACKEND, s.reset(frame))
    got = programs.run(LO, host_says(HOST, p.tcp(20500, s.PUBLISHED, p.SYN)))
    assert (got.verdict, got.reasons) == (UNSPEC, {"DROP_NO_BACKEND": 1, "NOT_OURS": 1})


def test_s26_a_reset_answers_what_has_an_acknowledgement_with_its_number(programs: Programs) -> None:
    s.state(programs, A2, s.DOWN)
    frame = A1.sends(s.vip(), p.tcp(4000, 80, p.ACK | p.PSH, b"data", ack=77))
    got = programs.run(A1, frame)
    wanted = p.tcp(80, 4000, p.RST, seq=77, ack=0)
    body = p.Transport(p.TCP, wanted.data[:14] + bytes(2) + wanted.data[16:], 16, True)
    answer = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(s.vip(), A1.ip, body, ident=0, fragment=0))
    assert not (text := p.difference(got.packet, answer)), text
    got = programs.run(A1, A1.sends(s.vip(), p.tcp(4000, 80, p.RST)))
    assert (got.verdict, got.reasons) == (SHOT, {"DROP_NO_CONN": 1})


def test_s26_a_source_that_may_not_connect_is_dropped_whoever_serves(programs: Programs) -> None:
    s.publish(programs, "0.0.0.0", p.TCP, acl=7, default_deny=1)
    programs.expect(None, outside_sends(HOST, p.tcp(4000, s.PUBLISHED, p.SYN)), SHOT, Reason.DROP_DENIED)
    programs.maps["acls"][abi.acl_key(32 + 128, 7, OUTSIDE)] = abi.acl(1)
    programs.expect(
        None,
        outside_sends(HOST, p.tcp(4000, s.PUBLISHED, p.SYN)),
        REDIRECT,
        Reason.DELIVERED,
        A2.gets(OUTSIDE, p.tcp(4000, 80, p.SYN), ttl=63),
    )
    programs.maps["acls"].delete_many(list(programs.maps["acls"]))


def test_s26_without_icc_a_member_asks_a_service_as_it_may_ask_the_backend(programs: Programs) -> None:
    """b1 has a link to b2's ports 80 of TCP and 53 of UDP."""
    s.remove(programs)
    s.fill(programs, [B2], NET2)
    vip = s.vip(NET2)
    seen = B2.gets(B1.ip, p.tcp(4000, 80, p.SYN), ttl=63)
    programs.expect(B1, B1.sends(vip, p.tcp(4000, 80, p.SYN)), REDIRECT, Reason.DELIVERED, seen)
    answer = B2.sends(B1.ip, p.tcp(80, 4000, p.SYN | p.ACK), to=B1.mac)
    back = B1.gets(vip, p.tcp(80, 4000, p.SYN | p.ACK), ttl=63)
    programs.expect(B2, answer, REDIRECT, Reason.DELIVERED, back)
    programs.expect(B1, B1.sends(vip, p.tcp(4000, 81, p.SYN)), SHOT, Reason.DROP_ICC)
    programs.expect(B1, B1.sends(vip, p.udp(4000, 80)), SHOT, Reason.DROP_ICC)
    s.remove(programs, NET2)


def test_s26_what_else_is_for_the_virtual_address_is_dropped(programs: Programs) -> None:
    programs.expect(A1, A1.sends(s.vip(), p.Transport(132, bytes(16))), SHOT, Reason.DROP_PROTOCOL)
    programs.expect(A1, A1.sends(s.vip(), p.tcp(80, 4000, p.SYN | p.ACK)), SHOT, Reason.DROP_NO_CONN)
    programs.expect(A1, A1.sends(s.vip(), p.icmp(3, 3, 0, bytes(28))), SHOT, Reason.DROP_NO_CONN)


def test_s26_the_virtual_address_has_the_gateways_mac_and_nobody_may_send_from_it(programs: Programs) -> None:
    asks = p.ethernet(p.BROADCAST, A1.mac, p.ETH_ARP, p.arp(p.REQUEST, A1.mac, A1.ip, p.NOBODY, s.vip()))
    says = p.ethernet(A1.mac, NET1.mac, p.ETH_ARP, p.arp(p.REPLY, NET1.mac, s.vip(), A1.mac, A1.ip))
    programs.expect(A1, asks, REDIRECT, Reason.ANSWERED, says)
    spoofed = p.ethernet(A3.mac, A1.mac, p.ETH_IPV4, p.ipv4(s.vip(), A3.ip, p.udp(80, 4000)))
    programs.expect(A1, spoofed, SHOT, Reason.DROP_SPOOFED_ADDR)


# ---- errors and fragments --------------------------------------------------------------------------


@FAMILIES
def test_s26_errors_are_translated_both_ways(programs: Programs, version: int) -> None:
    """Port unreachable: the backend's to the client, about what it has sent to the service; and the client's."""
    vip, client, server = s.at(version), own(A1, version), own(A2, version)
    ip: Any = p.ipv4 if version == 4 else p.ipv6

    def error(quote: bytes) -> p.Transport:
        return p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)

    programs.run(A1, A1.sends(vip, p.udp(4000, 80)))
    quoted = ip(client, server, p.udp(4000, 80), **hop(version))
    was = ip(client, vip, p.udp(4000, 80), **hop(version))
    got = programs.run(A2, A2.sends(client, error(quoted), to=A1.mac))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    assert quoting(got.packet, version) == quoting(A1.gets(vip, error(was)), version)
    programs.run(A2, A2.sends(client, p.udp(80, 4000), to=A1.mac))
    quoted = ip(vip, client, p.udp(80, 4000), **hop(version))
    was = ip(server, client, p.udp(80, 4000), **hop(version))
    got = programs.run(A1, A1.sends(vip, error(quoted)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    assert quoting(got.packet, version) == quoting(A2.gets(client, error(was)), version)


def quoting(frame: bytes, version: int) -> tuple[bytes, bytes]:
    """The addresses of an error, and what it quotes: addresses and ports."""
    outer, size = (14, 20) if version == 4 else (14, 40)
    inner = outer + size + 8
    at = 12 if version == 4 else 8
    return frame[outer + at : outer + size], frame[inner + at : inner + size + 4]


@FAMILIES
def test_s26_datagrams_in_fragments_get_there_and_back(programs: Programs, version: int) -> None:
    vip, client = s.at(version), own(A1, version)
    asks, data = p.udp(4000, 80, bytes(range(200)) * 8), A1.sends
    for ident in (1, 2):  # one that begins, and one of what is known
        frames = p.cut(data(vip, asks), 800, ident=ident)
        whole = p.cut(A2.gets(client, asks, **hop(version)), 800, ident=ident)
        for frame, seen in zip(frames, whole, strict=True):
            programs.expect(A1, frame, REDIRECT, Reason.DELIVERED, seen)
    frames = p.cut(A2.sends(client, p.udp(80, 4000, bytes(1600)), to=A1.mac), 800)
    whole = p.cut(A1.gets(vip, p.udp(80, 4000, bytes(1600)), **hop(version)), 800)
    for frame, seen in zip(frames, whole, strict=True):
        programs.expect(A2, frame, REDIRECT, Reason.DELIVERED, seen)


def test_s26_the_hosts_datagrams_in_fragments_get_there(programs: Programs) -> None:
    frame = p.ethernet(
        NET1.mac,
        NET1.mac,
        p.ETH_IPV4,
        p.ipv4(NET1.gateway, s.vip(), p.udp(20500, 80, bytes(1600)), fragment=0),
    )
    seen = A2.gets(NET1.gateway, p.udp(20500, 80, bytes(1600)), ttl=63, fragment=0)
    for part, whole in zip(p.cut(frame, 800), p.cut(seen, 800), strict=True):
        programs.expect(NET1, part, REDIRECT, Reason.DELIVERED, whole)


@FAMILIES
def test_s26_what_is_larger_than_the_backends_network_is_told_so(programs: Programs, version: int) -> None:
    """As on any published port."""
    value = programs.maps["networks"][NET1.number]
    programs.maps["networks"][NET1.number] = value._replace(mtu=1300)
    frame = outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED, bytes(1340)))
    programs.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, HOSTS[version], mtu=1300))
    programs.maps["networks"][NET1.number] = value


# ---- who is no part of it ---------------------------------------------------------------------------


@FAMILIES
def test_s26_a_port_from_which_a_service_was_asked_asks_its_backend_once_that_is_over(
    programs: Programs, version: int
) -> None:
    """A backend sees one client's port: its answers are the service's until then, and its own afterwards."""
    to, back = own(A2, version), own(A1, version)
    assert ask(programs, 4000, version) == "a2"
    straight = A1.sends(to, p.tcp(4000, 80, p.SYN), to=A2.mac)
    answers = A2.sends(back, p.tcp(80, 4000, p.SYN | p.ACK), to=A1.mac)
    programs.run(A2, answers)
    programs.run(A1, A1.sends(s.at(version), p.tcp(4000, 80, p.ACK)))
    programs.expect(A1, straight, REDIRECT, Reason.DELIVERED, straight)
    assert programs.run(A2, answers).packet != answers
    for flags in (p.FIN | p.ACK, p.ACK):
        programs.run(A1, A1.sends(s.at(version), p.tcp(4000, 80, flags)))
        programs.run(A2, A2.sends(back, p.tcp(80, 4000, flags | p.FIN), to=A1.mac))
    programs.expect(A1, straight, REDIRECT, Reason.DELIVERED, straight)
    programs.expect(A2, answers, REDIRECT, Reason.DELIVERED, answers)
    assert programs.table("conns") == programs.table("pending") == {}


@FAMILIES
def test_s26_a_backend_is_asked_by_its_own_address_as_before(programs: Programs, version: int) -> None:
    """Byte for byte, though it serves: what is no answer to a client of the service is sent straight."""
    sends = A1.sends(own(A2, version), p.udp(4000, 80), to=A2.mac)
    programs.expect(A1, sends, REDIRECT, Reason.DELIVERED, sends)
    answer = A2.sends(own(A1, version), p.udp(80, 4000), to=A1.mac)
    programs.expect(A2, answer, REDIRECT, Reason.DELIVERED, answer)
    assert programs.table("pending") == {}
