# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part that ipvlan networks have beside other networks of the packet programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.drivers.lan.check import parent_findings, way_findings
from datapath.model.checks import DOWN
from datapath.model.findings import Finding
from datapath.model.networks import Network


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """Parents, and the host's way to members. Devices, programs and rows are checked with those of other networks."""
    host = comparison.observed.host
    for network in networks:
        if not network.parent:
            continue
        device = host.devices.get(network.parent)
        if network.made and device is not None and not device.up:
            yield Finding(DOWN, f"network {network.name}", f"device {device.name} is down", ("", device.name))
        else:
            yield from parent_findings(network, network.parent, device)
        gateway = comparison.gateway(network)
        if gateway is not None:
            yield from way_findings(network, gateway, comparison)
