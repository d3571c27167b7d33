# SPDX-License-Identifier: Apache-2.0
"""Addresses at which only the other members of a network find an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network

from datapath.errors import ConfigError, ExistsError, quoted
from datapath.model.endpoints import Endpoint, linklocal_of
from datapath.model.networks import Network, gateway_mac
from datapath.model.parsing import Address, parse_address
from datapath.model.state import State
from datapath.plan.holders import format_holder

_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/64"))


def link_local_addresses(
    given: Sequence[str], mac: str, network: Network, members: Sequence[Endpoint], state: State
) -> Iterator[IPv4Interface | IPv6Interface]:
    """--link-local-ip: addresses at which only the other members find it. ConfigError, ExistsError."""
    taken = {address: member for member in members for address in _addresses(member)}
    own: set[Address] = set() if network.plugin else {linklocal_of(gateway_mac(network))}
    if linklocal_of(mac) in taken:
        holder = format_holder(taken[linklocal_of(mac)], state)
        raise ExistsError(f"mac address {mac} is not possible: its link-local address belongs to {holder}")
    for text in given:
        address = parse_address(text, "link-local IP address")
        prefix = next((prefix for prefix in _LINK_LOCAL if address in prefix), None)
        if prefix is None or address in (prefix.network_address, prefix.broadcast_address):
            there = " or ".join(map(str, _LINK_LOCAL))
            raise ConfigError(f"invalid link-local IP address: {quoted(text)} is not of {there}")
        if (network.subnet4 if address.version == 4 else network.subnet6) is None:
            raise ConfigError(
                f"network {network.name} has no IPv{address.version}: {address} is not possible there"
            )
        if address in taken:
            raise ExistsError(
                f"Address already in use: {address} belongs to {format_holder(taken[address], state)}"
            )
        if address in own or address == linklocal_of(mac):
            raise ExistsError(
                f"Address already in use: {address} is given twice, or the gateway's or the device's own"
            )
        own.add(address)
        yield ip_interface((address.packed, prefix.prefixlen))


def _addresses(member: Endpoint) -> Iterator[Address]:
    """All that a member has."""
    yield member.linklocal
    for interface in (member.ipv4, member.ipv6, *member.link_local):
        if interface is not None:
            yield interface.ip
