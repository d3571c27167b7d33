# SPDX-License-Identifier: Apache-2.0
"""A member that speaks for others: a router between networks, or the end of a VPN. Here A3, with the host's route to
10.99.0.0/24 and fd99::/64 behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from datapath.kernel import abi, netns
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    B1,
    B2,
    HOST,
    HOST6,
    NET1,
    OTHER,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    Member,
    Programs,
    Reason,
    dropped,
    outside_sends,
    redirected,
)
from tests.bpf.test_sizes import fragments, in_time, passes

BEHIND, BEHIND6 = ip_address("10.99.0.5"), ip_address("fd99::5")  # routed to A3 by the host
FAR, FAR6 = ip_address("10.98.0.5"), ip_address("fd98::5")  # nobody routes them there
SPORT = 20100
ASK, REPLY = p.udp(SPORT, 53), p.udp(53, SPORT)
SYN = p.tcp(SPORT, 80, p.SYN)
DISCOVER = p.udp(68, 67, bytes(240))


def says(
    member: Member,
    src: p.Address,
    dst: p.Address,
    carried: p.Transport,
    *,
    to: str | None = None,
    **header: Any,
) -> bytes:
    """A frame of the member's with another's address as its source."""
    four = ip_address(src).version == 4
    body = p.ipv4(src, dst, carried, **header) if four else p.ipv6(src, dst, carried, **header)
    return p.ethernet(to or member.net.mac, member.mac, p.ETH_IPV4 if four else p.ETH_IPV6, body)


def comes(
    member: Member,
    src: p.Address,
    dst: p.Address,
    carried: p.Transport,
    *,
    by: str | None = None,
    **header: Any,
) -> bytes:
    """A frame as it arrives at the member, for another's address."""
    four = ip_address(src).version == 4
    body = p.ipv4(src, dst, carried, **header) if four else p.ipv6(src, dst, carried, **header)
    return p.ethernet(member.mac, by or member.net.mac, p.ETH_IPV4 if four else p.ETH_IPV6, body)


def change(programs: Programs, member: Member, on: bool) -> None:
    """What control does for an endpoint with com.datapath.forwarding."""
    maps, ifindex = programs.maps, programs.ifindex(member)
    key = abi.device_key(ifindex)
    maps["devices"][key] = maps["devices"][key]._replace(forwarding=int(on))
    value = abi.endpoint(ifindex, member.number, member.mac, int(on))
    for address in (member.ip, member.ip6, member.linklocal):
        maps["endpoints"][abi.endpoint_key(member.net.number, address)] = value
    for router in (
        abi.router_key(member.net.number, 0, member.mac),
        abi.router_key(member.net.number, member.number, p.NOBODY),
    ):
        if on:
            maps["routers"][router] = value
        else:
            maps["routers"].pop(router, None)


@pytest.fixture
def routed(programs: Programs) -> Iterator[Programs]:
    from pyroute2 import IPRoute

    index = programs.ifindex(NET1)
    routes = (
        {"dst": "10.99.0.0/24", "gateway": str(A3.ip), "oif": index},
        {"dst": "fd99::/64", "gateway": str(A3.linklocal), "oif": index, "family": socket.AF_INET6},
    )
    with netns.enter(programs.topology.host), IPRoute() as route:
        for one in routes:
            route.route("add", **one)
        change(programs, A3, True)
        try:
            yield programs
        finally:
            change(programs, A3, False)
            for one in routes:
                route.route("del", **one)


