# SPDX-License-Identifier: Apache-2.0
"""What other hosts have written into the cluster's store, taken over into this host's own rows and maps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from datapath.engine import names, networks, service_news, services
from datapath.engine.transaction import Transaction
from datapath.model.peers import Block, Drain, Lapse, Owed, Peer, Remote
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State

if TYPE_CHECKING:
    from datapath.cluster import keys
    from datapath.store.cluster import Cluster

ClusterRow = Peer | Lapse | Drain | Block | Remote | Service
HostRow = Peer | Block | Remote
_FOLLOWING = "what other hosts have is being taken over"  # the note of it


class News(NamedTuple):
    """Rows that are new or different, and rows that are gone."""

    put: tuple[ClusterRow, ...] = ()
    gone: tuple[ClusterRow, ...] = ()


def resolved(state: State, news: keys.News) -> News:
    """What the store tells of changes, as rows of this host."""
    tables = (state.peers, state.blocks, state.remotes, state.services)
    there = [row for table in tables for row in table.values()]
    gone = [row for row in there if any(one.matches(row) for one in news.gone)]
    return News(tuple(row for row in news.put if isinstance(row, ClusterRow)), tuple(gone))


def compared(state: State, network_ids: Collection[str], rows: Iterable[ClusterRow]) -> News:
    """What a full listing of these networks, and of all hosts, says otherwise than this host's rows."""
    listed = {(type(row), row.id): row for row in rows}
    mine: list[ClusterRow] = [*state.peers.values(), *state.lapses.values(), *state.drains.values()]
    mine += [b for b in state.blocks.values() if b.network_id in network_ids]
    mine += [r for r in state.remotes.values() if r.network_id in network_ids]
    mine += [s for s in state.services.values() if s.network_id in network_ids]
    return News(tuple(listed.values()), tuple(row for row in mine if (type(row), row.id) not in listed))


def follow(tx: Transaction, news: News) -> None:
    """Takes over what the cluster's store says: services that are gone, then packets, names, and services; what else is
    gone goes the other way. This host's rows are last: killed before that, the next command makes the maps as they are
    (`complete`), and who asks the store then is told the same again. Of networks that this host has no part in, and of
    its own endpoints, nothing is taken over."""
    for row in news.gone:
        if isinstance(row, Service) and row.id in tx.state.services:
            services.take_away(tx, tx.state.services[row.id])
    touched = _follow_hosts(tx, news) | _follow_attendance(tx, news)
    for row in news.put:
        if isinstance(row, Service) and _is_spanning(row.network_id, tx.state):
            service_news.put(tx, row)
    if touched:
        service_news.refresh(tx, touched)
        with tx.store.transaction(durable=False):
            tx.store.set_note(_FOLLOWING, None)


def _follow_hosts(tx: Transaction, news: News) -> frozenset[str]:
    """What is said of hosts, blocks and endpoints; the ids of services whose backends are others now. If there are some
    the note is still there."""
    before = tx.state
    put = tuple(
        row for row in _hosts(news.put) if _concerns(row, news, before) and _current(row, before) != row
    )
    gone = tuple(
        row for row in _hosts(news.gone) if _current(row, before) is not None and not _own(row, before)
    )
    given = {
        (type(row), row.id) for row in put
    }  # as a block that another host has got after one that was forgotten
    gone = tuple(r for r in (*gone, *_left_behind(gone, before)) if (type(r), r.id) not in given)
    if not put and not gone:
        return frozenset()
    with tx.store.transaction(durable=False):
        tx.store.set_note(_FOLLOWING, "yes")
    names.update_elsewhere(tx, before.without(*gone))
    views = tx.parts()
    tx.state = after = before.including(*put).without(*gone)
    try:
        for (part, old), (_, new) in zip(views, tx.parts(), strict=True):
            part.write_peers(old, new, (*put, *gone))
    finally:
        tx.state = before
    names.update_elsewhere(tx, after)
    touched = service_news.touched((*put, *gone), before, after)
    with tx.store.transaction(durable=False):
        if not touched:
            tx.store.set_note(_FOLLOWING, None)
        tx.commit(*put, gone=gone, durable=False)
    assert tx.state.peers.keys() == after.peers.keys()
    return touched


