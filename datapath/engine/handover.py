# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose device their owner moves himself: handed over, the way out of their sandbox or not, taken out. Every
step is idempotent, and nothing here enters the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from datapath.drivers.base import JoinInfo
from datapath.engine import endpoints, names, ports
from datapath.engine.transaction import Transaction
from datapath.errors import ExistsError
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.plan import handover as plans
from datapath.plan.backends import touched
from datapath.plan.sandboxes import MovePlan, require_endpoint


def hand_over(
    tx: Transaction, name: str, owner: str, path: str, specs: Sequence[str], label: str
) -> JoinInfo:
    """See `datapath.host.Endpoints.hand_over`."""
    endpoint = require_endpoint(name, tx.state, owner)
    network = tx.state.networks[endpoint.network_id]
    planned = plans.plan_hand_over(endpoint, path, label, specs, tx.state, tx.fresh)
    if endpoint.handed_over and endpoint.sandbox_id != planned.sandbox.id:
        take_out(tx, endpoint)
        return hand_over(tx, name, owner, path, specs, label)
    other = tx.state.endpoint(planned.sandbox.id, network.id)
    if other is not None and other.id != endpoint.id:
        tx.warn(f"endpoint {other.id[:12]} of {owner} is in that sandbox no more: removed")
        endpoints.evict(tx, other)
    if planned.endpoint != endpoint or planned.sandbox.id not in tx.state.sandboxes:
        _move(tx, endpoint, planned)
    return tx.driver(network).join_info(network, planned.endpoint, tx.mtu(network))


def program(tx: Transaction, name: str, owner: str, specs: Sequence[str] | None) -> tuple[PortMapping, ...]:
    """See `datapath.host.Endpoints.program`."""
    endpoints.evict_dead(tx)
    endpoint = require_endpoint(name, tx.state, owner)
    try:
        planned = plans.plan_program(endpoint, specs, tx.state, ports.context(tx))
    except ExistsError:
        # It was perhaps what the sandbox itself has: its owner has lost the word that it is to go.
        having = [e for e in tx.state.endpoints_of_sandbox(endpoint.sandbox_id) if e.ports]
        closed = tx.state.including(*map(plans.plan_revoke, having))
        context = plans.once_closed(ports.context(tx), having)
        plans.plan_program(closed.endpoints[endpoint.id], specs, closed, context)  # refused, none is closed
        if having:
            _change(tx, {e.id: e for e in having}, [closed.endpoints[e.id] for e in having])
        endpoint = tx.state.endpoints[endpoint.id]
        planned = plans.plan_program(endpoint, specs, tx.state, ports.context(tx))
    if not planned.same:
        before = {e.id: tx.state.endpoints[e.id] for e in (endpoint, *planned.others)}
        changed = [e for e in (*planned.others, planned.endpoint) if e != before[e.id]]
        _change(tx, before, changed)
    return planned.endpoint.ports


def revoke(tx: Transaction, name: str, owner: str) -> None:
    """See `datapath.host.Endpoints.revoke`."""
    endpoint = require_endpoint(name, tx.state, owner)
    planned = plans.plan_revoke(endpoint)
    if planned != endpoint and endpoint.handed_over:
        _change(tx, {endpoint.id: endpoint}, [planned])


def take_out(tx: Transaction, endpoint: Endpoint) -> None:
    """The endpoint is in no sandbox any more; the device is for its owner to take out, or for who deletes it."""
    planned = plans.plan_take_out(endpoint, tx.state, tx.fresh)
    revoked = plans.plan_revoke(endpoint)
    if revoked != endpoint:
        _change(tx, {endpoint.id: endpoint}, [revoked])
    _move(tx, endpoint, planned)


def _move(tx: Transaction, endpoint: Endpoint, planned: MovePlan) -> None:
    """Writes down which sandbox the endpoint is in; the place that it leaves is forgotten. Services that it is behind
    get it now, or lose it, by their names (`tasks.NAME`) as well."""
    left = [place for place in endpoints.place(tx, endpoint) if place.id != planned.sandbox.id]
    before, places = tx.state, (endpoint.sandbox_id, planned.sandbox.id)
    moved = planned.endpoint
    if touched(places, before, before.including(planned.sandbox, moved)):
        with ExitStack() as undo:
            undo.callback(_stay, tx, endpoint, planned)
            tx.commit(planned.sandbox, replace(moved, phase=Phase.CHANGING))
            names.update(tx, tx.state, *places, before=before)
            undo.pop_all()
    with tx.store.transaction():
        tx.commit(planned.sandbox, moved)
        tx.delete(*left)


def _stay(tx: Transaction, endpoint: Endpoint, planned: MovePlan) -> None:
    """The endpoint is where it was, and so are its services' backends."""
    there, known = tx.state, planned.sandbox.id in tx.state.sandboxes
    after = there.including(endpoint)
    names.update(tx, after, endpoint.sandbox_id, planned.sandbox.id, before=there)
    empty = known and not after.endpoints_of_sandbox(planned.sandbox.id)
    tx.commit(endpoint, gone=[planned.sandbox] if empty else [])


def _change(tx: Transaction, before: dict[str, Endpoint], changed: list[Endpoint]) -> None:
    """Endpoints of one sandbox whose ports go or come; what goes does so first."""
    moved = [e for e in changed if _ports_of(e) != _ports_of(before[e.id])]
    if not moved:
        tx.commit(*changed)
        return
    with ExitStack() as undo:
        undo.callback(endpoints.reconcile_sandbox, tx, changed[0].sandbox_id)
        undo.callback(tx.commit, *before.values())
        tx.journal(*(replace(endpoint, phase=Phase.CHANGING) for endpoint in changed))
        for endpoint in moved:
            ports.unpublish(tx, before[endpoint.id], before[endpoint.id].ports)
        for endpoint in moved:
            ports.publish(tx, endpoint, endpoint.ports)
        tx.commit(*(replace(endpoint, phase=Phase.READY) for endpoint in changed))
        undo.pop_all()


def _ports_of(endpoint: Endpoint) -> tuple[object, ...]:
    """What decides which ports lead there."""
    return endpoint.ports and (endpoint.ports, endpoint.egress_families)
