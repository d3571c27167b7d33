# SPDX-License-Identifier: Apache-2.0
"""Two connections from one port of a client's to one backend, by two hosts: the second gets another port."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from datapath.dataplane.layout import SERVICE_DSR
from datapath.kernel import abi
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf import services as s
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    HOST,
    HOST6,
    LO,
    NET1,
    REDIRECT,
    Copies,
    Outcome,
    Programs,
    Reason,
    host_says,
    outside_sends,
)
from tests.bpf.test_services import FAMILIES, HOSTS, OUTSIDES, PROTOCOLS, carried, hop
from tests.bpf.test_services_overlay import BACKEND, GATEWAYS, REMOTES, SYN_ACK, ip, tunnelled

BY = pytest.mark.parametrize("dsr", [False, True], ids=["by the tunnel", "direct server return"])
# What was asked at the other hosts.
THERE: dict[int, p.Address] = {4: o.PEERS[o.PEER], 6: o.PEERS6[o.PEER]}
ELSEWHERE: dict[int, p.Address] = {4: o.PEERS[o.OTHER_PEER], 6: o.PEERS6[o.OTHER_PEER]}
OUTER = 14 + 20 + 16 + 14  # bytes of the headers before a packet in a tunnel over IPv4


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=(*o.TUNNEL_OBJECTS, "to_service")) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs) -> Iterator[None]:
    o.fill(programs)
    s.fill(programs, [A2])
    callers = programs.maps["callers"]
    callers.delete_many(list(callers))
    yield
    s.remove(programs)


def server(version: int) -> p.Address:
    return A2.ip if version == 4 else A2.ip6


def asks(
    version: int,
    proto: int,
    *,
    peer: int,
    asked: p.Address | None,
    flags: int = p.SYN,
    client: p.Address | None = None,
    sport: int = 4000,
    **header: Any,
) -> bytes:
    """By another host, at that of its addresses; None: it does not say at which."""
    by = o.marks(s.mark_of(asked, s.PUBLISHED)) if asked else o.peer_mac(peer)
    what = carried(proto, sport, 80, flags)
    frame = o.inner(client or OUTSIDES[version], server(version), what, by=by, **header)
    return o.arrives(o.vxlan(frame), src=(o.PEERS if version == 4 else o.PEERS6)[peer])


def delivered(programs: Programs, version: int, proto: int, frame: bytes, **header: Any) -> None:
    what = carried(proto, 4000, 80, header.pop("flags", p.SYN))
    seen = A2.gets(header.pop("client", OUTSIDES[version]), what, **header)
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, seen)


def goes_back(programs: Programs, version: int, frame: bytes, what: p.Transport, client: p.Address) -> None:
    """To the other host, as the answer to itself, without a hop."""
    got = programs.run(None, frame)
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    none = {"ttl": 0} if version == 4 else {"hops": 0}
    wanted = o.leaves(
        ip(version, server(version), client, what, **none), o.source_port(got.packet), peer=o.OTHER_PEER
    )
    assert not (text := p.difference(got.packet, wanted)), text


def turned(proto: int, sport: int = 4000) -> p.Transport:
    """What was asked, with the ports of an answer."""
    return carried(proto, 80, sport)


# ---- at the backend's host -------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_s26_a_port_that_a_client_uses_by_two_hosts_is_the_firsts(
    programs: Programs, version: int, proto: int
) -> None:
    """The second host hears that it is taken; all that is said by the first goes on, and is answered there."""
    client = OUTSIDES[version]
    first = asks(version, proto, peer=o.PEER, asked=THERE[version])
    delivered(programs, version, proto, first)
    second = asks(version, proto, peer=o.OTHER_PEER, asked=ELSEWHERE[version])
    for _ in range(2):
        goes_back(programs, version, second, turned(proto), client)
    answer = A2.sends(client, carried(proto, 80, 4000, SYN_ACK))
    tunnelled(programs, A2, answer, answer[14:], peer=o.PEER)
    delivered(
        programs, version, proto, asks(version, proto, peer=o.PEER, asked=None, flags=p.ACK), flags=p.ACK
    )
    goes_back(programs, version, second, turned(proto), client)


@FAMILIES
@PROTOCOLS
def test_s26_one_connection_that_comes_by_another_host_keeps_its_port(
    programs: Programs, version: int, proto: int
) -> None:
    """What is asked says that it is one: routers in front may change their minds. Who says nothing is believed."""
    client = OUTSIDES[version]
    for asked, flags in ((THERE[version], p.SYN), (THERE[version], p.ACK), (None, p.SYN)):
        for peer in (o.PEER, o.OTHER_PEER):
            frame = asks(version, proto, peer=peer, asked=asked, flags=flags)
            delivered(programs, version, proto, frame, flags=flags)
            answer = A2.sends(client, carried(proto, 80, 4000, SYN_ACK))
            tunnelled(programs, A2, answer, answer[14:], peer=peer)


@FAMILIES
def test_s26_what_goes_on_over_tcp_is_taken_from_whichever_host(programs: Programs, version: int) -> None:
    """It has the port that it began with: another one would end it."""
    delivered(programs, version, p.TCP, asks(version, p.TCP, peer=o.PEER, asked=THERE[version]))
    frame = asks(version, p.TCP, peer=o.OTHER_PEER, asked=ELSEWHERE[version], flags=p.ACK)
    delivered(programs, version, p.TCP, frame, flags=p.ACK)


@FAMILIES
@pytest.mark.parametrize("ends", ["both", "reset there", "reset here"])
def test_s26_the_port_of_a_connection_that_is_over_is_free(
    programs: Programs, version: int, ends: str
) -> None:
    client = OUTSIDES[version]
    delivered(programs, version, p.TCP, asks(version, p.TCP, peer=o.PEER, asked=THERE[version]))
    programs.run(A2, A2.sends(client, carried(p.TCP, 80, 4000, SYN_ACK)))
    second = asks(version, p.TCP, peer=o.OTHER_PEER, asked=ELSEWHERE[version])
    last = p.RST if "reset" in ends else p.FIN | p.ACK
    if ends != "reset here":
        programs.run(None, asks(version, p.TCP, peer=o.PEER, asked=None, flags=last))
    if ends != "reset there":
        if ends == "both":
            goes_back(programs, version, second, turned(p.TCP), client)
        programs.run(A2, A2.sends(client, carried(p.TCP, 80, 4000, last)))
    delivered(programs, version, p.TCP, second)


@FAMILIES
def test_s26_the_port_of_a_flow_of_udp_is_free_after_its_time_out(programs: Programs, version: int) -> None:
    delivered(programs, version, p.UDP, asks(version, p.UDP, peer=o.PEER, asked=THERE[version]))
    second = asks(version, p.UDP, peer=o.OTHER_PEER, asked=ELSEWHERE[version])
    goes_back(programs, version, second, turned(p.UDP), OUTSIDES[version])
    callers = programs.maps["callers"]
    ((key, value),) = callers.read_all()
    long_ago = time.monotonic_ns() - 3600 * 10**9  # of a machine that has just started, too
    callers[key] = value._replace(seen=long_ago % 2**64)
    delivered(programs, version, p.UDP, second)


@FAMILIES
@PROTOCOLS
def test_s26_a_port_that_a_client_uses_by_this_host_is_no_other_hosts(
    programs: Programs, version: int, proto: int
) -> None:
    client = OUTSIDES[version]
    frame = outside_sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED))
    seen = A2.gets(client, carried(proto, 4000, 80), **hop(version))
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, seen)
    second = asks(version, proto, peer=o.OTHER_PEER, asked=ELSEWHERE[version])
    goes_back(programs, version, second, turned(proto), client)
    got = programs.run(A2, A2.sends(client, carried(proto, 80, 4000, SYN_ACK)))
    assert got.reasons == {"TO_OUTSIDE": 1}
    goes_back(programs, version, second, turned(proto), client)
    moved = asks(version, proto, peer=o.OTHER_PEER, asked=HOSTS[version])
    delivered(programs, version, proto, moved)


def port_in(got: Outcome, version: int, at: int = 14) -> int:
    at += 20 if version == 4 else 40
    return int.from_bytes(got.packet[at : at + 2], "big")


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("whence", ["outside", "host", "another network"])
def test_s26_a_port_that_a_client_uses_by_another_host_is_not_this_hosts(
    programs: Programs, version: int, proto: int, whence: str
) -> None:
    """It gets another one at once, and hears its own."""
    clients: dict[str, dict[int, p.Address]] = {
        "outside": OUTSIDES,
        "host": {4: HOST, 6: HOST6},
        "another network": {4: B1.ip, 6: B1.ip6},
    }
    client, own = clients[whence][version], 20500
    first = asks(version, proto, peer=o.PEER, asked=THERE[version], client=client, sport=own)
    assert programs.run(None, first).reasons == {"DELIVERED": 1}
    what = carried(proto, own, s.PUBLISHED)
    sender, frame = {
        "outside": (None, outside_sends(HOSTS[version], what)),
        "host": (LO, host_says(HOSTS[version], what)),
        "another network": (B1, B1.sends(HOSTS[version], what)),
    }[whence]
    got = programs.run(sender, frame)
    assert got.reasons == {"DELIVERED": 1}
    port = port_in(got, version)
    assert port != own
    seen = A2.gets(client, carried(proto, port, 80), **hop(version))
    assert not (text := p.difference(got.packet, seen)), text
    answer = A2.sends(client, carried(proto, 80, own, SYN_ACK))
    tunnelled(programs, A2, answer, answer[14:])
    got = programs.run(A2, A2.sends(client, carried(proto, 80, port, SYN_ACK)))
    assert got.reasons in ({"TO_OUTSIDE": 1}, {"TO_HOST": 1}, {"DELIVERED": 1})
    assert port_in(got, version) == s.PUBLISHED
    assert got.packet[(at := 14 + (20 if version == 4 else 40) + 2) : at + 2] == own.to_bytes(2, "big")


@FAMILIES
@PROTOCOLS
def test_s26_a_port_by_which_two_hosts_ask_in_the_gateways_name_is_the_firsts(
    programs: Programs, version: int, proto: int
) -> None:
    gateway = GATEWAYS[version]
    first = asks(version, proto, peer=o.PEER, asked=s.at(version), client=gateway)
    delivered(programs, version, proto, first, client=gateway)
    second = asks(version, proto, peer=o.OTHER_PEER, asked=s.at(version), client=gateway)
    goes_back(programs, version, second, turned(proto), gateway)
    # What a socket of that host asks by itself has no other port: who has asked last is answered.
    other = asks(version, proto, peer=o.OTHER_PEER, asked=None, client=gateway)
    delivered(programs, version, proto, other, client=gateway)


def test_s26_datagrams_in_fragments_come_whole_though_their_port_is_anothers(programs: Programs) -> None:
    """The first fragment goes back; behind it the others say nothing of ports, and it comes once more."""
    delivered(programs, 4, p.UDP, asks(4, p.UDP, peer=o.PEER, asked=THERE[4]))
    by = o.marks(s.mark_of(ELSEWHERE[4], s.PUBLISHED))

    def parts(port: int) -> list[bytes]:
        whole = o.inner(OUTSIDES[4], A2.ip, p.udp(port, 80, bytes(1600)), by=by)
        return [o.arrives(o.vxlan(part), src=o.PEERS[o.OTHER_PEER]) for part in p.cut(whole, 800)]

    wanted = p.cut(A2.gets(OUTSIDES[4], p.udp(4001, 80, bytes(1600))), 800)
    first, *later = parts(4000)
    assert programs.run(None, first).reasons == {"TO_PEER": 1}
    for frame, out in zip((*later, parts(4001)[0]), (*wanted[1:], wanted[0]), strict=True):
        programs.expect(None, frame, REDIRECT, Reason.DELIVERED, out)
    answer = A2.sends(OUTSIDES[4], p.udp(80, 4000))
    tunnelled(programs, A2, answer, answer[14:])
    answer = A2.sends(OUTSIDES[4], p.udp(80, 4001))
    tunnelled(programs, A2, answer, answer[14:], peer=o.OTHER_PEER)


# ---- at the host that was asked --------------------------------------------------------------------


@pytest.fixture
def far(programs: Programs) -> None:
    """The backend is on another host."""
    s.remove(programs)
    s.fill(programs, [BACKEND])


def back(version: int, client: p.Address, what: p.Transport) -> bytes:
    """What the backend's host sends back, in a tunnel."""
    header: dict[str, Any] = {"ttl": 0} if version == 4 else {"hops": 0}
    return o.arrives(
        o.vxlan(o.inner(REMOTES[version], client, what, **header)),
        src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER],
    )


