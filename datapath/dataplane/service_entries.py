# SPDX-License-Identifier: Apache-2.0
"""The rows of maps that say what services there are and who is behind them, as tuples of `structs`. Pure.

The table of a family has one of two numbers in turn: who replaces a table writes the other one whole, and then the
service's row, which leads to it from that moment on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from datapath.dataplane.layout import PARTY_PEER, SERVICE_DSR, SLOTS_IN_CHUNK, ServiceChoice
from datapath.dataplane.layout import BackendState as BackendWord
from datapath.dataplane.service_structs import (
    BackendKey,
    BackendValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from datapath.dataplane.structs import EndpointKey, EndpointValue
from datapath.model.digests import sha256
from datapath.model.health import BackendState
from datapath.model.networks import Network, gateway_mac
from datapath.model.peers import Remote
from datapath.model.services import Algorithm, Service
from datapath.model.state import State
from datapath.plan import maglev
from datapath.plan.backends import Backend, backends, is_there

_CHOICES: Mapping[Algorithm, ServiceChoice] = {
    Algorithm.MAGLEV: "CHOICE_MAGLEV",
    Algorithm.RANDOM: "CHOICE_RANDOM",
    Algorithm.LEAST_CONN: "CHOICE_LEAST",
}
# One that is starting may have connections of when nobody checked it. Of one that is unhealthy, UDP goes elsewhere.
_STATES: Mapping[BackendState, BackendWord] = {
    BackendState.UP: "BACKEND_UP",
    BackendState.STARTING: "BACKEND_DRAINING",
    BackendState.DRAINING: "BACKEND_DRAINING",
    BackendState.UNHEALTHY: "BACKEND_DOWN",
}
FAMILIES = (4, 6)
# Rows of a table's slots.
SMALL_CHUNKS, LARGE_CHUNKS = (-(-size // SLOTS_IN_CHUNK) for size in (maglev.SMALL, maglev.LARGE))

Slots = dict[SlotsKey, SlotsValue]


class ServiceRows(NamedTuple):
    """Rows of `services`, `slots`, `backends`, and of `endpoints` those of virtual addresses."""

    services: dict[ServiceKey, ServiceValue]
    slots: Slots
    backends: dict[BackendKey, BackendValue]
    vips: dict[EndpointKey, EndpointValue]


def table_number(service: int, version: int, turn: int) -> int:
    """One of the two numbers, `turn` 0 or 1, of a service's table of that IP version."""
    return service << 2 | (version == 6) << 1 | turn


def service_of(table: int) -> int:
    """The number of the service whose table has this one."""
    return table >> 2


def turn_of(table: int) -> int:
    """Which of the two numbers it is."""
    return table & 1


def seed(service: Service, network: Network) -> str:
    """What the service's choices follow from, on any host."""
    return f"{network.id}\0{service.name}"


def table(service: Service, network: Network, version: int, found: Sequence[Backend]) -> list[int]:
    """The number of the backend in each slot, of those that get new connections over that IP version."""
    up = {
        str(address): one
        for one in found
        for address in one.addresses
        if address.version == version and one.up
    }
    chosen = list(up.values())
    # Of two slots' backends the program takes that with fewer connections for its weight.
    even = service.algorithm == Algorithm.LEAST_CONN
    weights = [1 if even else one.weight for one in chosen]
    places = maglev.table(seed(service, network), list(up), weights)
    numbers = [service.numbers[one.id] for one in chosen]
    return [numbers[place] for place in places]


def slots(number: int, slot_backends: Sequence[int]) -> Slots:
    """The rows of the table with that number."""
    return {
        SlotsKey(number, at // SLOTS_IN_CHUNK): SlotsValue(tuple(slot_backends[at : at + SLOTS_IN_CHUNK]))
        for at in range(0, len(slot_backends), SLOTS_IN_CHUNK)
    }


def rows(service: Service, state: State, turns: Mapping[int, int]) -> ServiceRows:
    """All rows of a service. `turns`: by IP version, which of the two numbers its table has. One without a virtual
    address has none: it is names alone."""
    if not (service.vips and is_there(service)):
        return ServiceRows({}, {}, {}, {})
    network = state.networks[service.network_id]
    found = [one for one in backends(service, state) if one.id in service.numbers]
    lines: Slots = {}
    places: dict[int, tuple[int, int]] = {}
    for version in FAMILIES:
        filled = table(service, network, version, found)
        number = table_number(service.number, version, turns.get(version, 0)) if filled else 0
        places[version] = number, len(filled)
        lines |= slots(number, filled)
    value = ServiceValue(
        network.number,
        _CHOICES[service.algorithm],
        service.affinity,
        int.from_bytes(sha256(seed(service, network).encode())[:4], "big"),
        *places[4],
        *places[6],
        SERVICE_DSR if service.dsr else 0,
    )
    vip = EndpointValue(ifindex=0, number=service.number, mac=gateway_mac(network))
    return ServiceRows(
        {ServiceKey(service.number): value},
        lines,
        backend_rows(service, state),
        {EndpointKey(network.number, address): vip for address in service.vips},
    )


def backend_rows(service: Service, state: State) -> dict[BackendKey, BackendValue]:
    """The rows of a service's backends; none if it has no virtual address."""
    if not (service.vips and is_there(service)):
        return {}
    return {
        BackendKey(service.numbers[one.id]): _backend(service, one)
        for one in backends(service, state)
        if one.id in service.numbers
    }


def _backend(service: Service, one: Backend) -> BackendValue:
    addresses = {address.version: address for address in one.addresses}
    return BackendValue(
        service.number,
        PARTY_PEER if isinstance(one.endpoint, Remote) else one.endpoint.number,
        _STATES[one.state],
        one.weight,
        addresses.get(4),
        addresses.get(6),
    )


def turns_in(known: Mapping[ServiceKey, ServiceValue], service: Service) -> dict[int, int]:
    """Which of its two numbers each table of a service has now."""
    row = known.get(ServiceKey(service.number))
    return {4: turn_of(row.table4), 6: turn_of(row.table6)} if row is not None else {}


def all_rows(state: State, known: Mapping[ServiceKey, ServiceValue]) -> ServiceRows:
    """Those of all services. `known`: the rows of `services` that there are."""
    found = ServiceRows({}, {}, {}, {})
    for service in state.services.values():
        mine = rows(service, state, turns_in(known, service))
        found.services.update(mine.services)
        found.slots.update(mine.slots)
        found.backends.update(mine.backends)
        found.vips.update(mine.vips)
    return found
