# SPDX-License-Identifier: Apache-2.0
"""What the other hosts of a cluster are told of this one's endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from datapath.dataplane.name_owners import told
from datapath.engine import joining
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, ExistsError, StateError
from datapath.model.endpoints import Endpoint
from datapath.model.peers import Owed, Remote
from datapath.model.state import State
from datapath.plan import backends


def remote_of(endpoint: Endpoint, state: State) -> Remote:
    """An endpoint of this host, as the others see it."""
    container = state.holder(endpoint)
    return Remote(
        id=endpoint.id,
        network_id=endpoint.network_id,
        peer=state.installation_id,
        mac=endpoint.mac,
        ipv4=endpoint.ipv4.ip if endpoint.ipv4 else None,
        ipv6=endpoint.ipv6.ip if endpoint.ipv6 else None,
        **told(endpoint, state)._asdict(),
        labels=container.labels if container else {},
        services=backends.told(endpoint, state),
    )


def renew(tx: Transaction, old: Remote, new: Remote) -> None:
    """Tells them what an endpoint is now. `old`: what they were told, to what is known. If the store is away, it is
    owed."""
    from datapath.cluster import addresses, owed

    if tx.link.away is None:
        try:
            store = tx.link.store("what other hosts know of a container")
            with store.within(joining.SHORTLY):
                addresses.update(store, old, new)
            supersede(tx, owed.claims(new))
            return
        except (StateError, ConfigError) as error:
            tx.link.away = error if isinstance(error, StateError) else StateError(str(error))
    tx.commit(*(Owed(key, value) for key, value in owed.claims(new).items()), durable=False)


def serving(tx: Transaction, members: Iterable[Endpoint], after: State, before: State | None = None) -> None:
    """Tells them which services these endpoints of this host are behind when the rows say `after`, where that is
    otherwise than in `before`; None: whatever they were told. That an address is another host's by now is a warning."""
    for endpoint in members:
        network = tx.state.networks.get(endpoint.network_id)
        if network is None or not network.spans:
            continue
        now = after.endpoints.get(endpoint.id)
        new = backends.told(now, after) if now else {}
        known = before.endpoints.get(endpoint.id) if before else None
        old = backends.told(known, before) if known and before else {}
        if new != old or before is None:
            row = remote_of(now or endpoint, after)
            try:
                renew(tx, replace(row, services=old), replace(row, services=new))
            except ExistsError as error:
                tx.warn(str(error))


def supersede(tx: Transaction, written: Iterable[str]) -> None:
    """What was owed of keys that the store has got now is not sent any more: it would undo them. A store that is full
    takes what ends, and not what began before it."""
    tx.commit(gone=[tx.state.owed[key] for key in written if key in tx.state.owed])