def asked_again(programs: Programs, version: int, proto: int, frame: bytes, asked: p.Address) -> int:
    """Sent there with another port, which is returned."""
    got = programs.run(None, frame)
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    port = port_in(got, version, OUTER)
    header = {"ttl": 64} if version == 4 else {"hops": 64}
    packet = ip(version, OUTSIDES[version], REMOTES[version], carried(proto, port, 80), **header)
    by = o.marks(s.mark_of(asked, s.PUBLISHED))
    assert not (text := p.difference(got.packet, o.leaves(packet, o.source_port(got.packet), by=by))), text
    return port


@FAMILIES
@PROTOCOLS
@BY
@pytest.mark.usefixtures("far")
def test_s26_a_connection_whose_port_is_taken_gets_another_one(
    programs: Programs, version: int, proto: int, dsr: bool
) -> None:
    """Its packet is not lost, and is counted once; the client hears the service, at its own port."""
    s.fill(programs, [BACKEND], flags=SERVICE_DSR if dsr else 0)
    client, host = OUTSIDES[version], HOSTS[version]
    frame = outside_sends(host, carried(proto, 4000, s.PUBLISHED))
    assert programs.run(None, frame).reasons == {"TO_PEER": 1}
    returned = back(version, client, carried(proto, 80, 4000))
    port = asked_again(programs, version, proto, returned, host)
    assert port != 4000
    if proto == p.UDP:  # one that was under way already
        assert asked_again(programs, version, proto, returned, host) == port
    again = asked_again(programs, version, proto, back(version, client, carried(proto, 80, port)), host)
    assert again not in (4000, port)
    if proto == p.UDP:
        late = back(version, client, carried(proto, 80, port))
        assert asked_again(programs, version, proto, late, host) == again
    comes = o.inner(REMOTES[version], client, carried(proto, 80, again, SYN_ACK))
    got = programs.run(None, o.arrives(o.vxlan(comes), src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER]))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
    packet = ip(version, host, client, carried(proto, s.PUBLISHED, 4000, SYN_ACK), **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text
    frame = outside_sends(host, carried(proto, 4000, s.PUBLISHED, p.ACK))
    packet = ip(version, client, REMOTES[version], carried(proto, again, 80, p.ACK), **hop(version))
    tunnelled(programs, None, frame, packet)
    assert s.counts(programs, s.SERVICE) == s.counts(programs, s.backend_of(BACKEND)) == (1, 0)
    (copies,) = [
        rows
        for key, rows in programs.maps["service_counts"].read_all()
        if key.number == s.backend_of(BACKEND)
    ]
    assert (sum(one.packets_in for one in copies), sum(one.packets_out for one in copies)) == (2, 1)
    original = programs.table("conns")[abi.tuple_(client, host, 4000, s.PUBLISHED, proto)]
    assert original.packets == 2


@FAMILIES
@pytest.mark.usefixtures("far")
def test_s26_an_error_about_a_connection_with_another_port_is_about_the_clients_own(
    programs: Programs, version: int
) -> None:
    client, host = OUTSIDES[version], HOSTS[version]
    programs.run(None, outside_sends(host, p.udp(4000, s.PUBLISHED)))
    port = asked_again(programs, version, p.UDP, back(version, client, p.udp(80, 4000)), host)
    quote = ip(version, client, REMOTES[version], p.udp(port, 80, summed=False), **hop(version))
    error = p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)
    frame = o.inner(REMOTES[version], client, error)
    got = programs.run(None, o.arrives(o.vxlan(frame), src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER]))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
    quote = ip(version, client, host, p.udp(4000, s.PUBLISHED, summed=False), **hop(version))
    error = p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)
    packet = ip(version, host, client, error, **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text


@FAMILIES
@PROTOCOLS
@pytest.mark.usefixtures("far")
def test_s26_a_connection_that_was_answered_keeps_its_port(
    programs: Programs, version: int, proto: int
) -> None:
    """The other host is told so: it sends on what comes to it once more, again without a hop."""
    client, host = OUTSIDES[version], HOSTS[version]
    for flags in (p.SYN, p.ACK):
        programs.run(None, outside_sends(host, carried(proto, 4000, s.PUBLISHED, flags)))
        comes = o.inner(REMOTES[version], client, carried(proto, 80, 4000, SYN_ACK))
        programs.run(None, o.arrives(o.vxlan(comes), src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER]))
    none = {"ttl": 0} if version == 4 else {"hops": 0}
    packet = ip(version, client, REMOTES[version], carried(proto, 4000, 80), **none)
    tunnelled(programs, None, back(version, client, carried(proto, 80, 4000)), packet)


