# SPDX-License-Identifier: Apache-2.0
"""Members on the link of one of the host's devices, their parent (ipvlan): what they send there, and what they get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    HOST,
    HOST6,
    NET1,
    NEXT_HOP,
    NEXT_HOP6,
    NEXT_HOP_MAC,
    OUTSIDE,
    OUTSIDE6,
    UPLINK,
    UPLINK_MAC,
    Copies,
    Flag,
    Programs,
    Reason,
    Row,
    Topology,
    dropped,
    outside_sends,
    redirected,
    untouched,
)

FLAGS = NET1.flags & ~Flag.NETWORK_MASQUERADE | Flag.NETWORK_LAN
ALL = "ff:ff:ff:ff:ff:ff"
RESOLVER = IPv4Address("127.0.0.11")
UDP = p.udp(9, 99, b"data")
ALL_ROUTERS, ALL_ROUTERS_MAC = IPv6Address("ff02::2"), "33:33:00:00:00:02"


def told(loaded: Programs, flags: int) -> None:
    """NET1 is on the uplink's link, with these flags."""
    known = loaded.maps["networks"][NET1.number]
    none = None
    loaded.maps["networks"][NET1.number] = known._replace(flags=flags, gateway4=none, gateway6=none)


@contextlib.contextmanager
def at_the_parent(copies: Copies, topology: Topology, program: str) -> Iterator[Programs]:
    """The programs, of which that one is at the uplink: the parent of NET1, with the host's addresses."""
    with copies.lent(outside=program) as made:
        index = topology.index[UPLINK]
        made.maps["devices"][abi.device_key(index)] = abi.device(
            kind=abi.DeviceKind.DEVICE_PARENT, network=NET1.number, addr4=HOST, addr6=HOST6
        )
        for address in (HOST, HOST6):
            made.maps["addresses"][abi.address_key(address)] = abi.address()
        yield made


def on_its_link(programs: Programs, topology: Topology, flags: int) -> Programs:
    """The members of NET1 are on the uplink's link, and it has these flags."""
    told(programs, flags)
    programs.maps["parents"][abi.parent_key(NET1.number)] = abi.parent(topology.index[UPLINK], UPLINK_MAC)
    return programs


@pytest.fixture(scope="module")
def loaded(copies: Copies, topology: Topology) -> Iterator[Programs]:
    with at_the_parent(copies, topology, "from_parent") as made:
        yield made


@pytest.fixture
def lan(programs: Programs, topology: Topology) -> Programs:
    return on_its_link(programs, topology, FLAGS)


def sent(frame: bytes, mac: str = UPLINK_MAC) -> bytes:
    """As it leaves: its source is the parent's MAC address."""
    return frame[:6] + p.mac_bytes(mac) + frame[12:]


def to(frame: bytes, mac: str) -> bytes:
    return p.mac_bytes(mac) + frame[6:]


def asks(mac: str, sender: p.Address, target: p.Address, dst: str = ALL) -> bytes:
    body = p.arp(p.REQUEST, mac, sender, p.NOBODY, target)
    return p.ethernet(dst, mac, p.ETH_ARP, body)


def tells(mac: str, sender: p.Address, to_mac: str, target: p.Address) -> bytes:
    return p.ethernet(to_mac, mac, p.ETH_ARP, p.arp(p.REPLY, mac, sender, to_mac, target))


def solicits(mac: str, sender: p.Address, target: p.Address, option: str | None) -> bytes:
    group_mac, group = p.solicited_node(target)
    body = p.ipv6(sender, group, p.solicitation(target, option), hops=255)
    return p.ethernet(group_mac, mac, p.ETH_IPV6, body)


def advertises(mac: str, target: p.Address, to_mac: str, receiver: p.Address) -> bytes:
    body = p.ipv6(target, receiver, p.advertisement(target, mac, solicited=True), hops=255)
    return p.ethernet(to_mac, mac, p.ETH_IPV6, body)


def routers(mac: str, option: bytes) -> bytes:
    """A router solicitation of a1's with these options."""
    body = p.ipv6(A1.linklocal, ALL_ROUTERS, p.icmp6(133, payload=option), hops=255)
    return p.ethernet(ALL_ROUTERS_MAC, mac, p.ETH_IPV6, body)


def slla(mac: str) -> bytes:
    return b"\x01\x01" + p.mac_bytes(mac)


ANNOUNCED = asks(A1.mac, A1.ip, A1.ip)
BROADCAST = A1.sends("255.255.255.255", UDP, to=ALL)
TO_LAN, TO_LAN6 = (A1.sends(far, UDP, to=NEXT_HOP_MAC) for far in (OUTSIDE, OUTSIDE6))

