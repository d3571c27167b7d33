# SPDX-License-Identifier: Apache-2.0
"""Endpoints: created on the host's side, joined to a sandbox, deleted; and which has the default routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datapath.dataplane import entries
from datapath.drivers.base import attempt
from datapath.engine import backends, claims, leases, names, ports
from datapath.engine.transaction import Transaction
from datapath.errors import DatapathError
from datapath.kernel import process
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, short
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State
from datapath.plan.endpoints import assign_gateways


def create(tx: Transaction, endpoint: Endpoint, path: str | None = None) -> Endpoint:
    """Makes the device of an endpoint whose row is written; `path`: of the namespace that it will join, if that is
    known. Its device's index is for the caller to write down, with the next phase."""
    network = tx.state.networks[endpoint.network_id]
    endpoint = tx.driver(network).create_endpoint(network, endpoint, tx.mtu(network), path)
    tx.state = tx.state.including(endpoint)
    return endpoint


def join(tx: Transaction, endpoint: Endpoint, path: str) -> Endpoint:
    """Puts an endpoint that has been created into the sandbox with that namespace path, opens the links that it has a
    part in, and publishes its ports. The endpoint with what is known of it then, for the caller to write down."""
    network = tx.state.networks[endpoint.network_id]
    endpoint = tx.driver(network).join(network, endpoint, path) or endpoint
    tx.state = tx.state.including(endpoint)
    names.lead(tx, endpoint, path)
    open_links(tx, endpoint)
    ports.publish(tx, endpoint, endpoint.ports)
    return endpoint


def attach(tx: Transaction, endpoint: Endpoint, path: str) -> Endpoint:
    """Both at once, with the device made in its place. Undone on failure, but for the row."""
    endpoint = create(tx, endpoint, path)
    try:
        return join(tx, endpoint, path)
    except BaseException:
        network, endpoint = tx.state.networks[endpoint.network_id], tx.state.endpoints[endpoint.id]
        tx.driver(network).delete_endpoint(network, endpoint, path)
        raise


def settled(
    tx: Transaction, joined: Sequence[Endpoint], mappings: tuple[PortMapping, ...], path: str
) -> list[Endpoint]:
    """All endpoints of a sandbox, whose drivers may have answered that no default route can be where one was planned:
    the routes and ports then are where they can. The endpoints, for the caller to write down."""
    wanted = assign_gateways(joined, mappings, tx.state)
    before = {endpoint.id: endpoint for endpoint in joined}
    changed = tuple(endpoint for endpoint in wanted if endpoint != before[endpoint.id])
    if changed:
        rewire(tx, path, before, changed)
        if mappings and not any(endpoint.gateway for endpoint in wanted):
            tx.warn("Published ports are discarded: no network of the container leads outside")
    return list(wanted)


def open_links(tx: Transaction, endpoint: Endpoint) -> None:
    """What `--link` opens on the endpoint's network, where members may not talk to each other."""
    network = tx.state.networks[endpoint.network_id]
    if not network.icc:
        tx.driver(network).open_links(network, entries.link_entries(network, tx.state))


def remove(tx: Transaction, endpoint: Endpoint, *along: Sandbox) -> None:
    """Takes an endpoint's names away, closes its ports, removes its device and its row, whatever of it is there; and
    the rows of its place and of those that are named."""
    network = tx.state.networks[endpoint.network_id]
    names.withdraw(tx, endpoint)
    ports.unpublish(tx, endpoint, endpoint.ports)
    tx.driver(network).delete_endpoint(network, endpoint, tx.path(endpoint.sandbox_id))
    leases.release_endpoint(tx, endpoint)
    gone = {sandbox.id: sandbox for sandbox in (*place(tx, endpoint), *along)}
    owed = claims.release(tx, endpoint) if network.spans else ()
    tx.commit(*owed, gone=(endpoint, *gone.values()))
    if any(mapping.acl for mapping in endpoint.ports):
        tx.refresh_acls()


