# SPDX-License-Identifier: Apache-2.0
"""datapathctl ct …: connection tracking."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .command import Command, Group, complete_running, format_option, host
from .output import emit, emit_parts, listing
from .system import map_row

if TYPE_CHECKING:
    from datapath.model.connections import Connection

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = {
    "Protocol": "PROTO",
    "Source": "SOURCE",
    "Destination": "DESTINATION",
    "NatSource": "NAT SOURCE",
    "NatDestination": "NAT DESTINATION",
    "State": "STATE",
    "Idle": "IDLE",
    "Expires": "EXPIRES",
    "Containers": "CONTAINERS",
}
STATES = {"Table": "TABLE", "State": "STATE", "Connections": "CONNECTIONS"}
TABLES = {"Map": "TABLE", "Used": "ENTRIES", "Max": "MAX", "Percent": "FULL"}
DROPS = {"Counter": "DROPS", "Packets": "PACKETS", "Bytes": "BYTES"}
USAGES = {"Container": "CONTAINER", "Connections": "CONNECTIONS", "Openings": "OPENINGS"}


@click.group("ct", cls=Group)
def ct() -> None:
    """List, count and flush tracked connections."""


def filter_options(command: F) -> F:
    """--container, --proto, --src, --dst, --state."""
    options = (
        click.option(
            "--container",
            default="",
            metavar="NAME",
            shell_complete=complete_running,
            help="Only connections of this container.",
        ),
        click.option(
            "--proto", default="", metavar="NAME", help="Only this protocol: tcp, udp, icmp or icmpv6."
        ),
        click.option(
            "--src", "source", default="", metavar="PREFIX", help="Only connections opened from this prefix."
        ),
        click.option(
            "--dst",
            "destination",
            default="",
            metavar="PREFIX",
            help="Only connections opened to this prefix.",
        ),
        click.option(
            "--state",
            default="",
            metavar="NAME",
            help="Only this state: new, replied, established, closing or closed.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@ct.command("ls", cls=Command)
@filter_options
@format_option(field="NatSource")
def ls(container: str, format_: str, **words: str) -> None:
    """List connections, both directions as one.

    A packet from SOURCE to DESTINATION is translated to one from NAT SOURCE to NAT DESTINATION.
    """
    from datapath.model.connections import ConnectionFilter
    from datapath.telemetry.stats import connections

    found = connections(host(), ConnectionFilter.parse(**words), container)
    emit(listing([connection_row(connection, names) for connection, names in found], COLUMNS, format_))


def connection_row(connection: Connection, containers: str) -> dict[str, str]:
    """What `ct ls` knows about a connection; seconds."""
    return {
        "Protocol": connection.proto,
        "Source": side_text(*connection.source),
        "Destination": side_text(*connection.destination),
        "NatSource": side_text(*connection.nat_source),
        "NatDestination": side_text(*connection.nat_destination),
        "State": connection.state,
        "Idle": f"{connection.idle:.0f}",
        "Expires": f"{connection.expires:.0f}",
        "Containers": containers,
        "Confirmed": "true" if connection.confirmed else "false",
    }


def side_text(address: str, port: int) -> str:
    """10.0.0.2:80, [2001:db8::1]:80"""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@ct.command("flush", cls=Command)
@filter_options
def flush(container: str, **words: str) -> None:
    """Delete connections and print how many.

    All of them, or those that match every option. A packet that arrives afterwards opens a new connection.
    """
    from datapath.model.connections import ConnectionFilter
    from datapath.telemetry.stats import flush as forget

    click.echo(forget(host(), ConnectionFilter.parse(**words), container))


@ct.command("stats", cls=Command)
@format_option(field="State")
def stats(format_: str) -> None:
    """Count connections.

    By state, against the sizes of the tables, and by container; and the packets that were dropped.
    """
    from datapath.telemetry.stats import connection_stats

    found = connection_stats(host())
    parts = (
        (
            [
                {"Table": table, "State": state, "Connections": str(number)}
                for (table, state), number in sorted(found.states.items())
            ],
            STATES,
        ),
        ([map_row(name, *fill) for name, fill in found.tables.items()], TABLES),
        (
            [
                {"Counter": name, "Packets": str(packets), "Bytes": str(length)}
                for name, (packets, length) in found.drops.items()
            ],
            DROPS,
        ),
        (
            [
                {
                    "Container": name,
                    "Connections": of(connections, found.max_connections),
                    "Openings": of(openings, found.max_openings),
                }
                for name, (connections, openings) in sorted(found.quotas.items())
            ],
            USAGES,
        ),
    )
    emit_parts(parts, format_)


def of(count: int, most: int) -> str:
    """12/100; 12 where there is no limit."""
    return f"{count}/{most}" if most else str(count)
