# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that other owners made, and their endpoints: every step idempotent, in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from datapath.drivers.base import JoinInfo
from datapath.engine import claims, endpoints, handover, lifecycle, names, networks, policies, ports
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.kernel import netns
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network, NetworkRequest
from datapath.model.ports import PortMapping, lone_networks
from datapath.model.rows import Phase
from datapath.model.sandboxes import Labels, Sandbox
from datapath.plan import sandboxes as plans
from datapath.plan.networks import refuse_foreign


def adopt(
    tx: Transaction, path: str, owner: str, key: str, name: str, labels: Mapping[str, str] | None = None
) -> Sandbox:
    """See `datapath.host.Sandboxes.adopt`."""
    there = netns.is_namespace(path)
    inode = netns.identity(path) if there else 0
    planned = plans.plan_adopt(path, inode, owner, key, name, tx.state, tx.fresh, labels)
    if not there:
        raise ConfigError(f"{quoted(path)} is no network namespace")
    known = tx.state.sandboxes.get(planned.id)
    if known is not None and (known.key not in ("", path) or known.inode not in (0, inode)):
        if tx.path(known.id) is not None:
            raise ExistsError(f"sandbox {known.label} of {owner} is at {known.key}: forget it first")
        for endpoint in tx.state.endpoints_of_sandbox(known.id):
            endpoints.remove(tx, endpoint)
    if planned != known:
        _commit_named(tx, planned)
    return planned


def _commit_named(tx: Transaction, *planned: Sandbox) -> None:
    """Writes rows of sandboxes, which may be called otherwise than before."""
    before, idents = tx.state, [sandbox.id for sandbox in planned]
    members = [endpoint for ident in idents for endpoint in before.endpoints_of_sandbox(ident)]
    tx.commit(*planned, *(replace(endpoint, phase=Phase.CHANGING) for endpoint in members))
    names.update(tx, tx.state, *idents, before=before)
    claims.renew(tx, members, before)
    tx.commit(*members)


def forget(tx: Transaction, name: str, owner: str, force: bool) -> bool:
    """See `datapath.host.Sandboxes.forget`."""
    try:
        sandbox = plans.find_sandbox(owner, name, tx.state) or tx.state.sandbox(name)
    except NotFoundError:
        return False
    refuse_foreign(sandbox.owner, f"sandbox {sandbox.label}", owner, force)
    endpoints.forget_sandbox(tx, sandbox, tx.state.endpoints_of_sandbox(sandbox.id))
    return True


def rename(tx: Transaction, owner: str, called: Mapping[str, str], labels: Labels) -> None:
    """See `datapath.host.Sandboxes.rename`."""
    found = {key: plans.find_sandbox(owner, key, tx.state) for key in (*called, *labels)}
    wanted = [
        (one, replace(one, name=called.get(key, one.name), labels=labels.get(key, one.labels)))
        for key, one in found.items()
        if one is not None
    ]
    _commit_named(tx, *(changed for before, changed in wanted if changed != before))


def create_network(tx: Transaction, request: NetworkRequest, allots: bool) -> Network:
    """See `datapath.host.Networks.create`."""
    if allots:
        endpoints.evict_dead(tx)
    return lifecycle.create(tx, request, allots)


def remove_network(tx: Transaction, name: str, owner: str, force: bool, members: bool) -> Network:
    """See `datapath.host.Networks.remove`."""
    endpoints.evict_dead(tx)
    if members:
        network = tx.state.network(name)
        refuse_foreign(network.owner, f"network {network.name}", owner, force)
        for endpoint in tx.state.endpoints_of_network(network.id):
            if tx.state.owner(endpoint) == owner:
                endpoints.evict(tx, endpoint)
    return lifecycle.remove(tx, name, owner, force)


