# SPDX-License-Identifier: Apache-2.0
"""Follows the cluster that the host is a member of: what other hosts do to networks that this one takes part in is told
to the packet programs; that the host lives, and what it owes, is told to the cluster's store.

The store is asked by two threads (`watcher`, `keeper`). Rows and maps are changed here, in the agent's loop, under the
lock that commands take. Nothing of it is needed by a packet, or by a command: an agent that was killed, or cut off from
the store for however long, has missed news, and lists all of it again.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.engine import following
from datapath.engine.following import Interest
from datapath.errors import DatapathError
from datapath.host import Host
from datapath.kernel.inotify import Written
from datapath.store import heard, locking

from . import changes
from .inbox import Away, Changed, Failure, Inbox, Listed, Lost, Message, Note, Reached
from .loop import NEVER

if TYPE_CHECKING:
    from datapath.model.clusters import ClusterStore

    from .keeper import Keeper
    from .news import News
    from .watcher import Watcher

# Seconds: from the first of news to a change of the maps, so that what comes together is served together; from one
# change to the next; between looks at what makes no news.
SETTLE, SPACING, LOOK = 0.01, 0.02, 2.0
_DUTY = 4  # of its time at most one part in so many is spent on changes
_BUSY_FIRST, _BUSY_MOST = 0.02, 0.5  # between looks whether the command that has the lock is done
_FAILED_FIRST, _FAILED_MOST = 0.5, 30.0  # before the store is listed again
_PATIENCE = 1.0  # for a command that has taken the lock in the moment in between
_DATABASE = ("datapath.db", "datapath.db-wal")


class Membership:
    """The job of following one cluster, if daemon.json names its store and the host has joined it. A context manager.
    `host`: what it changes the host by, in the thread that it works in; `say` takes lines for the journal."""

    def __init__(self, settings: Settings, host: Host, say: Callable[[str], None]) -> None:
        self._settings, self._host = settings, host
        self._say: Callable[[str], None] = lambda line: say(f"cluster: {line}")
        self._written, self._inbox = Written(*_DATABASE), Inbox()
        self._where: ClusterStore | None = None
        self._interest = Interest()
        self._keeper: Keeper | None = None
        self._watcher: Watcher | None = None
        self._news: News | None = None  # what the watcher has told, and is not in the rows yet
        self._look_at, self._listen_at, self._change_at, self._free_at = 0.0, NEVER, NEVER, 0.0
        self._busy = self._failed = 0.0  # the last pauses
        self._away = ""  # why the store could not be asked; "": it could

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()
        self._inbox.close()
        self._written.__exit__(*exception)

    # ---- when ------------------------------------------------------------------------------------

    def wakes(self, now: float) -> Sequence[int]:
        return (self._written.fileno(), self._inbox.fileno())

    def due(self) -> float:
        return min(self._look_at, self._listen_at, self._change_at)

    def work(self, now: float) -> None:
        """Raises what is wrong with the program itself."""
        if self._written.drain():
            self._look_at = min(self._look_at, max(now + SETTLE, self._free_at))
        if now >= self._look_at:
            self._look(now)
        for source, message in self._inbox.take():
            if source in (self._watcher, self._keeper):
                self._hear(message, now)
        if now >= self._listen_at:
            self._listen(now)
        if now >= self._change_at:
            self._change(now)

    # ---- being a member --------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """At which cluster the host is in, which networks it takes part in, and what it owes."""
        self._look_at = now + LOOK
        try:
            self._written.follow(self._settings.state_dir)
            where = DaemonConfig.load(self._settings).cluster
            interest = following.look(self._settings.state_dir) if where is not None else Interest()
        except DatapathError as error:
            self._lose(str(error))
            return
        before, self._interest = self._interest, interest
        if where != self._where or interest.me != before.me:
            self._leave()
            self._where = where
        if where is None or not interest.me:
            return
        if self._keeper is None:
            from .keeper import Keeper

            self._keeper = Keeper(where, interest.me, self._settings, self._inbox)
        if interest.owing:
            self._keeper.owe()
        if interest.networks != before.networks or (self._watcher is None and self._listen_at == NEVER):
            self._listen_at = now
            self._failed = 0.0

    def _leave(self) -> None:
        """Hears nothing more."""
        for thread in (self._watcher, self._keeper):
            if thread is not None:
                thread.close()
        self._watcher = self._keeper = self._news = None
        self._listen_at = self._change_at = NEVER

    def _listen(self, now: float) -> None:
        """Begins to hear of the networks that the host takes part in, if there are any."""
        from .news import News
        from .watcher import Watcher

        assert self._where is not None
        if self._watcher is not None:
            self._watcher.close()
        self._watcher, self._listen_at = None, NEVER
        try:
            self._news = News(self._host.snapshot())  # of before the list
        except DatapathError as error:
            self._lose(str(error))
            self._listen_later(now)
            return
        self._watcher = Watcher(self._where, self._interest.networks, self._inbox)

    def _listen_later(self, now: float) -> None:
        self._failed = min(max(_FAILED_FIRST, 2 * self._failed), _FAILED_MOST)
        self._listen_at = now + self._failed * random.uniform(
            0.5, 1.0
        )  # so that hosts do not come all at once

    # ---- what is heard ---------------------------------------------------------------------------

    def _hear(self, message: Message, now: float) -> None:
        """Raises a thread's failure."""
        match message:
            case Failure(error):
                raise error
            case Note(line):
                self._say(line)
            case Reached():
                self._reach()
            case Away(why):
                self._lose(why)
            case Lost(why, restored):
                if why:
                    self._lose(why)
                if restored and self._keeper is not None:
                    self._keeper.doubt()
                self._watcher = self._news = None
                self._change_at = NEVER
                self._listen_later(now)
            case Listed() | Changed():
                assert self._news is not None
                self._news.add(message)
                self._change_at = min(self._change_at, max(now + SETTLE, self._free_at))

    def _reach(self) -> None:
        """The store has just answered."""
        if self._away:
            self._say("the store answers again")
        self._away = ""
        if self._news is not None and self._news.revision and self._host.exists:
            heard.write(self._settings.run_dir, self._news.revision)

    def _lose(self, why: str) -> None:
        """Says once why the store cannot be asked: packets go on by what is known."""
        if why != self._away:
            self._say(why)
            if self._host.exists:
                heard.fail(self._settings.run_dir, why)
        self._away = why

    # ---- what is changed -------------------------------------------------------------------------

    def _change(self, now: float) -> None:
        """Takes what was heard over into rows and maps; a little later, if a command is at work."""
        if locking.held(self._settings.state_dir / "lock"):
            self._busy = min(max(_BUSY_FIRST, 2 * self._busy), _BUSY_MOST)
            self._change_at = now + self._busy
            return
        self._busy, self._change_at = 0.0, NEVER
        began = time.monotonic()
        assert self._news is not None
        try:
            with self._host.changing(create=False, patience=_PATIENCE) as tx:
                disowned = self._news.write(tx)
        except (DatapathError, ExceptionGroup) as error:
            self._say(changes.told(error))
            self._listen_later(now)
        else:
            self._failed = 0.0
            if disowned and self._keeper is not None:
                self._keeper.doubt()
        gc.collect()  # all rows, of before and after: else the next change needs as much besides
        ended = time.monotonic()
        self._free_at = ended + max(SPACING, (_DUTY - 1) * (ended - began))
