# SPDX-License-Identifier: Apache-2.0
"""Pools and addresses that IPAM plugins have given out: they go back with the rows that have them, or if none has."""

from __future__ import annotations

from collections.abc import Iterable

from datapath.drivers.remote import leases
from datapath.engine.transaction import Transaction
from datapath.errors import PluginError
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.plugins import Lease


def release_network(tx: Transaction, network: Network) -> None:
    """A network's pools, before its row goes."""
    if network.leased:
        _release(tx, leases.of_network(network))


def release_endpoint(tx: Transaction, endpoint: Endpoint) -> None:
    """An endpoint's addresses, before its row goes."""
    network = tx.state.networks[endpoint.network_id]
    if network.leased:
        _release(tx, leases.of_endpoint(network, endpoint))


def settle(tx: Transaction) -> None:
    """What was given out and no row has: the command that asked for it failed, was killed, or has only looked."""
    note = leases.Leases(tx.store)
    noted = note.all()
    if not noted:
        return
    kept = leases.held(tx.state)
    for lease in [lease for lease in noted if lease in kept]:
        note.remove(lease)
    # Addresses before their pools.
    _release(tx, sorted((lease for lease in noted if lease not in kept), key=lambda lease: not lease.address))


def _release(tx: Transaction, gone: Iterable[Lease]) -> None:
    """As in Docker, that a plugin does not take something back is a warning."""
    note = leases.Leases(tx.store)
    for lease in gone:
        try:
            tx.context.plugins.release(lease)
        except PluginError as error:
            tx.context.warn_once(f"{lease.address or 'a pool'} was not given back: {error}")
        note.remove(lease)
