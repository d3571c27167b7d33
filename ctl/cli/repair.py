# SPDX-License-Identifier: Apache-2.0
"""doctor, reconcile and upgrade: what is not as promised, and how it becomes so again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ctl.cli.command import Command, Front, format_option
from ctl.cli.errors import raise_all
from ctl.cli.output import emit, listing

if TYPE_CHECKING:
    from datapath.model.findings import Finding

NOT_CLEAN = 20
COLUMNS = {"Kind": "KIND", "Subject": "SUBJECT", "Detail": "DETAIL", "Means": "MEANS", "Mends": "MENDED BY"}


def rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [
        {
            "Kind": f.kind.name,
            "Subject": f.subject,
            "Detail": f.detail,
            "Means": f.kind.means,
            "Mends": f.kind.mends,
        }
        for f in findings
    ]


@click.command("doctor", cls=Command)
@format_option(field="Kind")
@click.pass_context
def doctor(ctx: click.Context, format_: str) -> None:
    """Compare what was promised with what is there.

    Prints every difference, what it means and what mends it. Changes nothing. Exit code 20 if there is one.
    """
    found = rows(ctx.find_object(Front).control.doctor())  # type: ignore[union-attr]
    if format_:
        emit(listing(found, COLUMNS, format_))
    elif not found:
        click.echo("Everything is as promised.")
    for row in [] if format_ else found:
        emit(f"{row['Subject']}: {row['Detail']}\n    means: {row['Means']}\n    mended by: {row['Mends']}")
    ctx.exit(NOT_CLEAN if found else 0)


@click.command("reconcile", cls=Command)
@format_option(field="Kind")
@click.pass_context
def reconcile(ctx: click.Context, format_: str) -> None:
    """Mend what doctor finds.

    Prints a line for everything that was mended; nothing else is touched. Exit code 20 if something is left.
    """
    done, left, failures = ctx.find_object(Front).control.reconcile()  # type: ignore[union-attr]
    if format_:
        emit(listing(rows(done), COLUMNS, format_))
    for finding in [] if format_ else done:
        click.echo(f"mended: {finding.line}")
    if left:
        for finding in left:
            click.echo(f"left: {finding.line} (mended by: {finding.kind.mends})", err=True)
        raise_all(failures)
        ctx.exit(NOT_CLEAN)


@click.command("upgrade", cls=Command)
@click.pass_obj
def upgrade(front: Front) -> None:
    """Replace the packet programs that run by this version's.

    No packet is lost and no connection ends. Also downwards; and for settings of daemon.json that came later.
    """
    done = front.control.upgrade()
    click.echo("The packet programs were replaced." if done else "There is nothing to replace.")
