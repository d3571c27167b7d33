# SPDX-License-Identifier: Apache-2.0
"""Services: created, changed, drained and removed; and what a container has to be to join one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any, NamedTuple

from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.health import HealthOptions, parse_duration, parse_health
from datapath.model.networks import Network, Subnet
from datapath.model.parsing import Address, parse_address
from datapath.model.peers import Remote
from datapath.model.ports import PortMapping
from datapath.model.rows import OWNER, Phase, short
from datapath.model.services import (
    MAX_NUMBER,
    Mode,
    Service,
    ServiceChange,
    ServiceRequest,
    parse_algorithm,
    parse_mode,
    parse_seconds,
)
from datapath.model.state import Fresh, State, stack_of
from datapath.plan import ipam
from datapath.plan.backends import backends, services_of, weight_of
from datapath.plan.endpoints import check_hostname, holders_of
from datapath.plan.holders import format_holder
from datapath.plan.memberships import refuse_one_port
from datapath.plan.networks import check_name, parse_labels
from datapath.plan.ports import PortContext, choose_ports


class ChangePlan(NamedTuple):
    """The service as it is to be, and which of its published ports are new and which go."""

    service: Service
    opened: tuple[PortMapping, ...] = ()
    closed: tuple[PortMapping, ...] = ()


def as_endpoint(service: Service, network: Network) -> Endpoint:
    """What the service is to those who publish ports: an endpoint at its addresses, which has no device."""
    subnet4, subnet6 = network.subnet4, network.subnet6
    return Endpoint(
        id=service.id,
        network_id=network.id,
        sandbox_id="",
        number=service.number,
        slot=0,
        ifname="",
        host_ifname="",
        mac="",
        ipv4=_interface(service.vip4, subnet4),
        ipv6=_interface(service.vip6, subnet6),
        gateway4=service.vip4 is not None,
        gateway6=service.vip6 is not None,
        ports=service.ports,
        phase=service.phase,
    )


def _interface(vip: Address | None, subnet: Subnet | None) -> Any:
    return ip_interface((vip, subnet.prefix.prefixlen)) if vip is not None and subnet is not None else None


def plan_service_create(request: ServiceRequest, state: State, fresh: Fresh, ports: PortContext) -> Service:
    """A new service. ConfigError, NotFoundError, ExistsError."""
    _check_service_name(request.name, state)
    mode, algorithm = parse_mode(request.endpoint_mode), parse_algorithm(request.algorithm)
    affinity = parse_seconds(request.affinity, "affinity") if request.affinity else 0
    if not request.network:
        raise ConfigError("a service is on a network: say which one with --network")
    network = state.network(request.network)
    _check_network(network)
    health, grace = parse_health(request.health), _grace(request.stop_grace_period, 0)
    if mode == Mode.DNSRR:
        _refuse_without_vip(request, affinity)
    _refuse_dsr(request.dsr, network)
    wanted = tuple(PortMapping.parse(text) for text in request.publish)
    _refuse_addresses(wanted, network)
    vips = {} if mode == Mode.DNSRR else _vips(request.vips, network, state, fresh)
    service = Service(
        id=fresh.new_id(),
        name=request.name,
        network_id=network.id,
        number=fresh.next_number(),
        created=fresh.now,
        vip4=vips.get(4),
        vip6=vips.get(6),
        mode=mode,
        algorithm=algorithm,
        affinity=affinity,
        dsr=request.dsr,
        published=wanted,
        selector=parse_labels(request.selector),
        labels=parse_labels(request.labels),
        health=health,
        grace=grace,
    )
    if service.number > MAX_NUMBER:
        raise ConfigError("all numbers of services are used up: take everything down and start afresh")
    service = replace(service, ports=choose(wanted, service, state, ports))
    _refuse_shared_members(service, state)
    return _decided(service, network)


def _decided(service: Service, network: Network) -> Service:
    """On a network of several hosts all publish the ports that the first has chosen."""
    if not network.spans:
        return service
    return replace(service, published=tuple(replace(one, host_ip=None, acl=0) for one in service.ports))


def _refuse_addresses(wanted: Iterable[PortMapping], network: Network) -> None:
    """ConfigError: a port is to be published at an address of one host, and all hosts publish it."""
    for mapping in wanted:
        if network.spans and mapping.host_ip is not None:
            raise ConfigError(
                f"cannot publish {mapping}: every host of the cluster does, so no address can be named"
            )


def _refuse_dsr(wanted: bool | None, network: Network) -> None:
    """ConfigError: there is one host, whose answers are its own anyway."""
    if wanted and not network.spans:
        raise ConfigError(
            f"--dsr is for services of networks that span hosts: all backends on {network.name} are on this host, "
            "which answers their clients itself"
        )


def _check_service_name(name: str, state: State) -> None:
    check_name("service", name)
    check_hostname(name, "service name")
    if state.named(Service, name) is not None:
        raise ExistsError(f"service with name {name} already exists")


def _check_network(network: Network) -> None:
    """ConfigError: there can be no services on the network."""
    like = traits(network)
    why = ""
    if network.predefined:
        why = "it is a pre-defined network, whose members do not find each other by name"
    elif not like.programs or not network.built:
        why = "packet programs do not forward there"
    elif like.lan:
        why = "its members are on a link of the host's, where the service's address would be nobody's"
    elif network.leased:
        why = "a plugin gives out its addresses"
    elif network.beside:
        why = "its members have their default route on another network"
    if why:
        raise ConfigError(f"there can be no service on network {network.name}: {why}")


def _refuse_without_vip(request: ServiceRequest, affinity: int) -> None:
    given = {"--publish": request.publish, "--vip": request.vips, "--affinity": affinity}
    given["--dsr"] = request.dsr
    given["--algorithm"] = request.algorithm != "maglev"
    given |= _without_choice(request.health, request.stop_grace_period)
    for option, value in given.items():
        if value:
            raise ConfigError(
                f"conflicting options: {option} and --endpoint-mode dnsrr, which has no address"
            )


def _without_choice(health: HealthOptions, grace: str | None) -> dict[str, bool]:
    """Options that say which backends get new connections, and whether they were given: names know all."""
    return {"--health-*": health.given and not health.none, "--stop-grace-period": grace is not None}


def _grace(text: str | None, before: int) -> int:
    return before if text is None else parse_duration(text, "--stop-grace-period")


def _vips(asked: Sequence[str], network: Network, state: State, fresh: Fresh) -> dict[int, Address]:
    """An address of each family of the network: the one that was asked for, else the lowest that is free; the highest,
    if another owner gives out the network's addresses; of a network of several hosts what was chosen before."""
    allotted = [parse_address(text) for text in fresh.allotted.get(network.id, ())]
    chosen: dict[int, Address] = {}
    for text in asked:
        address = parse_address(text, "VIP")
        if address.version in chosen:
            raise ConfigError(f"conflicting options: two IPv{address.version} addresses of one service")
        chosen[address.version] = address
    found: dict[int, Address] = {}
    members = state.endpoints_of_network(network.id)
    for subnet in network.subnets:
        version = subnet.prefix.version
        holders = holders_of(network, members, version, state)
        if version not in chosen:
            chosen_before = next((one for one in allotted if one.version == version), None)
            choose_one = ipam.choose_last if network.owner != OWNER else ipam.choose_address
            found[version] = chosen_before or choose_one(subnet, holders)
            continue
        address = chosen.pop(version)
        ipam.check_static(subnet, address)
        if address in holders:
            raise ExistsError(
                f"Address already in use: {address} belongs to {format_holder(holders[address], state)}"
            )
        found[version] = address
    for left in chosen.values():
        raise ConfigError(f"network {network.name} has no IPv{left.version}: {left} is not possible there")
    return found


