# SPDX-License-Identifier: Apache-2.0
"""Members of an overlay network on other hosts: what is sent to them, and what is taken from them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    D1,
    HOST,
    NET1,
    NEXT_HOP,
    NEXT_HOP6,
    NEXT_HOP_MAC,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK_MAC,
    Copies,
    Programs,
    Reason,
    Topology,
)
from tests.bpf.ipsec import Policies, policy
from tests.bpf.test_ways import way

UDP = p.udp(1000, 53)
GATEWAYS: dict[int, p.Address] = {4: NET1.gateway, 6: NET1.gateway6}


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=o.TUNNEL_OBJECTS) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs, topology: Topology) -> None:
    o.fill(programs, device=topology.index["dp4"])
    callers = programs.maps["callers"]
    callers.delete_many(list(callers))


def sent(
    programs: Programs, sender: object, frame: bytes, *, outer: int = 4, peer: int = o.PEER, ecn: int = 0
) -> int:
    """The frame goes to a peer, byte for byte; its source port."""
    got = programs.run(sender, frame)  # type: ignore[arg-type]
    assert (got.verdict, got.reasons) == (REDIRECT, {"TO_PEER": 1})
    sport = o.source_port(got.packet)
    difference = p.difference(got.packet, o.leaves(frame[14:], sport, outer=outer, peer=peer, ecn=ecn))
    assert not difference, difference
    return sport


# ---- to peers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("remote", [o.REMOTE, o.REMOTE6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    "carried", [UDP, p.tcp(1, 2, p.SYN), p.udp(9, 9, b"", summed=False)], ids=["udp", "tcp", "0"]
)
def test_a_packet_for_another_hosts_member_is_put_into_a_tunnel(
    programs: Programs, topology: Topology, outer: int, remote: p.Address, carried: p.Transport
) -> None:
    o.fill(programs, outer=outer, device=topology.index["dp4"])
    sport = sent(programs, A1, A1.sends(remote, carried), outer=outer)
    assert 32768 <= sport < 32768 + 2**14
    assert sent(programs, A1, A1.sends(remote, carried), outer=outer) == sport


def test_flows_have_ports_of_their_own(programs: Programs) -> None:
    """Routers between the hosts choose ways by them."""
    ports = {sent(programs, A1, A1.sends(o.REMOTE, p.udp(1000 + i, 53))) for i in range(32)}
    assert len(ports) > 24


def test_an_address_that_has_moved_is_found_where_it_is(programs: Programs) -> None:
    sent(programs, A1, A1.sends(o.MOVED, UDP))
    sent(programs, A1, A1.sends(o.MOVED + 1, UDP), peer=o.OTHER_PEER)


@pytest.mark.parametrize("ecn", [1, 2, 3])
@pytest.mark.parametrize("remote", [o.REMOTE, o.REMOTE6], ids=["IPv4", "IPv6"])
def test_marks_of_congestion_are_copied_outside(programs: Programs, remote: p.Address, ecn: int) -> None:
    """RFC 6040, 4.1."""
    frame = A1.sends(remote, UDP)
    sent(programs, A1, frame[:14] + o.marked(frame[14:], ecn), ecn=ecn)


def test_fragments_need_no_ports_where_all_may_talk(programs: Programs) -> None:
    for frame in reversed(p.cut(A1.sends(o.REMOTE, p.udp(1, 2, bytes(2000))), 800, 1600)):
        sent(programs, A1, frame)


@pytest.mark.parametrize(("remote", "version"), [(o.REMOTE, 4), (o.REMOTE6, 6)])
def test_what_is_larger_than_the_tunnel_is_told_so(
    programs: Programs, remote: p.Address, version: int
) -> None:
    largest = 1450 - (28 if version == 4 else 48)
    sent(programs, A1, A1.sends(remote, p.udp(1, 2, bytes(largest))))
    frame = A1.sends(remote, p.udp(1, 2, bytes(largest + 1)))
    answer = p.own_error(frame, GATEWAYS[version], mtu=1450)
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TOO_BIG, answer)


def test_the_smaller_way_counts(programs: Programs, topology: Topology) -> None:
    o.fill(programs, mtu=1400, device=topology.index["dp4"])
    frame = A1.sends(o.REMOTE, p.udp(1, 2, bytes(1400 - 28 - 49)))
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, NET1.gateway, mtu=1350))


def test_what_may_be_fragmented_goes_by_the_device(programs: Programs) -> None:
    frame = A1.sends(o.REMOTE, p.udp(1, 2, bytes(1440)), fragment=0)
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(A1, frame, REDIRECT, Reason.TO_PEER, by_device)
    o.fill(programs, device=0)
    programs.expect(A1, frame, SHOT, Reason.DROP_NO_TUNNEL)


def test_a_host_without_an_end_of_the_family_sends_nothing(programs: Programs) -> None:
    programs.maps["tunnel"][0] = programs.maps["tunnel"][0]._replace(addr4=None)
    programs.expect(A1, A1.sends(o.REMOTE, UDP), SHOT, Reason.DROP_NO_TUNNEL)


def test_an_ipsec_policy_about_the_tunnel_is_the_devices(programs: Programs, policies: Policies) -> None:
    policies(policy("out", f"{HOST}/32", f"{o.PEERS[o.PEER]}/32"))
    frame = A1.sends(o.REMOTE, UDP)
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(A1, frame, REDIRECT, Reason.TO_PEER, by_device)


@pytest.mark.parametrize("address", [o.NOBODY, A1.ip + 50])
def test_an_address_that_nobody_has_is_dropped(programs: Programs, address: IPv4Address) -> None:
    programs.expect(A1, A1.sends(address, UDP), SHOT, Reason.DROP_NO_REMOTE)
    question = p.arp(p.REQUEST, A1.mac, A1.ip, p.NOBODY, address)
    programs.expect(A1, p.ethernet(p.BROADCAST, A1.mac, p.ETH_ARP, question), SHOT, Reason.DROP_UNKNOWN_ARP)


def test_questions_for_another_hosts_member_are_answered_with_the_gateways_mac(programs: Programs) -> None:
    question = p.ethernet(p.BROADCAST, A1.mac, p.ETH_ARP, p.arp(p.REQUEST, A1.mac, A1.ip, p.NOBODY, o.REMOTE))
    answer = p.ethernet(A1.mac, NET1.mac, p.ETH_ARP, p.arp(p.REPLY, NET1.mac, o.REMOTE, A1.mac, A1.ip))
    programs.expect(A1, question, REDIRECT, Reason.ANSWERED, answer)
    mac, group = p.solicited_node(o.REMOTE6)
    body = p.ipv6(A1.ip6, group, p.solicitation(o.REMOTE6, A1.mac), hops=255)
    advertised = p.ipv6(o.REMOTE6, A1.ip6, p.advertisement(o.REMOTE6, NET1.mac, solicited=True), hops=255)
    programs.expect(
        A1,
        p.ethernet(mac, A1.mac, p.ETH_IPV6, body),
        REDIRECT,
        Reason.ANSWERED,
        p.ethernet(A1.mac, NET1.mac, p.ETH_IPV6, advertised),
    )


def test_another_networks_members_do_not_get_there(programs: Programs) -> None:
    """S13: what network 2 sends to that address is not looked for in network 1."""
    got = programs.run(B1, B1.sends(o.REMOTE, UDP))
    assert "TO_PEER" not in got.reasons and got.verdict in (SHOT, REDIRECT)


def test_a_datagram_of_segments_is_as_large_as_each_of_them(programs: Programs) -> None:
    frame = A1.sends(o.REMOTE, p.tcp(1, 2, p.ACK, bytes(3000)))
    assert programs.run(A1, frame, gso=1400).reasons == {"TO_PEER": 1}
    assert programs.run(A1, frame, gso=1420).reasons == {"DROP_TOO_BIG": 1}


# ---- the host --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("remote", "version"), [(o.REMOTE, 4), (o.REMOTE6, 6)])
def test_the_host_reaches_another_hosts_member_as_the_gateway(
    programs: Programs, remote: p.Address, version: int
) -> None:
    """By the tunnels' device, which finds the next hop for itself; without one the program does."""
    gateway = GATEWAYS[version]
    body = p.ipv4(gateway, remote, UDP) if version == 4 else p.ipv6(gateway, remote, UDP)
    kind = p.ETH_IPV4 if version == 4 else p.ETH_IPV6
    frame = p.ethernet(o.peer_mac(o.PEER), NET1.mac, kind, body)
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(NET1, frame, REDIRECT, Reason.TO_PEER, by_device)
    o.fill(programs, device=0)
    sent(programs, NET1, frame)


