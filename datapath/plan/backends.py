# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are a service's backends. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import NamedTuple

from datapath.model.endpoints import Endpoint
from datapath.model.health import BackendState
from datapath.model.parsing import Address
from datapath.model.peers import Remote
from datapath.model.rows import Phase, short
from datapath.model.services import Membership, Service
from datapath.model.state import State


class Backend(NamedTuple):
    """`endpoint`: of this host or of another. `weight`: its share of new connections, against those of the others, as
    long as it is up."""

    endpoint: Endpoint | Remote
    weight: int
    state: BackendState = BackendState.UP

    @property
    def up(self) -> bool:
        """It gets new connections."""
        return self.state == BackendState.UP

    @property
    def id(self) -> str:
        """Its endpoint's."""
        return self.endpoint.id

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those of its endpoint, the IPv4 one first."""
        if isinstance(self.endpoint, Remote):
            return self.endpoint.addresses
        return tuple(one.ip for one in (self.endpoint.ipv4, self.endpoint.ipv6) if one is not None)

    def name(self, state: State) -> str:
        """The container's."""
        if isinstance(self.endpoint, Remote):
            return self.endpoint.name or self.endpoint.hostname or short(self.id)
        return state.holder_name(self.endpoint)

    def host(self, state: State) -> str:
        """The name of the host that it is on; "": this one is of no cluster."""
        ident = self.endpoint.peer if isinstance(self.endpoint, Remote) else state.installation_id
        return state.peers[ident].name if ident in state.peers else ""


def state_of(service: Service, endpoint: Endpoint | Remote, state: State) -> BackendState:
    """The state of a backend of the service. Where nobody checks backends all are up that are not draining, whatever
    was found before."""
    if endpoint.id in service.drained or _host_is_drained(endpoint, state):
        return BackendState.DRAINING
    verdict = service.verdicts.get(endpoint.id) if service.health and state.judged else None
    return verdict.state if verdict else BackendState.UP


def _host_is_drained(endpoint: Endpoint | Remote, state: State) -> bool:
    """Its host is. What is on networks of this host alone goes on."""
    if not state.drains:
        return False
    if isinstance(endpoint, Remote):
        return endpoint.peer in state.drains
    return state.installation_id in state.drains and state.networks[endpoint.network_id].spans


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


def services_of(endpoint: Endpoint, state: State) -> list[Service]:
    """The services that the endpoint is a backend of, or will be once its container runs. Only those are looked at that
    it, or a container in its sandbox, names, or has a label for: there may be many others."""
    users, sandbox = state.users(endpoint.sandbox_id), state.sandboxes.get(endpoint.sandbox_id)
    labels = [container.labels for container in users]
    if sandbox is not None and sandbox.foreign:
        labels.append(sandbox.labels)
    named = [one.service for one in endpoint.services]
    named += [one.service for container in users for one in container.services]
    found = {ident: state.services[ident] for ident in named if ident in state.services}
    for one in labels:
        for label in one.items():
            for service in _selecting(state).get((endpoint.network_id, *label), ()):
                found[service.id] = service
    return [service for service in found.values() if belongs(service, endpoint, state)]


def _selecting(state: State) -> dict[tuple[str, str, str], list[Service]]:
    """The services that have a selector, by their network's id and the selector's first label."""
    if _selecting not in state.derived:
        found: dict[tuple[str, str, str], list[Service]] = {}
        for service in state.services.values():
            for label in islice(service.selector.items(), 1):
                found.setdefault((service.network_id, *label), []).append(service)
        state.derived[_selecting] = found
    known: dict[tuple[str, str, str], list[Service]] = state.derived[_selecting]
    return known


def _behind(state: State) -> dict[str, list[Endpoint | Remote]]:
    """Who may be behind each service, by its id: endpoints of this host in the order of their slots, then others'."""
    if _behind not in state.derived:
        found: dict[str, list[Endpoint | Remote]] = {}
        for endpoint in sorted(state.endpoints.values(), key=lambda one: one.slot) if state.services else ():
            for service in services_of(endpoint, state):
                found.setdefault(service.id, []).append(endpoint)
        for remote in state.remotes.values() if state.services else ():
            for ident in remote.services:
                found.setdefault(ident, []).append(remote)
        state.derived[_behind] = found
    known: dict[str, list[Endpoint | Remote]] = state.derived[_behind]
    return known


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
    """The service's backends: endpoints that are there, of containers that run, in the order of their slots; then those
    that other hosts say they have, unless they have stopped to say that they live."""
    known = state if service.id in state.services else state.including(service)
    found = []
    for one in _behind(known).get(service.id, ()):
        if isinstance(one, Endpoint):
            weight = backed(service, one, state)
        else:
            weight = 0 if one.peer in state.lapses else one.services[service.id]
        if weight and one.network_id == service.network_id:
            found.append(Backend(one, weight, state_of(service, one, state)))
    return found


def backed(service: Service, endpoint: Endpoint, state: State) -> int:
    """The weight that an endpoint of this host has in the service now; 0: it is no backend of it."""
    there = endpoint.phase in (Phase.READY, Phase.CHANGING) and _inhabited(endpoint, state)
    return weight_of(service, endpoint, state) if there else 0


def told(endpoint: Endpoint, state: State) -> dict[str, int]:
    """What other hosts are to know of an endpoint: the weight that it has now in each service, by the service's id. It
    is none that they hear of while checks say that it is not to be used."""
    found = {
        one.id: backed(one, endpoint, state)
        for one in services_of(endpoint, state)
        if state_of(one, endpoint, state) in (BackendState.UP, BackendState.DRAINING)
    }
    return {ident: weight for ident, weight in found.items() if weight}


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
        for service in services_of(endpoint, state)
    }


def serving(state: State) -> frozenset[int]:
    """Numbers of the endpoints that are backends: what they answer may be to a client that knows another address."""
    return frozenset(
        backend.endpoint.number
        for service in state.services.values()
        if is_there(service) and service.vips
        for backend in backends(service, state)
        if isinstance(backend.endpoint, Endpoint)
    )
