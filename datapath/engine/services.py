# SPDX-License-Identifier: Apache-2.0
"""Services on this host: created, changed, drained, removed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from datapath.dataplane import entries
from datapath.dataplane.name_entries import name_rows, touched_services
from datapath.engine import backends, ports
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Service, ServiceChange, ServiceRequest
from datapath.model.state import State
from datapath.plan import services as plans


def create(tx: Transaction, request: ServiceRequest) -> Service:
    """`service create`. ConfigError, NotFoundError, ExistsError; NotSupportedError: the programs know no services."""
    with ExitStack() as undo:
        with tx.planning(request.network):
            planned = plans.plan_service_create(request, tx.state, tx.fresh, ports.context(tx))
            for part, _ in tx.parts():
                part.services.require()
            tx.commit(planned)
        undo.callback(take_away, tx, planned)
        service = settle(tx, replace(planned, phase=Phase.READY), planned.ports)
        undo.pop_all()
    warn_of_nobody(tx, service)
    return service


def warn_of_nobody(tx: Transaction, service: Service) -> None:
    """A selector that chooses nobody yet may be wrong."""
    if service.selector and not service.numbers:
        shown = ",".join(f"{key}={value}" for key, value in service.selector.items())
        tx.warn(
            f"no running container on the network has the labels {shown}: service {service.name} has no backend"
        )


def update(tx: Transaction, name: str, change: ServiceChange) -> Service:
    """`service update`. NotFoundError, ConfigError, ExistsError."""
    planned = plans.plan_service_update(name, change, tx.state, ports.context(tx))
    before = tx.state.services[planned.service.id]
    if planned.service == before:
        return before
    with ExitStack() as undo:
        undo.callback(_restore, tx, before)
        tx.journal(replace(before, phase=Phase.CHANGING))
        close(tx, before, planned.closed)
        tx.journal(replace(planned.service, phase=Phase.CHANGING))
        service = settle(tx, planned.service, planned.opened)
        undo.pop_all()
    return service


def drain(tx: Transaction, name: str, containers: Sequence[str], back: bool) -> Service:
    """`service drain` and `undrain`. NotFoundError, ConfigError: one of them is no backend."""
    state = tx.state
    for container in containers:
        state = state.including(plans.plan_drain(name, container, state, back))
    service = state.get(Service, name)
    before = tx.state.services[service.id]
    if service.drained == before.drained:
        return before
    if not service.vips:
        raise ConfigError(f"service {service.name} has no address: nothing chooses among its backends")
    with ExitStack() as undo:
        undo.callback(_restore, tx, before)
        tx.journal(replace(service, phase=Phase.CHANGING))
        service = settle(tx, service)
        undo.pop_all()
    return service


def remove(tx: Transaction, name: str) -> Service:
    """`service rm`. NotFoundError."""
    service = plans.plan_service_remove(name, tx.state)
    take_away(tx, service)
    return service


def finish(tx: Transaction, service: Service) -> None:
    """Completes or takes back what a killed command left of a service."""
    if service.phase == Phase.CHANGING:
        tx.warn(f"service {service.name} was being changed: done")
        _restore(tx, replace(service, phase=Phase.READY))
        return
    tx.warn(f"service {service.name} was left unfinished: removed")
    take_away(tx, service)


def rebuild(tx: Transaction) -> None:
    """All services, on networks that were built again: their ports last, as in `settle`."""
    backends.sync(tx)
    for service in tx.state.services.values():
        publish(tx, service, service.ports)


def settle(tx: Transaction, service: Service, opened: tuple[PortMapping, ...] | None = ()) -> Service:
    """Writes rows of maps, ports, names, what other hosts know of its backends, and the service's own row, when all
    else is done: so whatever a killed command has not come to the next one does. `opened`: the ports that are new,
    None: it is not known which are there. Whoever comes by a port has to find the service behind it, or he is taken
    for a client of a container's as long as his connection lasts."""
    after = backends.number(tx, tx.state.including(service), [service])
    service = after.services[service.id]
    backends.write(tx, after, [service])
    if opened is None:
        _sync_ports(tx, service)
        tx.refresh_acls()
    else:
        publish(tx, service, opened)
    name(tx, after, [service])
    backends.tell(tx, after, service)
    tx.commit(service)
    return service


def _restore(tx: Transaction, service: Service) -> None:
    """The service as it was, whatever has become of it."""
    tx.commit(replace(service, phase=Phase.CHANGING))
    settle(tx, service, None)


def _sync_ports(tx: Transaction, service: Service) -> None:
    network = tx.state.networks[service.network_id]
    numbers, acls = entries.number_entries(tx.state), entries.acl_entries(tuple(tx.state.published))
    tx.driver(network).sync_ports(network, plans.as_endpoint(service, network), numbers, acls)


def publish(tx: Transaction, service: Service, mappings: tuple[PortMapping, ...]) -> None:
    """Opens these host ports, which the service's row has already."""
    ports.publish(tx, plans.as_endpoint(service, tx.state.networks[service.network_id]), mappings)


def close(tx: Transaction, service: Service, mappings: tuple[PortMapping, ...]) -> None:
    """Closes these of the service's host ports."""
    if not mappings:
        return
    network = tx.state.networks[service.network_id]
    left = tuple(mapping for mapping in service.ports if mapping not in mappings)
    after = tx.state.including(replace(service, ports=left))
    numbers = entries.number_entries(after, mappings)
    acls = frozenset(m.acl for m in mappings if m.acl) - ports.acls_in_use(after)
    tx.driver(network).unpublish(network, plans.as_endpoint(service, network), mappings, numbers, acls)


def name(tx: Transaction, after: State, services: Sequence[Service]) -> None:
    """Makes the services' names what they have to be when the rows say `after`."""
    concerned = touched_services(services, tx.state, after)
    rows = name_rows(after, tx.names, concerned)
    for part, _ in tx.parts():
        part.write_names(rows, concerned)


def take_away(tx: Transaction, service: Service) -> None:
    """Removes a service, whatever of it is there: names first, then what leads to it, then itself."""
    row = replace(tx.state.services.get(service.id, service), phase=Phase.REMOVING)
    tx.commit(row)
    name(tx, tx.state.without(row), [row])
    close(tx, row, row.ports)
    for part, _ in tx.parts():
        part.services.remove(tx.state, row)
    tx.delete(row)
    if any(mapping.acl for mapping in row.ports):
        tx.refresh_acls()
