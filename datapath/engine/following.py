# SPDX-License-Identifier: Apache-2.0
"""What a host makes of what the cluster's store says: which of its rows change. Pure, but for `look`.

A list says all that there is, news what has changed since. Both are compared with the rows that the host has, which
commands write as well: a list is older than what a command has read meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.cluster import keys
from datapath.cluster.addresses import Part
from datapath.cluster.keys import ClusterRow
from datapath.model.kinds import kind_of
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.peers import Block, Drain, Lapse, Owed, Peer, Remote
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State
from datapath.store.sqlite import SQLiteStore

Copy = Peer | Lapse | Drain | Block | Remote | Service
_KINDS = tuple(map(kind_of, (Network, Peer, Owed)))  # what an interest depends on


@dataclass(frozen=True, slots=True)
class Interest:
    """What a host wants to hear of, and has to tell. `me`: its id, "": it is a member of no cluster; `networks`: the
    ids of those of the cluster that it takes part in; `owing`: it has not written all that it has to."""

    me: str = ""
    networks: frozenset[str] = frozenset()
    owing: bool = False


@dataclass(frozen=True, slots=True)
class Differences:
    """`put`: rows that are new or different; `gone`: rows that are to go. `forgotten`: networks that are gone from the
    cluster. `early`: rows of hosts that are not known yet: other news are to come. `disowned`: something that this host
    has written is not in the store any more."""

    put: tuple[Copy, ...] = ()
    gone: tuple[Copy, ...] = ()
    forgotten: tuple[Network, ...] = ()
    early: tuple[Block | Remote, ...] = ()
    disowned: bool = False

    def __bool__(self) -> bool:
        return bool(self.put or self.gone or self.forgotten)


def look(state_dir: Path) -> Interest:
    """Of the host with this store, if there is one: a host with many containers is not read as a whole. StateError."""
    if not SQLiteStore.exists(state_dir):
        return Interest()
    with SQLiteStore(state_dir, create=False, reading=True, kinds=_KINDS) as store:
        return interest(store.load())


def interest(state: State) -> Interest:
    """Of the host whose rows these are."""
    me = state.installation_id
    if me not in state.peers:
        return Interest()
    return Interest(me, frozenset(spanning(state)), bool(state.owed))


def spanning(state: State) -> Iterator[str]:
    """The ids of the global networks that the host takes part in."""
    return (one.id for one in state.networks.values() if one.spans and one.phase != Phase.REMOVING)


def held(state: State) -> frozenset[tuple[str, str]]:
    """The rows that a list may show to be gone: those that are there when it begins. See `of_list`."""
    return frozenset((type(row).__name__, row.id) for row in _copies(state))


def _copies(state: State) -> list[Copy]:
    """The rows that a host has as the cluster has them."""
    networks = set(spanning(state))
    services = (one for one in state.services.values() if one.network_id in networks)
    hosts: list[Copy] = [*state.peers.values(), *state.lapses.values(), *state.drains.values()]
    return [*hosts, *state.blocks.values(), *state.remotes.values(), *services]


def of_list(state: State, part: Part, before: Collection[tuple[str, str]]) -> Differences:
    """What differs from a list of all. `before`: what `held` said before the list was asked for: other rows were
    written by commands since, and are newer than it."""
    rows = part.rows
    found = of_rows(state, rows)
    there = {(type(row).__name__, row.id) for row in rows}
    mine = state.installation_id
    names = [(row, (type(row).__name__, row.id)) for row in _copies(state)]
    missing = [row for row, name in names if name in before and name not in there]
    networks = {network.id for network in part.networks}
    forgotten = tuple(state.networks[one] for one in spanning(state) if one not in networks)
    disowned = found.disowned or any(_of(row) == mine for row in missing) or _untold(state, part)
    if (
        disowned
    ):  # it may have forgotten services, too, which are nobody's own: whoever knows them says them again
        missing = [row for row in missing if not isinstance(row, Service)]
    gone = _with_all_of(state, [row for row in missing if _of(row) != mine])
    return replace(found, gone=gone, forgotten=forgotten, disowned=disowned)


def of_news(state: State, news: keys.News) -> Differences:
    """What differs after changes."""
    found = of_rows(state, news.put)
    mine = state.installation_id
    endpoints = _by_address(state) if any(one.address for one in news.gone) else {}
    missing = [row for one in news.gone for row in _matching(state, endpoints, one)]
    forgotten = tuple(row for row in missing if isinstance(row, Network))
    others = [row for row in missing if not isinstance(row, Network)]
    own = _own_keys(state) if any(one.address for one in news.gone) else set()
    disowned = any(_of(row) == mine for row in others) or any(one.key in own for one in news.gone)
    gone = _with_all_of(state, [row for row in others if _of(row) != mine])
    return replace(found, gone=gone, forgotten=forgotten, disowned=found.disowned or disowned)


def attending(state: State, attendance: Iterable[Lapse | Drain]) -> Differences:
    """What differs when these hosts have stopped to say that they live, or are drained, and no others."""
    wanted = [one for one in attendance if _is_attendance(one, state)]
    known: list[Lapse | Drain] = [*state.lapses.values(), *state.drains.values()]
    put = tuple(one for one in wanted if one not in known)
    return Differences(put, tuple(one for one in known if one not in wanted))


def _is_attendance(row: Lapse | Drain, state: State) -> bool:
    """This host can know of it, and minds: that it lives itself nobody has to tell it."""
    return row.id in state.peers and not (isinstance(row, Lapse) and row.id == state.installation_id)


def of_rows(state: State, rows: Iterable[ClusterRow | Lapse | Drain]) -> Differences:
    """What of these rows is news to the host, and of its concern."""
    networks = set(spanning(state))
    peers = dict(state.peers)
    put: list[Copy] = []
    early: list[Block | Remote] = []
    disowned = False
    for row in sorted(rows, key=lambda one: not isinstance(one, Peer)):
        if isinstance(row, Network):
            continue  # it never changes
        if isinstance(row, Lapse | Drain):
            lives_itself = isinstance(row, Lapse) and row.id == state.installation_id
            put += [row] if row.id not in state.rows(type(row)) and not lives_itself else []
            continue
        if isinstance(row, Peer):
            disowned = disowned or (row.id == state.installation_id and row != state.peers.get(row.id))
            if row.id != state.installation_id and row != peers.get(row.id):
                put.append(row)
            peers[row.id] = row
        elif isinstance(row, Service):
            if row.network_id in networks and is_other(row, state.services.get(row.id)):
                put.append(row)
        elif row.network_id in networks and not (
            isinstance(row, Remote) and row.peer == state.installation_id
        ):
            known = (state.blocks if isinstance(row, Block) else state.remotes).get(row.id)
            if row.peer not in peers:
                early.append(row)
            elif row != known:
                put.append(row)
    return Differences(tuple(put), early=tuple(early), disowned=disowned)


def is_other(row: Service, known: Service | None) -> bool:
    """The service is another than this host knows, or has host ports that it does not publish."""
    return known is None or known.shared != row or len(known.ports) != len(known.published)


def _of(row: Copy) -> str:
    """The id of the host that has written it; "": any may."""
    if isinstance(row, Service | Lapse | Drain):
        return ""
    return row.id if isinstance(row, Peer) else row.peer


def _by_address(state: State) -> dict[tuple[str, Address], Remote]:
    """The other hosts' endpoints by network and address."""
    return {
        (row.network_id, address): row for row in state.remotes.values() for address in keys.addresses_of(row)
    }


