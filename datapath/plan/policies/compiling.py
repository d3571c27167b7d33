# SPDX-License-Identifier: Apache-2.0
"""From policies to rows. Pure.

They are counted before there is anything to change: too many, and the policies are refused as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from datapath.errors import ConfigError
from datapath.model.parsing import PORT_PROTOCOLS
from datapath.model.policies import (
    PORTS,
    RULE_PROTOCOLS,
    Action,
    By,
    Direction,
    Kind,
    Layer,
    Member,
    Mode,
    Party,
    Policy,
    PublishedPort,
    Rule,
    Rules,
    Selector,
    World,
)
from datapath.plan.policies.classes import Classes
from datapath.plan.policies.rows import ROW_PROTOCOLS, MemberClass, Outcome, Rows, RuleSet, SetKey, Span

# How many of each there may be.
MOST_RULES = 32768  # with one more for each policy that lists whom it lets in or out
MOST_CLASSES = 65535
MOST_PREFIXES = 16384
MOST_SETS = 1 << 18
SPANS = 16  # in one row of a set,
MOST_SPANS = 4 * SPANS  # which may have so many
MOST_OF_ONE = 256  # policies that are about one container

_ANYBODY = Selector("any")


class _Subject(NamedTuple):
    """Some policies that are about a container; and whether they surely are, as its name and labels are known."""

    number: int
    policies: Sequence[tuple[Policy, bool]]

    @property
    def directions(self) -> frozenset[Direction]:
        return frozenset(d for d in Direction if any(not p.rules(d).empty for p, _ in self.policies))


class _Line(NamedTuple):
    """A rule; None: whatever protocol and port are. `number`: in `Rows.rules`."""

    policy: Policy
    number: int
    rule: Rule | None = None

    def covers(self, port: int) -> bool:
        ports = self.rule.ports if self.rule else ()
        return not ports or any(first <= port <= last for first, last in ports)


class _Cell(NamedTuple):
    """The lines of a layer that are between a subject and a peer. `listing`: what refuses others than are let pass."""

    deny: list[_Line]
    allow: list[_Line]
    listing: list[_Line]

    def only(self, keep: Callable[[_Line], bool]) -> _Cell:
        return _Cell(*([line for line in lines if keep(line)] for lines in self))


def plan_rows(policies: Sequence[Policy], world: World) -> Rows:
    """The rows by which `rows_verdict` says what `judge` does. ConfigError: there are too many."""
    if not policies:
        return Rows()
    classes = Classes((*_selectors(policies),), world)
    prefixes = classes.prefixes()
    _refuse_more(len(prefixes), MOST_PREFIXES, "prefixes")
    here = [member for member in world.members if member.here]
    peers = {m.endpoint: (classes.of_member(m, 4), classes.of_member(m, 6)) for m in here}
    _refuse_more(len(classes.fitting), MOST_CLASSES, "classes of containers and addresses")
    sets = _Sets(policies, classes)
    members = {}
    ports: dict[PublishedPort, int] = {}
    for subject, member in _subjects(policies, world, here):
        members[member.endpoint] = MemberClass(subject.number, subject.directions, *peers[member.endpoint])
        for direction in subject.directions:
            sets.add(subject, direction)
        for port in world.published:
            # What is about members alone is not about what comes by way of the host.
            if port.endpoint == member.endpoint and any(p.published or p.among for p, _ in subject.policies):
                ports[port] = sets.add(subject, Direction.IN, port)
    return Rows(True, members, prefixes, classes.names, ports, sets.found, sets.rules)


def _selectors(policies: Sequence[Policy]) -> dict[Selector, None]:
    """Each that a rule is for, once, and the networks that policies ask for besides."""
    found = {rule.peer: None for policy in policies for d in Direction for rule in _all(policy.rules(d))}
    return found | {Selector(network=policy.among): None for policy in policies if policy.among}


def _all(rules: Rules) -> tuple[Rule, ...]:
    return rules.deny + (rules.allow or ())


def _subjects(
    policies: Sequence[Policy], world: World, members: Sequence[Member]
) -> Iterator[tuple[_Subject, Member]]:
    """Each member with what it is to the policies: one and the same for those that they are about in the same way."""
    found: dict[tuple[tuple[int, bool], ...], _Subject] = {}
    classes = Classes([policy.subject for policy in policies], world)
    for member in members:
        party = Party(Kind.MEMBER, None, member)
        number = classes.number(party)
        concerning = tuple(
            (place, place in classes.fitting[number])
            for place in sorted(classes.possible[number])
            if policies[place].among in ("", member.network)
        )
        _refuse_more(len(concerning), MOST_OF_ONE, f"policies about container {member.name}")
        if concerning not in found:
            found[concerning] = _Subject(
                len(found) + 1, [(policies[place], sure) for place, sure in concerning]
            )
        yield found[concerning], member


class _Sets:
    """The sets of rules, each made once."""

    def __init__(self, policies: Sequence[Policy], classes: Classes) -> None:
        self.classes = classes
        self.found: dict[SetKey, RuleSet] = {}
        self._places = {selector: place for place, selector in enumerate(classes.selectors)}
        self._everybody = self._places.get(_ANYBODY, -1)
        self._holders: dict[int, list[int]] = defaultdict(
            list
        )  # classes that a selector may fit, by its place
        for number, places in classes.possible.items():
            for place in places:
                self._holders[place].append(number)
        self.rules = tuple(dict.fromkeys(by for policy in policies for by in _decisions(policy)))
        _refuse_more(len(self.rules), MOST_RULES, "rules")
        self._numbers = {by: number for number, by in enumerate(self.rules, 1)}
        self._made: dict[tuple[int, Direction, tuple[str, ...] | None], int] = {}
        self._rows = 0

    def add(self, subject: _Subject, direction: Direction, port: PublishedPort | None = None) -> int:
        """The subject's sets of the direction; and of openings by the published port, under a number that is returned:
        one and the same for ports that the same policies are about."""
        about = [
            (p, sure) for p, sure in subject.policies if not p.published or (port and p.published.has(port))
        ]
        scopes = port and tuple(policy.name for policy, _ in about if policy.published)
        made = (subject.number, direction, scopes)
        if made in self._made:
            return self._made[made]
        published = self._made[made] = max(self._made.values(), default=0) + 1 if port else 0
        if port:
            about = [(policy, sure) for policy, sure in about if not policy.among]
        asked = {self._places[rule.peer] for policy, _ in about for rule in _all(policy.rules(direction))}
        asked |= {self._places[Selector(network=policy.among)] for policy, _ in about if policy.among}
        asked -= {self._everybody}
        usual = self._sets(about, direction, frozenset(), frozenset(), False)
        self._put(SetKey(subject.number, 0, direction, 0, published), usual)
        alike = {}  # to this subject kinds of peers are few
        for peer in sorted({number for place in asked for number in self._holders[place]}):
            fits, may_fit = self.classes.fitting[peer] & asked, self.classes.possible[peer] & asked
            kind = (fits, may_fit, peer == self.classes.names)
            if kind not in alike:
                alike[kind] = [pair for pair in self._sets(about, direction, *kind) if pair not in usual]
            self._put(SetKey(subject.number, peer, direction, 0, published), alike[kind])
        return published

    def _put(self, key: SetKey, sets: Sequence[tuple[int, RuleSet]]) -> None:
        for protocol, made in sets:
            self.found[key._replace(protocol=protocol)] = made
            self._rows += max(1, -(-len(made.spans) // SPANS))
        _refuse_more(self._rows, MOST_SETS, "sets of rules")

    def _sets(
        self,
        about: Sequence[tuple[Policy, bool]],
        direction: Direction,
        fits: frozenset[int],
        may_fit: frozenset[int],
        names: bool,
    ) -> list[tuple[int, RuleSet]]:
        """What becomes of each protocol's ports, of openings from or to a peer that these selectors fit, or may."""
        cells = {layer: _Cell([], [], []) for layer in Layer}
        for policy, sure in about:
            if policy.among and self._places[Selector(network=policy.among)] not in fits:
                continue
            rules, cell = policy.rules(direction), cells[policy.layer]
            cell.deny.extend(self._lines(policy, rules.deny, may_fit, names))
            if rules.allow is not None:
                cell.listing.append(_Line(policy, self._numbers[By(policy.name, 0)]))
                cell.allow.extend(self._lines(policy, rules.allow if sure else (), fits, names))
        return [(protocol, _rule_set([*cells.values()], protocol, direction)) for protocol in ROW_PROTOCOLS]

    def _lines(
        self, policy: Policy, rules: Sequence[Rule], places: frozenset[int], names: bool
    ) -> Iterator[_Line]:
        for rule in rules:
            place = self._places[rule.peer]
            if place in places or place == self._everybody:
                asked = names and bool(rule.peer.domain)  # it may be asked for, whatever of it may be reached
                yield _Line(policy, self._numbers[By(policy.name, rule.number)], None if asked else rule)


