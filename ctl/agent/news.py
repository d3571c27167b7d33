# SPDX-License-Identifier: Apache-2.0
"""What was heard of a cluster and is not in the host's rows yet."""

from __future__ import annotations

from datapath.cluster import keys
from datapath.cluster.addresses import Part
from datapath.engine import cluster, following, spanning
from datapath.engine.following import Differences
from datapath.engine.transaction import Transaction
from datapath.errors import DatapathError, NotFoundError
from datapath.model.peers import Block, Remote
from datapath.model.state import State
from datapath.store.cluster import Change

from . import changes
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
        self._attended: set[str] = set()  # keys about which hosts live, and are drained
        self._ingress: frozenset[str] = (
            frozenset()
        )  # networks to take part in, as their services publish ports

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
            self._ingress |= part.ingress
            self._attended = set(part.attended)
        if self._changes:
            self.revision = max(self.revision, *(change.revision for change in self._changes))
            put = ((one.key, one.entry.value) for one in self._changes if one.entry is not None)
            self._ingress |= {keys.ingress_network(key, value) for key, value in put}
            attended = self._attend()
            news, self._changes = keys.news(self._changes), []
            # Of a host that had not been heard of: what was said of its network may come before what was said of it.
            early = [row for row in self._early if not any(one.matches(row) for one in news.gone)]
            found = following.of_news(tx.state, keys.News((*early, *news.put), news.gone))
            disowned = self._take(tx, found) or disowned
            if attended:
                self._take(tx, following.attending(tx.state, keys.attendance(self._attended)), self._early)
        self._take_part(tx)
        return disowned

    def _attend(self) -> bool:
        """Whether the changes are about which hosts live, or are drained."""
        found = [one for one in self._changes if keys.is_attendance(one.key)]
        for one in found:
            (self._attended.add if one.entry is not None else self._attended.discard)(one.key)
        return bool(found)

    def _take_part(self, tx: Transaction) -> None:
        """In networks whose services publish ports, which every host does. What is in the way is said once, until all
        is listed anew."""
        wanted, self._ingress = self._ingress - {""} - tx.state.networks.keys(), frozenset()
        for ident in sorted(wanted):
            try:
                spanning.adopt(tx, ident)
            except NotFoundError:
                continue  # it is gone again
            except (DatapathError, ExceptionGroup) as error:
                tx.warn(
                    f"ports of services of network {ident[:12]} are not published here: {changes.told(error)}"
                )

    def _take(self, tx: Transaction, found: Differences, early: tuple[Block | Remote, ...] = ()) -> bool:
        self._early = (*early, *found.early)
        cluster.follow(tx, cluster.News(found.put, found.gone))
        for network in found.forgotten:
            cluster.forget(tx, network.id)
        return found.disowned
