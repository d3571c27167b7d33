# SPDX-License-Identifier: Apache-2.0
"""What the host sends into a network's gateway device: every row is one whole packet."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from datapath.errors import KernelError
from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    C1,
    C2,
    HOST,
    NET1,
    NET2,
    NET3,
    OUTSIDE,
    REDIRECT,
    SHOT,
    UPLINK,
    Net,
    Programs,
    Reason,
    Row,
    dropped,
    host_sends,
    redirected,
)

PING = p.echo(p.ECHO, 77)
PING6 = p.icmp6(128, word=77 << 16 | 1, payload=b"abcdefgh")
STRANGER = "02:42:de:ad:be:ef"
ALL_NODES_MAC, ALL_NODES = "33:33:00:00:00:01", "ff02::1"


def asks(
    target: p.Address, *, net: Net = NET1, sender: p.Address | None = None, to: str = p.BROADCAST
) -> bytes:
    body = p.arp(p.REQUEST, net.mac, sender or net.gateway, p.NOBODY, target)
    return p.ethernet(to, net.mac, p.ETH_ARP, body)


def answer(mac: str, target: p.Address, to: p.Address = NET1.gateway, net: Net = NET1) -> bytes:
    return p.ethernet(net.mac, mac, p.ETH_ARP, p.arp(p.REPLY, mac, target, net.mac, to))


def solicits(target: p.Address, *, src: p.Address = NET1.gateway6, hops: int = 255) -> bytes:
    mac, group = p.solicited_node(target)
    body = p.ipv6(src, group, p.solicitation(target, NET1.mac), hops=hops)
    return p.ethernet(mac, NET1.mac, p.ETH_IPV6, body)


def advertises(target: p.Address, mac: str, dst: p.Address = NET1.gateway6) -> bytes:
    body = p.ipv6(target, dst, p.advertisement(target, mac, solicited=True), hops=255)
    return p.ethernet(NET1.mac, mac, p.ETH_IPV6, body)


def v6(dst: p.Address, carried: p.Transport, *, to: str, net: Net = NET1) -> bytes:
    return p.ethernet(to, net.mac, p.ETH_IPV6, p.ipv6(net.gateway6, dst, carried))


def v4(
    src: p.Address, dst: p.Address, carried: p.Transport, *, to: str, net: Net = NET1, **header: Any
) -> bytes:
    return p.ethernet(to, net.mac, p.ETH_IPV4, p.ipv4(src, dst, carried, **header))


NEIGHBOURS = [
    redirected("who has a member", NET1, asks(A1.ip), Reason.ANSWERED, answer(A1.mac, A1.ip)),
    redirected(
        "is a member still there", NET1, asks(A1.ip, to=A1.mac), Reason.ANSWERED, answer(A1.mac, A1.ip)
    ),
    redirected(
        "asked from another address of the host's",
        NET1,
        asks(A1.ip, sender=HOST),
        Reason.ANSWERED,
        answer(A1.mac, A1.ip, HOST),
    ),
    redirected(
        "on a network without icc",
        NET2,
        asks(B1.ip, net=NET2),
        Reason.ANSWERED,
        answer(B1.mac, B1.ip, NET2.gateway, NET2),
    ),
    dropped("who has an address that nobody has", NET1, asks("172.17.9.9"), Reason.DROP_UNKNOWN_ARP),
    dropped("who has a member of another network", NET1, asks(B1.ip), Reason.DROP_UNKNOWN_ARP),
    dropped("who has the gateway, that is the host", NET1, asks(NET1.gateway), Reason.DROP_UNKNOWN_ARP),
    dropped(
        "gratuitous ARP, a reply",
        NET1,
        p.ethernet(
            p.BROADCAST,
            NET1.mac,
            p.ETH_ARP,
            p.arp(p.REPLY, NET1.mac, NET1.gateway, p.BROADCAST, NET1.gateway),
        ),
        Reason.ABSORBED,
    ),
    redirected("who has a member, IPv6", NET1, solicits(A1.ip6), Reason.ANSWERED, advertises(A1.ip6, A1.mac)),
    redirected(
        "who has a member's link-local address",
        NET1,
        solicits(A1.linklocal, src=NET1.linklocal),
        Reason.ANSWERED,
        advertises(A1.linklocal, A1.mac, NET1.linklocal),
    ),
    dropped("who has an IPv6 address that nobody has", NET1, solicits("fd00:1::99"), Reason.DROP_UNKNOWN_ARP),
    dropped("solicitation from beyond the link", NET1, solicits(A1.ip6, hops=64), Reason.DROP_TRUNCATED),
    dropped(
        "IPv6 where there is none",
        NET3,
        v6(C1.ip6, PING6, to=C1.mac, net=NET3),
        Reason.DROP_NO_IPV6,
    ),
]

DELIVERY = [
    redirected("ping", NET1, host_sends(A1, PING), Reason.DELIVERED),
    redirected("ping, IPv6", NET1, v6(A1.ip6, PING6, to=A1.mac), Reason.DELIVERED),
    redirected("ping, link-local", NET1, v6(A1.linklocal, PING6, to=A1.mac), Reason.DELIVERED),
    redirected("TCP", NET1, host_sends(A1, p.tcp(9, 80, p.SYN)), Reason.DELIVERED),
    redirected("UDP without checksum", NET1, host_sends(A1, p.udp(9, 80, summed=False)), Reason.DELIVERED),
    redirected("an unknown protocol", NET1, host_sends(A1, p.Transport(253, b"")), Reason.DELIVERED),
    redirected("TTL 1, as no hop is made", NET1, host_sends(A1, PING, ttl=1), Reason.DELIVERED),
    redirected(
        "a first fragment",
        NET1,
        host_sends(A1, p.udp(9, 80, bytes(32)), fragment=p.MORE_FRAGMENTS),
        Reason.DELIVERED,
    ),
    redirected(
        "a later fragment",
        NET1,
        host_sends(A1, p.Transport(p.UDP, b"the rest"), fragment=5),
        Reason.DELIVERED,
    ),
    redirected(
        "an error that the host's stack sends",
        NET1,
        host_sends(A1, p.icmp(11, 0, 0, p.ipv4(A1.ip, OUTSIDE, p.udp(9, 33434), ttl=1)[:28])),
        Reason.DELIVERED,
    ),
    redirected(
        "a stale neighbour of the host's: the MAC is put right",
        NET1,
        v4(NET1.gateway, A1.ip, PING, to=STRANGER),
        Reason.DELIVERED,
        host_sends(A1, PING),
    ),
    redirected(
        "from another address of the host's", NET1, v4(HOST, A1.ip, PING, to=A1.mac), Reason.DELIVERED
    ),
    redirected("a member without icc", NET2, host_sends(B1, PING), Reason.DELIVERED),
    redirected("a member of an internal network", NET3, host_sends(C1, PING), Reason.DELIVERED),
    dropped(
        "an address that no member has",
        NET1,
        v4(NET1.gateway, "172.17.9.9", PING, to=STRANGER),
        Reason.DROP_NO_ENDPOINT,
    ),
    dropped(
        "a member of another network",
        NET1,
        v4(NET1.gateway, B1.ip, PING, to=B1.mac),
        Reason.DROP_NO_ENDPOINT,
    ),
    dropped(
        "an IPv6 address that no member has",
        NET1,
        v6("fd00:1::99", PING6, to=STRANGER),
        Reason.DROP_NO_ENDPOINT,
    ),
    dropped(
        "a member's IPv4, mapped, in an IPv6 packet",
        NET1,
        v6(f"::ffff:{A1.ip}", PING6, to=A1.mac),
        Reason.DROP_BAD_ADDR,
    ),
    dropped(
        "a member's address in a broadcast frame",
        NET1,
        v4(NET1.gateway, A1.ip, PING, to=p.BROADCAST),
        Reason.FLOODED,
    ),
]

FOREIGN = [
    *(
        dropped(
            f"a tagged frame, {tag:#x}",
            NET1,
            p.ethernet(
                A1.mac, NET1.mac, tag, struct.pack("!HH", 5, p.ETH_IPV4) + p.ipv4(NET1.gateway, A1.ip, PING)
            ),
            Reason.DROP_VLAN,
        )
        for tag in (p.ETH_VLAN, p.ETH_QINQ)
    ),
    *(
        dropped(
            f"ethertype {kind:#06x}",
            NET1,
            p.ethernet(A1.mac, NET1.mac, kind, bytes(46)),
            Reason.DROP_ETHERTYPE,
        )
        for kind in (0x88CC, 0x888E, 0x8137, 0x8847, 0x0026, 0xFFFF)
    ),
    *(
        dropped(f"a lie: {lie}", NET1, host_sends(A1, PING, **lie), Reason.DROP_TRUNCATED)
        for lie in ({"ihl": 4}, {"ihl": 15}, {"version": 6}, {"total": 19}, {"total": 999})
    ),
]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{name}: {row.sentence}")
        for name, rows in {"neighbours": NEIGHBOURS, "delivery": DELIVERY, "foreign": FOREIGN}.items()
        for row in rows
    ],
)
def test_packet(programs: Programs, row: Row) -> None:
    programs.check(row)


@pytest.mark.parametrize("came_by", ["the uplink", "another network"])
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(host_sends(A1, PING), id="ping"),
        pytest.param(host_sends(A1, p.tcp(9, 80, p.SYN)), id="TCP"),
        pytest.param(host_sends(A1, p.Transport(p.UDP, b"the rest"), fragment=5), id="a later fragment"),
        pytest.param(v4(OUTSIDE, A1.ip, PING, to=A1.mac), id="from outside"),
        pytest.param(v6(A1.ip6, PING6, to=A1.mac), id="IPv6"),
        pytest.param(v4(OUTSIDE, NET1.broadcast, p.udp(1, 2), to=p.BROADCAST), id="a directed broadcast"),
        pytest.param(v4(OUTSIDE, "224.0.0.251", p.udp(1, 2), to="01:00:5e:00:00:fb"), id="multicast"),
        pytest.param(v4(OUTSIDE, "172.17.9.9", PING, to=STRANGER), id="to nobody"),
    ],
)
def test_what_the_host_forwards_is_refused(programs: Programs, came_by: str, frame: bytes) -> None:
    ingress = programs.topology.index[UPLINK if came_by == "the uplink" else NET2.device]
    programs.topology.received("a1")
    programs.expect(NET1, frame, SHOT, Reason.DROP_DIRECT, ingress=ingress)
    assert programs.topology.received("a1") == []


def test_arp_is_answered_on_behalf_of_what_is_forwarded(programs: Programs) -> None:
    """The question is the host's own, whatever made it ask."""
    programs.expect(
        NET1,
        asks(A1.ip),
        REDIRECT,
        Reason.ANSWERED,
        answer(A1.mac, A1.ip),
        ingress=programs.topology.index[UPLINK],
    )


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(v4(NET1.gateway, NET1.broadcast, p.udp(1, 2), to=p.BROADCAST), id="broadcast"),
        pytest.param(
            v4(NET1.gateway, "224.0.0.1", p.Transport(2, bytes(8)), to="01:00:5e:00:00:01"), id="multicast"
        ),
        pytest.param(v6(ALL_NODES, PING6, to=ALL_NODES_MAC), id="IPv6 multicast"),
    ],
)
def test_flood_reaches_every_member(programs: Programs, frame: bytes) -> None:
    everybody = (A1, A2, A3, B1, C1)
    for member in everybody:
        programs.topology.received(member.name)
    programs.expect(NET1, frame, SHOT, Reason.FLOODED)
    got = {member.name: programs.topology.received(member.name) for member in everybody}
    assert got == {"a1": [frame], "a2": [frame], "a3": [frame], "b1": [], "c1": []}