def _rule_set(layers: Sequence[_Cell], protocol: int, direction: Direction) -> RuleSet:
    """What becomes of the protocol at each port."""
    first, last = PORTS
    cells = [cell.only(lambda line: _is_about(line, protocol)) for cell in layers]
    starts = {first}
    for cell in cells if protocol in PORT_PROTOCOLS.values() else ():
        for line in (*cell.deny, *cell.allow):
            starts.update(
                edge for one, other in (line.rule.ports if line.rule else ()) for edge in (one, other + 1)
            )
    spans: list[Span] = []
    enforced = [cell.only(lambda line: line.policy.mode is Mode.ENFORCE) for cell in cells]
    for start in sorted(starts - {last + 1}):
        outcome = _outcome(enforced, cells, start, direction)
        if spans and spans[-1].outcome == outcome:
            continue
        if spans:
            spans[-1] = spans[-1]._replace(last=start - 1)
        spans.append(Span(start, last, outcome))
    width: dict[Outcome, int] = defaultdict(int)
    for span in spans:
        width[span.outcome] += span.last - span.first + 1
    rest = max(width, key=lambda outcome: width[outcome])
    kept = tuple(span for span in spans if span.outcome != rest)
    _refuse_more(len(kept), MOST_SPANS, "ranges of ports between two containers")
    return RuleSet(rest, kept)


