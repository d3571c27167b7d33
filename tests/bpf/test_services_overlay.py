# SPDX-License-Identifier: Apache-2.0
"""Services of an overlay network: a backend on another host, and what others' clients ask of one here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from datapath.dataplane.layout import SERVICE_DSR
from datapath.dataplane.overlay_entries import aliases
from datapath.kernel import abi
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf import services as s
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    HOST,
    LO,
    NET1,
    OUTSIDE,
    REDIRECT,
    SHOT,
    Copies,
    Member,
    Programs,
    Reason,
    Sender,
    Topology,
    host_says,
    outside_sends,
)
from tests.bpf.test_services import FAMILIES, HOSTS, OUTSIDES, PROTOCOLS, carried, hop

REMOTES: dict[int, p.Address] = {4: o.REMOTE, 6: o.REMOTE6}
GATEWAYS: dict[int, p.Address] = {4: NET1.gateway, 6: NET1.gateway6}
OWN: dict[int, p.Address] = {4: A1.ip, 6: A1.ip6}
BACKEND = s.Remote(o.REMOTE, o.REMOTE6)
SYN_ACK = p.SYN | p.ACK


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=(*o.TUNNEL_OBJECTS, "to_service")) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs) -> Iterator[None]:
    o.fill(programs)
    s.fill(programs, [BACKEND])
    s.serves(programs, A2)
    callers = programs.maps["callers"]
    callers.delete_many(list(callers))
    value = programs.maps["networks"][NET1.number]
    yield
    programs.maps["networks"][NET1.number] = value
    s.remove(programs)


def ip(version: int, src: p.Address, dst: p.Address, what: p.Transport, **header: Any) -> bytes:
    return (p.ipv4 if version == 4 else p.ipv6)(src, dst, what, **header)


def tunnelled(
    programs: Programs,
    sender: Sender,
    frame: bytes,
    packet: bytes,
    *,
    peer: int = o.PEER,
    asked: tuple[p.Address, int] | None = None,
) -> None:
    """What becomes of the frame leaves in a tunnel to the peer. `asked`: what its client has asked, if it hears it."""
    got = programs.run(sender, frame)
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    by = o.marks(s.mark_of(*asked)) if asked else o.OWN_MAC
    wanted = o.leaves(packet, o.source_port(got.packet), peer=peer, by=by)
    assert not (text := p.difference(got.packet, wanted)), text


def comes(src: p.Address, dst: p.Address, what: p.Transport, **header: Any) -> bytes:
    """A frame on the uplink: a packet of the peer in a tunnel of its family, which the programs open on all kernels."""
    ends = o.PEERS if ip_address(src).version == 4 else o.PEERS6
    return o.arrives(o.vxlan(o.inner(src, dst, what, **header)), src=ends[o.PEER])


@FAMILIES
@PROTOCOLS
def test_s26_a_member_asks_a_backend_on_another_host(programs: Programs, version: int, proto: int) -> None:
    vip, client = s.at(version), OWN[version]
    for flags in (p.SYN, p.ACK):
        frame = A1.sends(vip, carried(proto, 4000, 80, flags))
        packet = ip(version, client, REMOTES[version], carried(proto, 4000, 80, flags), **hop(version))
        tunnelled(programs, A1, frame, packet, asked=(vip, 80) if flags == p.SYN else None)
        answer = comes(REMOTES[version], client, carried(proto, 80, 4000, SYN_ACK))
        seen = A1.gets(vip, carried(proto, 80, 4000, SYN_ACK), **hop(version))
        programs.expect(None, answer, REDIRECT, Reason.DELIVERED, seen)
    assert len(programs.table("conns")) == 2
    assert s.counts(programs, s.SERVICE) == (1, 0)


@FAMILIES
@PROTOCOLS
def test_s26_a_client_outside_asks_a_backend_on_another_host(
    programs: Programs, version: int, proto: int
) -> None:
    """It keeps its own address; the answer comes back by this host."""
    client = OUTSIDES[version]
    for flags in (p.SYN, p.ACK):
        frame = outside_sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED, flags))
        packet = ip(version, client, REMOTES[version], carried(proto, 4000, 80, flags), **hop(version))
        asked = (HOSTS[version], s.PUBLISHED) if flags == p.SYN else None
        tunnelled(programs, None, frame, packet, asked=asked)
        answer = comes(REMOTES[version], client, carried(proto, 80, 4000, SYN_ACK))
        got = programs.run(None, answer)
        assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
        packet = ip(
            version, HOSTS[version], client, carried(proto, s.PUBLISHED, 4000, SYN_ACK), **hop(version)
        )
        assert not (text := p.difference(got.packet[14:], packet)), text


@FAMILIES
@PROTOCOLS
def test_s26_the_host_asks_a_backend_on_another_host(programs: Programs, version: int, proto: int) -> None:
    """By the service's address; the answer arrives on the gateway device."""
    programs.maps["tunnel"][0] = programs.maps["tunnel"][0]._replace(ifindex=0)
    vip, gateway = s.at(version), GATEWAYS[version]
    kind = p.ETH_IPV4 if version == 4 else p.ETH_IPV6
    frame = p.ethernet(NET1.mac, NET1.mac, kind, ip(version, gateway, vip, carried(proto, 20500, 80)))
    packet = ip(version, gateway, REMOTES[version], carried(proto, 20500, 80), **hop(version))
    tunnelled(programs, NET1, frame, packet, asked=(vip, 80))
    got = programs.run(None, comes(REMOTES[version], gateway, carried(proto, 80, 20500, SYN_ACK)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_HOST": 1})
    packet = ip(version, vip, gateway, carried(proto, 80, 20500, SYN_ACK), **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text
    assert got.packet[:6] == p.mac_bytes(NET1.mac)


def test_s26_the_host_asks_its_own_address_for_a_backend_on_another_host(programs: Programs) -> None:
    programs.maps["tunnel"][0] = programs.maps["tunnel"][0]._replace(ifindex=0)
    frame = host_says(HOST, p.tcp(20500, s.PUBLISHED, p.SYN))
    packet = ip(4, HOST, o.REMOTE, p.tcp(20500, 80, p.SYN), ttl=63)
    tunnelled(programs, LO, frame, packet, asked=(HOST, s.PUBLISHED))
    got = programs.run(None, comes(o.REMOTE, HOST, p.tcp(80, 20500, SYN_ACK)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_HOST": 1})


@FAMILIES
@PROTOCOLS
def test_s26_a_backend_here_answers_another_hosts_client_by_that_host(
    programs: Programs, version: int, proto: int
) -> None:
    client = OUTSIDES[version]
    server = A2.ip if version == 4 else A2.ip6
    seen = A2.gets(client, carried(proto, 4000, 80))
    programs.expect(None, comes(client, server, carried(proto, 4000, 80)), REDIRECT, Reason.DELIVERED, seen)
    answer = A2.sends(client, carried(proto, 80, 4000, SYN_ACK))
    tunnelled(programs, A2, answer, answer[14:])
    assert programs.table("pending") == {}


def test_s26_only_backends_are_asked_for_clients_outside(programs: Programs) -> None:
    frame = comes(OUTSIDE, A3.ip, p.tcp(4000, 80, p.SYN))
    programs.expect(None, frame, SHOT, Reason.DROP_TUNNEL_SOURCE, o_inner(frame))
    s.remove(programs)
    frame = comes(OUTSIDE, A2.ip, p.tcp(4000, 80, p.SYN))
    programs.expect(None, frame, SHOT, Reason.DROP_TUNNEL_SOURCE, o_inner(frame))


def o_inner(frame: bytes) -> bytes:
    """What is left of a frame that was freed of its tunnel, over IPv4: the outer MACs are before it."""
    return frame[:14] + frame[14 + 20 + 8 + 8 + 14 :]


def test_s26_what_a_backend_begins_itself_is_masqueraded_as_before(programs: Programs) -> None:
    got = programs.run(A2, A2.sends(OUTSIDE, p.tcp(4000, 443, p.SYN)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})


@FAMILIES
def test_s26_what_is_larger_than_the_tunnel_is_told_so_as_it_was_asked(
    programs: Programs, version: int
) -> None:
    """By the client's own words: it knows of no backend."""
    size = 1460 - (28 if version == 4 else 48)
    frame = A1.sends(s.at(version), p.udp(4000, 80, bytes(size)))
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, GATEWAYS[version], mtu=1450))
    frame = outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED, bytes(size)))
    programs.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, HOSTS[version], mtu=1450))


