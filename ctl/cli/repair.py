# SPDX-License-Identifier: Apache-2.0
"""doctor, reconcile and upgrade: problems of the host, and their repair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from .command import Command, format_option, host
from .errors import raise_all
from .output import emit, listing, strong

if TYPE_CHECKING:
    from datapath.model.findings import Finding

NOT_CLEAN = 20
COLUMNS = {"Check": "CHECK", "Subject": "SUBJECT", "Detail": "DETAIL", "Means": "MEANS", "Repair": "REPAIR"}


def rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [
        {
            "Check": f.check.name,
            "Subject": f.subject,
            "Detail": f.detail,
            "Means": f.check.means,
            "Repair": f.check.repair,
        }
        for f in findings
    ]


@click.command("doctor", cls=Command)
@format_option(field="Check")
@click.pass_context
def doctor(ctx: click.Context, format_: str) -> None:
    """Check this host for problems.

    Compares the stored networks, containers and ports with the devices, programs, maps and rules of the host. Prints
    each problem, what it means and what repairs it, and changes nothing. Other hosts of a cluster are asked whether
    packets arrive there and come back. Exit code 20 if there are problems.
    """
    found = rows(host().doctor(reach=True))
    if format_:
        emit(listing(found, COLUMNS, format_))
    elif not found:
        click.echo("No problems found.")
    for row in [] if format_ else found:
        emit(
            f"{strong(row['Subject'])}: {row['Detail']}\n    means: {row['Means']}\n    repair: {row['Repair']}"
        )
    ctx.exit(NOT_CLEAN if found else 0)


@click.command("reconcile", cls=Command)
@format_option(field="Check")
@click.pass_context
def reconcile(ctx: click.Context, format_: str) -> None:
    """Repair what doctor finds.

    Prints a line for each problem that was repaired, and changes nothing else. Exit code 20 if problems are left.
    """
    done, left, failures = host().reconcile()
    if format_:
        emit(listing(rows(done), COLUMNS, format_))
    for finding in [] if format_ else done:
        click.echo(f"repaired: {finding.line}")
    if left:
        for finding in left:
            click.echo(f"left: {finding.line} (repair: {finding.check.repair})", err=True)
        raise_all(failures)
        ctx.exit(NOT_CLEAN)


@click.command("upgrade", cls=Command)
def upgrade() -> None:
    """Replace the loaded packet programs by this version's.

    No packet is lost and no connection ends. Changed settings of daemon.json come with it. An older version's command
    goes back, if its maps are laid out as these are.
    """
    done = host().upgrade()
    click.echo("The packet programs were replaced." if done else "There is nothing to replace.")
