# SPDX-License-Identifier: Apache-2.0
"""All that is seen of a host at one moment: containers, networks, who talks to whom, policies, and the totals of the
packet programs. Whoever shows it, on a terminal, on a page or to a collector of metrics, shows this."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datapath.engine.engine import Engine
from datapath.engine.policy_views import Hit, hits
from datapath.model.connections import ConnectionStats
from datapath.model.flows import FlowFilter, FlowLine
from datapath.model.networks import Network, has_flows
from datapath.model.state import State
from datapath.plan.policies.overview import Glance
from datapath.telemetry.flows import flows
from datapath.telemetry.stats import Stats, connection_stats, stats


class Member(NamedTuple):
    """A running container, or another owner's sandbox. `networks`: name -> its addresses there; `ports`: what it has
    published, in the words of `port add`."""

    id: str
    name: str
    owner: str
    labels: Mapping[str, str]
    networks: Mapping[str, tuple[str, ...]]
    ports: tuple[str, ...]


class Segment(NamedTuple):
    """A network that containers can join. `icc`: its members may talk to each other; `watched`: who talks to whom is
    counted on it (com.datapath.flows)."""

    id: str
    name: str
    driver: str
    owner: str
    subnets: tuple[str, ...]
    internal: bool
    icc: bool
    watched: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`taken`: seconds, CLOCK_MONOTONIC. `totals`: one line for all that is alike in network, ends, port, protocol,
    verdict and reason, what goes on included; `live`: what goes on, and totals of what has ended, by itself, the latest
    first, as many as were asked for. `unplaced`: what the table of totals had no room for.
    `policies` and `hits` are empty unless they were asked for."""

    taken: float
    members: list[Member]
    networks: list[Segment]
    totals: list[FlowLine]
    live: list[FlowLine]
    unplaced: FlowLine | None
    stats: Stats
    connections: ConnectionStats
    policies: list[tuple[Glance, int, int]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)


def take(
    engine: Engine,
    *,
    network: str = "",
    live: int = 0,
    policies: bool = False,
    most: int | None = None,
    counters: bool = True,
) -> Snapshot:
    """What is seen now. `network`: only of this one, NotFoundError; `live`: so many lines of what goes on; `policies`:
    and what is said and was decided by each; `most`: no more than so many totals, those of the latest packets;
    without `counters` `stats` and `connections` are empty, and no table of connections is gone through. Changes
    nothing, and takes no lock."""
    state = engine.shown()
    name = state.get(Network, network).name if network else ""
    taken = time.monotonic()
    wanted = FlowFilter(network=name)
    totals = flows(engine, wanted, totals=True, last=most)
    return Snapshot(
        taken,
        _members(state, name),
        [_segment(one) for one in _networks(state, name)],
        totals.lines,
        flows(engine, wanted, last=live).lines if live else [],
        totals.unplaced,
        stats(engine) if counters else Stats({}, {}),
        connection_stats(engine) if counters else ConnectionStats({}, {}, {}, {}, 0, 0),
        _policies(engine) if policies else [],
        hits(engine) if policies else [],
    )


def _policies(engine: Engine) -> list[tuple[Glance, int, int]]:
    from datapath.telemetry.policies import listed

    return list(listed(engine, False))


def _networks(state: State, name: str) -> list[Network]:
    found = [one for one in state.networks.values() if one.number and name in ("", one.name)]
    return sorted(found, key=lambda one: one.name)


def _segment(network: Network) -> Segment:
    subnets = tuple(str(subnet.prefix) for subnet in network.subnets)
    return Segment(
        *(network.id, network.name, network.driver, network.owner, subnets, network.internal, network.icc),
        has_flows(network),
    )


def _members(state: State, name: str) -> list[Member]:
    found = []
    for sandbox_id in dict.fromkeys(endpoint.sandbox_id for endpoint in state.endpoints.values()):
        joined = [
            endpoint
            for endpoint in state.endpoints_of_sandbox(sandbox_id)
            if name in ("", state.networks[endpoint.network_id].name)
        ]
        if not joined:
            continue
        holder = state.holder(joined[0])
        owner = holder or state.sandboxes.get(sandbox_id)
        addresses = {
            state.networks[endpoint.network_id].name: tuple(
                str(interface.ip) for interface in (endpoint.ipv4, endpoint.ipv6) if interface is not None
            )
            for endpoint in joined
        }
        found.append(
            Member(
                holder.id if holder else sandbox_id,
                state.holder_name(joined[0]),
                state.owner(joined[0]),
                dict(owner.labels) if owner else {},
                addresses,
                tuple(str(port) for endpoint in joined for port in endpoint.ports),
            )
        )
    return sorted(found, key=lambda one: one.name)


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The same for `json.dumps`, with the names of fields for keys."""
    found = snapshot.stats
    return {
        "taken": snapshot.taken,
        "members": [member._asdict() for member in snapshot.members],
        "networks": [network._asdict() for network in snapshot.networks],
        "totals": [line._asdict() for line in snapshot.totals],
        "live": [line._asdict() for line in snapshot.live],
        "unplaced": snapshot.unplaced._asdict() if snapshot.unplaced else None,
        "counters": {name: list(both) for name, both in found.counters.items()},
        "fill": {name: list(both) for name, both in found.fill.items()},
        "connections": [
            {"table": table, "state": state, "connections": number}
            for (table, state), number in snapshot.connections.states.items()
        ],
        "policies": [
            {**glance._asdict(), "openings": openings, "refused": refused}
            for glance, openings, refused in snapshot.policies
        ],
        "hits": [hit._asdict() for hit in snapshot.hits],
    }
