# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom: the rows and totals that the packet programs keep, by the names of containers."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datapath.engine.engine import Engine
from datapath.model.flows import HOST, OUTSIDE, PEER, FlowFilter, FlowLine, Flows
from datapath.model.networks import Network, has_flows
from datapath.model.state import State
from datapath.telemetry.stats import opened

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane

_TRIES = 3  # of reading all totals while no row ends: the timer that ends them runs ten times a second


def flows(engine: Engine, wanted: FlowFilter, *, totals: bool = False, last: int | None = None) -> Flows:
    """The lines that are meant, the latest first; `totals`: what goes on is added to what has ended; `last`: no more
    than so many. NotFoundError: there is no such network."""
    if wanted.network:
        wanted = wanted._replace(network=engine.snapshot().get(Network, wanted.network).name)
    state = engine.shown()
    watched = sum(has_flows(network) for network in state.networks.values())
    with opened(engine) as found:
        if found is None or not found.has("edges"):
            return Flows([], watched)
        now = time.monotonic_ns()
        lines, rest = _read(found, state, wanted, totals, last, now)
    return Flows(lines, watched, _unplaced(rest, now) if rest.last else None)


def _namer(state: State, found: Dataplane) -> Callable[[int], str]:
    """Says who has a number: a container, by its name of now or the last that it had."""
    from datapath.kernel import abi

    names = {
        key.endpoint: row.name.rstrip(b"\0").decode(errors="replace") for key, row in found.parties.read_all()
    }
    names |= {endpoint.number: state.holder_name(endpoint) for endpoint in state.endpoints.values()}
    names |= {
        int(abi.OtherParty.PARTY_OUTSIDE): OUTSIDE,
        int(abi.OtherParty.PARTY_HOST): HOST,
        int(abi.OtherParty.PARTY_PEER): PEER,
    }
    return lambda number: names.get(number) or f"endpoint-{number}"


def _has_all(labels: Mapping[str, str], wanted: tuple[str, ...]) -> bool:
    """Each is "key" or "key=value"."""
    asked = [one.partition("=") for one in wanted]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in asked)


def _labelled(state: State, wanted: tuple[str, ...]) -> frozenset[int]:
    """The numbers of endpoints whose container has all of these labels."""
    found = set()
    for endpoint in state.endpoints.values() if wanted else ():
        holder = state.holder(endpoint) or state.sandboxes.get(endpoint.sandbox_id)
        if holder is not None and _has_all(holder.labels, wanted):
            found.add(endpoint.number)
    return frozenset(found)


def _read(
    found: Dataplane, state: State, wanted: FlowFilter, totals: bool, last: int | None, now: int
) -> tuple[list[FlowLine], Any]:
    """Lines, and the total by no name. What the packet programs end meanwhile is in one of them, as without that: a row
    that has gone was added to a total before, so it is not counted, and totals are read anew."""
    from datapath.telemetry import flow_conns, flow_tables

    networks = {network.number: network.name for network in state.networks.values()}
    heads = flow_tables.Heads(networks, _namer(state, found), wanted, _labelled(state, wanted.labels))
    oldest = 0 if wanted.since is None else now - int(wanted.since * 1e9)
    since = 0 if totals else oldest
    rows = [batch for batch in flow_tables.batches(found, heads, since) if batch.picked]
    # Totals have all of what is translated: without lines of its own it need not be looked at.
    conns = flow_conns.Conns() if totals else flow_conns.read(found, heads)
    for _ in range(_TRIES):
        rest = found.flow_rest[0].over
        ended = flow_tables.totals(found, heads, since)
        current = flow_tables.row_keys(found) if rows else set()
        gone = set[flow_tables.Key]().union(*[batch.forget(current) for batch in rows])
        if not gone:
            break
    else:
        ended = flow_tables.settled(found, rows, ended, gone, heads, since)
    if totals:
        ended, rows = flow_tables.together(rows, ended, oldest), []
    ended, shown = flow_conns.taken_off(ended, conns)
    going_on = [conn for conn in conns.rows.values() if conns.seen(conn) >= oldest]
    services = {str(vip): one.name for one in state.services.values() for vip in one.vips}
    # Only what is shown becomes a line: places of totals are behind those of rows, those of connections behind these.
    places = [(batch.seen[i], at, i) for at, batch in enumerate(rows) for i in batch.picked]
    places += [(total.last, len(rows), i) for i, total in enumerate(ended)]
    places += [(conns.seen(conn), len(rows) + 1, i) for i, conn in enumerate(going_on)]

    def line(at: int, i: int) -> FlowLine:
        if at < len(rows):
            return flow_tables.row_line(rows[at], i, now)
        if at == len(rows):
            return flow_tables.total_line(ended[i], now)
        return flow_conns.line(conns, going_on[i], services, now)

    latest = sorted(places, reverse=True) if last is None else heapq.nlargest(last, places)
    return [line(at, i) for _, at, i in latest], _without(rest, shown)


def _without(rest: Any, shown: Sequence[int]) -> Any:
    """The total by no name, without what connections that are shown have counted in it."""
    if not any(shown):
        return rest
    return rest._make(
        (*(max(number - less, 0) for number, less in zip(rest, shown, strict=False)), *rest[5:])
    )


def _unplaced(row: Any, now: int) -> FlowLine:
    counted = (row.connections, row.sent_packets, row.sent_bytes, row.received_packets, row.received_bytes)
    ages = (max(now - row.first, 0) / 1e9, max(now - row.last, 0) / 1e9)
    return FlowLine._make(("", "", "", 0, "", "", 0, "", "", "", "", *counted, *ages, ""))
