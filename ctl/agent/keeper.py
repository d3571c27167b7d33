# SPDX-License-Identifier: Apache-2.0
"""Tells a cluster's store what is this host's own: that it lives, by a lease; what commands could not write while the
store was away; and all of it once more, where the store does not have it any more.

A thread, since the store is waited for: see `watcher`. What it writes it writes under the lock that commands take: else
one could change meanwhile what it is writing.
"""

from __future__ import annotations

import random
import threading
import time

from datapath.cluster import keys
from datapath.cluster.liveness import Liveness
from datapath.config.settings import Settings
from datapath.engine import cluster, joining, reassertion
from datapath.errors import DatapathError
from datapath.host import Host
from datapath.kernel.sockets import dial
from datapath.model.clusters import ClusterStore
from datapath.store.etcd.client import EtcdCluster

from .inbox import Away, Failure, Inbox, Message, Note, Reached

_FIRST, _MOST = 0.5, 30.0  # seconds between tries to reach a store that is away
_ENDING = 1.0  # seconds that the thread is waited for at the end


class Keeper:
    """Works until it is closed. `me`: the host's id."""

    def __init__(self, where: ClusterStore, me: str, settings: Settings, inbox: Inbox) -> None:
        self._where, self._me, self._inbox = where, me, inbox
        self._host = Host.open(settings, lambda line: self._tell(Note(line)))
        self._closed = self._owing = self._doubtful = False
        self._living = False  # the store is there, as far as is known
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def owe(self) -> None:
        """There is something to be written that could not be written before."""
        self._owing = True
        self._woken.set()

    def doubt(self) -> None:
        """The store may have forgotten what is this host's."""
        self._doubtful = True
        self._woken.set()

    def close(self) -> None:
        """The lease is left to end: the host lives on without an agent, which the thread says if the store can be
        asked. It is not waited for otherwise, unless it is changing something."""
        self._closed = True
        self._woken.set()
        if self._living:
            self._thread.join(_ENDING)

    def _run(self) -> None:
        pause = _FIRST
        try:
            while not self._closed:
                try:
                    with EtcdCluster(self._where, dial) as store:
                        life = Liveness(store, self._me, joining.instance(), self._where.ttl)
                        self._begin(store, life)
                        pause = _FIRST
                        self._living = True
                        self._live(store, life)
                        life.resign()
                except (DatapathError, ExceptionGroup) as error:
                    self._living = False
                    self._tell(Away(str(error)))
                    self._woken.clear()
                    self._woken.wait(
                        pause * random.uniform(0.5, 1.0)
                    )  # so that hosts do not come all at once
                    pause = min(2 * pause, _MOST)
        except Exception as error:
            self._tell(Failure(error))

    def _begin(self, store: EtcdCluster, life: Liveness) -> None:
        """A host that was forgotten while it was cut off joins again."""
        if not store.list(keys.HOSTS + self._me).entries:
            self._reassert(store)
        life.begin()

    def _live(self, store: EtcdCluster, life: Liveness) -> None:
        while not self._closed:
            self._tell(Reached())
            due = time.monotonic() + self._where.heartbeat
            while (left := due - time.monotonic()) > 0 and not self._closed:
                if self._doubtful:
                    self._reassert(store)
                if self._owing:
                    self._settle(store)
                self._woken.wait(left)
                self._woken.clear()
            if not life.beat():
                self._doubtful = True  # as one that was thought dead, it may have been forgotten

    def _settle(self, store: EtcdCluster) -> None:
        with self._host.changing(create=False) as tx, store.within(joining.SHORTLY):
            cluster.settle(tx, store)
        self._owing = False

    def _reassert(self, store: EtcdCluster) -> None:
        with self._host.changing(create=False) as tx:
            for line in reassertion.reassert(tx, store):
                self._tell(Note(line))
        self._doubtful = False

    def _tell(self, message: Message) -> None:
        if not self._closed:
            self._inbox.put(self, message)
