# SPDX-License-Identifier: Apache-2.0
"""Checks the health of services' backends, and says which get new connections: only what has changed is written, under
the lock that commands take. While it does that it holds a file's lock, by which commands know that what it found holds.

It also ends the connections of drained backends whose time is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

from datapath.config.settings import Settings
from datapath.engine import backends
from datapath.errors import DatapathError
from datapath.host import Host
from datapath.kernel.inotify import Written
from datapath.model.kinds import kind_of
from datapath.model.services import Service
from datapath.plan import health
from datapath.plan.health import Target
from datapath.store import locking
from datapath.store.sole import HEALTH, Sole
from datapath.store.sqlite import SQLiteStore

from . import changes
from .checking import Checked, Checking
from .loop import NEVER
from .renewal import Renewed

# Seconds: from the first of news to what follows, so that what comes together is served together; between looks at what
# makes no news; between two changes.
SETTLE, LOOK, SPACING = 0.005, 2.0, 0.02
_DUTY = 4  # of its time at most one part in so many is spent on looks, and on changes
_BUSY_FIRST, _BUSY_MOST = 0.02, 0.5  # between looks whether the command that has the lock is done
_FAILED_FIRST, _FAILED_MOST = 0.5, 30.0
_PATIENCE = 1.0  # for a command that has taken the lock in the moment in between
_DATABASE = ("datapath.db", "datapath.db-wal")


class Health:
    """The job. A context manager. `host`: what it changes the host by; `say` takes lines for the journal."""

    def __init__(self, settings: Settings, host: Host, say: Callable[[str], None]) -> None:
        self._settings, self._host = settings, host
        self._say: Callable[[str], None] = lambda line: say(f"health: {line}")
        self._written, self._checking = Written(*_DATABASE), Checking(settings)
        self._sole = Sole(settings.state_dir / HEALTH, "another agent")
        self._sole.inherit()
        self._checked: dict[tuple[str, str], Checked] = {}
        self._news = True  # the rows may be others than when they were read
        self._wanted = False  # there are services whose backends are to be checked
        self._look_at, self._looked = 0.0, 0.0
        self._change_at, self._free_at = NEVER, 0.0
        self._end_at = NEVER  # connections of a drained backend are to be ended
        self._pause = 0.0
        self._why = ""  # nothing can be looked at or changed at the moment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Without it every backend that runs is up. If the agent starts itself again what was found holds all the
        while, for commands that come in between as well."""
        self._checking.close()
        self._written.__exit__(*exception)
        if isinstance(exception[1], Renewed):
            self._sole.hand_on()
        held = self._sole.held
        self._sole.release()
        if held and exception[0] is None:
            self._tell_all()

    # ---- when ------------------------------------------------------------------------------------

    def wakes(self, now: float) -> Sequence[int]:
        return (self._written.fileno(), self._checking.fileno())

    def due(self) -> float:
        return min(self._checking.due(), self._look_at, self._change_at, self._end_at)

    def work(self, now: float) -> None:
        if self._written.drain():
            self._news = True
            self._look_at = min(self._look_at, max(now + SETTLE, self._looked))
        if now >= self._look_at:
            self._look(now)
        for one in self._checking.work(now):
            self._note(one, now)
        if now >= min(self._change_at, self._end_at):
            self._change(now)

    # ---- whom ------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """At which backends are to be checked, and how."""
        began = time.monotonic()
        self._look_at = now + LOOK
        try:
            self._news = self._written.follow(self._settings.state_dir) or self._news
            if not self._news and self._sole.held == self._wanted:
                return
            wanted = self._targets()
            self._hold()
        except DatapathError as error:
            self._news = True
            self._lose(str(error))
            return
        self._news, self._why = False, ""
        self._follow(wanted, now)
        ended = time.monotonic()
        self._looked = ended + (_DUTY - 1) * (ended - began)

    def _targets(self) -> dict[tuple[str, str], Target]:
        """A host without such services is not read as a whole."""
        self._wanted, self._end_at = False, NEVER
        if not SQLiteStore.exists(self._settings.state_dir):
            return {}
        kinds = (kind_of(Service),)
        with SQLiteStore(self._settings.state_dir, create=False, reading=True, kinds=kinds) as store:
            found = store.load().services.values()
        if ends := [end for service in found for end in service.ends.values() if end]:
            self._end_at = time.monotonic() + (min(ends) - backends.moment()) / 1000
        self._wanted = any(service.health for service in found)
        if not self._wanted:
            return {}
        self._checking.state = self._host.snapshot()
        return {target.key: target for target in health.targets(self._checking.state)}

    def _hold(self) -> None:
        """Says that what is found holds, and what was found before. InUseError: another agent says it."""
        if not self._wanted:
            self._sole.release()
        elif not self._sole.held:
            self._sole.take()
            self._tell_all()

    def _follow(self, wanted: dict[tuple[str, str], Target], now: float) -> None:
        for key in self._checked.keys() - wanted.keys():
            self._checking.drop(self._checked.pop(key))
        for key, target in wanted.items():
            one = self._checked.get(key)
            if one is None or one.target.what != target.what:
                if one is not None:
                    self._checking.drop(one)
                one = self._checked[key] = Checked(target, now)
                self._checking.add(one, now)
            one.target, one.told = target, target.known.verdict
            self._note(one, now)

    def _note(self, one: Checked, now: float) -> None:
        if one.verdict != one.told:
            self._change_at = min(self._change_at, max(now, self._free_at))

    # ---- what is changed -------------------------------------------------------------------------

    def _tell_all(self) -> None:
        """What holds now is told to the packet programs, as by any command."""
        try:
            self._host.refresh(_PATIENCE)
        except (DatapathError, ExceptionGroup) as error:
            self._lose(changes.told(error))

    def _change(self, now: float) -> None:
        """Writes what has changed; a little later, if a command is at work."""
        if locking.held(self._settings.state_dir / "lock"):
            self._later(now, _BUSY_FIRST, _BUSY_MOST)
            return
        began = time.monotonic()
        found = {key: one.verdict for key, one in self._checked.items() if one.verdict != one.told}
        try:
            if (found and self._sole.held) or now >= self._end_at:
                with self._host.changing(create=False, freeing=True, patience=_PATIENCE) as tx:
                    backends.judge(tx, found)
        except (DatapathError, ExceptionGroup) as error:
            self._lose(changes.told(error))
            self._later(time.monotonic(), _FAILED_FIRST, _FAILED_MOST)
            return
        for key, verdict in found.items():
            one = self._checked[key]
            one.told = verdict
            name = health.title(one.target, self._checking.state)
            self._say(f"{name}: {verdict.state}: {verdict.reason}" if verdict else f"{name}: up")
        self._pause, self._change_at = 0.0, NEVER
        if now >= self._end_at:
            self._end_at, self._look_at, self._news = NEVER, now, True
        ended = time.monotonic()
        self._free_at = ended + max(SPACING, (_DUTY - 1) * (ended - began))

    def _later(self, now: float, first: float, most: float) -> None:
        self._pause = min(max(first, 2 * self._pause), most)
        self._change_at = now + self._pause
        if self._end_at <= now:
            self._end_at = self._change_at

    def _lose(self, why: str) -> None:
        """Says once what is in the way."""
        if why != self._why:
            self._say(why)
        self._why = why