def choose(
    wanted: Iterable[PortMapping], service: Service, state: State, ports: PortContext
) -> tuple[PortMapping, ...]:
    """The mappings as they can be published on this host, for a service with others perhaps. ConfigError,
    ExistsError."""
    wanted = tuple(wanted)
    if not wanted:
        return ()
    network = state.networks[service.network_id]
    if network.internal:
        raise ConfigError(
            f"ports of service {service.name} cannot be published: network {network.name} is internal"
        )
    egress = [as_endpoint(replace(service, ports=()), network)]
    return choose_ports(wanted, egress, state, ports, service.name, kind="service")


def is_same(mapping: PortMapping, wanted: PortMapping) -> bool:
    """The mapping is what this host has made of the one that all hosts are to have."""
    return replace(wanted, host_ip=mapping.host_ip, acl=mapping.acl) == mapping


def unpublished(service: Service) -> list[PortMapping]:
    """The ports of a service of several hosts that this one does not publish."""
    return [one for one in service.published if not any(is_same(mapping, one) for mapping in service.ports)]


# ---- members -------------------------------------------------------------------------------------------------------


def _refuse_shared_members(service: Service, state: State) -> None:
    """A container that the service has, or that its selector chooses, is behind the same port of another one."""
    if not service.published:
        return
    for endpoint in state.endpoints_of_network(service.network_id):
        if weight_of(service, endpoint, state):
            for other in services_of(endpoint, state):
                if other.published:
                    refuse_one_port(service, other, f"container {state.holder_name(endpoint)}")


# ---- changes -------------------------------------------------------------------------------------------------------