def test_the_hosts_questions_are_answered(programs: Programs) -> None:
    question = p.arp(p.REQUEST, NET1.mac, NET1.gateway, p.NOBODY, o.REMOTE)
    answer = p.arp(p.REPLY, o.peer_mac(o.PEER), o.REMOTE, NET1.mac, NET1.gateway)
    programs.expect(
        NET1,
        p.ethernet(p.BROADCAST, NET1.mac, p.ETH_ARP, question),
        REDIRECT,
        Reason.ANSWERED,
        p.ethernet(NET1.mac, o.peer_mac(o.PEER), p.ETH_ARP, answer),
    )


def test_who_asks_as_the_gateway_is_answered_on_its_own_host(programs: Programs) -> None:
    """Each host has the gateway's address: the answer goes to the one that has asked, until this one asks itself."""
    asked = o.arrives(o.vxlan(o.inner(NET1.gateway, A1.ip, p.udp(1000, 53))))
    programs.expect(None, asked, REDIRECT, Reason.DELIVERED, A1.gets(NET1.gateway, p.udp(1000, 53)))
    answer = A1.sends(NET1.gateway, p.udp(53, 1000))
    sent(programs, A1, answer)
    assert "TO_PEER" not in programs.run(A1, A1.sends(NET1.gateway, p.udp(53, 1001))).reasons
    own = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(NET1.gateway, A1.ip, p.udp(1000, 53)))
    programs.expect(NET1, own, REDIRECT, Reason.DELIVERED)
    assert "TO_PEER" not in programs.run(A1, answer).reasons


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_in_fragments_goes_to_the_host_that_has_asked(programs: Programs, version: int) -> None:
    """A later one does not say what it answers, and waits for the first one if it has to."""
    gateway, own = GATEWAYS[version], A1.ip if version == 4 else A1.ip6
    ends = o.PEERS if version == 4 else o.PEERS6
    asked = o.arrives(o.vxlan(o.inner(gateway, own, p.udp(1000, 53))), src=ends[o.PEER])
    assert programs.run(None, asked).reasons == {"DELIVERED": 1}
    first, later = p.cut(A1.sends(gateway, p.udp(53, 1000, bytes(1600))), 800)
    for _ in range(2):
        assert programs.run(A1, later).reasons == {"HELD": 1}
        sent(programs, A1, first)
        sent(programs, A1, later)
    for frame in p.cut(A1.sends(gateway, p.udp(53, 1001, bytes(1600))), 800, ident=7):
        assert "TO_PEER" not in programs.run(A1, frame).reasons


