# SPDX-License-Identifier: Apache-2.0
"""Which services a container or an endpoint joins, as asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from datapath.errors import ConfigError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import OPT_SERVICE, Network
from datapath.model.services import Membership, Service, parse_membership
from datapath.model.state import State
from datapath.plan.backends import services_of


def plan_memberships(given: Iterable[str], networks: Iterable[str], state: State) -> tuple[Membership, ...]:
    """What `run --service` asks for, of a container on networks with these ids. ConfigError, NotFoundError."""
    there = set(networks)

    def check(service: Service) -> None:
        if service.network_id not in there:
            network = state.networks[service.network_id].name
            raise ConfigError(
                f"the container cannot join service {service.name}: "
                f"it is not on network {network} (--network {network})"
            )

    return _joined(given, "--service", check, state)


def endpoint_memberships(
    options: Mapping[str, str], network: Network, state: State
) -> tuple[Membership, ...]:
    """What the option of an endpoint on that network asks for. ConfigError, NotFoundError."""

    def check(service: Service) -> None:
        if service.network_id != network.id:
            there = state.networks[service.network_id].name
            raise ConfigError(
                f"an endpoint on network {network.name} cannot join service {service.name}: "
                f"that is on network {there}"
            )

    return _joined(split(options.get(OPT_SERVICE, "")), f"option {OPT_SERVICE}", check, state)


def split(text: str) -> tuple[str, ...]:
    """The services that the value of an endpoint's option names, each as `run --service` has it."""
    return tuple(text.split(";")) if text else ()


def _joined(
    given: Iterable[str], option: str, check: Callable[[Service], None], state: State
) -> tuple[Membership, ...]:
    found: dict[str, Membership] = {}
    services: list[Service] = []
    for text in given:
        name, weight = parse_membership(text, option)
        service = state.get(Service, name)
        check(service)
        if service.id in found:
            raise ConfigError(f"service {service.name} is specified multiple times")
        for other in services:
            refuse_one_port(service, other, "the container")
        found[service.id] = Membership(service.id, weight)
        services.append(service)
    return tuple(found.values())


def refuse_shared_ports(container: Container, endpoints: Sequence[Endpoint], state: State) -> None:
    """By a name or by labels the container would be behind one port of two services, at one of these endpoints.
    ConfigError."""
    if not state.services:
        return
    state = state.including(container, *endpoints)
    for endpoint in endpoints:
        services = [service for service in services_of(endpoint, state) if service.published]
        for number, service in enumerate(services):
            for other in services[:number]:
                refuse_one_port(service, other, f"container {container.name}")


def refuse_one_port(service: Service, other: Service, who: str) -> None:
    """Published by two services, a container's port would answer one client for both. ConfigError."""
    for mine in service.published:
        for theirs in other.published:
            first = max(mine.container_port, theirs.container_port)
            last = min(mine.container_port + mine.count, theirs.container_port + theirs.count)
            if mine.proto == theirs.proto and first < last:
                raise ConfigError(
                    f"{who} cannot be in services {other.name} and {service.name}: "
                    f"both publish its port {first}/{mine.proto}"
                )
