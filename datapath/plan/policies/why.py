# SPDX-License-Identifier: Apache-2.0
"""Why a connection passes, or does not, step by step as the packet programs decide it. Pure.

What it says is a plan's word: `datapath.telemetry.why` asks the programs themselves, and compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.flows import ALLOWED, REFUSED
from datapath.model.host import HostNetwork
from datapath.model.judging import judge
from datapath.model.networks import Network
from datapath.model.policies import (
    Action,
    By,
    Direction,
    Kind,
    Layer,
    Party,
    Policy,
    Step,
    World,
)
from datapath.model.reasons import MEANINGS
from datapath.model.state import State
from datapath.plan.policies.asking import Asked
from datapath.plan.policies.flows import narrowest
from datapath.plan.policies.words import rule_text

PASSES = "passes"


class Line(NamedTuple):
    """One step. `result`: PASSES or REFUSED; `policy`, `rule`: that decide, rule 0: the policy lists others."""

    step: str
    subject: str
    text: str
    result: str = PASSES
    policy: str = ""
    rule: int | None = None


class Explanation(NamedTuple):
    """`verdict`: ALLOWED or REFUSED; `reason`: the counter of what is refused, "" else; `action`: what becomes of it;
    `hint`: what would open it."""

    lines: tuple[Line, ...]
    verdict: str
    reason: str = ""
    action: Action = Action.ALLOW
    hint: str = ""

    @property
    def decided(self) -> Line:
        return self.lines[-1]


def explain(
    asked: Asked, state: State, policies: Sequence[Policy], world: World, host: HostNetwork
) -> Explanation:
    """The steps up to the one that refuses it."""
    lines: list[Line] = []
    for line, reason in _way(asked, state, host):
        lines.append(line)
        if reason:
            return Explanation((*lines,), REFUSED, reason, Action.DROP, MEANINGS[reason].look)
    said = judge(asked.opening, policies, world)
    by_name = {policy.name: policy for policy in policies}
    for step in said.steps:
        lines.append(_judged(step, asked, by_name, world))
        if step.action is not Action.ALLOW:
            by = by_name[step.by.policy] if step.by else None
            action = Action.DROP if by and by.layer is Layer.BUILTIN else step.action
            return Explanation((*lines,), REFUSED, step.reason, action, _hint(step, asked, by))
    return Explanation((*lines,), ALLOWED)


def party_text(party: Party) -> str:
    """A container by its name, with its address."""
    if party.member is not None:
        return f"{party.member.name or 'unknown container'} {party.address}"
    name = {Kind.HOST: "host", Kind.NAMES: "names"}.get(party.kind, "outside")
    return name if party.address is None else f"{name} {party.address}"


# ---- the way: everything that is decided before policies are asked -------------------------------------------------


def _way(asked: Asked, state: State, host: HostNetwork) -> Iterator[tuple[Line, str]]:
    """The steps, each with the reason if it refuses."""
    source, destination = asked.opening.source, asked.opening.destination
    if source.member is not None:
        yield Line("sender", source.member.name, f"{source.address} is {source.member.name}'s"), ""
    published = asked.opening.published
    if published is not None:
        where = (
            f"port {published.port} of the host is published: {_name(destination)}, port {asked.opening.port}"
        )
        yield from _from_inside(asked, state, Line("published", f":{published.port}", where))
    elif source.member is None and asked.source is None:
        yield from _into(asked, state)
    elif destination.member is not None:
        yield from _between(asked, state)
    elif destination.kind is Kind.HOST:
        yield from _to_host(asked, state)
    else:
        yield from _to_outside(asked, state, host)


def _name(party: Party) -> str:
    return party.member.name if party.member else str(party.address)


def _network(endpoint: Endpoint | None, state: State) -> Network | None:
    return state.networks[endpoint.network_id] if endpoint else None


def _from_inside(asked: Asked, state: State, line: Line) -> Iterator[tuple[Line, str]]:
    """To an address of the host's: from internal networks only that of their gateway is reached, and no port."""
    network = _network(asked.source, state)
    if network is not None and network.internal:
        yield _refused(
            Line("network", network.name, "it is internal: no port of the host's is reached"), "DROP_INTERNAL"
        )
    else:
        yield line, ""


def _into(asked: Asked, state: State) -> Iterator[tuple[Line, str]]:
    network = _network(asked.destination, state)
    if asked.unpublished:
        yield Line("published", f":{asked.port}", "nobody publishes that port: it is the host's own"), ""
    elif network is not None and asked.opening.source.kind is Kind.OUTSIDE:
        address = asked.opening.source.address
        if any(address.version == one.version and address in one for one in network.host_routed if address):
            yield Line("network", network.name, f"the host may forward what {address} sends"), ""
        else:
            text = "nobody outside reaches a container's own address, but by a published port"
            yield _refused(Line("network", network.name, text), "DROP_DIRECT")
    elif network is not None:
        yield Line("network", network.name, "the host reaches its members"), ""


def _between(asked: Asked, state: State) -> Iterator[tuple[Line, str]]:
    mine, yours = _network(asked.source, state), _network(asked.destination, state)
    member = asked.opening.destination.member
    assert mine is not None and member is not None
    if member.network != mine.name:
        reason = "DROP_INTERNAL" if mine.internal else "DROP_ISOLATED"
        text = (
            "it is internal"
            if mine.internal
            else f"networks are isolated: {member.name} is on {member.network}"
        )
        yield _refused(Line("network", mine.name, text), reason)
        return
    elsewhere = "" if member.here else ", one on another host"
    icc = "on" if mine.icc else "off"
    seen = "" if traits(yours or mine).told else "; its packets do not pass the packet programs"
    yield Line("network", mine.name, f"both are members{elsewhere}, icc {icc}{seen}"), ""