def test_an_answer_to_the_host_comes_to_its_gateway_device(programs: Programs) -> None:
    answer = o.inner(o.REMOTE, NET1.gateway, p.udp(53, 1000))
    wanted = p.ethernet(NET1.mac, NET1.mac, p.ETH_IPV4, answer[14:])
    programs.expect(None, o.arrives(o.vxlan(answer)), REDIRECT, Reason.TO_HOST, wanted)


@pytest.mark.parametrize("src", [o.PEERS[o.PEER], o.PEERS6[o.PEER]], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("summed", [True, False])
def test_what_asks_whether_packets_arrive_is_sent_back(
    programs: Programs, topology: Topology, src: p.Address, version: int, summed: bool
) -> None:
    """By the host's own way to the peer, with the checksum that it had; of an address that no member has."""
    if version != ip_address(src).version and not _changes_families(programs):
        pytest.skip("this kernel leaves what is of the other family to the device")
    gateway, nobody = GATEWAYS[version], (A1.ip if version == 4 else A1.ip6) + 60
    body = p.udp(1000, 7, b"whatever", summed=summed)
    frame = o.arrives(o.vxlan(o.inner(gateway, nobody, body)), src=src)
    back = o.inner(nobody, gateway, p.udp(7, 1000, b"whatever", summed=summed))
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + back[12:]
    programs.expect(None, frame, REDIRECT, Reason.TO_PEER, by_device)
    o.fill(programs, device=0)
    got = programs.run(None, frame)
    assert got.reasons == {"TO_PEER": 1} and got.packet.endswith(back[12:])
    for other in (
        o.inner(gateway, nobody, p.udp(1000, 8)),
        o.inner(gateway, nobody, p.tcp(1000, 7, p.SYN)),
        o.inner(o.REMOTE if version == 4 else o.REMOTE6, nobody, body),
    ):
        assert programs.run(None, o.arrives(o.vxlan(other), src=src)).reasons == {"DROP_NO_ENDPOINT": 1}
    member = A1.ip if version == 4 else A1.ip6
    asked = o.arrives(o.vxlan(o.inner(gateway, member, body)), src=src)
    programs.expect(None, asked, REDIRECT, Reason.DELIVERED, A1.gets(gateway, body))


# ---- from peers ------------------------------------------------------------------------------------

HONEST = o.inner(o.REMOTE, A1.ip, UDP)
HONEST6 = o.inner(o.REMOTE6, A1.ip6, UDP)


@pytest.mark.parametrize("src", [o.PEERS[o.PEER], o.PEERS6[o.PEER]], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize(
    "carried", [UDP, p.tcp(1, 2, p.SYN), p.udp(9, 9, b"", summed=False)], ids=["udp", "tcp", "0"]
)
@pytest.mark.parametrize("version", [4, 6])
def test_what_a_peer_sends_is_freed_of_its_headers(
    programs: Programs, src: p.Address, carried: p.Transport, version: int
) -> None:
    source, target = (o.REMOTE, A1.ip) if version == 4 else (o.REMOTE6, A1.ip6)
    frame = o.arrives(o.vxlan(o.inner(source, target, carried)), src=src)
    if version != ip_address(src).version and not _changes_families(programs):
        programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)  # the device does it
        return
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, A1.gets(source, carried))


