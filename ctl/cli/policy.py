# SPDX-License-Identifier: Apache-2.0
"""datapathctl policy …: who may open connections to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import printable

from . import completing
from .command import Command, Group, PathType, format_option, host, quiet_option, warn
from .formatting import seconds
from .network import print_documents
from .output import emit, for_each, listing
from .policy_files import read

if TYPE_CHECKING:
    from datapath.engine.policy_views import Hit
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
HITS = {"Policy": "POLICY", "Rule": "RULE", "Hits": "HITS", "Refused": "REFUSED", "Last": "LAST"}
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


@policy.command("apply", cls=Command)
@file_option
@click.option("--dry-run", is_flag=True, help="Print what would become of each, and change nothing.")
@click.option("--prune", is_flag=True, help="Remove policies that are not in the file.")
def apply(path: str, dry_run: bool, prune: bool) -> None:
    """Put policies into force, all or none.

    Each takes the place of the one of its name. Connections that are open are judged again by their next packet.
    """
    outcomes = host().policies.apply(read(path), prune=prune, dry_run=dry_run)
    for name, outcome in outcomes.items():
        click.echo(printable(f"{name} {outcome}" + (" (dry run)" if dry_run else "")))


@policy.command("ls", cls=Command)
@click.option("-a", "--all", "every", is_flag=True, help="And what networks, links, ports and labels say.")
@quiet_option
@format_option()
def ls(every: bool, quiet: bool, format_: str) -> None:
    """List policies.

    HITS are the openings that its rules have let pass, REFUSED the packets that they have refused, or would have in
    audit mode, since the policy was applied.
    """
    from datapath.telemetry.policies import listed

    rows = [
        {**glance_row(one), "Hits": hits, "Refused": refused} for one, hits, refused in listed(host(), every)
    ]
    emit(listing(rows, {**COLUMNS, "Hits": "HITS", "Refused": "REFUSED"}, format_, quiet=quiet))


@policy.command("inspect", cls=Command)
@click.argument("names", metavar="POLICY...", nargs=-1, required=True, shell_complete=completing.policy)
@format_option("-f")
def inspect(names: tuple[str, ...], format_: str) -> None:
    """Show detailed information about policies."""
    from datapath.plan.policies.overview import policy_inspect

    print_documents(names, lambda name: policy_inspect(host().policies.get(name)), format_)


@policy.command("export", cls=Command)
@click.argument("names", metavar="[POLICY...]", nargs=-1, shell_complete=completing.policy)
def export(names: tuple[str, ...]) -> None:
    """Print policies as a file that `apply` takes: these, or all."""
    from datapath.plan.policies.writing import policies_text

    known = host().policies
    emit(printable_lines(policies_text([known.get(name) for name in names] if names else known.all())))


@policy.command("rm", cls=Command)
@click.argument("names", metavar="POLICY...", nargs=-1, required=True, shell_complete=completing.policy)
def rm(names: tuple[str, ...]) -> None:
    """Remove policies.

    What only they have refused passes again.
    """
    for_each(names, lambda name: host().policies.remove(name))


@policy.command("hits", cls=Command)
@format_option(field="Policy")
def hits(format_: str) -> None:
    """Show what each rule has decided.

    RULE is its place in the policy, 0 that the policy lists others. HITS are openings that it has let pass, REFUSED
    packets that it has refused, or in audit mode would have.
    """
    emit(listing([hit_row(one) for one in host().policies.hits()], HITS, format_))


def hit_row(one: Hit) -> dict[str, Any]:
    """What `policy hits` knows about a rule."""
    return {
        "Policy": one.policy,
        "Rule": one.rule,
        "Hits": one.openings,
        "Refused": one.refused,
        "Last": "" if one.idle is None else seconds(one.idle),
    }
