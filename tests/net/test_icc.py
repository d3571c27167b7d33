# SPDX-License-Identifier: Apache-2.0
"""S15: without icc the containers of a network cannot talk to each other at all, and still reach the host, the
outside and published ports; --link opens exactly what the other one exposes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.lab import HOST, OUTSIDE, Host, reaches
from tests.net.wire import (
    Box,
    box,
    call,
    counters,
    device_mac,
    fails,
    from_,
    opened,
    rises,
    serving,
    settle,
    taps,
    unreachable,
)

MARK = b"a neighbour"


class Scene(NamedTuple):
    host: Host
    network: str
    device: str
    server: Box  # publishes 8081:80, exposes 80, 90 and 53/udp
    linked: Box  # --link server:db
    other: Box


@pytest.fixture(scope="module", params=["daemon.json", "option"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Without icc for the default network by the daemon.json, and for another by its option."""
    config = {"icc": False} if request.param == "daemon.json" else {}
    host = Host(tmp_path_factory.mktemp("host"), config=config)
    try:
        network, device = "bridge", "dp0"
        if request.param == "option":
            network = device = "alone"
            host.ctl(
                "network create -o com.docker.network.bridge.enable_icc=false "
                "-o com.docker.network.bridge.name=alone alone"
            )
        on = f"--network {network}"
        server = box(host, "server", f"{on} -p 8081:80 --expose 90 --expose 53/udp")
        linked = box(host, "linked", f"{on} --link server:db")
        other = box(host, "other", on)
        yield Scene(host, network, device, server, linked, other)
    finally:
        host.close()


def test_s15_inspect_says_that_icc_is_off(scene: Scene) -> None:
    assert scene.host.network(scene.network)["Options"]["com.docker.network.bridge.enable_icc"] == "false"


def test_s15_members_do_not_reach_each_other_by_ping_tcp_or_udp(scene: Scene) -> None:
    pairs = ((scene.other, scene.server), (scene.server, scene.other), (scene.other, scene.linked))
    for client, target in pairs:
        with serving(target, "tcp", 80) as tcp, serving(target, "udp", 53) as udp:
            before = counters(scene.host)
            assert unreachable(client, target.ip)
            assert fails(client, "tcp", target.ip, 80)
            assert fails(client, "udp", target.ip, 53)
            assert rises(before, counters(scene.host)).keys() == {"DROP_ICC"}
            assert not tcp.peers + udp.peers


def test_s15_broadcast_and_multicast_reach_the_host_only(scene: Scene) -> None:
    with opened(scene.other, socket.SOCK_DGRAM) as sender, opened(scene.host, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 7200))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with taps(scene.server, scene.linked) as watching:
            for target in ("255.255.255.255", "224.0.0.1", "239.1.2.3"):
                sender.sendto(MARK, (target, 7200))
            assert listener.recv(100) == MARK
            settle()
            assert not [frame for tap in watching for frame in tap.frames()]


def test_s15_raw_frames_of_no_ethertype_reach_a_member(scene: Scene) -> None:
    """What moby#36355 is about: whatever is not IP, and whatever pretends to be something else."""
    me, you = scene.other, scene.server
    gateway = device_mac(scene.host, scene.device)
    kinds = (0, 0x26, 0x0600, 0x0842, 0x8035, 0x8137, 0x8847, 0x8863, 0x88B5, 0x88CC, 0x9000, 0xFFFF)
    bodies = [(kind, MARK + bytes(40)) for kind in kinds]
    bodies.append((pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK))))
    bodies.append((pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.Transport(132, MARK + bytes(20)))))
    bodies.append((pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK), fragment=pk.MORE_FRAGMENTS)))
    bodies.append((pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK), fragment=3)))
    bodies.append((pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.tcp(1, 80, pk.ACK, MARK))))
    bodies.append((pk.ETH_IPV4, pk.ipv4(you.ip, you.ip, pk.udp(1, 53, MARK))))
    bodies.append((pk.ETH_IPV6, pk.ipv6("fe80::1", "ff02::1", pk.udp(1, 2, MARK))))
    bodies.append((pk.ETH_ARP, pk.arp(pk.REPLY, me.mac, me.ip, you.mac, you.ip)))
    bodies.append((pk.ETH_VLAN, b"\0\1\x08\0" + pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK))))
    macs = (you.mac, gateway, pk.BROADCAST, "01:00:5e:00:00:01", "33:33:00:00:00:01")
    with taps(me, you, scene.linked) as (sender, *watching):
        for kind, body in bodies:
            for mac in macs:
                sender.send(pk.ethernet(mac, me.mac, kind, body))
        settle()
        seen = [frame for tap in watching for frame in tap.frames()]
        assert not from_(seen, me) and not [f for f in seen if MARK in f]