def _changes_families(programs: Programs) -> bool:
    """This kernel lets a program take away a header of the other family (since 6.3)."""
    frame = o.arrives(o.vxlan(HONEST6))
    return programs.run(None, frame).reasons == {"DELIVERED": 1}


def test_options_and_another_port_of_the_sender_make_no_difference(programs: Programs) -> None:
    frame = o.arrives(o.vxlan(HONEST, sport=7), options=bytes(8))
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, A1.gets(o.REMOTE, UDP))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(o.arrives(o.vxlan(HONEST), src=o.STRANGER), Reason.DROP_TUNNEL_SENDER, id="no host"),
        pytest.param(
            o.arrives(o.vxlan(HONEST6), src=o.STRANGER6), Reason.DROP_TUNNEL_SENDER, id="no host, IPv6"
        ),
        pytest.param(
            o.arrives(o.vxlan(HONEST), src=o.PEERS[o.OTHER_PEER]), Reason.DROP_TUNNEL_SOURCE, id="another"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(A2.ip, A1.ip, UDP))), Reason.DROP_TUNNEL_SOURCE, id="a member's here"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner("203.0.113.5", A1.ip, UDP))), Reason.DROP_TUNNEL_SOURCE, id="outside"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(HOST, A1.ip, UDP))), Reason.DROP_TUNNEL_SOURCE, id="this host's"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(NET1.gateway, NET1.gateway, UDP))),
            Reason.DROP_TUNNEL_SOURCE,
            id="gateways",
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner("127.0.0.1", A1.ip, UDP))), Reason.DROP_TUNNEL_FRAME, id="loopback"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(o.REMOTE, A1.ip + 60, UDP))), Reason.DROP_NO_ENDPOINT, id="to nobody"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(o.REMOTE, HOST, UDP))), Reason.DROP_NO_ENDPOINT, id="to this host"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(o.REMOTE, B1.ip, UDP))), Reason.DROP_NO_ENDPOINT, id="network 2"
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(o.REMOTE, A1.ip, UDP, to=p.BROADCAST))),
            Reason.DROP_TUNNEL_FRAME,
            id="to all",
        ),
        pytest.param(
            o.arrives(o.vxlan(o.inner(o.REMOTE, "224.0.0.1", UDP))), Reason.DROP_TUNNEL_FRAME, id="a group"
        ),
        pytest.param(
            o.arrives(
                o.vxlan(o.inner(o.REMOTE6, A1.ip6, p.solicitation(A1.ip6, A2.mac))), src=o.PEERS6[o.PEER]
            ),
            Reason.DROP_TUNNEL_FRAME,
            id="a neighbour",
        ),
        pytest.param(o.arrives(o.vxlan(HONEST), ecn=3), Reason.DROP_CONGESTED, id="congested"),
        pytest.param(
            o.arrives(o.vxlan(HONEST[:12] + b"\x81\0\0\1" + HONEST[12:])), Reason.DROP_VLAN, id="a tag"
        ),
        pytest.param(
            o.arrives(o.vxlan(HONEST[:12] + b"\x88\xcc" + HONEST[14:])), Reason.DROP_ETHERTYPE, id="lldp"
        ),
    ],
)
def test_what_is_not_believed_is_dropped_under_its_reason(
    programs: Programs, frame: bytes, reason: object
) -> None:
    """O10."""
    got = programs.run(None, frame)
    assert (got.verdict, got.reasons) == (SHOT, {reason.name: 1})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(o.arrives(o.vxlan(HONEST, vni=77)), id="another network, for another's device"),
        pytest.param(o.arrives(o.vxlan(HONEST, vni=77), src=o.STRANGER), id="another network, from anybody"),
        pytest.param(o.arrives(o.vxlan(HONEST, flags=0)), id="no network"),
        pytest.param(o.arrives(o.vxlan(HONEST, port=4790)), id="another port"),
        pytest.param(o.arrives(p.udp(1, o.PORT, b"\x08\0\0")), id="cut in its header"),
        pytest.param(o.arrives(o.vxlan(HONEST), fragment=p.MORE_FRAGMENTS), id="a first fragment"),
        pytest.param(o.arrives(o.vxlan(HONEST), fragment=5), id="a later fragment"),
    ],
)
def test_what_is_not_ours_is_left_alone(programs: Programs, frame: bytes) -> None:
    """O10, O11. Of a later fragment a copy waits for its first one, as of any."""
    got = programs.run(None, frame)
    assert (got.verdict, got.reasons.keys() - {"HELD"}, got.packet) == (UNSPEC, {"NOT_OURS"}, frame)