@FAMILIES
@pytest.mark.usefixtures("far")
def test_s26_a_port_that_is_used_again_and_is_taken_by_now_becomes_another(
    programs: Programs, version: int
) -> None:
    """What it has been is over, and its row begins anew."""
    client, host = OUTSIDES[version], HOSTS[version]
    ends = (o.PEERS if version == 4 else o.PEERS6)[o.PEER]
    for flags, answer in ((p.SYN, SYN_ACK), (p.ACK, p.ACK), (p.FIN | p.ACK, p.FIN | p.ACK), (p.ACK, p.ACK)):
        programs.run(None, outside_sends(host, p.tcp(4000, s.PUBLISHED, flags)))
        comes = o.inner(REMOTES[version], client, p.tcp(80, 4000, answer))
        programs.run(None, o.arrives(o.vxlan(comes), src=ends))
    frame = outside_sends(host, p.tcp(4000, s.PUBLISHED, p.SYN))
    packet = ip(version, client, REMOTES[version], p.tcp(4000, 80, p.SYN), **hop(version))
    tunnelled(programs, None, frame, packet, asked=(host, s.PUBLISHED))
    returned = back(version, client, p.tcp(80, 4000, p.SYN))
    assert asked_again(programs, version, p.TCP, returned, host) != 4000