def create_endpoint(
    tx: Transaction,
    request: EndpointRequest,
    owner: str,
    key: str,
    allots: bool,
    asker: tuple[int, int] = (0, 0),
) -> Endpoint:
    """See `datapath.host.Endpoints.create`."""
    endpoints.evict_dead(tx)
    if allots:
        for endpoint in plans.superseded(request, owner, key, tx.state):
            # Addresses he allots, MACs his users choose: of two that run with the same, the second is refused.
            if plans.has_address(endpoint, request) or not _runs(tx, endpoint):
                tx.warn(f"endpoint {endpoint.id[:12]} of {owner} has lost its address to another: removed")
                endpoints.evict(tx, endpoint)
    claims.prepare(tx, () if plans.find_endpoint(owner, key, tx.state) else [request])
    with tx.planning(request.network):
        planned = plans.plan_create_endpoint(request, owner, key, tx.state, tx.facts, tx.config, tx.fresh)
        if planned.known:
            return planned.endpoint
        made = replace(planned.endpoint, asker=asker[0], asker_start=asker[1])
        planned = planned._replace(endpoint=made)
        rows = replace(planned.sandbox, phase=Phase.CREATING), planned.endpoint
        if planned.network.built:
            tx.commit(*rows)
    if not planned.network.built:
        networks.build(tx, planned.network)
        tx.journal(*rows)
    with ExitStack() as undo:
        undo.callback(endpoints.remove, tx, planned.endpoint)
        (claimed,) = claims.claim(tx, planned.endpoint)
        endpoint = replace(endpoints.create(tx, claimed), phase=Phase.READY)
        tx.commit(planned.sandbox, endpoint)
        undo.pop_all()
    return endpoint


def _runs(tx: Transaction, endpoint: Endpoint) -> bool:
    """A process is in the endpoint's sandbox."""
    path = tx.path(endpoint.sandbox_id)
    return path is not None and netns.is_inhabited(path)


def join(tx: Transaction, name: str, sandbox_name: str) -> JoinInfo:
    """See `datapath.host.Endpoints.join`."""
    endpoint, sandbox = plans.require_endpoint(name, tx.state), tx.state.sandbox(sandbox_name)
    network = tx.state.networks[endpoint.network_id]
    path = tx.path(sandbox.id)
    if path is None:
        raise ConfigError(f"sandbox {sandbox.label} cannot be joined: nothing is at {sandbox.key}")
    planned = plans.plan_join(endpoint, sandbox, tx.state)
    driver, before = tx.driver(network), {e.id: tx.state.endpoints[e.id] for e in planned.changed}
    if endpoint.sandbox_id == sandbox.id:
        return driver.join_info(network, endpoint, tx.mtu(network))
    waiting = endpoint.sandbox_id
    with ExitStack() as undo:
        undo.callback(_return_to, tx, endpoint)
        # Before the row says so: killed in between, it is joined again when it is asked for again.
        planned = planned._replace(endpoint=driver.join(network, planned.endpoint, path) or planned.endpoint)
        names.lead(tx, planned.endpoint, path)
        tx.commit(
            *(replace(e, phase=Phase.CHANGING) for e in (planned.endpoint, *before.values())),
            replace(tx.state.sandboxes[waiting], phase=Phase.REMOVING),
        )
        endpoints.rewire(tx, path, before, planned.changed)
        endpoints.open_links(tx, planned.endpoint)
        ports.publish(tx, planned.endpoint, planned.endpoint.ports)
        joined = replace(planned.endpoint, phase=Phase.READY)
        policies.admit(tx, tx.state.including(joined, *planned.changed), sandbox.id)
        names.update(tx, tx.state.including(joined, *planned.changed), sandbox.id)
        tx.commit(joined, *planned.changed)
        undo.pop_all()
    tx.delete(tx.state.sandboxes[waiting])
    return driver.join_info(network, planned.endpoint, tx.mtu(network))


def _return_to(tx: Transaction, endpoint: Endpoint) -> None:
    """The endpoint's device waits on the host again, as its row said before."""
    there, waiting = tx.state.endpoints[endpoint.id].sandbox_id, tx.state.sandboxes[endpoint.sandbox_id]
    again = endpoints.make_wait(tx, endpoint)
    rows = replace(waiting, phase=Phase.READY), replace(again, phase=Phase.READY)
    names.update(tx, tx.state.including(*rows), there, waiting.id)
    tx.commit(*rows)
    if there != endpoint.sandbox_id:
        endpoints.reconcile_sandbox(tx, there)