def port_closed(version: int, quote: bytes) -> p.Transport:
    return p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)


def too_wide(version: int, quote: bytes) -> p.Transport:
    return p.icmp(3, 4, 1300, quote) if version == 4 else p.icmp6(2, 0, 1300, quote)


@FAMILIES
@pytest.mark.parametrize("asks", ["outside", "outside, of direct server return", "the other host"])
@pytest.mark.parametrize("error", [port_closed, too_wide])
def test_s26_an_error_of_a_backend_here_goes_to_the_host_that_has_asked(
    programs: Programs, version: int, asks: str, error: Callable[[int, bytes], p.Transport]
) -> None:
    """What it quotes says whose packet it is about; as that one is, and by the tunnel, though answers go straight."""
    client = GATEWAYS[version] if asks == "the other host" else OUTSIDES[version]
    server = A2.ip if version == 4 else A2.ip6
    programs.run(None, comes(client, server, p.udp(4000, 80)))
    if "direct" in asks:
        answer = abi.tuple_(server, client, 80, 4000, p.UDP)
        programs.maps["callers"][answer] = abi.caller(NET1.number, o.PEER, HOSTS[version], s.PUBLISHED)
    for _ in range(2):
        told = A2.sends(client, error(version, ip(version, client, server, p.udp(4000, 80))))
        tunnelled(programs, A2, told, told[14:])
    about_another = A2.sends(client, error(version, ip(version, client, server, p.udp(4001, 80))))
    assert "TO_PEER" not in programs.run(A2, about_another).reasons


