# SPDX-License-Identifier: Apache-2.0
"""datapathctl policy …: who may open connections to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import printable

from . import completing
from .command import Command, Group, PathType, format_option, host, warn
from .output import emit, listing
from .policy_files import read

if TYPE_CHECKING:
    from datapath.plan.policies.flows import Change
    from datapath.plan.policies.overview import Glance
    from datapath.telemetry.policies import Seen

COLUMNS = {
    "Name": "NAME",
    "For": "FOR",
    "In": "IN",
    "Out": "OUT",
    "Mode": "MODE",
    "Matches": "MATCHES",
}
CHANGES = {
    "Would": "WOULD",
    "From": "FROM",
    "To": "TO",
    "Protocol": "PROTO",
    "Port": "PORT",
    "Connections": "CONNS",
    "Policy": "POLICY",
    "Rule": "RULE",
}


@click.group("policy", cls=Group)
def policy() -> None:
    """Say who may open connections to whom.

    A policy names containers, and lists whom they let in, and whom they may open connections to.
    """


file_option = click.option(
    "-f",
    "--file",
    "path",
    type=PathType(),
    required=True,
    metavar="FILE",
    help="File of policies; -: standard input.",
)


@policy.command("test", cls=Command)
@file_option
@format_option()
def test(path: str, format_: str) -> None:
    """Check a file of policies, and change nothing.

    YAML, JSON, or a Compose file with x-datapath. Lists its policies with the number of endpoints that each is about
    now, and warns of what may not be meant.
    """
    from datapath.telemetry.policies import test as check

    found = check(host(), read(path))
    emit(listing([glance_row(one) for one in found.glances], COLUMNS, format_))
    for note in found.notes:
        warn(note)


def glance_row(one: Glance) -> dict[str, Any]:
    """What `policy test` knows about a policy."""
    return {
        "Name": one.name,
        "For": one.subject,
        "In": one.ingress,
        "Out": one.egress,
        "Mode": one.mode,
        "Matches": one.matches,
    }


@policy.command("diff", cls=Command)
@file_option
@format_option(field="Would")
def diff(path: str, format_: str) -> None:
    """Show what policies would do to the traffic that was seen.

    What `flows` counts, and connections that are open now, of this host: which would be refused that pass now, and the
    other way about.
    """
    from datapath.telemetry.policies import diff as compare

    changes, seen = compare(host(), read(path))
    emit(listing([change_row(one) for one in changes], CHANGES, format_))
    say_unseen(seen)


def change_row(change: Change) -> dict[str, Any]:
    """What `policy diff` knows about traffic that another verdict would meet."""
    from datapath.model.policies import Action
    from datapath.plan.policies.why import party_text
    from datapath.telemetry.policies import protocol_name

    opening = change.flow.opening
    refused = change.after.action is not Action.ALLOW
    step = (change.after if refused else change.before).decided
    by = step.by if step else None
    return {
        "Would": "refuse" if refused else "open",
        "From": party_text(opening.source),
        "To": party_text(opening.destination),
        "Protocol": protocol_name(opening.protocol),
        "Port": opening.port,
        "Connections": change.flow.connections,
        "Policy": by.policy if by else "",
        "Rule": by.rule if by else 0,
    }


@policy.command("suggest", cls=Command)
@click.option(
    "--network",
    default="",
    metavar="NETWORK",
    shell_complete=completing.network,
    help="Only for this network.",
)
def suggest(network: str) -> None:
    """Print policies that let pass what was seen, and nothing else.

    Networks with the option com.datapath.flows=true have counted what their members open to each other and to the host.
    What is opened outside, and by published ports, is known of connections that are open now.
    """
    from datapath.telemetry.policies import suggest as made

    text, seen = made(host(), network)
    emit(printable_lines(text))
    say_unseen(seen)


def printable_lines(text: str) -> str:
    """Its lines, without control characters."""
    return "\n".join(map(printable, text.splitlines()))


def say_unseen(seen: Seen) -> None:
    """What is not in it."""
    if not seen.watched:
        warn(
            "not every network has the option com.datapath.flows=true: what members open to each other is not counted"
        )
    if seen.left_out:
        warn(
            f"{seen.left_out} lines are about containers that are not here any more, or on other hosts: left out"
        )
