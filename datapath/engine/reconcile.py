# SPDX-License-Identifier: Apache-2.0
"""Repairs what `doctor` finds. Only what is wrong is touched: the traffic of everything else goes on.

What a killed command left, and what is gone as a whole, recovery.py has repaired when the transaction began. Drivers
bring the repairs of what they check, and owners those of their containers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from datapath.drivers import registry
from datapath.drivers.base import Repair, Repairing
from datapath.drivers.comparison import Comparison
from datapath.engine import cluster, doctor, endpoints, joining, policies, ports, service_news
from datapath.engine.transaction import Transaction
from datapath.errors import DatapathError, StateError
from datapath.kernel import observe
from datapath.kernel.links import Links
from datapath.model.checks import DEAD, MISSING, OWED, PAIR, STRAY, UNPUBLISHED, WRONG
from datapath.model.findings import Check, Finding
from datapath.plan.endpoints import ifname_in

_ROUNDS = 5  # a pair made anew, a device that is up again and has lost its routes, and so on
_OF_ENDPOINTS = (PAIR, DEAD)


def reconcile(tx: Transaction) -> tuple[list[Finding], list[Finding], list[Exception]]:
    """(what was found, what of it is left, what went wrong on the way)."""
    found: dict[Finding, None] = {}
    failures: list[Exception] = []
    known = _repairs(tx)
    ports.reserve(tx)
    for _ in range(_ROUNDS):
        left = _compare(tx)
        found |= dict.fromkeys(left)
        if not any(finding.check in known for finding in left):
            break
        failures = _repair(_ordered(left, known), known)
    else:
        left = _compare(tx)
    return list(found), left, failures


def fill(tx: Transaction) -> None:
    """Writes the rows that are missing, and nothing else. ExceptionGroup: some could not be written."""
    known = _repairs(tx)
    missing = [finding for finding in _compare(tx) if finding.check == MISSING]
    if failures := _repair(_ordered(missing, known), known):
        raise ExceptionGroup("not every row could be written", failures)


def _repair(findings: list[Finding], known: dict[Check, _Repair]) -> list[Exception]:
    """What went wrong. Once an endpoint is made anew or gone, what was found of rows and devices may be of what it was
    before (another ifindex, a port nobody has): that is left to the next look."""
    failures: list[Exception] = []
    changed = False
    for finding in findings:
        if changed and finding.check not in _OF_ENDPOINTS:
            continue
        try:
            known[finding.check].apply(finding)
            changed = changed or finding.check in _OF_ENDPOINTS
        except (DatapathError, ExceptionGroup) as error:
            failures.append(error)
    return failures


def _compare(tx: Transaction) -> list[Finding]:
    return doctor.compare(tx.settings, tx.config, tx.state, tx.store, tx.owners)


class _Repair(NamedTuple):
    """`name`: two findings with one name that are about the same need it once."""

    name: object
    apply: Callable[[Finding], None]


def _repairs(tx: Transaction) -> dict[Check, _Repair]:
    """The repair of each check's findings."""

    def of_driver(repair: Repair) -> _Repair:
        return _Repair(repair, lambda finding: repair(_work(tx), finding))

    def of_owner(repair: Callable[[Transaction, Finding], None]) -> _Repair:
        return _Repair(repair, lambda finding: repair(tx, finding))

    found: dict[Check, _Repair] = {}
    for spec in registry.with_endpoints():
        for check, repair in registry.class_of(spec).repairs().items():
            found[check] = of_driver(repair)
    for owner in tx.owners.values():
        for check, apply in owner.repairs().items():
            found[check] = of_owner(apply)
    found[PAIR], found[DEAD] = of_owner(_pair), of_owner(_dead)
    for check in (MISSING, WRONG, STRAY):
        found[check] = _with_policies(tx, found[check])
    found[UNPUBLISHED], found[OWED] = of_owner(_unpublished), of_owner(_owed)
    return found


def _with_policies(tx: Transaction, rows: _Repair) -> _Repair:
    """Rows of policies are repaired together, others each for itself."""

    def apply(finding: Finding) -> None:
        if finding.about[:1] == (policies.POLICIES,):
            policies.repair(tx)
        else:
            rows.apply(finding)

    return _Repair(rows.name, apply)


def _work(tx: Transaction) -> Repairing:
    def compare() -> Comparison:
        return Comparison(tx.state, doctor.look(tx.settings, tx.config, tx.state, tx.store))

    return Repairing(tx.context, tx.state, tx.view, tx.path, compare)


def _ordered(findings: list[Finding], known: dict[Check, _Repair]) -> list[Finding]:
    """Each repair once; rows that go after all others and in the other order: no port may lead to an ACL that is not
    there."""
    once = {(known[f.check].name, f.about): f for f in findings if f.check in known}
    orphans = [finding for finding in once.values() if finding.check == STRAY]
    return [finding for finding in once.values() if finding.check != STRAY] + orphans[::-1]


def _pair(tx: Transaction, finding: Finding) -> None:
    """A new pair in the container's namespace, in place of what is left of the old one."""
    endpoint = tx.state.endpoints[finding.about[0]]
    path = tx.path(endpoint.sandbox_id)
    if path is None:
        return  # it has just ended
    network = tx.state.networks[endpoint.network_id]
    tx.driver(network).delete_endpoint(network, endpoint, path)
    if endpoint.handed_over:  # what has its name in there may be somebody else's
        others = observe.stack(path).devices.keys()
        endpoint = replace(endpoint, ifname=ifname_in(network, others, endpoint.driver_options))
    else:
        with Links(path) as inside:
            inside.delete(endpoint.ifname)
    tx.commit(endpoints.attach(tx, replace(endpoint, host_ifindex=0), path))


def _dead(tx: Transaction, finding: Finding) -> None:
    endpoint = tx.state.endpoints.get(finding.about[0])
    if endpoint is not None:
        endpoints.evict(tx, endpoint)


def _owed(tx: Transaction, finding: Finding) -> None:
    """The store may answer by now; asked once in a command, if it does not."""
    store = tx.link.store("what other hosts do not know yet")
    try:
        with store.within(joining.PATIENCE):
            cluster.settle(tx, store)
    except StateError as error:
        tx.link.away = error
        raise


def _unpublished(tx: Transaction, finding: Finding) -> None:
    """The port may be free by now."""
    service = tx.state.services.get(finding.about[0])
    if service is not None:
        service_news.put(tx, service.shared)
