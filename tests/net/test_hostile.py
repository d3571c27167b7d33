# SPDX-License-Identifier: Apache-2.0
"""A hostile container with raw sockets (S13, S14, S15): what is not its own to send reaches nobody, is counted
under the right reason, and hurts nobody's ordinary traffic."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, Namespace, reaches
from tests.net.wire import (
    Container,
    Tap,
    call,
    carrying,
    counters,
    device_mac,
    from_,
    rises,
    serving,
    start_container,
    taps,
    unreachable,
)
from tests.softirqs import settle

MARK = b"hostile intent"
STRANGE_MAC = "02:de:ad:be:ef:01"


class Topology(NamedTuple):
    host: Host
    hostile: Container
    victim: Container
    other: Container  # on another network
    gateway_mac: str


@pytest.fixture(scope="module")
def hosts(shared_host: Host) -> Iterator[Host]:
    host = shared_host
    host.ctl("network create --subnet 10.31.0.0/24 -o com.docker.network.bridge.name=lan lan")
    host.ctl(
        "network create --subnet 10.32.0.0/24 --ipv6 --subnet fd00:32::/64 "
        "-o com.docker.network.bridge.name=lan6 lan6"
    )
    host.ctl("network create elsewhere")
    for name, network in (
        ("hostile", "lan"),
        ("victim", "lan"),
        ("hostile6", "lan6"),
        ("victim6", "lan6"),
        ("other", "elsewhere"),
    ):
        host.run(name, f"--network {network}")
    yield host
    host.ctl("rm -f hostile victim hostile6 victim6 other")
    host.ctl("network rm lan lan6 elsewhere")


@pytest.fixture(scope="module")
def topology(hosts: Host) -> Topology:
    hostile, victim, other = (Container(hosts, name) for name in ("hostile", "victim", "other"))
    return Topology(hosts, hostile, victim, other, device_mac(hosts, "lan"))


@pytest.fixture(scope="module")
def topology6(hosts: Host) -> Topology:
    hostile, victim, other = (Container(hosts, name) for name in ("hostile6", "victim6", "other"))
    return Topology(hosts, hostile, victim, other, device_mac(hosts, "lan6"))


def neighbours(place: Container | Namespace) -> dict[str, str]:
    return {n["dst"]: n.get("lladdr", "") for n in json.loads(place.try_("ip -j neigh show").stdout or "[]")}


def attack(topology: Topology, frames: Iterable[bytes], *reasons: str, exact: bool = True) -> None:
    """Sends the frames from the hostile container. None arrives anywhere, every one is counted under one of
    the reasons, neighbour tables are as before, and ordinary traffic goes on. Without reasons: nothing is
    counted as dropped, as the programs never see the frames or have a use for them."""
    device = "lan6" if topology.hostile.ip6 else "lan"
    hostile, victim, host = topology.hostile, topology.victim, topology.host
    for place in (hostile, host):
        assert reaches(place.try_, victim.ip)  # so that there are entries to spoil
    tables = neighbours(victim), neighbours(host)
    sent = 0
    watched = ((host, device), (host.outside, "eth0"))
    with taps(hostile, victim, topology.other, *watched) as (sender, *watching):
        before = counters(host)
        for frame in frames:
            with contextlib.suppress(*([] if reasons else [OSError])):  # the device may refuse it
                sender.send(frame)
            sent += 1
        settle()
        seen = [frame for tap in watching for frame in tap.frames()]
        after = counters(host)
    named = carrying(seen, MARK) + from_(seen, hostile)
    assert not named, f"{len(named)} arrived, first: {named[0].hex(' ')}"
    went_up = rises(before, after)
    if exact:
        assert went_up.keys() <= set(reasons), went_up
        assert sum(went_up.values()) == (sent if reasons else 0), (sent, went_up)
    else:
        assert went_up.keys() >= set(reasons), went_up
    assert (neighbours(victim), neighbours(host)) == tables
    with serving(victim, "tcp", 7100):
        assert call(hostile, "tcp", victim.ip, 7100).seen == hostile.ip
        assert call(host, "tcp", victim.ip, 7100).seen == victim.gateway


def eth(topology: Topology, kind: int, payload: bytes, dst: str = "", src: str = "") -> bytes:
    return pk.ethernet(dst or topology.victim.mac, src or topology.hostile.mac, kind, payload)


def ip(topology: Topology, src: str = "", dst: str = "") -> bytes:
    return pk.ipv4(src or topology.hostile.ip, dst or topology.victim.ip, pk.udp(7, 7, MARK))


# ---- names that are not one's own ----------------------------------------------------------------------


def test_a_spoofed_source_mac_is_refused(topology: Topology) -> None:
    macs = (
        topology.victim.mac,
        topology.gateway_mac,
        STRANGE_MAC,
        pk.BROADCAST,
        pk.NOBODY,
        "03:42:0a:1f:00:02",
    )
    attack(
        topology,
        [eth(topology, pk.ETH_IPV4, ip(topology), dst, src) for src in macs for dst in ("", pk.BROADCAST)],
        "DROP_SPOOFED_MAC",
    )


@pytest.mark.parametrize("towards", ["victim", "gateway", "outside", "other"])
def test_a_spoofed_source_address_is_refused(topology: Topology, towards: str) -> None:
    dst, mac = {
        "victim": (topology.victim.ip, topology.victim.mac),
        "gateway": (topology.victim.gateway, topology.gateway_mac),
        "outside": (FAR, topology.gateway_mac),
        "other": (topology.other.ip, topology.gateway_mac),
    }[towards]
    sources = (
        topology.victim.ip,
        topology.victim.gateway,
        topology.other.ip,
        HOST,
        OUTSIDE,
        FAR,
        "10.31.0.200",
        "10.31.0.255",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
    )
    attack(
        topology,
        [eth(topology, pk.ETH_IPV4, ip(topology, src, dst), mac) for src in sources],
        "DROP_SPOOFED_ADDR",
    )


def test_an_answer_in_somebody_elses_name_does_not_reach_a_waiting_client(topology: Topology) -> None:
    """The victim asks the host by UDP; the hostile container races to answer as the host."""
    with serving(topology.host, "udp", 7101), taps(topology.hostile) as (sender,):
        for port in range(40000, 40010):
            packet = pk.ipv4(topology.victim.gateway, topology.victim.ip, pk.udp(7101, port, MARK))
            sender.send(eth(topology, pk.ETH_IPV4, packet))
            answer = call(topology.victim, "udp", topology.victim.gateway, 7101, source=("0.0.0.0", port))
            assert answer.seen == topology.victim.ip


def test_arp_in_other_peoples_names_is_refused(topology: Topology) -> None:
    """Replies, gratuitous ones, requests and announcements: for a member, the gateway, the host, strangers."""
    frames = []
    for claimed in (topology.victim.ip, topology.victim.gateway, HOST, "10.31.0.200"):
        for operation in (pk.REQUEST, pk.REPLY):
            for target in (claimed, topology.victim.ip, topology.victim.gateway):
                body = pk.arp(operation, topology.hostile.mac, claimed, topology.victim.mac, target)
                for dst in (topology.victim.mac, topology.gateway_mac, pk.BROADCAST):
                    frames.append(eth(topology, pk.ETH_ARP, body, dst))
    attack(topology, frames, "DROP_SPOOFED_ARP")


def test_arp_whose_inside_says_another_mac_is_refused(topology: Topology) -> None:
    frames = [
        eth(
            topology,
            pk.ETH_ARP,
            pk.arp(operation, mac, topology.hostile.ip, pk.NOBODY, topology.victim.ip),
            dst,
        )
        for operation in (pk.REQUEST, pk.REPLY, 3, 8, 0x0101)
        for mac in (topology.victim.mac, topology.gateway_mac, STRANGE_MAC)
        for dst in (topology.victim.mac, pk.BROADCAST)
    ]
    attack(topology, frames, "DROP_SPOOFED_ARP")


def test_arp_of_other_kinds_of_network_is_refused(topology: Topology) -> None:
    me = (topology.hostile.mac, topology.hostile.ip, topology.victim.mac, topology.victim.ip)
    frames = [
        eth(topology, pk.ETH_ARP, pk.arp(pk.REPLY, *me, hardware=6)),
        eth(topology, pk.ETH_ARP, pk.arp(pk.REPLY, *me, protocol=pk.ETH_IPV6)),
        eth(topology, pk.ETH_ARP, pk.arp(pk.REPLY, *me, sizes=(8, 4))),
        eth(topology, pk.ETH_ARP, pk.arp(pk.REPLY, *me, sizes=(6, 16))),
    ]
    attack(topology, frames, "DROP_SPOOFED_ARP")


def test_arp_in_its_own_name_is_heard_by_nobody_either(topology: Topology) -> None:
    """The programs answer for everybody: no ARP of one container is ever shown to another."""
    bodies = [
        pk.arp(pk.REPLY, topology.hostile.mac, topology.hostile.ip, topology.victim.mac, topology.victim.ip),
        pk.arp(pk.REQUEST, topology.hostile.mac, topology.hostile.ip, pk.NOBODY, topology.hostile.ip),
        pk.arp(pk.REQUEST, topology.hostile.mac, "0.0.0.0", pk.NOBODY, topology.hostile.ip),
    ]
    attack(topology, [eth(topology, pk.ETH_ARP, body, pk.BROADCAST) for body in bodies])


def test_a_dhcp_server_in_the_gateways_name_is_refused(topology: Topology) -> None:
    offer = (
        struct.pack("!BBBBIHH4s4s4s4s", 2, 1, 6, 0, 1, 0, 0, bytes(4), bytes(4), bytes(4), bytes(4)) + MARK
    )
    frames = [
        eth(topology, pk.ETH_IPV4, pk.ipv4(source, target, pk.udp(67, 68, offer)), pk.BROADCAST)
        for source in (topology.victim.gateway, "0.0.0.0", "10.31.0.254")
        for target in ("255.255.255.255", "10.31.0.255", topology.victim.ip)
    ]
    attack(topology, frames, "DROP_SPOOFED_ADDR")


# ---- frames that have no business here -------------------------------------------------------------------


def test_unknown_ethertypes_are_refused(topology: Topology) -> None:
    """Those of switches and routers, of file servers and debuggers, and random ones; the lengths of 802.3 too."""
    chosen = random.Random(1)
    kinds = [0x0000, 0x0027, 0x05DC, 0x0600, 0x0805, 0x0842, 0x22F0, 0x6558, 0x8035, 0x8137, 0x8847]
    kinds += [0x8848, 0x8863, 0x8864, 0x888E, 0x88A2, 0x88B5, 0x88CC, 0x88E5, 0x88F7, 0x8906, 0x893A, 0xFFFF]
    while len(kinds) < 200:
        kind = chosen.randrange(0x10000)
        if kind not in (pk.ETH_IPV4, pk.ETH_ARP, pk.ETH_IPV6, pk.ETH_VLAN, pk.ETH_QINQ):
            kinds.append(kind)
    frames = [
        eth(topology, kind, MARK + bytes(40), dst)
        for kind in kinds
        for dst in (topology.victim.mac, topology.gateway_mac, pk.BROADCAST)
    ]
    attack(topology, frames, "DROP_ETHERTYPE")


@pytest.mark.parametrize(
    "group",
    ["01:80:c2:00:00:00", "01:80:c2:00:00:0e", "01:80:c2:00:00:03", "01:00:0c:cc:cc:cc", "01:80:c2:00:00:02"],
    ids=["spanning tree", "lldp", "802.1x", "cdp", "slow protocols"],
)
def test_the_protocols_of_switches_are_refused(topology: Topology, group: str) -> None:
    bpdu = b"\x42\x42\x03" + bytes(35) + MARK
    frames = [eth(topology, kind, bpdu, group) for kind in (38, 0x88CC, 0x888E, 0x8809, 0x8902)]
    attack(topology, frames, "DROP_ETHERTYPE")


def test_ipv6_on_a_network_without_it_is_refused(topology: Topology) -> None:
    frames = []
    for src in ("fe80::42:aff:fe1f:2", "fd00:32::2", "::1", f"::ffff:{topology.hostile.ip}", "::"):
        for dst in ("ff02::1", "fe80::42:aff:fe1f:3", "fd00:32::3", f"::ffff:{topology.victim.ip}"):
            for carried in (pk.udp(7, 7, MARK), pk.icmp6(134, payload=bytes(8) + MARK)):
                frames.append(eth(topology, pk.ETH_IPV6, pk.ipv6(src, dst, carried, hops=255)))
                frames.append(eth(topology, pk.ETH_IPV6, pk.ipv6(src, dst, carried), "33:33:00:00:00:01"))
    attack(topology, frames, "DROP_NO_IPV6", "DROP_BAD_ADDR", "DROP_TRUNCATED")


@pytest.mark.parametrize("kind", [pk.ETH_VLAN, pk.ETH_QINQ])
def test_vlan_tags_are_refused(topology: Topology, kind: int) -> None:
    """In the frame: on its way it becomes a tag outside of it. Priority tags (VLAN 0) and stacked ones too."""
    inner = struct.pack("!H", pk.ETH_IPV4) + ip(topology)
    frames = []
    for tag in (0, 1, 100, 4095, 0xE000):
        frames.append(eth(topology, kind, struct.pack("!H", tag) + inner))
        frames.append(eth(topology, kind, struct.pack("!HHH", tag, pk.ETH_VLAN, 5) + inner))
    attack(topology, frames, "DROP_VLAN")


def test_a_cut_off_vlan_tag_is_refused(topology: Topology) -> None:
    """One that says it is tagged and ends there never gets past the kernel, or is refused."""
    frames = [eth(topology, pk.ETH_VLAN, bytes(n)) for n in range(5)]
    attack(topology, frames, exact=False)


def test_headers_cut_short_at_each_length_are_refused(topology: Topology) -> None:
    """UDP, TCP and ICMP, whole until the last byte of the transport header."""
    frames = []
    for carried, header in (
        (pk.udp(7, 7, b""), 8),
        (pk.tcp(7, 7, pk.SYN), 20),
        (pk.echo(pk.ECHO, 1, b""), 8),
    ):
        whole = eth(topology, pk.ETH_IPV4, pk.ipv4(topology.hostile.ip, topology.victim.ip, carried))
        assert len(whole) == 34 + header
        frames += [whole[:length] for length in range(14, len(whole))]
    attack(topology, frames, "DROP_TRUNCATED")


def test_arp_cut_short_at_each_length_is_refused(topology: Topology) -> None:
    body = pk.arp(pk.REQUEST, topology.hostile.mac, topology.hostile.ip, pk.NOBODY, topology.victim.ip)
    whole = eth(topology, pk.ETH_ARP, body, pk.BROADCAST)
    attack(topology, [whole[:length] for length in range(14, len(whole))], "DROP_TRUNCATED")


def test_headers_that_lie_about_their_length_are_refused(topology: Topology) -> None:
    me, you = topology.hostile.ip, topology.victim.ip
    udp = pk.udp(7, 7, MARK)
    frames = [eth(topology, pk.ETH_IPV4, pk.ipv4(me, you, udp, ihl=ihl)) for ihl in (0, 1, 4, 15)]
    frames += [eth(topology, pk.ETH_IPV4, pk.ipv4(me, you, udp, version=v)) for v in (0, 5, 6, 15)]
    frames += [eth(topology, pk.ETH_IPV4, pk.ipv4(me, you, udp, total=t)) for t in (1, 19, 20, 27, 43, 65535)]
    attack(topology, frames, "DROP_TRUNCATED")


def test_a_tiny_first_fragment_is_refused(topology: Topology) -> None:
    """It would hide the TCP flags from whoever decides (RFC 1858)."""
    tcp = pk.tcp(7, 7, pk.SYN).data
    frames = [
        eth(topology, pk.ETH_IPV4, _fragment(topology, tcp[:size], pk.MORE_FRAGMENTS, pk.TCP))
        for size in (0, 8, 16)
    ]
    attack(topology, frames, "DROP_TRUNCATED")


def _fragment(topology: Topology, data: bytes, fragment: int, proto: int = pk.UDP, dst: str = "") -> bytes:
    return pk.ipv4(
        topology.hostile.ip, dst or topology.victim.ip, pk.Transport(proto, data), fragment=fragment
    )


def test_fragments_to_the_outside_or_elsewhere_do_not_leave_untranslated(topology: Topology) -> None:
    """Later ones without a first are kept for it, and go no further; nor does one that ends beyond 64 KiB."""
    data = pk.udp(7, 7, MARK * 4).data
    frames = []
    for dst in (FAR, topology.other.ip):
        for fragment in (1, 2, 2 | pk.MORE_FRAGMENTS):
            body = _fragment(topology, data[8:], fragment, dst=dst)
            frames.append(eth(topology, pk.ETH_IPV4, body, topology.gateway_mac))
    attack(topology, frames)
    beyond = _fragment(topology, data[8:], 0x1FFF, dst=FAR)
    attack(topology, [eth(topology, pk.ETH_IPV4, beyond, topology.gateway_mac)], "DROP_TRUNCATED")


def test_overlapping_fragments_to_a_member_hurt_nobody(topology: Topology) -> None:
    """Fragments between members are theirs to send; the victim's kernel throws overlapping ones away."""
    with taps(topology.hostile) as (sender,):
        for number in range(50):
            data = pk.udp(7, 7102, MARK * 4).data
            for fragment in (pk.MORE_FRAGMENTS, 1 | pk.MORE_FRAGMENTS, 0, 1):
                sender.send(eth(topology, pk.ETH_IPV4, _fragment(topology, data[: 32 + number], fragment)))
    attack(topology, [])