def make_wait(tx: Transaction, endpoint: Endpoint) -> Endpoint:
    """A device for an endpoint that is in no sandbox, in place of the one that it has; the row is for the caller to
    write down."""
    network = tx.state.networks[endpoint.network_id]
    tx.driver(network).delete_endpoint(network, endpoint, tx.path(endpoint.sandbox_id))
    return create(tx, replace(endpoint, host_ifindex=0))


def remove_all(tx: Transaction, endpoints: tuple[Endpoint, ...], subject: str) -> None:
    """Goes through all, then reports what went wrong, as an ExceptionGroup about the subject."""
    failures: list[Exception] = []
    for endpoint in endpoints:
        try:
            remove(tx, endpoint)
        except (DatapathError, ExceptionGroup) as error:
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{subject} could not be cleaned up completely", failures)


def going(state: State) -> tuple[Sandbox | Endpoint, ...]:
    """The rows of all sandboxes and endpoints, as they are while they are being taken away."""
    sandboxes = (replace(row, phase=Phase.REMOVING) for row in state.sandboxes.values())
    return *sandboxes, *(replace(row, phase=Phase.REMOVING) for row in state.endpoints.values())


def remove_every(tx: Transaction, failures: list[Exception]) -> None:
    """Takes all endpoints and sandboxes away, whose rows say so already, on a host that everything leaves: what
    packet programs know of them goes with the programs, so that only a command which follows a killed one looks
    for that. What went wrong is added to the failures."""
    removed = list[Endpoint]()
    tx.context.leaving = True
    try:
        for endpoint in tx.state.endpoints.values():
            network = tx.state.networks[endpoint.network_id]
            if traits(network).programs and not (network.spans or network.leased):
                path = tx.path(endpoint.sandbox_id)
                attempt(failures, tx.driver(network).delete_endpoint, network, endpoint, path)
                removed.append(endpoint)
    finally:
        tx.context.leaving = False
    if not failures:
        tx.delete(*removed)
    for endpoint in [*tx.state.endpoints.values()]:
        attempt(failures, remove, tx, endpoint)
    if not failures:
        tx.delete(*tx.state.sandboxes.values())


def evict_dead(tx: Transaction) -> None:
    """Removes the endpoints of other owners whose device is gone, with their sandbox, before somebody asks for an
    address or a port: nobody uses theirs any more, and nobody may ever say so."""
    for endpoint in list(tx.state.endpoints.values()):
        if is_dead(tx, endpoint):
            evict(tx, endpoint)


def is_dead(tx: Transaction, endpoint: Endpoint) -> bool:
    """The endpoint is another owner's, and its device on the host is gone, goes with a namespace that has ended, or
    waits for a process that has."""
    sandbox = tx.state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is None or not sandbox.foreign or endpoint.phase != Phase.READY or not endpoint.host_ifindex:
        return False
    links = tx.context.links
    if links.index(endpoint.host_ifname) != endpoint.host_ifindex:
        return True
    if _is_abandoned(tx, endpoint):
        return True
    return tx.path(sandbox.id) is None and links.is_cut_off(endpoint.host_ifindex)


def _is_abandoned(tx: Transaction, endpoint: Endpoint) -> bool:
    """The sandbox's device is on the host still, and the process that was to move it has ended: a dockerd that was
    killed while it started a container, whose successor knows of nothing to take back. While that process lives, the
    endpoint of a container that is being started looks the same."""
    from datapath.drivers.inside.driver import waiting_name

    if not endpoint.asker or tx.context.links.index(waiting_name(endpoint)) is None:
        return False
    return not process.alive(endpoint.asker, endpoint.asker_start)


