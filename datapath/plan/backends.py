# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are a service's backends. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from datapath.model.endpoints import Endpoint
from datapath.model.health import BackendState
from datapath.model.parsing import Address
from datapath.model.rows import Phase
from datapath.model.services import Membership, Service
from datapath.model.state import State


class Backend(NamedTuple):
    """`weight`: its share of new connections, against those of the others, as long as it is up."""

    endpoint: Endpoint
    weight: int
    state: BackendState = BackendState.UP

    @property
    def up(self) -> bool:
        """It gets new connections."""
        return self.state == BackendState.UP

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those of its endpoint, the IPv4 one first."""
        return tuple(one.ip for one in (self.endpoint.ipv4, self.endpoint.ipv6) if one is not None)


def state_of(service: Service, endpoint_id: str, state: State) -> BackendState:
    """The state of a backend of the service on this host. Where nobody checks backends all are up that are not
    draining, whatever was found before."""
    if endpoint_id in service.drained:
        return BackendState.DRAINING
    verdict = service.verdicts.get(endpoint_id) if service.health and state.judged else None
    return verdict.state if verdict else BackendState.UP


def weight_of(service: Service, endpoint: Endpoint, state: State) -> int:
    """The weight that an endpoint has in the service, once somebody runs in its sandbox; 0: it is none of its."""
    own = _named(service, endpoint.services)
    if own:
        return own
    weights = [
        _named(service, container.services) or int(service.selects(container.labels))
        for container in state.users(endpoint.sandbox_id)
    ]
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None and sandbox.foreign:
        weights.append(int(service.selects(sandbox.labels)))
    return max(weights, default=0)


def _named(service: Service, memberships: Iterable[Membership]) -> int:
    return next((one.weight for one in memberships if one.service == service.id), 0)


def belongs(service: Service, endpoint: Endpoint, state: State) -> bool:
    """The endpoint is a backend of the service, or will be once its container runs."""
    return endpoint.network_id == service.network_id and weight_of(service, endpoint, state) > 0


def _inhabited(endpoint: Endpoint, state: State) -> bool:
    """A container of ours runs in the endpoint's sandbox, or it is in one of another owner's, who ends it himself."""
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return bool(sandbox.key) and sandbox.phase == Phase.READY
    return state.alive(endpoint.sandbox_id)


def backends(service: Service, state: State) -> list[Backend]:
    """The service's backends: endpoints that are there, of containers that run, in the order of their slots."""
    found = []
    for endpoint in state.endpoints_of_network(service.network_id):
        if endpoint.phase in (Phase.READY, Phase.CHANGING) and _inhabited(endpoint, state):
            weight = weight_of(service, endpoint, state)
            if weight:
                found.append(Backend(endpoint, weight, state_of(service, endpoint.id, state)))
    return found


def is_there(service: Service) -> bool:
    """Its name and address are in use."""
    return service.phase in (Phase.READY, Phase.CHANGING)


def touched(sandbox_ids: Collection[str], *states: State) -> dict[str, Service]:
    """The services that endpoints of these sandboxes are backends of, or are to be, in any of the states; by id."""
    return {
        service.id: service
        for state in states
        if state.services
        for sandbox_id in sandbox_ids
        for endpoint in state.endpoints_of_sandbox(sandbox_id)
        for service in state.services_of_network(endpoint.network_id)
        if belongs(service, endpoint, state)
    }


def serving(state: State) -> frozenset[int]:
    """Numbers of the endpoints that are backends: what they answer may be to a client that knows another address."""
    return frozenset(
        backend.endpoint.number
        for service in state.services.values()
        if is_there(service) and service.vips
        for backend in backends(service, state)
    )
