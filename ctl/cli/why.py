# SPDX-License-Identifier: Apache-2.0
"""datapathctl why: what becomes of a connection, and by which rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import printable

from . import completing
from .command import Command, PathType, format_option, host
from .output import emit, listing, strong

if TYPE_CHECKING:
    from datapath.telemetry.why import Program, Why

OTHERWISE = 1
COLUMNS = {
    "From": "FROM",
    "To": "TO",
    "Protocol": "PROTO",
    "Port": "PORT",
    "Verdict": "VERDICT",
    "Reason": "REASON",
    "Policy": "POLICY",
    "Rule": "RULE",
    "Agrees": "AGREES",
}
PORT = click.IntRange(1, 65535)
PORT.name = "port"
EXPECTED = {"allow": "allowed", "deny": "refused"}


@click.command("why", cls=Command)
@click.argument("source", metavar="FROM", shell_complete=completing.running)
@click.argument("destination", metavar="TO", shell_complete=completing.running)
@click.argument(
    "protocol", metavar="[PROTO]", default="", shell_complete=completing.words("tcp", "udp", "icmp")
)
@click.argument("port", metavar="[PORT]", type=PORT, required=False)
@click.option(
    "--if", "what_if", type=PathType(), metavar="FILE", help="What if these policies were in force."
)
@click.option(
    "--expect",
    type=click.Choice([*EXPECTED]),
    metavar="WORD",
    shell_complete=completing.words(*EXPECTED),
    help="End with 1 if it is not so: allow or deny.",
)
@click.option("-6", "--ipv6", is_flag=True, help="By IPv6, where both ends have it.")
@format_option(field="Verdict")
@click.pass_context
def why(
    ctx: click.Context,
    source: str,
    destination: str,
    protocol: str,
    port: int | None,
    what_if: str | None,
    expect: str | None,
    ipv6: bool,
    format_: str,
) -> None:
    """Say whether a connection passes, and what decides it.

    FROM and TO are containers, addresses, "host", or, as :8080 or 192.0.2.1:8080/udp, a published port. What the stored
    rows say is compared with what the loaded programs make of its first packet, in a run that sends nothing and leaves
    nothing behind. Exit code 1 if these differ, or if it is not as expected.
    """
    from datapath.plan.policies.asking import Question
    from datapath.telemetry.why import why as ask

    from .policy_files import read

    found = ask(
        host(), Question(source, destination, protocol, port, ipv6), read(what_if) if what_if else None
    )
    emit(listing([why_row(found)], COLUMNS, format_) if format_ else why_text(found))
    agrees = found.program.agrees(found.plan) is not False
    if not agrees or (expect and EXPECTED[expect] != found.plan.verdict):
        ctx.exit(OTHERWISE)


def why_row(found: Why) -> dict[str, Any]:
    """What `why` knows about a connection."""
    from datapath.model.flows import PROTOCOL_NAMES
    from datapath.plan.policies.why import party_text

    opening, plan, program = found.asked.opening, found.plan, found.program
    decided = plan.decided
    return {
        "From": party_text(opening.source),
        "To": party_text(opening.destination),
        "Protocol": PROTOCOL_NAMES[opening.protocol],
        "Port": opening.port,
        "Published": opening.published.port if opening.published else None,
        "Verdict": plan.verdict,
        "Reason": plan.reason,
        "Action": str(plan.action),
        "Policy": decided.policy,
        "Rule": decided.rule,
        "Steps": [
            {
                "Step": str(line.step),
                "Subject": line.subject,
                "Result": line.result,
                "Policy": line.policy,
                "Rule": line.rule,
                "Text": line.text,
            }
            for line in plan.lines
        ],
        "Hint": plan.hint,
        "Program": program._asdict(),
        "Agrees": program.agrees(plan),
    }


def why_text(found: Why) -> str:
    """A headline, a line a step, and what the programs say."""
    from datapath.model.flows import PROTOCOL_NAMES
    from datapath.plan.policies.why import party_text

    opening, plan = found.asked.opening, found.plan
    ends = f"{party_text(opening.source)} → {party_text(opening.destination)}"
    service = f"{PROTOCOL_NAMES[opening.protocol]}{f' {opening.port}' if opening.port else ''}"
    verdict = strong(plan.verdict.upper()) + (f" ({plan.reason})" if plan.reason else "")
    width = max(len(f"{line.step} {line.subject}") for line in plan.lines)
    lines = [f"{printable(ends)} {service}: {verdict}"]
    for line in plan.lines:
        refused = "  ← refused here" if line.result == plan.verdict == "refused" else ""
        lines.append(printable(f"  {f'{line.step} {line.subject}':{width}}  {line.text}{refused}"))
    lines.append(program_text(found.program, found.program.agrees(plan)))
    if plan.hint:
        lines.append(printable(f"to open it: {plan.hint}"))
    return "\n".join(lines)


def program_text(program: Program, agrees: bool | None) -> str:
    """What the programs say of it."""
    if agrees is None:
        return f"the packet programs were not asked: {program.unasked}"
    said = program.reason or ", ".join(program.counters)
    if agrees:
        return f"the packet programs say the same ({said})"
    return strong(f"the packet programs say otherwise: {program.verdict} ({said})")