def plan_service_update(name: str, change: ServiceChange, state: State, ports: PortContext) -> ChangePlan:
    """NotFoundError, ConfigError, ExistsError."""
    service = state.get(Service, name)
    if service.mode == Mode.DNSRR:
        for option, value in (
            ("--publish-add", change.publish_add),
            ("--affinity", change.affinity),
            ("--algorithm", change.algorithm),
            ("--dsr", change.dsr),
            *_without_choice(change.health, change.stop_grace_period).items(),
        ):
            if value:
                raise ConfigError(
                    f"conflicting options: {option} and endpoint mode dnsrr, which has no address"
                )
    labels = {**service.labels, **parse_labels(change.label_add)}
    for key in change.label_rm:
        if key not in labels:
            raise NotFoundError(f"service {service.name} has no label {quoted(key)}")
        del labels[key]
    published, closed = list(service.published), list[PortMapping]()
    for text in change.publish_rm:
        closed.append(_published_as(text, replace(service, ports=tuple(_without(service.ports, closed)))))
    for mapping in closed:
        source = next((one for one in published if _came_from(mapping, one)), None)
        if source is not None:
            published.remove(source)
    left = replace(service, ports=_without(service.ports, closed), published=tuple(published))
    network = state.networks[service.network_id]
    wanted = tuple(PortMapping.parse(text) for text in change.publish_add)
    _refuse_addresses(wanted, network)
    _refuse_dsr(change.dsr, network)
    opened = choose(wanted, left, state.including(left), ports)
    if network.spans:
        wanted = tuple(replace(one, host_ip=None, acl=0) for one in opened)
    health = parse_health(change.health, service.health)
    changed = replace(
        left,
        labels=labels,
        published=(*left.published, *wanted),
        ports=(*left.ports, *opened),
        algorithm=parse_algorithm(change.algorithm) if change.algorithm else service.algorithm,
        affinity=parse_seconds(change.affinity, "affinity") if change.affinity else service.affinity,
        dsr=service.dsr if change.dsr is None else change.dsr,
        health=health,
        verdicts=service.verdicts if health else {},
        grace=_grace(change.stop_grace_period, service.grace),
    )
    if opened:
        _refuse_shared_members(changed, state.without(service))
    return ChangePlan(changed, opened, tuple(closed))


def _without(ports: Iterable[PortMapping], gone: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    return tuple(mapping for mapping in ports if mapping not in gone)


def _published_as(text: str, service: Service) -> PortMapping:
    """The published port that is meant: as `service inspect` shows it, or the container's port alone, as in Docker."""
    asked = PortMapping.parse(text).open
    same = (asked.proto, asked.container_port, asked.count)
    found = [
        m
        for m in service.ports
        if (m.proto, m.container_port, m.count) == same
        and asked.host_port in (0, m.host_port)
        and asked.host_ip in (None, m.host_ip)
    ]
    if not found:
        raise NotFoundError(f"service {service.name} does not publish {quoted(text)}")
    if len(found) > 1:
        raise ConfigError(
            f"{quoted(text)} may be each of {', '.join(map(str, found))}: name the host port too"
        )
    return found[0]


def _came_from(mapping: PortMapping, wanted: PortMapping) -> bool:
    same = (mapping.proto, mapping.container_port, mapping.count) == (
        wanted.proto,
        wanted.container_port,
        wanted.count,
    )
    last = wanted.host_port_last or wanted.host_port or 65535
    return same and wanted.host_port <= mapping.host_port <= last


def plan_drain(name: str, container: str, state: State, back: bool = False) -> Service:
    """The service with a backend drained, or with `back` not any more. NotFoundError; ConfigError: it is no backend."""
    service = state.get(Service, name)
    endpoint = _backend(service, container, state)
    there = {one.id for one in backends(service, state)}
    drained = tuple(one for one in service.drained if one in there and one != endpoint.id)
    ends = {ident: end for ident, end in service.ends.items() if ident != endpoint.id or not back}
    return replace(service, drained=drained if back else (*drained, endpoint.id), ends=ends)


def _backend(service: Service, name: str, state: State) -> Endpoint | Remote:
    elsewhere = [one.endpoint for one in backends(service, state) if isinstance(one.endpoint, Remote)]
    named = [one for one in elsewhere if name in (one.name, one.sandbox_id, short(one.sandbox_id))]
    if named and state.find_container(name) is None:
        return named[0]
    sandbox_id = stack_of(state, name)
    for one in backends(service, state):
        if isinstance(one.endpoint, Endpoint) and one.endpoint.sandbox_id == sandbox_id:
            return one.endpoint
    raise ConfigError(f"container {name} is no backend of service {service.name}")


def with_ends(service: Service, now: int, others: Iterable[str] = ()) -> Service:
    """The service with when the connections of each drained backend are to be ended. `now`: as those are. `others`: the
    ids of backends that are drained as their host is."""
    ends = {}
    for ident in (*service.drained, *others) if service.grace else ():
        ends[ident] = service.ends.get(ident, now + max(1, service.grace // 10**6))
    return service if ends == service.ends else replace(service, ends=ends)


def overdue(service: Service, now: int) -> list[str]:
    """The ids of the endpoints whose connections of the service are to be ended by now."""
    return [ident for ident, end in service.ends.items() if 0 < end <= now]


def plan_service_remove(name: str, state: State) -> Service:
    """The service, "removing". NotFoundError."""
    return replace(state.get(Service, name), phase=Phase.REMOVING)