def test_a_frame_larger_than_the_mtu_does_not_get_through(topology: Topology) -> None:
    """The container may set its own device's MTU; the other end of the pair keeps its own."""
    topology.hostile.sh("ip link set eth0 mtu 9000")
    try:
        frames = []
        for size in (1480, 2000, 8900):
            packet = pk.ipv4(topology.hostile.ip, topology.victim.ip, pk.udp(7, 7, MARK + bytes(size)))
            frames.append(eth(topology, pk.ETH_IPV4, packet))
        attack(topology, frames)
    finally:
        topology.hostile.sh("ip link set eth0 mtu 1500")


def test_a_flood_of_macs_teaches_nobody_anything(topology: Topology) -> None:
    chosen = random.Random(2)
    frames = [
        eth(topology, pk.ETH_IPV4, ip(topology), src=(b"\2" + chosen.randbytes(5)).hex(":"))
        for _ in range(3000)
    ]
    attack(topology, frames, "DROP_SPOOFED_MAC")


def test_addresses_that_are_on_no_wire_are_refused(topology: Topology) -> None:
    targets = ("127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255", "224.0.0.1")
    frames = [
        eth(topology, pk.ETH_IPV4, ip(topology, dst=target), topology.gateway_mac)
        for target in (*targets, "255.255.255.255", "10.31.0.255")
    ]
    attack(topology, frames, "DROP_BAD_ADDR")


