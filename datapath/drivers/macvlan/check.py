# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about macvlan networks: parents, members' devices, the host's way to them, and by which they ask
for names. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.dataplane.name_owners import is_told
from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.check import device_findings, inside_findings, settings
from datapath.drivers.lan.check import parent_findings, way_findings
from datapath.drivers.macvlan.spec import MACVLAN_SPEC, host_access, parent, stand_in
from datapath.drivers.pairs.check import endpoint_sysctls
from datapath.model.checks import DOWN, GATEWAY, PAIR, PARENT, RENAMED
from datapath.model.devices import VETH
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import Network, gateway_mac
from datapath.model.observed import Stack


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about these networks, which are of this driver."""
    host = comparison.observed.host
    for network in networks:
        subject, name = f"network {network.name}", parent(network)
        for needed in {name, *comparison.devices(network)}:
            device = host.devices.get(needed)
            if needed == name and needed not in comparison.devices(network):
                yield from parent_findings(network, name, device)
            elif device is None:
                what = "its parent device" if needed == name else "its device"
                yield Finding(PARENT, subject, f"{what} {needed} is gone")
            elif not device.up:
                yield Finding(DOWN, subject, f"device {needed} is down", ("", needed))
        if host_access(network) and stand_in(network) in host.devices:
            yield from way_findings(network, host.devices[stand_in(network)], comparison)
        yield from _gateway(network, comparison)
    for network in networks:
        for endpoint in comparison.members(network):
            inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
            if inside is not None:
                subject = comparison.name(endpoint)
                yield from inside_findings(subject, endpoint, inside, comparison)
                if is_told(endpoint, network):
                    yield from _pair(subject, endpoint, inside, comparison)


def _gateway(network: Network, comparison: Comparison) -> Iterator[Finding]:
    """The device by which members ask for names, if there are any who do."""
    name, subject = MACVLAN_SPEC.gateway_device(network), f"network {network.name}"
    if not any(is_told(member, network) for member in comparison.members(network)):
        return
    device = comparison.gateway(network)
    if device is None:
        yield Finding(GATEWAY, subject, f"its gateway device {name} is gone", (network.id,))
        return
    yield from device_findings(subject, "", device, gateway_mac(network), None)
    yield from settings(subject, MACVLAN_SPEC.sysctls(network), comparison)


def _pair(subject: str, endpoint: Endpoint, inside: Stack, comparison: Comparison) -> Iterator[Finding]:
    """By which it asks. Unless its macvlan device is gone, too, and one repair makes both."""
    outer = comparison.observed.host.at(endpoint.host_ifindex)
    inner = inside.devices.get(MACVLAN_SPEC.resolver_device(endpoint))
    if outer is None or outer.kind != VETH or inner is None:
        gone = MACVLAN_SPEC.resolver_device(endpoint)
        detail = f"the container's device {gone}, by which it asks for names, is gone"
        yield Finding(PAIR, subject, detail, (endpoint.id,))
        return
    if outer.name != endpoint.host_ifname:
        detail = f"its device {endpoint.host_ifname} is called {outer.name}"
        yield Finding(RENAMED, subject, detail, ("", outer.ifindex, endpoint.host_ifname))
    else:
        yield from device_findings(subject, "", outer, "", None)
    yield from settings(subject, endpoint_sysctls(endpoint), comparison)
    yield from device_findings(subject, endpoint.sandbox_id, inner, endpoint.mac, None)
