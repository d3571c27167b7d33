# SPDX-License-Identifier: Apache-2.0
"""`reconcile`, the part about devices: names, addresses, routes and settings. A pair that is gone is the engine's."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.drivers import registry
from datapath.drivers.base import Repair, Repairing
from datapath.kernel import sysctl
from datapath.kernel.links import Links
from datapath.model.checks import ADDRESS, DOWN, MAC, MTU, RENAMED, ROUTE, SYSCTL
from datapath.model.findings import Check, Finding


def _netns(work: Repairing, sandbox_id: str) -> str | None:
    """The path of the namespace that a device is in; None stands for the host's."""
    return work.path(sandbox_id) if sandbox_id else None


def _rename(work: Repairing, finding: Finding) -> None:
    sandbox, ifindex, name = finding.about
    with Links(_netns(work, sandbox)) as links:
        links.rename(ifindex, name)


def _align(**wanted: str) -> Repair:
    """One property of a device: `mac`, `mtu` or `addresses`, from the finding; it is set up in any case."""

    def repair(work: Repairing, finding: Finding) -> None:
        sandbox, name, *value = finding.about
        with Links(_netns(work, sandbox)) as links:
            links.align(name, **dict(zip(wanted, value, strict=True)))

    return repair


def _route(work: Repairing, finding: Finding) -> None:
    endpoint = work.state.endpoints[finding.about[0]]
    network, path = work.state.networks[endpoint.network_id], work.path(endpoint.sandbox_id)
    if path is not None:
        registry.find(network, work.context).set_routes(network, endpoint, path)


def _sysctl(work: Repairing, finding: Finding) -> None:
    sysctl.write(*finding.about)


REPAIRS: Mapping[Check, Repair] = {
    RENAMED: _rename,
    DOWN: _align(),
    MAC: _align(mac=""),
    MTU: _align(mtu=""),
    ADDRESS: _align(addresses=""),
    ROUTE: _route,
    SYSCTL: _sysctl,
}
