# SPDX-License-Identifier: Apache-2.0
"""This host as a member of a cluster: joined when the first network of several hosts is asked for, and followed when
its own address or the size of its packets changes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath.drivers.overlay.device import ensured
from datapath.drivers.overlay.spec import PORT, encrypted
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, ExistsError, PrivilegeError, StateError
from datapath.kernel import netns, sysctl
from datapath.model.clusters import Underlay, underlay
from datapath.model.digests import sha256
from datapath.model.drivers import spec_of
from datapath.model.networks import Network
from datapath.model.peers import Peer
from datapath.store import locking, tunnel_keys
from datapath.store.sole import AGENT

if TYPE_CHECKING:
    from datapath.store.cluster import Cluster

_ID = "cluster id"  # the note of which cluster this host has joined
# Seconds that may be waited for the store: where a reserve or a queue takes its place, and where nothing does.
SHORTLY, PATIENCE = 1.0, 4.0


def me(tx: Transaction) -> Peer | None:
    """This host's row; None: it has joined no cluster."""
    return tx.state.peers.get(tx.state.installation_id)


def _wanted(tx: Transaction, where: Underlay) -> Peer:
    """This host's row as it should be."""
    ident, known = tx.state.installation_id, me(tx)
    mac = known.mac if known else "02:" + sha256(f"VTEP {ident}".encode())[:5].hex(":")
    # A key that was taken away is made anew before the others hear that there is none.
    secret = any(encrypted(network) for network in tx.built if network.spans)
    keys = (ensured if secret else tunnel_keys.read)(tx.settings.state_dir)
    return Peer(
        ident,
        os.uname().nodename,
        known.number if known else 0,
        where.address,
        mac,
        where.mtu,
        wireguard_key=keys[-1].public if keys else "",
        wireguard_port=tx.config.datapath.wireguard_port if keys else 0,
    )


def joined(tx: Transaction, what: str) -> Cluster:
    """The store, which `what` needs, with this host among its members. ConfigError: daemon.json is in the way of it, or
    names another port for tunnels than the cluster has; ExistsError: another host has its name or address; StateError,
    PrivilegeError."""
    store = tx.link.store(what)
    if tx.link.refused is not None:
        raise tx.link.refused
    wanted = _wanted(tx, underlay(tx.config.cluster_advertise, tx.observed))
    port = tx.config.cluster.port if tx.config.cluster else 0
    known = tx.store.note(PORT)
    if me(tx) == wanted and known is not None and port in (0, int(known)):
        return store
    from datapath.cluster import members

    expected = tx.store.note(_ID) or ""
    found = members.join(store, wanted, instance(), os.urandom(16).hex(), port, expected)
    with tx.store.transaction():
        tx.store.set_note(_ID, found.info.id)
        tx.store.set_note(PORT, str(found.info.port))
        tx.commit(found.peer)
    return store


def advise(tx: Transaction) -> None:
    """Says so if nobody on this host follows the cluster."""
    if not locking.held(tx.settings.state_dir / AGENT):
        tx.warn(
            "no agent is at work on this host: what begins on other hosts it hears of by its next command only; start "
            "`datapathctl agent`, or its unit: `systemctl enable --now datapathctl-agent`"
        )


def instance() -> str:
    """Tells this run of the host from any other, and from one that runs beside it with a copy of its state."""
    return f"{sysctl.read('kernel/random/boot_id')}-{netns.cookie():x}"


def path_mtu(network: Network, where: Underlay) -> int:
    """Bytes of an IP packet that the network's way to the other hosts takes."""
    return spec_of(network).path_mtu(network, where.mtu, where.address.version)


def follow_underlay(tx: Transaction) -> None:
    """Makes the networks' MTU fit what the way to the other hosts takes now, and tells these if they have to send to
    another address. If the store is away they hear of it later; that they refuse it
    is said by what needs the cluster, or at the end."""
    spanning = [network for network in tx.state.networks.values() if network.spans]
    own = me(tx)
    if not spanning or own is None:
        return
    try:
        where = underlay(tx.config.cluster_advertise, tx.observed)
    except ConfigError:
        return  # `doctor` says so
    fitted = [replace(network, path_mtu=path_mtu(network, where)) for network in spanning]
    tx.commit(*(new for new, old in zip(fitted, spanning, strict=True) if new != old))
    if _wanted(tx, where) == own or not tx.link.configured:
        return
    try:
        with tx.link.store("an overlay network").within(SHORTLY):
            joined(tx, "an overlay network")
    except StateError as error:
        tx.link.away = error
    except (ExistsError, ConfigError, PrivilegeError) as error:
        tx.link.refused = error


def cluster_id(tx: Transaction) -> str:
    """Which cluster this host is a member of; "": of none."""
    return tx.store.note(_ID) or ""
