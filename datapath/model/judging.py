# SPDX-License-Identifier: Apache-2.0
"""What policies mean: the reference. Pure. Four sentences:

1. A direction (`in` or `out`) of a container is open until some policy lists an `allow` for it; from then on only what
   is listed passes.
2. A `deny` always refuses.
3. A connection needs the sender's `out` and the receiver's `in`.
4. Answers follow their connection, and so do errors about it.

It is naive on purpose: it looks at every policy for each opening. The rows that packet programs look up
(`datapath.plan.policies.rows`) have to say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from datapath.model.policies import (
    Action,
    By,
    Direction,
    Kind,
    Layer,
    Mode,
    Opening,
    Packet,
    Party,
    Policy,
    Step,
    Verdict,
    World,
)


def judge(opening: Opening, policies: Sequence[Policy], world: World) -> Verdict:
    """A connection needs the sender's `out` and the receiver's `in`. Who is no container has neither. Of several
    policies that decide alike the first is named."""
    steps: list[Step] = []
    for direction in Direction:
        if opening.to_itself or opening.sides(direction)[0].member is None:
            continue
        steps.append(judge_side(direction, opening, policies, world))
        if steps[-1].action is not Action.ALLOW:
            break
    return Verdict(tuple(steps))


def judge_side(direction: Direction, opening: Opening, policies: Iterable[Policy], world: World) -> Step:
    """What a direction says; and what it would say if all modes were `enforce`."""
    concerned = [policy for policy in policies if policy.concerns(direction, opening, world)]
    refused, by = _decide(direction, opening, [p for p in concerned if p.mode is Mode.ENFORCE], world)
    name = direction.upper()
    if refused is not None:
        told = refused.refuse is Action.REJECT and opening.source.kind is not Kind.OUTSIDE
        action = Action.REJECT if told else Action.DROP
        return Step(direction, action, refused.reason or f"DROP_{name}", by)
    would, first = _decide(direction, opening, concerned, world)
    return Step(direction, Action.ALLOW, f"WOULD_{name}", by, first) if would else Step(direction, by=by)


def _decide(
    direction: Direction, opening: Opening, policies: Sequence[Policy], world: World
) -> tuple[Policy | None, By | None]:
    """The policy that refuses, if one does; and the rule by which it is refused or may pass."""
    subject, peer = opening.sides(direction)
    passed = None
    for layer in Layer:
        mine = [policy for policy in policies if policy.layer is layer]
        for policy in mine:
            for rule in policy.rules(direction).deny:
                if rule.fits(peer, opening, world, unknown=True):
                    return policy, By(policy.name, rule.number)
        listing = [policy for policy in mine if policy.rules(direction).allow is not None]
        allowed = (
            By(policy.name, rule.number)
            for policy in listing
            if policy.subject.fits(subject, world)
            for rule in policy.rules(direction).allow or ()
            if rule.fits(peer, opening, world, unknown=False)
        )
        found = next(allowed, None)
        if listing and found is None:
            return listing[0], By(listing[0].name, 0)
        passed = passed or found
    return None, passed


def judge_packets(packets: Iterable[Packet], verdict: Callable[[Opening], Verdict]) -> list[Verdict]:
    """Answers follow their connection: they are judged as what has opened it. What answers nothing that has passed is
    an opening of its own. An error is a packet of the connection that it is about. `verdict`: says what becomes of an
    opening."""
    opened: dict[tuple[int, Party, int, Party, int], Opening] = {}
    verdicts = []
    for packet in packets:
        opening, port = packet.opening, packet.source_port
        ends = (opening.protocol, opening.source, port, opening.destination, opening.port)
        question = opened.get((opening.protocol, opening.destination, opening.port, opening.source, port))
        verdicts.append(verdict(question or opening))
        if verdicts[-1].action is Action.ALLOW and question is None:
            opened[ends] = opening
    return verdicts
