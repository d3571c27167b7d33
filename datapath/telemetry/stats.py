# SPDX-License-Identifier: Apache-2.0
"""Counters of the packet programs, how full their maps are, and the connections that they translate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from datapath.engine.engine import Engine
from datapath.model.connections import Connection, ConnectionFilter, ConnectionStats
from datapath.model.limits import Limit
from datapath.model.services import Service
from datapath.model.state import State, stack_of
from datapath.plan.backends import backends

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane

_CONNECTION_DROPS = (
    *("DROP_NAT_PORTS", "DROP_CONN_TABLE", "DROP_STALE", "DROP_NO_CONN"),
    *("DROP_DENIED", "DROP_FLOOD", "DROP_LIMIT"),
)


class LimitUse(NamedTuple):
    """One limit of a container's bandwidth on a network, and what it has dropped."""

    container: str
    network: str
    limit: Limit
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """`counters`: reason -> (packets, bytes) since the programs were loaded; `fill`: map -> (entries, most);
    `questions`: network -> what became of its members' questions for names -> how many; `limits`: of bandwidth;
    `services`: each with its backends behind it."""

    counters: dict[str, tuple[int, int]]
    fill: dict[str, tuple[int, int]]
    questions: dict[str, dict[str, int]] = field(default_factory=dict)
    limits: tuple[LimitUse, ...] = ()
    services: tuple[ServiceUse, ...] = ()


def stats(engine: Engine) -> Stats:
    """Packet counters and the fill of maps; empty if the programs were never loaded."""
    with opened(engine) as found:
        shown = engine.shown()
        return (
            Stats(
                found.counters_sum(),
                found.fill(),
                _questions(engine, found),
                tuple(sorted(_limits(engine, found))),
                tuple(_services(shown.services.values(), shown, found)),
            )
            if found
            else Stats({}, {})
        )


def _questions(engine: Engine, found: Dataplane) -> dict[str, dict[str, int]]:
    if not found.has("name_counts"):
        return {}
    names = {network.number: network.name for network in engine.snapshot().networks.values()}
    return {
        names[key.network]: {
            result: sum(getattr(copy, result) for copy in copies) for result in copies[0]._fields
        }
        for key, copies in found.name_counts.read_all()
        if key.network in names
    }


def _limits(engine: Engine, found: Dataplane) -> Iterator[LimitUse]:
    rows = dict(found.limits.read_all()) if found.has("limits") else {}
    if not rows:
        return
    from datapath.dataplane.layout import LIMIT_DIRECTIONS

    state = engine.shown()
    for endpoint in state.endpoints.values():
        for limit in endpoint.limits:
            row = rows.get((endpoint.number, LIMIT_DIRECTIONS[limit.direction]))
            if row is not None:
                network = state.networks[endpoint.network_id].name
                yield LimitUse(state.holder_name(endpoint), network, limit, row.packets, row.bytes)


class ServiceUse(NamedTuple):
    """Connections of a service (`backend` ""), or of one of its backends: those that were opened to it, and those that
    could not be; packets and bytes, from the IP header on, to it and from it. `addresses` and `weight` are the
    backend's; `state`: one of `model.health.BackendState`; `host`: that it is on, "": this one is of no cluster."""

    service: str
    backend: str
    addresses: tuple[str, ...] = ()
    weight: int = 0
    state: str = ""
    opened: int = 0
    failed: int = 0
    host: str = ""
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0


def services(engine: Engine, name: str = "") -> list[ServiceUse]:
    """Every service, by name, each with its backends behind it; `name`: this one. NotFoundError."""
    state = engine.shown()
    meant = [state.get(Service, name)] if name else state.services.values()
    with opened(engine) as found:
        return [*_services(meant, state, found)] if meant else []


def _services(meant: Iterable[Service], state: State, found: Dataplane | None) -> Iterator[ServiceUse]:
    from datapath.dataplane import service_counts

    counts = service_counts.read(found) if found is not None else {}
    none = service_counts.Counts()
    for service in sorted(meant, key=lambda one: one.name):
        total = service_counts.of_service(counts, service.number, service.numbers.values())
        yield ServiceUse(service.name, "", **total._asdict())
        rows = [
            ServiceUse(
                service.name,
                one.name(state),
                tuple(str(address) for address in one.addresses),
                one.weight,
                str(one.state),
                host=one.host(state),
                **counts.get(service.numbers.get(one.id, 0), none)._asdict(),
            )
            for one in backends(service, state)
        ]
        yield from sorted(rows)


def connections(
    engine: Engine, wanted: ConnectionFilter, container: str = ""
) -> list[tuple[Connection, str]]:
    """The connections that are meant, each with the names of the containers that take part. `container`: one of
    these. NotFoundError."""
    state = engine.shown()
    wanted = _of_container(wanted, container, state)
    names = _endpoint_names(state)
    with opened(engine) as found:
        from datapath.dataplane import connections as tables

        rows = list(tables.find(found, wanted)) if found else []
    containers = {
        numbers: ",".join(dict.fromkeys(names.get(number, "") for number in numbers))
        for numbers in {row.endpoints for row in rows}
    }
    return [(row, containers[row.endpoints]) for row in rows]


def flush(engine: Engine, wanted: ConnectionFilter, container: str = "") -> int:
    """Forgets the connections that are meant; how many. NotFoundError."""
    wanted = _of_container(wanted, container, engine.shown())
    with opened(engine) as found:
        from datapath.dataplane import connections as tables

        return tables.forget(found, tables.matcher(wanted)) if found else 0


def connection_stats(engine: Engine) -> ConnectionStats:
    """Connections by state, against the tables' sizes, by container, and what was dropped."""
    names = _endpoint_names(engine.shown())
    with opened(engine) as found:
        from datapath.dataplane import connections as tables

        if found is None:
            return ConnectionStats({}, {}, {}, {}, 0, 0)
        quotas: dict[str, tuple[int, int]] = {}
        for key, quota in found.quotas.read_all():
            if key.endpoint in names:
                had = quotas.get(names[key.endpoint], (0, 0))
                quotas[names[key.endpoint]] = (had[0] + quota.conns, had[1] + quota.openings)
        counters, config = found.counters_sum(), found.config[0]
        return ConnectionStats(
            states=tables.states(found),
            tables=found.fill(tables.TABLES),
            drops={name: counters[name] for name in _CONNECTION_DROPS},
            quotas=quotas,
            max_connections=config.max_conns,
            max_openings=config.max_openings,
        )


@contextmanager
def opened(engine: Engine) -> Iterator[Dataplane | None]:
    """The packet programs to look at; None: they were never loaded."""
    from datapath.dataplane import programs
    from datapath.kernel import features

    features.require()
    found = programs.Dataplane.find(engine.settings.bpffs)
    with found or nullcontext():
        yield found


def _of_container(wanted: ConnectionFilter, name: str, state: State) -> ConnectionFilter:
    if not name:
        return wanted
    endpoints = state.endpoints_of_sandbox(stack_of(state, name))
    return wanted._replace(endpoints=frozenset(endpoint.number for endpoint in endpoints))


def _endpoint_names(state: State) -> dict[int, str]:
    """Endpoint number -> name of its container, or what the owner of its sandbox calls that."""
    return {endpoint.number: state.holder_name(endpoint) for endpoint in state.endpoints.values()}
