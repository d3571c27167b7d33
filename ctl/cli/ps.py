# SPDX-License-Identifier: Apache-2.0
"""datapathctl ps: the containers, and what else is on the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from datapath.model.rows import OWNER, short

from . import completing
from .command import (
    Command,
    containers,
    format_option,
    host,
    no_trunc_option,
    quiet_option,
)
from .formatting import created_at, mapping_text, ports_text, since, status_text
from .golang.values import Labelled
from .output import emit, fitted, listing, with_owner
from .selection import Selection

if TYPE_CHECKING:
    from datapath.model.containers import Container
    from datapath.model.state import State


COLUMNS = {
    "ID": "CONTAINER ID",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}


LAST = click.IntRange(-1)
LAST.name = "number"


@click.command("ps", cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also list containers that are not running.")
@click.option(
    "-n",
    "--last",
    type=LAST,
    default=-1,
    metavar="N",
    help="List the N containers that were created last, running or not.",
)
@click.option(
    "-l", "--latest", is_flag=True, help="List the container that was created last, running or not."
)
@quiet_option
@no_trunc_option
@format_option(field="Names")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.keys(
        *("ancestor", "before", "exited", "expose", "id", "label", "name", "network", "publish", "since"),
        status=("created", "running", "exited"),
        health=("none",),
        is_task=("true", "false"),
    ),
    help='List only what matches, such as "name=web".',
)
def ps(
    all_: bool, last: int, latest: bool, quiet: bool, no_trunc: bool, format_: str, filters: tuple[str, ...]
) -> None:
    """List containers."""
    wanted = Selection(filters)
    state = host().shown()
    wanted.look(state)
    most = 1 if latest and last < 1 else last
    names = {network.id: network.name for network in state.networks.values()}
    now = datetime.now(UTC)
    rows: list[Mapping[str, str]] = [
        container_row(container, networks_of(container, names), now, no_trunc)
        for container in containers().ps(all=all_ or wanted.all or most > 0, state=state)
        if wanted.wants(container, networks_of(container, names))
    ]
    # When other owners' were made is not known: they are not among the last.
    rows = rows[:most] if most > 0 else [*rows, *foreign_rows(state, wanted, no_trunc)]
    columns = with_owner(COLUMNS, rows)
    if not (format_ or quiet or no_trunc):
        rows = fitted(rows, columns, "Ports")
    emit(listing(rows, columns, format_, quiet=quiet))


def foreign_rows(state: State, wanted: Selection, no_trunc: bool) -> list[Mapping[str, str]]:
    """Sandboxes of other owners, as `ps` shows them: what is known of them is their name, networks and ports."""
    from datapath.plan.ports import shown

    rows: list[Mapping[str, str]] = []
    for sandbox in state.sandboxes.values():
        if not (sandbox.foreign and sandbox.key):
            continue
        endpoints = state.endpoints_of_sandbox(sandbox.id)
        networks = [state.networks[e.network_id] for e in endpoints]
        ports = dict.fromkeys(m for e in endpoints for whole in e.ports for m in shown(whole, endpoints))
        if not wanted.wants_sandbox(sandbox, networks, ports):
            continue
        row = {
            **dict.fromkeys(("Command", "CreatedAt", "Labels", "RunningFor"), ""),
            "ID": sandbox.id if no_trunc else short(sandbox.id),
            "Names": sandbox.label,
            "Networks": ",".join(network.name for network in networks),
            "Owner": sandbox.owner,
            "Ports": ", ".join(map(mapping_text, ports)),
            "State": "running",
            "Status": "",
        }
        rows.append(Labelled(row, lambda name: ""))
    return rows


def networks_of(container: Container, names: Mapping[str, str]) -> list[str]:
    """The names of the networks it has joined, or its mode when it has joined none."""
    joined = [names.get(asked.network, asked.network) for asked in container.networks]
    return joined or [container.network_mode]


def container_row(
    container: Container, networks: Sequence[str], now: datetime, no_trunc: bool
) -> dict[str, str]:
    """What `ps` knows about a container, under Docker's keys."""
    command = " ".join(container.argv)
    if not no_trunc and len(command) > 20:
        command = command[:19] + "…"
    row = {
        "Command": f'"{command}"',
        "CreatedAt": created_at(container.created),
        "ID": container.id if no_trunc else container.short_id,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(container.labels.items())),
        "Names": container.name,
        "Networks": ",".join(networks),
        "Owner": OWNER,
        "Ports": ports_text(container),
        "RunningFor": since(container.created, now) + " ago",
        "State": container.status,
        "Status": status_text(container, now),
    }
    return Labelled(row, lambda name: container.labels.get(name, ""))
