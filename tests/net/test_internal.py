# SPDX-License-Identifier: Apache-2.0
"""S16: an internal network has no default route, and nothing goes in or out except among members and the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, reaches
from tests.net.wire import (
    Container,
    call,
    counters,
    device_mac,
    fails,
    from_,
    rises,
    serving,
    start_container,
    taps,
    unreachable,
)
from tests.softirqs import settle


class Topology(NamedTuple):
    host: Host
    a: Container
    b: Container
    other: Container  # on an ordinary network, publishes 8081:80


@pytest.fixture(scope="module")
def topology(shared_host: Host) -> Iterator[Topology]:
    host = shared_host
    host.ctl(
        "network create --internal --subnet 10.51.0.0/24 --ipv6 --subnet fd00:51::/64 "
        "-o com.docker.network.bridge.name=inner inner"
    )
    made = Topology(
        host,
        start_container(host, "a", "--network inner"),
        start_container(host, "b", "--network inner -p 8082:80"),
        start_container(host, "other", "-p 8081:80"),
    )
    yield made
    host.ctl("rm -f a b other")
    host.ctl("network rm inner")


def test_s16_there_is_no_default_route(topology: Topology) -> None:
    assert topology.host.network("inner")["Internal"] is True
    for version in (4, 6):
        assert topology.a.sh(f"ip -{version} route show default") == ""
    done = topology.a.try_(f"ping -n -c 1 -W 60 {OUTSIDE}")
    assert "Network is unreachable" in done.stderr


def test_s16_members_and_the_host_reach_each_other(topology: Topology) -> None:
    for target in (topology.b.ip, topology.b.ip6, "10.51.0.1", "fd00:51::1"):
        assert reaches(topology.a.try_, target), target
    for target in (topology.a.ip, topology.a.ip6):
        assert reaches(topology.host.try_, target), target
    for proto in ("tcp", "udp"):
        with serving(topology.b, proto, 7300), serving(topology.host, proto, 7301):
            assert call(topology.a, proto, topology.b.ip, 7300).seen == topology.a.ip
            assert call(topology.host, proto, topology.b.ip, 7300).seen == "10.51.0.1"
            assert call(topology.a, proto, "10.51.0.1", 7301).seen == topology.a.ip


def test_s16_nothing_goes_out_even_with_a_route_of_ones_own(topology: Topology) -> None:
    """To the outside, another network, the host's other addresses and a published port."""
    topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    topology.a.sh("ip route add default via 10.51.0.1")
    topology.a.sh("ip -6 route add default via fd00:51::1")
    try:
        before = counters(topology.host)
        with (
            serving(topology.other, "tcp", 80) as published,
            taps((topology.host.outside, "eth0"), topology.other) as watching,
        ):
            for target in (OUTSIDE, FAR, topology.other.ip, HOST, "8.8.8.8"):
                assert unreachable(topology.a, target)
                assert fails(topology.a, "udp", target, 7302)
            for target in (HOST, "10.51.0.1"):
                assert fails(topology.a, "tcp", target, 8081)
            assert unreachable(topology.a, "2001:db8::1")
            settle()
            assert not from_([frame for tap in watching for frame in tap.frames()], topology.a)
            assert not published.peers
        assert rises(before, counters(topology.host)).keys() == {"DROP_INTERNAL"}
    finally:
        topology.a.sh("ip route del default")
        topology.a.sh("ip -6 route del default")
        topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")


def test_s16_raw_frames_of_any_protocol_do_not_go_out(topology: Topology) -> None:
    gateway = device_mac(topology.host, "inner")
    with taps(topology.a, (topology.host.outside, "eth0"), topology.other) as (sender, *watching):
        for proto in range(256):
            for target in (FAR, topology.other.ip):
                packet = pk.ipv4(topology.a.ip, target, pk.Transport(proto, bytes(40)))
                sender.send(pk.ethernet(gateway, topology.a.mac, pk.ETH_IPV4, packet))
        settle()
        assert not from_([frame for tap in watching for frame in tap.frames()], topology.a)


def test_s16_nothing_comes_in_from_outside_or_from_another_network(topology: Topology) -> None:
    """By the published port, which says so, and straight to the address, with the host as a router."""
    topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    topology.host.outside.sh(f"ip route add 10.51.0.0/24 via {HOST}")
    try:
        with serving(topology.b, "tcp", 80) as server, taps(topology.b) as (tap,):
            assert fails(topology.host.outside, "tcp", HOST, 8082)
            assert fails(topology.host.outside, "tcp", topology.b.ip, 80)
            assert unreachable(topology.host.outside, topology.b.ip)
            assert fails(topology.other, "tcp", HOST, 8082)
            assert fails(topology.other, "tcp", topology.b.ip, 80)
            assert unreachable(topology.other, topology.b.ip)
            assert not [f for f in tap.frames() if pk.packed(OUTSIDE) in f] + from_(
                tap.frames(), topology.other
            )
            assert not server.peers
    finally:
        topology.host.outside.sh("ip route del 10.51.0.0/24")
        topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")


def test_s16_a_container_on_an_ordinary_network_too_goes_out_through_that_one(topology: Topology) -> None:
    topology.host.ctl("network connect bridge a")
    try:
        assert reaches(topology.a.try_, OUTSIDE)
        assert reaches(topology.a.try_, topology.b.ip)
        assert topology.a.sh("ip route show default").split()[4] == "eth1"
    finally:
        topology.host.ctl("network disconnect bridge a")
    assert topology.a.sh("ip route show default") == ""
