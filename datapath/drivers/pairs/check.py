# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about devices: each network's gateway device, and each member's pair. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from datapath.drivers.comparison import Comparison
from datapath.drivers.pairs.spec import PairSpec
from datapath.model.checks import (
    ADDRESS,
    DOWN,
    FOREIGN_DEVICE,
    GATEWAY,
    MAC,
    MTU,
    PAIR,
    RENAMED,
    ROUTE,
    SYSCTL,
)
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import Network, gateway_mac
from datapath.model.observed import Device, Stack


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
    addresses = frozenset(ip_interface((s.gateway, s.prefix.prefixlen)) for s in network.subnets if s.gateway)
    yield from _device(subject, "", device, gateway_mac(network), comparison.mtu(network))
    for address in sorted(addresses - observed.host.addresses.get(device.name, frozenset()), key=str):
        detail = f"its gateway device {device.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, ("", device.name, (address,)))
    yield from _settings(subject, spec.sysctls(network), comparison)


def _settings(subject: str, wanted: dict[str, str], comparison: Comparison) -> Iterator[Finding]:
    actual = comparison.observed.sysctls
    for path, value in wanted.items():
        if actual.get(path, value) != value:
            detail = f"{path.replace('/', '.')} is {actual[path]}, not {value}"
            yield Finding(SYSCTL, subject, detail, (path, value))


def _device(subject: str, sandbox: str, device: Device, mac: str, mtu: int | None) -> Iterator[Finding]:
    where = (sandbox, device.name)
    if not device.up:
        yield Finding(DOWN, subject, f"device {device.name} is down", where)
    if mac and device.mac != mac:
        detail = f"device {device.name} has the MAC address {device.mac}, not {mac}"
        yield Finding(MAC, subject, detail, (*where, mac))
    if mtu and device.mtu != mtu:
        detail = f"device {device.name} has the MTU {device.mtu}, not {mtu}"
        yield Finding(MTU, subject, detail, (*where, mtu))


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
        yield from _device(subject, "", outer, "", comparison.mtu(network))
    yield from _settings(subject, endpoint_sysctls(endpoint), comparison)
    inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
    if inside is not None:
        yield from _inner(subject, endpoint, inside, comparison)


def _inner(subject: str, endpoint: Endpoint, inside: Stack, comparison: Comparison) -> Iterator[Finding]:
    """The container's end. Who moves and addresses a device himself answers for these too."""
    network = comparison.network(endpoint)
    inner, kind = inside.devices.get(endpoint.ifname), traits(network).pair
    if endpoint.handed_over:
        for device in inside.devices.values():
            mtu = comparison.mtu(network)
            if device.mac == endpoint.mac and mtu and device.mtu != mtu:
                detail = f"device {device.name} has the MTU {device.mtu}, not {mtu}"
                yield Finding(MTU, subject, detail, (endpoint.sandbox_id, device.name, mtu))
        return
    if inner is None:
        same = (d for d in inside.devices.values() if d.mac == endpoint.mac and d.kind == kind)
        other = next(same, None)
        if other is None:
            detail = f"the container's end {endpoint.ifname} is gone"
            yield Finding(PAIR, subject, detail, (endpoint.id,))
        else:
            detail = f"the container's device {endpoint.ifname} is called {other.name}"
            yield Finding(RENAMED, subject, detail, (endpoint.sandbox_id, other.ifindex, endpoint.ifname))
        return
    yield from _device(subject, endpoint.sandbox_id, inner, endpoint.mac, comparison.mtu(network))
    wanted = {address for address in (endpoint.ipv4, endpoint.ipv6, *endpoint.link_local) if address}
    for address in sorted(wanted - inside.addresses.get(inner.name, frozenset()), key=str):
        detail = f"the container's device {inner.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, (endpoint.sandbox_id, inner.name, (address,)))
    for version, wanted_here in ((4, endpoint.gateway4), (6, endpoint.gateway6)):
        subnet = network.subnet4 if version == 4 else network.subnet6
        here = (inner.name, subnet.gateway) in inside.defaults if subnet and subnet.gateway else False
        if wanted_here and not here:
            detail = f"the container has lost its IPv{version} default route"
            yield Finding(ROUTE, subject, detail, (endpoint.id,))
