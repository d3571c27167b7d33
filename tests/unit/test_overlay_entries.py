# SPDX-License-Identifier: Apache-2.0
"""Where members of overlay networks are, as rows of maps."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from datapath.dataplane.convert import overlay_value, peer_value, to_abi, tunnel_value
from datapath.dataplane.overlay_entries import (
    block_entries,
    overlay_entry,
    peer_entries,
    remote_entries,
    tunnel_entry,
    vni_entry,
)
from datapath.dataplane.structs import RemoteKey, RemoteValue, VniKey, VniValue, VtepKey, VtepValue
from datapath.kernel import abi
from datapath.model.networks import Network, Subnet
from datapath.model.peers import Block, Peer, Remote

NET = Network(
    "n" * 64,
    "ov",
    7,
    driver="overlay",
    scope="global",
    subnets=(Subnet(ip_network("10.9.0.0/16")), Subnet(ip_network("fd09::/64"))),
    ipv6=True,
    vni=4097,
)
NUMBERS = {"b": 2, "c": 3}  # this host, "a", has none
PEER = Peer("b", "h2", 2, IPv4Address("192.0.2.2"), "02:00:00:00:00:02", mtu=9000)


def block(prefix: str, peer: str) -> Block:
    return Block(f"{NET.id}/{prefix}", NET.id, ip_network(prefix), peer)


def ones(bits: int) -> IPv6Address:
    return ip_network(f"::/{bits}").netmask  # type: ignore[return-value]


BLOCKS = [
    block("10.9.1.0/24", "a"),
    block("10.9.2.0/24", "b"),
    block("10.9.4.0/23", "c"),
    block("fd09::2:0/112", "b"),
]


def test_a_network_says_which_addresses_are_its_and_how_large_its_blocks_are() -> None:
    key, value = overlay_entry(NET, BLOCKS, "TRANSPORT_DIRECT", checksum=True)
    assert (key.network, value.vni, value.transport) == (7, 4097, "TRANSPORT_DIRECT")
    assert value.flags == {"OVERLAY_CHECKSUM"}
    assert (value.subnet4, value.mask4, value.block_mask4) == (
        IPv4Address("10.9.0.0"),
        ones(96 + 16),
        ones(96 + 24),
    )
    assert (value.subnet6, value.mask6, value.block_mask6) == (IPv6Address("fd09::"), ones(64), ones(112))
    assert vni_entry(NET) == (VniKey(4097), VniValue(7))


def test_of_a_family_that_a_network_has_not_nothing_is_said() -> None:
    only4 = Network("m" * 64, "four", 8, subnets=NET.subnets[:1], vni=5)
    value = overlay_entry(only4, [], "TRANSPORT_VXLAN")[1]
    assert value.subnet6 is value.mask6 is value.block_mask6 is value.block_mask4 is None
    assert value.mask4 == ones(112)


def test_blocks_of_other_hosts_have_rows_of_the_smallest_size() -> None:
    assert block_entries(NET, BLOCKS, NUMBERS) == {
        RemoteKey(7, ip_address(first)): RemoteValue(peer)
        for first, peer in (("10.9.2.0", 2), ("10.9.4.0", 3), ("10.9.5.0", 3), ("fd09::2:0", 2))
    }


def test_only_addresses_outside_of_their_hosts_blocks_have_rows_of_their_own() -> None:
    def remote(peer: str, ipv4: str, ipv6: str | None = None) -> Remote:
        six = IPv6Address(ipv6) if ipv6 else None
        return Remote("e" * 64, NET.id, peer, "02:42:00:00:00:01", ipv4=IPv4Address(ipv4), ipv6=six)

    remotes = [
        remote("b", "10.9.2.7", "fd09::2:7"),  # where it belongs
        remote("b", "10.9.5.7"),  # in another host's block
        remote("c", "10.9.77.7", "fd09::77"),  # in nobody's
        remote("a", "10.9.9.9"),  # this host's own
    ]
    assert remote_entries(NET, remotes, BLOCKS, NUMBERS) == {
        RemoteKey(7, ip_address(address)): RemoteValue(peer)
        for address, peer in (("10.9.5.7", 2), ("10.9.77.7", 3), ("fd09::77", 3))
    }


@pytest.mark.parametrize(
    ("how", "flags"),
    [({}, set()), ({"direct": True}, {"PEER_DIRECT"}), ({"wireguard": True}, {"PEER_WIREGUARD"})],
)
def test_a_host_is_known_by_its_number_and_its_address(how: dict[str, Any], flags: set[str]) -> None:
    found = peer_entries(PEER, **how)
    assert found.vtep == (VtepKey(PEER.address), VtepValue(2))
    assert (found.peer[0].number, found.peer[1].mtu, set(found.peer[1].flags)) == (2, 9000, flags)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_a_hosts_own_end_is_of_one_family(address: str) -> None:
    own = Peer("a", "h1", 1, ip_address(address), "02:00:00:00:00:01")
    place, value = tunnel_entry(own, 12, 4789, direct=True)
    assert (place, value.ifindex, value.port, set(value.flags)) == (0, 12, 4789, {"TUNNEL_DIRECT"})
    assert {value.addr4, value.addr6} == {own.address, None}


def test_rows_come_back_from_the_maps_as_they_went_in() -> None:
    for value, back in (
        (overlay_entry(NET, BLOCKS, "TRANSPORT_WIREGUARD", checksum=True)[1], overlay_value),
        (peer_entries(PEER, direct=True).peer[1], peer_value),
        (tunnel_entry(PEER, 1, 2, 3, direct=True)[1], tunnel_value),
    ):
        layout = abi.layout(type(to_abi(value)).__name__)
        assert back(layout.unpack(layout.pack(to_abi(value)))) == value