def test_a_members_address_in_a_group_frame_is_refused(topology: Topology) -> None:
    """It would reach members past any policy."""
    groups = (pk.BROADCAST, "01:00:5e:00:00:01", "33:33:00:00:00:01")
    frames = [
        eth(topology, pk.ETH_IPV4, ip(topology, dst=dst), group)
        for group in groups
        for dst in (topology.victim.ip, topology.other.ip, FAR, "10.31.0.200")
    ]
    attack(topology, frames, "DROP_WRONG_MAC")


def test_frames_for_nobodys_mac_are_refused(topology: Topology) -> None:
    macs = (STRANGE_MAC, pk.NOBODY, topology.other.mac, topology.hostile.mac)
    frames = [
        eth(topology, pk.ETH_IPV4, ip(topology, dst=dst), mac) for mac in macs for dst in (FAR, "10.31.0.200")
    ]
    attack(topology, frames, "DROP_WRONG_MAC")


def test_an_icmp_error_about_somebody_elses_connection_goes_nowhere(topology: Topology) -> None:
    """A victim's connection to the outside cannot be cut off or slowed down by a neighbour's lies."""
    quoted = pk.ipv4(HOST, FAR, pk.udp(7, 7, MARK))
    kinds = ((3, 3, 0), (3, 1, 0), (3, 4, 68), (11, 0, 0), (12, 0, 0))
    frames = [
        eth(
            topology,
            pk.ETH_IPV4,
            pk.ipv4(topology.hostile.ip, dst, pk.icmp(kind, code, word, quoted)),
            topology.gateway_mac,
        )
        for kind, code, word in kinds
        for dst in (FAR, OUTSIDE)
    ]
    attack(topology, frames, "DROP_NO_CONN")