MEMBERS_SEND = [
    redirected("to a machine on the link", A1, TO_LAN, Reason.TO_OUTSIDE, sent(TO_LAN)),
    redirected("the same, IPv6", A1, TO_LAN6, Reason.TO_OUTSIDE, sent(TO_LAN6)),
    redirected("to the host", A1, A1.sends(HOST, UDP), Reason.TO_HOST),
    redirected("to the host, IPv6", A1, A1.sends(HOST6, UDP), Reason.TO_HOST),
    redirected("to the host, which is to route it", A1, A1.sends(OUTSIDE, UDP), Reason.TO_HOST),
    redirected("to a member", A1, A1.sends(A2.ip, UDP, to=A2.mac), Reason.DELIVERED),
    dropped("to a loopback address", A1, A1.sends("127.0.0.1", UDP), Reason.DROP_BAD_ADDR),
    dropped(
        "in another's name",
        A1,
        p.ethernet(NEXT_HOP_MAC, A1.mac, p.ETH_IPV4, p.ipv4(A2.ip, OUTSIDE, UDP)),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped("with another's MAC", A1, sent(TO_LAN), Reason.DROP_SPOOFED_MAC),
    redirected("to everybody", A1, BROADCAST, Reason.FLOODED, sent(BROADCAST)),
    redirected(
        "asking for a member",
        A1,
        asks(A1.mac, A1.ip, A2.ip),
        Reason.ANSWERED,
        tells(A2.mac, A2.ip, A1.mac, A1.ip),
    ),
    redirected(
        "asking for the host",
        A1,
        asks(A1.mac, A1.ip, HOST),
        Reason.ANSWERED,
        tells(NET1.mac, HOST, A1.mac, A1.ip),
    ),
    redirected(
        "asking for the resolver",
        A1,
        asks(A1.mac, A1.ip, RESOLVER),
        Reason.ANSWERED,
        tells(NET1.mac, RESOLVER, A1.mac, A1.ip),
    ),
    redirected(
        "asking for a machine on the link",
        A1,
        asks(A1.mac, A1.ip, NEXT_HOP),
        Reason.TO_OUTSIDE,
        asks(UPLINK_MAC, A1.ip, NEXT_HOP),
    ),
    redirected("announcing its address", A1, ANNOUNCED, Reason.TO_OUTSIDE, asks(UPLINK_MAC, A1.ip, A1.ip)),
    dropped("announcing another's", A1, asks(A1.mac, A2.ip, A2.ip), Reason.DROP_SPOOFED_ARP),
    redirected(
        "soliciting a member",
        A1,
        solicits(A1.mac, A1.ip6, A2.ip6, A1.mac),
        Reason.ANSWERED,
        advertises(A2.mac, A2.ip6, A1.mac, A1.ip6),
    ),
    redirected(
        "soliciting the host",
        A1,
        solicits(A1.mac, A1.ip6, HOST6, A1.mac),
        Reason.ANSWERED,
        advertises(NET1.mac, HOST6, A1.mac, A1.ip6),
    ),
    redirected(
        "soliciting a machine on the link",
        A1,
        solicits(A1.mac, A1.ip6, NEXT_HOP6, A1.mac),
        Reason.TO_OUTSIDE,
        solicits(UPLINK_MAC, A1.ip6, NEXT_HOP6, UPLINK_MAC),
    ),
    redirected(
        "detecting duplicates of its address",
        A1,
        solicits(A1.mac, "::", A1.ip6, None),
        Reason.TO_OUTSIDE,
        solicits(UPLINK_MAC, "::", A1.ip6, None),
    ),
    redirected(
        "soliciting routers",
        A1,
        routers(A1.mac, slla(A1.mac)),
        Reason.FLOODED,
        routers(UPLINK_MAC, slla(UPLINK_MAC)),
    ),
    redirected(
        "soliciting routers without saying who",
        A1,
        routers(A1.mac, b""),
        Reason.FLOODED,
        routers(UPLINK_MAC, b""),
    ),
    dropped(
        "soliciting routers with an option that nobody knows",
        A1,
        routers(A1.mac, b"\x0e\x01" + bytes(6)),
        Reason.DROP_SPOOFED_ARP,
    ),
]


@pytest.mark.parametrize("row", MEMBERS_SEND, ids=lambda row: row.sentence)
def test_s24_what_a_member_sends(lan: Programs, row: Row) -> None:
    lan.check(row)


def arrives(dst: p.Address, carried: p.Transport) -> bytes:
    return outside_sends(dst, carried)


def by(frame: bytes, mac: str) -> bytes:
    """As a member gets it."""
    return to(frame, mac)


IN4, IN6 = arrives(A1.ip, UDP), arrives(A1.ip6, UDP)
PROBE = asks(NEXT_HOP_MAC, "0.0.0.0", A1.ip)
CLAIM = asks(NEXT_HOP_MAC, A1.ip, A1.ip)

LINK_SENDS = [
    redirected("to a member", None, IN4, Reason.DELIVERED, by(IN4, A1.mac)),
    redirected("to a member, IPv6", None, IN6, Reason.DELIVERED, by(IN6, A1.mac)),
    untouched("to the host", arrives(HOST, p.udp(9, 99))),
    untouched("to a member, in a frame for another machine", to(IN4, "02:00:00:00:00:99")),
    untouched("to nobody here", arrives(OUTSIDE, UDP)),
    redirected(
        "asking for a member",
        None,
        asks(NEXT_HOP_MAC, NEXT_HOP, A1.ip),
        Reason.ANSWERED,
        tells(UPLINK_MAC, A1.ip, NEXT_HOP_MAC, NEXT_HOP),
    ),
    redirected(
        "asking the parent for a member",
        None,
        asks(NEXT_HOP_MAC, NEXT_HOP, A1.ip, UPLINK_MAC),
        Reason.ANSWERED,
        tells(UPLINK_MAC, A1.ip, NEXT_HOP_MAC, NEXT_HOP),
    ),
    redirected(
        "probing for a member's address",
        None,
        PROBE,
        Reason.ANSWERED,
        tells(UPLINK_MAC, A1.ip, NEXT_HOP_MAC, "0.0.0.0"),
    ),
    untouched("claiming a member's address", CLAIM),
    untouched("asking for the host", asks(NEXT_HOP_MAC, NEXT_HOP, HOST)),
    redirected(
        "answering a member",
        None,
        tells(NEXT_HOP_MAC, NEXT_HOP, UPLINK_MAC, A1.ip),
        Reason.DELIVERED,
        tells(NEXT_HOP_MAC, NEXT_HOP, A1.mac, A1.ip),
    ),
    untouched("answering the host", tells(NEXT_HOP_MAC, NEXT_HOP, UPLINK_MAC, HOST)),
    redirected(
        "soliciting a member",
        None,
        solicits(NEXT_HOP_MAC, NEXT_HOP6, A1.ip6, NEXT_HOP_MAC),
        Reason.ANSWERED,
        advertises(UPLINK_MAC, A1.ip6, NEXT_HOP_MAC, NEXT_HOP6),
    ),
    untouched("soliciting the host", solicits(NEXT_HOP_MAC, NEXT_HOP6, HOST6, NEXT_HOP_MAC)),
    redirected(
        "answering a member's solicitation",
        None,
        advertises(NEXT_HOP_MAC, NEXT_HOP6, UPLINK_MAC, A1.ip6),
        Reason.DELIVERED,
        to(advertises(NEXT_HOP_MAC, NEXT_HOP6, UPLINK_MAC, A1.ip6), A1.mac),
    ),
    untouched("to everybody", to(arrives("255.255.255.255", UDP), ALL)),
    untouched("a tagged frame", p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, 0x8100, bytes(50))),
]


