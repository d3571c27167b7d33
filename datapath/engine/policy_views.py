# SPDX-License-Identifier: Apache-2.0
"""Looks at the policies of this host, and at what became of them; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from datapath.engine.engine import Engine
from datapath.engine.transaction import devices_of, now
from datapath.model.policies import By, Policy
from datapath.model.state import Fresh
from datapath.plan.policies.applying import check, plan_apply, rows_here


class Hit(NamedTuple):
    """What a rule of a policy has decided, 0: that it lists others. `idle`: seconds since it last did, None: never."""

    policy: str
    rule: int
    openings: int
    refused: int
    idle: float | None


def preview(engine: Engine, given: Sequence[Policy], prune: bool) -> dict[str, str]:
    """What `apply` would do. ConfigError as that."""
    from datapath.kernel import features, observe

    features.require()
    state = engine.snapshot()
    numbers = iter(range(1, len(given) + 1))
    fresh = Fresh(now(), lambda: f"{next(numbers):064x}", lambda: 0)
    plan = plan_apply(given, state, fresh, prune)
    after = plan.after(state)
    check(given, after, observe.host(devices_of(after)))
    return plan.outcomes


def hits(engine: Engine) -> list[Hit]:
    """What each rule has decided, by policy and rule; those that have decided nothing, too."""
    from datapath.dataplane.policies import Hit as Counted
    from datapath.dataplane.programs import Dataplane
    from datapath.kernel import features, observe

    features.require()
    state = engine.shown()
    rules = rows_here(state, observe.host(devices_of(state)))[0].rules
    counted: dict[int, Counted] = {}
    found = Dataplane.find(engine.settings.bpffs) if rules else None
    if found is not None:
        with found:
            counted = dict(found.policies.hits()) if found.has("policy_state") else {}
    moment = time.monotonic_ns()

    def hit(by: By, one: Counted) -> Hit:
        idle = max(moment - one.last, 0) / 1e9 if one.last else None
        return Hit(by.policy, by.rule, one.openings, one.packets, idle)

    return [hit(by, counted.get(number, Counted())) for number, by in enumerate(rules, 1)]
