# SPDX-License-Identifier: Apache-2.0
"""S16: an internal network has no default route, and nothing goes in or out except among members and the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.lab import FAR, HOST, OUTSIDE, Host, reaches
from tests.net.wire import (
    Box,
    box,
    call,
    counters,
    device_mac,
    fails,
    from_,
    rises,
    serving,
    settle,
    taps,
    unreachable,
)


class Scene(NamedTuple):
    host: Host
    a: Box
    b: Box
    other: Box  # on an ordinary network, publishes 8081:80


@pytest.fixture(scope="module")
def scene(shared_host: Host) -> Iterator[Scene]:
    host = shared_host
    host.ctl(
        "network create --internal --subnet 10.51.0.0/24 --ipv6 --subnet fd00:51::/64 "
        "-o com.docker.network.bridge.name=inner inner"
    )
    made = Scene(
        host,
        box(host, "a", "--network inner"),
        box(host, "b", "--network inner -p 8082:80"),
        box(host, "other", "-p 8081:80"),
    )
    yield made
    host.ctl("rm -f a b other")
    host.ctl("network rm inner")


def test_s16_there_is_no_default_route(scene: Scene) -> None:
    assert scene.host.network("inner")["Internal"] is True
    for version in (4, 6):
        assert scene.a.sh(f"ip -{version} route show default") == ""
    done = scene.a.try_(f"ping -n -c 1 -W 60 {OUTSIDE}")
    assert "Network is unreachable" in done.stderr


def test_s16_members_and_the_host_reach_each_other(scene: Scene) -> None:
    for target in (scene.b.ip, scene.b.ip6, "10.51.0.1", "fd00:51::1"):
        assert reaches(scene.a.try_, target), target
    for target in (scene.a.ip, scene.a.ip6):
        assert reaches(scene.host.try_, target), target
    for proto in ("tcp", "udp"):
        with serving(scene.b, proto, 7300), serving(scene.host, proto, 7301):
            assert call(scene.a, proto, scene.b.ip, 7300).seen == scene.a.ip
            assert call(scene.host, proto, scene.b.ip, 7300).seen == "10.51.0.1"
            assert call(scene.a, proto, "10.51.0.1", 7301).seen == scene.a.ip


def test_s16_nothing_goes_out_even_with_a_route_of_ones_own(scene: Scene) -> None:
    """To the outside, another network, the host's other addresses and a published port."""
    scene.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    scene.a.sh("ip route add default via 10.51.0.1")
    scene.a.sh("ip -6 route add default via fd00:51::1")
    try:
        before = counters(scene.host)
        with (
            serving(scene.other, "tcp", 80) as published,
            taps((scene.host.outside, "eth0"), scene.other) as watching,
        ):
            for target in (OUTSIDE, FAR, scene.other.ip, HOST, "8.8.8.8"):
                assert unreachable(scene.a, target)
                assert fails(scene.a, "udp", target, 7302)
            for target in (HOST, "10.51.0.1"):
                assert fails(scene.a, "tcp", target, 8081)
            assert unreachable(scene.a, "2001:db8::1")
            settle()
            assert not from_([frame for tap in watching for frame in tap.frames()], scene.a)
            assert not published.peers
        assert rises(before, counters(scene.host)).keys() == {"DROP_INTERNAL"}
    finally:
        scene.a.sh("ip route del default")
        scene.a.sh("ip -6 route del default")
        scene.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")


def test_s16_raw_frames_of_any_protocol_do_not_go_out(scene: Scene) -> None:
    gateway = device_mac(scene.host, "inner")
    with taps(scene.a, (scene.host.outside, "eth0"), scene.other) as (sender, *watching):
        for proto in range(256):
            for target in (FAR, scene.other.ip):
                packet = pk.ipv4(scene.a.ip, target, pk.Transport(proto, bytes(40)))
                sender.send(pk.ethernet(gateway, scene.a.mac, pk.ETH_IPV4, packet))
        settle()
        assert not from_([frame for tap in watching for frame in tap.frames()], scene.a)


def test_s16_nothing_comes_in_from_outside_or_from_another_network(scene: Scene) -> None:
    """By the published port, which says so, and straight to the address, with the host as a router."""
    scene.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    scene.host.outside.sh(f"ip route add 10.51.0.0/24 via {HOST}")
    try:
        with serving(scene.b, "tcp", 80) as server, taps(scene.b) as (tap,):
            assert fails(scene.host.outside, "tcp", HOST, 8082)
            assert fails(scene.host.outside, "tcp", scene.b.ip, 80)
            assert unreachable(scene.host.outside, scene.b.ip)
            assert fails(scene.other, "tcp", HOST, 8082)
            assert fails(scene.other, "tcp", scene.b.ip, 80)
            assert unreachable(scene.other, scene.b.ip)
            assert not [f for f in tap.frames() if pk.packed(OUTSIDE) in f] + from_(tap.frames(), scene.other)
            assert not server.peers
    finally:
        scene.host.outside.sh("ip route del 10.51.0.0/24")
        scene.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")


def test_s16_a_container_on_an_ordinary_network_too_goes_out_through_that_one(scene: Scene) -> None:
    scene.host.ctl("network connect bridge a")
    try:
        assert reaches(scene.a.try_, OUTSIDE)
        assert reaches(scene.a.try_, scene.b.ip)
        assert scene.a.sh("ip route show default").split()[4] == "eth1"
    finally:
        scene.host.ctl("network disconnect bridge a")
    assert scene.a.sh("ip route show default") == ""
