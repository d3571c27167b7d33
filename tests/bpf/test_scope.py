# SPDX-License-Identifier: Apache-2.0
"""IPv6's link-local addresses of the host: each is one on the link of its device only (RFC 4007, RFC 4291, 2.5.6)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

import pytest

from datapath.kernel import abi
from datapath.model.endpoints import linklocal_of
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A2,
    HOST6,
    NET1,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNSPEC,
    UPLINK_MAC,
    XDP_DROP,
    XDP_PASS,
    Programs,
    Reason,
    outside_sends,
)

BOTH_UPLINKS = True
OWN, BOTH, OTHERS = linklocal_of(UPLINK_MAC), IPv6Address("fe80::1"), IPv6Address("fe80::77")
BY_ANOTHER = ip_address("2001:db8:77::5")  # a client to whom another device leads
DATA = bytes(range(1, 57))


@pytest.fixture
def scoped(programs: Programs) -> Iterator[Programs]:
    """BOTH is an address of the uplink and of the first network's device, OTHERS of that device only."""
    here, there = programs.ifindex(None), programs.ifindex(NET1)
    keys = [abi.linklocal_key(address, at) for address, at in ((BOTH, here), (BOTH, there), (OTHERS, there))]
    for key in keys:
        programs.maps["linklocals"][key] = abi.address(key.ifindex)
    yield programs
    programs.maps["linklocals"].delete_many(keys)


@pytest.fixture
def second(scoped: Programs) -> Iterator[Programs]:
    """Another device, by which BY_ANOTHER is reached."""
    lines = (
        "link add second type veth peer name dnoces",
        "link set dnoces up",
        "link set second up",
        "route add 2001:db8:77::/64 dev second",
    )
    subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    yield scoped
    subprocess.run(["ip", "link", "del", "second"], check=True)


def asks(address: IPv6Address, src: p.Address = OUTSIDE6, port: int = 8081) -> bytes:
    return outside_sends(address, p.udp(9, port, DATA), src=src)


@pytest.mark.parametrize("address", [OWN, BOTH], ids=str)
def test_a_published_port_answers_at_an_address_of_the_device(scoped: Programs, address: IPv6Address) -> None:
    wanted = A2.gets(OUTSIDE6, p.udp(9, 53, DATA), hops=63)
    scoped.expect(None, asks(address), REDIRECT, Reason.DELIVERED, wanted)
    answer = A2.sends(OUTSIDE6, p.udp(53, 9, DATA))
    out = A2.leaves(address, OUTSIDE6, p.udp(8081, 9, DATA))
    scoped.expect(A2, answer, REDIRECT, Reason.TO_OUTSIDE, out)


@pytest.mark.parametrize("address", [OTHERS, NET1.linklocal, IPv6Address("fe80::dead")], ids=str)
def test_at_one_of_another_link_nobody_answers(scoped: Programs, address: IPv6Address) -> None:
    """As a whole packet, in pieces, and as an error."""
    scoped.expect(None, asks(address), UNSPEC, Reason.NOT_OURS)
    for piece in (*p.cut(asks(address), 24), *reversed(p.cut(asks(address), 24, ident=7))):
        scoped.expect(None, piece, UNSPEC, Reason.NOT_OURS)
    assert not scoped.table("pending")


def test_a_connection_goes_on_on_its_own_link_only(scoped: Programs) -> None:
    """What comes by another device to the same address is for whoever has it there."""
    assert scoped.run(None, asks(OWN)).reasons == {"DELIVERED": 1}
    key = abi.linklocal_key(OWN, scoped.ifindex(None))
    row = scoped.maps["linklocals"].pop(key)
    try:
        scoped.expect(None, asks(OWN), UNSPEC, Reason.NOT_OURS)
        quoted = p.ipv6(OWN, OUTSIDE6, p.udp(8081, 9, DATA))
        error = outside_sends(OWN, p.icmp6(1, 4, payload=quoted), src=OUTSIDE6)
        scoped.expect(None, error, UNSPEC, Reason.NOT_OURS)
        # Nor does an answer leave by a link where its source is nobody's.
        answer = A2.sends(OUTSIDE6, p.udp(53, 9, DATA))
        scoped.expect(A2, answer, SHOT, Reason.DROP_BAD_ADDR)
        quoted = p.ipv6(OUTSIDE6, A2.ip6, p.udp(9, 53, DATA))
        scoped.expect(A2, A2.sends(OUTSIDE6, p.icmp6(1, 4, payload=quoted)), SHOT, Reason.DROP_BAD_ADDR)
    finally:
        scoped.maps["linklocals"][key] = row
    assert scoped.run(A2, A2.sends(OUTSIDE6, p.udp(53, 9, DATA))).reasons == {"TO_OUTSIDE": 1}


def test_who_is_reached_by_another_device_finds_nobody_there(second: Programs) -> None:
    """The answer would come from an address that is not to leave its link. At a global one the port answers."""
    second.expect(None, asks(OWN, BY_ANOTHER), UNSPEC, Reason.NOT_OURS)
    assert second.run(None, asks(HOST6, BY_ANOTHER)).reasons == {"DELIVERED": 1}


def test_the_early_program_refuses_for_the_devices_own_only(scoped: Programs) -> None:
    key = abi.linklocal_key(IPv6Address("fe80::2"), 1)  # of the device at which a test run is
    scoped.maps["linklocals"][key] = abi.address(key.ifindex)
    scoped.publish("::", 8081, p.UDP, filtered=7, refuse=True)
    try:
        assert scoped.early(asks(key.addr)).verdict == XDP_DROP
        for address in (OWN, OTHERS, IPv6Address("fe80::dead")):
            assert scoped.early(asks(address)).verdict == XDP_PASS
    finally:
        scoped.publish("::", 8081, p.UDP)
        scoped.maps["linklocals"].pop(key)
