# SPDX-License-Identifier: Apache-2.0
"""Checks of backends that are under way, and those that are to be made: all are waited for together.

What a container does with its checks (no answer, or too much of one) costs it its own state, and others nothing: see
`lanes`.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Iterator

from datapath.config.settings import Settings
from datapath.engine import namespaces
from datapath.errors import DatapathError, NotFoundError
from datapath.kernel.probes import HttpProbe, Outcome, Probe, TcpProbe
from datapath.model.containers import Container
from datapath.model.health import CheckKind, Verdict
from datapath.model.state import State
from datapath.plan import health
from datapath.plan.health import Target
from datapath.runtime.health import CommandProbe, reap

from .lanes import Lane
from .loop import NEVER

_COMMANDS, _CONNECTIONS = 16, 256  # checks at once
_TICKS = os.sysconf("SC_CLK_TCK")


class Checked:
    """A backend that is checked, since `seen`. `progress`: what has become of it; `told`: what the rows say of it."""

    def __init__(self, target: Target, now: float) -> None:
        self.target, self.seen = target, now
        self.progress, self.told = target.known, target.known.verdict
        # The check that is under way, what it waits for, and when it has to be done.
        self.probe: Probe | None = None
        self.waits: dict[int, int] = {}
        self.late = NEVER

    @property
    def verdict(self) -> Verdict | None:
        """What the rows are to say."""
        return self.progress.verdict

    @property
    def suspect(self) -> bool:
        """It may well not answer."""
        return self.verdict is not None or self.progress.failed > 0

    def age(self, now: float) -> float:
        """Seconds since its container has started."""
        if not self.target.started:
            return now - self.seen
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.target.started / _TICKS


class Checking:
    """Makes the checks of those that it is given, again and again, until they are dropped. `state`: the rows
    by which they are made."""

    def __init__(self, settings: Settings) -> None:
        self.state = State()
        self._settings, self._epoll = settings, select.epoll()
        self._there: set[Checked] = set()
        self._waiting: dict[int, Checked] = {}  # by descriptor
        self._times: list[tuple[float, int, Checked]] = []  # a heap: when something is to be done about which
        self._order = itertools.count()
        self._lanes = {True: Lane[Checked](_COMMANDS), False: Lane[Checked](_CONNECTIONS)}
        self._judged: deque[Checked] = deque()

    def close(self) -> None:
        """Ends all that is under way."""
        for one in list(self._there):
            self.drop(one)
        self._epoll.close()

    def fileno(self) -> int:
        """What can be read when a check has come further."""
        return self._epoll.fileno()

    def due(self) -> float:
        """When something is to be done, whatever comes."""
        return self._times[0][0] if self._times else NEVER

    def add(self, one: Checked, now: float) -> None:
        """Is checked from now on, the first time at once."""
        self._there.add(one)
        self._at(now, one)

    def drop(self, one: Checked) -> None:
        """Is not checked any more."""
        self._there.discard(one)
        self._end(one)

    def work(self, now: float) -> Iterator[Checked]:
        """Does what is to be done; those of which a check has ended since."""
        # What has come is served before what is late: the caller may have been at something else.
        for fd, _ in self._epoll.poll(0) if self._waiting else ():
            self._step(fd, now)
        while self._times and self._times[0][0] <= now:
            self._turn(heapq.heappop(self._times)[2], now)
        for lane in self._lanes.values():
            for one in lane.next():
                self._begin(one, now)
        reap()
        while self._judged:
            yield self._judged.popleft()

    def _at(self, when: float, one: Checked) -> None:
        heapq.heappush(self._times, (when, next(self._order), one))

    def _lane(self, one: Checked) -> Lane[Checked]:
        return self._lanes[one.target.check.kind == CheckKind.CMD]

    def _turn(self, one: Checked, now: float) -> None:
        """It is time for a check of it, or the one that is under way takes too long."""
        if one not in self._there:
            return
        if one.probe is None:
            self._lane(one).join(one, one.suspect)
        elif now >= one.late:
            self._done(one, Outcome(False, f"no success within {one.target.check.patience:g} s"), now)

    def _begin(self, one: Checked, now: float) -> None:
        try:
            one.probe = _probe(self._settings, one.target, self.state)
        except NotFoundError:  # it has just ended: the rows will say so
            self._lane(one).leave(one)
            self._at(now + health.pause(one.target.check, one.progress), one)
        except (DatapathError, OSError) as error:
            self._done(one, Outcome(False, str(error)), now)
        else:
            one.late = now + one.target.check.patience
            self._at(one.late, one)
            self._listen(one, one.probe.waits)

    def _step(self, fd: int, now: float) -> None:
        one = self._waiting.get(fd)
        if one is None or one.probe is None:
            return
        outcome = one.probe.step(fd)
        if outcome is None:
            self._listen(one, one.probe.waits)
        else:
            self._done(one, outcome, now)

    def _listen(self, one: Checked, wanted: dict[int, int]) -> None:
        for fd in one.waits.keys() - wanted.keys():
            self._epoll.unregister(fd)
            del self._waiting[fd]
        for fd, mask in wanted.items():
            if fd not in one.waits:
                self._epoll.register(fd, mask)
                self._waiting[fd] = one
            elif one.waits[fd] != mask:
                self._epoll.modify(fd, mask)
        one.waits = dict(wanted)

    def _end(self, one: Checked) -> None:
        """Its check, if one is under way, or waits to be."""
        self._listen(one, {})
        if one.probe is not None:
            one.probe.close()
        one.probe, one.late = None, NEVER
        self._lane(one).leave(one)

    def _done(self, one: Checked, outcome: Outcome, now: float) -> None:
        self._end(one)
        check = one.target.check
        one.progress = health.judge(check, one.progress, outcome.passed, outcome.reason, one.age(now))
        self._at(now + health.pause(check, one.progress), one)
        self._judged.append(one)


def _probe(settings: Settings, target: Target, state: State) -> Probe:
    """NotFoundError: nobody is there any more. KernelError."""
    path = namespaces.path(state, target.sandbox_id)
    if path is None:
        raise NotFoundError("the container is not running")
    check = target.check
    if check.kind == CheckKind.CMD:
        return CommandProbe(settings, _container(target, state), check.test)
    if check.kind == CheckKind.TCP:
        return TcpProbe(path, target.address, check.port)
    return HttpProbe(path, target.address, check.port, check.path)


def _container(target: Target, state: State) -> Container:
    """The one whose process a command is run beside. NotFoundError: none runs."""
    found = next((one for one in state.users(target.sandbox_id) if one.running), None)
    if found is None:
        raise NotFoundError("no container runs there")
    return found
