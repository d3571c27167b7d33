# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about macvlan networks: parents, members' devices, the host's way to them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.check import inside_findings
from datapath.drivers.lan.check import parent_findings, way_findings
from datapath.drivers.macvlan.spec import host_access, parent, stand_in
from datapath.model.checks import DOWN, PARENT
from datapath.model.findings import Finding
from datapath.model.networks import Network


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
    for network in networks:
        for endpoint in comparison.members(network):
            inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
            if inside is not None:
                yield from inside_findings(comparison.name(endpoint), endpoint, inside, comparison)