def _is_about(line: _Line, protocol: int) -> bool:
    rule = line.rule
    return rule is None or not rule.protocol or protocol in RULE_PROTOCOLS[rule.protocol]


def _outcome(
    enforced: Sequence[_Cell], all_modes: Sequence[_Cell], port: int, direction: Direction
) -> Outcome:
    refusing, number = _decide(enforced, port)
    if refusing is not None:
        return Outcome(refusing.refuse, refusing.reason or f"DROP_{direction.upper()}", number)
    would, first = _decide(all_modes, port)
    reason = f"WOULD_{direction.upper()}" if would else ""
    return Outcome(Action.ALLOW, reason, number, first if would else 0)


def _decide(layers: Sequence[_Cell], port: int) -> tuple[Policy | None, int]:
    """The policy that refuses, if one does; and the number of the rule that decides, 0: none."""
    passed = 0
    for cell in layers:
        for line in cell.deny:
            if line.covers(port):
                return line.policy, line.number
        found = next((line.number for line in cell.allow if line.covers(port)), 0)
        if cell.listing and not found:
            return cell.listing[0].policy, cell.listing[0].number
        passed = passed or found
    return None, passed


def _decisions(policy: Policy) -> Iterator[By]:
    """What can be named of it."""
    for direction in Direction:
        rules = policy.rules(direction)
        yield from (By(policy.name, rule.number) for rule in _all(rules))
        if rules.allow is not None:
            yield By(policy.name, 0)


def _refuse_more(count: int, most: int, what: str) -> None:
    if count > most:
        raise ConfigError(f"the policies need more than {most:,} {what}: nothing was changed")
