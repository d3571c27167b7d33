# SPDX-License-Identifier: Apache-2.0
"""What traffic that was seen says of policies: which would let it pass, and what other ones would do to it. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from datapath.model.judging import judge
from datapath.model.policies import (
    RULE_PROTOCOLS,
    Action,
    Direction,
    Kind,
    Opening,
    Party,
    Policy,
    Rule,
    Rules,
    Selector,
    Verdict,
    World,
)
from datapath.plan.policies.words import rule_text
from datapath.plan.policies.writing import policies_text

# Of one port so many addresses outside are named one by one; more by the word that all of them are.
MOST_ADDRESSES = 16
_WORDS = tuple(map(Selector, ("lan", "private", "internet", "outside")))


class Flow(NamedTuple):
    """Openings that are alike, as they were seen, refused ones too: how many."""

    opening: Opening
    connections: int


class Change(NamedTuple):
    """What other policies would do to a flow: one of the two verdicts refuses it."""

    flow: Flow
    before: Verdict
    after: Verdict


def diff(
    before: Sequence[Policy], after: Sequence[Policy], flows: Iterable[Flow], world: World
) -> list[Change]:
    """Which of the flows would be refused that are not now, and which would pass that are refused."""
    changes = [
        Change(flow, *(judge(flow.opening, some, world) for some in (before, after))) for flow in flows
    ]
    allow = Action.ALLOW
    return [one for one in changes if (one.before.action is allow) != (one.after.action is allow)]


def suggest(flows: Iterable[Flow], world: World) -> str:
    """The text of policies that let pass what was seen and nothing else: of every container that has a name."""
    seen: dict[str, dict[Direction, dict[Rule, int]]] = {}
    for flow in flows:
        for direction in Direction:
            subject, peer = flow.opening.sides(direction)
            if subject.member is not None and subject.member.name and not flow.opening.to_itself:
                own = seen.setdefault(subject.member.name, {d: defaultdict(int) for d in Direction})
                own[direction][narrowest(peer, flow.opening)] += flow.connections
    policies, remarks = [], {}
    for place, name in enumerate(sorted(seen), 1):
        policy = re.sub(r"^[^A-Za-z0-9]|[^A-Za-z0-9_.-]", "-", name).strip("-")[:50]
        policy = policy if policy == name else f"{policy or 'container'}-{place}"
        lists: dict[Direction, tuple[Rule, ...]] = {}
        number = 0
        for direction in Direction:
            joined = sorted(
                _joined(seen[name][direction], world), key=lambda one: (-one[1], rule_text(one[0]))
            )
            numbers = range(number + 1, number + 1 + len(joined))
            lists[direction] = tuple(
                Rule(rule.peer, rule.ports, rule.protocol, n)
                for n, (rule, _) in zip(numbers, joined, strict=True)
            )
            for number, (_, count) in zip(numbers, joined, strict=True):
                remarks[policy, number] = f"{count:,} connection{'s' if count != 1 else ''}"
        ingress, egress = (Rules(allow=lists[direction]) for direction in (Direction.IN, Direction.OUT))
        policies.append(Policy(policy, Selector(name=name), ingress, egress))
    return policies_text(policies, remarks)


def narrowest(peer: Party, opening: Opening) -> Rule:
    """The rule that lets it pass, and as little else as a rule can."""
    if peer.kind is Kind.NAMES:
        return Rule(Selector("dns"))
    if peer.member is not None:
        member = peer.member
        selector = Selector(name=member.name) if member.name else Selector(network=member.network)
    elif peer.kind is Kind.HOST or peer.address is None:
        selector = Selector("host")
    else:
        selector = Selector(prefix=ip_network(peer.address))
    protocol = next((name for name, numbers in RULE_PROTOCOLS.items() if opening.protocol in numbers), "")
    return Rule(selector, ((opening.port, opening.port),) if protocol in ("tcp", "udp") else (), protocol)


def _joined(rules: Mapping[Rule, int], world: World) -> list[tuple[Rule, int]]:
    """The rules, with one for many addresses."""
    alike: dict[tuple[object, ...], list[Rule]] = defaultdict(list)
    for rule in rules:
        alike[rule.peer.prefix is None, rule.ports, rule.protocol].append(rule)
    found = []
    for (named, *_), some in alike.items():
        if named or len(some) <= MOST_ADDRESSES:
            found += [(rule, rules[rule]) for rule in some]
            continue
        parties = [Party(Kind.OUTSIDE, rule.peer.prefix.network_address) for rule in some if rule.peer.prefix]
        word = next(word for word in _WORDS if all(word.fits(party, world) for party in parties))
        found.append((Rule(word, some[0].ports, some[0].protocol), sum(rules[rule] for rule in some)))
    return found
