# SPDX-License-Identifier: Apache-2.0
"""Names of containers: written last when one joins, taken away first when it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from datapath.dataplane.name_entries import name_rows, touched, touched_elsewhere
from datapath.dataplane.name_owners import asks, is_named
from datapath.engine import backends, policies
from datapath.engine.transaction import Transaction
from datapath.errors import KernelError
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.peers import Remote
from datapath.model.state import State

# There are containers that a version without a resolver started, and not all of them have been led to it.
_TO_LEAD = "to be led to the resolver"


def update(tx: Transaction, after: State, *sandbox_ids: str, before: State | None = None) -> None:
    """Makes names of these sandboxes, what they can ask for, the services that they are behind, and policies as it will
    be when the rows say `after`. `before`: what they said, None: what they say."""
    after = backends.follow(tx, after, sandbox_ids, before)
    concerned = touched(frozenset(sandbox_ids), before or tx.state, after)
    rows = name_rows(after, tx.names, concerned)
    for part, _ in tx.parts():
        part.write_names(rows, concerned)
    policies.follow(tx, after)


def withdraw(tx: Transaction, endpoint: Endpoint) -> None:
    """Takes an endpoint's names away, whatever of them is there; what others share stays theirs."""
    update(tx, tx.state.without(endpoint), endpoint.sandbox_id)


def update_elsewhere(tx: Transaction, after: State, *, before: State | None = None) -> None:
    """Makes names of endpoints on other hosts as they will be when the rows say `after`: of those whose rows are others
    than in `before` (None: than they are). Rows are written last, also of what goes: killed before that, the next one
    who compares them with the cluster's store does the same again."""
    known, wanted = (before or tx.state).remotes, after.remotes
    changed = [*_others(known, wanted), *_others(wanted, known)]
    if not changed:
        return
    concerned = touched_elsewhere(changed, before or tx.state, after)
    rows = name_rows(after, tx.names, concerned)
    for part, _ in tx.parts():
        part.write_names(rows, concerned)


def _others(rows: Mapping[str, Remote], than: Mapping[str, Remote]) -> Iterator[Remote]:
    """The rows that are not among those. Nearly all are the same objects in both, which is quickly seen."""
    for ident, row in rows.items():
        there = than.get(ident)
        if there is not row and there != row:
            yield row


def members(tx: Transaction, network: Network) -> list[Endpoint]:
    """The endpoints on the network that have names there."""
    return [e for e in tx.state.endpoints_of_network(network.id) if is_named(e, tx.state)]


def resolves(tx: Transaction, network: Network) -> bool:
    """Members of the network are answered at the resolver's address."""
    return any(part.resolves(network) for part, _ in tx.parts())


def sync(tx: Transaction) -> None:
    """All names, whatever a killed command left of them."""
    for part, view in tx.parts():
        part.sync_names(view)


def lead(tx: Transaction, endpoint: Endpoint, path: str) -> None:
    """Makes the resolver be reached from the namespace at the path, which the endpoint has joined."""
    for part, _ in tx.parts():
        part.lead_to_resolver(tx.state.networks[endpoint.network_id], endpoint, path)


def lead_again(tx: Transaction, endpoint: Endpoint) -> None:
    """The same, if somebody is in the endpoint's sandbox who asks."""
    path = tx.path(endpoint.sandbox_id)
    if path is not None and asks(endpoint, tx.state):
        with suppress(KernelError):  # its device is gone, as doctor says
            lead(tx, endpoint, path)


@contextmanager
def expected(tx: Transaction) -> Iterator[None]:
    """Around programs being replaced: notes before that containers are to be led to the resolver, if there is none yet.
    If they are not replaced the note is as it was."""
    before, there = tx.store.note(_TO_LEAD), _answered(tx)
    if there or not any(asks(endpoint, tx.state) for endpoint in tx.state.endpoints.values()):
        yield
        return
    tx.store.set_note(_TO_LEAD, "yes")
    try:
        yield
    except BaseException:
        if not _answered(tx):
            tx.store.set_note(_TO_LEAD, before)
        raise


def lead_all(tx: Transaction) -> None:
    """Leads all of them there, once the programs answer."""
    if tx.store.note(_TO_LEAD) is None or not _answered(tx):
        return
    for endpoint in tx.state.endpoints.values():
        lead_again(tx, endpoint)
    tx.store.set_note(_TO_LEAD, None)


def _answered(tx: Transaction) -> bool:
    """The programs are known to answer questions; they are not where only `upgrade` can use their maps."""
    try:
        return any(resolves(tx, network) for network in tx.built)
    except KernelError:
        return False