def test_protocols_that_cannot_be_translated_do_not_leave(topology: Topology) -> None:
    protocols = [n for n in range(256) if n not in (pk.ICMP, pk.TCP, pk.UDP)]
    frames = [
        eth(
            topology,
            pk.ETH_IPV4,
            pk.ipv4(topology.hostile.ip, FAR, pk.Transport(proto, MARK + bytes(20))),
            topology.gateway_mac,
        )
        for proto in protocols
    ]
    attack(topology, frames, "DROP_PROTOCOL")


# ---- IPv6 ------------------------------------------------------------------------------------------------


def test_ipv6_in_other_peoples_names_is_refused(topology6: Topology) -> None:
    victim_local = "fe80::42:aff:fe20:3"
    sources = (
        topology6.victim.ip6,
        "fd00:32::1",
        victim_local,
        "fd00:32::99",
        "fe80::1",
        "::1",
        "2001:db8::1",
    )
    frames = []
    for src in sources:
        for dst, mac in ((topology6.victim.ip6, topology6.victim.mac), ("ff02::1", "33:33:00:00:00:01")):
            frames.append(eth(topology6, pk.ETH_IPV6, pk.ipv6(src, dst, pk.udp(7, 7, MARK)), mac))
    frames.append(eth(topology6, pk.ETH_IPV6, pk.ipv6("::", topology6.victim.ip6, pk.udp(7, 7, MARK))))
    attack(topology6, frames, "DROP_SPOOFED_ADDR")


