# SPDX-License-Identifier: Apache-2.0
"""A whole run: its measurements, its machine and time, and the command that repeats it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from datapath.bench import machine
from datapath.bench.model import Run, Suite
from datapath.bench.results import FORMAT
from datapath.bench.runner import Bounds, Outcome, Progress, Runner, Wanted


def measure(
    suites: Sequence[Suite],
    bounds: Bounds,
    command: Sequence[str],
    progress: Callable[[Progress], None],
    wanted: Wanted,
    docker: tuple[str, str],
) -> tuple[Run, Outcome]:
    """`docker` are the client and the daemon. What fails, or an interruption, is in the outcome."""
    described = machine.describe(*docker)
    started, began = datetime.now(UTC), time.monotonic()
    outcome = Runner(bounds, progress).run(suites, wanted)
    described["load_after"] = machine.load()
    found = Run(
        format=FORMAT,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        command=tuple(command),
        machine=described,
        series=tuple(outcome.series),
        histograms=tuple(outcome.histograms),
        costs=tuple(outcome.costs),
        skipped=outcome.skipped,
    )
    return found, outcome


def in_pid_namespace(work: Callable[[], int]) -> int:
    """The exit code of `work`, which leaves no process and no mount behind, however it ends."""
    from datapath.kernel import pid_namespace

    return pid_namespace.run(work)
