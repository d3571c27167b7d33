# SPDX-License-Identifier: Apache-2.0
"""Services of networks of several hosts: changed in the cluster's store first, and then on this host as on any other
that hears of it. So a command that is killed has either done nothing, or what the next one takes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from datapath.engine import claims, cluster, joining, ports, services, spanning
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, NotFoundError
from datapath.model.networks import Network
from datapath.model.rows import Phase
from datapath.model.services import Mode, Service, ServiceChange, ServiceRequest
from datapath.plan import services as plans

if TYPE_CHECKING:
    from datapath.store.cluster import Cluster


def is_asked(tx: Transaction, network: str) -> bool:
    """The service is to be on a network of several hosts, which this host takes part in from now on. False: also if
    there is no such network."""
    try:
        return tx.state.network(network).spans
    except (NotFoundError, ConfigError):
        if not network or not tx.link.configured:
            return False
    try:
        return spanning.adopt(tx, network).spans
    except NotFoundError:
        return False


def spans(tx: Transaction, name: str) -> bool:
    """The service is on a network of several hosts. NotFoundError."""
    return tx.state.networks[tx.state.get(Service, name).network_id].spans


def create(tx: Transaction, request: ServiceRequest) -> Service:
    """`service create` for all hosts. Errors as those of `services.create`, also if the name, the address or a port is
    taken anywhere in the cluster; StateError, PrivilegeError: the store."""
    from datapath.cluster import services as verbs
    from datapath.cluster.allotment import choose

    network, what = tx.state.network(request.network), f"service {request.name}"
    store = _told(tx, network, what)
    known = claims.known_of(tx.state, network)
    me = tx.state.installation_id
    asked = {ip_address(text).version for text in request.vips if _is_address(text)}
    if request.endpoint_mode != Mode.DNSRR:
        versions = [subnet.prefix.version for subnet in network.subnets]
        free = [choose(network, me, known, version).address for version in versions if version not in asked]
        tx.allotted[network.id] = tuple(map(str, free))
    planned = plans.plan_service_create(request, tx.state, tx.fresh, ports.context(tx))
    for part, _ in tx.parts():
        part.services.require()
    wanted = [vip for vip in planned.vips if vip.version in asked]
    with store.within(joining.PATIENCE):
        made = verbs.create(store, me, network, known, replace(planned, phase=Phase.READY), wanted)
    try:
        cluster.follow(tx, cluster.News((made,)))
        service = tx.state.services[made.id]
    except BaseException:
        with store.within(joining.SHORTLY):
            verbs.remove(store, made)
        raise
    services.warn_of_nobody(tx, service)
    joining.advise(tx)
    return service


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False  # which the plan says
    return True


def _told(tx: Transaction, network: Network, what: str) -> Cluster:
    """The store, once this host has told it all and knows all of the network. StateError; NotFoundError: it is gone."""
    store = tx.link.store(what)
    with store.within(joining.PATIENCE):
        joining.joined(tx, what)
        cluster.settle(tx, store)
        spanning.update(tx, store, [network.id])
    return store


def update(tx: Transaction, name: str, change: ServiceChange) -> Service:
    """`service update`. Errors as those of `services.update`, and StateError."""
    _know(tx, name)
    return _change(
        tx, name, lambda: plans.plan_service_update(name, change, tx.state, ports.context(tx)).service
    )


def drain(tx: Transaction, name: str, containers: Sequence[str], back: bool) -> Service:
    """`service drain` and `undrain`, of containers of any host. NotFoundError, ConfigError, StateError."""
    _know(tx, name)

    def drained() -> Service:
        state = tx.state
        for container in containers:
            state = state.including(plans.plan_drain(name, container, state, back))
        service = state.get(Service, name)
        if not service.vips:
            raise ConfigError(f"service {service.name} has no address: nothing chooses among its backends")
        return service

    return _change(tx, name, drained)


def remove(tx: Transaction, name: str) -> Service:
    """`service rm`, for all hosts. NotFoundError, StateError."""
    from datapath.cluster import services as verbs

    service = tx.state.get(Service, name)
    store = tx.link.store(f"service {service.name}")
    with store.within(joining.PATIENCE):
        verbs.remove(store, service)
    services.take_away(tx, service)
    return service


def _know(tx: Transaction, name: str) -> None:
    """What the store says now of the service's network is known."""
    service = tx.state.get(Service, name)
    _told(tx, tx.state.networks[service.network_id], f"service {service.name}")


def _change(tx: Transaction, name: str, planned: Callable[[], Service]) -> Service:
    """Makes of the service what the plan says, in the store and here. If another host was faster the plan is made anew,
    of what the store has."""
    from datapath.cluster import services as verbs

    known = tx.state.get(Service, name)
    store = tx.link.store(f"service {known.name}")

    def changed(before: Service) -> Service:
        cluster.follow(tx, cluster.News((before,)))
        return planned()

    with store.within(joining.PATIENCE):
        made = verbs.change(store, known, changed)
    cluster.follow(tx, cluster.News((made,)))
    return tx.state.services[made.id]
