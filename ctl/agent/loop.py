# SPDX-License-Identifier: Apache-2.0
"""The agent's loop: it sleeps until a job has something to do, or a signal ends it.

A job is whatever the one process does beside others: it names descriptors that wake it, and the time when it is due.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from datapath.kernel.ending import signals
from datapath.kernel.notify import notify

NEVER = float("inf")
_LONGEST = 3600.0  # seconds


class Job(Protocol):
    """Something that the agent does."""

    def wakes(self, now: float) -> Sequence[int]:
        """Descriptors that, once they can be read, make it do its part."""

    def due(self) -> float:
        """When it wants to do its part, whatever happens; NEVER."""

    def work(self, now: float) -> None:
        """Does its part: one of its descriptors can be read, or it is due. Raises what the agent cannot go on with."""


def run(jobs: Sequence[Job], say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; a job's work is never cut short by them. Every job has had its turn when the service
    manager hears that the agent is ready."""
    with signals() as (stop, ended):
        for job in jobs:
            job.work(time.monotonic())
        notify("READY=1")
        while not ended():
            _turn(jobs, stop)
        notify("STOPPING=1")
        say("ended")


def _turn(jobs: Sequence[Job], stop: int) -> None:
    """Sleeps until something is to be done, and does it."""
    now = time.monotonic()
    poll = select.poll()
    poll.register(stop, select.POLLIN)
    waiting = {fd: job for job in jobs for fd in job.wakes(now)}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    pause = min(_LONGEST, max(0.0, min((job.due() for job in jobs), default=NEVER) - now))
    woken = {id(waiting[fd]) for fd, _ in poll.poll(pause * 1000) if fd in waiting}
    now = time.monotonic()
    for job in jobs:
        if id(job) in woken or job.due() <= now:
            job.work(now)
