# SPDX-License-Identifier: Apache-2.0
"""datapathctl ps: the containers, and what else is on the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ctl.cli.command import (
    Command,
    containers,
    format_option,
    host,
    no_trunc_option,
    quiet_option,
)
from ctl.cli.filters import Filters, has_label
from ctl.cli.formatting import created_at, mapping_text, ports_text, since, status_text
from ctl.cli.output import emit, listing, with_owner
from datapath.model.rows import OWNER, short

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


@click.command("ps", cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also list containers that are not running.")
@quiet_option
@no_trunc_option
@format_option(field="Names")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help='List only what matches, such as "name=web".',
)
def ps(all_: bool, quiet: bool, no_trunc: bool, format_: str, filters: tuple[str, ...]) -> None:
    """List containers."""
    wanted = Filters(filters, {"id", "name", "label", "status", "exited", "network"})
    state = host().snapshot()
    found = containers().ps(all=all_ or "status" in wanted or "exited" in wanted, state=state)
    names = {network.id: network.name for network in state.networks.values()}
    now = datetime.now(UTC)
    rows = [
        container_row(container, networks_of(container, names), now, no_trunc)
        for container in found
        if _wanted(wanted, container, networks_of(container, names))
    ]
    rows += [row for row in foreign_rows(state, no_trunc) if _wanted_row(wanted, row)]
    emit(listing(rows, with_owner(COLUMNS, rows), format_, quiet=quiet))


def foreign_rows(state: State, no_trunc: bool) -> list[dict[str, str]]:
    """Sandboxes of other owners, as `ps` shows them: what is known of them is their name, networks and ports."""
    from datapath.plan.ports import shown

    rows = []
    for sandbox in state.sandboxes.values():
        if not (sandbox.foreign and sandbox.key):
            continue
        endpoints = state.endpoints_of_sandbox(sandbox.id)
        ports = dict.fromkeys(m for e in endpoints for whole in e.ports for m in shown(whole, endpoints))
        rows.append(
            {
                **dict.fromkeys(("Command", "CreatedAt", "Labels", "RunningFor"), ""),
                "ID": sandbox.id if no_trunc else short(sandbox.id),
                "Names": sandbox.label,
                "Networks": ",".join(state.networks[e.network_id].name for e in endpoints),
                "Owner": sandbox.owner,
                "Ports": ", ".join(map(mapping_text, ports)),
                "State": "running",
                "Status": "",
            }
        )
    return rows


def _wanted_row(filters: Filters, row: Mapping[str, str]) -> bool:
    """The same as `_wanted`, of another owner's."""
    return (
        not any(key in filters for key in ("label", "exited"))
        and filters.contained("id", row["ID"])
        and filters.contained("name", row["Names"])
        and filters.equal("status", row["State"], {"created", "running", "exited"})
        and filters.some("network", lambda name: name in row["Networks"].split(","))
    )


def networks_of(container: Container, names: Mapping[str, str]) -> list[str]:
    """The names of the networks it has joined, or its mode when it has joined none."""
    joined = [names.get(asked.network, asked.network) for asked in container.networks]
    return joined or [container.network_mode]


def _wanted(filters: Filters, container: Container, networks: Sequence[str]) -> bool:
    return (
        filters.contained("id", container.id)
        and filters.contained("name", container.name)
        and filters.equal("status", container.status, {"created", "running", "exited"})
        and filters.some("exited", lambda code: code == str(container.exit_code))
        and filters.some("network", lambda name: name in networks)
        and filters.every("label", lambda label: has_label(container.labels, label))
    )


def container_row(
    container: Container, networks: Sequence[str], now: datetime, no_trunc: bool
) -> dict[str, str]:
    """What `ps` knows about a container, under Docker's keys."""
    command = " ".join(container.argv)
    if not no_trunc and len(command) > 20:
        command = command[:19] + "…"
    return {
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