def test_a_moved_address_is_believed_from_where_it_is(programs: Programs) -> None:
    frame = o.arrives(o.vxlan(o.inner(o.MOVED, A1.ip, UDP)))
    programs.expect(None, frame, REDIRECT, Reason.DELIVERED, A1.gets(o.MOVED, UDP))


@pytest.mark.parametrize(
    ("whole", "src"), [(HONEST, o.PEERS[o.PEER]), (HONEST6, o.PEERS6[o.PEER])], ids=["IPv4", "IPv6"]
)
def test_nothing_that_is_cut_short_is_delivered(programs: Programs, whole: bytes, src: p.Address) -> None:
    """Wherever it is cut: in the outer datagram, which says so."""
    for length in range(len(whole)):
        got = programs.run(None, o.arrives(o.vxlan(whole[:length]), src=src))
        assert got.reasons.keys() <= {"DROP_TRUNCATED"}, (length, got.reasons)
        assert got.verdict == SHOT


def test_congestion_is_told_to_who_understands_it(programs: Programs) -> None:
    """RFC 6040, 4.2."""
    for src, dst in ((o.REMOTE, A1.ip), (o.REMOTE6, A1.ip6)):
        frame = o.arrives(o.vxlan(o.inner(src, dst, UDP, ecn=2)), ecn=3)
        got = programs.run(None, frame)
        if got.reasons == {"NOT_OURS": 1}:  # of the other family, on a kernel before 6.3
            continue
        wanted = A1.gets(src, UDP)
        assert not (difference := p.difference(got.packet, wanted[:14] + o.marked(wanted[14:], 3))), (
            difference
        )


def test_segments_that_were_joined_are_the_devices(programs: Programs) -> None:
    """A program that takes their headers away would leave them marked as a tunnel's."""
    frame = o.arrives(o.vxlan(o.inner(o.REMOTE, A1.ip, p.tcp(1, 2, p.ACK, bytes(3000)))))
    got = programs.run(None, frame, gso=1400)
    assert (got.verdict, got.reasons, got.packet) == (UNSPEC, {"NOT_OURS": 1}, frame)
    o.fill(programs, device=0)
    got = programs.run(None, frame, gso=1400)
    assert (got.verdict, got.reasons) == (SHOT, {"DROP_NO_TUNNEL": 1})


def test_whether_it_may_come_in_clear_is_for_the_stack(programs: Programs, policies: Policies) -> None:
    policies(policy("in", f"{o.PEERS[o.PEER]}/32", f"{HOST}/32"))
    programs.expect(None, o.arrives(o.vxlan(HONEST)), UNSPEC, Reason.NOT_OURS)


