# SPDX-License-Identifier: Apache-2.0
"""Packets without an Ethernet header: what is told apart from packets with one. All that both do alike is in the
modules with BOTH_UPLINKS."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from datapath.kernel import abi, libbpf
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK_MAC,
    Copies,
    Programs,
    Reason,
    outside_sends,
)
from tests.bpf.ipsec import Policies, policy

SYN = p.tcp(9, 8081, p.SYN)


@pytest.fixture(scope="module")
def loaded(copies: Copies) -> Iterator[Programs]:
    with copies.lent(bare=True, sample=1) as made:
        yield made


@pytest.mark.parametrize("inner", [outside_sends(HOST, SYN), outside_sends(HOST6, SYN)], ids=["IPv4", "IPv6"])
def test_s20_bytes_of_an_ip_header_are_never_an_ethertype(programs: Programs, inner: bytes) -> None:
    """The first fourteen bytes of a header from 8.0.0.0/16 or 134.221.0.0/16 end like an Ethernet header; what an
    attacker writes behind them would be another packet."""
    outer = p.ipv4("10.0.0.1", "10.0.0.2", p.udp(1, 2), total=len(inner))
    forged = outer[:12] + inner[12:]
    packet = p.ethernet(UPLINK_MAC, p.NOBODY, p.ETH_IPV4, forged)
    programs.expect(None, packet, UNSPEC, Reason.NOT_OURS)
    assert not programs.table("pending")
    # Behind an Ethernet header the very same bytes are an opening.
    programs.bare = False
    try:
        got = programs.run(None, inner[:12] + forged[12:])
        assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    finally:
        programs.bare = True


@pytest.mark.parametrize("host", [HOST, HOST6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("other", [p.ETH_ARP, 0x88CC, 0x0027, 0], ids=hex)
def test_what_the_kernel_says_it_is_counts(programs: Programs, host: p.Address, other: int) -> None:
    """A whole IP packet that is said to be another protocol's is the host's, as is one of the other family."""
    frame = outside_sends(host, SYN)
    for said in (other, p.ETH_IPV6 if p.ethertype(frame) == p.ETH_IPV4 else p.ETH_IPV4):
        programs.expect(None, frame[:12] + said.to_bytes(2, "big") + frame[14:], UNSPEC, Reason.NOT_OURS)
    programs.run(None, frame)
    assert programs.table("pending")


def test_a_drop_is_reported_as_a_frame(programs: Programs) -> None:
    """So that whoever reads the event finds the packet where it is in others."""
    programs.publish("0.0.0.0", 8081, p.TCP, filtered=7, refuse=True)
    try:
        libbpf.consume_events(programs.events_fd, lambda event: None)
        frame = outside_sends(HOST, SYN)
        programs.expect(None, frame, SHOT, Reason.DROP_DENIED)
        events: list[abi.event] = []
        libbpf.consume_events(programs.events_fd, events.append)
        [event] = events
        assert (event.reason, event.length) == (Reason.DROP_DENIED, len(frame))
        assert event.head[: event.captured] == bytes(12) + frame[12:][: event.captured - 12]
        assert event.when <= time.monotonic_ns()
    finally:
        programs.publish("0.0.0.0", 8081, p.TCP)


# ---- what is the host's after all -----------------------------------------------------------------------------------

FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
DATA = bytes(range(1, 57))


def question(six: bool) -> bytes:
    return outside_sends(HOST6 if six else HOST, p.udp(9, 8081, DATA))


@FAMILIES
def test_a_fragment_whose_connection_is_gone_is_left_as_it_came(programs: Programs, six: bool) -> None:
    """It is known to be of a container's datagram, but not any more of which: it goes on without a header."""
    first, *others = p.cut(question(six), 24, 40)
    assert programs.run(None, first).reasons == {"DELIVERED": 1}
    for name in ("pending", "conns"):
        programs.maps[name].delete_many(list(programs.maps[name]))
    for piece in others:
        programs.expect(None, piece, UNSPEC, Reason.NOT_OURS)


@FAMILIES
def test_what_a_policy_is_about_is_left_as_it_came(programs: Programs, policies: Policies, six: bool) -> None:
    """The host's stack looks at it before its own sockets do: of a connection that is there, of one that begins, and of
    a datagram in pieces."""
    frame = question(six)
    assert programs.run(None, frame).reasons == {"DELIVERED": 1}
    peer, every = (f"{OUTSIDE6}/128", "::/0") if six else (f"{OUTSIDE}/32", "0.0.0.0/0")
    policies(policy("in", peer, every))
    new = outside_sends(HOST6 if six else HOST, p.tcp(9, 8081, p.SYN))
    for one in (frame, new, *p.cut(frame, 24, 40), *reversed(p.cut(frame, 24, ident=7))):
        got = programs.run(None, one)
        assert (got.verdict, got.reasons.get("NOT_OURS")) == (UNSPEC, 1)
        assert not (text := p.difference(got.packet, one)), text
    assert len(programs.table("pending")) == 2  # that of before
