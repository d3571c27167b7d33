# SPDX-License-Identifier: Apache-2.0
"""Which one change of a policy would let an opening pass that it refuses. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from datapath.model.policies import Direction, Layer, Opening, Policy, Rule, Rules
from datapath.plan.policies.flows import narrowest
from datapath.plan.policies.why import Explanation
from datapath.plan.policies.words import rule_text


class Opened(NamedTuple):
    """The policy as it would have to be. `added`: the number of the rule that is new; `left_out`: the one that is not
    there any more, as a file has it."""

    policy: Policy
    added: int = 0
    left_out: str = ""


def opened_once(plan: Explanation, opening: Opening, policies: Sequence[Policy]) -> Opened | None:
    """For what was refused so. None: no policy of the operator's has decided it, or it is a limit of its rate."""
    decided = plan.decided
    policy = next((one for one in policies if one.name == decided.policy), None)
    if policy is None or policy.layer is not Layer.OPERATOR:
        return None
    direction = Direction(decided.step)
    rules = policy.rules(direction)
    if decided.rule:
        return _without(policy, direction, rules, decided.rule)
    if rules.allow is None:
        return None
    _, peer = opening.sides(direction)
    number = 1 + max((rule.number for some in map(policy.rules, Direction) for rule in _all(some)), default=0)
    asked = narrowest(peer, opening)
    rule = Rule(asked.peer, asked.ports, asked.protocol, number)
    return Opened(_with(policy, direction, replace(rules, allow=(*rules.allow, rule))), number)


def _all(rules: Rules) -> tuple[Rule, ...]:
    return (*rules.deny, *(rules.allow or ()))


def _without(policy: Policy, direction: Direction, rules: Rules, number: int) -> Opened | None:
    denied = next((rule for rule in rules.deny if rule.number == number), None)
    if denied is None:
        return None
    deny = tuple(rule for rule in rules.deny if rule is not denied)
    changed = _with(policy, direction, replace(rules, deny=deny))
    return Opened(changed, left_out=f"{direction}.deny {rule_text(denied)}")


def _with(policy: Policy, direction: Direction, rules: Rules) -> Policy:
    if direction == Direction.OUT:
        return replace(policy, egress=rules)
    return replace(policy, ingress=rules)
