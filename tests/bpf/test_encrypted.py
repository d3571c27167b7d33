# SPDX-License-Identifier: Apache-2.0
"""Members of an encrypted network: what goes to other hosts leaves by the device of encrypted tunnels or not at all,
and what hosts ask themselves goes by names that are nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from datapath.dataplane.overlay_entries import aliases
from datapath.kernel import abi
from tests.bpf import overlay as o
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    NET1,
    NEXT_HOP_MAC,
    REDIRECT,
    SHOT,
    UPLINK_MAC,
    Copies,
    Programs,
    Reason,
    Topology,
)

UDP, ANSWER = p.udp(1000, 53), p.udp(53, 1000)
both = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(objects=o.TUNNEL_OBJECTS, bare=True) as made:
        yield made


@pytest.fixture(autouse=True)
def rows(programs: Programs, topology: Topology) -> None:
    """The uplink is the device of encrypted tunnels, whose packets have no Ethernet header."""
    o.fill(programs, device=topology.index["dp4"], wireguard=programs.ifindex(None))
    callers = programs.maps["callers"]
    callers.delete_many(list(callers))


def packet(src: p.Address, dst: p.Address, carried: p.Transport) -> bytes:
    return p.ipv4(src, dst, carried) if ip_address(dst).version == 4 else p.ipv6(src, dst, carried)


def frame(to: str, by: str, body: bytes) -> bytes:
    return p.ethernet(to, by, p.ETH_IPV4 if body[0] >> 4 == 4 else p.ETH_IPV6, body)


def comes(src: p.Address, dst: p.Address, carried: p.Transport = UDP) -> bytes:
    """Out of the device; the header is what the test run takes away."""
    return frame(UPLINK_MAC, NEXT_HOP_MAC, packet(src, dst, carried))


def ends(version: int) -> tuple[p.Address, p.Address, p.Address]:
    """This host's member, the other host's, and the gateway."""
    return (A1.ip, o.REMOTE, NET1.gateway) if version == 4 else (A1.ip6, o.REMOTE6, NET1.gateway6)


def alias(number: int, version: int) -> p.Address:
    return aliases(number)[version == 6]


@both
def test_what_a_member_sends_leaves_by_the_device_as_it_is(programs: Programs, version: int) -> None:
    sent = A1.sends(ends(version)[1], UDP)
    programs.expect(A1, sent, REDIRECT, Reason.TO_PEER, sent)


@both
def test_what_the_host_asks_has_a_name_of_its_own(programs: Programs, version: int) -> None:
    _, remote, gateway = ends(version)
    sent = frame(o.peer_mac(o.PEER), NET1.mac, packet(gateway, remote, UDP))
    wanted = sent[:14] + packet(alias(o.ME, version), remote, UDP)
    programs.expect(NET1, sent, REDIRECT, Reason.TO_PEER, wanted)


@both
def test_what_another_host_asks_comes_as_the_gateways_and_is_answered_there(
    programs: Programs, version: int
) -> None:
    member, _, gateway = ends(version)
    asked = comes(alias(o.OTHER_PEER, version), member)
    programs.expect(None, asked, REDIRECT, Reason.DELIVERED, A1.gets(gateway, UDP))
    answer = A1.sends(gateway, ANSWER)
    wanted = answer[:14] + packet(member, alias(o.OTHER_PEER, version), ANSWER)
    programs.expect(A1, answer, REDIRECT, Reason.TO_PEER, wanted)


@both
def test_what_another_host_has_heard_of_a_router_comes_as_the_gateways(
    programs: Programs, version: int
) -> None:
    """About what a member here has answered somebody whom that host has asked for."""
    member, _, gateway = ends(version)
    quoted = packet(member, gateway, ANSWER)
    kinds = ((3, 3, 0), (3, 4, 1300), (11, 0, 0)) if version == 4 else ((1, 4, 0), (2, 0, 1300), (3, 0, 0))
    for kind, code, word in kinds:
        error = (p.icmp if version == 4 else p.icmp6)(kind, code, word, quoted)
        told = comes(alias(o.OTHER_PEER, version), member, error)
        programs.expect(None, told, REDIRECT, Reason.DELIVERED, A1.gets(gateway, error))


@both
def test_an_answer_to_the_host_comes_to_its_gateway_device(programs: Programs, version: int) -> None:
    _, remote, gateway = ends(version)
    wanted = frame(NET1.mac, NET1.mac, packet(remote, gateway, ANSWER))
    answer = comes(remote, alias(o.ME, version), ANSWER)
    programs.expect(None, answer, REDIRECT, Reason.TO_HOST, wanted)


@both
def test_nothing_leaves_in_clear(programs: Programs, topology: Topology, version: int) -> None:
    """Without the device; and to a host that has no key."""
    _, remote, gateway = ends(version)
    asked = frame(o.peer_mac(o.PEER), NET1.mac, packet(gateway, remote, UDP))
    tunnel = programs.maps["tunnel"]
    tunnel[0] = tunnel[0]._replace(wireguard=0)
    for sender, sent in ((A1, A1.sends(remote, UDP)), (NET1, asked)):
        programs.expect(sender, sent, SHOT, Reason.DROP_NO_TUNNEL)
    o.fill(programs, device=topology.index["dp4"], wireguard=programs.ifindex(None))
    peers, key = programs.maps["peers"], abi.peer_key(o.PEER)
    peers[key] = peers[key]._replace(flags=0)
    for sender, sent in ((A1, A1.sends(remote, UDP)), (NET1, asked)):
        programs.expect(sender, sent, SHOT, Reason.DROP_NO_TUNNEL)


@both
def test_nothing_is_taken_that_came_in_clear(programs: Programs, version: int) -> None:
    member, remote, gateway = ends(version)
    tunnel = programs.maps["tunnel"]
    tunnel[0] = tunnel[0]._replace(wireguard=0)  # another device than the one that it comes by
    programs.bare = False
    try:
        for source in (remote, gateway):
            # In a tunnel of its family, which the programs open on all kernels.
            src = (o.PEERS if version == 4 else o.PEERS6)[o.PEER]
            got = programs.run(None, o.arrives(o.vxlan(o.inner(source, member, UDP)), src=src))
            assert (got.verdict, got.reasons) == (SHOT, {"DROP_TUNNEL_SOURCE": 1})
    finally:
        programs.bare = True


@both
def test_a_name_that_no_other_host_has_is_not_believed(programs: Programs, version: int) -> None:
    member, remote, gateway = ends(version)
    programs.expect(None, comes(alias(77, version), member), SHOT, Reason.DROP_DIRECT)
    programs.expect(None, comes(remote, alias(o.PEER, version)), SHOT, Reason.DROP_DIRECT)
    assert programs.run(None, comes(gateway, member)).verdict == SHOT
