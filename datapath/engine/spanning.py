# SPDX-License-Identifier: Apache-2.0
"""Networks of several hosts: created and removed for all of them, and taken over by this one when it first takes part.

A network that is being created or removed is noted first: killed in between, the next command takes it back from the
store, too, or sees whether that has it still.
"""

from __future__ import annotations

import json
from contextlib import suppress
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
from datapath.store import heard
from datapath.store.cluster import UncertainError

if TYPE_CHECKING:
    from datapath.store.cluster import Cluster

# Notes, JSON: ids of networks.
_UNFINISHED = "networks of the cluster that are being created"
_LEAVING = "networks of the cluster that are being removed"


def create(tx: Transaction, request: NetworkRequest) -> Network:
    """`network create` for all hosts. Errors as those of `networks.create`; StateError, PrivilegeError: the cluster's
    store."""
    what = f"network driver {request.driver}"
    store = tx.link.store(what)
    with store.within(joining.PATIENCE):
        _forget_gone(tx, store)
    planned = networks.plan(tx, request)
    with store.within(joining.PATIENCE):  # not before it is known that this host can have the network
        joining.joined(tx, what)
    where = underlay(tx.config.cluster_advertise, tx.observed)
    planned = replace(planned, path_mtu=joining.path_mtu(planned, where))
    prepare_parts(tx, planned, what)
    with tx.store.transaction():
        _note(tx, _UNFINISHED, planned.id)
        tx.commit(planned)
    try:
        with store.within(joining.PATIENCE):
            made = _create(tx, store, request, planned)
        built = networks.build(tx, made, lambda: _settled(tx, _UNFINISHED, made.id))
    except BaseException:
        left = tx.state.networks.get(planned.id)
        if left is not None:
            with tx.store.transaction():  # it may have been ready already
                _note(tx, _UNFINISHED, planned.id)
                tx.commit(replace(left, phase=Phase.REMOVING))
            networks.teardown(tx, left)
        take_back(tx)
        raise
    heard.write(tx.settings.run_dir, 0)  # it is new: there is nothing else to hear of it
    joining.advise(tx)
    return built


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


def prepare_parts(tx: Transaction, network: Network, what: str) -> None:
    """What the driver needs of the host before anything is changed for the network, for which the others are told what
    they need to know of this host. InUseError names who has it."""
    for part, view in tx.parts():
        part.prepare(view, network)
    with tx.link.store(what).within(joining.PATIENCE):
        joining.joined(tx, what)


def _noted(tx: Transaction, note: str) -> list[str]:
    found: list[str] = json.loads(tx.store.note(note) or "[]")
    return found


def _note(tx: Transaction, note: str, ident: str) -> None:
    others = [one for one in _noted(tx, note) if one != ident]
    tx.store.set_note(note, json.dumps([*others, ident]))


def _settled(tx: Transaction, note: str, ident: str) -> None:
    left = [one for one in _noted(tx, note) if one != ident]
    tx.store.set_note(note, json.dumps(left) if left else None)


def take_back(tx: Transaction) -> None:
    """What commands did not complete: of networks that were being created the store forgets; those that were being
    removed go here, if they are gone there. If the store is away, a later command does it."""
    created = [ident for ident in _noted(tx, _UNFINISHED) if ident not in tx.state.networks]
    removed = _noted(tx, _LEAVING)
    if not (created or removed) or not tx.link.configured:
        return
    from datapath.cluster import networks as verbs

    try:
        store = tx.link.store("a network that was not completely created or removed")
        with store.within(joining.SHORTLY):
            for ident in created:
                try:
                    verbs.remove(store, ident)
                except InUseError as error:
                    tx.warn(str(error))
                _settled(tx, _UNFINISHED, ident)
            there = {network.id for network in verbs.networks(store)} if removed else set()
    except StateError as error:
        tx.link.away = error
        return
    for ident in removed:
        if ident not in there:
            cluster.forget(tx, ident)
        _settled(tx, _LEAVING, ident)


# ---- taking part, and no more ------------------------------------------------------------------


def adopt(tx: Transaction, name: str) -> Network:
    """Takes over a network that another host has created. NotFoundError: there is none of that name or id in the
    cluster either; ConfigError, ExistsError, NotSupportedError: this host cannot take part; StateError."""
    from datapath.cluster import networks as verbs

    store = tx.link.store(f"network {name}")
    what = f"network {name}"
    with store.within(joining.PATIENCE):
        found = verbs.find(store, name)
        _forget_gone(tx, store)
    planned = plan_adoption(found, tx.state, tx.facts)
    tx.driver(planned).require(planned)
    where = underlay(tx.config.cluster_advertise, tx.observed)
    planned = replace(planned, path_mtu=joining.path_mtu(planned, where))
    with store.within(joining.PATIENCE):
        joining.joined(tx, what)
    prepare_parts(tx, planned, what)
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


def update(tx: Transaction, store: Cluster, idents: list[str]) -> None:
    """This host learns all that the store knows of these networks and of the hosts; of those that are gone, it is told.
    NotFoundError: one of them is gone."""
    from datapath.cluster import addresses

    part = addresses.part(store, idents)
    cluster.follow(tx, cluster.compared(tx.state, idents, part.rows))
    heard.write(tx.settings.run_dir, part.revision)
    there = {network.id for network in part.networks}
    for ident in idents:
        if ident not in there:
            name = tx.state.networks[ident].name
            cluster.forget(tx, ident)
            raise NotFoundError(f"network {name} not found: it was removed on another host")


def remove(tx: Transaction, network: Network) -> None:
    """The network goes for all hosts, and from this one. InUseError: it has endpoints on others, which it names;
    StateError: the store does not answer, and nothing is changed."""
    from datapath.cluster import networks as verbs

    store = tx.link.store(f"removing network {network.name}")
    _note(tx, _LEAVING, network.id)
    try:
        with store.within(joining.PATIENCE):
            cluster.settle(tx, store)
            verbs.remove(store, network.id)
    except UncertainError:
        raise  # the next command looks
    except BaseException:
        _settled(tx, _LEAVING, network.id)
        raise
    if network.id in tx.state.networks:  # gone for all: if it fails here, the next command completes it
        networks.take_away(tx, (replace(network, phase=Phase.REMOVING),))
    _settled(tx, _LEAVING, network.id)


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


def leave(tx: Transaction) -> None:
    """This host, which has no networks of the cluster any more, is no member of it. What it owes is written first: by
    what the store has, its endpoints would be there still. Nothing takes the store's place here, so it is asked though
    it may have taken too long in this command before."""
    own = joining.me(tx)
    if own is None or not tx.link.configured:
        return
    from datapath.cluster import members
    from datapath.cluster.commit import ForgottenError

    tx.link.away = None
    try:
        store = tx.link.store("leaving the cluster")
        with store.within(joining.PATIENCE):
            with suppress(ForgottenError):
                cluster.settle(tx, store)
            members.leave(store, own.id)
    except StateError as error:
        tx.warn(f"{error}: use `datapathctl cluster forget {own.name}` on another host")
