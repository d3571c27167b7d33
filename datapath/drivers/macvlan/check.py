# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about macvlan networks: parents, members' devices, the host's way to them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.check import inside_findings
from datapath.drivers.inside.driver import addresses
from datapath.drivers.macvlan.spec import host_access, parent, stand_in
from datapath.model.checks import DOWN, HOST_ROUTE, PARENT
from datapath.model.findings import Finding
from datapath.model.networks import Network


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about these networks, which are of this driver."""
    host = comparison.observed.host
    for network in networks:
        subject, name = f"network {network.name}", parent(network)
        for needed in {name, *comparison.devices(network)}:
            device = host.devices.get(needed)
            what = "its parent device" if needed == name else "its device"
            if device is None:
                yield Finding(PARENT, subject, f"{what} {needed} is gone")
            elif not device.up and needed in comparison.devices(network):
                yield Finding(DOWN, subject, f"device {needed} is down", ("", needed))
            elif not device.up:
                yield Finding(PARENT, subject, f"{what} {needed} is down")
        if host_access(network) and stand_in(network) in host.devices:
            yield from _ways(network, comparison)
    for network in networks:
        for endpoint in comparison.members(network):
            inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
            if inside is not None:
                yield from inside_findings(comparison.name(endpoint), endpoint, inside, comparison)


def _ways(network: Network, comparison: Comparison) -> Iterator[Finding]:
    """The host's routes to the members."""
    observed = comparison.observed
    index = observed.host.devices[stand_in(network)].ifindex
    there = {one.prefix for one in observed.network.routes if one.device == index}
    for endpoint in comparison.members(network):
        for address in addresses(endpoint):
            if not any(address.ip in prefix for prefix in there if prefix.version == address.version):
                detail = f"the host has no route to {address.ip} by {stand_in(network)}"
                yield Finding(HOST_ROUTE, comparison.name(endpoint), detail, (endpoint.id,))
