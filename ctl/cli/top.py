# SPDX-License-Identifier: Apache-2.0
"""datapathctl top: what moves, a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError, printable

from . import completing
from .command import Command, Number, format_option, host
from .errors import message
from .output import emit_parts
from .stats import intervals
from .top_rows import CONTAINERS, SORTS, cell, summary, tables

if TYPE_CHECKING:
    from datapath.host import Host
    from datapath.telemetry.rates import Look, Rates

MISSING = (
    "top draws with textual, which is not installed: pip install 'datapathctl[top]'; --plain does without"
)
_ROWS = 20  # of a table that is printed, of what can be without end
LOOKS = click.IntRange(1)
LOOKS.name = "number"


class TopCommand(Command):
    """Docker's `top` is another thing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            raise
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            hint = "a container's processes are shown by `exec CONTAINER ps`"
            raise click.UsageError(f"{error.message}: {hint}", error.ctx) from error


@click.command("top", cls=TopCommand)
@click.option("--plain", is_flag=True, help="Print tables, one look after another, without keys.")
@click.option("--once", is_flag=True, help="Print them once, after --delay.")
@click.option("-n", "--number", type=LOOKS, metavar="N", help="Print them N times.")
@click.option(
    "-d", "--delay", type=Number(3600), default=1.0, metavar="SECONDS", help="Between looks (default: 1)."
)
@click.option(
    "--network",
    default="",
    metavar="NETWORK",
    shell_complete=completing.network,
    help="Only on this network.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default=SORTS[0],
    metavar="WORD",
    shell_complete=completing.words(*SORTS),
    help="By bytes (default), packets, connections, refused or name.",
)
@click.option("--filter", "word", default="", metavar="WORD", help="Only lines with this word in a name.")
@format_option(field="Container")
def top(
    plain: bool,
    once: bool,
    number: int | None,
    delay: float,
    network: str,
    sort: str,
    word: str,
    format_: str,
) -> None:
    """Show what moves: packets, bytes, connections a second.

    Of containers, of who talks to whom, and of what is refused and why, on networks with the option
    com.datapath.flows=true; and what looking costs. Keys: F1. Without a terminal, and with --plain, --once, -n or
    --format, tables are printed.
    """
    from datapath.telemetry.rates import look

    if once and number is not None:
        raise ConfigError("--once is -n 1: give one of both")
    plain = bool(plain or once or number or format_) or not sys.stdout.isatty()
    if not plain:
        try:
            from .top_screen import Top
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("textual", "rich"):
                raise
            raise ConfigError(MISSING) from error
    opened = host()
    if plain:
        _print(lambda: look(opened, network), 1 if once else number, delay, sort, word, format_)
    else:
        Top(lambda: look(opened, network), partial(why_of, opened), delay, sort, word).show()


def _print(
    looking: Callable[[], Look], number: int | None, delay: float, sort: str, word: str, format_: str
) -> None:
    from datapath.telemetry.rates import between

    before, left = looking(), number
    with suppress(KeyboardInterrupt):  # which may come while it looks
        for ended in intervals(None, delay):
            if ended:
                return
            now = looking()
            _show(between(before, now), sort, word, format_)
            before = now
            if left is not None and (left := left - 1) == 0:
                return
            if not format_:
                click.echo()


def _show(found: Rates, sort: str, word: str, format_: str) -> None:
    parts = tables(found, sort, word)
    if format_.rstrip(" ") in ("", "table"):
        click.echo(summary(found))
        parts = [(_drawn(rows, columns), columns) for rows, columns in parts]
    emit_parts(parts, format_)
    sys.stdout.flush()


def _drawn(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[dict[str, str]]:
    most = None if columns is CONTAINERS else _ROWS
    return [{key: cell(row[key]) for key in columns} for row in rows[:most]]


def why_of(engine: Host, source: str, destination: str, protocol: str, port: int) -> str:
    """What `why` says of it, or why it cannot."""
    from datapath.errors import DatapathError
    from datapath.plan.policies.asking import Question
    from datapath.telemetry.why import why

    from .why import why_text

    try:
        return why_text(why(engine, Question(source, destination, protocol, port or None, False)))
    except DatapathError as error:
        return printable(message(error))
