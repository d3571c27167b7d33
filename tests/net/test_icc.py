# SPDX-License-Identifier: Apache-2.0
"""S15: without icc the containers of a network cannot talk to each other at all, and still reach the host, the
outside and published ports; --link opens exactly what the other one exposes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import HOST, OUTSIDE, Host, reaches
from tests.net.wire import (
    Container,
    call,
    counters,
    device_mac,
    fails,
    from_,
    opened,
    rises,
    serving,
    start_container,
    taps,
    unreachable,
)
from tests.softirqs import settle

MARK = b"a neighbour"


class Topology(NamedTuple):
    host: Host
    network: str
    device: str
    server: Container  # publishes 8081:80, exposes 80, 90 and 53/udp
    linked: Container  # --link server:db
    other: Container


@pytest.fixture(scope="module", params=["daemon.json", "option"])
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
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
        server = start_container(host, "server", f"{on} -p 8081:80 --expose 90 --expose 53/udp")
        linked = start_container(host, "linked", f"{on} --link server:db")
        other = start_container(host, "other", on)
        yield Topology(host, network, device, server, linked, other)
    finally:
        host.close()


def test_s15_inspect_says_that_icc_is_off(topology: Topology) -> None:
    assert (
        topology.host.network(topology.network)["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    )


def test_s15_members_do_not_reach_each_other_by_ping_tcp_or_udp(topology: Topology) -> None:
    pairs = (
        (topology.other, topology.server),
        (topology.server, topology.other),
        (topology.other, topology.linked),
    )
    for client, target in pairs:
        with serving(target, "tcp", 80) as tcp, serving(target, "udp", 53) as udp:
            before = counters(topology.host)
            assert unreachable(client, target.ip)
            assert fails(client, "tcp", target.ip, 80)
            assert fails(client, "udp", target.ip, 53)
            assert rises(before, counters(topology.host)).keys() == {"DROP_ICC"}
            assert not tcp.peers + udp.peers


def test_s15_broadcast_and_multicast_reach_the_host_only(topology: Topology) -> None:
    with (
        opened(topology.other, socket.SOCK_DGRAM) as sender,
        opened(topology.host, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(("0.0.0.0", 7200))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with taps(topology.server, topology.linked) as watching:
            for target in ("255.255.255.255", "224.0.0.1", "239.1.2.3"):
                sender.sendto(MARK, (target, 7200))
            assert listener.recv(100) == MARK
            settle()
            assert not [frame for tap in watching for frame in tap.frames()]


def test_s15_raw_frames_of_no_ethertype_reach_a_member(topology: Topology) -> None:
    """What moby#36355 is about: whatever is not IP, and whatever pretends to be something else."""
    me, you = topology.other, topology.server
    gateway = device_mac(topology.host, topology.device)
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
    with taps(me, you, topology.linked) as (sender, *watching):
        for kind, body in bodies:
            for mac in macs:
                sender.send(pk.ethernet(mac, me.mac, kind, body))
        settle()
        seen = [frame for tap in watching for frame in tap.frames()]
        assert not from_(seen, me) and not [f for f in seen if MARK in f]


def test_s15_members_and_the_host_reach_each_other(topology: Topology) -> None:
    for member in (topology.server, topology.linked, topology.other):
        assert reaches(member.try_, member.gateway)
        assert reaches(topology.host.try_, member.ip)
        with serving(member, "tcp", 7201), serving(topology.host, "udp", 7202):
            assert call(topology.host, "tcp", member.ip, 7201).seen == member.gateway
            assert call(member, "udp", member.gateway, 7202).seen == member.ip


def test_s15_the_outside_is_reached(topology: Topology) -> None:
    assert reaches(topology.other.try_, OUTSIDE)
    with serving(topology.host.outside, "tcp", 7203):
        assert call(topology.other, "tcp", OUTSIDE, 7203).seen == HOST


def test_s15_a_published_port_is_reached_by_everybody_members_too(topology: Topology) -> None:
    with serving(topology.server, "tcp", 80):
        assert call(topology.host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert call(topology.host, "tcp", "127.0.0.1", 8081).peer_port == 8081
        for client in (topology.other, topology.linked, topology.server):
            for address in (HOST, topology.server.gateway):
                assert call(client, "tcp", address, 8081).seen == topology.server.gateway


def test_s15_a_link_opens_exactly_the_exposed_ports(topology: Topology) -> None:
    """80 is exposed by being published."""
    for proto, port in (("tcp", 80), ("tcp", 90), ("udp", 53)):
        with serving(topology.server, proto, port):
            assert call(topology.linked, proto, topology.server.ip, port).seen == topology.linked.ip
    for proto, port in (("udp", 80), ("udp", 90), ("tcp", 53), ("tcp", 81), ("tcp", 8081)):
        with serving(topology.server, proto, port) as server:
            assert fails(topology.linked, proto, topology.server.ip, port)
            assert not server.peers
    assert unreachable(topology.linked, topology.server.ip)


def test_s15_a_link_leads_one_way(topology: Topology) -> None:
    """The server opens nothing towards its client, not even from its exposed ports."""
    for proto, port in (("tcp", 80), ("tcp", 7204), ("udp", 7204)):
        with serving(topology.linked, proto, port) as back:
            assert fails(topology.server, proto, topology.linked.ip, port)
            assert not back.peers
    with serving(topology.linked, "tcp", 7205), opened(topology.server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("0.0.0.0", 90))
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((topology.linked.ip, 7205))


def test_s15_the_link_has_both_names_in_hosts(topology: Topology) -> None:
    lines = [line.split() for line in topology.linked.sh("cat /etc/hosts").splitlines()]
    (line,) = [line for line in lines if line and line[0] == topology.server.ip]
    assert {"db", "server"} <= set(line[1:])
    with serving(topology.server, "tcp", 80):
        for name in ("db", "server"):
            assert (
                topology.linked.try_(
                    ["python3", "-c", f"import socket; socket.create_connection(('{name}', 80), 2)"]
                ).returncode
                == 0
            )
    assert topology.server.ip not in topology.other.sh("cat /etc/hosts")


def test_s15_a_link_ends_with_its_containers(topology: Topology) -> None:
    """Another container with the client's address has nothing of its link."""
    client = start_container(topology.host, "short", f"--network {topology.network} --link server")
    with serving(topology.server, "tcp", 80):
        assert call(client, "tcp", topology.server.ip, 80).seen == client.ip
        topology.host.ctl("rm -f short")
        heir = start_container(topology.host, "heir", f"--network {topology.network}")
        try:
            assert heir.ip == client.ip
            assert fails(heir, "tcp", topology.server.ip, 80)
        finally:
            topology.host.ctl("rm -f heir")


def test_s15_ipv6_is_closed_too(host: Host) -> None:
    host.ctl(
        "network create --ipv6 --subnet 10.41.0.0/24 --subnet fd00:41::/64 "
        "-o com.docker.network.bridge.enable_icc=false alone6"
    )
    server = start_container(host, "server", "--network alone6 --expose 80")
    linked = start_container(host, "linked", "--network alone6 --link server")
    other = start_container(host, "other", "--network alone6")
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
