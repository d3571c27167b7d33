# SPDX-License-Identifier: Apache-2.0
"""S13: networks are kept apart. S14: on one network everything ordinary works, under one's own name only."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import OUTSIDE, Host, eventually, reaches
from tests.net.wire import (
    Container,
    Place,
    Tap,
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

ETHERTYPES = (0x0000, 0x0026, 0x05DC, 0x0600, 0x0801, 0x22F3, 0x6003, 0x8035, 0x809B, 0x8137, 0x8847, 0x8863)


class Lan(NamedTuple):
    host: Host
    a: Container
    b: Container
    c: Container  # on the other network


@pytest.fixture(scope="module")
def lan(shared_host: Host) -> Iterator[Lan]:
    """a and b on `one`, c on `two`, both with IPv6."""
    host = shared_host
    for name, number in (("one", 21), ("two", 22)):
        host.ctl(
            f"network create --subnet 10.{number}.0.0/24 --ipv6 --subnet fd00:{number}::/64 "
            f"-o com.docker.network.bridge.name={name} {name}"
        )
    containers = [
        start_container(host, name, f"--network {network}")
        for name, network in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    yield Lan(host, *containers)
    host.ctl("rm -f a b c")
    host.ctl("network rm one two")


def link_local(place: Place, device: str = "eth0") -> str:
    """The address that follows from the MAC (RFC 4291, appendix A)."""
    mac = pk.mac_bytes(device_mac(place, device))
    middle = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + middle)


# ---- S13 ---------------------------------------------------------------------------------------------


def test_s13_the_example_ping_between_networks_loses_everything_until_connected(host: Host) -> None:
    host.ctl("network create --subnet 172.18.0.0/16 my_net1")
    host.ctl("network create --subnet 172.19.0.0/16 my_net2")
    host.run("test1", "--network my_net1 --ip 172.18.0.10")
    host.run("test2", "--network my_net1 --ip 172.18.0.11")
    host.run("test3", "--network my_net2 --ip 172.19.0.11")
    lost = host.try_in("test2", "ping -n -c 2 -i 0.1 -W 0.5 172.19.0.11")
    assert lost.returncode == 1 and "100% packet loss" in lost.stdout
    before = host.in_("test2", "ip -o address"), host.in_("test2", "ip route"), host.sh("ip -o link")

    host.ctl("network connect my_net2 test2")
    assert "inet 172.19.0.2/16" in host.in_("test2", "ip -o address show dev eth1")
    assert reaches(lambda c: host.try_in("test2", c), "172.19.0.11")
    assert reaches(lambda c: host.try_in("test2", c), "172.18.0.10")
    assert reaches(lambda c: host.try_in("test3", c), "172.19.0.2")
    # Nobody becomes a way between the networks.
    assert unreachable(Container(host, "test1"), "172.19.0.11")

    host.ctl("network disconnect my_net2 test2")
    assert before == (
        host.in_("test2", "ip -o address"),
        host.in_("test2", "ip route"),
        host.sh("ip -o link"),
    )
    assert unreachable(Container(host, "test2"), "172.19.0.11")
    assert reaches(lambda c: host.try_in("test2", c), "172.18.0.10")


def test_s13_tcp_udp_and_ping_to_the_other_network_lead_nowhere(lan: Lan) -> None:
    with serving(lan.c, "tcp", 7000) as tcp, serving(lan.c, "udp", 7000) as udp:
        before = counters(lan.host)
        assert fails(lan.a, "tcp", lan.c.ip, 7000)
        assert fails(lan.a, "udp", lan.c.ip, 7000)
        assert unreachable(lan.a, lan.c.ip)
        assert rises(before, counters(lan.host)).keys() == {"DROP_ISOLATED"}
    with serving(lan.c, "tcp", 7000, "::") as tcp6:
        assert fails(lan.a, "tcp", lan.c.ip6, 7000)
        assert unreachable(lan.a, lan.c.ip6)
    assert not tcp.peers + udp.peers + tcp6.peers


def test_s13_the_gateway_addresses_are_no_way_into_the_other_network(lan: Lan) -> None:
    """The host answers at both gateways, and forwards nothing even if it is a router."""
    assert reaches(lan.a.try_, lan.c.gateway)
    # Not switched off again: that would switch it off for the networks' gateway devices too.
    lan.host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    try:
        for via in (lan.a.gateway, lan.c.gateway):
            lan.a.sh(f"ip route replace {lan.c.ip} via {via} dev eth0 onlink")
            with taps(lan.c) as (tap,):
                assert unreachable(lan.a, lan.c.ip)
                assert fails(lan.a, "tcp", lan.c.ip, 7000)
                assert not from_(tap.frames(), lan.a)
    finally:
        lan.a.sh(f"ip route del {lan.c.ip}")


def test_s13_a_loose_source_route_through_the_gateway_is_not_followed(lan: Lan) -> None:
    route = b"\x83\x07\x04" + pk.packed(lan.c.ip) + b"\0"
    for first_hop in (lan.a.gateway, lan.c.gateway):
        with taps(lan.a, lan.c) as (sender, tap):
            packet = pk.ipv4(lan.a.ip, first_hop, pk.udp(1, 2), options=route)
            sender.send(pk.ethernet(device_mac(lan.host, "one"), lan.a.mac, pk.ETH_IPV4, packet))
            settle()
            assert not from_(tap.frames(), lan.a)


def test_s13_no_ip_protocol_crosses_whatever_mac_it_is_sent_to(lan: Lan) -> None:
    macs = (device_mac(lan.host, "one"), device_mac(lan.host, "two"), lan.c.mac, pk.BROADCAST)
    with taps(lan.a, lan.c, (lan.host, "two")) as (sender, tap, gateway):
        for mac in macs:
            for proto in range(256):
                payload = pk.Transport(proto, bytes(40))
                packet = pk.ipv4(lan.a.ip, lan.c.ip, payload)
                sender.send(pk.ethernet(mac, lan.a.mac, pk.ETH_IPV4, packet))
            packet = pk.ipv6(lan.a.ip6, lan.c.ip6, pk.echo(pk.ECHO, 1))
            sender.send(pk.ethernet(mac, lan.a.mac, pk.ETH_IPV6, packet))
        settle()
        assert not from_(tap.frames() + gateway.frames(), lan.a)


def test_s13_no_ethertype_crosses(lan: Lan) -> None:
    with taps(lan.a, lan.b, lan.c, (lan.host, "one"), (lan.host, "two")) as (sender, *others):
        before = counters(lan.host)
        for kind in ETHERTYPES:
            for mac in (lan.c.mac, pk.BROADCAST, "01:80:c2:00:00:00"):
                sender.send(pk.ethernet(mac, lan.a.mac, kind, bytes(46)))
        settle()
        assert not from_([frame for tap in others for frame in tap.frames()], lan.a)
        assert rises(before, counters(lan.host)) == {"DROP_ETHERTYPE": 3 * len(ETHERTYPES)}


def test_s13_arp_for_an_address_of_the_other_network_is_not_answered(lan: Lan) -> None:
    for target in (lan.c.ip, lan.c.gateway):
        assert lan.a.try_(f"arping -q -c 1 -w 1 -I eth0 {target}").returncode != 0


def test_s13_with_a_foot_in_each_network_one_address_is_not_sent_into_the_other(lan: Lan) -> None:
    lan.host.ctl("network connect two b")
    try:
        both = Container(lan.host, "b")
        on_two = both.on("two")["IPAddress"]
        assert reaches(both.try_, lan.c.ip) and reaches(lan.c.try_, on_two)
        with taps((both, "eth1"), lan.c) as (sender, tap):
            before = counters(lan.host)
            packet = pk.ipv4(both.on("one")["IPAddress"], lan.c.ip, pk.udp(1, 2))
            sender.send(pk.ethernet(lan.c.mac, both.on("two")["MacAddress"], pk.ETH_IPV4, packet))
            settle()
            assert not from_(tap.frames(), lan.b)
            assert rises(before, counters(lan.host)) == {"DROP_SPOOFED_ADDR": 1}
    finally:
        lan.host.ctl("network disconnect two b")


# ---- S14 ---------------------------------------------------------------------------------------------


def test_s14_members_and_the_host_ping_each_other_in_both_families(lan: Lan) -> None:
    for target in (lan.b.ip, lan.b.ip6, lan.a.gateway, "fd00:21::1"):
        assert reaches(lan.a.try_, target), target
    for target in (lan.a.ip, lan.a.ip6):
        assert reaches(lan.b.try_, target) and reaches(lan.host.try_, target), target


def test_s14_link_local_addresses_reach_members_and_the_host(lan: Lan) -> None:
    assert reaches(lan.a.try_, f"{link_local(lan.b)}%eth0")
    assert reaches(lan.a.try_, f"{link_local(lan.host, 'one')}%eth0")
    assert reaches(lan.host.try_, f"{link_local(lan.a)}%one")


def test_s14_arp_and_neighbour_discovery_tell_the_true_macs(lan: Lan) -> None:
    gateway = device_mac(lan.host, "one")
    for target, mac in ((lan.b.ip, lan.b.mac), (lan.a.gateway, gateway)):
        assert f"[{mac}]" in lan.a.sh(f"arping -c 1 -w 60 -I eth0 {target}").lower()
    lan.a.sh("ip neigh flush dev eth0")
    for target in (lan.b.ip, lan.b.ip6, lan.a.gateway, "fd00:21::1"):
        assert reaches(lan.a.try_, target)
    known = {n["dst"]: n["lladdr"] for n in json.loads(lan.a.sh("ip -j neigh show dev eth0"))}
    assert (known[lan.b.ip], known[lan.b.ip6]) == (lan.b.mac, lan.b.mac)
    assert (known[lan.a.gateway], known["fd00:21::1"]) == (gateway, gateway)


def test_s14_a_duplicate_address_is_detected(lan: Lan) -> None:
    assert lan.a.try_(f"arping -q -D -c 1 -w 60 -I eth0 {lan.b.ip}").returncode == 1
    assert lan.a.try_("arping -q -D -c 1 -w 1 -I eth0 10.21.0.99").returncode == 0
    lan.a.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=1")
    try:
        lan.a.sh(f"ip address add {lan.b.ip6}/128 dev eth0")
        with eventually() as until:
            until(lambda: "dadfailed" in lan.a.sh(f"ip -6 address show dev eth0 to {lan.b.ip6}/128"))
    finally:
        lan.a.sh(f"ip address del {lan.b.ip6}/128 dev eth0")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s14_members_and_the_host_talk_tcp_and_udp_and_see_true_addresses(lan: Lan, proto: str) -> None:
    with serving(lan.b, proto, 7001), serving(lan.host, proto, 7002):
        assert call(lan.a, proto, lan.b.ip, 7001).seen == lan.a.ip
        assert call(lan.host, proto, lan.b.ip, 7001).seen == lan.a.gateway
        assert call(lan.a, proto, lan.a.gateway, 7002).seen == lan.a.ip
    with serving(lan.b, proto, 7001, "::"), serving(lan.host, proto, 7002, "::"):
        assert call(lan.a, proto, lan.b.ip6, 7001).seen == lan.a.ip6
        assert call(lan.host, proto, lan.b.ip6, 7001).seen == "fd00:21::1"
        assert call(lan.a, proto, "fd00:21::1", 7002).seen == lan.a.ip6


@pytest.mark.parametrize("target", ["255.255.255.255", "10.21.0.255"])
def test_s14_broadcast_reaches_the_members_and_the_host_and_nobody_else(lan: Lan, target: str) -> None:
    listeners = [opened(place, socket.SOCK_DGRAM) for place in (lan.b, lan.host)]
    stranger = opened(lan.c, socket.SOCK_DGRAM)
    sender = opened(lan.a, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for listener in (*listeners, stranger):
        listener.bind(("0.0.0.0", 7003))
    sender.sendto(b"to all", (target, 7003))
    for listener in listeners:
        data, peer = listener.recvfrom(100)
        assert (data, peer[0]) == (b"to all", lan.a.ip)
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(100)
    for used in (*listeners, stranger, sender):
        used.close()


def test_s14_the_hosts_broadcast_reaches_the_members(lan: Lan) -> None:
    with opened(lan.b, socket.SOCK_DGRAM) as listener, opened(lan.host, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        listener.bind(("0.0.0.0", 7003))
        sender.sendto(b"from the host", ("10.21.0.255", 7003))
        assert listener.recvfrom(100) == (b"from the host", (lan.a.gateway, sender.getsockname()[1]))


def _joined(place: Place, device: str, group: str) -> socket.socket:
    v6 = ":" in group
    made = opened(place, socket.SOCK_DGRAM, socket.AF_INET6 if v6 else socket.AF_INET)
    made.bind(("::" if v6 else "0.0.0.0", 7004))
    index = struct.pack("@i", _index(place, device))
    if v6:
        request = pk.packed(group) + index
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    else:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, pk.packed(group) + bytes(4) + index)
    return made


def _index(place: Place, device: str) -> int:
    from datapath.kernel.netns import enter

    with enter(place.path):
        return socket.if_nametoindex(device)


@pytest.mark.parametrize("group", ["239.1.2.3", "224.0.0.251", "ff02::1234", "ff05::1234"])
def test_s14_multicast_reaches_the_members_and_the_host_and_nobody_else(lan: Lan, group: str) -> None:
    listeners = [_joined(lan.b, "eth0", group), _joined(lan.host, "one", group)]
    stranger = _joined(lan.c, "eth0", group)
    v6 = ":" in group
    with opened(lan.a, socket.SOCK_DGRAM, socket.AF_INET6 if v6 else socket.AF_INET) as sender:
        if v6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, _index(lan.a, "eth0"))
        sender.sendto(b"to the group", (group, 7004))
        for listener in listeners:
            data, peer = listener.recvfrom(100)
            assert data == b"to the group"
            assert v6 or peer[0] == lan.a.ip
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(100)
    for used in (*listeners, stranger):
        used.close()


def test_s14_nobody_can_use_an_address_or_mac_that_is_not_his_own(lan: Lan) -> None:
    """Ordinary sockets with an address that was added by hand, and raw frames."""
    lan.a.sh("ip address add 10.21.0.77/24 dev eth0")
    lan.a.sh("ip address add fd00:21::77/64 dev eth0 nodad")
    with taps(lan.b, (lan.host, "one"), lan.a) as (member, gateway, sender):
        before = counters(lan.host)
        for target in (lan.b.ip, lan.a.gateway, OUTSIDE):
            assert unreachable(lan.a, target, "-I 10.21.0.77")
        assert unreachable(lan.a, lan.b.ip6, "-I fd00:21::77")
        for mac in (lan.b.mac, device_mac(lan.host, "one"), "02:00:00:00:00:99"):
            packet = pk.ipv4(lan.a.ip, lan.b.ip, pk.udp(1, 2, b"not me"))
            sender.send(pk.ethernet(lan.b.mac, mac, pk.ETH_IPV4, packet))
        settle()
        seen = member.frames() + gateway.frames()
        assert not [f for f in seen if pk.packed("10.21.0.77") in f or pk.packed("fd00:21::77") in f]
        assert not [f for f in seen if b"not me" in f]
        assert rises(before, counters(lan.host)).keys() >= {"DROP_SPOOFED_ADDR", "DROP_SPOOFED_MAC"}
    lan.a.sh("ip address del 10.21.0.77/24 dev eth0")
    lan.a.sh("ip address del fd00:21::77/64 dev eth0")
    assert reaches(lan.a.try_, lan.b.ip)


def test_s14_a_changed_mac_takes_the_container_off_the_network_and_no_further(lan: Lan) -> None:
    lan.a.sh(f"ip link set eth0 address {lan.b.mac}")
    try:
        before = counters(lan.host)
        assert unreachable(lan.a, lan.b.ip)
        assert rises(before, counters(lan.host)).keys() == {"DROP_SPOOFED_MAC"}
        assert reaches(lan.host.try_, lan.b.ip)
    finally:
        lan.a.sh(f"ip link set eth0 address {lan.a.mac}")
    assert reaches(lan.a.try_, lan.b.ip)


def test_s14_the_tap_itself_sees_what_is_sent(lan: Lan) -> None:
    """The captures that find nothing elsewhere would find something."""
    tap = Tap(lan.b)
    assert reaches(lan.a.try_, lan.b.ip)
    assert any(pk.packed(lan.a.ip) in frame for frame in tap.frames())
    tap.close()
