# SPDX-License-Identifier: Apache-2.0
"""Backends of services: they come and go with their containers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from datapath.engine.transaction import Transaction
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.backends import backends, touched


def follow(tx: Transaction, after: State, sandbox_ids: Collection[str], before: State | None = None) -> State:
    """Makes the services that endpoints of these sandboxes are backends of as they will be when the rows say `after`;
    what the rows will say then. `before`: what they said, None: what they say."""
    if not after.services:
        return after
    concerned = touched(sandbox_ids, before or tx.state, after).keys() & after.services.keys()
    after = number(tx, after, (after.services[ident] for ident in concerned))
    write(tx, after, (after.services[ident] for ident in concerned))
    return after


def number(tx: Transaction, after: State, services: Iterable[Service]) -> State:
    """Gives the services' new backends their numbers, and forgets those of endpoints that are gone."""
    changed = []
    for service in services:
        there = {one.id for one in after.endpoints_of_network(service.network_id)}
        numbers = {ident: found for ident, found in service.numbers.items() if ident in there}
        new = [one.endpoint.id for one in backends(service, after) if one.endpoint.id not in numbers]
        drained = tuple(ident for ident in service.drained if ident in there)
        if new or len(numbers) != len(service.numbers) or drained != service.drained:
            with tx.store.transaction(durable=False):
                numbers |= {ident: tx.store.next_number() for ident in new}
                changed.append(replace(service, numbers=numbers, drained=drained))
                if service.id in tx.state.services:
                    row = replace(tx.state.services[service.id], numbers=numbers, drained=drained)
                    tx.journal(row)
    return after.including(*changed)


def write(tx: Transaction, after: State, services: Iterable[Service]) -> None:
    """Makes the rows of these services what they have to be."""
    found = list(services)
    for part, _ in tx.parts() if found else ():
        part.services.write(after, found)


def sync(tx: Transaction) -> None:
    """All services, whatever a killed command left of them."""
    for part, _ in tx.parts() if tx.state.services else ():
        part.services.sync(tx.state)
