# SPDX-License-Identifier: Apache-2.0
"""The way out: how large segments are, what is cut, and what the host's IPsec policies forbid."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from datapath.kernel import abi, netns
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    D1,
    HOST,
    HOST6,
    NET1,
    NEXT_HOP,
    NEXT_HOP_MAC,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK,
    Programs,
    Reason,
    Topology,
    outside_sends,
)
from tests.bpf.ipsec import Policies, policy

SPORT, MTU = 20100, 1500
STAMPS = b"\1\1\x08\x0a" + bytes(8)  # TCP's time stamps
MIXED = bytes(range(256)) * 16


@pytest.mark.parametrize("outside", [OUTSIDE, OUTSIDE6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("carried", "header"),
    [
        (p.tcp(SPORT, 80, p.ACK, bytes(3000)), 20),
        (p.tcp(SPORT, 80, p.ACK, bytes(3000), options=STAMPS), 32),
        (p.tcp(SPORT, 80, p.ACK, bytes(3000), options=b"\1" * 40), 60),
    ],
    ids=["TCP", "TCP with time stamps", "TCP with as many options as there can be"],
)
def test_a_segment_has_the_packets_own_header(
    programs: Programs, outside: p.Address, carried: p.Transport, header: int
) -> None:
    """Out, and back in: the largest that fits, and one byte more."""
    six = ip_address(outside).version == 6
    room = MTU - (40 if six else 20) - header
    frame = A1.sends(outside, carried)
    gateway = NET1.gateway6 if six else NET1.gateway
    programs.expect(
        A1, frame, REDIRECT, Reason.DROP_TOO_BIG, p.own_error(frame, gateway, mtu=MTU), gso=room + 1
    )
    assert programs.run(A1, frame, gso=room).reasons == {"TO_OUTSIDE": 1}


@pytest.mark.parametrize("host", [HOST, HOST6], ids=["IPv4", "IPv6"])
def test_so_has_one_that_comes_in(programs: Programs, host: p.Address) -> None:
    room = MTU - (40 if ip_address(host).version == 6 else 20) - 32
    programs.run(None, outside_sends(host, p.tcp(9, 8081, p.SYN)))
    frame = outside_sends(host, p.tcp(9, 8081, p.ACK, bytes(3000), options=STAMPS))
    assert programs.run(None, frame, gso=room).reasons == {"DELIVERED": 1}
    told = p.own_error(frame, host, mtu=MTU)
    programs.expect(None, frame, REDIRECT, Reason.DROP_TOO_BIG, told, gso=room + 1)


# ---- what is cut --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1473, 1474, 2000, 3000])
@pytest.mark.parametrize("summed", [True, False], ids=["checksum", "without checksum"])
def test_a_packet_goes_on_as_its_own_first_fragment(programs: Programs, size: int, summed: bool) -> None:
    """The rest arrives again (a test on the wire follows): it would leave as the others of a datagram do."""
    carried = p.udp(SPORT, 53, MIXED[:size], summed=summed)
    frame = A1.sends(OUTSIDE, carried, fragment=0)
    first, *_ = p.cut(A1.leaves(HOST, OUTSIDE, carried, fragment=0), 1480, ident=0x1234)
    programs.expect(A1, frame, REDIRECT, Reason.TO_OUTSIDE, first)


def test_the_sender_may_have_left_its_checksum_to_the_device(programs: Programs) -> None:
    """Then the header has the sum of the pseudo header, as in a packet of a container's socket."""
    carried = p.udp(SPORT, 53, MIXED[:2000])
    frame = bytearray(A1.sends(OUTSIDE, carried, fragment=0))
    pseudo = A1.ip.packed + OUTSIDE.packed + (17).to_bytes(2, "big") + (2008).to_bytes(2, "big")
    frame[40:42] = (p.checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    first, *_ = p.cut(A1.leaves(HOST, OUTSIDE, carried, fragment=0), 1480, ident=0x1234)
    programs.expect(A1, bytes(frame), REDIRECT, Reason.TO_OUTSIDE, first)


def test_padding_is_not_cut(programs: Programs) -> None:
    carried = p.udp(SPORT, 53, MIXED[:1600])
    first, *_ = p.cut(A1.leaves(HOST, OUTSIDE, carried, fragment=0), 1480, ident=0x1234)
    frame = A1.sends(OUTSIDE, carried, fragment=0) + b"padding"
    programs.expect(A1, frame, REDIRECT, Reason.TO_OUTSIDE, first)


@pytest.fixture
def wide(topology: Topology) -> Iterator[None]:
    """The container's own devices take 9000 bytes. The next hop's MAC address is known: nobody there would tell it."""

    def set_mtu(mtu: int) -> None:
        for namespace, device in ((topology.inside, "a1"), (topology.host, "va1")):
            with netns.enter(namespace):
                subprocess.run(["ip", "link", "set", device, "mtu", str(mtu)], check=True)

    def next_hop(verb: str) -> None:
        command = ["ip", "neigh", verb, str(NEXT_HOP), "lladdr", NEXT_HOP_MAC, "dev", UPLINK]
        with netns.enter(topology.host):
            subprocess.run(command, check=True)

    set_mtu(9000)
    next_hop("replace")
    yield
    next_hop("del")
    set_mtu(MTU)


@pytest.mark.parametrize("size", [1473, 1481, 3000, 4000])
def test_on_the_wire_all_of_it_leaves(programs: Programs, wide: None, size: int) -> None:
    """In order, translated, none longer than the way takes, nothing lost and nothing behind the end; also what was a
    fragment already, the last or not."""
    body = MIXED[:size]
    whole = A1.sends(OUTSIDE, p.udp(SPORT, 53, body), fragment=0)
    ways = [[whole + b"padding"]]
    if size == 4000:
        ways.append(p.cut(whole, 2000, ident=0x77))
    with programs.wired(A1):
        for number, frames in enumerate(ways):
            programs.topology.received("out0")
            for frame in frames:
                programs.topology.tap("a1").send(frame)
            got = [f for f in programs.topology.received("out0") if p.ethertype(f) == p.ETH_IPV4]
            assert len(got) == (len(frames) == 2) + -(-(size + 8) // 1480), number
            data, at = b"", 0
            for index, frame in enumerate(got):
                field = int.from_bytes(frame[20:22], "big")
                assert (field & 0x1FFF) * 8 == at and bool(field & 0x2000) == (index < len(got) - 1)
                total = int.from_bytes(frame[16:18], "big")
                assert total <= MTU and (len(frame) == 14 + total or len(frame) == 60), len(frame)
                assert frame[26:30] == HOST.packed and p.checksum(frame[14:34]) == 0
                data += frame[34 : 14 + total]
                at = len(data)
            pseudo = HOST.packed + OUTSIDE.packed + (17).to_bytes(2, "big") + len(data).to_bytes(2, "big")
            assert data[8:] == body and p.checksum(pseudo + data) == 0
    assert not programs.table("fragments")


# ---- IPsec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["out", "fwd"])
@pytest.mark.parametrize("action", ["protect", "block"])
def test_what_a_policy_is_about_does_not_leave_translated(
    programs: Programs, policies: Policies, direction: str, action: str
) -> None:
    """Also of connections that are there already; other packets do."""
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    policies(policy(direction, "0.0.0.0/0", f"{OUTSIDE}/32", action))
    for carried in (p.udp(SPORT, 53), p.udp(SPORT, 54), p.tcp(9, 80, p.SYN), p.echo(p.ECHO, 7)):
        programs.expect(A1, A1.sends(OUTSIDE, carried), SHOT, Reason.DROP_XFRM)
    assert programs.run(A1, A1.sends("203.0.113.6", p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}
    assert programs.run(A1, A1.sends(OUTSIDE6, p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}


def test_it_goes_by_the_hosts_stack_where_it_keeps_its_address(
    programs: Programs, policies: Policies
) -> None:
    """And its answers come back as to any connection."""
    policies(policy("out", f"{D1.ip}/32", f"{OUTSIDE}/32"))
    programs.expect(D1, D1.sends(OUTSIDE, p.udp(SPORT, 53)), REDIRECT, Reason.TO_HOST)
    answer = outside_sends(D1.ip, p.udp(53, SPORT))
    assert programs.run(None, answer).reasons == {"DELIVERED": 1}


def test_the_translated_source_counts_as_well(programs: Programs, policies: Policies) -> None:
    """As the kernel asks once more after source NAT."""
    policies(policy("out", f"{HOST}/32", f"{OUTSIDE}/32", proto=17, dport=(1701, 0xFFFF)))
    programs.expect(A1, A1.sends(OUTSIDE, p.udp(SPORT, 1701)), SHOT, Reason.DROP_XFRM)
    assert programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 1702))).reasons == {"TO_OUTSIDE": 1}
    assert programs.run(A1, A1.sends(OUTSIDE, p.tcp(9, 1701, p.SYN))).reasons == {"TO_OUTSIDE": 1}


def test_the_first_policy_decides_whatever_its_prefix(programs: Programs, policies: Policies) -> None:
    policies(
        policy("out", "172.17.0.0/16", "203.0.113.0/24", "allow"),
        policy("out", "0.0.0.0/0", f"{OUTSIDE}/32"),
        policy("fwd", "10.9.9.0/24", "0.0.0.0/0"),
    )
    programs.expect(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)), SHOT, Reason.DROP_XFRM)  # as HOST's
    assert programs.run(A1, A1.sends("203.0.113.6", p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}


@pytest.mark.parametrize("host", [HOST, HOST6], ids=["IPv4", "IPv6"])
def test_a_published_port_is_the_hosts_stacks_for_whom_a_policy_is_about(
    programs: Programs, policies: Policies, host: p.Address
) -> None:
    """Of a connection that is there as well."""
    peer, every = (OUTSIDE, "0.0.0.0/0") if host is HOST else (OUTSIDE6, "::/0")
    frame = outside_sends(host, p.udp(9, 8081))
    assert programs.run(None, frame).reasons == {"DELIVERED": 1}
    policies(policy("in", f"{peer}/{ip_address(peer).max_prefixlen}", every))
    programs.expect(None, frame, UNSPEC, Reason.NOT_OURS)
    programs.expect(None, outside_sends(host, p.tcp(9, 8081, p.SYN)), UNSPEC, Reason.NOT_OURS)
    other = "203.0.113.6" if host is HOST else "2001:db8:5::6"
    assert programs.run(None, outside_sends(host, p.udp(9, 8081), src=other)).reasons == {"DELIVERED": 1}


def test_a_direction_that_is_blocked_is_closed(programs: Programs, policies: Policies) -> None:
    policies(blocked=frozenset({"fwd"}))
    for host in (HOST, HOST6):
        programs.expect(None, outside_sends(host, p.udp(9, 8081)), SHOT, Reason.DROP_XFRM)
    for outside in (OUTSIDE, OUTSIDE6):
        programs.expect(A1, A1.sends(outside, p.udp(SPORT, 53)), SHOT, Reason.DROP_XFRM)
    to_member = A1.sends(A2.ip, p.udp(SPORT, 53), to=A2.mac)
    programs.expect(A1, to_member, REDIRECT, Reason.DELIVERED)


@pytest.mark.parametrize("outside", [OUTSIDE, OUTSIDE6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("own", [True, False], ids=["as it is", "as it would leave"])
def test_what_is_refused_takes_no_port(
    programs: Programs, policies: Policies, outside: p.Address, own: bool
) -> None:
    """A packet that an IPsec policy is about does not leave, so nothing of it is known outside: another container has
    the port, and nothing counts as opened."""
    host, every = (HOST, "0.0.0.0/0") if outside is OUTSIDE else (HOST6, "::/0")
    whole = ip_address(outside).max_prefixlen
    policies(policy("out", every if own else f"{host}/{whole}", f"{outside}/{whole}"))
    for carried in (p.udp(SPORT, 53), p.tcp(SPORT, 53, p.SYN), p.udp(7, 53), p.udp(SPORT, 54)):
        programs.expect(A1, A1.sends(outside, carried), SHOT, Reason.DROP_XFRM)
    for name in ("pending", "conns", "contacts"):
        assert not programs.table(name), name
    assert {key.proto for key in programs.table("externals")} == {p.ICMP, p.ICMPV6}
    assert programs.maps["quotas"][abi.quota_key(A1.number)].openings == 0
    other = "203.0.113.6" if outside is OUTSIDE else "2001:db8:5::6"
    got = programs.run(A2, A2.sends(other, p.udp(SPORT, 53)))
    at = 34 if outside is OUTSIDE else 54
    assert int.from_bytes(got.packet[at : at + 2], "big") == SPORT


def test_a_policy_about_the_external_port_lets_no_other_be_chosen(
    programs: Programs, policies: Policies
) -> None:
    """A port is chosen as without policies; with the one that it has the packet is kept back."""
    policies(policy("out", f"{HOST}/32", f"{OUTSIDE}/32", proto=17, sport=(SPORT, 0xFFFF)))
    programs.expect(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)), SHOT, Reason.DROP_XFRM)
    assert programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT + 1, 53))).reasons == {"TO_OUTSIDE": 1}
    assert [key.proto for key in programs.table("externals")].count(p.UDP) == 1


@pytest.mark.parametrize("host", [HOST, HOST6], ids=["IPv4", "IPv6"])
def test_what_is_kept_from_a_published_port_opens_nothing(
    programs: Programs, policies: Policies, host: p.Address
) -> None:
    policies(blocked=frozenset({"fwd"}))
    first, last = p.cut(outside_sends(host, p.udp(9, 8081, bytes(64))), 24)
    programs.expect(None, first, SHOT, Reason.DROP_XFRM)
    programs.expect(None, last, SHOT, Reason.DROP_FRAGMENT)
    programs.expect(None, outside_sends(host, p.tcp(9, 8081, p.SYN)), SHOT, Reason.DROP_XFRM)
    assert not programs.table("pending")
