# SPDX-License-Identifier: Apache-2.0
"""Which totals become series of metrics by themselves, so that no container can make as many as it likes. Pure.

A series must never count less than before. So which have one of their own is decided by nothing that changes: those
that were there first keep theirs, and what comes later is added to OTHER.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from datapath.model.flows import ALLOWED, HOST, OUTSIDE, PEER, PROTOCOL_NAMES, FlowLine, counted

OTHER = "other"
_SHARE = 8  # a source has no more than this part of all
_GONE = 300.0  # seconds for which totals of a container are shown that is gone
_KNOWN = frozenset(PROTOCOL_NAMES.values())


class Edge(NamedTuple):
    """What a series of totals is about. `port`: of the destination, "" of what was refused; `reason`: that."""

    network: str
    source: str
    destination: str
    port: str
    protocol: str
    reason: str


class Series(NamedTuple):
    """`edges`: connections, packets and bytes sent, and received; `folded`: how many totals are in OTHER."""

    edges: dict[Edge, tuple[int, ...]]
    folded: int


def fold(lines: Iterable[FlowLine], present: frozenset[str], verdict: str, most: int) -> Series:
    """At most so many totals of that verdict by themselves, and no more than an eighth of these of one source on a
    network; and the sums of others. `present`: the names of containers that there are; what the others have done is
    left out once it is five minutes old."""
    sums: dict[Edge, list[int]] = {}
    oldest: dict[Edge, float] = {}
    for line in lines:
        if line.verdict != verdict or (line.idle > _GONE and _is_gone(line, present)):
            continue
        edge = _edge(line)
        _add(sums, edge, counted(line))
        oldest[edge] = max(oldest.get(edge, 0.0), line.opened)
    found: dict[Edge, list[int]] = {}
    of_source: Counter[tuple[str, str]] = Counter()
    own = 0
    for edge in sorted(sums, key=lambda one: (-oldest[one], one)):
        source = (edge.network, edge.source)
        if own < most and of_source[source] < max(1, most // _SHARE):
            own += 1
            of_source[source] += 1
            _add(found, edge, sums[edge])
        else:
            _add(found, _folded(edge, has_own=of_source[source] > 0), sums[edge])
    return Series({edge: tuple(numbers) for edge, numbers in found.items()}, len(sums) - own)


def _is_gone(line: FlowLine, present: frozenset[str]) -> bool:
    known = present | {"", HOST, OUTSIDE, PEER}
    return not {line.source, line.destination} <= known


def _edge(line: FlowLine) -> Edge:
    port = str(line.port) if line.verdict == ALLOWED else ""
    return Edge(line.network, line.source, line.destination, port, line.protocol, line.reason)


def _folded(edge: Edge, *, has_own: bool) -> Edge:
    """There are few of these: who has none by himself is not named, and protocols are those that have a name."""
    return Edge(
        edge.network,
        edge.source if has_own else OTHER,
        OTHER,
        edge.port and OTHER,
        edge.protocol if edge.protocol in _KNOWN else OTHER,
        edge.reason,
    )


def _add(sums: dict[Edge, list[int]], edge: Edge, numbers: Iterable[int]) -> None:
    sums[edge] = [one + more for one, more in zip(sums.get(edge, (0,) * 5), numbers, strict=True)]
