# SPDX-License-Identifier: Apache-2.0
"""Published ports: which host port leads to which container port, and who is in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.model import Address, Container, Endpoint, HostFacts, Network, PortMapping
from datapath.state import State

# (protocol, host address or None for all, port) -> who of the host's own processes has it; None: nobody
PortInUse = Callable[[str, Address | None, int], str | None]
Holder = tuple[PortMapping, str]


@dataclass(frozen=True, slots=True)
class PortContext:
    """What is needed to decide about host ports. `ephemeral`: the host's ip_local_port_range, inclusive."""

    facts: HostFacts
    in_use: PortInUse
    ephemeral: tuple[int, int] = (32768, 60999)


@dataclass(frozen=True, slots=True)
class PortPlan:
    """The rows to write, and the mappings that are new or gone."""

    container: Container
    endpoint: Endpoint
    mappings: tuple[PortMapping, ...]


def choose_ports(
    wanted: Iterable[PortMapping], network: Network, state: State, context: PortContext, who: str
) -> tuple[PortMapping, ...]:
    """The mappings with all host ports decided. ExistsError names who has a port; ConfigError.

    `network` says where ports without a host address are published; `who`: the container's name.
    """
    holders = [*_holders(state)]
    decided: dict[int, tuple[PortMapping, ...]] = {}
    # Ports that were named come first, so that a chosen one never takes one that is named later.
    for index, mapping in sorted(enumerate(wanted), key=lambda item: not item[1].concrete):
        at = replace(mapping, host_ip=mapping.host_ip or network.host_binding)
        _check_host_ip(at, context.facts)
        decided[index] = tuple(_decide(at, holders, context))
        holders += [(one, f'container "{who}"') for one in decided[index]]
    return tuple(mapping for index in sorted(decided) for mapping in decided[index])


def _holders(state: State) -> Iterator[Holder]:
    """Every published port of the host, and in words who has it."""
    for endpoint in state.endpoints.values():
        if endpoint.ports:
            container = state.holder(endpoint)
            words = f'container "{container.name}"' if container else "a container"
            for mapping in endpoint.ports:
                yield mapping, words


def _check_host_ip(mapping: PortMapping, facts: HostFacts) -> None:
    address = mapping.host_ip
    if address is None:
        return
    if address.version == 6:
        raise ConfigError(f"publishing at an IPv6 address is not available yet: {mapping}")
    if address.is_loopback or address.is_unspecified or address in facts.addresses:
        return
    raise ConfigError(f"cannot publish {mapping}: cannot assign requested address {address}")


def _decide(wanted: PortMapping, holders: list[Holder], context: PortContext) -> Iterator[PortMapping]:
    """One mapping, or several if the ports of a range are chosen one by one."""
    if wanted.concrete:
        problem = _obstacle(wanted, holders, context)
        if problem is not None:
            raise ExistsError(problem)
        yield wanted
        return
    if wanted.host_port_last:
        first, last = wanted.host_port, wanted.host_port_last
        none_free = f"Bind for {_shown(wanted, str(first))}-{last} failed: all ports are allocated"
    else:
        first, last = context.ephemeral
        none_free = f"no free port between {first} and {last} for {wanted}"
    whole = _first_free(wanted, wanted.count, range(first, last - wanted.count + 2), holders, context)
    if whole is not None:
        yield whole
        return
    holders = list(holders)
    for offset in range(wanted.count if wanted.count > 1 else 0):
        single = replace(wanted, container_port=wanted.container_port + offset, count=1)
        found = _first_free(single, 1, range(first, last + 1), holders, context)
        if found is None:
            raise ExistsError(none_free)
        holders.append((found, ""))
        yield found
    if wanted.count == 1:
        raise ExistsError(none_free)


def _first_free(
    wanted: PortMapping, count: int, ports: range, holders: list[Holder], context: PortContext
) -> PortMapping | None:
    """The mapping at the lowest of the ports where it and its `count - 1` successors are free."""
    port = ports.start
    while port < ports.stop:
        mapping = wanted.at(port, count)
        busy = next((h for h, _ in holders if _conflict(mapping, h)), None)
        if busy is not None:
            port = busy.host_port + busy.count
            continue
        taken = _taken_on_host(mapping, context)
        if taken is None:
            return mapping
        port = taken[0] + 1
    return None


def _conflict(one: PortMapping, two: PortMapping) -> bool:
    if one.proto != two.proto or not _same_address(one.host_ip, two.host_ip):
        return False
    return one.host_port < two.host_port + two.count and two.host_port < one.host_port + one.count


def _same_address(one: Address | None, two: Address | None) -> bool:
    """Two sockets could not both have the port at these addresses."""
    if one is None or two is None or one == two:
        return True
    return one.version == two.version and (one.is_unspecified or two.is_unspecified)


