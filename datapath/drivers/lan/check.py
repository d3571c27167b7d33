# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about parents of networks, and the host's way to their members. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.model.checks import HOST_ROUTE, PARENT
from datapath.model.findings import Finding
from datapath.model.networks import Network
from datapath.model.observed import Device


def parent_findings(network: Network, name: str, device: Device | None) -> Iterator[Finding]:
    """Of the device that members stand on, and that has this name."""
    if device is None:
        yield Finding(PARENT, f"network {network.name}", f"its parent device {name} is gone")
    elif not device.up:
        yield Finding(PARENT, f"network {network.name}", f"its parent device {name} is down")


def way_findings(network: Network, device: Device, comparison: Comparison) -> Iterator[Finding]:
    """The host's routes to the members, which lead over this device."""
    there = {one.prefix for one in comparison.observed.network.routes if one.device == device.ifindex}
    for endpoint in comparison.members(network):
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address and not any(
                address.ip in prefix for prefix in there if prefix.version == address.version
            ):
                detail = f"the host has no route to {address.ip} by {device.name}"
                yield Finding(HOST_ROUTE, comparison.name(endpoint), detail, (endpoint.id,))
