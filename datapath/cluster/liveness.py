# SPDX-License-Identifier: Apache-2.0
"""That a host lives: a key under a lease, which somebody on the host keeps alive. Packets do not depend on it."""

from __future__ import annotations

from datapath.cluster import keys
from datapath.cluster.commit import SECONDS, commit, forgotten
from datapath.store.cluster import Cluster, Delete, Present, Put

_SHORTLY = 0.5  # seconds for what an agent says as it ends


class Liveness:
    """This host's. `me`: its id; `instance`: which run of it (as `members.join` is told); `ttl`: seconds without a beat
    after which the others think that it is dead. Times are measured by the store. All methods raise StateError if the
    store cannot be asked: the next beat tries again."""

    def __init__(self, store: Cluster, me: str, instance: str, ttl: int) -> None:
        self._store, self._key, self._ttl = store, keys.ALIVE + me, ttl
        self._host, self._agent = keys.HOSTS + me, keys.AGENTS + me
        self._value = keys.alive_value(instance)
        self._lease = 0

    def begin(self) -> None:
        """Says that the host lives. StateError: also if it is no member."""
        with self._store.within(SECONDS):
            lease = self._store.grant(self._ttl)
            writes = [Put(self._key, self._value, lease), Put(self._agent, "")]
            outcome = commit(self._store, [Present(self._host)], writes)
            if not outcome.succeeded:
                self._store.revoke(lease)
                raise forgotten()
            self._lease = lease

    def beat(self) -> bool:
        """Says so again. False: it had been thought dead meanwhile, or has just begun."""
        with self._store.within(SECONDS):
            if self._lease and self._store.keep_alive(self._lease):
                return True
            self._lease = 0
            self.begin()
            return False

    def resign(self) -> None:
        """From now on nobody says whether the host lives: it is not thought dead when the lease ends."""
        with self._store.within(_SHORTLY):
            commit(self._store, [Present(self._agent)], [Delete(self._agent)])

    def end(self) -> None:
        """Says that the host does not live any more. It is fine if the store cannot be told: the lease ends itself."""
        lease, self._lease = self._lease, 0
        if lease:
            self._store.revoke(lease)
