# SPDX-License-Identifier: Apache-2.0
"""Policies of this host: applied, removed, and their rows planned anew whenever somebody comes, goes, or changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datapath.engine.transaction import Transaction
from datapath.errors import KernelError
from datapath.model.checks import MISSING, STRAY, WRONG
from datapath.model.findings import Finding
from datapath.model.host import HostNetwork
from datapath.model.policies import By, Policy
from datapath.model.state import State
from datapath.plan.policies.applying import check, is_governed, plan_apply, refuse_undecided, rows_here
from datapath.plan.policies.builtin import world_here
from datapath.plan.policies.rows import Rows

POLICIES = "policies"  # what findings are about, in the place of a map's name


def apply(tx: Transaction, given: Sequence[Policy], prune: bool) -> dict[str, str]:
    """`policy apply`. The store's rows come first: who is killed before the programs have theirs leaves the old ones in
    force, as a whole, and the next command puts the new ones in. ConfigError: nothing was changed."""
    plan = plan_apply(given, tx.state, tx.fresh, prune)
    before, former = tx.state, rules_of(tx.state, tx)
    rows = check(given, plan.after(tx.state), tx.observed)
    tx.commit(*plan.put, gone=plan.gone)
    try:
        write(tx, rows, former)
    except BaseException:
        kept = [policy for policy in before.policies.values() if tx.state.policies.get(policy.id) != policy]
        tx.commit(*kept, gone=[policy for policy in plan.put if policy.id not in before.policies])
        raise
    return plan.outcomes


def remove(tx: Transaction, name: str) -> Policy:
    """`policy rm`. NotFoundError."""
    policy = tx.state.get(Policy, name)
    former = rules_of(tx.state, tx)
    tx.delete(policy)
    follow(tx, former=former)
    return policy


def follow(tx: Transaction, after: State | None = None, former: Sequence[By] | None = None) -> None:
    """Makes the rows of the programs what they have to be when the rows of the store say `after`, if anybody has a
    policy, or had one. A container that has joined is closed until then, so it has to come before its first
    instruction. `former`: the rules of those in force, None: the same as from now on."""
    state = after or tx.state
    if not is_governed(state) and not any(part.policies.active() for part, _ in tx.parts()):
        return
    rows, complaints = _planned(tx, state)
    for line in complaints:
        tx.context.warn_once(line)
    write(tx, rows, rows.rules if former is None else former)


def _planned(tx: Transaction, state: State) -> tuple[Rows, tuple[str, ...]]:
    """Of the same rows of the store once a command: it asks at its beginning, in its midst and at its end."""
    key = (rows_here, id(tx.observed))
    if key not in state.derived:
        state.derived[key] = rows_here(state, tx.observed)
    found: tuple[Rows, tuple[str, ...]] = state.derived[key]
    return found


def admit(tx: Transaction, after: State, sandbox_id: str) -> None:
    """Refuses a sandbox that has joined a network where nobody decides what a policy says of it. ConfigError."""
    if tx.state.policies:
        world = world_here(after, tx.observed)
        mine = tuple(member for member in world.members if member.ident == sandbox_id)
        refuse_undecided(after.policies.values(), after, replace(world, members=mine))


def rules_of(state: State, tx: Transaction) -> Sequence[By]:
    """Those that decide now."""
    return _planned(tx, state)[0].rules


def write(tx: Transaction, rows: Rows, former: Sequence[By]) -> None:
    """Puts the rows into force at once."""
    for part, _ in tx.parts():
        part.policies.write(rows, former)


def differences(state: State, host: HostNetwork, bpffs: Path) -> Iterator[Finding]:
    """What the programs have of policies otherwise than the rows of the store say, for `doctor`."""
    from datapath.dataplane.policy_rows import content
    from datapath.dataplane.programs import Dataplane

    try:
        rows, found = rows_here(state, host)[0], Dataplane.find(bpffs)
    except KernelError:  # they are of a version whose maps nobody can read, which is a finding of its own
        return
    if found is None:
        return
    with found:
        if not found.has("policy_state"):
            return
        generation = found.policies.generation()
        if rows.active != bool(generation):
            detail = "none are in force" if rows.active else "some are in force that nobody has applied"
            yield Finding(MISSING if rows.active else STRAY, "policies", detail, (POLICIES,))
            return
        wanted, present = content(rows) if generation else {}, found.policies.current()
        for name, some in wanted.items():
            wrong = sum(key in present[name] and present[name][key] != row for key, row in some.items())
            missing, stray = len(some.keys() - present[name].keys()), len(present[name].keys() - some.keys())
            for check, count, what in (
                (WRONG, wrong, "wrong"),
                (MISSING, missing, "missing"),
                (STRAY, stray, "stray"),
            ):
                if count:
                    detail = (
                        f"of generation {generation} {count} {'row is' if count == 1 else 'rows are'} {what}"
                    )
                    yield Finding(check, f"policies, map {name}", detail, (POLICIES,))
        if left := found.policies.leftovers():
            yield Finding(STRAY, "policies", f"{left} rows are of no generation in force", (POLICIES,))


def repair(tx: Transaction) -> None:
    """Writes all rows anew."""
    for part, _ in tx.parts():
        part.policies.sweep()
    follow(tx)