@pytest.mark.parametrize("row", LINK_SENDS, ids=lambda row: row.sentence)
def test_s24_what_comes_from_the_link(lan: Programs, row: Row) -> None:
    lan.check(row)


@pytest.mark.parametrize("host", [HOST, HOST6], ids=["IPv4", "IPv6"])
def test_s19_a_parent_is_an_uplink_like_any(lan: Programs, host: p.Address) -> None:
    """A port that is published at the host's address, by a container of another network."""
    told(lan, NET1.flags)  # of which a2 is
    assert lan.run(None, outside_sends(host, p.tcp(9, 8081, p.SYN))).reasons == {"DELIVERED": 1}


def test_s13_the_number_of_a_network_that_is_gone_leads_to_no_other(
    lan: Programs, topology: Topology
) -> None:
    """As long as nobody has told the parent that: a network that is on no link; one that is on another."""
    told(lan, NET1.flags)
    for frame in (IN4, asks(NEXT_HOP_MAC, NEXT_HOP, A1.ip)):
        lan.check(untouched("", frame))
    told(lan, FLAGS)
    key = abi.parent_key(NET1.number)
    lan.maps["parents"][key] = abi.parent(topology.index[UPLINK] + 1000, UPLINK_MAC)
    lan.check(untouched("", IN4))


def test_s24_without_a_parent_nothing_leaves(lan: Programs) -> None:
    del lan.maps["parents"][abi.parent_key(NET1.number)]
    for flags, reason in ((FLAGS, Reason.DROP_DEVICE), (FLAGS | Flag.NETWORK_INTERNAL, Reason.DROP_INTERNAL)):
        told(lan, flags)
        lan.check(dropped("", A1, TO_LAN, reason))
        lan.check(dropped("", A1, asks(A1.mac, A1.ip, NEXT_HOP), Reason.DROP_UNKNOWN_ARP))
        lan.expect(A1, ANNOUNCED, 2, Reason.ABSORBED)
        lan.expect(A1, BROADCAST, 2, Reason.FLOODED)


