# SPDX-License-Identifier: Apache-2.0
"""Follows the host's network: what the next changing command would find out is told to the packet programs at once.

It does what every changing command does when it begins, under the same lock, and only then. The kernel's news say when;
settings below /proc/sys and resolv.conf make no news, so they are looked at every two seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from datapath.config.settings import Settings
from datapath.errors import DatapathError, StateError
from datapath.host import Host
from datapath.kernel import observe, sysctl
from datapath.kernel.events import Events
from datapath.model.host import HostNetwork
from datapath.store import locking
from datapath.store.sole import Sole

from . import changes

# Seconds: from the first of news to the refresh, so that what comes together is served together; from one refresh to
# the next, so that a storm of news costs little; between looks at settings.
SETTLE, SPACING, LOOK = 0.01, 0.03, 2.0
_DUTY = 4  # of its time at most one part in so many is spent on refreshes
_BUSY_FIRST, _BUSY_MOST = 0.02, 0.5  # between looks whether the command that has the lock is done
_FAILED_FIRST, _FAILED_MOST = 1.0, 60.0
_PATIENCE = 1.0  # for a command that has taken the lock in the moment in between


class Follower:
    """The job of following one host. `say` takes lines for the journal. `host`: what it changes the host by; jobs of
    the same thread use it too, as it keeps all rows."""

    def __init__(self, settings: Settings, events: Events, sole: Sole, say: Callable[[str], None]) -> None:
        self._settings, self._events, self._sole, self._say = settings, events, sole, say
        self.host = Host.open(settings, self._warn)
        self._dirty, self._wanted = True, 0.0  # a refresh is to be done, and when
        self._free_at = 0.0  # no refresh before
        self._look_at = 0.0
        self._pause = 0.0  # before the next try, while something is in the way
        self._seen: tuple[str, ...] = ()
        self._known: HostNetwork | None = None
        self._said: set[str] = set()
        self._now_said: set[str] = set()

    # ---- when ------------------------------------------------------------------------------------

    def wakes(self, now: float) -> Sequence[int]:
        """News are not even taken while they would change nothing: the kernel keeps a few, and drops the rest."""
        return () if self._dirty else self._events.filenos()

    def due(self) -> float:
        return min(self._wanted, self._look_at) if self._dirty else self._look_at

    def work(self, now: float) -> None:
        """InUseError: another agent follows this host by now."""
        if now >= self._look_at:
            self._look(now)
        if not self._dirty and self._events.drain():
            self._note(now)
        if self._dirty and now >= self._wanted:
            self._events.drain()  # what comes from now on may be later than what is observed
            self._refresh()

    def _note(self, now: float) -> None:
        self._dirty = True
        self._wanted = max(now + SETTLE, self._free_at)

    def _look(self, now: float) -> None:
        """At what changes without news."""
        self._look_at = now + LOOK
        try:
            self._sole.take()
        except StateError as error:  # somebody has taken the folder away, and nothing can be written there
            self._warn(str(error))
        settings = sysctl.read_existing((sysctl.PORT_RANGE, sysctl.RESERVED_PORTS))
        seen = (*settings.values(), observe.resolv_conf_state())
        if seen != self._seen:
            self._seen = seen
            if not self._dirty:
                self._note(now)

    # ---- what ------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        began = time.monotonic()
        if locking.held(self._settings.state_dir / "lock"):
            # A command is at work. Its own look at the host may be older than the news.
            self._later(began, _BUSY_FIRST, _BUSY_MOST)
            return
        try:
            observed = self.host.refresh(_PATIENCE)
        except (DatapathError, ExceptionGroup) as error:
            self._warn(changes.told(error))
            self._later(time.monotonic(), _FAILED_FIRST, _FAILED_MOST)
            self._settle_said(keep=True)
            return
        ended = time.monotonic()
        self._settle_said()
        self._dirty, self._pause = False, 0.0
        self._free_at = ended + max(SPACING, (_DUTY - 1) * (ended - began))
        if observed is not None:
            for line in changes.between(self._known, observed):
                self._say(line)
            self._known = observed

    def _later(self, now: float, first: float, most: float) -> None:
        self._pause = min(max(first, 2 * self._pause), most)
        self._wanted = now + self._pause

    def _warn(self, line: str) -> None:
        """Says what every refresh says only once, until one does not say it."""
        if line not in self._said:
            self._say(line)
        self._now_said.add(line)

    def _settle_said(self, keep: bool = False) -> None:
        self._said = self._said | self._now_said if keep else self._now_said
        self._now_said = set()
