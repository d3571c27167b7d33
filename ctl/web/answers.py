# SPDX-License-Identifier: Apache-2.0
"""What the page is answered, as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datapath.engine.engine import Engine
from datapath.model.flows import PROTOCOL_NAMES, FlowLine
from datapath.model.reasons import MEANINGS
from datapath.plan.policies.asking import Question
from datapath.plan.policies.why import party_text
from datapath.telemetry.remedy import remedy
from datapath.telemetry.why import why as ask


def lines(found: Iterable[FlowLine]) -> list[dict[str, Any]]:
    """What goes on."""
    return [line._asdict() for line in found]


def why(engine: Engine, question: Question) -> dict[str, Any]:
    """Whether it passes, what decides it, and what would let it pass. Errors as those of `telemetry.why.why`."""
    found = ask(engine, question)
    opening, plan, program = found.asked.opening, found.plan, found.program
    return {
        "from": party_text(opening.source),
        "to": party_text(opening.destination),
        "protocol": PROTOCOL_NAMES[opening.protocol],
        "port": opening.port,
        "published": opening.published.port if opening.published else None,
        "verdict": plan.verdict,
        "reason": plan.reason,
        "meaning": meaning(plan.reason),
        "action": str(plan.action),
        "policy": plan.decided.policy,
        "rule": plan.decided.rule,
        "steps": [line._asdict() for line in plan.lines],
        "hint": plan.hint,
        "program": {**program._asdict(), "agrees": program.agrees(plan)},
        "remedy": remedy(engine, found)._asdict(),
    }


def meaning(reason: str) -> str:
    """A sentence about a counter; "": it is none."""
    found = MEANINGS.get(reason)
    if found is None:
        return ""
    return f"The packet was dropped because {found.packet}." + (
        f" Look at: {found.look}." if found.look else ""
    )


def meanings() -> dict[str, str]:
    """Of everything that packets are dropped for."""
    return {reason: meaning(reason) for reason in MEANINGS if reason.startswith("DROP_")}