def _follow_attendance(tx: Transaction, news: News) -> frozenset[str]:
    """Which hosts have stopped to say that they live, or do again; which are drained, or no more; the ids of services
    with backends there."""
    state = tx.state
    put = [
        row for row in _attendance(news.put) if row.id not in state.rows(type(row)) and row.id in state.peers
    ]
    put = [row for row in put if isinstance(row, Drain) or row.id != state.installation_id]
    gone = [row for row in _attendance(news.gone) if row.id in state.rows(type(row))]
    if not put and not gone:
        return frozenset()
    hosts = {row.id for row in (*put, *gone)}
    theirs = {ident for row in state.remotes.values() if row.peer in hosts for ident in row.services}
    if state.installation_id in hosts:
        theirs |= {one.id for one in state.services.values() if _is_spanning(one.network_id, state)}
    touched = frozenset(theirs & state.services.keys())
    with tx.store.transaction(durable=False):
        if touched:
            tx.store.set_note(_FOLLOWING, "yes")
        tx.commit(*put, gone=gone, durable=False)
    return touched


def _attendance(rows: Iterable[ClusterRow]) -> Iterator[Lapse | Drain]:
    return (row for row in rows if isinstance(row, Lapse | Drain))


def _hosts(rows: Iterable[ClusterRow]) -> Iterator[HostRow]:
    return (row for row in rows if not isinstance(row, Service | Lapse | Drain))


def _is_spanning(network_id: str, state: State) -> bool:
    network = state.networks.get(network_id)
    return network is not None and network.spans


def complete(tx: Transaction) -> None:
    """What a killed command, or one that failed, has taken over into maps and not into rows goes from these again."""
    if tx.store.note(_FOLLOWING) is None:
        return
    for part, view in tx.parts():
        part.sync_peers(view)
    service_news.refresh(tx, tx.state.services)
    names.sync(tx)
    with tx.store.transaction(durable=False):
        tx.store.set_note(_FOLLOWING, None)


def _current(row: HostRow, state: State) -> HostRow | None:
    return state.rows(type(row)).get(row.id)


def _own(row: HostRow, state: State) -> bool:
    """It is this host itself."""
    return isinstance(row, Peer) and row.id == state.installation_id


def _concerns(row: HostRow, news: News, state: State) -> bool:
    """This host needs the row, and knows those that it refers to."""
    if isinstance(row, Peer):
        return not _own(row, state)
    network = state.networks.get(row.network_id)
    known = row.peer in state.peers or any(isinstance(p, Peer) and p.id == row.peer for p in news.put)
    if network is None or not network.spans or not known:
        return False
    return isinstance(row, Block) or row.peer != state.installation_id


def _left_behind(gone: Sequence[HostRow], state: State) -> tuple[HostRow, ...]:
    """What hosts that are gone had, as no row may refer to them; their keys go before them."""
    hosts = {row.id for row in gone if isinstance(row, Peer)}
    known = {(type(row), row.id) for row in gone}
    theirs = [row for table in (state.blocks, state.remotes) for row in table.values() if row.peer in hosts]
    return tuple(row for row in theirs if (type(row), row.id) not in known)


def forget(tx: Transaction, network_id: str) -> None:
    """Takes a network away that is gone from the cluster, with what is known of it, unless it has members here."""
    network = tx.state.networks.get(network_id)
    if network is None:
        return
    if tx.state.endpoints_of_network(network_id):
        tx.warn(
            f"network {network.name} was removed from the cluster, and has members on this host: it stays"
        )
        return
    for service in tx.state.services_of_network(network_id):
        services.take_away(tx, service)
    networks.take_away(tx, (replace(network, phase=Phase.REMOVING),))
    tx.look_again()  # its device is gone, with its addresses and routes


def sent(tx: Transaction, written: Iterable[Owed]) -> None:
    """Forgets writes that the store has got, unless others of the same keys have come after them."""
    tx.commit(gone=[row for row in written if tx.state.owed.get(row.id) == row])


def settle(tx: Transaction, store: Cluster) -> None:
    """Writes what this host owes. StateError: the store has gone away again."""
    if not tx.state.owed:
        return
    from datapath.cluster import owed

    rows = dict(tx.state.owed)
    found = owed.send(store, tx.state.installation_id, {key: row.value for key, row in rows.items()})
    for conflict in found.conflicts:
        holder = f"that of {conflict.holder.name} on another host" if conflict.holder else "not this host's"
        tx.warn(f"address {conflict.key.rpartition('/')[2]} is {holder}: remove one of the two containers")
    conflicting = [conflict.key for conflict in found.conflicts]
    sent(tx, [rows[key] for key in (*found.done, *conflicting)])
