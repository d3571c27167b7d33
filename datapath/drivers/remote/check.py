# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about plugins: whether they answer, and what is left of what they have given. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.check import device_findings, missing_finding
from datapath.drivers.inside.driver import addresses
from datapath.drivers.remote import words
from datapath.model.checks import ADDRESS, PLUGIN, ROUTE
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import Network
from datapath.model.observed import Stack


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about these networks, and about those of other drivers whose addresses a plugin gives out."""
    silent = {key: why for key, why in comparison.observed.plugins.items() if why}
    for network in comparison.state.networks.values():
        keys = [(network.driver, words.NETWORK)] if network.plugin else []
        keys += [(network.ipam_driver, words.IPAM)] if network.leased else []
        for why in dict.fromkeys(silent[key] for key in keys if key in silent):
            yield Finding(PLUGIN, f"network {network.name}", why)
    for network in networks:
        for endpoint in comparison.members(network):
            inside = comparison.observed.sandboxes.get(endpoint.sandbox_id)
            if inside is not None and endpoint.joined is not None and endpoint.joined.source:
                yield from _device(comparison, endpoint, inside)


def _device(comparison: Comparison, endpoint: Endpoint, inside: Stack) -> Iterator[Finding]:
    subject, inner = comparison.name(endpoint), inside.devices.get(endpoint.ifname)
    if inner is None:
        yield missing_finding(subject, endpoint, inside.devices.values())
        return
    yield from device_findings(subject, endpoint.sandbox_id, inner, endpoint.mac, None)
    for address in sorted(set(addresses(endpoint)) - inside.addresses.get(inner.name, frozenset()), key=str):
        detail = f"the container's device {inner.name} has lost the address {address}"
        yield Finding(ADDRESS, subject, detail, (endpoint.sandbox_id, inner.name, (address,)))
    for version in endpoint.egress_families:
        hop = endpoint.joined.gateway(version) if endpoint.joined else None
        if hop is not None and (inner.name, hop) not in inside.defaults:
            detail = f"the container has lost its IPv{version} default route"
            yield Finding(ROUTE, subject, detail, (endpoint.id,))