def test_a_hole_among_the_slots_is_stepped_over(programs: Programs) -> None:
    frame = v4(NET1.gateway, NET1.broadcast, p.udp(1, 2), to=p.BROADCAST)
    member = programs.maps["members"].pop(abi.member_key(1, A2.slot))
    try:
        for one in (A1, A2, A3):
            programs.topology.received(one.name)
        programs.expect(NET1, frame, SHOT, Reason.FLOODED)
        assert [programs.topology.received(one.name) for one in (A1, A2, A3)] == [[frame], [], [frame]]
    finally:
        programs.maps["members"][abi.member_key(1, A2.slot)] = member


@pytest.mark.parametrize(
    ("name", "frame", "refused"),
    [
        ("ARP", asks(A1.ip), 15),
        ("IPv4 and TCP", host_sends(A1, p.tcp(1, 2, p.SYN)), 34),
        ("IPv4 and UDP", host_sends(A1, p.udp(1, 2, b"")), 34),
        ("IPv4 and ICMP", host_sends(A1, p.echo(p.ECHO, 1, b"")), 34),
        ("IPv6 and TCP", v6(A1.ip6, p.tcp(1, 2, p.SYN), to=A1.mac), 54),
    ],
)
def test_cut_short(programs: Programs, name: str, frame: bytes, refused: int) -> None:
    """`refused`: below this length a test run may refuse the frame (shorter than the IP header it claims)."""
    for length in range(14, len(frame)):
        try:
            programs.expect(NET1, frame[:length], SHOT, Reason.DROP_TRUNCATED)
        except KernelError as error:
            assert "Invalid argument" in str(error) and length < refused


def test_unknown_device(programs: Programs) -> None:
    key = abi.device_key(programs.ifindex(NET1))
    device = programs.maps["devices"].pop(key)
    try:
        programs.expect(NET1, host_sends(A1, PING), SHOT, Reason.DROP_DEVICE)
        programs.maps["devices"][key] = device._replace(kind=abi.DeviceKind.DEVICE_ENDPOINT)
        programs.expect(NET1, host_sends(A1, PING), SHOT, Reason.DROP_DEVICE)
    finally:
        programs.maps["devices"][key] = device


def test_host_reaches_members_of_other_networks_by_their_own_gateway_only(programs: Programs) -> None:
    programs.expect(NET3, host_sends(C2, PING), REDIRECT, Reason.DELIVERED)
    programs.expect(NET1, host_sends(C2, PING), SHOT, Reason.DROP_NO_ENDPOINT)