SOURCES = ((FAR, A1.ip, OUTSIDE), (FAR6, A1.ip6, OUTSIDE6))
OTHERS: Mapping[str, p.Address] = {
    "a member's address": A2.ip,
    "a member's address, IPv6": A2.ip6,
    "a member's link-local address": A2.linklocal,
    "the gateway's address": NET1.gateway,
    "the gateway's address, IPv6": NET1.gateway6,
    "the gateway's link-local address": NET1.linklocal,
    "the network's broadcast address": NET1.broadcast,
    "loopback": "127.0.0.1",
    "nobody's address": "0.0.0.0",
    "a group's address": "224.0.0.1",
    "the limited broadcast": "255.255.255.255",
    "another link's address": "fe80::9",
    "IPv6's loopback": "::1",
}
ROWS = [
    *(
        row
        for far, member, outside in SOURCES
        for row in (
            redirected(f"{far}, by the router's MAC", A1, A1.sends(far, ASK, to=A3.mac), Reason.DELIVERED),
            redirected(
                f"{outside}, by the router's MAC", A1, A1.sends(outside, SYN, to=A3.mac), Reason.DELIVERED
            ),
            redirected(
                f"from {far} to a member",
                A3,
                says(A3, far, member, REPLY, to=A1.mac),
                Reason.DELIVERED,
            ),
            redirected(
                f"from {outside} to a member",
                A3,
                says(A3, outside, member, REPLY, to=A1.mac),
                Reason.DELIVERED,
            ),
            dropped(
                f"from {far}, which the host does not route to it, to the host",
                A3,
                says(A3, far, NET1.gateway if far.version == 4 else NET1.gateway6, ASK),
                Reason.DROP_SPOOFED_ADDR,
            ),
            dropped(
                f"from {far}, which the host does not route to it, to the outside",
                A3,
                says(A3, far, outside, ASK),
                Reason.DROP_SPOOFED_ADDR,
            ),
            dropped(
                f"from {outside}, to a published port",
                A3,
                says(A3, outside, HOST if far.version == 4 else HOST6, p.udp(SPORT, 8081)),
                Reason.DROP_SPOOFED_ADDR,
            ),
            dropped(
                f"from {far}, of one that does not forward",
                A2,
                says(A2, far, member, REPLY, to=A1.mac),
                Reason.DROP_SPOOFED_ADDR,
            ),
            dropped(
                f"to {far} by the MAC of one that does not forward",
                A1,
                A1.sends(far, ASK, to=A2.mac),
                Reason.DROP_WRONG_MAC,
            ),
        )
    ),
    *(
        dropped(
            f"from {what}, that of another",
            A3,
            says(A3, src, A1.ip if ip_address(src).version == 4 else A1.ip6, ASK, to=A1.mac),
            Reason.DROP_SPOOFED_ADDR,
        )
        for what, src in OTHERS.items()
    ),
    dropped(
        "another's MAC, still",
        A3,
        p.ethernet(A1.mac, A2.mac, p.ETH_IPV4, p.ipv4(FAR, A1.ip, ASK)),
        Reason.DROP_SPOOFED_MAC,
    ),
    dropped(
        "to another network, though its address is behind it there",
        A3,
        says(A3, BEHIND, B1.ip, ASK),
        Reason.DROP_ISOLATED,
    ),
    dropped(
        "from another network's address, to the outside",
        A3,
        says(A3, B1.ip, OUTSIDE, ASK),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped(
        "from the host's own address, to the outside",
        A3,
        says(A3, HOST, OUTSIDE, ASK),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped(
        "from the host's own address, to the host", A3, says(A3, OTHER, HOST, ASK), Reason.DROP_SPOOFED_ADDR
    ),
    redirected(
        "to what the host routes to the router, by the host",
        A1,
        A1.sends(BEHIND, ASK),
        Reason.DELIVERED,
        comes(A3, A1.ip, BEHIND, ASK, ttl=63),
    ),
    redirected(
        "to what the host routes to the router, by the host, IPv6",
        A1,
        A1.sends(BEHIND6, ASK),
        Reason.DELIVERED,
        comes(A3, A1.ip6, BEHIND6, ASK, hops=63),
    ),
    dropped(
        "from another network to what is behind the router", B1, B1.sends(BEHIND, ASK), Reason.DROP_ISOLATED
    ),
    redirected(
        "what is behind it to the host",
        A3,
        says(A3, BEHIND, NET1.gateway, ASK),
        Reason.TO_HOST,
    ),
    redirected(
        "what is behind it to the host, IPv6",
        A3,
        says(A3, BEHIND6, HOST6, p.udp(9, 40000)),
        Reason.TO_HOST,
    ),
    redirected(
        "what is behind it to a published port",
        A3,
        says(A3, BEHIND, HOST, p.udp(SPORT, 8081)),
        Reason.DELIVERED,
        A2.gets(NET1.gateway, p.udp(SPORT, 53), ttl=63),
    ),
    redirected("the host to what is behind it", NET1, comes(A3, NET1.gateway, BEHIND, ASK), Reason.DELIVERED),
    redirected(
        "the host to what is behind it, IPv6", NET1, comes(A3, NET1.gateway6, BEHIND6, ASK), Reason.DELIVERED
    ),
    dropped(
        "the host to what is behind no router",
        NET1,
        comes(A2, NET1.gateway, BEHIND, ASK),
        Reason.DROP_NO_ENDPOINT,
    ),
    redirected(
        "a fragment by the router's MAC",
        A1,
        p.cut(A1.sends(FAR, p.udp(9, 53, bytes(56)), to=A3.mac), 24)[1],
        Reason.DELIVERED,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence)
def test_packet(routed: Programs, row) -> None:  # type: ignore[no-untyped-def]
    routed.check(row)


@pytest.mark.parametrize("carried", [p.udp(SPORT, 53, bytes(2000)), p.Transport(47, bytes(2000))])
@in_time
def test_what_is_too_big_for_its_way_to_a_router_is_cut(routed: Programs, carried: p.Transport) -> None:
    """By the host, whose route to it leads back into the network; without ports as well."""
    outs = passes(routed, A1, A1.sends(BEHIND, carried, fragment=0), "DELIVERED")
    assert outs == fragments(comes(A3, A1.ip, BEHIND, carried, ttl=63, fragment=0), 1500)


def test_without_icc_a_router_is_nobodys(programs: Programs) -> None:
    change(programs, B2, True)
    try:
        programs.check(dropped("by its MAC", B1, B1.sends(FAR, ASK, to=B2.mac), Reason.DROP_ICC))
    finally:
        change(programs, B2, False)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_what_is_behind_it_talks_with_the_outside(routed: Programs, six: bool) -> None:
    """With the host's address, as members do; answers, and errors of both sides, find their way back."""
    behind, host, outside = (BEHIND6, HOST6, OUTSIDE6) if six else (BEHIND, HOST, OUTSIDE)
    hop: dict[str, Any] = {"hops": 63} if six else {"ttl": 63}
    leaves = A3.leaves(host, outside, ASK)
    routed.expect(A3, says(A3, behind, outside, ASK), REDIRECT, Reason.TO_OUTSIDE, leaves)
    routed.expect(
        None, outside_sends(host, REPLY), REDIRECT, Reason.DELIVERED, comes(A3, outside, behind, REPLY, **hop)
    )
    # An error from outside about what was sent, and one of the router about the answer.
    kind = p.icmp6 if six else p.icmp
    code = (1, 4) if six else (3, 3)
    packet = p.ipv6 if six else p.ipv4
    quoted = packet(host, outside, ASK)
    told = kind(*code, payload=quoted)
    inside = kind(*code, payload=with_sum_of(packet(behind, outside, ASK), quoted))
    routed.expect(
        None, outside_sends(host, told), REDIRECT, Reason.DELIVERED, comes(A3, outside, behind, inside, **hop)
    )
    quoted = packet(outside, behind, REPLY)
    about = kind(*code, payload=quoted)
    seen = kind(*code, payload=with_sum_of(packet(outside, host, REPLY), quoted))
    routed.expect(A3, A3.sends(outside, about), REDIRECT, Reason.TO_OUTSIDE, A3.leaves(host, outside, seen))


def with_sum_of(packet: bytes, other: bytes) -> bytes:
    """Both are UDP; sums inside a quotation are left alone."""
    at = (20 if packet[0] >> 4 == 4 else 40) + 6
    return packet[:at] + other[at : at + 2] + packet[at + 2 :]


def test_a_forged_source_ends_nobodys_connection(routed: Programs) -> None:
    """Neither that of another network's member nor a published one."""
    routed.run(B1, B1.sends(OUTSIDE, ASK))
    routed.run(None, outside_sends(HOST, p.tcp(9, 8081, p.SYN)))
    before = routed.table("pending")
    assert len(before) == 4
    for src, dst, carried in ((B1.ip, OUTSIDE, ASK), (OUTSIDE, HOST, p.tcp(9, 8081, p.SYN))):
        routed.check(dropped("forged", A3, says(A3, src, dst, carried), Reason.DROP_SPOOFED_ADDR))
    assert routed.table("pending") == before


NO_ADDRESS = [
    redirected(
        "a DHCP discovery",
        A1,
        says(A1, ip_address("0.0.0.0"), "255.255.255.255", DISCOVER, to=p.BROADCAST),
        Reason.FLOODED,
    ),
    redirected(
        "a listener's report, IPv4",
        A1,
        says(
            A1,
            ip_address("0.0.0.0"),
            "224.0.0.22",
            p.Transport(2, b"\x22\0\0\0\0\0\0\0"),
            to="01:00:5e:00:00:16",
        ),
        Reason.FLOODED,
    ),
    dropped(
        "a DHCP discovery to one",
        A1,
        says(A1, ip_address("0.0.0.0"), "255.255.255.255", DISCOVER, to=A2.mac),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped(
        "another question to everybody",
        A1,
        says(A1, ip_address("0.0.0.0"), "255.255.255.255", ASK, to=p.BROADCAST),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped(
        "a DHCP discovery to a network's broadcast address",
        A1,
        says(A1, ip_address("0.0.0.0"), NET1.broadcast, DISCOVER, to=p.BROADCAST),
        Reason.DROP_SPOOFED_ADDR,
    ),
]


@pytest.mark.parametrize("row", NO_ADDRESS, ids=lambda row: row.sentence)
def test_who_has_no_address_yet(programs: Programs, row) -> None:  # type: ignore[no-untyped-def]
    programs.check(row)
    programs.topology.received("a2")


def test_a_discovery_reaches_members_that_may_be_talked_to_and_no_others(programs: Programs) -> None:
    for sender, other, reaches in ((A1, A2, True), (B1, B2, False)):
        frame = says(sender, ip_address("0.0.0.0"), "255.255.255.255", DISCOVER, to=p.BROADCAST)
        programs.topology.received(other.name)
        programs.expect(sender, frame, REDIRECT, Reason.FLOODED)
        assert (frame in programs.topology.received(other.name)) == reaches