def test_s15_without_icc_members_reach_the_link_and_not_each_other(lan: Programs) -> None:
    told(lan, FLAGS & ~Flag.NETWORK_ICC)
    lan.check(dropped("", A1, A1.sends(A2.ip, UDP, to=A2.mac), Reason.DROP_ICC))
    lan.check(redirected("", A1, TO_LAN, Reason.TO_OUTSIDE, sent(TO_LAN)))


def test_s24_with_vepa_members_frames_to_each_other_leave(lan: Programs) -> None:
    """And come back from a switch that reflects them."""
    told(lan, FLAGS | Flag.NETWORK_VEPA)
    lan.check(
        redirected("", A1, asks(A1.mac, A1.ip, A2.ip), Reason.ANSWERED, tells(NET1.mac, A2.ip, A1.mac, A1.ip))
    )
    frame = A1.sends(A2.ip, UDP)
    out = to(sent(frame), UPLINK_MAC)
    lan.check(redirected("", A1, frame, Reason.TO_OUTSIDE, out))
    lan.check(redirected("", None, out, Reason.DELIVERED, to(out, A2.mac)))


L3_ROWS: list[Row] = [
    redirected("to the outside, by the host's routes", A1, A1.sends(OUTSIDE, UDP), Reason.TO_OUTSIDE),
    redirected("the same, IPv6", A1, A1.sends(OUTSIDE6, UDP), Reason.TO_OUTSIDE),
    redirected("to a member", A1, A1.sends(A2.ip, UDP, to=A2.mac), Reason.DELIVERED),
    redirected("to where nothing leads", A1, A1.sends("198.18.1.9", UDP), Reason.TO_HOST),
    redirected("to the host", A1, A1.sends(HOST, UDP), Reason.TO_HOST),
    dropped("to everybody", A1, BROADCAST, Reason.DROP_MULTICAST_OFF),
    redirected(
        "asking for anybody",
        A1,
        asks(A1.mac, A1.ip, OUTSIDE),
        Reason.ANSWERED,
        tells(NET1.mac, OUTSIDE, A1.mac, A1.ip),
    ),
    redirected(
        "soliciting anybody",
        A1,
        solicits(A1.mac, A1.ip6, OUTSIDE6, A1.mac),
        Reason.ANSWERED,
        advertises(NET1.mac, OUTSIDE6, A1.mac, A1.ip6),
    ),
    untouched("from the link, asking for a member", asks(NEXT_HOP_MAC, NEXT_HOP, A1.ip)),
    untouched("from the link, soliciting a member", solicits(NEXT_HOP_MAC, NEXT_HOP6, A1.ip6, NEXT_HOP_MAC)),
    redirected(
        "from the link, to a member",
        None,
        IN4,
        Reason.DELIVERED,
        p.mac_bytes(A1.mac) + p.mac_bytes(NET1.mac) + IN4[12:],
    ),
]


@pytest.mark.parametrize("row", L3_ROWS, ids=lambda row: row.sentence)
def test_s24_in_mode_l3(lan: Programs, row: Row) -> None:
    told(lan, FLAGS | Flag.NETWORK_L3)
    lan.check(row)


def test_s24_a_limit_counts_on_the_link_too(lan: Programs, topology: Topology) -> None:
    """What a member sends there, and what it gets from there."""
    known: dict[str, Any] = {}
    for name, key in (
        ("devices", abi.device_key(topology.index[A1.name])),
        ("endpoints", abi.endpoint_key(NET1.number, A1.ip)),
    ):
        known[name] = lan.maps[name][key]
        lan.maps[name][key] = known[name]._replace(limited=3)
    for direction in (1, 2):
        lan.maps["limits"][abi.limit_key(A1.number, direction)] = abi.limit(rate=8, burst=1)
    try:
        assert lan.run(A1, TO_LAN).reasons == {"TO_OUTSIDE": 1}
        assert lan.run(A1, TO_LAN).reasons == {"DROP_BANDWIDTH": 1}
        assert lan.run(None, IN4).reasons == {"DELIVERED": 1}
        assert lan.run(None, IN4).reasons == {"DROP_BANDWIDTH": 1}
    finally:
        lan.maps["devices"][abi.device_key(topology.index[A1.name])] = known["devices"]
        lan.maps["endpoints"][abi.endpoint_key(NET1.number, A1.ip)] = known["endpoints"]
        lan.maps["limits"].delete_many(list(lan.maps["limits"]))
