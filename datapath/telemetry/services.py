# SPDX-License-Identifier: Apache-2.0
"""What the packet programs have counted of services and their backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from datapath.engine.engine import Engine
from datapath.model.services import Service
from datapath.plan.backends import backends
from datapath.telemetry.stats import opened

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane


class BackendUse(NamedTuple):
    """A backend: the container, its addresses, its weight and whether it gets new connections ("up", "draining").
    `opened`: connections since it is one; `failed`: those that could not be opened."""

    service: str
    container: str
    addresses: tuple[str, ...]
    weight: int
    state: str
    opened: int = 0
    failed: int = 0


class ServiceUse(NamedTuple):
    """A service. `failed`: connections for which no backend was up."""

    service: str
    opened: int
    failed: int


def uses(engine: Engine, service: Service) -> list[BackendUse]:
    """The service's backends, in the order of their addresses."""
    with opened(engine) as found:
        counts = _counts(found)
    return _uses(engine, service, counts)


def all_uses(engine: Engine) -> list[ServiceUse | BackendUse]:
    """Every service, each with its backends behind it, by name."""
    with opened(engine) as found:
        counts = _counts(found)
    rows: list[ServiceUse | BackendUse] = []
    for service in sorted(engine.snapshot().services.values(), key=lambda one: one.name):
        rows.append(ServiceUse(service.name, *counts.get(service.number, (0, 0))))
        rows += _uses(engine, service, counts)
    return rows


def _counts(found: Dataplane | None) -> dict[int, tuple[int, int]]:
    """Connections opened and failed, by the number of a service or a backend."""
    if found is None or not found.has("service_counts"):
        return {}
    return {
        key.number: (sum(one.opened for one in copies), sum(one.failed for one in copies))
        for key, copies in found.service_counts.read_all()
    }


def _uses(engine: Engine, service: Service, counts: dict[int, tuple[int, int]]) -> list[BackendUse]:
    state = engine.shown()
    rows = [
        BackendUse(
            service.name,
            state.holder_name(one.endpoint),
            tuple(str(address) for address in one.addresses),
            one.weight,
            "draining" if one.draining else "up",
            *counts.get(service.numbers.get(one.endpoint.id, 0), (0, 0)),
        )
        for one in backends(service, state)
    ]
    return sorted(rows)
