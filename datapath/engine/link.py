# SPDX-License-Identifier: Apache-2.0
"""The way to the cluster's store in one command: opened when it is first asked for, and not asked again in the same
command once it has not answered."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, DatapathError, StateError

if TYPE_CHECKING:
    from datapath.store.cluster import Cluster


class Link:
    """`away`: why the store could not be asked in this command; None: nothing is known against it. `refused`: why this
    host could not be what it has become: of another name or address; what needs the cluster is refused for it, and the
    user of anything else is warned."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._store: Cluster | None = None
        self.away: StateError | None = None
        self.refused: DatapathError | None = None

    @property
    def configured(self) -> bool:
        """daemon.json names a store."""
        return bool(self._config.cluster_store)

    def store(self, what: str) -> Cluster:
        """The store, which `what` needs. ConfigError: daemon.json names none, or a file of its options cannot be used;
        StateError: it has not answered before."""
        if self.away is not None:
            raise self.away
        if self._store is None:
            where = self._config.cluster
            if where is None:
                raise ConfigError(
                    f'{what} needs a cluster store: set "cluster-store" in daemon.json, as in etcd://HOST:PORT'
                )
            from datapath.kernel.sockets import dial
            from datapath.store.etcd.client import EtcdCluster

            self._store = self._stack.enter_context(EtcdCluster(where, dial))
        return self._store

    def close(self) -> None:
        """Gives up the connection."""
        self._stack.close()
        self._store = None
