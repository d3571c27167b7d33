# SPDX-License-Identifier: Apache-2.0
"""The hosts of the cluster, as the store says: which there are, and what is decided about them for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.errors import ConfigError, StateError
from datapath.model.clusters import ClusterStore
from datapath.model.peers import Block, Peer, Remote
from datapath.model.state import State
from datapath.store import heard

if TYPE_CHECKING:
    from datapath.cluster.members import Forgotten
    from datapath.store.etcd.client import EtcdCluster

_PATIENCE = 2.0  # seconds until what is known here is shown instead


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host, with how many blocks and endpoints of global networks it has. `state`: "alive", "away", "unknown": the
    store was not asked; `draining`: it begins nothing; `own`: it is this one."""

    peer: Peer
    state: str
    draining: bool = False
    own: bool = False
    blocks: int = 0
    endpoints: int = 0


@dataclass(frozen=True, slots=True)
class Hosts:
    """`why`: the store could not be asked, and these are the hosts that this one knows; `age`: seconds since it has
    heard of changes, None: it never has since the machine was started."""

    rows: tuple[HostRow, ...]
    why: str = ""
    age: float | None = None


def where(settings: Settings) -> ClusterStore:
    """The store that daemon.json names. ConfigError: it names none, or not well."""
    found = DaemonConfig.load(settings).cluster
    if found is None:
        raise ConfigError(
            f'{settings.config_path} names no cluster-store: add "cluster-store": "etcd://HOST:PORT"'
        )
    return found


@contextmanager
def _asked(settings: Settings) -> Iterator[EtcdCluster]:
    from datapath.store.etcd.client import EtcdCluster

    with EtcdCluster(where(settings)) as store:
        yield store


def hosts(settings: Settings, state: State) -> Hosts:
    """All hosts of the cluster, in the order of their names; those that this one knows, if the store does not answer.
    `state`: this host's rows. ConfigError, PrivilegeError."""
    from datapath.cluster import keys, members

    me = state.installation_id
    try:
        with _asked(settings) as store, store.within(_PATIENCE):
            entries = members.hosts(store)
            rows = keys.rows_of(store.list(keys.BLOCKS, keys.ENDPOINTS).entries).put
    except StateError as error:
        last = heard.read(settings.run_dir)
        known = sorted(state.peers.values(), key=lambda peer: peer.name)
        counted = _counted([*state.blocks.values(), *state.remotes.values()])
        found = (_row(peer, "unknown", False, me, counted) for peer in known)
        return Hosts(tuple(found), str(error), last.age if last else None)
    counted = _counted([row for row in rows if isinstance(row, Block | Remote)])
    found = (_row(one.peer, "alive" if one.alive else "away", one.draining, me, counted) for one in entries)
    return Hosts(tuple(found), age=0.0)


def _counted(rows: Sequence[Block | Remote]) -> Counter[tuple[str, type]]:
    return Counter((row.peer, type(row)) for row in rows)


def _row(peer: Peer, state: str, draining: bool, me: str, counted: Counter[tuple[str, type]]) -> HostRow:
    blocks, endpoints = counted[peer.id, Block], counted[peer.id, Remote]
    return HostRow(peer, state, draining, peer.id == me, blocks, endpoints)


def drain(settings: Settings, name: str, on: bool = True) -> Peer:
    """From now on the host, by name, id or the beginning of one, begins nothing on global networks; not `on`: it may
    again. NotFoundError, ConfigError, StateError, PrivilegeError."""
    from datapath.cluster import members

    with _asked(settings) as store:
        return members.drain(store, name, on)


def forget(settings: Settings, name: str, me: str, force: bool = False) -> Forgotten:
    """Takes a host that is gone out of the cluster, with the addresses that it had. `me`: this host's id. InUseError:
    it is alive, and not `force`; errors as those of `drain`."""
    from datapath.cluster import members

    with _asked(settings) as store:
        return members.forget(store, name, force, me)