@FAMILIES
@pytest.mark.parametrize("dsr", [False, True])
@pytest.mark.parametrize("error", [port_closed, too_wide])
def test_s26_a_client_outside_hears_an_error_of_a_backend_on_another_host(
    programs: Programs, version: int, dsr: bool, error: Callable[[int, bytes], p.Transport]
) -> None:
    """From the address that it has asked, about its own packet."""
    s.fill(programs, [BACKEND], flags=SERVICE_DSR if dsr else 0)
    client, server = OUTSIDES[version], REMOTES[version]
    asked = outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED))
    assert programs.run(None, asked).reasons == {"TO_PEER": 1}
    quote = ip(version, client, server, p.udp(4000, 80, summed=False), **hop(version))
    got = programs.run(None, comes(server, client, error(version, quote)))
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_OUTSIDE": 1})
    quote = ip(version, client, HOSTS[version], p.udp(4000, s.PUBLISHED, summed=False), **hop(version))
    packet = ip(version, HOSTS[version], client, error(version, quote), **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text


def no_hop_left(version: int, quote: bytes) -> p.Transport:
    return p.icmp(11, 0, 0, quote) if version == 4 else p.icmp6(3, 0, 0, quote)


ROUTERS: dict[int, p.Address] = {4: IPv4Address("203.0.113.9"), 6: IPv6Address("2001:db8:9::9")}


@FAMILIES
@pytest.mark.parametrize("encrypted", [False, True], ids=["VXLAN", "WireGuard"])
@pytest.mark.parametrize("by", ["the client", "a router"])
@pytest.mark.parametrize("error", [port_closed, too_wide, no_hop_left])
def test_s26_an_error_about_a_backends_answer_to_a_client_outside_gets_to_the_other_host(
    programs: Programs,
    topology: Topology,
    version: int,
    encrypted: bool,
    by: str,
    error: Callable[[int, bytes], p.Transport],
) -> None:
    """As from who says it; in an encrypted tunnel as from the gateway, in whose name the client was asked for, since
    the other host believes it to be nobody else. It quotes what the backend has sent."""
    client, server, device = OUTSIDES[version], REMOTES[version], topology.index["dp4"]
    if encrypted:
        o.fill(programs, device=device, wireguard=device)
    got = programs.run(None, outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED)))
    assert got.reasons == {"TO_PEER": 1}
    known, port = client, 4000
    if encrypted:
        known, at = GATEWAYS[version], 14 + (20 if version == 4 else 40)
        port = int.from_bytes(got.packet[at : at + 2], "big")
    teller = client if by == "the client" else ROUTERS[version]
    quote = ip(version, HOSTS[version], client, p.udp(s.PUBLISHED, 4000, bytes(8), summed=False))
    told = outside_sends(HOSTS[version], error(version, quote), src=teller, **hop(version))
    quote = ip(version, server, known, p.udp(80, port, bytes(8), summed=False))
    if not encrypted:
        tunnelled(programs, None, told, ip(version, teller, server, error(version, quote), **hop(version)))
        return
    got = programs.run(None, told)
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    called = aliases(o.ME)[version == 6]
    packet = ip(version, called, server, error(version, quote), **hop(version))
    assert not (text := p.difference(got.packet[14:], packet)), text