def test_s15_members_and_the_host_reach_each_other(scene: Scene) -> None:
    for member in (scene.server, scene.linked, scene.other):
        assert reaches(member.try_, member.gateway)
        assert reaches(scene.host.try_, member.ip)
        with serving(member, "tcp", 7201), serving(scene.host, "udp", 7202):
            assert call(scene.host, "tcp", member.ip, 7201).seen == member.gateway
            assert call(member, "udp", member.gateway, 7202).seen == member.ip


def test_s15_the_outside_is_reached(scene: Scene) -> None:
    assert reaches(scene.other.try_, OUTSIDE)
    with serving(scene.host.outside, "tcp", 7203):
        assert call(scene.other, "tcp", OUTSIDE, 7203).seen == HOST


def test_s15_a_published_port_is_reached_by_everybody_members_too(scene: Scene) -> None:
    with serving(scene.server, "tcp", 80):
        assert call(scene.host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert call(scene.host, "tcp", "127.0.0.1", 8081).peer_port == 8081
        for client in (scene.other, scene.linked, scene.server):
            for address in (HOST, scene.server.gateway):
                assert call(client, "tcp", address, 8081).seen == scene.server.gateway


def test_s15_a_link_opens_exactly_the_exposed_ports(scene: Scene) -> None:
    """80 is exposed by being published."""
    for proto, port in (("tcp", 80), ("tcp", 90), ("udp", 53)):
        with serving(scene.server, proto, port):
            assert call(scene.linked, proto, scene.server.ip, port).seen == scene.linked.ip
    for proto, port in (("udp", 80), ("udp", 90), ("tcp", 53), ("tcp", 81), ("tcp", 8081)):
        with serving(scene.server, proto, port) as server:
            assert fails(scene.linked, proto, scene.server.ip, port)
            assert not server.peers
    assert unreachable(scene.linked, scene.server.ip)


def test_s15_a_link_leads_one_way(scene: Scene) -> None:
    """The server opens nothing towards its client, not even from its exposed ports."""
    for proto, port in (("tcp", 80), ("tcp", 7204), ("udp", 7204)):
        with serving(scene.linked, proto, port) as back:
            assert fails(scene.server, proto, scene.linked.ip, port)
            assert not back.peers
    with serving(scene.linked, "tcp", 7205), opened(scene.server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("0.0.0.0", 90))
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((scene.linked.ip, 7205))


def test_s15_the_link_has_both_names_in_hosts(scene: Scene) -> None:
    lines = [line.split() for line in scene.linked.sh("cat /etc/hosts").splitlines()]
    (line,) = [line for line in lines if line and line[0] == scene.server.ip]
    assert {"db", "server"} <= set(line[1:])
    with serving(scene.server, "tcp", 80):
        for name in ("db", "server"):
            assert (
                scene.linked.try_(
                    ["python3", "-c", f"import socket; socket.create_connection(('{name}', 80), 2)"]
                ).returncode
                == 0
            )
    assert scene.server.ip not in scene.other.sh("cat /etc/hosts")


def test_s15_a_link_ends_with_its_containers(scene: Scene) -> None:
    """Another container with the client's address has nothing of its link."""
    client = box(scene.host, "short", f"--network {scene.network} --link server")
    with serving(scene.server, "tcp", 80):
        assert call(client, "tcp", scene.server.ip, 80).seen == client.ip
        scene.host.ctl("rm -f short")
        heir = box(scene.host, "heir", f"--network {scene.network}")
        try:
            assert heir.ip == client.ip
            assert fails(heir, "tcp", scene.server.ip, 80)
        finally:
            scene.host.ctl("rm -f heir")


def test_s15_ipv6_is_closed_too(host: Host) -> None:
    host.ctl(
        "network create --ipv6 --subnet 10.41.0.0/24 --subnet fd00:41::/64 "
        "-o com.docker.network.bridge.enable_icc=false alone6"
    )
    server = box(host, "server", "--network alone6 --expose 80")
    linked = box(host, "linked", "--network alone6 --link server")
    other = box(host, "other", "--network alone6")
    with serving(server, "tcp", 80, "::"):
        assert call(linked, "tcp", server.ip6, 80).seen == linked.ip6
        assert fails(other, "tcp", server.ip6, 80)
    for target in (server.ip6, linked.ip6):
        assert unreachable(other, target) and unreachable(linked, server.ip6)
        assert reaches(host.try_, target)
    assert reaches(other.try_, "fd00:41::1")
    with taps(other, server) as (sender, tap):
        for src, dst in ((other.ip6, "ff02::1"), (other.ip6, server.ip6)):
            for carried in (pk.udp(1, 80, MARK), pk.icmp6(135, payload=pk.packed(server.ip6) + MARK)):
                for mac in (server.mac, pk.BROADCAST, "33:33:00:00:00:01"):
                    packet = pk.ipv6(src, dst, carried, hops=255)
                    sender.send(pk.ethernet(mac, other.mac, pk.ETH_IPV6, packet))
        settle()
        assert not [f for f in tap.frames() if MARK in f]