def _taken_on_host(mapping: PortMapping, context: PortContext) -> tuple[int, str] | None:
    for address, port, _, proto in mapping.expand():
        owner = context.in_use(proto, address, port)
        if owner is not None:
            return port, owner
    return None


def _obstacle(mapping: PortMapping, holders: list[Holder], context: PortContext) -> str | None:
    """Why the mapping is not possible, in Docker's words and with the holder's name; None if it is."""
    for other, words in holders:
        if _conflict(mapping, other):
            port = max(mapping.host_port, other.host_port)
            return f"Bind for {_shown(mapping, str(port))} failed: port is already allocated (by {words})"
    taken = _taken_on_host(mapping, context)
    if taken is not None:
        where = _shown(mapping, str(taken[0]))
        return f"Bind for {where} failed: address already in use (by {taken[1]})"
    return None


def _shown(mapping: PortMapping, port: str) -> str:
    return f"{mapping.host_ip or '0.0.0.0'}:{port}"


# ---- on a running container -------------------------------------------------------------------------


def plan_port_add(name: str, spec: str, state: State, context: PortContext) -> PortPlan:
    """One more mapping for a running container. NotFoundError, ConfigError, ExistsError."""
    container = state.container(name)
    wanted = PortMapping.parse(spec)
    endpoint = _gateway_endpoint(container, state)
    network = state.networks[endpoint.network_id]
    chosen = choose_ports([wanted], network, state, context, container.name)
    opened = {(port, m.proto) for m in chosen for _, _, port, _ in m.expand()}
    return PortPlan(
        container=replace(
            container,
            published=(*container.published, wanted),
            ports=(*container.ports, *chosen),
            exposed=tuple(sorted(opened.union(container.exposed))),
        ),
        endpoint=replace(
            endpoint,
            ports=(*endpoint.ports, *chosen),
            exposed=tuple(sorted(opened.union(endpoint.exposed))),
        ),
        mappings=chosen,
    )


def plan_port_remove(name: str, what: str, state: State) -> PortPlan:
    """Without one mapping: its number in `port ls`, or what that shows. NotFoundError, ConfigError.

    A spec without host address matches whatever address it is published at.
    """
    container = state.container(name)
    endpoint = _gateway_endpoint(container, state)
    mapping = _find_mapping(container, what)
    ports = list(container.ports)
    ports.remove(mapping)
    wanted = list(container.published)
    source = next((w for w in wanted if _came_from(mapping, w)), None)
    if source is not None:
        wanted.remove(source)
    return PortPlan(
        container=replace(container, ports=tuple(ports), published=tuple(wanted)),
        endpoint=replace(endpoint, ports=tuple(m for m in endpoint.ports if m != mapping)),
        mappings=(mapping,),
    )


def _came_from(mapping: PortMapping, wanted: PortMapping) -> bool:
    same = (mapping.proto, mapping.container_port, mapping.count)
    if same != (wanted.proto, wanted.container_port, wanted.count):
        return False
    return wanted.host_port <= mapping.host_port <= (wanted.host_port_last or wanted.host_port or 65535)


def _find_mapping(container: Container, what: str) -> PortMapping:
    if what.isascii() and what.isdigit() and len(what) <= 6:
        number = int(what)
        if not 1 <= number <= len(container.ports):
            raise NotFoundError(f"container {container.name} has no port mapping number {number}")
        return container.ports[number - 1]
    spec = PortMapping.parse(what)
    found = [m for m in container.ports if m == spec]
    if not found and spec.host_ip is None:
        found = [m for m in container.ports if replace(m, host_ip=None) == spec]
    if not found:
        raise NotFoundError(f"container {container.name} has no port mapping {quoted(what)}")
    if len(found) > 1:
        listed = ", ".join(str(m) for m in found)
        raise ConfigError(f"{quoted(what)} may be each of {listed}: name the host address too")
    return found[0]


def _gateway_endpoint(container: Container, state: State) -> Endpoint:
    """The endpoint that carries the container's ports."""
    if container.shares:
        raise ConfigError("conflicting options: port publishing and the container type network mode")
    if container.network_mode == "host":
        raise ConfigError("ports cannot be published in host network mode: the host's are the container's")
    if not state.alive(container.sandbox_id):
        raise ConfigError(f"container {container.name} is not running")
    endpoint = next((e for e in state.endpoints_of_sandbox(container.sandbox_id) if e.gateway4), None)
    if endpoint is None:
        raise ConfigError(
            f"ports of container {container.name} cannot be published: "
            "it is on no network with IPv4 that leads outside"
        )
    return endpoint