def leave(tx: Transaction, name: str, owner: str) -> bool:
    """See `datapath.host.Endpoints.leave`."""
    endpoint = plans.require_endpoint(name, tx.state, owner)
    there = tx.state.sandboxes[endpoint.sandbox_id]
    if not there.key:
        return False
    if endpoint.handed_over:
        handover.take_out(tx, endpoint)
        return True
    path = tx.path(there.id)
    planned = plans.plan_leave(endpoint, tx.state, tx.fresh)
    before = {e.id: tx.state.endpoints[e.id] for e in planned.changed}
    ports.unpublish(tx, endpoint, endpoint.ports)
    changing = [replace(e, phase=Phase.CHANGING) for e in planned.changed]
    left = replace(planned.endpoint, phase=Phase.CHANGING)
    after = tx.state.including(planned.sandbox, left, *changing)
    names.update(tx, after, there.id)
    tx.commit(planned.sandbox, left, *changing)
    tx.commit(replace(endpoints.make_wait(tx, planned.endpoint), phase=Phase.READY))
    endpoints.rewire(tx, path, before, planned.changed)
    tx.commit(*planned.changed)
    return True


def delete_endpoint(tx: Transaction, name: str, owner: str, force: bool) -> bool:
    """See `datapath.host.Endpoints.delete`."""
    try:
        endpoint = plans.find_endpoint(owner, name, tx.state) or plans.require_endpoint(name, tx.state)
    except NotFoundError:
        return False
    refuse_foreign(tx.state.owner(endpoint), f"endpoint {endpoint.id[:12]}", owner, force)
    there = endpoint.sandbox_id
    planned = plans.plan_leave(endpoint, tx.state, tx.fresh)
    before = {e.id: tx.state.endpoints[e.id] for e in planned.changed}
    changing = (replace(e, phase=Phase.CHANGING) for e in planned.changed)
    tx.journal(replace(endpoint, phase=Phase.REMOVING), *changing)
    endpoints.remove(tx, endpoint)
    endpoints.rewire(tx, tx.path(there), before, planned.changed)
    tx.commit(*planned.changed)
    return True


def publish(
    tx: Transaction, name: str, specs: Sequence[str], shared: bool = False
) -> tuple[PortMapping, ...]:
    """See `datapath.host.Ports.publish`."""
    endpoints.evict_dead(tx)
    endpoint = plans.require_endpoint(name, tx.state)
    planned = plans.plan_publish(endpoint, specs, tx.state, ports.context(tx), shared)
    for line in (line for spec in specs for line in lone_networks(spec)):
        tx.warn(line)
    if planned.mappings:
        with ExitStack() as undo:
            undo.callback(endpoints.reconcile_sandbox, tx, endpoint.sandbox_id)
            undo.callback(tx.commit, endpoint)
            tx.journal(planned.endpoint)
            ports.publish(tx, planned.endpoint, planned.mappings)
            tx.commit(replace(planned.endpoint, phase=Phase.READY))
            undo.pop_all()
    return planned.endpoint.ports


def unpublish(tx: Transaction, name: str, specs: Sequence[str]) -> tuple[PortMapping, ...]:
    """See `datapath.host.Ports.unpublish`."""
    endpoint = plans.require_endpoint(name, tx.state)
    planned = plans.plan_unpublish(endpoint, specs)
    if planned.mappings:
        with ExitStack() as undo:
            undo.callback(endpoints.reconcile_sandbox, tx, endpoint.sandbox_id)
            undo.callback(tx.commit, endpoint)
            tx.journal(planned.endpoint)
            ports.unpublish(tx, endpoint, planned.mappings)
            tx.commit(replace(planned.endpoint, phase=Phase.READY))
            undo.pop_all()
    return planned.endpoint.ports