@FAMILIES
@PROTOCOLS
@pytest.mark.usefixtures("far")
def test_s26_the_host_that_asks_a_service_gets_another_port_too(
    programs: Programs, version: int, proto: int
) -> None:
    """In the gateway's name."""
    programs.maps["tunnel"][0] = programs.maps["tunnel"][0]._replace(ifindex=0)
    vip, gateway = s.at(version), GATEWAYS[version]
    kind = p.ETH_IPV4 if version == 4 else p.ETH_IPV6
    frame = p.ethernet(NET1.mac, NET1.mac, kind, ip(version, gateway, vip, carried(proto, 20500, 80)))
    packet = ip(version, gateway, REMOTES[version], carried(proto, 20500, 80), **hop(version))
    tunnelled(programs, NET1, frame, packet, asked=(vip, 80))
    got = programs.run(None, back(version, gateway, carried(proto, 80, 20500)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    port = port_in(got, version, OUTER)
    assert port != 20500
    comes = o.inner(REMOTES[version], gateway, carried(proto, 80, port, SYN_ACK))
    got = programs.run(None, o.arrives(o.vxlan(comes), src=(o.PEERS if version == 4 else o.PEERS6)[o.PEER]))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_HOST": 1})
    packet = ip(version, vip, gateway, carried(proto, 80, 20500, SYN_ACK), **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text


def test_s26_what_comes_back_and_has_no_connection_insists(programs: Programs) -> None:
    """A socket of the host's own asks a member by itself, and has no other port: the other host takes it as it is."""
    frame = back(4, NET1.gateway, p.tcp(80, 20500, p.SYN))
    packet = ip(4, NET1.gateway, o.REMOTE, p.tcp(20500, 80, p.SYN), ttl=0)
    tunnelled(programs, None, frame, packet)
    first = asks(4, p.TCP, peer=o.PEER, asked=s.vip(), client=NET1.gateway)
    delivered(programs, 4, p.TCP, first, client=NET1.gateway)
    insists = asks(4, p.TCP, peer=o.OTHER_PEER, asked=s.vip(), client=NET1.gateway, ttl=0)
    delivered(programs, 4, p.TCP, insists, client=NET1.gateway, ttl=0)


def test_s26_what_a_member_sends_another_without_a_hop_is_nothing_else(programs: Programs) -> None:
    frame = o.inner(o.REMOTE, A1.ip, p.udp(80, 4000), ttl=0)
    seen = A1.gets(o.REMOTE, p.udp(80, 4000), ttl=0)
    programs.expect(None, o.arrives(o.vxlan(frame)), REDIRECT, Reason.DELIVERED, seen)