def _to_host(asked: Asked, state: State) -> Iterator[tuple[Line, str]]:
    network, address = _network(asked.source, state), asked.opening.destination.address
    assert network is not None
    at_gateway = any(subnet.gateway == address for subnet in network.subnets)
    if network.internal and not at_gateway:
        text = f"it is internal: of the host it reaches its gateway alone, which {address} is not"
        yield _refused(Line("network", network.name, text), "DROP_INTERNAL")
    elif asked.unpublished:
        yield Line("published", f":{asked.port}", "nobody publishes that port: it is the host's own"), ""
    else:
        yield Line("network", network.name, "its members reach the host"), ""


def _to_outside(asked: Asked, state: State, host: HostNetwork) -> Iterator[tuple[Line, str]]:
    """What is internal has a policy of its own, which is asked later, as the route of what does not leave is not."""
    network, address = _network(asked.source, state), asked.opening.destination.address
    assert network is not None and address is not None
    if network.internal:
        return
    if any(address in one.prefix for one in network.subnets if one.prefix.version == address.version):
        yield _refused(Line("network", network.name, f"no member has {address}"), "DROP_NO_ENDPOINT")
        return
    for other in state.networks.values():
        within = (one.prefix for one in other.subnets if one.prefix.version == address.version)
        if other.built and other.device and any(address in prefix for prefix in within):
            text = f"networks are isolated: {address} is one of {other.name}'s"
            yield _refused(Line("network", network.name, text), "DROP_ISOLATED")
            return
    routes = [one for one in host.routes if one.prefix.version == address.version and address in one.prefix]
    if not routes:
        yield _refused(Line("route", str(address), "the host has no route there"), "DROP_NO_ROUTE")
        return
    best = max(routes, key=lambda route: (route.prefix.prefixlen, -route.metric))
    device = host.names.get(best.device, "")
    how = f"by {device}" + ("" if network.masquerade else ", without masquerading")
    yield Line("route", str(address), f"it leaves {how}"), ""


def _refused(line: Line, reason: str) -> tuple[Line, str]:
    return line._replace(result=REFUSED), reason


# ---- policies ------------------------------------------------------------------------------------------------------


def _judged(step: Step, asked: Asked, policies: dict[str, Policy], world: World) -> Line:
    """What one direction says, in words."""
    subject, peer = asked.opening.sides(step.direction)
    name = subject.member.name if subject.member else ""
    refused = step.action is not Action.ALLOW
    line = Line(step.direction, name, "", REFUSED if refused else PASSES)
    by = step.by
    if step.would is not None:
        passing = _about(by, peer, policies, step.direction, False) if by else "open"
        would = _about(step.would, peer, policies, step.direction, True)
        return line._replace(
            text=f"{passing}; in audit: {would}", policy=step.would.policy, rule=step.would.rule
        )
    if by is None:
        concerned = [p for p in policies.values() if p.concerns(step.direction, asked.opening, world)]
        closing = [p.name for p in concerned if not p.rules(step.direction).empty]
        text = f"nothing of {', '.join(closing)} is about it: open" if closing else "no policy: open"
        return line._replace(text=text)
    return line._replace(
        text=_about(by, peer, policies, step.direction, refused), policy=by.policy, rule=by.rule
    )


def _about(by: By, peer: Party, policies: dict[str, Policy], direction: Direction, refuses: bool) -> str:
    """The rule that decides, or what the policy lists instead."""
    policy = policies[by.policy]
    rules = policy.rules(direction)
    if policy.layer is Layer.BUILTIN:
        return f"{policy.name} {'closes it' if refuses else 'opens it'}"
    verb = "lets in" if direction == Direction.IN else "lets out to"
    if by.rule:
        rule = next(one for one in (*rules.deny, *(rules.allow or ())) if one.number == by.rule)
        return f"policy {policy.name}, rule {by.rule}: {'denies' if refuses else verb} {rule_text(rule)}"
    listed = ", ".join(rule_text(rule) for rule in rules.allow or ()) or "nobody"
    return f"policy {policy.name} {verb} {listed}; {_described(peer)}"


def _described(party: Party) -> str:
    """Who it is, as policies see it."""
    member = party.member
    if member is None:
        return f"{party.address} is {'the host' if party.kind is Kind.HOST else 'outside'}"
    if not member.known:
        return f"whose container has {party.address} is not known"
    labels = ",".join(f"{key}={value}" for key, value in sorted(member.labels.items()))
    return f"{member.name} is {labels or 'without labels'}"


def _hint(step: Step, asked: Asked, policy: Policy | None) -> str:
    """What would open it."""
    if policy is None or policy.layer is not Layer.OPERATOR:
        return MEANINGS[step.reason].look if step.reason in MEANINGS else ""
    if step.by and step.by.rule:
        return f"take rule {step.by.rule} from {policy.name}"
    _, peer = asked.opening.sides(step.direction)
    return f"add {rule_text(narrowest(peer, asked.opening))} to {step.direction}.allow of {policy.name}"
