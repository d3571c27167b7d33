# SPDX-License-Identifier: Apache-2.0
"""`doctor`: the desired state, compared with what was observed. Pure: the caller has observed the host.

The engine answers for rows and for what belongs to no driver; each driver answers for its networks, each owner for its
containers.
"""

from __future__ import annotations

from collections.abc import Iterator

from datapath.drivers import registry
from datapath.drivers.comparison import Comparison
from datapath.model.checks import DEAD, DRIVER, RESERVED, UNFINISHED
from datapath.model.drivers import UNKNOWN, spec_of
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.observed import Observed
from datapath.model.rows import Phase, short
from datapath.model.state import State
from datapath.plan.nat import reserved_ports
from datapath.plan.ports import parse_reserved, reserved_text


def compare(state: State, observed: Observed) -> list[Finding]:
    """Every difference from the desired state, but for what owners say; causes before what follows from them."""
    comparison = Comparison(state, observed)
    findings = [*_rows(state), *_dead(comparison)]
    networks = registry.by_spec(comparison.networks)
    for spec in registry.with_endpoints():
        findings += registry.class_of(spec).check(comparison, networks.get(spec, []))
    return [*findings, *_reserved(state, observed)]


def _rows(state: State) -> Iterator[Finding]:
    for row in state.unfinished:
        name = getattr(row, "name", "") or short(row.id)
        if isinstance(row, Endpoint) and row.phase != Phase.CHANGING:
            name = short(row.id)
        yield Finding(UNFINISHED, f"{type(row).__name__.lower()} {name}", f'its row says "{row.phase}"')
    for network in state.networks.values():
        if spec_of(network) is UNKNOWN:
            yield Finding(DRIVER, f"network {network.name}", f"nothing offers its driver {network.driver}")


def _dead(comparison: Comparison) -> Iterator[Finding]:
    """Endpoints of other owners whose sandbox has gone, and their device with it."""
    for endpoint in comparison.unsettled:
        there = endpoint.phase == Phase.READY and endpoint.host_ifindex and comparison.foreign(endpoint)
        if there and comparison.observed.host.at(endpoint.host_ifindex) is None:
            detail = f"its device {endpoint.host_ifname} is gone, and its sandbox with it"
            yield Finding(DEAD, comparison.name(endpoint), detail, (endpoint.id,))


def _reserved(state: State, observed: Observed) -> Iterator[Finding]:
    """Ports that the kernel must not choose for sockets of the host: published ones, and those of masquerading."""
    ours = reserved_ports(state, observed.network.ephemeral)
    if not ours and observed.reserved_before is None:
        return
    wanted = parse_reserved(observed.reserved_before or "") | ours
    lost = wanted - parse_reserved(observed.network.reserved)
    if observed.reserved_before is None:
        lost = ours - parse_reserved(observed.network.reserved)
    if lost:
        detail = f"net.ipv4.ip_local_reserved_ports lacks {reserved_text(lost)}"
        yield Finding(RESERVED, "the host", detail)
        return
    # What others have reserved besides is no fault.
    more = (
        parse_reserved(observed.reserved_written or "") & parse_reserved(observed.network.reserved) - wanted
    )
    if more and observed.reserved_before is not None:
        detail = f"net.ipv4.ip_local_reserved_ports has {reserved_text(more)} too much"
        yield Finding(RESERVED, "the host", detail)
