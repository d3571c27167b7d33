# SPDX-License-Identifier: Apache-2.0
"""Networks on this host: planned, built, torn down, renamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from datapath.engine import leases, names, ports
from datapath.engine.transaction import Transaction
from datapath.model.drivers import spec_of, traits
from datapath.model.networks import Network, NetworkRequest
from datapath.model.parsing import Prefix
from datapath.model.rows import Phase
from datapath.plan.networks import plan_network_create, plan_network_rename


def plan(tx: Transaction, request: NetworkRequest, avoid: Sequence[Prefix] = ()) -> Network:
    """What `create` would build. `avoid`: further prefixes that are taken. ConfigError, ExistsError;
    NotSupportedError: the host lacks what it needs."""
    facts = tx.facts._replace(prefixes=(*tx.facts.prefixes, *avoid))
    planned = plan_network_create(request, tx.state, facts, tx.config, tx.fresh)
    tx.driver(planned).require(planned)
    return planned


def rename(tx: Transaction, name: str, new: str, by: str) -> Network:
    """See `datapath.host.Networks.rename`."""
    network = plan_network_rename(name, new, tx.state, by)
    if network != tx.state.networks[network.id]:
        members = names.members(tx, network)
        tx.commit(network, *(replace(endpoint, phase=Phase.CHANGING) for endpoint in members))
        if members or network.id in {service.network_id for service in tx.state.services.values()}:
            names.sync(tx)
        tx.commit(*members)
    return network


def take_away(tx: Transaction, gone: tuple[Network, ...]) -> None:
    """Networks that are "removing", on this host."""
    tx.commit(*gone)
    for network in gone:
        teardown(tx, network)


def build(tx: Transaction, network: Network, done: Callable[[], None] = lambda: None) -> Network:
    """Builds a planned network: intent, kernel, record. `done`: further notes of the store, with the record."""
    network = replace(network, phase=Phase.CREATING)
    tx.commit(network)
    try:
        tx.driver(network).create_network(network, tx.mtu(network))
        for part, view in tx.parts():  # nobody looks for what is missing of it once it is ready
            part.write_network(view, network)
    except BaseException:
        teardown(tx, network)
        raise
    network = replace(network, phase=Phase.READY, built=True)
    with tx.store.transaction():
        done()
        tx.commit(network)
    if network.plugin:
        tx.look_again()  # nobody says which devices it has made
    refresh_host(tx)
    return network


def teardown(tx: Transaction, network: Network) -> None:
    """Takes a network away; a predefined one goes back to being unused."""
    names.update_elsewhere(tx, tx.state.without(*tx.state.remotes_of_network(network.id)))
    tx.driver(network).delete_network(network)
    for part, view in tx.parts(
        without=network
    ):  # the row goes last: killed here, the next command completes it
        part.forget_network(view, network)
    leases.release_network(tx, network)
    if network.plugin:
        tx.look_again()
    if network.predefined:
        tx.commit(replace(network, phase=Phase.READY, built=not traits(network).endpoints, subnets=()))
    else:
        tx.delete(network, *tx.state.blocks_of_network(network.id), *tx.state.remotes_of_network(network.id))


def refresh_host(tx: Transaction) -> None:
    """Keeps packets forwarded that have to be, and what drivers have on the host up to date with it."""
    gateways = (spec_of(network).gateway_device(network) for network in tx.built)
    for device in tx.context.links.keep_forwarding(filter(None, gateways)):
        tx.warn(f"forwarding had been switched off for {device}: it is on again")
    # Before the programs choose from a range, the kernel must not.
    ports.reserve(tx)
    for part, view in tx.parts():
        part.refresh(view)


def lost(tx: Transaction) -> list[Network]:
    """The networks that have to be built again as a whole: what their driver had on the host is gone."""
    return [network for part, view in tx.parts() if part.lost(view) for network in view.networks]
