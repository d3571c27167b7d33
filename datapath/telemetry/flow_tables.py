# SPDX-License-Identifier: Apache-2.0
"""The tables in which the packet programs count who talks to whom, read in bulk.

There can be many rows: whole batches are read, what decides about their rows is taken out column by column, and what it
means is found out once for all rows that are alike. Only what is shown becomes an object.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from datapath.kernel import abi
from datapath.model.flows import ALLOWED, PROTOCOL_NAMES, REFUSED, FlowFilter, FlowHead, FlowLine

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane

_BOTH, _RESET = 1, 2  # FIN, RST: bits of `finished`
_ID, _HALF, _FLOW, _EDGE_ID, _EDGE = map(abi.layout, ("flow_id", "flow_half", "flow", "edge_id", "edge"))
_ADDRESSES = _ID.select("addr_a", "addr_b", "port_a", "port_b")
_COUNTED = _HALF.select("packets", "bytes", "seen", "since", "openings", "finished")
_TOTAL = _EDGE.select(
    *("connections", "sent_packets", "sent_bytes", "received_packets", "received_bytes", "first", "last")
)

Key = tuple[int, int, int, int, int, int]
_NONE = (0,) * 6


def port_of(raw: int) -> int:
    """A port of a column."""
    return int.from_bytes(raw.to_bytes(2, sys.byteorder), "big")


class Heads(dict[Key, FlowHead | None]):
    """What rows and totals are about, by network, protocol, who has begun it and to whom, that one's port, and the
    reason for which it was refused, all as numbers; None: that is not meant."""

    def __init__(
        self,
        networks: Mapping[int, str],
        name: Callable[[int], str],
        wanted: FlowFilter,
        labelled: frozenset[int] = frozenset(),
    ) -> None:
        """`labelled`: the numbers of those who have the labels that are wanted."""
        super().__init__()
        self._networks, self._name, self._wanted, self._labelled = networks, name, wanted, labelled
        self._reasons = {int(one): one.name for one in abi.Reason if one >= abi.DROP_FIRST}

    def __missing__(self, key: Key) -> FlowHead | None:
        network, proto, source, destination, port, reason = key
        found = None
        if network in self._networks:
            found = FlowHead(
                self._networks[network],
                self._name(source),
                # Who would have got it is not known where it was refused before that.
                "" if reason and not destination else self._name(destination),
                port_of(port),
                PROTOCOL_NAMES.get(proto) or str(proto),
                REFUSED if reason else ALLOWED,
                self._reasons.get(reason, str(reason)) if reason else "",
            )
            labelled = not self._wanted.labels or bool(self._labelled & {source, destination})
            if not self._wanted.wants(found, labelled=labelled):
                found = None
        self[key] = found
        return found


@dataclass(slots=True)
class Batch:
    """Rows of what goes on. `about`, `heads` and `seen` (ns, CLOCK_MONOTONIC): of each; `picked`: the places of those
    that are meant."""

    keys: bytes
    values: bytes
    about: list[Key]
    heads: list[FlowHead | None]
    seen: list[int]
    picked: list[int]

    def forget(self, current: set[bytes]) -> set[Key]:
        """Those whose keys are not among the current ones; what they are about."""
        size, keys = _ID.size, self.keys
        kept = [i for i in self.picked if keys[i * size : (i + 1) * size] in current]
        gone = set(self.picked).difference(kept) if len(kept) < len(self.picked) else ()
        self.picked = kept
        return {self.about[i] for i in gone}

    def key(self, i: int) -> bytes:
        return self.keys[i * _ID.size : (i + 1) * _ID.size]

    def counted(self, i: int) -> tuple[bool, tuple[Any, ...], tuple[Any, ...]]:
        """Has `a` begun it? And what who has begun it has sent, and the other one."""
        at = i * _FLOW.size
        a = _COUNTED.unpack_from(self.values, at)
        b = _COUNTED.unpack_from(self.values, at + _HALF.size)
        return (True, a, b) if self.values[at + _HALF.offset("opener")] else (False, b, a)


def batches(found: Dataplane, heads: Heads, oldest: int) -> Iterator[Batch]:
    """What goes on. `oldest`: what had no packet since is not meant; ns, CLOCK_MONOTONIC."""
    for keys, values, _ in found.flows.batches():
        names = zip(
            *[_ID.column(keys, name) for name in ("network", "proto", "port_a", "port_b")],
            *[_FLOW.column(values, "a", name) for name in ("opener", "from", "to")],
            strict=True,
        )
        about: list[Key] = [
            (network, proto, one, other, port_b, 0) if opener else (network, proto, other, one, port_a, 0)
            for network, proto, port_a, port_b, opener, one, other in names
        ]
        meant = [heads[key] for key in about]
        seen = list(map(max, _FLOW.column(values, "a", "seen"), _FLOW.column(values, "b", "seen")))
        picked = [
            i
            for i, (head, last) in enumerate(zip(meant, seen, strict=True))
            if head is not None and last >= oldest
        ]
        yield Batch(keys, values, about, meant, seen, picked)


def row_keys(found: Dataplane) -> set[bytes]:
    """The keys of all rows that there are now."""
    size = _ID.size
    current: set[bytes] = set()
    for keys, _, _ in found.flows.batches():
        current.update([keys[at : at + size] for at in range(0, len(keys), size)])
    return current


class Total(NamedTuple):
    """What has ended. `first` and `last`: ns, CLOCK_MONOTONIC."""

    key: Key
    head: FlowHead
    counted: tuple[int, ...]
    first: int
    last: int


def totals(found: Dataplane, heads: Heads, oldest: int) -> list[Total]:
    """What has ended, or was refused. `oldest`: as for rows."""
    ended = []
    for keys, values, _ in found.edges.batches():
        names = ("network", "proto", "from", "to", "port", "reason")
        about = zip(*[_EDGE_ID.column(keys, name) for name in names], strict=True)
        ended += [
            Total(key, head, row[:5], row[5], row[6])
            for key, row in zip(about, _TOTAL.iter_unpack(values), strict=True)
            if (head := heads[key]) is not None and row[6] >= oldest
        ]
    return ended


def settled(
    found: Dataplane, rows: list[Batch], ended: list[Total], unsettled: set[Key], heads: Heads, oldest: int
) -> list[Total]:
    """Totals, of which some have had rows that ended while they were read: each of these is read by itself, and then
    its rows, until none has ended in between. That takes less time than the timer leaves that ends them."""
    places: dict[Key, list[tuple[Batch, int]]] = {key: [] for key in unsettled}
    for batch in rows:
        for i in batch.picked:
            if batch.about[i] in unsettled:
                places[batch.about[i]].append((batch, i))
        batch.picked = [i for i in batch.picked if batch.about[i] not in unsettled]
    left = [total for total in ended if total.key not in unsettled]
    for key, there in places.items():
        network, proto, source, destination, port, _ = key
        packed = _EDGE_ID.pack(abi.edge_id(network, source, destination, 0, port_of(port), proto, 0))
        while True:
            raw = found.edges.lookup_raw(packed)
            kept = [(batch, i) for batch, i in there if found.flows.lookup_raw(batch.key(i)) is not None]
            if len(kept) == len(there):
                break
            there = kept
        for batch, i in there:
            batch.picked.append(i)
        head, row = heads[key], _TOTAL.unpack(raw) if raw else None
        if head is not None and row is not None and row[6] >= oldest:
            left.append(Total(key, head, row[:5], row[5], row[6]))
    return left


text = functools.lru_cache(65536)(abi.address_text)


def row_line(batch: Batch, i: int, now: int) -> FlowLine:
    """The line of a row that is meant."""
    head = batch.heads[i]
    assert head is not None
    a_began, mine, other = batch.counted(i)
    addr_a, addr_b, port_a, port_b = _ADDRESSES.unpack_from(batch.keys, i * _ID.size)
    source, sport, destination = (addr_a, port_a, addr_b) if a_began else (addr_b, port_b, addr_a)
    return FlowLine(
        head.network,
        head.source,
        text(source),
        int.from_bytes(sport, "big"),
        head.destination,
        text(destination),
        head.port,
        head.protocol,
        ALLOWED,
        "",
        _state(head.protocol, mine, other),
        mine[4],
        mine[0],
        mine[1],
        other[0],
        other[1],
        max(now - mine[3], 0) / 1e9,
        max(now - batch.seen[i], 0) / 1e9,
    )


def _state(protocol: str, mine: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    if protocol != "tcp":
        return "replied" if other[0] else "new"
    ends = mine[5] | other[5]
    if ends & _RESET or mine[5] & other[5] & _BOTH:
        return "closed"
    if ends:
        return "closing"
    return "established" if other[0] and mine[0] else "new"


def total_line(total: Total, now: int) -> FlowLine:
    """The line of a total, which has neither addresses nor a state."""
    network, source, destination, port, protocol, verdict, reason = total.head
    ages = (max(now - total.first, 0) / 1e9, max(now - total.last, 0) / 1e9)
    named = (network, source, "", 0, destination, "", port, protocol, verdict, reason, "")
    return FlowLine._make((*named, *total.counted, *ages, ""))


def together(rows: list[Batch], ended: list[Total], oldest: int) -> list[Total]:
    """Both, summed by what they are about. `oldest`: as for rows."""
    found: dict[FlowHead, list[int]] = {}
    for total in ended:
        _add(found, total.head, total.counted, total.first, total.last)
    for batch in rows:
        _add_rows(found, batch)
    return [
        Total(_NONE, head, tuple(sums[:5]), sums[5], sums[6])
        for head, sums in found.items()
        if sums[6] >= oldest
    ]


def _add_rows(found: dict[FlowHead, list[int]], batch: Batch) -> None:
    """Without a call a row, as there are many."""
    heads, seen, values, openers = (
        batch.heads,
        batch.seen,
        batch.values,
        _FLOW.column(batch.values, "a", "opener"),
    )
    for i in batch.picked:
        at = i * _FLOW.size
        mine, other = _COUNTED.unpack_from(values, at), _COUNTED.unpack_from(values, at + _HALF.size)
        if not openers[i]:
            mine, other = other, mine
        head = heads[i]
        sums = found.get(head) if head is not None else None
        if sums is None:
            assert head is not None
            sums = found[head] = [0, 0, 0, 0, 0, mine[3], seen[i]]
        sums[0] += mine[4]
        sums[1] += mine[0]
        sums[2] += mine[1]
        sums[3] += other[0]
        sums[4] += other[1]
        if mine[3] < sums[5]:
            sums[5] = mine[3]
        if seen[i] > sums[6]:
            sums[6] = seen[i]


def _add(
    found: dict[FlowHead, list[int]], head: FlowHead, counted: tuple[int, ...], first: int, last: int
) -> None:
    sums = found.get(head)
    if sums is None:
        found[head] = [*counted, first, last]
        return
    for i, number in enumerate(counted):
        sums[i] += number
    sums[5] = min(sums[5], first)
    sums[6] = max(sums[6], last)
