# SPDX-License-Identifier: Apache-2.0
"""What has happened between two looks at a host, a second: of containers, of who talks to whom, of what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from datapath.engine.engine import Engine
from datapath.model.flows import ALLOWED, FlowHead, FlowLine, counted, grown, head_of
from datapath.telemetry import snapshot
from datapath.telemetry.snapshot import Snapshot


class Look(NamedTuple):
    """A look, and what looking and counting have cost by then: seconds of a processor that this process has taken, and
    those of the packet programs, None: the kernel does not time them (kernel.bpf_stats_enabled)."""

    seen: Snapshot
    spent: float
    programs: float | None


class ContainerRate(NamedTuple):
    """A second: packets, bytes that it has received and sent, connections that it or others have opened, packets that
    were refused. `watched`: a network of it has flows; else nothing of that is known."""

    name: str
    networks: tuple[str, ...]
    watched: bool
    packets: float = 0
    received: float = 0
    sent: float = 0
    connections: float = 0
    refused: float = 0


class FlowRate(NamedTuple):
    """A second: packets and bytes of both directions, and connections. `total`: packets so far; `idle`: seconds since
    the last one."""

    head: FlowHead
    packets: float
    bytes: float
    connections: float
    total: int
    idle: float


@dataclass(frozen=True, slots=True)
class Rates:
    """`seconds` between the looks; what comes to each other, in no order. `dropped`: packets a second, by reason, on
    all networks, flows or none. `own`, `programs`: parts of a processor, as in `Look`; None: none has run."""

    seconds: float
    containers: list[ContainerRate]
    flows: list[FlowRate]
    refused: list[FlowRate]
    dropped: dict[str, float]
    own: float
    programs: float | None
    watched: int


def look(engine: Engine, network: str = "") -> Look:
    """What is seen now. NotFoundError: there is no such network. Takes no lock, changes nothing."""
    from datapath.dataplane import costs

    found = snapshot.take(engine, network=network)
    runs = costs.runs(engine.settings.bpffs)
    programs = sum(length for _, length in runs.values()) / 1e9 if runs else None
    return Look(found, time.process_time(), programs)


def between(before: Look, now: Look) -> Rates:
    """What has happened from one look to the next one."""
    seen, seconds = now.seen, max(now.seen.taken - before.seen.taken, 1e-3)
    more = {
        head_of(line): line for line in grown(seen.totals, {head_of(one): one for one in before.seen.totals})
    }
    flows = [_flow(line, more.get(head_of(line)), seconds) for line in seen.totals]
    programs = None
    if now.programs is not None and before.programs is not None and now.programs > before.programs:
        programs = (now.programs - before.programs) / seconds
    return Rates(
        seconds,
        _containers(seen, more.values(), seconds),
        [one for one in flows if one.head.verdict == ALLOWED],
        [one for one in flows if one.head.verdict != ALLOWED],
        _dropped(before.seen.stats.counters, seen.stats.counters, seconds),
        (now.spent - before.spent) / seconds,
        programs,
        sum(network.watched for network in seen.networks),
    )


def _flow(line: FlowLine, more: FlowLine | None, seconds: float) -> FlowRate:
    connections, packets, length, back, back_length = counted(more) if more else (0,) * 5
    rates = ((packets + back) / seconds, (length + back_length) / seconds, connections / seconds)
    return FlowRate(head_of(line), *rates, line.sent_packets + line.received_packets, line.idle)


def _containers(seen: Snapshot, more: Iterable[FlowLine], seconds: float) -> list[ContainerRate]:
    sums = {member.name: [0] * 5 for member in seen.members}
    for line in more:
        connections, packets, sent, back, received = counted(line)
        for name, ours, theirs in ((line.source, sent, received), (line.destination, received, sent)):
            mine = sums.get(name)
            if mine is None:
                continue
            if line.verdict == ALLOWED:
                passed = (packets + back, theirs, ours, connections, 0)
            else:
                passed = (0, 0, 0, 0, packets)
            sums[name] = [one + added for one, added in zip(mine, passed, strict=True)]
    watched = {network.name for network in seen.networks if network.watched}
    return [
        ContainerRate(
            member.name,
            tuple(member.networks),
            not watched.isdisjoint(member.networks),
            *(number / seconds for number in sums[member.name]),
        )
        for member in seen.members
    ]


def _dropped(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]], seconds: float
) -> dict[str, float]:
    """Counters begin at 0 again when programs are loaded anew."""
    found = {}
    for name, (packets, _) in now.items():
        had = before.get(name, (0, 0))[0]
        more = packets - had if packets >= had else packets
        if more and name.startswith("DROP_"):
            found[name] = more / seconds
    return found
