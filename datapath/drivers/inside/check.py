# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about each member's device in its sandbox. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from datapath.drivers.comparison import Comparison
from datapath.model.checks import ADDRESS, DOWN, MAC, MTU, PAIR, RENAMED, ROUTE, SYSCTL
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.observed import Device, Stack


def missing_finding(subject: str, endpoint: Endpoint, devices: Iterable[Device]) -> Finding:
    """No device in the sandbox has the name of the endpoint's: one of these with its MAC address was renamed, or it is
    gone."""
    other = next((device for device in devices if device.mac == endpoint.mac), None)
    if other is None:
        return Finding(PAIR, subject, f"the container's end {endpoint.ifname} is gone", (endpoint.id,))
    detail = f"the container's device {endpoint.ifname} is called {other.name}"
    return Finding(RENAMED, subject, detail, (endpoint.sandbox_id, other.ifindex, endpoint.ifname))


def inside_findings(
    subject: str, endpoint: Endpoint, inside: Stack, comparison: Comparison
) -> Iterator[Finding]:
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
        yield missing_finding(subject, endpoint, (d for d in inside.devices.values() if d.kind == kind))
        return
    yield from device_findings(subject, endpoint.sandbox_id, inner, endpoint.mac, comparison.mtu(network))
    wanted = {address for address in (endpoint.ipv4, endpoint.ipv6, *endpoint.link_local) if address}
    for address in sorted(wanted - inside.addresses.get(inner.name, frozenset()), key=str):
        detail = f"the container's device {inner.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, (endpoint.sandbox_id, inner.name, (address,)))
    for version, wanted_here in ((4, endpoint.gateway4), (6, endpoint.gateway6)):
        hop = spec_of(network).next_hop(network, version)
        here = (inner.name, hop) in inside.defaults if hop else False
        if wanted_here and not network.beside and not here:
            detail = f"the container has lost its IPv{version} default route"
            yield Finding(ROUTE, subject, detail, (endpoint.id,))


def device_findings(
    subject: str, sandbox: str, device: Device, mac: str, mtu: int | None
) -> Iterator[Finding]:
    where = (sandbox, device.name)
    if not device.up:
        yield Finding(DOWN, subject, f"device {device.name} is down", where)
    if mac and device.mac != mac:
        detail = f"device {device.name} has the MAC address {device.mac}, not {mac}"
        yield Finding(MAC, subject, detail, (*where, mac))
    if mtu and device.mtu != mtu:
        detail = f"device {device.name} has the MTU {device.mtu}, not {mtu}"
        yield Finding(MTU, subject, detail, (*where, mtu))


def settings(subject: str, wanted: dict[str, str], comparison: Comparison) -> Iterator[Finding]:
    actual = comparison.observed.sysctls
    for path, value in wanted.items():
        if actual.get(path, value) != value:
            detail = f"{path.replace('/', '.')} is {actual[path]}, not {value}"
            yield Finding(SYSCTL, subject, detail, (path, value))