@FAMILIES
def test_s26_an_error_that_is_nobodys_enters_no_encrypted_tunnel(
    programs: Programs, topology: Topology, version: int
) -> None:
    """It quotes another port than the one that was asked, or comes to a backend's own address."""
    o.fill(programs, device=topology.index["dp4"], wireguard=topology.index["dp4"])
    programs.run(None, outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED)))
    for port, to in ((4001, HOSTS[version]), (4000, REMOTES[version])):
        quote = ip(version, to, OUTSIDES[version], p.udp(s.PUBLISHED, port, bytes(8)))
        told = outside_sends(to, too_wide(version, quote), src=ROUTERS[version])
        assert "TO_PEER" not in programs.run(None, told).reasons


@FAMILIES
def test_s26_errors_of_a_backend_on_another_host_are_translated(programs: Programs, version: int) -> None:
    vip, client, server = s.at(version), OWN[version], REMOTES[version]
    programs.run(A1, A1.sends(vip, p.udp(4000, 80)))
    quote = ip(version, client, server, p.udp(4000, 80), **hop(version))
    error = p.icmp(3, 3, 0, quote) if version == 4 else p.icmp6(1, 4, 0, quote)
    got = programs.run(None, comes(server, client, error))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    assert got.packet.count(p.packed(vip)) == 2
    assert p.packed(server) not in got.packet


def test_s26_datagrams_in_fragments_get_to_another_host_and_back(programs: Programs) -> None:
    frames = p.cut(A1.sends(s.vip(), p.udp(4000, 80, bytes(1600))), 800)
    packets = p.cut(
        p.ethernet(
            p.NOBODY, p.NOBODY, p.ETH_IPV4, ip(4, A1.ip, o.REMOTE, p.udp(4000, 80, bytes(1600)), ttl=63)
        ),
        800,
    )
    for frame, packet in zip(frames, packets, strict=True):
        tunnelled(programs, A1, frame, packet[14:], asked=(s.vip(), 80))
    inner = o.inner(o.REMOTE, A1.ip, p.udp(80, 4000, bytes(1600)))
    wholes = p.cut(A1.gets(s.vip(), p.udp(80, 4000, bytes(1600)), ttl=63), 800)
    for part, whole in zip(p.cut(inner, 800), wholes, strict=True):
        programs.expect(None, o.arrives(o.vxlan(part)), REDIRECT, Reason.DELIVERED, whole)


def test_s26_an_answer_is_this_hosts_own_though_another_host_has_asked_with_the_same_port(
    programs: Programs,
) -> None:
    s.fill(programs, [A2])
    answer = abi.tuple_(A2.ip, NET1.gateway, 80, 20500, p.TCP)
    programs.maps["callers"][answer] = abi.caller(NET1.number, o.PEER)
    frame = p.ethernet(NET1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(NET1.gateway, s.vip(), p.tcp(20500, 80, p.SYN)))
    programs.expect(
        NET1, frame, REDIRECT, Reason.DELIVERED, A2.gets(NET1.gateway, p.tcp(20500, 80, p.SYN), ttl=63)
    )
    got = programs.run(A2, A2.sends(NET1.gateway, p.tcp(80, 20500, SYN_ACK)))
    assert got.reasons == {"TO_HOST": 1}


