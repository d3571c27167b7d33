# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of a long command on stderr, and ends it cleanly at a signal."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import printable

if TYPE_CHECKING:
    from datapath.bench.runner import Progress


@contextlib.contextmanager
def showing() -> Iterator[Callable[[Progress], None]]:
    """What shows progress; meanwhile SIGTERM and SIGHUP are Ctrl-C."""
    line = ProgressLine()
    with _terminated_is_interrupted():
        try:
            yield line.show
        finally:
            line.clear()


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: topologies are taken down, results are written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProgressLine:
    """How far it is, on stderr: one line that changes on a terminal, else one for each experiment."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        from datapath.bench.stats import ratio_text

        parts = [f"[{progress.number}/{progress.total}] {progress.label}"]
        parts += [f"{progress.rounds} rounds" if progress.rounds else "setting up"]
        if self.tty:
            parts += [f"{ratio.base} {ratio.median:.3g}" for ratio in progress.ratios]
            text = printable(" · ".join(parts))[: shutil.get_terminal_size().columns - 1]
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
        elif progress.stopped:
            parts += [f"{ratio.base} {ratio_text(ratio)}" for ratio in progress.ratios]
            click.echo(printable(" · ".join([*parts, progress.stopped])), err=True)

    def clear(self) -> None:
        if self.tty:
            click.echo("\r\x1b[K", err=True, nl=False)
