# SPDX-License-Identifier: Apache-2.0
"""Rows about services, as the packet programs have them: written, taken away, and made what they have to be.

What a row leads to is written before it, and goes after it. So every packet finds either what was or what is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datapath.dataplane import connections, entries, service_counts, service_entries
from datapath.dataplane.convert import service_value, to_abi
from datapath.dataplane.layout import PARTY_PEER, ROLE_SERVES, TAILS_OF
from datapath.dataplane.programs import Dataplane
from datapath.dataplane.service_entries import FAMILIES, LARGE_CHUNKS, SMALL_CHUNKS, ServiceRows, Slots
from datapath.dataplane.service_structs import SlotsKey
from datapath.drivers.base import ServicePart
from datapath.drivers.context import Context
from datapath.errors import NotSupportedError
from datapath.kernel import abi
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.parsing import PROTOCOLS
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.backends import backends, is_there


class EbpfServices(ServicePart):
    """What the packet programs have of services."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def require(self) -> None:
        dataplane = self.context.dataplane
        if not dataplane.has("services") or dataplane.lacks(*TAILS_OF["NETWORK_SERVICES"]):
            raise NotSupportedError(
                "services need the packet programs of this version: use `datapathctl upgrade`"
            )

    def write(self, state: State, services: Iterable[Service]) -> None:
        if (dataplane := self._loaded) is not None:
            for service in services:
                write(dataplane, state, service)

    def remove(self, state: State, service: Service) -> None:
        if (dataplane := self._loaded) is not None:
            remove(dataplane, state, service)

    def sync(self, state: State) -> None:
        if (dataplane := self._loaded) is not None:
            sync(dataplane, state)

    def is_behind(self, state: State, service: Service) -> bool:
        dataplane = self._loaded
        return dataplane is not None and is_behind(dataplane, state, service)

    def end(self, state: State, service: Service, endpoint_ids: Iterable[str]) -> None:
        if (dataplane := self._loaded) is not None:
            end(dataplane, state, service, endpoint_ids)

    @property
    def _loaded(self) -> Dataplane | None:
        """None: no programs are, or they are of a version without services."""
        dataplane = self.context.loaded
        return dataplane if dataplane is not None and dataplane.has("services") else None


def write(dataplane: Dataplane, state: State, service: Service) -> None:
    """Makes the rows of a service what they have to be."""
    network = state.networks[service.network_id]
    if not (service.vips and is_there(service)):
        remove(dataplane, state, service)
        return
    for backend in backends(service, state):
        if isinstance(backend.endpoint, Endpoint):
            _note_serving(dataplane, network, backend.endpoint)
    known = dataplane.services.get((service.number,))
    turns = {4: known.table4 & 1, 6: known.table6 & 1} if known else {}
    wanted = service_entries.rows(service, state, turns)
    if known is not None and _differ(dataplane, wanted.slots):
        wanted = service_entries.rows(service, state, {version: 1 - turns[version] for version in FAMILIES})
    _tell_network(dataplane, state, network)
    _write(dataplane, wanted)
    _drop_others(dataplane, service, wanted)


def _write(dataplane: Dataplane, rows: ServiceRows) -> None:
    dataplane.backends.update_many(_packable(rows.backends))
    dataplane.slots.update_many(_packable(rows.slots))
    dataplane.services.update_many(_packable(rows.services))
    dataplane.endpoints.update_many(rows.vips)


def _packable(rows: Any) -> dict[Any, Any]:
    return {to_abi(key): to_abi(value) for key, value in rows.items()}


def _differ(dataplane: Dataplane, slots: Slots) -> bool:
    return any(dataplane.slots.get(key) != to_abi(value) for key, value in slots.items())


def _drop_others(dataplane: Dataplane, service: Service, wanted: ServiceRows) -> None:
    """What led to backends that are gone, after nothing leads to it any more."""
    used = {key.table for key in wanted.slots}
    for version in FAMILIES:
        for turn in (0, 1):
            table = service_entries.table_number(service.number, version, turn)
            if table not in used:
                _drop_table(dataplane, table)
    _drop_backends(dataplane, dataplane.backends.having("service", service.number), wanted)


def _drop_backends(dataplane: Dataplane, known: Mapping[Any, Any], wanted: ServiceRows) -> None:
    """Those of the backends that are none any more. Their rows go last: by them a command that follows a killed one
    finds what these have counted."""
    gone = {key: known[key] for key in known.keys() - {to_abi(one) for one in wanted.backends}}
    service_counts.retire(dataplane, ((key.backend, value.service) for key, value in gone.items()))
    dataplane.backends.delete_many(gone)


def _drop_table(dataplane: Dataplane, table: int) -> None:
    """The first row goes last: by it the others are found after a kill."""
    if dataplane.slots.get(SlotsKey(table, 0)) is None:
        return
    large = dataplane.slots.get(SlotsKey(table, SMALL_CHUNKS)) is not None
    chunks = range(LARGE_CHUNKS if large else SMALL_CHUNKS)
    dataplane.slots.delete_many(SlotsKey(table, chunk) for chunk in reversed(chunks))


