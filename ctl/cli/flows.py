# SPDX-License-Identifier: Apache-2.0
"""datapathctl flows: who talks to whom."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError

from . import completing
from .command import Command, format_option, host
from .formatting import clock, moment, moment_ago, now, seconds
from .golang.values import Number
from .output import emit, listing
from .stats import intervals

if TYPE_CHECKING:
    from datapath.model.flows import FlowFilter, FlowLine

COLUMNS = {
    "Age": "AGE",
    "From": "FROM",
    "To": "TO",
    "Protocol": "PROTO",
    "Verdict": "VERDICT",
    "Connections": "CONNS",
    "Sent": "SENT",
    "Received": "RECEIVED",
    "State": "STATE",
    "By": "BY",
}
MOST = click.IntRange(1)
MOST.name = "number"
PORT = click.IntRange(0, 65535)
PORT.name = "port"


def _reasons() -> list[str]:
    from datapath.model.reasons import MEANINGS

    return [name for name in MEANINGS if name.startswith("DROP_")]


@click.command("flows", cls=Command)
@click.option(
    "--network",
    default="",
    metavar="NETWORK",
    shell_complete=completing.network,
    help="Only on this network.",
)
@click.option(
    "--from",
    "source",
    default="",
    metavar="NAME",
    shell_complete=completing.running,
    help='Only what this container has begun, or "host", or "outside".',
)
@click.option(
    "--to",
    "destination",
    default="",
    metavar="NAME",
    shell_complete=completing.running,
    help='Only what was begun to this container, or "host", or "outside".',
)
@click.option(
    "--between",
    nargs=2,
    default=None,
    metavar="NAME NAME",
    shell_complete=completing.running,
    help="Only what these two have to do with each other.",
)
@click.option("--port", type=PORT, metavar="PORT", help="Only to this port.")
@click.option(
    "--protocol",
    default="",
    metavar="NAME",
    shell_complete=completing.words("tcp", "udp", "icmp", "icmpv6"),
    help="Only this protocol: tcp, udp, icmp or icmpv6.",
)
@click.option(
    "--verdict",
    default="",
    metavar="WORD",
    shell_complete=completing.words("allowed", "refused"),
    help="Only what was allowed, or refused.",
)
@click.option(
    "--reason",
    default="",
    metavar="COUNTER",
    shell_complete=completing.among(lambda ctx: _reasons()),
    help="Only what was refused for this reason.",
)
@click.option(
    "--since",
    default="",
    metavar="TIME",
    help="Only what had a packet since then: a time, or a duration such as 5m.",
)
@click.option("--last", type=MOST, metavar="N", help="Only the N lines that had a packet last.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Only what a container with this label has to do with somebody. Several: with all of them.",
)
@click.option(
    "--not", "negated", is_flag=True, help="All but what the other options name; --network is kept."
)
@click.option("-f", "--follow", is_flag=True, help="Print each second what has been added to totals.")
@click.option("--totals", is_flag=True, help="Add what goes on to the totals of what has ended.")
@format_option(field="From")
def flows(
    network: str,
    source: str,
    destination: str,
    between: tuple[str, str] | None,
    port: int | None,
    protocol: str,
    verdict: str,
    reason: str,
    since: str,
    last: int | None,
    labels: tuple[str, ...],
    negated: bool,
    follow: bool,
    totals: bool,
    format_: str,
) -> None:
    """List who talks to whom, the latest first.

    On networks with the option com.datapath.flows=true the packet programs count every packet of members to each
    other, to the host and to the outside. A line with a STATE goes on; the others are totals of what has ended, or was
    refused.
    """
    from datapath.model.flows import PROTOCOL_NAMES, VERDICTS, FlowFilter, parse_word
    from datapath.telemetry.flows import flows as read

    if between and (source or destination):
        raise ConfigError("--between excludes --from and --to")
    if follow and (last or since or totals):
        raise ConfigError("--follow excludes --last, --since and --totals")
    wanted = FlowFilter(
        network=network,
        source=source,
        destination=destination,
        between=between or (),
        port=port,
        protocol=parse_word(protocol, tuple(PROTOCOL_NAMES.values()), "protocol"),
        verdict=parse_word(verdict, VERDICTS, "verdict"),
        reason=parse_word(reason, tuple(_reasons()), "reason"),
        since=now() - moment(since, "--since") if since else None,
        labels=labels,
        negated=negated,
    )
    if negated and wanted._replace(network="", since=None, negated=False) == FlowFilter():
        raise ConfigError("--not needs an option that says what not: --port, --to, --label or another")
    if follow:
        _follow(wanted, format_)
        return
    found = read(host(), wanted, totals=totals, last=last)
    moments = format_.rstrip(" ") not in ("", "table")
    emit(listing([flow_row(line, moments=moments) for line in found.lines], COLUMNS, format_))
    if not found.watched:
        click.echo("no network has the option com.datapath.flows=true", err=True)
    if found.unplaced is not None:
        rest = found.unplaced
        click.echo(
            f"and {rest.sent_packets + rest.received_packets} packets, "
            f"{rest.sent_bytes + rest.received_bytes} bytes, {rest.connections} connections, by no name: "
            "the table of totals is full",
            err=True,
        )


_GROWN = "{:<10}{:<24}{:<28}{:<10}{:<10}{:<8}{:<10}{:<11}{}"  # a line a row, as they come


def _follow(wanted: FlowFilter, format_: str) -> None:
    """Nothing is missed between two looks, and nothing by who is stopped for a while: totals have it."""
    from datapath.model.flows import grown, head_of
    from datapath.telemetry.flows import flows as read

    columns = {key: heading for key, heading in COLUMNS.items() if key not in ("Age", "State")}
    before = {head_of(line): line for line in read(host(), wanted, totals=True).lines}
    if not format_:
        click.echo(_GROWN.format("TIME", *columns.values()))
    for _ in intervals(None, 1.0):
        totals = read(host(), wanted, totals=True).lines
        time = clock()
        rows = [{"Time": time, **flow_row(line)} for line in grown(totals, before)]
        before = {head_of(line): line for line in totals}
        if format_:
            emit(listing(rows, columns, format_))
        for row in [] if format_ else rows:
            click.echo(_GROWN.format(time, *(str(row[key]) for key in columns)).rstrip())


def flow_row(line: FlowLine, *, moments: bool = True) -> dict[str, Any]:
    """What `flows` knows about a line. Times are RFC 3339; no table has them."""
    row = {
        "Age": _age(round(line.idle)),
        "Network": line.network,
        "From": _end(line.source, line.source_address, line.source_port),
        "To": _end(line.destination, line.destination_address, line.port)
        + (f" ({line.published})" if line.published else ""),
        "Source": line.source,
        "SourceAddress": line.source_address,
        "SourcePort": line.source_port,
        "Destination": line.destination,
        "DestinationAddress": line.destination_address,
        "Port": line.port,
        "Published": line.published,
        "Protocol": line.protocol,
        "Verdict": line.verdict,
        "Reason": line.reason,
        "Connections": line.connections,
        "Sent": amount(line.sent_bytes),
        "Received": amount(line.received_bytes),
        "SentPackets": line.sent_packets,
        "ReceivedPackets": line.received_packets,
        "State": line.state,
        "By": line.reason,
    }
    if moments:
        row |= {"Opened": moment_ago(line.opened), "Last": moment_ago(line.idle)}
    return row


_age = functools.lru_cache(1024)(seconds)


def _end(name: str, address: str, port: int) -> str:
    """Who it is, and the port. Somebody outside is known by the address alone."""
    from datapath.model.flows import OUTSIDE

    shown = (address if name == OUTSIDE else "") or name or "?"
    if not port:
        return shown
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


@functools.lru_cache(1024)
def amount(count: int) -> Number:
    """Bytes: 60 B, 1.2 kB, 88 MB."""
    if count < 1000:
        return Number(count, f"{count} B")
    value, unit = float(count), 0
    while value >= 999.5 and unit < 6:
        value, unit = value / 1000, unit + 1
    return Number(count, f"{value:.{1 if value < 9.95 else 0}f} {'kMGTPE'[unit - 1]}B")
