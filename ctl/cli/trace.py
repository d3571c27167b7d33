# SPDX-License-Identifier: Apache-2.0
"""datapathctl trace …: live tracing of packets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import click

from . import completing
from .command import Command, Group, Number, format_option, host
from .output import emit, emit_parts, listing, table
from .stats import COUNTERS, counter_row, intervals

Pairs = Mapping[tuple[str, str], Sequence[int]]

_WIDTH = 40  # of the longest bar
_LATENCIES = {"From": "FROM", "To": "TO", "Packets": "PACKETS"}
_DROPS = {key: key.upper() for key in ("Container", "Device", "Reason", "Location", "Packets")}
_REFUSED = {
    "Container": "CONTAINER",
    "Device": "DEVICE",
    "Reason": "REASON",
    "Protocol": "PROTO",
    "Source": "SOURCE",
    "Destination": "DESTINATION",
    "Packets": "PACKETS",
}


@click.group("trace", cls=Group)
def trace() -> None:
    """Trace packets: latency and drops.

    This needs Debian's python3-bpfcc.
    """


seconds_option = click.option(
    "--seconds",
    type=Number(86400),
    metavar="N",
    help="Duration in seconds (default: until Ctrl-C).",
)


@trace.command("latency", cls=Command)
@click.argument("containers", nargs=-1, shell_complete=completing.running)
@click.option("--follow", is_flag=True, help="Print the counts of each second.")
@seconds_option
@format_option(field="Packets")
def latency(containers: tuple[str, ...], follow: bool, seconds: float | None, format_: str) -> None:
    """Measure the latency between containers.

    It is measured from the sender's network device to the receiver's: without CONTAINERS for all of them together,
    with one between it and each of the others, with several between each two of them.
    """
    from datapath.kernel import features
    from datapath.telemetry.latency import between_containers

    features.require()
    with between_containers(host().shown(), containers) as found:
        announce()
        before: Pairs = {}
        for last in intervals(seconds, 1.0 if follow else None):
            now = found.pairs()
            pairs = difference(now, before)
            emit(listing(latency_rows(pairs), _LATENCIES, format_) if format_ else latency_text(pairs))
            if not last and not format_:
                click.echo()
            before = now


def announce() -> None:
    """Say on stderr that tracing has begun: earlier packets are not seen."""
    click.echo("Tracing. Ctrl-C ends it.", err=True)


def difference(now: Pairs, before: Pairs) -> dict[tuple[str, str], tuple[int, ...]]:
    """What has come since; nothing of pairs that had nothing."""
    grown = {
        pair: tuple(a - b for a, b in zip_longest(counts, before.get(pair, ()), fillvalue=0))
        for pair, counts in now.items()
    }
    return {pair: counts for pair, counts in grown.items() if any(counts)}


def latency_rows(pairs: Pairs) -> list[dict[str, Any]]:
    """Counts[i] packets took [2**i, 2**(i+1)) nanoseconds."""
    return [
        {"From": sender, "To": receiver, "Packets": sum(counts), "Counts": list(counts)}
        for (sender, receiver), counts in pairs.items()
    ]


def latency_text(pairs: Pairs) -> str:
    """A histogram for each pair."""
    if not pairs:
        return "No packet went from container to container."
    return "\n\n".join(
        f"{f'{sender} -> {receiver}' if sender else 'all containers'}, {sum(counts)} packets\n{histogram(counts)}"
        for (sender, receiver), counts in pairs.items()
    )


def histogram(counts: Sequence[int]) -> str:
    """From the first row that has something to the last."""
    first = next(power for power, count in enumerate(counts) if count)
    most = max(counts)
    rows = [
        (f"{2**power} to {2 ** (power + 1) - 1}", str(count), "*" * -(-_WIDTH * count // most))
        for power, count in enumerate(counts[first:], first)
    ]
    return table(("NANOSECONDS", "PACKETS", ""), rows)


@trace.command("drops", cls=Command)
@seconds_option
@format_option(field="Reason")
def drops(seconds: float | None, format_: str) -> None:
    """Show where and why packets are dropped.

    First the drops of the kernel, by its reasons, in the containers and on the host (CONTAINER -); TC_INGRESS at a
    container's device stands for the packet programs. Then what these have dropped, by their reasons: who sent it and
    where to, and all of it, as `stats` counts it.
    """
    from datapath.telemetry.drops import of_host

    with of_host(host()) as found:
        begun = time.monotonic()
        announce()
        for _ in intervals(seconds, None):
            dropped, refused, counted = found.rows(), found.refused(), found.counters()
    if not (dropped or counted or format_):
        click.echo(f"No packet was dropped in {time.monotonic() - begun:.0f} s.")
        return
    counters = [counter_row(name, *both) for name, both in counted.items()]
    emit_parts(
        (
            (_rows("kernel", dropped, format_), _DROPS),
            (_rows("program", refused, format_), _REFUSED),
            (counters, COUNTERS),
        ),
        format_,
    )


def _rows(kind: str, found: Sequence[Any], format_: str) -> list[dict[str, Any]]:
    """Of named tuples; in a table there is a - for what is not known."""
    rows = [
        {"Kind": kind} | {key.capitalize(): value for key, value in row._asdict().items()} for row in found
    ]
    return rows if format_ else [{key: value or "-" for key, value in row.items()} for row in rows]
