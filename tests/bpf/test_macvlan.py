# SPDX-License-Identifier: Apache-2.0
"""Members whose frames the kernel hands over (macvlan): by their pair they ask for names and nothing else, and what one
has for another is decided at the parent's egress."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

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
    OUTSIDE,
    UPLINK_MAC,
    Copies,
    Flag,
    Programs,
    Reason,
    Row,
    Topology,
    dropped,
    redirected,
    untouched,
)
from tests.bpf.test_lan import (
    ALL,
    RESOLVER,
    advertises,
    asks,
    at_the_parent,
    on_its_link,
    solicits,
    tells,
    to,
    told,
)

FLAGS = NET1.flags & ~(Flag.NETWORK_MASQUERADE | Flag.NETWORK_ICC) | Flag.NETWORK_LAN | Flag.NETWORK_QUESTIONS
UDP, TCP = p.udp(9, 53, b"data"), p.tcp(9, 80, p.SYN)


@pytest.fixture(scope="module")
def loaded(copies: Copies, topology: Topology) -> Iterator[Programs]:
    with at_the_parent(copies, topology, "to_parent") as made:
        yield made


@pytest.fixture
def macvlan(programs: Programs, topology: Topology) -> Programs:
    """A1 may reach a2's UDP port 53, by a link."""
    on_its_link(programs, topology, FLAGS)
    for client, server in ((A1.ip, A2.ip), (A1.ip6, A2.ip6)):
        key = abi.link_key(client, server, 53, p.UDP)
        programs.maps["links"][key] = abi.link(A1.number, A2.number)
    return programs


# ---- by the pair ---------------------------------------------------------------------------------------------------

BY_THE_PAIR = [
    redirected(
        "asking for the resolver",
        A1,
        asks(A1.mac, A1.ip, RESOLVER),
        Reason.ANSWERED,
        tells(NET1.mac, RESOLVER, A1.mac, A1.ip),
    ),
    dropped("asking for a member", A1, asks(A1.mac, A1.ip, A2.ip), Reason.DROP_UNKNOWN_ARP),
    dropped("asking for the host", A1, asks(A1.mac, A1.ip, HOST), Reason.DROP_UNKNOWN_ARP),
    dropped("asking for a machine on the link", A1, asks(A1.mac, A1.ip, NEXT_HOP), Reason.DROP_UNKNOWN_ARP),
    dropped(
        "soliciting a member", A1, solicits(A1.mac, A1.ip6, A2.ip6, A1.mac), Reason.DROP_UNKNOWN_ARP
    ),
    dropped("to a member", A1, A1.sends(A2.ip, UDP, to=A2.mac), Reason.DROP_ISOLATED),
    dropped("to a member, by way of the gateway", A1, A1.sends(A2.ip, UDP), Reason.DROP_ISOLATED),
    dropped("to the host", A1, A1.sends(HOST, TCP), Reason.DROP_ISOLATED),
    dropped("to the host, IPv6", A1, A1.sends(HOST6, TCP), Reason.DROP_ISOLATED),
    dropped("to the gateway's link-local address", A1, A1.sends(NET1.linklocal, TCP), Reason.DROP_ISOLATED),
    dropped("to the outside", A1, A1.sends(OUTSIDE, TCP), Reason.DROP_ISOLATED),
    dropped(
        "to everybody", A1, p.ethernet(ALL, A1.mac, p.ETH_IPV4, p.ipv4(A1.ip, IPv4Address("255.255.255.255"), UDP)),
        Reason.DROP_MULTICAST_OFF,
    ),
    dropped(
        "in another's name",
        A1,
        p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(A2.ip, RESOLVER, UDP)),
        Reason.DROP_SPOOFED_ADDR,
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", BY_THE_PAIR, ids=lambda row: row.sentence)
@pytest.mark.parametrize("icc", [0, Flag.NETWORK_ICC], ids=["icc off", "icc on"])
def test_s24_by_its_pair_a_member_reaches_nothing_but_the_resolver(
    macvlan: Programs, row: Row, icc: int
) -> None:
    told(macvlan, FLAGS | icc)
    macvlan.check(row)


# ---- at the parent's egress ----------------------------------------------------------------------------------------

TO_A2, TO_A2_6 = A1.sends(A2.ip, UDP, to=A2.mac), A1.sends(A2.ip6, UDP, to=A2.mac)
AT_THE_PARENT = [
    redirected("what a link admits", None, TO_A2, Reason.DELIVERED, TO_A2),
    redirected("what a link admits, IPv6", None, TO_A2_6, Reason.DELIVERED, TO_A2_6),
    redirected(
        "what a link admits, by way of a router", None, to(TO_A2, UPLINK_MAC), Reason.DELIVERED, TO_A2
    ),
    redirected(
        "the answer",
        None,
        A2.sends(A1.ip, p.udp(53, 9), to=A1.mac),
        Reason.DELIVERED,
        A2.sends(A1.ip, p.udp(53, 9), to=A1.mac),
    ),
    dropped("another port", None, A1.sends(A2.ip, TCP, to=A2.mac), Reason.DROP_ICC),
    dropped("the other way", None, A2.sends(A1.ip, UDP, to=A1.mac), Reason.DROP_ICC),
    redirected(
        "asking for a member",
        None,
        asks(A1.mac, A1.ip, A2.ip),
        Reason.ANSWERED,
        tells(A2.mac, A2.ip, A1.mac, A1.ip),
    ),
    redirected(
        "soliciting a member",
        None,
        solicits(A1.mac, A1.ip6, A2.ip6, A1.mac),
        Reason.ANSWERED,
        advertises(A2.mac, A2.ip6, A1.mac, A1.ip6),
    ),
    untouched("announcing its address", asks(A1.mac, A1.ip, A1.ip)),
    untouched("detecting duplicates of its address", solicits(A1.mac, "::", A1.ip6, None)),
    untouched("asking for a machine on the link", asks(A1.mac, A1.ip, NEXT_HOP)),
    untouched("to the outside", A1.sends(OUTSIDE, TCP)),
    untouched("to everybody", to(TO_A2, ALL)),
    untouched("in another's name", A1.sends(A2.ip, UDP, to=A2.mac)[:6] + p.mac_bytes(A2.mac) + TO_A2[12:]),
    untouched(
        "from the host to a member",
        p.ethernet(A2.mac, UPLINK_MAC, p.ETH_IPV4, p.ipv4(HOST, A2.ip, UDP)),
    ),
    untouched("another protocol", p.ethernet(A2.mac, A1.mac, 0x88B5, bytes(50))),
]


@pytest.mark.parametrize("row", AT_THE_PARENT, ids=lambda row: row.sentence)
def test_s15_what_one_member_has_for_another_at_the_parents_egress(macvlan: Programs, row: Row) -> None:
    macvlan.check(row)


def test_s15_nothing_is_decided_where_all_may_talk_or_frames_are_not_the_kernels(macvlan: Programs) -> None:
    denied = A1.sends(A2.ip, TCP, to=A2.mac)
    for flags in (FLAGS | Flag.NETWORK_ICC, FLAGS & ~Flag.NETWORK_QUESTIONS, 0):
        told(macvlan, flags)
        macvlan.check(untouched("", denied))
