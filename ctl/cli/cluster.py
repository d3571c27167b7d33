# SPDX-License-Identifier: Apache-2.0
"""datapathctl cluster …: what several hosts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datapath.errors import StateError

from .command import Command, Group, format_option, host, warn
from .output import emit, listing

if TYPE_CHECKING:
    from datapath.telemetry.cluster import Member

COLUMNS = {
    "Server": "SERVER",
    "Status": "STATUS",
    "Leader": "LEADER",
    "Version": "VERSION",
    "Size": "SIZE",
    "Time": "TIME",
}


@click.group("cluster", cls=Group)
def cluster() -> None:
    """Show the store that hosts share."""


@cluster.command("status", cls=Command)
@format_option(field="Server")
def status(format_: str) -> None:
    """Ask each server of the store whether it is well.

    The servers are those of "cluster-store" in daemon.json. Exit code 14 if none answers.
    """
    from datapath.telemetry.cluster import status as ask

    found = ask(host().settings)
    rows = [member_row(one, bool(format_)) for one in found.members]
    emit(listing(rows, COLUMNS, format_))
    for alarm in found.alarms:
        warn(f"the store complains: {alarm}")
    if not found.cluster:
        raise StateError("no server of the cluster store answers")


def member_row(one: Member, exact: bool) -> dict[str, Any]:
    """What `cluster status` knows about a server; with `exact` numbers, of bytes and seconds."""
    row: dict[str, Any] = {
        "Server": one.name,
        "Status": one.error or "ok",
        "Leader": one.leader if exact else "yes" if one.leader else "",
        "Version": one.version,
        "Size": one.size,
        "Time": round(one.seconds, 6),
    }
    if not exact:
        row["Size"] = "" if one.error else f"{one.size / 1e6:.1f} MB"
        row["Time"] = "" if one.error else f"{one.seconds * 1e3:.1f} ms"
    return row
