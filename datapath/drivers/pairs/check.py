# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about devices: each network's gateway device, and each member's pair. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.check import device_findings, inside_findings, settings
from datapath.drivers.pairs.spec import PairSpec
from datapath.model.checks import ADDRESS, FOREIGN_DEVICE, GATEWAY, PAIR, RENAMED
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import Network, gateway_mac


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """Of all devices of these networks."""
    for network in networks:
        yield from _gateway(network, comparison)
    for network in networks:
        for endpoint in comparison.members(network):
            yield from _pair(endpoint, comparison)


def endpoint_sysctls(endpoint: Endpoint) -> dict[str, str]:
    """Settings of the host end of a member's pair that have to be so: it speaks no IPv6 of its own."""
    return {f"net/ipv6/conf/{endpoint.host_ifname}/disable_ipv6": "1"}


def _gateway(network: Network, comparison: Comparison) -> Iterator[Finding]:
    subject, observed, spec = f"network {network.name}", comparison.observed, spec_of(network)
    device = observed.host.devices.get(network.device)
    if device is None:
        yield Finding(GATEWAY, subject, f"its gateway device {network.device} is gone", (network.id,))
        return
    if isinstance(spec, PairSpec) and device.kind != spec.gateway_kind:
        detail = f"{device.name} is another's device ({device.kind or 'hardware'})"
        yield Finding(FOREIGN_DEVICE, subject, detail)
        return
    gateways = [s for s in network.subnets if s.gateway and not traits(network).lan]
    addresses = frozenset(ip_interface((s.gateway, s.prefix.prefixlen)) for s in gateways if s.gateway)
    yield from device_findings(subject, "", device, gateway_mac(network), comparison.mtu(network))
    for address in sorted(addresses - observed.host.addresses.get(device.name, frozenset()), key=str):
        detail = f"its gateway device {device.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, ("", device.name, (address,)))
    yield from settings(subject, spec.sysctls(network), comparison)


def _pair(endpoint: Endpoint, comparison: Comparison) -> Iterator[Finding]:
    subject, host = comparison.name(endpoint), comparison.observed.host
    network = comparison.network(endpoint)
    outer = host.at(endpoint.host_ifindex)
    if outer is None or outer.kind != traits(network).pair:
        yield Finding(PAIR, subject, f"its device {endpoint.host_ifname} is gone", (endpoint.id,))
        return
    if outer.name != endpoint.host_ifname:
        detail = f"its device {endpoint.host_ifname} is called {outer.name}"
        yield Finding(RENAMED, subject, detail, ("", outer.ifindex, endpoint.host_ifname))
    else:
        yield from device_findings(subject, "", outer, "", comparison.mtu(network))
    yield from settings(subject, endpoint_sysctls(endpoint), comparison)
    inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
    if inside is not None:
        yield from inside_findings(subject, endpoint, inside, comparison)