def _note_serving(dataplane: Dataplane, network: Network, endpoint: Endpoint) -> None:
    """What the endpoint sends may be an answer to a client that knows the service's address alone. It stays so, as
    connections outlive the service."""
    key = abi.device_key(endpoint.host_ifindex)
    known = dataplane.devices.get(key)
    if known is not None and not known.forwarding & ROLE_SERVES:
        dataplane.devices[key] = known._replace(forwarding=known.forwarding | ROLE_SERVES)
    for place in entries.endpoint_entries(network, endpoint).endpoints:
        row = dataplane.endpoints.get(place)
        if row is not None and row.number == endpoint.number and not row.forwarding & ROLE_SERVES:
            dataplane.endpoints[place] = row._replace(forwarding=row.forwarding | ROLE_SERVES)


def _tell_network(dataplane: Dataplane, state: State, network: Network) -> None:
    """Whether the network has services."""
    flag = int(abi.NetworkFlag.NETWORK_SERVICES)
    known = dataplane.networks[network.number]
    if not known.flags:
        return
    has = any(one.vips and is_there(one) for one in state.services_of_network(network.id))
    flags = known.flags | flag if has else known.flags & ~flag
    if flags != known.flags:
        dataplane.tell_network(network.number, known._replace(flags=flags))


def forget_loads(dataplane: Dataplane, endpoint: Endpoint) -> None:
    """How many connections an endpoint, which is gone, has had."""
    if dataplane.has("loads"):
        addresses = [interface.ip for interface in (endpoint.ipv4, endpoint.ipv6) if interface]
        dataplane.loads.delete_many(abi.load_key(endpoint.number, address) for address in addresses)


def remove(dataplane: Dataplane, state: State, service: Service) -> None:
    """Takes a service away, whatever of it is there, and its connections: its address may be somebody else's soon."""
    network = state.networks[service.network_id]
    for address in service.vips:
        key = abi.endpoint_key(network.number, address)
        row = dataplane.endpoints.get(key)
        if row is not None and row.number == service.number:
            dataplane.endpoints.pop(key, None)
    dataplane.services.pop(abi.service_key(service.number), None)
    _tell_network(dataplane, state.without(service), network)
    _drop_others(dataplane, service, ServiceRows({}, {}, {}, {}))
    service_counts.forget(dataplane, [service.number])
    if service.vips:
        addresses = {abi.pack_address(address) for address in service.vips}
        numbers = {PARTY_PEER, *(endpoint.number for endpoint in state.endpoints_of_network(network.id))}
        connections.forget(
            dataplane,
            lambda conn: conn.to_endpoint in numbers and conn.key[16:32] in addresses,
        )


def is_behind(dataplane: Dataplane, state: State, service: Service) -> bool:
    """A backend of the service has another state than the rows say."""
    wanted = service_entries.backend_rows(service, state)
    return any(dataplane.backends.get(to_abi(key)) != to_abi(value) for key, value in wanted.items())


def end(dataplane: Dataplane, state: State, service: Service, endpoint_ids: Iterable[str]) -> None:
    """Ends connections that were opened by the service's address or one of its ports to one of these endpoints."""
    idents = set(endpoint_ids)
    numbers = {state.endpoints[ident].number for ident in idents & state.endpoints.keys()}
    remotes = [state.remotes[ident] for ident in idents & state.remotes.keys()]
    elsewhere = {abi.pack_address(address) for remote in remotes for address in remote.addresses}
    network = state.networks[service.network_id].number
    vips = {abi.pack_address(address) for address in service.vips}
    ports = {
        (PROTOCOLS[proto], host_port)
        for mapping in service.ports
        for _, host_port, _, proto in mapping.expand()
    }

    def fits(conn: connections.Original) -> bool:
        mine = conn.served and (conn.key[16:32] in vips or conn.asked in ports)
        if conn.to_endpoint != PARTY_PEER:
            return mine and conn.to_endpoint in numbers
        return mine and conn.to_network == network and conn.other[:16] in elsewhere

    connections.forget(dataplane, fits)


def sync(dataplane: Dataplane, state: State) -> None:
    """Makes all rows what they have to be, whatever a killed command left."""
    for service in state.services.values():
        write(dataplane, state, service)
    known = {key: service_value(value) for key, value in dataplane.services.read_all()}
    wanted = service_entries.all_rows(state, known)
    dataplane.services.delete_many(known.keys() - {to_abi(key) for key in wanted.services})
    vips = dataplane.endpoints.having("ifindex", 0)
    dataplane.endpoints.delete_many(vips.keys() - {to_abi(key) for key in wanted.vips})
    dataplane.slots.delete_many(set(dataplane.slots) - {to_abi(key) for key in wanted.slots})
    _drop_backends(dataplane, dict(dataplane.backends.read_all()), wanted)
    for network in state.networks.values():
        if network.number and state.services_of_network(network.id):
            _tell_network(dataplane, state, network)