def _matching(
    state: State, endpoints: Mapping[tuple[str, Address], Remote], gone: keys.Gone
) -> Iterator[Copy | Network]:
    """The rows that a deleted key was."""
    if gone.peer:
        yield from (row for row in (state.peers.get(gone.peer),) if row is not None)
    elif gone.address is not None:
        yield from (row for row in (endpoints.get((gone.network_id, gone.address)),) if row is not None)
    elif gone.service:
        yield from (one for one in state.services_of_network(gone.network_id) if gone.matches(one))
    elif gone.prefix is not None:
        yield from (row for row in state.blocks.values() if gone.matches(row))
    else:
        network = state.networks.get(gone.network_id)
        yield from (row for row in (network,) if row is not None and row.spans)


def _own_keys(state: State) -> set[str]:
    """Of the addresses that this host's endpoints have, as far as the store has been told."""
    networks = set(spanning(state))
    found = {
        keys.endpoint_key(endpoint.network_id, interface.ip)
        for endpoint in state.endpoints.values()
        if endpoint.network_id in networks and endpoint.phase == Phase.READY
        for interface in (endpoint.ipv4, endpoint.ipv6)
        if interface is not None
    }
    return found - state.owed.keys()


def _untold(state: State, part: Part) -> bool:
    """The list has other addresses of this host than its endpoints have."""
    mine = [row for row in part.remotes if row.peer == state.installation_id]
    told = {key for row in mine for key in keys.endpoint_keys(row)}
    return told - state.owed.keys() != _own_keys(state)


def _with_all_of(state: State, rows: list[Copy]) -> tuple[Copy, ...]:
    """The rows, and those of hosts among them: these may not have been heard of yet."""
    hosts = {row.id for row in rows if isinstance(row, Peer)}
    found = {(type(row), row.id): row for row in rows}
    for table in (state.blocks, state.remotes):
        found.update({(type(row), row.id): row for row in table.values() if row.peer in hosts})
    return tuple(found.values())
