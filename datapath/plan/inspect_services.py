# SPDX-License-Identifier: Apache-2.0
"""JSON of services: names, nesting and order of keys are Docker's where Docker has them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datapath.model.health import HealthCheck
from datapath.model.networks import Network
from datapath.model.ports import PortMapping
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.backends import Backend, backends, is_there


def services_of(network: Network, state: State) -> dict[str, Any]:
    """`Services` of `network inspect -v`: for services without an address, as in Docker, too."""
    return {
        service.name: {
            "VIP": str(next(iter(service.vips), "")),
            "Ports": [
                f"Target: {port}, Publish: {host_port}"
                for mapping in service.ports
                for _, host_port, port, _ in mapping.expand()
            ],
            "LocalLBIndex": service.number,
            "Tasks": [_task(one, state) for one in backends(service, state)],
        }
        for service in state.services_of_network(network.id)
        if is_there(service)
    }


def _task(one: Backend, state: State) -> dict[str, Any]:
    return {
        "Name": one.name(state),
        "EndpointID": one.id,
        "EndpointIP": str(next(iter(one.addresses), "")),
        "Info": ({"Host": one.host(state)} if one.host(state) else {})
        | ({} if one.up else {"State": one.state}),
    }


def _container_spec(service: Service) -> dict[str, Any]:
    """What Docker has there of a service's tasks, as far as there is such a thing here."""
    found: dict[str, Any] = {"StopGracePeriod": service.grace} if service.grace else {}
    return found | ({"Healthcheck": _healthcheck(service.health)} if service.health else {})


def _healthcheck(check: HealthCheck) -> dict[str, Any]:
    return {
        "Test": [check.kind, check.test],
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "Retries": check.retries,
    }


def service_inspect(service: Service, state: State) -> dict[str, Any]:
    """One service."""
    network = state.networks[service.network_id]
    ports = [_port(*one) for mapping in service.ports for one in _single(mapping)]
    return {
        "ID": service.id,
        "CreatedAt": service.created,
        "Spec": {
            "Name": service.name,
            "Labels": dict(service.labels),
            "TaskTemplate": {"ContainerSpec": _container_spec(service)},
            "Networks": [{"Target": network.id}],
            "EndpointSpec": {"Mode": service.mode, "Ports": ports},
        },
        "Endpoint": {
            "Ports": ports,
            "VirtualIPs": [{"NetworkID": network.id, "Addr": str(vip)} for vip in service.vips],
        },
        "Network": network.name,
        "Algorithm": service.algorithm,
        "Affinity": service.affinity,
        "DSR": service.dsr,
        "Selector": dict(service.selector),
        "Backends": [_backend(one, service, state) for one in backends(service, state)],
    }


def _single(mapping: PortMapping) -> Iterator[tuple[str, int, int, str]]:
    for address, host_port, port, proto in mapping.expand():
        yield str(address or ""), host_port, port, proto


def _port(address: str, host_port: int, port: int, proto: str) -> dict[str, Any]:
    found = {"Protocol": proto, "TargetPort": port, "PublishedPort": host_port, "PublishMode": "host"}
    return found | ({"HostIp": address} if address else {})


def _backend(one: Backend, service: Service, state: State) -> dict[str, Any]:
    verdict = service.verdicts.get(one.id)
    found = {
        "Name": one.name(state),
        "EndpointID": one.id,
        "Host": one.host(state),
        "Addresses": [str(address) for address in one.addresses],
        "Weight": one.weight,
        "State": one.state,
    }
    return found | ({"Reason": verdict.reason} if verdict and verdict.state == one.state else {})
