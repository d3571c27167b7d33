# SPDX-License-Identifier: Apache-2.0
"""What is allowed of policies, and may not be what was meant. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.errors import ConfigError, meant, quoted
from datapath.model.judging import judge_side
from datapath.model.parsing import PROTOCOLS
from datapath.model.policies import (
    Action,
    Direction,
    Kind,
    Member,
    Opening,
    Party,
    Policy,
    Rule,
    Selector,
    World,
)
from datapath.plan.policies.words import rule_text

_NAME_PORT = 53


def refuse_ambiguous(policies: Sequence[Policy], world: World) -> None:
    """ConfigError: a name with a dot is a container's as well as a DNS name."""
    names = {member.name for member in world.members}
    for policy in policies:
        for rule in policy.egress.allow or ():
            name = rule.peer.domain
            if rule.peer.either and name in names:
                what = f"{quoted(name)} is a container and a DNS name"
                raise ConfigError(
                    f"{rule.where}: {what}: say {{name: {quoted(name)}}} or {{dns: {quoted(name)}}}"
                )


def warnings(policies: Sequence[Policy], world: World) -> list[str]:
    """A line for each thing."""
    return [
        line
        for policy in policies
        for line in (*_of_nobody(policy, world), *_of_rules(policy, policies, world))
    ]


def _of_nobody(policy: Policy, world: World) -> Iterator[str]:
    """Whom a policy is for, or a rule, and no container is now."""
    if not _fits_somebody(policy.subject, world):
        near = _near(policy.subject, world)
        yield f"{policy.where}: policy {policy.name} is for no container that there is now{near}"
    for direction in Direction:
        for rule in (*policy.rules(direction).deny, *(policy.rules(direction).allow or ())):
            about_members = rule.peer.name or rule.peer.labels or rule.peer.network
            if about_members and not _fits_somebody(rule.peer, world):
                yield f"{rule.where}: {rule_text(rule)} is no container that there is now{_near(rule.peer, world)}"


def _fits_somebody(selector: Selector, world: World) -> bool:
    return any(selector.fits(Party(Kind.MEMBER, None, member), world) for member in world.members)


def _near(selector: Selector, world: World) -> str:
    near = meant(selector.name, {member.name for member in world.members})
    return f"; did you mean {near}?" if near else ""


def _of_rules(policy: Policy, policies: Sequence[Policy], world: World) -> Iterator[str]:
    for direction in Direction:
        rules = policy.rules(direction)
        for some in (rules.deny, rules.allow or ()):
            for place, rule in enumerate(some):
                wider = [other for other in some[:place] + some[place + 1 :] if covers(other, rule)]
                # Of two that are the same the second is one too many.
                wider = [other for other in wider if not covers(rule, other) or other.number < rule.number]
                if wider:
                    yield f"{rule.where}: {rule_text(rule)} adds nothing to {rule_text(wider[0])}"
        for rule in rules.allow or ():
            denied = [other for other in rules.deny if covers(other, rule)]
            if denied:
                yield f"{rule.where}: {rule_text(rule)} never passes: {rule_text(denied[0])} is denied"
    for rule in policy.egress.allow or ():
        if rule.peer.domain and any(_cannot_ask(member, policy, policies, world) for member in world.members):
            yield f"{rule.where}: {rule.peer.domain} cannot be asked for: what is outside of the names here is denied"


def _cannot_ask(member: Member, policy: Policy, policies: Sequence[Policy], world: World) -> bool:
    party = Party(Kind.MEMBER, None, member)
    question = Opening(party, Party(Kind.NAMES), PROTOCOLS["udp"], _NAME_PORT)
    fits = policy.subject.fits(party, world)
    return fits and judge_side(Direction.OUT, question, policies, world).action is not Action.ALLOW


def covers(wide: Rule, rule: Rule) -> bool:
    """What the second is for, the first is for as well."""
    if wide.protocol not in ("", rule.protocol) or not _selects(wide.peer, rule.peer):
        return False
    return not wide.ports or (
        bool(rule.ports)
        and all(any(a <= first and last <= b for a, b in wide.ports) for first, last in rule.ports)
    )


def _selects(wide: Selector, selector: Selector) -> bool:
    if wide == selector:
        return True
    if not set(wide.excepted) <= set(selector.excepted):
        return False
    if wide.word or selector.word or wide.domain or selector.domain:
        return wide.word == "any" or (wide.word != "" and wide.word == selector.word)
    if wide.prefix is not None or selector.prefix is not None:
        both = wide.prefix is not None and selector.prefix is not None
        return both and _in(selector, wide)
    same = wide.name in ("", selector.name) and wide.network in ("", selector.network)
    return same and set(wide.labels) <= set(selector.labels)


def _in(selector: Selector, wide: Selector) -> bool:
    inner, outer = selector.prefix, wide.prefix
    if inner is None or outer is None or inner.version != outer.version:
        return False
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer
