# SPDX-License-Identifier: Apache-2.0
"""Networks, created and removed as users ask for it: on this host, or for all hosts of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from datapath.engine import networks, spanning
from datapath.engine.transaction import Transaction, now
from datapath.errors import InUseError, NotFoundError
from datapath.model.drivers import Scope
from datapath.model.networks import Network, NetworkRequest
from datapath.plan.networks import (
    plan_network_create,
    plan_network_remove,
    scope_of,
    superseded_networks,
)
from datapath.plan.pruning import plan_network_prune


def create(tx: Transaction, request: NetworkRequest, allots: bool = False) -> Network:
    """`network create`. `allots`: see `datapath.host.Networks.create`. Errors as those of `networks.plan`; of a network
    that is to span hosts those of `spanning.create`, too."""
    gone = superseded_networks(request, tx.state) if allots else ()
    if gone:
        _refuse(tx, request, gone)
        for network in gone:
            tx.warn(f"network {network.name} of {network.owner} has lost its subnet to another: removed")
        networks.take_away(tx, gone)
        tx.look_again()
    if scope_of(request) == Scope.GLOBAL:
        return spanning.create(tx, request)
    return networks.build(tx, networks.plan(tx, request))


def _refuse(tx: Transaction, request: NetworkRequest, gone: tuple[Network, ...]) -> None:
    """Errors of `networks.plan` once these are gone, none of which goes for nothing."""
    devices = tx.facts.devices - {network.device for network in gone}
    facts = tx.facts._replace(devices=devices)
    planned = plan_network_create(request, tx.state.without(*gone), facts, tx.config, tx.fresh)
    tx.driver(planned).require(planned)


def remove(tx: Transaction, name: str, by: str, force: bool = False) -> Network:
    """`network rm` by the owner `by`; one that spans hosts goes for all of them. NotFoundError, ConfigError;
    InUseError: it has endpoints, or is another owner's and not `force`; StateError: the cluster's store; PluginError:
    its plugin does not answer, and not `force`."""
    try:
        network = plan_network_remove(name, tx.state, by, force)
    except NotFoundError:
        elsewhere = spanning.find(tx, name)
        if elsewhere is None:
            raise
        spanning.remove(tx, elsewhere)
        return elsewhere
    for part, _ in tx.parts() if not force else ():
        part.check_removal(network)
    if network.spans:
        spanning.remove(tx, network)
    else:
        networks.take_away(tx, (network,))
    return network


def prune(tx: Transaction, filters: Sequence[str]) -> list[Network]:
    """`network prune`: every unused network of our own that passes the filters; those that were removed."""
    unused = plan_network_prune(tx.state, filters, now())
    networks.take_away(tx, tuple(network for network in unused if not network.spans))
    return [network for network in unused if not network.spans or _removed_everywhere(tx, network)]


def _removed_everywhere(tx: Transaction, network: Network) -> bool:
    """False: other hosts have members on the network."""
    try:
        spanning.remove(tx, network)
    except InUseError:
        return False
    return True