def test_on_the_device_nothing_comes_without_a_tunnel(programs: Programs, topology: Topology) -> None:
    from datapath.kernel import libbpf

    run = libbpf.test_run(programs.fds["from_vxlan"], HONEST, ifindex=topology.index["dp4"])
    assert run.verdict == SHOT
    assert programs.counted() == {"DROP_TUNNEL_SENDER": 1}


def test_a_host_that_has_no_part_in_a_cluster_takes_nothing(programs: Programs) -> None:
    programs.maps["tunnel"][0] = abi.tunnel()
    for frame in (o.arrives(o.vxlan(HONEST)), o.arrives(o.vxlan(HONEST, port=0))):
        programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)


# ---- without tunnels -------------------------------------------------------------------------------


def comes(packet: bytes) -> bytes:
    """A frame from a host on the link."""
    kind = p.ETH_IPV4 if packet[0] >> 4 == 4 else p.ETH_IPV6
    return p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, kind, packet)


@pytest.mark.parametrize(("outer", "remote"), [(4, o.REMOTE), (6, o.REMOTE), (6, o.REMOTE6)])
def test_on_one_link_a_packet_goes_as_it_is(
    programs: Programs, topology: Topology, outer: int, remote: p.Address
) -> None:
    o.fill(programs, outer=outer, direct=True, device=topology.index["dp4"])
    programs.expect(A1, A1.sends(remote, UDP), REDIRECT, Reason.TO_PEER)


def test_what_the_link_cannot_carry_so_goes_in_a_tunnel(programs: Programs, topology: Topology) -> None:
    """IPv6 over IPv4 ends; what a host asks in the gateway's name."""
    o.fill(programs, direct=True)
    sent(programs, A1, A1.sends(o.REMOTE6, UDP))
    body = p.ipv4(NET1.gateway, o.REMOTE, UDP)
    sent(programs, NET1, p.ethernet(o.peer_mac(o.PEER), NET1.mac, p.ETH_IPV4, body))


def test_what_the_link_does_not_take_is_told_so_or_goes_by_the_device(
    programs: Programs, topology: Topology
) -> None:
    o.fill(programs, direct=True, device=topology.index["dp4"])
    programs.expect(A1, A1.sends(o.REMOTE, p.udp(1, 2, bytes(1472))), REDIRECT, Reason.TO_PEER)
    frame = A1.sends(o.REMOTE, p.udp(1, 2, bytes(1473)))
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, NET1.gateway, mtu=1500))
    frame = A1.sends(o.REMOTE, p.udp(1, 2, bytes(1473)), fragment=0)
    by_device = p.mac_bytes(o.peer_mac(o.PEER) + ":" + o.OWN_MAC) + frame[12:]
    programs.expect(A1, frame, REDIRECT, Reason.TO_PEER, by_device)


@pytest.mark.parametrize(("src", "dst"), [(o.REMOTE, A1.ip), (o.REMOTE6, A1.ip6)], ids=["IPv4", "IPv6"])
def test_what_comes_as_it_is_is_delivered(
    programs: Programs, topology: Topology, src: p.Address, dst: p.Address
) -> None:
    o.fill(programs, direct=True, device=topology.index["dp4"])
    packet = p.ipv4(src, dst, UDP) if dst == A1.ip else p.ipv6(src, dst, UDP)
    programs.expect(None, comes(packet), REDIRECT, Reason.DELIVERED, A1.gets(src, UDP))


@pytest.mark.parametrize(
    ("src", "reason"),
    [
        (o.NOBODY, Reason.DROP_DIRECT),
        (A2.ip, Reason.DROP_DIRECT),
        (NET1.gateway, Reason.DROP_DIRECT),
        (IPv4Address("203.0.113.5"), Reason.DROP_DIRECT),
    ],
    ids=["nobody", "a member here", "the gateway", "outside"],
)
def test_what_comes_as_it_is_has_to_be_a_peers(
    programs: Programs, topology: Topology, src: IPv4Address, reason: Any
) -> None:
    o.fill(programs, direct=True, device=topology.index["dp4"])
    programs.expect(None, comes(p.ipv4(src, A1.ip, UDP)), SHOT, reason)


