# SPDX-License-Identifier: Apache-2.0
"""Listens to a cluster's store: lists what a host has to know, and then hears of every change.

A thread, since the store is waited for. It knows nothing of the host, and changes nothing: it tells the agent's loop.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from datapath.cluster import addresses, keys
from datapath.errors import DatapathError
from datapath.kernel.sockets import dial
from datapath.model.clusters import ClusterStore
from datapath.store.cluster import CompactedError, RestoredError, Watch
from datapath.store.etcd.client import EtcdCluster

from .inbox import Changed, Failure, Inbox, Listed, Lost, Message


class Watcher:
    """One list, and the watch that goes on from it, until it is closed or lost."""

    def __init__(self, where: ClusterStore, networks: Iterable[str], inbox: Inbox) -> None:
        self.networks = frozenset(networks)
        self._where, self._inbox = where, inbox
        self._closed = threading.Event()
        self._watch: Watch | None = None
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def close(self) -> None:
        """Does not wait for the thread, which may be waiting for the store."""
        self._closed.set()
        watch = self._watch
        if watch is not None:
            watch.close()

    def _run(self) -> None:
        try:
            self._listen()
            self._tell(Lost())
        except (CompactedError, RestoredError) as error:
            self._tell(Lost(restored=isinstance(error, RestoredError)))
        except DatapathError as error:
            self._tell(Lost(str(error)))
        except Exception as error:
            self._tell(Failure(error))

    def _listen(self) -> None:
        with EtcdCluster(self._where, dial) as store:
            revision = self._list(store)
            with store.watch(keys.watched(self.networks), revision) as self._watch:
                if self._closed.is_set():
                    return  # `close` may have come before there was a watch
                for changes in self._watch:
                    if changes:
                        self._tell(Changed(changes))

    def _list(self, store: EtcdCluster) -> int:
        """The revision of what was told. Nothing here keeps the rows themselves while the watch goes on."""
        part = addresses.part(store, self.networks)
        self._tell(Listed(part))
        return part.revision

    def _tell(self, message: Message) -> None:
        if not self._closed.is_set():
            self._inbox.put(self, message)
