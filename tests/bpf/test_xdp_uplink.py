# SPDX-License-Identifier: Apache-2.0
"""What dies on an uplink before it is a socket buffer, and what must not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from datapath.kernel import abi, netns
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    HOST,
    HOST6,
    NET1,
    NEXT_HOP_MAC,
    OTHER,
    OTHER6,
    OUTSIDE,
    OUTSIDE6,
    UPLINK_MAC,
    XDP_DROP,
    XDP_PASS,
    Copies,
    Programs,
    Reason,
    Topology,
    outside_sends,
)
from tests.conftest import SLOWNESS

SYN_ACK = p.SYN | p.ACK
RateKey, Rate = abi.layout("rate_key").type, abi.layout("rate").type
RATE, BURST = 1, 3  # openings a second of one source; slow enough for a test not to notice


def passes(programs: Programs, frame: bytes) -> None:
    got = programs.early(frame)
    assert (got.verdict, got.reasons) == (XDP_PASS, {})


def dies(programs: Programs, frame: bytes, reason: Any) -> None:
    got = programs.early(frame)
    assert (got.verdict, got.reasons) == (XDP_DROP, {reason.name: 1})


def rule(prefix: str, filtered: int = 1) -> Any:
    """The key of a source rule."""
    address, _, length = prefix.partition("/")
    four = "." in address
    return abi.acl_key(
        32 + int(length) + (96 if four else 0),
        filtered,
        IPv4Address(address) if four else IPv6Address(address),
    )


@pytest.fixture
def denying(programs: Programs) -> Iterator[Programs]:
    """Port 8081 is for nobody in 203.0.113.0/28 and 2001:db8:5::/48."""
    ports = dict(programs.maps["ports"].items())
    sources = {rule("203.0.113.0/28"): abi.acl(0), rule("2001:db8:5::/48"): abi.acl(0)}
    programs.maps["acls"].update_many(sources)
    for proto in (p.TCP, p.UDP):
        for address in ("0.0.0.0", "::"):
            programs.publish(address, 8081, proto, filtered=1)
    yield programs
    programs.maps["ports"].update_many(ports)
    programs.maps["acls"].delete_many(list(sources))


DENIED = {
    "TCP": outside_sends(HOST, p.tcp(9, 8081, p.SYN)),
    "TCP, not an opening": outside_sends(HOST, p.tcp(9, 8081, p.ACK, b"data")),
    "UDP": outside_sends(HOST, p.udp(9, 8081)),
    "at another address of the host's": outside_sends(OTHER, p.tcp(9, 8081, p.SYN)),
    "at the gateway's address": outside_sends(NET1.gateway, p.tcp(9, 8081, p.SYN)),
    "IPv4 options": outside_sends(HOST, p.tcp(9, 8081, p.SYN), options=b"\1" * 40),
    "a first fragment": outside_sends(HOST, p.udp(9, 8081, bytes(32)), fragment=p.MORE_FRAGMENTS),
    "padded": outside_sends(HOST, p.udp(9, 8081, b"")) + bytes(18),
    "IPv6, TCP": outside_sends(HOST6, p.tcp(9, 8081, p.SYN)),
    "IPv6, UDP": outside_sends(HOST6, p.udp(9, 8081)),
    "IPv6, at another address of the host's": outside_sends(OTHER6, p.udp(9, 8081)),
    "IPv6, behind extension headers": outside_sends(
        HOST6, p.udp(9, 8081), extensions=(p.extension(p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4)),) * 4
    ),
}
NOT_DENIED = {
    "an allowed source": outside_sends(HOST, p.tcp(9, 8081, p.SYN), src="203.0.113.16"),
    "an allowed source, IPv6": outside_sends(HOST6, p.tcp(9, 8081, p.SYN), src="2001:db8:4::1"),
    "a port of the host's own": outside_sends(HOST, p.tcp(9, 22, p.SYN)),
    "a published port without rules": outside_sends(HOST, p.tcp(9, 8082, p.SYN)),
    "the number at an address that is not the host's": outside_sends("203.0.113.99", p.tcp(9, 8081, p.SYN)),
    "the number at a neighbour's address": outside_sends("192.0.2.9", p.udp(9, 8081)),
    "the number at a foreign address, IPv6": outside_sends("2001:db8:9::1", p.tcp(9, 8081, p.SYN)),
    "the number as source port": outside_sends(HOST, p.tcp(8081, 40000, SYN_ACK)),
    "a later fragment": outside_sends(HOST, p.Transport(p.UDP, p.udp(9, 8081).data), fragment=4),
    "a later fragment, IPv6": outside_sends(
        HOST6, p.Transport(p.UDP, p.udp(9, 8081).data), extensions=(p.fragment_header(64, False),)
    ),
    "a ping with the number as identifier": outside_sends(HOST, p.echo(p.ECHO, 8081)),
    "an ICMP error": outside_sends(HOST, p.icmp(3, 3, 0, p.ipv4(HOST, OUTSIDE, p.udp(8081, 9)))),
    "SCTP": outside_sends(HOST, p.Transport(132, p.udp(9, 8081).data)),
    "ARP": p.ethernet(
        p.BROADCAST, NEXT_HOP_MAC, p.ETH_ARP, p.arp(p.REQUEST, NEXT_HOP_MAC, "203.0.113.5", p.NOBODY, HOST)
    ),
    "a tagged frame": p.ethernet(
        UPLINK_MAC, NEXT_HOP_MAC, p.ETH_VLAN, b"\0\5\x08\0" + p.ipv4(OUTSIDE, HOST, p.tcp(9, 8081, p.SYN))
    ),
    "another ethertype": p.ethernet(UPLINK_MAC, NEXT_HOP_MAC, 0x88CC, bytes(46)),
    "a lie: ihl": outside_sends(HOST, p.tcp(9, 8081, p.SYN), ihl=4),
    "a lie: length": outside_sends(HOST, p.tcp(9, 8081, p.SYN), total=999),
    "a lie: IPv6's length": outside_sends(HOST6, p.tcp(9, 8081, p.SYN), length=999),
    "IPv6, five extension headers": outside_sends(
        HOST6, p.udp(9, 8081), extensions=(p.extension(p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4)),) * 5
    ),
}


@pytest.mark.parametrize("name", DENIED)
def test_denied(denying: Programs, name: str) -> None:
    """The program behind it says the same, where there is no XDP."""
    dies(denying, DENIED[name], Reason.DROP_DENIED)
    if name != "TCP, not an opening":
        assert denying.run(None, DENIED[name]).reasons == {"DROP_DENIED": 1}


@pytest.mark.parametrize("name", NOT_DENIED)
def test_not_denied(denying: Programs, name: str) -> None:
    """It may still be refused later, by somebody who knows more."""
    passes(denying, NOT_DENIED[name])


@pytest.mark.parametrize("name", DENIED)
def test_without_rules_all_passes(programs: Programs, name: str) -> None:
    for _ in range(5):
        passes(programs, DENIED[name])


@pytest.mark.parametrize(
    "name", ["TCP", "UDP", "IPv6, TCP", "IPv6, behind extension headers", "IPv4 options"]
)
def test_what_is_cut_short_passes(denying: Programs, name: str) -> None:
    """At every length, whether the header states it or not: nothing is read beyond the end."""
    frame = DENIED[name]
    six = p.ethertype(frame) == p.ETH_IPV6
    for length in range(14, len(frame)):
        passes(denying, frame[:length])
        honest = bytearray(frame[:length])
        if six and length >= 54:
            honest[18:20] = (length - 54).to_bytes(2, "big")
        elif not six and length >= 34:
            honest[16:18] = (length - 14).to_bytes(2, "big")
        ports = len(frame) - (8 if name == "UDP" or "extension" in name else 0)
        if length < ports:
            passes(denying, bytes(honest))


def test_rules_change_at_run_time(denying: Programs) -> None:
    frame = DENIED["TCP"]
    dies(denying, frame, Reason.DROP_DENIED)
    denying.maps["acls"][rule("203.0.113.5/32")] = abi.acl(1)
    passes(denying, frame)
    denying.maps["acls"].delete_many([rule("203.0.113.5/32")])
    dies(denying, frame, Reason.DROP_DENIED)


# ---- floods -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limiting(copies: Copies) -> Iterator[Programs]:
    with copies.lent(flood_rate=RATE, flood_burst=BURST) as made:
        yield made


@pytest.fixture
def limited(topology: Topology, limiting: Programs) -> Iterator[Programs]:
    """Nobody has opened anything yet."""
    limiting.forget()
    with netns.enter(topology.host):
        yield limiting


def syn(i: int, **how: Any) -> bytes:
    return outside_sends(HOST, p.tcp(1000 + i, 8081, p.SYN), **how)


def empty(programs: Programs, **how: Any) -> None:
    """Until the bucket of OUTSIDE (or of `src`) has nothing left."""
    for i in range(BURST):
        passes(programs, syn(i, **how))
    dies(programs, syn(99, **how), Reason.DROP_FLOOD)


def test_more_openings_than_the_burst(limited: Programs) -> None:
    empty(limited)
    for i in range(round(20 / SLOWNESS)):  # within a second
        dies(limited, syn(i), Reason.DROP_FLOOD)


def test_the_bucket_fills_again(limited: Programs) -> None:
    empty(limited)
    time.sleep(1.1 / RATE)
    passes(limited, syn(7))
    dies(limited, syn(8), Reason.DROP_FLOOD)


def test_the_bucket_is_never_fuller_than_the_burst(limited: Programs) -> None:
    """Not after an hour of silence, nor after a month."""
    empty(limited)
    key = RateKey(addr=OUTSIDE)
    for quiet in (30, 59, 61, 3600, 30 * 86400):
        limited.maps["rates"][key] = Rate(refilled=max(1, time.monotonic_ns() - quiet * 10**9), tokens=0)
        for i in range(BURST):
            passes(limited, syn(i))
        dies(limited, syn(9), Reason.DROP_FLOOD)


def test_other_sources_are_not_affected(limited: Programs) -> None:
    empty(limited)
    passes(limited, syn(1, src="203.0.113.6"))
    empty(limited, src="203.0.113.7")


def test_ipv6_counts_for_a_64(limited: Programs) -> None:
    """A customer has that at least: each of its addresses is no source of its own."""
    frames = [
        outside_sends(HOST6, p.tcp(9, 8081, p.SYN), src=IPv6Address("2001:db8:5::") + (i << 40))
        for i in range(9)
    ]
    for frame in frames[:BURST]:
        passes(limited, frame)
    for frame in frames[BURST:]:
        dies(limited, frame, Reason.DROP_FLOOD)
    passes(limited, outside_sends(HOST6, p.tcp(9, 8081, p.SYN), src="2001:db8:5:1::1"))


UNLIMITED = {
    "data": outside_sends(HOST, p.tcp(1000, 8081, p.ACK | p.PSH, b"data")),
    "the end": outside_sends(HOST, p.tcp(1000, 8081, p.FIN | p.ACK)),
    "a reset": outside_sends(HOST, p.tcp(1000, 8081, p.RST)),
    "a port of the host's own": outside_sends(HOST, p.tcp(9, 22, p.SYN)),
    "the host's own UDP": outside_sends(HOST, p.udp(53, 40000)),
    "the number at a foreign address": outside_sends("203.0.113.99", p.tcp(9, 8081, p.SYN)),
    "the number at a foreign address, UDP": outside_sends("203.0.113.99", p.udp(9, 8081)),
    "a ping": outside_sends(HOST, p.echo(p.ECHO, 7)),
}


@pytest.mark.parametrize("name", UNLIMITED)
def test_not_limited(limited: Programs, name: str) -> None:
    empty(limited)
    for _ in range(5):
        passes(limited, UNLIMITED[name])


@pytest.mark.parametrize("name", UNLIMITED)
def test_takes_no_token(limited: Programs, name: str) -> None:
    """Somebody who goes through this host to others with a published number may still open here."""
    for _ in range(50):
        passes(limited, UNLIMITED[name])
    empty(limited)


@pytest.mark.parametrize("answered", [False, True])
def test_udp_of_a_known_connection_is_not_limited(limited: Programs, answered: bool) -> None:
    """A log's sender may never get an answer; it opens once."""
    frame = outside_sends(HOST, p.udp(9, 8081))
    passes(limited, frame)
    assert limited.run(None, frame).reasons == {"DELIVERED": 1}
    if answered:
        limited.run(A2, A2.sends(OUTSIDE, p.udp(53, 9)))
    assert len(limited.table("conns" if answered else "pending")) == 2
    key = RateKey(addr=OUTSIDE)
    bucket = limited.maps["rates"][key]
    for _ in range(50):
        passes(limited, frame)
    assert limited.maps["rates"][key] == bucket
    limited.maps["rates"][key] = Rate(refilled=time.monotonic_ns(), tokens=0)
    dies(limited, outside_sends(HOST, p.udp(99, 8081)), Reason.DROP_FLOOD)
    passes(limited, frame)


def test_a_masqueraded_answer_is_not_limited(limited: Programs) -> None:
    limited.run(A1, A1.sends(OUTSIDE, p.udp(20100, 53)))
    for _ in range(20):
        passes(limited, outside_sends(HOST, p.udp(53, 20100)))


def test_a_denied_source_takes_no_token(limited: Programs) -> None:
    limited.maps["acls"][rule("203.0.113.0/28")] = abi.acl(0)
    limited.publish("0.0.0.0", 8081, p.TCP, filtered=1)
    for i in range(20):
        dies(limited, syn(i), Reason.DROP_DENIED)
    limited.maps["acls"].delete_many([rule("203.0.113.0/28")])
    limited.publish("0.0.0.0", 8081, p.TCP)
    empty(limited)


def test_both_families_have_buckets_of_their_own(limited: Programs) -> None:
    empty(limited)
    passes(limited, outside_sends(HOST6, p.tcp(9, 8081, p.SYN), src=OUTSIDE6))
