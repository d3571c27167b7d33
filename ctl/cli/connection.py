# SPDX-License-Identifier: Apache-2.0
"""datapathctl ct …: connection tracking."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import completing
from .command import Command, Group, format_option, host
from .formatting import of, seconds
from .output import emit, emit_parts, fitted, listing
from .stats import map_row, say_unloaded

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
    "Packets": "PACKETS",
    "Bytes": "BYTES",
    "ReplyPackets": "REPLY PACKETS",
    "ReplyBytes": "REPLY BYTES",
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
            shell_complete=completing.running,
            help="Only connections of this container.",
        ),
        click.option(
            "--proto",
            default="",
            metavar="NAME",
            shell_complete=completing.words("tcp", "udp", "icmp", "icmpv6"),
            help="Only this protocol: tcp, udp, icmp or icmpv6.",
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
            shell_complete=completing.words("new", "replied", "established", "closing", "closed"),
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

    A packet from SOURCE to DESTINATION is translated to one from NAT SOURCE to NAT DESTINATION. PACKETS and BYTES are
    those of this direction, REPLY PACKETS and REPLY BYTES those of the other, since it was opened; bytes are those from
    the IP header on.
    """
    from datapath.model.connections import ConnectionFilter
    from datapath.telemetry.stats import connections

    found = connections(host(), ConnectionFilter.parse(**words), container)
    rows = [connection_row(connection, names) for connection, names in found]
    emit(listing(rows if format_ else fitted(rows, COLUMNS, "Containers"), COLUMNS, format_))


def connection_row(connection: Connection, containers: str) -> dict[str, Any]:
    """What `ct ls` knows about a connection; seconds."""
    return {
        "Protocol": connection.proto,
        "Source": side_text(*connection.source),
        "Destination": side_text(*connection.destination),
        "NatSource": side_text(*connection.nat_source),
        "NatDestination": side_text(*connection.nat_destination),
        "State": connection.state,
        "Packets": connection.packets,
        "Bytes": connection.bytes,
        "ReplyPackets": connection.reply_packets,
        "ReplyBytes": connection.reply_bytes,
        "Idle": seconds(connection.idle),
        "Expires": seconds(connection.expires),
        "Containers": containers,
        "Confirmed": connection.confirmed,
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
    if not found.tables:
        say_unloaded()
    parts = (
        (
            [
                {"Kind": "state", "Table": table, "State": state, "Connections": number}
                for (table, state), number in sorted(found.states.items())
            ],
            STATES,
        ),
        ([map_row(name, *fill) for name, fill in found.tables.items()], TABLES),
        (
            [
                {"Kind": "counter", "Counter": name, "Packets": packets, "Bytes": length}
                for name, (packets, length) in found.drops.items()
            ],
            DROPS,
        ),
        (
            [
                {
                    "Kind": "container",
                    "Container": name,
                    "Connections": of(connections, found.max_connections),
                    "MaxConnections": found.max_connections,
                    "Openings": of(openings, found.max_openings),
                    "MaxOpenings": found.max_openings,
                }
                for name, (connections, openings) in sorted(found.quotas.items())
            ],
            USAGES,
        ),
    )
    emit_parts(parts, format_)
