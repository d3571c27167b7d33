# SPDX-License-Identifier: Apache-2.0
"""Running containers: connected to networks and disconnected, their ports published and unpublished."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from datapath.engine import claims, endpoints, names, networks, policies, ports
from datapath.engine.transaction import Transaction
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.ports import PortMapping, lone_networks
from datapath.model.rows import Phase, Row
from datapath.plan.endpoints import plan_connect, plan_disconnect
from datapath.plan.ports import PortPlan, plan_port_add, plan_port_remove, plan_port_set
from datapath.plan.start import plan_rename
from datapath.runtime import files
from datapath.runtime.start import running_path


def connect(tx: Transaction, name: str, request: EndpointRequest) -> Endpoint:
    """`network connect`. NotFoundError, ConfigError, ExistsError."""
    endpoints.evict_dead(tx)
    claims.prepare(tx, [request])
    with ExitStack() as undo:
        with tx.planning(request.network):
            planned = plan_connect(name, request, tx.state, tx.facts, tx.config, tx.fresh)
            path = running_path(tx, planned.container)
            before = {e.id: tx.state.endpoints[e.id] for e in planned.changed}
            rows = (planned.endpoint, *(replace(e, phase=Phase.CHANGING) for e in before.values()))
            if planned.network.built:
                tx.commit(*rows)
        for line in planned.warnings:
            tx.warn(line)
        if not planned.network.built:
            networks.build(tx, planned.network)
            tx.commit(*rows)
        if before:
            undo.callback(endpoints.reconcile_sandbox, tx, planned.container.sandbox_id)
        undo.callback(endpoints.remove, tx, planned.endpoint)
        (claimed,) = claims.claim(tx, planned.endpoint)
        endpoint = endpoints.attach(tx, claimed, path)
        endpoints.rewire(tx, path, before, planned.changed)
        changed: Sequence[Endpoint] = planned.changed
        if endpoint.joined:
            there = tx.state.endpoints_of_sandbox(endpoint.sandbox_id)
            *changed, endpoint = endpoints.settled(tx, there, planned.container.ports, path)
        endpoint = replace(endpoint, phase=Phase.READY)
        settled = (replace(one, phase=Phase.READY) for one in changed)
        after: tuple[Row, ...] = (endpoint, planned.container, *settled)
        policies.admit(tx, tx.state.including(*after), endpoint.sandbox_id)
        names.update(tx, tx.state.including(*after), endpoint.sandbox_id)
        tx.commit(*after)
        undo.pop_all()
        files.write_etc(tx, planned.container)
        return endpoint


def disconnect(tx: Transaction, network: str, name: str, force: bool) -> None:
    """`network disconnect`. NotFoundError, ConfigError."""
    planned = plan_disconnect(network, name, tx.state, force)
    before = {e.id: tx.state.endpoints[e.id] for e in planned.changed}
    changing = (replace(e, phase=Phase.CHANGING) for e in before.values())
    tx.journal(planned.endpoint, planned.container, *changing)
    endpoints.remove(tx, planned.endpoint)
    path = tx.path(planned.endpoint.sandbox_id)
    if path is not None:
        endpoints.rewire(tx, path, before, planned.changed)
        tx.commit(*planned.changed)
        files.write_etc(tx, planned.container)


def rename(tx: Transaction, name: str, wanted: str) -> Container:
    """`rename`: the others find it by its new name from now on. The names of containers stand also in the hosts files
    of those that are linked to them. NotFoundError, ConfigError, ExistsError."""
    container = plan_rename(name, wanted, tx.state)
    members = () if container.shares else tx.state.endpoints_of_sandbox(container.sandbox_id)
    before = tx.state
    tx.commit(container, *(replace(endpoint, phase=Phase.CHANGING) for endpoint in members))
    if members:
        names.update(tx, tx.state, container.sandbox_id, before=before)
        claims.renew(tx, members, before)
        tx.commit(*members)
    for other in tx.state.containers.values():
        if other.running and container.id in [link.server for link in other.links]:
            files.write_etc(tx, other)
    return container


# ---- ports -------------------------------------------------------------------------------


def port_add(tx: Transaction, name: str, spec: str) -> PortMapping:
    """`port add`. NotFoundError, ConfigError, ExistsError."""
    endpoints.evict_dead(tx)
    with ExitStack() as undo:
        planned = plan_port_add(name, spec, tx.state, ports.context(tx))
        for line in lone_networks(spec):
            tx.warn(line)
        _journal(tx, undo, planned)
        for endpoint in planned.endpoints:
            ports.publish(tx, endpoint, tuple(m for m in planned.mappings if m in endpoint.ports))
        return _commit(tx, undo, planned)


def port_remove(tx: Transaction, name: str, what: str) -> PortMapping:
    """`port rm`. NotFoundError, ConfigError."""
    with ExitStack() as undo:
        planned = plan_port_remove(name, what, tx.state)
        before = [tx.state.endpoints[endpoint.id] for endpoint in planned.endpoints]
        _journal(tx, undo, planned)
        for endpoint in before:
            ports.unpublish(tx, endpoint, tuple(m for m in planned.mappings if m in endpoint.ports))
        tx.refresh_acls()
        return _commit(tx, undo, planned)


def port_set(tx: Transaction, name: str, what: str, acl: str) -> PortMapping:
    """`port set`. Clients that may not connect any more lose their connections. NotFoundError, ConfigError."""
    with ExitStack() as undo:
        planned = plan_port_set(name, what, acl, tx.state)
        for line in lone_networks(acl):
            tx.warn(line)
        assert planned.before is not None
        _journal(tx, undo, planned)
        ports.set_acl(tx, planned.before, planned.mappings[0], planned.endpoints)
        return _commit(tx, undo, planned)


def _journal(tx: Transaction, undo: ExitStack, planned: PortPlan) -> None:
    """Writes what ports are going to be; if that fails they become again what they were."""
    rows = [tx.state.endpoints[endpoint.id] for endpoint in planned.endpoints]
    undo.callback(endpoints.reconcile_sandbox, tx, planned.container.sandbox_id)
    undo.callback(tx.commit, tx.state.containers[planned.container.id], *rows)
    tx.journal(planned.container, *planned.endpoints)


def _commit(tx: Transaction, undo: ExitStack, planned: PortPlan) -> PortMapping:
    """Records that the ports are what they were going to be."""
    tx.commit(*(replace(endpoint, phase=Phase.READY) for endpoint in planned.endpoints))
    undo.pop_all()
    return planned.mappings[0]
