# SPDX-License-Identifier: Apache-2.0
"""Recovery before a command: completes what earlier ones left unfinished, rebuilds what was removed."""

from __future__ import annotations

from dataclasses import replace

from datapath.dataplane import entries
from datapath.engine import (
    backends,
    cluster,
    endpoints,
    joining,
    leases,
    names,
    networks,
    policies,
    ports,
    services,
    spanning,
)
from datapath.engine.transaction import Transaction
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.rows import Phase
from datapath.model.sandboxes import Sandbox
from datapath.model.services import Service
from datapath.plan.networks import plan_default_bridge


def recover(tx: Transaction, upgrading: bool = False) -> None:
    """Everything is as the rows say, and no row says that it is in the middle of something."""
    for part, view in tx.parts():
        part.begin(view, upgrading)
    changing = [e.sandbox_id for e in tx.state.endpoints.values() if e.phase == Phase.CHANGING]
    clear_up(tx)
    _rebuild(tx)
    for sandbox_id in dict.fromkeys(changing):
        sandbox = tx.state.sandboxes.get(sandbox_id)
        foreign = sandbox is not None and sandbox.foreign
        whose = f"sandbox {sandbox.label}" if sandbox and foreign else f"container {sandbox_id[:12]}"
        tx.warn(f"ports or names of {whose} were being changed: done")
        endpoints.reconcile_sandbox(tx, sandbox_id)


def clear_up(tx: Transaction) -> None:
    """Takes back what was being created, completes what was being removed, notices what has ended."""
    for owner in tx.owners.values():
        owner.recover(tx)
    for thing in tx.state.unfinished:
        if isinstance(thing, Endpoint):
            if thing.phase != Phase.CHANGING:
                tx.warn(f"endpoint {thing.id[:12]} was left unfinished: removed")
                endpoints.remove(tx, thing)
        elif isinstance(thing, Service):
            services.finish(tx, thing)
        elif isinstance(thing, Sandbox):
            tx.delete(thing)
        elif isinstance(thing, Network):
            tx.warn(f"network {thing.name} was left unfinished: removed")
            networks.teardown(tx, thing)
            tx.look_again()  # else its gateway device's addresses would be taken for the host's
    spanning.take_back(tx)
    leases.settle(tx)


def _rebuild(tx: Transaction) -> None:
    """After a reboot, or if somebody removed devices or pins: builds the desired state again."""
    if not tx.built:
        for part, view in tx.parts():
            part.idle(view)
        return
    joining.follow_underlay(tx)
    lost = {network.id for network in networks.lost(tx)}
    policies.follow(tx)  # before anybody's packets meet programs that have just been loaded
    again = []
    for network in tx.built:
        driver, members = tx.driver(network), tx.state.endpoints_of_network(network.id)
        missing = not tx.facts.devices.issuperset(spec_of(network).devices(network))
        # What programs that were lost knew of a network whose frames others hand over is told them by an update: that
        # network's own devices, with which its members' go, are there.
        if missing or (network.id in lost and not traits(network).questions):
            if network.id not in lost:
                tx.warn(f"network {network.name} was missing on the host: built again")
            driver.delete_network(network)
            driver.create_network(network, tx.mtu(network), members)
            again.append(network)
        else:
            again += [network] if network.id in lost else []
            network = _apply_config(tx, network)
            driver.update_network(
                network, members, _current_mtu(tx, network), lambda e: tx.path(e.sandbox_id)
            )
    _restore(tx, again)
    networks.refresh_host(tx)
    backends.settle(tx)
    cluster.complete(tx)
    names.lead_all(tx)


def _restore(tx: Transaction, again: list[Network]) -> None:
    """The endpoints of networks that were built again, their links and published ports."""
    for network in again:
        driver = tx.driver(network)
        for endpoint in tx.state.endpoints_of_network(network.id):
            driver.restore(network, endpoint)
            names.lead_again(tx, endpoint)
            ports.publish(tx, endpoint, endpoint.ports)
        driver.open_links(network, entries.link_entries(network, tx.state))
    if again:
        services.rebuild(tx)
        names.sync(tx)


def _apply_config(tx: Transaction, network: Network) -> Network:
    """What daemon.json and the host say of the default network, as far as it may change while it is in use."""
    if network.name != "bridge":
        return network
    wanted = plan_default_bridge(tx.state, tx.facts, tx.config)
    if wanted.options == network.options:
        return network
    wanted = replace(wanted, phase=network.phase)
    tx.commit(wanted)
    return wanted


def _current_mtu(tx: Transaction, network: Network) -> int | None:
    """Bytes of an IP packet; None: as it is, as no default route says at the moment what it is to be."""
    return network.mtu or (tx.facts.default_mtu if tx.facts.default_route else None)