def test_neighbour_advertisements_in_other_peoples_names_are_refused(topology6: Topology) -> None:
    """Solicited and not, to one and to all: neither a member's table nor the host's changes."""
    for place in (topology6.hostile, topology6.host):
        assert reaches(place.try_, topology6.victim.ip6)
    assert reaches(topology6.victim.try_, "fd00:32::1")
    frames = []
    for claimed in (topology6.victim.ip6, "fd00:32::1", "fe80::42:aff:fe20:3", "fd00:32::99"):
        for solicited in (False, True):
            told = pk.advertisement(claimed, topology6.hostile.mac, solicited=solicited)
            for dst, mac in (
                (topology6.victim.ip6, topology6.victim.mac),
                ("fd00:32::1", topology6.gateway_mac),
                ("ff02::1", "33:33:00:00:00:01"),
            ):
                packet = pk.ipv6(topology6.hostile.ip6, dst, told, hops=255)
                frames.append(eth(topology6, pk.ETH_IPV6, packet, mac))
    attack(topology6, frames, "DROP_SPOOFED_ARP")


@pytest.mark.parametrize("kind", [pk.ROUTER_ADVERTISEMENT, pk.REDIRECT])
def test_router_advertisements_and_redirects_are_refused(topology6: Topology, kind: int) -> None:
    """Behind extension headers as well (RFC 7113)."""
    body = pk.icmp6(kind, payload=bytes(8) + pk.packed("fe80::bad") * 2 + MARK)
    frames = []
    for count in range(8):
        extensions = [pk.extension(pk.DESTINATION_OPTIONS, b"\0\1\4\0\0\0\0")] * count
        for dst, mac in (("ff02::1", "33:33:00:00:00:01"), (topology6.victim.ip6, topology6.victim.mac)):
            packet = pk.ipv6(topology6.hostile.ip6, dst, body, hops=255, extensions=extensions)
            frames.append(eth(topology6, pk.ETH_IPV6, packet, mac))
    attack(topology6, frames, "DROP_ROUTER", "DROP_TRUNCATED")


