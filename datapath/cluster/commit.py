# SPDX-License-Identifier: Apache-2.0
"""A transaction that is certain: whoever asks learns what the store has, also when it went away in between."""

from __future__ import annotations

from collections.abc import Sequence

from datapath.errors import StateError
from datapath.store.cluster import (
    Cluster,
    Condition,
    Delete,
    Empty,
    Outcome,
    Put,
    UncertainError,
    Write,
)

SECONDS = 5.0  # that a verb may take, with all that it asks
TRIES = 8  # of a verb whose transactions come too late each time


def commit(store: Cluster, conditions: Sequence[Condition], writes: Sequence[Write]) -> Outcome:
    """Does the transaction, and again if it is not known whether it was done: the conditions look first. It succeeds
    too if they do not hold because the store is as the writes would make it. Conditions must say what the writes
    change. UncertainError: the store has gone away, and the transaction may have been done; StateError: it has not."""
    doubt: UncertainError | None = None
    for _ in range(TRIES):
        try:
            outcome = store.txn(conditions, writes)
        except UncertainError as error:
            doubt = error
            continue
        except StateError as error:
            if doubt is not None:
                raise UncertainError(str(error)) from doubt
            raise
        if not outcome.succeeded and _done(outcome, conditions, writes):
            return Outcome(True, outcome.revision, {})
        return outcome
    raise doubt or StateError("the cluster store does not answer")


def _done(outcome: Outcome, conditions: Sequence[Condition], writes: Sequence[Write]) -> bool:
    """The keys that were looked at are as they were to become, and one of them at least was to change."""
    looked = {one.key for one in conditions if not isinstance(one, Empty)}
    changed = [one for one in writes if isinstance(one, Put | Delete) and one.key in looked]
    for one in changed:
        entry = outcome.found.get(one.key)
        if (entry.value if entry else None) != (one.value if isinstance(one, Put) else None):
            return False
    return bool(changed)


class ForgottenError(StateError):
    """The host is no member, and was one. The store is there: it is not as if it were away."""


def forgotten() -> ForgottenError:
    """With what to do."""
    return ForgottenError(
        "this host has been forgotten by the cluster, and what it had there belongs to nobody: restart datapathctl "
        "agent, which lets it join again"
    )


class Tries:
    """How often a verb begins anew because another host was faster."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.count = 0

    def again(self) -> None:
        """StateError: it has been often enough."""
        self.count += 1
        if self.count >= TRIES:
            raise StateError(f"{self._what}: other hosts have changed the cluster store each time: try again")
