# SPDX-License-Identifier: Apache-2.0
"""An endpoint's device in its sandbox, whatever it is joined to on the host."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import cast

from datapath.drivers.base import Driver, JoinInfo, Repair
from datapath.kernel import observe
from datapath.model.drivers import spec_of
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check
from datapath.model.networks import OPT_ENDPOINT_IFNAME, Network
from datapath.model.parsing import Address, Interface


class InsideDriver(Driver):
    """Networks whose members have a device each in their sandbox, with addresses and default routes there."""

    def join(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint | None:
        links = self.context.links
        links.move(waiting_name(endpoint), sandbox, endpoint.ifname)
        links.configure(
            sandbox,
            endpoint.ifname,
            addresses(endpoint),
            gateway4=cast(IPv4Address | None, next_hop(network, endpoint, 4)),
            gateway6=cast(IPv6Address | None, next_hop(network, endpoint, 6)),
            ipv6=network.ipv6,
            sysctls=endpoint.sysctls,
        )
        return None

    def join_info(self, network: Network, endpoint: Endpoint, mtu: int) -> JoinInfo:
        waiting = waiting_name(endpoint)
        offered = endpoint.handed_over and not network.internal  # its owner chooses which to take
        return JoinInfo(
            source=waiting if self.context.links.index(waiting) is not None else "",
            ifname=endpoint.ifname,
            mac=endpoint.mac,
            addresses=tuple(addresses(endpoint)),
            gateway4=gateway(network, 4) if offered else next_hop(network, endpoint, 4),
            gateway6=gateway(network, 6) if offered else next_hop(network, endpoint, 6),
            mtu=mtu,
            sysctls=endpoint.sysctls,
            prefix="" if OPT_ENDPOINT_IFNAME in endpoint.driver_options else network.iface_prefix,
        )

    def set_routes(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        links = self.context.links
        for version in (4, 6):
            address = next_hop(network, endpoint, version)
            if address is not None:
                links.set_gateway(sandbox, endpoint.ifname, address)
            else:
                links.remove_gateway(sandbox, endpoint.ifname, version)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.inside import repair

        return repair.REPAIRS


def names_inside(endpoint: Endpoint, sandbox: str) -> tuple[str, ...]:
    """What the endpoint's device is called in the sandbox: one that was handed over as its owner has called it."""
    return observe.names_by_mac(sandbox, endpoint.mac) if endpoint.handed_over else (endpoint.ifname,)


def waiting_name(endpoint: Endpoint) -> str:
    """What the sandbox's device is called on the host, until it is in there."""
    return f"{endpoint.host_ifname}p"


def addresses(endpoint: Endpoint) -> list[Interface]:
    """Those of the endpoint, with prefix length."""
    return [address for address in (endpoint.ipv4, endpoint.ipv6, *endpoint.link_local) if address]


def gateway(network: Network, version: int) -> Address | None:
    """Where default routes of that IP version lead on the network; None: it has no gateway."""
    return spec_of(network).next_hop(network, version)


def next_hop(network: Network, endpoint: Endpoint, version: int) -> Address | None:
    """Where the sandbox's default route of that IP version leads by way of this endpoint; None: it has none there."""
    routed = version in endpoint.egress_families and not network.beside
    return gateway(network, version) if routed else None
