# SPDX-License-Identifier: Apache-2.0
"""Backends of services: they come and go with their containers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from datapath.engine import telling
from datapath.engine.transaction import Transaction
from datapath.model.endpoints import Endpoint
from datapath.model.health import BackendState, Verdict
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.backends import backends, belongs, touched
from datapath.plan.health import checkable
from datapath.plan.services import overdue, with_ends

_NEW = Verdict(BackendState.STARTING)
# What of a service follows from which of its backends are there.
_FOLLOWING = ("numbers", "drained", "verdicts", "ends")


def follow(tx: Transaction, after: State, sandbox_ids: Collection[str], before: State | None = None) -> State:
    """Makes the services that endpoints of these sandboxes are backends of as they will be when the rows say `after`;
    what the rows will say then. `before`: what they said, None: what they say."""
    if not after.services:
        return after
    known = before or tx.state
    concerned = touched(sandbox_ids, known, after).keys() & after.services.keys()
    after = number(tx, after, (after.services[ident] for ident in concerned))
    write(tx, after, (after.services[ident] for ident in concerned))
    if concerned:
        states = (known, after)
        members = {
            one.id: one for s in states for ident in sandbox_ids for one in s.endpoints_of_sandbox(ident)
        }
        telling.serving(tx, members.values(), after, known)
    return after


def number(tx: Transaction, after: State, services: Iterable[Service]) -> State:
    """Gives the services' new backends their numbers, and forgets those of endpoints that are gone. A new one has to
    pass a check first, if there are any: who runs already when checks begin is up until it fails them. Which are
    drained is not this host's alone to say where a network spans hosts."""
    changed = []
    for service in services:
        members = after.endpoints_of_network(service.network_id)
        there = {one.id for one in members}
        there |= {one.id for one in after.remotes_of_network(service.network_id)}
        spans = after.networks[service.network_id].spans
        numbers = {ident: found for ident, found in service.numbers.items() if ident in there}
        new = [one.id for one in backends(service, after) if one.id not in numbers]
        check = service.health
        mine = {one.id for one in members if check and checkable(check, one, after)}
        verdicts = {ident: found for ident, found in service.verdicts.items() if ident in mine}
        if after.judged:
            verdicts |= dict.fromkeys((ident for ident in new if ident in mine), _NEW)
        settled = replace(
            service,
            drained=tuple(ident for ident in service.drained if spans or ident in there),
            verdicts=verdicts,
            numbers=numbers,
        )
        draining = [one.id for one in backends(settled, after) if one.state == BackendState.DRAINING]
        settled = with_ends(settled, moment(), draining)
        if new or settled != service:
            with tx.store.transaction(durable=False):
                settled = replace(settled, numbers=numbers | {ident: tx.store.next_number() for ident in new})
                changed.append(settled)
                if service.id in tx.state.services:
                    fields = {name: getattr(settled, name) for name in _FOLLOWING}
                    tx.journal(replace(tx.state.services[service.id], **fields))
    return after.including(*changed)


def moment() -> int:
    """What `Service.ends` counts: milliseconds since the machine has started."""
    return round(1000 * time.clock_gettime(time.CLOCK_BOOTTIME))


def judge(tx: Transaction, verdicts: Mapping[tuple[str, str], Verdict | None]) -> None:
    """Takes over what checks have found, by the ids of service and endpoint; None: it is up. Of backends that are gone
    nothing is noted."""
    found: dict[str, dict[str, Verdict]] = {}
    changed: list[Service] = []
    before = tx.state
    for (service_id, endpoint_id), verdict in verdicts.items():
        service = tx.state.services.get(service_id)
        if service is not None and service.health and endpoint_id in service.numbers:
            mine = found.setdefault(service_id, dict(service.verdicts))
            mine.pop(endpoint_id, None)
            if verdict is not None:
                mine[endpoint_id] = verdict
    for service_id, known in found.items():
        service = tx.state.services[service_id]
        if known != service.verdicts:
            after = replace(service, verdicts=known)
            tx.journal(replace(after, phase=Phase.CHANGING))
            write(tx, tx.state, [after])
            changed.append(after)
    telling.serving(tx, _members(tx.state, (ident for _, ident in verdicts)), tx.state, before)
    tx.journal(*changed)  # not before: who is killed in between has told nobody


def _members(state: State, endpoint_ids: Iterable[str]) -> list[Endpoint]:
    return [state.endpoints[ident] for ident in endpoint_ids if ident in state.endpoints]


def settle(tx: Transaction) -> None:
    """What has become of backends without a command: nobody checks them any more, or somebody does again; the time
    is over that connections of a drained one may go on for."""
    for service in [one for one in tx.state.services.values() if one.verdicts]:
        if any(part.services.is_behind(tx.state, service) for part, _ in tx.parts()):
            # The other hosts first: who comes after one that was killed sees by the maps that there is something to do.
            before = replace(tx.state, judged=not tx.state.judged)
            telling.serving(tx, _members(tx.state, service.verdicts), tx.state, before)
            write(tx, tx.state, [service])
    for service in [one for one in tx.state.services.values() if one.ends]:
        if late := overdue(service, moment()):
            for part, _ in tx.parts():
                part.services.end(tx.state, service, late)
            tx.journal(replace(service, ends={**service.ends, **dict.fromkeys(late, 0)}))


def tell(tx: Transaction, after: State, service: Service) -> None:
    """Tells the other hosts which endpoints of this one are behind the service when the rows say `after`, whatever they
    were told: that was perhaps by a command which was killed."""
    members = after.endpoints_of_network(service.network_id)
    there = [one for one in members if one.phase == Phase.READY and belongs(service, one, after)]
    telling.serving(tx, there, after)


def write(tx: Transaction, after: State, services: Iterable[Service]) -> None:
    """Makes the rows of these services what they have to be."""
    found = list(services)
    for part, _ in tx.parts() if found else ():
        part.services.write(after, found)


def sync(tx: Transaction) -> None:
    """All services, whatever a killed command left of them."""
    for part, _ in tx.parts() if tx.state.services else ():
        part.services.sync(tx.state)
