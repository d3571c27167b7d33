# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about services: what rows there have to be, and about which nothing can be said. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from datapath.dataplane import entries, name_entries, service_entries
from datapath.dataplane.layout import ROLE_SERVES
from datapath.drivers.comparison import Comparison
from datapath.model.networks import Network
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan.backends import serving, touched
from datapath.plan.services import as_endpoint

Rows = dict[Any, Any]


class Unsettled(NamedTuple):
    """What is about services in the middle of something: their numbers, names, and rows of numbers of ports."""

    numbers: frozenset[int]
    named: name_entries.Touched
    ports: frozenset[Any]
    acls: frozenset[int]


def add(rows: dict[str, Rows], comparison: Comparison, networks: list[Network]) -> None:
    """Adds the rows of services on these networks, and which endpoints are behind them."""
    state, known = comparison.state, comparison.observed.programs.maps
    mine = {network.id: network for network in networks}
    found = service_entries.all_rows(state, known.get("services", {}))
    rows["services"], rows["slots"], rows["backends"] = found.services, found.slots, found.backends
    rows["endpoints"] |= found.vips
    for service in state.services.values():
        if service.network_id in mine:
            network = mine[service.network_id]
            rows["ports"] |= entries.port_entries(network, as_endpoint(service, network))
    numbers = serving(state)
    for name, field in (("devices", "endpoint"), ("endpoints", "number")):
        for key, value in rows[name].items():
            if getattr(value, field) in numbers:
                rows[name][key] = value._replace(forwarding=value.forwarding | ROLE_SERVES)


def unsettled(state: State, sandbox_ids: Collection[str]) -> Unsettled:
    """Of services whose rows are unfinished, or have backends in sandboxes of which nothing can be said."""
    found = {ident: one for ident, one in state.services.items() if one.phase != Phase.READY}
    found |= touched(sandbox_ids, state)
    ports = (key for one in found.values() for key in entries.number_entries(state, one.ports))
    return Unsettled(
        frozenset(one.number for one in found.values()),
        name_entries.touched_services(found.values(), state),
        frozenset(ports),
        frozenset(mapping.acl for one in found.values() for mapping in one.ports),
    )
