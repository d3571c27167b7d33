# SPDX-License-Identifier: Apache-2.0
"""datapathctl stats: packet counters and how full the maps are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError, NotFoundError, meant, quoted

from . import completing
from .command import Command, Number, format_option, host
from .formatting import percent
from .output import emit, emit_parts, folded, listing

if TYPE_CHECKING:
    from datapath.telemetry.stats import LimitUse, ServiceUse

COUNTERS = {"Counter": "COUNTER", "Packets": "PACKETS", "Bytes": "BYTES"}
MAPS = {"Map": "MAP", "Used": "USED", "Max": "MAX", "Percent": "FULL"}
QUESTIONS = {
    "Network": "QUESTIONS ON",
    "Answered": "ANSWERED",
    "Nodata": "NODATA",
    "Nxdomain": "NXDOMAIN",
    "Forwarded": "FORWARDED",
    "FailedOver": "FAILED OVER",
    "Refused": "REFUSED",
}
LIMITS = {
    "Container": "LIMIT OF",
    "Network": "NETWORK",
    "Direction": "DIRECTION",
    "Rate": "BITS/S",
    "Burst": "BURST",
    "Packets": "DROPPED",
    "Bytes": "BYTES",
}
SERVICES = {
    "Service": "SERVICE",
    "Backend": "BACKEND",
    "Opened": "OPENED",
    "Failed": "FAILED",
    "PacketsIn": "PACKETS IN",
    "BytesIn": "BYTES IN",
    "PacketsOut": "PACKETS OUT",
    "BytesOut": "BYTES OUT",
}
REASONS = {"Counter": "COUNTER", "Meaning": "THE PACKET", "Look": "WHERE TO LOOK"}
PROMETHEUS = "prometheus"
_GROWN = "{:<11}{:<21}{:<10}{}"  # a line of --follow


def _names() -> list[str]:
    from datapath.model.reasons import MEANINGS

    return list(MEANINGS)


@click.command("stats", cls=Command)
@click.argument(
    "names", metavar="[COUNTER...]", nargs=-1, shell_complete=completing.among(lambda ctx: _names())
)
@click.option("-a", "--all", "all_", is_flag=True, help="Also print counters that are zero.")
@click.option("--reasons", is_flag=True, help="Print what the counters mean, and where to look.")
@click.option(
    "--follow", is_flag=True, help="Print each second the counters that have grown, and by how much."
)
@click.option(
    "--seconds", type=Number(86400), metavar="N", help="End --follow after N seconds (default: at Ctrl-C)."
)
@format_option(field="Counter", more=PROMETHEUS)
def stats(
    names: tuple[str, ...], all_: bool, reasons: bool, follow: bool, seconds: float | None, format_: str
) -> None:
    """Print packet counters and map usage.

    The packet programs count every packet that they drop, by reason. With COUNTER only these are printed.
    """
    _check_names(names)
    if seconds is not None and not follow:
        raise ConfigError("--seconds is for --follow: the counters are printed once without it")
    if ((reasons or follow) and format_ == PROMETHEUS) or (reasons and follow):
        raise ConfigError("--reasons, --follow and --format prometheus exclude each other")
    if reasons:
        rows: Sequence[Mapping[str, Any]] = reason_rows(names)
        emit(listing(rows if format_ else folded(rows, REASONS, ("Meaning", "Look")), REASONS, format_))
    elif follow:
        _follow(names, seconds, format_)
    else:
        _print(names, all_, format_)


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in _names():
            found = meant(name, _names())
            hint = (
                f"did you mean {found}?"
                if found
                else "`stats --reasons` lists them (systemd-cgtop has CPU and memory)"
            )
            raise NotFoundError(f"no counter is called {quoted(name)}: {hint}")


def _print(names: tuple[str, ...], all_: bool, format_: str) -> None:
    from datapath.telemetry.stats import stats as read

    found = read(host())
    if format_ == PROMETHEUS:
        from datapath import __version__
        from datapath.telemetry import metrics

        emit("\n".join(metrics.text(metrics.of_stats(found, __version__))))
        return
    if not found.fill:
        say_unloaded()
    counters = [
        counter_row(name, *both)
        for name, both in found.counters.items()
        if (name in names if names else both[0] or all_)
    ]
    maps = [map_row(name, used, most) for name, (used, most) in found.fill.items() if not names]
    questions = [question_row(name, counts) for name, counts in sorted(found.questions.items()) if not names]
    limits = [limit_row(use) for use in found.limits if not names]
    services = [service_row(use) for use in found.services if not names]
    more = [part for part in ((questions, QUESTIONS), (limits, LIMITS), (services, SERVICES)) if part[0]]
    emit_parts(((counters, COUNTERS), (maps, MAPS), *more), format_)


def say_unloaded() -> None:
    """Why there is nothing to count."""
    click.echo("No packet programs are loaded: no network has been used yet.", err=True)


def counter_row(name: str, packets: int, length: int) -> dict[str, Any]:
    """What is shown of a counter."""
    return {"Kind": "counter", "Counter": name, "Packets": packets, "Bytes": length}


def map_row(name: str, used: int, most: int) -> dict[str, Any]:
    """What is shown of a map."""
    return {"Kind": "map", "Map": name, "Used": used, "Max": most, "Percent": percent(used, most)}


def question_row(network: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """What is shown of the questions for names on a network."""
    titles = {"".join(word.title() for word in name.split("_")): number for name, number in counts.items()}
    return {"Kind": "questions", "Network": network, **titles}


def limit_row(use: LimitUse) -> dict[str, Any]:
    """What is shown of a limit of bandwidth: bits, and the packets and bytes that it has dropped."""
    return {
        "Kind": "limit",
        "Container": use.container,
        "Network": use.network,
        "Direction": use.limit.direction,
        "Rate": use.limit.rate,
        "Burst": use.limit.burst,
        "Packets": use.packets,
        "Bytes": use.bytes,
    }


def service_row(use: ServiceUse) -> dict[str, Any]:
    """What is shown of a service, or of one of its backends: connections, and what passed."""
    return {
        "Kind": "service",
        "Service": use.service,
        "Backend": use.backend,
        "Opened": use.opened,
        "Failed": use.failed,
        **passed_row(use),
    }


def passed_row(use: ServiceUse) -> dict[str, int]:
    """Packets and bytes to a backend, and from it; of a service to and from all that it has had."""
    return {
        "PacketsIn": use.packets_in,
        "BytesIn": use.bytes_in,
        "PacketsOut": use.packets_out,
        "BytesOut": use.bytes_out,
    }


def reason_rows(names: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """What these counters mean, or all of them."""
    from datapath.model.reasons import MEANINGS

    return [
        {"Counter": name, "Meaning": meaning.packet, "Look": meaning.look}
        for name, meaning in MEANINGS.items()
        if not names or name in names
    ]


# ---- what moves -----------------------------------------------------------------------


def _follow(names: tuple[str, ...], seconds: float | None, format_: str) -> None:
    from datapath.telemetry.stats import stats as read

    if not format_:
        click.echo(_GROWN.format("TIME", *COUNTERS.values()))
    before = read(host()).counters
    for _ in intervals(seconds, 1.0):
        now = read(host()).counters
        moment = time.strftime("%H:%M:%S")
        rows = [
            counter_row(name, *both)
            for name, both in grown(now, before).items()
            if not names or name in names
        ]
        before = now
        if format_:
            emit(listing([{"Time": moment, **row} for row in rows], COUNTERS, format_))
        for row in [] if format_ else rows:
            click.echo(_GROWN.format(moment, *(row[key] for key in COUNTERS)).rstrip())


def grown(
    now: Mapping[str, tuple[int, int]], before: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """What has come since. Counters begin at 0 again when programs are loaded anew."""
    found = {}
    for name, (packets, length) in now.items():
        had = before.get(name, (0, 0))
        if packets < had[0]:
            had = (0, 0)
        if packets > had[0]:
            found[name] = (packets - had[0], length - had[1])
    return found


def intervals(seconds: float | None, each: float | None) -> Iterator[bool]:
    """Sleeps, and yields when it is time to print: after `each` so many, and at the end (True). Ctrl-C is the end."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        left = 3600.0 if end is None else max(0.0, end - time.monotonic())
        try:
            time.sleep(min(left, each or left))
        except KeyboardInterrupt:
            break
        if end is not None and time.monotonic() >= end:
            break
        if each:
            yield False
    yield True
