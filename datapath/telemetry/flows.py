# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom: the rows and totals that the packet programs keep, by the names of containers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from datapath.engine.engine import Engine
from datapath.model.flows import (
    ALLOWED,
    HOST,
    OUTSIDE,
    PEER,
    PROTOCOL_NAMES,
    REFUSED,
    FlowFilter,
    FlowLine,
    Flows,
    summed,
)
from datapath.model.networks import Network, has_flows
from datapath.model.state import State
from datapath.telemetry.stats import opened

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane

_BOTH, _RESET = 1, 2  # FIN, RST: bits of `finished`
_TRIES = 8  # of reading totals while no row ends: the timer that ends them runs ten times a second


def flows(engine: Engine, wanted: FlowFilter, *, totals: bool = False) -> Flows:
    """The lines that are meant, the latest first; `totals`: what goes on is added to what has ended. NotFoundError:
    there is no such network."""
    if wanted.network:
        wanted = wanted._replace(network=engine.snapshot().get(Network, wanted.network).name)
    state = engine.shown()
    watched = sum(has_flows(network) for network in state.networks.values())
    with opened(engine) as found:
        if found is None or not found.has("edges"):
            return Flows([], watched)
        name = _namer(state, found)
        networks = {network.number: network.name for network in state.networks.values()}
        now = time.monotonic_ns()
        lines, rest = _read(found, networks, name, now)
    lines = [line for line in (summed(lines) if totals else lines) if wanted.wants(line)]
    lines.sort(key=lambda line: line.idle)
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


def _read(
    found: Dataplane, networks: dict[int, str], name: Callable[[int], str], now: int
) -> tuple[list[FlowLine], Any]:
    """Rows and totals, and the total by no name. What the packet programs end meanwhile is in one of them, as it would
    be without: a row that has gone was added to a total before, so it is not counted, and totals are read anew."""
    rows = dict(_rows(found, networks, name, now))
    for _ in range(_TRIES):
        rest = found.flow_rest[0].over
        totals = list(_totals(found, networks, name, now))
        ended = rows.keys() - _row_keys(found) if rows else ()
        for key in ended:
            del rows[key]
        if not ended:
            break
    return [*rows.values(), *totals], rest


def _row_keys(found: Dataplane) -> set[bytes]:
    from datapath.kernel import abi
    from datapath.kernel.bpf_maps import cut

    size = abi.layout("flow_id").size
    return {key for keys, _, _ in found.flows.batches() for key in cut(keys, size)}


def _rows(
    found: Dataplane, networks: dict[int, str], name: Callable[[int], str], now: int
) -> Iterator[tuple[bytes, FlowLine]]:
    """What goes on, by the rows' keys. There can be many: no row is decoded twice, and no address."""
    from datapath.kernel import abi
    from datapath.kernel.bpf_maps import cut

    ids = abi.layout("flow_id").select("addr_a", "addr_b", "port_a", "port_b", "proto", "network")
    halves = abi.layout("flow_half").select(
        *("packets", "bytes", "seen", "since", "from", "to", "openings", "opener", "finished")
    )
    text = functools.lru_cache(65536)(abi.address_text)
    for keys, values, _ in found.flows.batches():
        each = halves.iter_unpack(values)
        for key, (addr_a, addr_b, port_a, port_b, proto, network), a, b in zip(
            cut(keys, ids.size), ids.iter_unpack(keys), each, each, strict=True
        ):
            if network not in networks:
                continue
            mine, other = a, b
            source, sport, destination, dport = addr_a, port_a, addr_b, port_b
            if not a[7]:
                mine, other = b, a
                source, sport, destination, dport = addr_b, port_b, addr_a, port_a
            line = FlowLine(
                networks[network],
                name(mine[4]),
                text(source),
                int.from_bytes(sport, "big"),
                name(mine[5]),
                text(destination),
                int.from_bytes(dport, "big"),
                PROTOCOL_NAMES.get(proto) or str(proto),
                ALLOWED,
                "",
                _state(proto, mine, other),
                mine[6],
                mine[0],
                mine[1],
                other[0],
                other[1],
                max(now - mine[3], 0) / 1e9,
                max(now - max(mine[2], other[2]), 0) / 1e9,
            )
            yield key, line


def _state(proto: int, mine: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    if proto != 6:
        return "replied" if other[0] else "new"
    ends = mine[8] | other[8]
    if ends & _RESET or mine[8] & other[8] & _BOTH:
        return "closed"
    if ends:
        return "closing"
    return "established" if other[0] and mine[0] else "new"


def _totals(
    found: Dataplane, networks: dict[int, str], name: Callable[[int], str], now: int
) -> Iterator[FlowLine]:
    from datapath.kernel import abi

    reasons = {int(reason): reason.name for reason in abi.Reason if reason >= abi.DROP_FIRST}
    for key, row in found.edges.read_all():
        if key.network not in networks:
            continue
        refused = key.reason != 0
        # Who would have got it is not known where it was refused before that.
        yield FlowLine(
            networks[key.network],
            name(key.from_),
            "",
            0,
            "" if refused and not key.to else name(key.to),
            "",
            key.port,
            PROTOCOL_NAMES.get(key.proto) or str(key.proto),
            REFUSED if refused else ALLOWED,
            reasons.get(key.reason, str(key.reason)) if refused else "",
            "",
            row.connections,
            row.sent_packets,
            row.sent_bytes,
            row.received_packets,
            row.received_bytes,
            max(now - row.first, 0) / 1e9,
            max(now - row.last, 0) / 1e9,
        )


def _unplaced(row: Any, now: int) -> FlowLine:
    counted = (row.connections, row.sent_packets, row.sent_bytes, row.received_packets, row.received_bytes)
    ages = (max(now - row.first, 0) / 1e9, max(now - row.last, 0) / 1e9)
    return FlowLine._make(("", "", "", 0, "", "", 0, "", "", "", "", *counted, *ages))