def evict(tx: Transaction, endpoint: Endpoint) -> None:
    """Removes an endpoint of another owner, and with the last one its sandbox, if nobody is in there."""
    sandbox = tx.state.sandboxes.get(endpoint.sandbox_id)
    others = [one for one in tx.state.endpoints_of_sandbox(endpoint.sandbox_id) if one.id != endpoint.id]
    empty = sandbox is not None and not others and tx.path(sandbox.id) is None
    tx.commit(replace(endpoint, phase=Phase.REMOVING))
    remove(tx, endpoint, *([sandbox] if sandbox and empty else []))


def place(tx: Transaction, endpoint: Endpoint) -> tuple[Sandbox, ...]:
    """The sandbox that the endpoint is in, if that is only known for its endpoints' sake and has no other: a place to
    wait, or one that endpoints were handed over to. It goes in one step with the endpoint, as nobody else would know
    that it is to go."""
    sandbox = tx.state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is None or not sandbox.foreign or (sandbox.key and not endpoint.handed_over):
        return ()
    others = [one for one in tx.state.endpoints_of_sandbox(sandbox.id) if one.id != endpoint.id]
    return () if others else (sandbox,)


def rewire(
    tx: Transaction, path: str | None, before: Mapping[str, Endpoint], changed: tuple[Endpoint, ...]
) -> None:
    """Endpoints of a sandbox whose default routes or ports move. Their rows stay "changing"."""
    for endpoint in changed:
        ports.unpublish(tx, before[endpoint.id], before[endpoint.id].ports)
    tx.journal(*(replace(endpoint, phase=Phase.CHANGING) for endpoint in changed))
    for endpoint in sorted(changed, key=lambda e: e.gateway):
        network = tx.state.networks[endpoint.network_id]
        if path is not None and not endpoint.handed_over:
            tx.driver(network).set_routes(network, endpoint, path)
        ports.publish(tx, endpoint, endpoint.ports)
    if changed:
        names.update(tx, tx.state, changed[0].sandbox_id)


def reconcile_sandbox(tx: Transaction, sandbox_id: str) -> None:
    """Gives a sandbox's endpoints the default routes, ports and names that they are to have, whatever they have."""
    holder = tx.state.containers.get(sandbox_id)
    endpoints = [e for e in tx.state.endpoints_of_sandbox(sandbox_id) if e.phase != Phase.REMOVING]
    mappings = holder.ports if holder else tuple(dict.fromkeys(m for e in endpoints for m in e.ports))
    wanted = assign_gateways(endpoints, mappings, tx.state)
    tx.commit(*(replace(endpoint, phase=Phase.CHANGING) for endpoint in wanted))
    path, sandbox = tx.path(sandbox_id), tx.state.sandboxes.get(sandbox_id)
    if sandbox is not None and sandbox.foreign and not sandbox.key:  # it was leaving
        wanted = tuple(make_wait(tx, replace(endpoint, ports=())) for endpoint in wanted)
    for endpoint in sorted(wanted, key=lambda e: e.gateway):
        network = tx.state.networks[endpoint.network_id]
        driver = tx.driver(network)
        if path is not None and not endpoint.handed_over:
            driver.set_routes(network, endpoint, path)
        acls = entries.acl_entries(tuple(tx.state.published))
        driver.sync_ports(network, endpoint, entries.number_entries(tx.state), acls)
        driver.end_denied(endpoint, endpoint.ports)
    tx.refresh_acls()
    backends.follow(tx, tx.state, [sandbox_id])
    names.sync(tx)
    tx.commit(*(replace(endpoint, phase=Phase.READY) for endpoint in wanted))


def forget_sandbox(tx: Transaction, sandbox: Sandbox, endpoints: tuple[Endpoint, ...]) -> None:
    """Removes the sandbox's endpoints, then its row."""
    tx.commit(replace(sandbox, phase=Phase.REMOVING), *(replace(e, phase=Phase.REMOVING) for e in endpoints))
    remove_all(tx, endpoints, f"sandbox {sandbox.name or short(sandbox.id)}")
    tx.delete(sandbox)
