# SPDX-License-Identifier: Apache-2.0
"""The rows that packet programs decide by, and how they do it. Pure.

A subject is some policies that are about the same endpoints, a peer's class says which rules are for it, and a set of
rules says what becomes of each port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from datapath.model.parsing import PROTOCOLS, Address, Prefix
from datapath.model.policies import Action, By, Direction, Kind, Opening, Party, PublishedPort, Step, Verdict

# Of ICMPv6 as of ICMP; 0: all others.
ROW_PROTOCOLS = (PROTOCOLS["tcp"], PROTOCOLS["udp"], PROTOCOLS["icmp"], 0)


class Outcome(NamedTuple):
    """What becomes of an opening; from outside `reject` is `drop`. `rule`, `would`: numbers in `Rows.rules`, or 0."""

    action: Action
    reason: str = ""
    rule: int = 0
    would: int = 0


class Span(NamedTuple):
    """Ports `first` to `last`."""

    first: int
    last: int
    outcome: Outcome


class RuleSet(NamedTuple):
    """What becomes of each port; `rest`: of those that are in no span. Spans are disjoint and in order."""

    rest: Outcome
    spans: tuple[Span, ...] = ()


class SetKey(NamedTuple):
    """`peer` 0: every class without a set of its own. `published`: the number of the host's port by which it comes, in
    `Rows.ports`; 0: none, or one that no policy is about."""

    subject: int
    peer: int
    direction: Direction
    protocol: int
    published: int


class MemberClass(NamedTuple):
    """What is known of an endpoint: its number as a subject, the directions that some policy is about, and its class as
    a peer by either address."""

    subject: int
    directions: frozenset[Direction]
    peer4: int
    peer6: int


@dataclass(frozen=True, slots=True)
class Rows:
    """`active`: there are policies; without them everything passes. `members`: by their endpoints' numbers, those of
    this host; `prefixes`: class of everybody else, the longest decides; `names`: class of outside name servers;
    `ports`: numbers of published ports that policies are about; `rules`: what numbers of rules mean, from 1."""

    active: bool = False
    members: Mapping[int, MemberClass] = field(default_factory=dict)
    prefixes: Mapping[Prefix, int] = field(default_factory=dict)
    names: int = 0
    ports: Mapping[PublishedPort, int] = field(default_factory=dict)
    sets: Mapping[SetKey, RuleSet] = field(default_factory=dict)
    rules: tuple[By, ...] = ()


# ---- how a program decides -----------------------------------------------------------------------------------------


def rows_verdict(rows: Rows, opening: Opening) -> Verdict:
    """What the rows of this host say: of its members' directions and no others. An endpoint without a row is closed."""
    steps: list[Step] = []
    for direction in Direction:
        subject, peer = opening.sides(direction)
        if not rows.active or opening.to_itself or subject.member is None or not subject.member.here:
            continue
        row = rows.members.get(subject.member.endpoint)
        if row is not None and direction not in row.directions:
            steps.append(Step(direction))
            continue
        outcome = _outcome(rows, row, peer, direction, opening) if row else _closed(direction)
        action = outcome.action
        if action is Action.REJECT and opening.source.kind is Kind.OUTSIDE:
            action = Action.DROP
        by, would = (rows.rules[number - 1] if number else None for number in (outcome.rule, outcome.would))
        steps.append(Step(direction, action, outcome.reason, by, would))
        if action is not Action.ALLOW:
            break
    return Verdict(tuple(steps))


def _closed(direction: Direction) -> Outcome:
    return Outcome(Action.REJECT, f"DROP_{direction.upper()}")


def _outcome(rows: Rows, row: MemberClass, peer: Party, direction: Direction, opening: Opening) -> Outcome:
    protocol = PROTOCOLS["icmp"] if opening.protocol == PROTOCOLS["icmpv6"] else opening.protocol
    protocol = protocol if protocol in ROW_PROTOCOLS else 0
    published = rows.ports.get(opening.published, 0) if opening.published and direction == Direction.IN else 0
    key = SetKey(row.subject, _peer_class(rows, peer), direction, protocol, published)
    found = rows.sets.get(key) or rows.sets[key._replace(peer=0)]
    spans = (span.outcome for span in found.spans if span.first <= opening.port <= span.last)
    return next(spans, found.rest)


def _peer_class(rows: Rows, party: Party) -> int:
    if party.kind is Kind.NAMES:
        return rows.names
    if party.member is not None and party.member.here:
        row = rows.members.get(party.member.endpoint)
        return 0 if row is None else row.peer6 if party.address and party.address.version == 6 else row.peer4
    return longest(rows.prefixes, party.address) if party.address else 0


def longest(prefixes: Mapping[Prefix, int], address: Address) -> int:
    """The value of the longest prefix that the address is in, 0: it is in none."""
    found = [p for p in prefixes if p.version == address.version and address in p]
    return prefixes[max(found, key=lambda p: p.prefixlen)] if found else 0
