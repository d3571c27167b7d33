# SPDX-License-Identifier: Apache-2.0
"""What was heard of a cluster and is not in the host's rows yet."""

from __future__ import annotations

from datapath.cluster import keys
from datapath.cluster.addresses import Part
from datapath.engine import cluster, following
from datapath.engine.following import Differences
from datapath.engine.transaction import Transaction
from datapath.model.peers import Block, Remote
from datapath.model.state import State
from datapath.store.cluster import Change

from .inbox import Changed, Listed


class News:
    """Of one watcher. `state`: the rows that there were when it began. `revision`: of the store, when it was listed;
    0: it has not been yet."""

    def __init__(self, state: State) -> None:
        self.revision = 0
        self._before = following.held(state)
        self._listed: Part | None = None
        self._changes: list[Change] = []
        self._early: tuple[Block | Remote, ...] = ()

    def add(self, message: Listed | Changed) -> None:
        if isinstance(message, Listed):
            self._listed = message.part
        else:
            self._changes += message.changes

    def write(self, tx: Transaction) -> bool:
        """Takes it over into the rows and maps. True: the store does not have what is this host's."""
        disowned = False
        if self._listed is not None:
            part, self._listed = self._listed, None
            disowned = self._take(tx, following.of_list(tx.state, part, self._before))
            self.revision, self._before = part.revision, frozenset()
        if self._changes:
            self.revision = max(self.revision, *(change.revision for change in self._changes))
            news, self._changes = keys.news(self._changes), []
            # Of a host that had not been heard of: what was said of its network may come before what was said of it.
            early = [row for row in self._early if not any(one.matches(row) for one in news.gone)]
            found = following.of_news(tx.state, keys.News((*early, *news.put), news.gone))
            disowned = self._take(tx, found) or disowned
        return disowned

    def _take(self, tx: Transaction, found: Differences) -> bool:
        self._early = found.early
        cluster.follow(tx, cluster.News(found.put, found.gone))
        for network in found.forgotten:
            cluster.forget(tx, network.id)
        return found.disowned
