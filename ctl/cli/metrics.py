# SPDX-License-Identifier: Apache-2.0
"""datapathctl metrics: what is counted, for Prometheus."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from datapath.errors import StateError

from .command import Command, PathType, host

SERIES = click.IntRange(100, 1_000_000)
SERIES.name = "number"


@click.command("metrics", cls=Command)
@click.option("--openmetrics", is_flag=True, help="In OpenMetrics' format 1.0, not in the one before.")
@click.option(
    "-o",
    "--output",
    type=PathType(path_type=Path),
    metavar="FILE",
    help="Replace FILE by them in one step, as the textfile collector of node_exporter wants it.",
)
@click.option(
    "--series",
    type=SERIES,
    default=5000,
    metavar="N",
    help="Most series that there may be (default: 5000): later totals are one.",
)
def metrics(openmetrics: bool, output: Path | None, series: int) -> None:
    """Print what is counted, for Prometheus.

    Counters of the packet programs, who talks to whom and who is refused, what policies have decided, how full tables
    are. All of it is exact, though nothing runs. No container makes more than its share of the series.
    """
    from datapath import __version__
    from datapath.telemetry import exposition

    exposition.require()
    found = exposition.expose(host(), __version__, openmetrics=openmetrics, most=series).body
    if output is not None:
        _replace(output, found)
    else:
        sys.stdout.buffer.write(found)
        sys.stdout.buffer.flush()


def _replace(path: Path, body: bytes) -> None:
    """Whoever reads it meanwhile reads what was there before. StateError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(body)
        beside.chmod(0o644)  # the collector is another user
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StateError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from error
