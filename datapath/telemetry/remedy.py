# SPDX-License-Identifier: Apache-2.0
"""What would let a connection pass that policies refuse: these policies as they would have to be, tried before they are
shown to anybody."""

from __future__ import annotations

from typing import NamedTuple

from datapath.engine.engine import Engine
from datapath.engine.transaction import devices_of
from datapath.model.flows import ALLOWED
from datapath.model.policies import Policy
from datapath.plan.policies.applying import in_force
from datapath.plan.policies.builtin import world_here
from datapath.plan.policies.opening import opened_once
from datapath.plan.policies.why import explain
from datapath.plan.policies.writing import policies_text
from datapath.telemetry.why import Why

_MOST = 8  # policies that have to change for one connection: `in` and `out` may each be closed by several


class Remedy(NamedTuple):
    """`text`: a file for `policy apply`, with what is new remarked; "": no policy of the operator's refuses it.
    `left_out`: rules that stand in these policies now, and not in the text. `verdict`: what the connection meets
    then."""

    text: str = ""
    left_out: tuple[str, ...] = ()
    verdict: str = ""


def remedy(engine: Engine, found: Why) -> Remedy:
    """What would open it. Changes nothing. Errors as those of `why`."""
    from datapath.kernel import features, observe

    features.require()
    state = engine.shown()
    host = observe.host(devices_of(state))
    world = world_here(state, host)
    plan = found.plan
    given: list[Policy] = []
    remarks: dict[tuple[str, int], str] = {}
    left_out: list[str] = []
    for _ in range(_MOST):
        if plan.verdict == ALLOWED:
            break
        every = in_force(state, world, given)
        step = opened_once(plan, found.asked.opening, every)
        if step is None:
            break
        given = [one for one in given if one.name != step.policy.name] + [step.policy]
        if step.added:
            remarks[step.policy.name, step.added] = "added"
        else:
            left_out.append(f"{step.policy.name}: {step.left_out}")
        plan = explain(found.asked, state, in_force(state, world, given), world, host)
    if not given:
        return Remedy()
    return Remedy(policies_text(given, remarks), tuple(left_out), plan.verdict)