def test_a_peer_that_is_elsewhere_does_not_come_by_this_link(programs: Programs, topology: Topology) -> None:
    """Strict reverse path: the way to the peer leads over another device, or to none."""
    o.fill(programs, direct=True, device=topology.index["dp4"])
    peer = abi.peer(D1.ip, 1, 1500, o.peer_mac(o.PEER))
    programs.maps["peers"][abi.peer_key(o.PEER)] = peer
    programs.expect(None, comes(p.ipv4(o.REMOTE, A1.ip, UDP)), SHOT, Reason.DROP_TUNNEL_SOURCE)


def test_without_such_networks_nothing_is_taken_that_comes_so(programs: Programs) -> None:
    programs.expect(None, comes(p.ipv4(o.REMOTE, A1.ip, UDP)), UNSPEC, Reason.NOT_OURS)


@pytest.mark.parametrize(
    ("remote", "hop"), [(o.REMOTE, NEXT_HOP), (o.REMOTE6, NEXT_HOP6)], ids=["IPv4", "IPv6"]
)
def test_what_routers_know_the_way_to_goes_there_as_it_is(
    programs: Programs, topology: Topology, remote: p.Address, hop: p.Address
) -> None:
    """Without such a route, when there is only the network's own, which leads back into it, it goes in a tunnel."""
    o.fill(programs, routed=True, device=topology.index["dp4"])
    sent(programs, A1, A1.sends(ip_address(remote) + 1, UDP))  # ways are remembered for a moment
    with way(remote, f"via {hop}"):
        programs.expect(A1, A1.sends(remote, UDP), REDIRECT, Reason.TO_PEER)
        large = p.udp(1001, 53, bytes(1500))
        assert programs.run(A1, A1.sends(remote, large)).reasons == {"DROP_TOO_BIG": 1}


@pytest.mark.parametrize(("src", "dst"), [(o.REMOTE, A1.ip), (o.REMOTE6, A1.ip6)], ids=["IPv4", "IPv6"])
def test_from_a_peer_behind_a_router_it_is_delivered(
    programs: Programs, topology: Topology, src: p.Address, dst: p.Address
) -> None:
    o.fill(programs, routed=True, device=topology.index["dp4"])
    packet = p.ipv4(src, dst, UDP) if dst == A1.ip else p.ipv6(src, dst, UDP)
    programs.expect(None, comes(packet), REDIRECT, Reason.DELIVERED, A1.gets(src, UDP))


def test_from_anybody_outside_it_is_delivered_where_routers_know_the_way(
    programs: Programs, topology: Topology
) -> None:
    """As to a port that is published at the member's own address: its answer goes back with that."""
    o.fill(programs, routed=True, device=topology.index["dp4"])
    stranger = IPv4Address("203.0.113.5")
    for asked, answer in (
        (p.tcp(1000, 80, p.SYN), p.tcp(80, 1000, p.SYN | p.ACK)),
        (p.udp(1000, 53), p.udp(53, 1000)),
    ):
        got = programs.run(None, comes(p.ipv4(stranger, A1.ip, asked)))
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
        assert not p.difference(got.packet, A1.gets(stranger, asked, ttl=63))
        got = programs.run(A1, A1.sends(stranger, answer))
        assert got.verdict == REDIRECT
        assert got.packet[14 + 12 : 14 + 20] == A1.ip.packed + stranger.packed


@pytest.mark.parametrize(
    "src", [o.NOBODY, A2.ip, NET1.gateway], ids=["nobody", "a member here", "the gateway"]
)
def test_nobody_else_is_believed_to_be_a_member_where_routers_know_the_way(
    programs: Programs, topology: Topology, src: IPv4Address
) -> None:
    o.fill(programs, routed=True, device=topology.index["dp4"])
    programs.expect(None, comes(p.ipv4(src, A1.ip, UDP)), SHOT, Reason.DROP_DIRECT)


def test_a_containers_answer_goes_back_the_way_it_was_asked(programs: Programs) -> None:
    asked = o.arrives(o.vxlan(o.inner(o.REMOTE, A1.ip, p.tcp(1000, 80, p.SYN))))
    programs.expect(None, asked, REDIRECT, Reason.DELIVERED, A1.gets(o.REMOTE, p.tcp(1000, 80, p.SYN)))
    sent(programs, A1, A1.sends(o.REMOTE, p.tcp(80, 1000, p.SYN | p.ACK)))
    assert not programs.table("pending")
