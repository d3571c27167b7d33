# SPDX-License-Identifier: Apache-2.0
"""Networks of several hosts: created and removed for all of them, and taken over by this one when it first takes part.

A network that is being created is noted first: killed in between, the next command takes it back from the store, too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath.drivers.overlay.spec import vni_of
from datapath.engine import cluster, joining, networks
from datapath.engine.transaction import Transaction
from datapath.errors import InUseError, NotFoundError, StateError
from datapath.model.clusters import underlay
from datapath.model.networks import Network, NetworkRequest
from datapath.model.rows import OWNER, Phase
from datapath.plan.networks import plan_adoption

if TYPE_CHECKING:
    from datapath.store.cluster import Cluster

_UNFINISHED = "networks of the cluster that are being created"  # JSON: their ids


def create(tx: Transaction, request: NetworkRequest) -> Network:
    """`network create` for all hosts. Errors as those of `networks.create`; StateError, PrivilegeError: the cluster's
    store."""
    what = f"network driver {request.driver}"
    store = tx.link.store(what)
    with store.within(joining.PATIENCE):
        return _create_in(tx, store, request, what)


def _create_in(tx: Transaction, store: Cluster, request: NetworkRequest, what: str) -> Network:
    joining.joined(tx, what)
    _forget_gone(tx, store)
    planned = networks.plan(tx, request)
    where = underlay(tx.config.cluster_advertise, tx.observed)
    planned = replace(planned, path_mtu=joining.path_mtu(planned, where))
    prepare_parts(tx, planned)
    with tx.store.transaction():
        _note(tx, *_unfinished(tx), planned.id)
        tx.commit(planned)
    try:
        made = _create(tx, store, request, planned)
        return networks.build(tx, made, lambda: _note(tx, *_unfinished(tx, without=made.id)))
    except BaseException:
        if planned.id in tx.state.networks:
            networks.teardown(tx, tx.state.networks[planned.id])
        take_back(tx)
        raise


def _create(tx: Transaction, store: Cluster, request: NetworkRequest, planned: Network) -> Network:
    from datapath.cluster import networks as verbs

    ours = [subnet.prefix for network in tx.state.networks.values() for subnet in network.subnets]
    made = verbs.create(
        store,
        planned,
        missing=[version for version, wanted in ((4, request.ipv4), (6, request.ipv6)) if wanted],
        pools=verbs.default_pools(joining.cluster_id(tx)),
        avoid=[*tx.facts.prefixes, *ours],
        vni=vni_of(planned),
    )
    return replace(made, phase=Phase.CREATING)


def prepare_parts(tx: Transaction, network: Network) -> None:
    """What the driver needs of the host before anything is changed for the network. InUseError names who has it."""
    for part, view in tx.parts():
        part.prepare(view, network)


def _unfinished(tx: Transaction, without: str = "") -> list[str]:
    found: list[str] = json.loads(tx.store.note(_UNFINISHED) or "[]")
    return [ident for ident in found if ident != without]


def _note(tx: Transaction, *idents: str) -> None:
    tx.store.set_note(_UNFINISHED, json.dumps(idents) if idents else None)


def take_back(tx: Transaction) -> None:
    """Networks that a command did not complete: the store forgets them, or a later command has it do so. What others
    use by now stays."""
    left = [ident for ident in _unfinished(tx) if ident not in tx.state.networks]
    if not left or not tx.link.configured:
        return
    from datapath.cluster import networks as verbs

    try:
        store = tx.link.store("a network that was not completely created")
        with store.within(joining.SHORTLY):
            for ident in left:
                try:
                    verbs.remove(store, ident)
                except InUseError as error:
                    tx.warn(str(error))
                _note(tx, *_unfinished(tx, without=ident))
    except StateError as error:
        tx.link.away = error


# ---- taking part, and no more ------------------------------------------------------------------


def adopt(tx: Transaction, name: str) -> Network:
    """Takes over a network that another host has created. NotFoundError: there is none of that name or id in the
    cluster either; ConfigError, ExistsError, NotSupportedError: this host cannot take part; StateError."""
    from datapath.cluster import networks as verbs

    store = tx.link.store(f"network {name}")
    with store.within(joining.PATIENCE):
        joining.joined(tx, f"network {name}")
        found = verbs.find(store, name)
        _forget_gone(tx, store)
    planned = plan_adoption(found, tx.state, tx.facts)
    where = underlay(tx.config.cluster_advertise, tx.observed)
    planned = replace(planned, path_mtu=joining.path_mtu(planned, where))
    tx.driver(planned).require(planned)
    prepare_parts(tx, planned)
    made = networks.build(tx, planned)
    tx.look_again()
    return made


def _forget_gone(tx: Transaction, store: Cluster) -> None:
    """Networks that other hosts have removed, and that have no members here, are in nobody's way."""
    from datapath.cluster import networks as verbs

    mine = [network.id for network in tx.state.networks.values() if network.spans]
    if mine:
        there = {network.id for network in verbs.networks(store)}
        for ident in mine:
            if ident not in there:
                cluster.forget(tx, ident)
        tx.look_again()


def update(tx: Transaction, store: Cluster, idents: list[str]) -> None:
    """This host learns all that the store knows of these networks and of the hosts; of those that are gone, it is told.
    NotFoundError: one of them is gone."""
    from datapath.cluster import addresses

    part = addresses.part(store, idents)
    cluster.follow(tx, cluster.compared(tx.state, idents, (*part.peers, *part.blocks, *part.remotes)))
    there = {network.id for network in part.networks}
    for ident in idents:
        if ident not in there:
            name = tx.state.networks[ident].name
            cluster.forget(tx, ident)
            raise NotFoundError(f"network {name} not found: it was removed on another host")


def remove(tx: Transaction, network: Network) -> None:
    """Before a network is taken away here: it goes for all hosts. InUseError: it has endpoints on others, which it
    names; StateError: the store does not answer, and nothing is changed."""
    from datapath.cluster import networks as verbs

    store = tx.link.store(f"removing network {network.name}")
    with store.within(joining.PATIENCE):
        cluster.settle(tx, store)
        verbs.remove(store, network.id)


def find(tx: Transaction, name: str) -> Network | None:
    """A network of the cluster that this host has no part in; None: there is none, or no cluster."""
    if not tx.link.configured:
        return None
    from datapath.cluster import networks as verbs

    store = tx.link.store(f"network {name}")
    try:
        with store.within(joining.PATIENCE):
            found = verbs.find(store, name)
    except NotFoundError:
        return None
    return replace(found, owner=OWNER)
