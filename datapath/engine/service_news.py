# SPDX-License-Identifier: Apache-2.0
"""Services of networks of several hosts, as the cluster's store has them, made what they are on this host.

The store says it again to whoever asks: a service that a killed command has not completed is taken away by the next
one, and taken over anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace

from datapath.engine import backends, ports, services
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, ExistsError
from datapath.model.peers import Block, Peer, Remote
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan import services as plans


def put(tx: Transaction, row: Service) -> None:
    """Takes a service over that is new here, or has changed. One whose name a service of this host alone has is left
    out, with a warning; so is a host port that somebody has here."""
    known = tx.state.services.get(row.id)
    if known is None:
        other = tx.state.named(Service, row.name)
        if other is not None:
            tx.warn(
                f"service {row.name} of the cluster is not known on this host, which has one of that name: "
                f"remove that (datapathctl service rm {other.short_id})"
            )
            return
        _begin(tx, row)
    else:
        _change(tx, known, row)


def _begin(tx: Transaction, row: Service) -> None:
    with tx.store.transaction(durable=False):
        planned = replace(row, number=tx.store.next_number(), phase=Phase.CREATING)
        tx.commit(planned, durable=False)
    with ExitStack() as undo:
        undo.callback(services.take_away, tx, planned)
        planned = replace(planned, ports=_open(tx, planned, row.published))
        tx.journal(planned)
        services.settle(tx, replace(planned, phase=Phase.READY), planned.ports)
        undo.pop_all()


def _change(tx: Transaction, known: Service, row: Service) -> None:
    kept = tuple(
        mapping for mapping in known.ports if any(plans.is_same(mapping, one) for one in row.published)
    )
    changed = replace(row.of_host(known), ports=kept, phase=Phase.READY)
    opened = _open(tx, changed, plans.unpublished(changed))
    if known.shared == row and not opened:
        return
    closed = tuple(mapping for mapping in known.ports if mapping not in kept)
    tx.journal(replace(known, phase=Phase.CHANGING))
    services.close(tx, known, closed)
    changed = replace(changed, ports=(*kept, *opened))
    tx.journal(replace(changed, phase=Phase.CHANGING))
    services.settle(tx, changed, opened)


def _open(tx: Transaction, service: Service, wanted: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
    """Those of the mappings that can be published on this host."""
    found: list[PortMapping] = []
    for mapping in wanted:
        with_others = replace(service, ports=(*service.ports, *found))
        try:
            found += plans.choose([mapping], with_others, tx.state.including(with_others), ports.context(tx))
        except (ConfigError, ExistsError) as error:
            tx.warn(f"service {service.name} is not published as {mapping} on this host: {error}")
    return tuple(found)


# ---- backends on other hosts ---------------------------------------------------------------------


def touched(rows: Iterable[Peer | Block | Remote], before: State, after: State) -> frozenset[str]:
    """The ids of services that these endpoints are backends of otherwise than before."""
    found: set[str] = set()
    for row in rows:
        if isinstance(row, Remote):
            old, new = before.remotes.get(row.id), after.remotes.get(row.id)
            if _told(old) != _told(new):
                found |= {*(old.services if old else ()), *(new.services if new else ())}
    return frozenset(found & after.services.keys())


def _told(row: Remote | None) -> object:
    """What a service's rows and names say of an endpoint."""
    return (row.services, row.addresses, row.name) if row is not None and row.services else None


def refresh(tx: Transaction, idents: Collection[str]) -> None:
    """Makes the backends of these services what the rows say, and the names that they have by them."""
    found = [tx.state.services[ident] for ident in idents]
    if not found:
        return
    after = backends.number(tx, tx.state, found)
    found = [after.services[ident] for ident in idents]
    backends.write(tx, after, found)
    services.name(tx, after, found)