def test_s26_on_one_link_only_members_packets_go_without_a_tunnel(programs: Programs) -> None:
    """Nobody would know on arrival of which network the others are."""
    o.fill(programs, direct=True)
    got = programs.run(A1, A1.sends(s.vip(), p.tcp(4000, 80, p.SYN)))
    packet = ip(4, A1.ip, o.REMOTE, p.tcp(4000, 80, p.SYN), ttl=63)
    assert (got.reasons, got.packet[14:]) == ({"TO_PEER": 1}, packet)
    frame = outside_sends(HOST, p.tcp(4000, s.PUBLISHED, p.SYN))
    packet = ip(4, OUTSIDE, o.REMOTE, p.tcp(4000, 80, p.SYN), ttl=63)
    tunnelled(programs, None, frame, packet, asked=(HOST, s.PUBLISHED))
    programs.run(None, comes(OUTSIDE, A2.ip, p.tcp(4000, 80, p.SYN)))
    answer = A2.sends(OUTSIDE, p.tcp(80, 4000, SYN_ACK))
    tunnelled(programs, A2, answer, answer[14:])


@FAMILIES
@PROTOCOLS
def test_s26_a_client_that_comes_by_another_host_is_answered_by_that(
    programs: Programs, version: int, proto: int
) -> None:
    """As a router before them decides: each host is asked in turn, by one client, for one backend."""
    s.fill(programs, [A2])
    client, server = OUTSIDES[version], A2.ip if version == 4 else A2.ip6
    answer = A2.sends(client, carried(proto, 80, 4000, SYN_ACK))
    for _ in range(2):
        frame = outside_sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED))
        assert programs.run(None, frame).reasons == {"DELIVERED": 1}
        got = programs.run(A2, answer)
        assert got.reasons == {"TO_OUTSIDE": 1}
        assert p.packed(HOSTS[version]) in got.packet
        asked = comes(client, server, carried(proto, 4000, 80))
        assert programs.run(None, asked).reasons == {"DELIVERED": 1}
        tunnelled(programs, A2, answer, answer[14:])


@FAMILIES
@PROTOCOLS
def test_s26_a_member_asks_the_published_port_for_a_backend_on_another_host(
    programs: Programs, version: int, proto: int
) -> None:
    """Of the service's network or another one, by the host's address: all packets of the connection get there."""
    for sender in (A1, B1):
        client = sender.ip if version == 4 else sender.ip6
        for flags in (p.SYN, p.ACK, p.ACK):
            frame = sender.sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED, flags))
            packet = ip(version, client, REMOTES[version], carried(proto, 4000, 80, flags), **hop(version))
            asked = (HOSTS[version], s.PUBLISHED) if flags == p.SYN else None
            tunnelled(programs, sender, frame, packet, asked=asked)
            answer = comes(REMOTES[version], client, carried(proto, 80, 4000, SYN_ACK))
            seen = sender.gets(HOSTS[version], carried(proto, s.PUBLISHED, 4000, SYN_ACK), **hop(version))
            programs.expect(None, answer, REDIRECT, Reason.DELIVERED, seen)


@FAMILIES
@PROTOCOLS
def test_s26_s15_without_icc_a_member_is_given_what_is_published_of_its_network_by_another_host_too(
    programs: Programs, version: int, proto: int
) -> None:
    """As by a backend here. The other host believes it in the gateway's name; the virtual address is not public."""
    value = programs.maps["networks"][NET1.number]
    programs.maps["networks"][NET1.number] = value._replace(flags=value.flags & ~abi.NetworkFlag.NETWORK_ICC)
    gateway, port = GATEWAYS[version], 4000
    for flags in (p.SYN, p.ACK):
        frame = A1.sends(HOSTS[version], carried(proto, 4000, s.PUBLISHED, flags))
        got = programs.run(A1, frame)
        assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
        port = int.from_bytes(
            got.packet[(at := 14 + 20 + 16 + 14 + (20 if version == 4 else 40)) : at + 2], "big"
        )
        packet = ip(version, gateway, REMOTES[version], carried(proto, port, 80, flags), **hop(version))
        by = o.marks(s.mark_of(HOSTS[version], s.PUBLISHED)) if flags == p.SYN else o.OWN_MAC
        wanted = o.leaves(packet, o.source_port(got.packet), by=by)
        assert not (text := p.difference(got.packet, wanted)), text
        answer = comes(REMOTES[version], gateway, carried(proto, 80, port, SYN_ACK))
        seen = A1.gets(HOSTS[version], carried(proto, s.PUBLISHED, 4000, SYN_ACK), **hop(version))
        programs.expect(None, answer, REDIRECT, Reason.DELIVERED, seen)
    frame = A1.sends(s.at(version), carried(proto, 4000, 80))
    programs.expect(A1, frame, SHOT, Reason.DROP_ICC)
    s.fill(programs, [A2])
    frame = A1.sends(HOSTS[version], carried(proto, 4001, s.PUBLISHED))
    assert programs.run(A1, frame).reasons == {"DELIVERED": 1}
    programs.expect(A1, A1.sends(s.at(version), carried(proto, 4001, 80)), SHOT, Reason.DROP_ICC)