def test_ipv6_headers_cut_short_at_each_length_are_refused(topology6: Topology) -> None:
    packet = pk.ipv6(topology6.hostile.ip6, topology6.victim.ip6, pk.tcp(7, 7, pk.SYN))
    whole = eth(topology6, pk.ETH_IPV6, packet)
    attack(topology6, [whole[:length] for length in range(14, len(whole))], "DROP_TRUNCATED")


def test_ipv6_to_addresses_that_never_leave_a_link_is_refused(topology6: Topology) -> None:
    frames = [
        eth(
            topology6,
            pk.ETH_IPV6,
            pk.ipv6(topology6.hostile.ip6, dst, pk.udp(7, 7, MARK)),
            topology6.gateway_mac,
        )
        for dst in ("::1", "::", "fe80::1", "ff02::1")
    ]
    attack(topology6, frames, "DROP_BAD_ADDR")


# ---- the hostile container's own device ------------------------------------------------------------------


def test_a_container_that_makes_devices_of_its_own_gets_no_further(topology: Topology) -> None:
    """A bridge with its eth0 in it, and a second stack behind that with another MAC and address."""
    topology.hostile.sh("ip link add inner type veth peer name port")
    try:
        for line in (
            "ip link set inner address 02:00:00:00:00:99",
            "ip address add 10.31.0.99/24 dev inner",
            "ip link set inner up",
            "ip link set port up",
        ):
            topology.hostile.sh(line)
        with taps((topology.hostile, "port"), topology.hostile, topology.victim) as (inside, eth0, victim):
            assert unreachable(topology.hostile, topology.victim.ip, "-I inner")
            for frame in inside.frames():
                eth0.send(frame)
            settle()
            assert not [f for f in victim.frames() if pk.mac_bytes("02:00:00:00:00:99") in f]
    finally:
        topology.hostile.sh("ip link del inner")
    attack(topology, [])


def test_the_captures_would_have_seen_it(topology: Topology) -> None:
    """What is allowed arrives with the mark on it."""
    tap = Tap(topology.victim)
    with taps(topology.hostile) as (sender,):
        sender.send(eth(topology, pk.ETH_IPV4, ip(topology)))
        tap.wait_for(lambda frame: MARK in frame)
    tap.close()


def test_a_container_can_be_started_beside_it_and_is_safe_at_once(topology: Topology) -> None:
    """While it floods, a new member comes up, works, and hears none of it."""
    with taps(topology.hostile) as (sender,):
        frame = eth(topology, 0x88B5, MARK, pk.BROADCAST)
        for _ in range(2000):
            sender.send(frame)
        late = start_container(topology.host, "late", "--network lan")
        try:
            with taps(late) as (tap,):
                for _ in range(2000):
                    sender.send(frame)
                settle()
                assert not carrying(tap.frames(), MARK)
            assert reaches(late.try_, topology.victim.ip)
        finally:
            topology.host.ctl("rm -f late")
