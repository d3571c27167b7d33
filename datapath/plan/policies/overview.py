# SPDX-License-Identifier: Apache-2.0
"""Policies at a glance, a line each. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from datapath.model.parsing import PORT_PROTOCOLS
from datapath.model.policies import Direction, Kind, Party, Policy, Rule, Rules, World
from datapath.plan.policies.words import rule_text

OPEN = "open"


class Glance(NamedTuple):
    """`subject`: whom it is about; `ingress`, `egress`: how many rules each list has, OPEN: none is given; `matches`:
    how many endpoints it is about."""

    name: str
    subject: str
    ingress: str
    egress: str
    mode: str
    matches: int


def glances(policies: Iterable[Policy], world: World) -> list[Glance]:
    """A line for each policy."""
    return [
        Glance(
            policy.name,
            subject_words(policy),
            _rules_words(policy.rules(Direction.IN)),
            _rules_words(policy.rules(Direction.OUT)),
            str(policy.mode),
            sum(
                policy.subject.fits(Party(Kind.MEMBER, None, one), world, unknown=True)
                for one in world.members
            ),
        )
        for policy in policies
    ]


def subject_words(policy: Policy) -> str:
    """Whom it is about: a name, KEY=VALUE of labels, network=, published=, with commas between."""
    subject, port = policy.subject, policy.published
    words = [subject.name, *(f"{key}={value}" for key, value in subject.labels)]
    words += [f"network={subject.network}"] if subject.network else []
    if port:
        protocol = next(name for name, number in PORT_PROTOCOLS.items() if number == port.protocol)
        last = f"-{port.last}" if port.last != port.first else ""
        words.append(f"published={port.first}{last}/{protocol}")
    return ",".join(filter(None, words))


def _rules_words(rules: Rules) -> str:
    lists = (("deny", rules.deny or None), ("allow", rules.allow))
    words = [f"{len(some)} {word}" for word, some in lists if some is not None]
    words += [f"{rules.rate}/s"] if rules.rate else []
    return ", ".join(words) or OPEN


def policy_inspect(policy: Policy) -> dict[str, Any]:
    """A policy as JSON: its rules as they stand in a file."""
    return {
        "ID": policy.id,
        "Name": policy.name,
        "CreatedAt": policy.created,
        "For": subject_words(policy),
        "Mode": str(policy.mode),
        "Refuse": str(policy.refuse),
        "In": _lists(policy.rules(Direction.IN)),
        "Out": _lists(policy.rules(Direction.OUT)),
    }


def _lists(rules: Rules) -> dict[str, list[dict[str, Any]] | None]:
    """`Allow` null: none is given, and all that is not denied passes."""

    def listed(some: Iterable[Rule]) -> list[dict[str, Any]]:
        return [{"Rule": rule.number, "Peer": rule_text(rule)} for rule in some]

    return {"Deny": listed(rules.deny), "Allow": None if rules.allow is None else listed(rules.allow)}