@pytest.mark.parametrize("sender", [A1, B1], ids=["member", "another network's"])
@pytest.mark.parametrize("late", [False, True], ids=["in order", "the first one last"])
def test_s26_each_datagram_of_a_flow_gets_to_another_host_in_fragments(
    programs: Programs, sender: Member, late: bool
) -> None:
    asked, port = (s.vip(), 80) if sender is A1 else (HOST, s.PUBLISHED)
    for _ in range(3):
        frames = p.cut(sender.sends(asked, p.udp(4000, port, bytes(1600))), 800)
        there = ip(4, sender.ip, o.REMOTE, p.udp(4000, 80, bytes(1600)), ttl=63)
        packets = p.cut(p.ethernet(p.NOBODY, p.NOBODY, p.ETH_IPV4, there), 800)
        if late:  # and it comes once more, as the first one lets it go
            assert programs.run(sender, frames[1]).reasons == {"HELD": 1}
        for frame, packet in zip(frames, packets, strict=True):
            tunnelled(programs, sender, frame, packet[14:], asked=(asked, port))


@FAMILIES
@pytest.mark.parametrize("ttl", [1, 64], ids=["no hop left", "too big"])
def test_s26_a_backend_on_another_host_is_told_by_its_tunnel_why_its_answer_goes_no_further(
    programs: Programs, version: int, ttl: int
) -> None:
    """Also if it could be fragmented: its rest would come back without a tunnel."""
    programs.maps["tunnel"][0] = programs.maps["tunnel"][0]._replace(ifindex=0)
    client, server = OUTSIDES[version], REMOTES[version]
    programs.run(None, outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED)))
    size = 8 if ttl == 1 else 1540 - (28 if version == 4 else 48)
    header = {"ttl" if version == 4 else "hops": ttl}
    got = programs.run(None, comes(server, client, p.udp(80, 4000, bytes(size)), **header))
    reason = "DROP_TTL" if ttl == 1 else "DROP_TOO_BIG"
    assert (got.verdict, got.reasons) == (REDIRECT, {reason: 1, "TO_PEER": 1})
    packet = got.packet[14 + 20 + 16 + 14 :]
    assert packet[12 if version == 4 else 8 :].startswith(p.packed(GATEWAYS[version]) + p.packed(server))
    kinds = {(4, 1): (11, 0), (4, 64): (3, 4), (6, 1): (3, 0), (6, 64): (2, 0)}
    at = 20 if version == 4 else 40
    assert tuple(packet[at : at + 2]) == kinds[version, ttl]


@FAMILIES
@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
@pytest.mark.parametrize("answers", [True, False], ids=["answer", "error"])
def test_s26_what_a_backend_on_another_host_answers_is_counted_where_no_way_leads_out_any_more(
    programs: Programs, version: int, kind: str, answers: bool
) -> None:
    from pyroute2 import IPRoute

    client, server = OUTSIDES[version], REMOTES[version]
    programs.run(None, outside_sends(HOSTS[version], p.udp(4000, s.PUBLISHED)))
    said = p.udp(80, 4000) if answers else port_closed(version, ip(version, client, server, p.udp(4000, 80)))
    way = {"dst": f"{client}/{32 if version == 4 else 128}", "type": kind}
    with IPRoute() as route:
        route.route("add", **way)
        try:
            got = programs.run(None, comes(server, client, said))
        finally:
            route.route("del", **way)
    assert (got.verdict, got.reasons) == (SHOT, {"DROP_NO_ROUTE": 1})
