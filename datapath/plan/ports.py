# SPDX-License-Identifier: Apache-2.0
"""Published ports: which host port leads to which container port, and what it conflicts with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple

from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.model.containers import Container
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.observed import HostFacts
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping, parse_acl
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan.acls import refuse_acls, used_acls, with_acl, with_default_acls

# (protocol, host address or None for all, port) -> who of the host's own processes has it; None: nobody
PortInUse = Callable[[str, Address | None, int], str | None]
Holder = tuple[PortMapping, str]


class PortContext(NamedTuple):
    """What is needed to decide about host ports. `ephemeral`: the host's ip_local_port_range, inclusive.
    `suspects`: (protocol, first, last) -> those ports about which `in_use` has to be asked, ascending."""

    facts: HostFacts
    in_use: PortInUse
    ephemeral: tuple[int, int] = (32768, 60999)
    suspects: Callable[[str, int, int], Iterable[int]] = lambda proto, first, last: range(first, last + 1)


class PortPlan(NamedTuple):
    """The rows to write (those of `endpoints` are "changing"), and the mappings that are new or gone. `before`:
    the mapping whose ACL changed, as it was."""

    container: Container
    endpoints: tuple[Endpoint, ...]
    mappings: tuple[PortMapping, ...]
    before: PortMapping | None = None


def choose_ports(
    wanted: Iterable[PortMapping],
    egress: Sequence[Endpoint],
    state: State,
    context: PortContext,
    who: str,
    kind: str = "container",
) -> tuple[PortMapping, ...]:
    """The mappings with all host ports, and the numbers of their ACLs, decided. ExistsError names who has a
    port; ConfigError.

    `egress`: the endpoints with the default routes; the first one's network says where ports without a host
    address are published; there may be none on it. `who`: the name of the container, or whatever `kind` says.
    """
    if not traits(state.networks[egress[0].network_id]).published:
        return ()
    wanted = with_default_acls(wanted, egress, state)
    network = state.networks[egress[0].network_id]
    families = {version for endpoint in egress for version in endpoint.egress_families}
    holders = [*_holders(state)]
    acls = used_acls(state)
    decided: dict[int, tuple[PortMapping, ...]] = {}
    # Ports that were named come first, so that a chosen one never takes one that is named later.
    for index, mapping in sorted(enumerate(wanted), key=lambda item: not item[1].concrete):
        at = replace(mapping, host_ip=mapping.host_ip or network.host_binding)
        _check_host_ip(at, context.facts, families)
        at = with_acl(at, acls)
        decided[index] = tuple(_decide(at, holders, context))
        holders += [(one, f'{kind} "{who}"') for one in decided[index]]
    return tuple(mapping for index in sorted(decided) for mapping in decided[index])


def _holders(state: State) -> Iterator[Holder]:
    """Every published port of the host, and its holder as error messages name it."""
    for endpoint in state.endpoints.values():
        if endpoint.ports:
            holder = f'container "{state.holder_name(endpoint)}"'
            for mapping in endpoint.ports:
                yield mapping, holder
    for service in state.services.values():
        for mapping in service.ports:
            yield mapping, f'service "{service.name}"'


def _check_host_ip(mapping: PortMapping, facts: HostFacts, families: Collection[int]) -> None:
    address = mapping.host_ip
    if address is None:
        return
    if address.version not in families:
        raise ConfigError(
            f"cannot publish {mapping}: the container has no IPv{address.version} address that leads outside"
        )
    if address.version == 6 and address.is_link_local:
        raise ConfigError(f"cannot publish {mapping}: {address} means another device's on every device")
    if address.is_loopback or address.is_unspecified or facts.has(address):
        return
    raise ConfigError(f"cannot publish {mapping}: {address} is no address of this host")


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
    last = mapping.host_port + mapping.count - 1
    if mapping.shared:
        return None
    for port in context.suspects(mapping.proto, mapping.host_port, last):
        owner = context.in_use(mapping.proto, mapping.host_ip, port)
        if owner is not None:
            return port, owner
    return None


def _obstacle(mapping: PortMapping, holders: list[Holder], context: PortContext) -> str | None:
    """Why the mapping is not possible, as Docker puts it and with the holder's name; None if it is."""
    for other, holder in holders:
        if _conflict(mapping, other):
            port = max(mapping.host_port, other.host_port)
            return f"Bind for {_shown(mapping, str(port))} failed: port is already allocated (by {holder})"
    taken = _taken_on_host(mapping, context)
    if taken is not None:
        where = _shown(mapping, str(taken[0]))
        return f"Bind for {where} failed: address already in use (by {taken[1]})"
    return None


def why_not(mapping: PortMapping, state: State, in_use: PortInUse) -> str:
    """Why a mapping whose host ports are decided cannot be published on this host, and who has them; "": it can."""
    return _obstacle(mapping, [*_holders(state)], PortContext(HostFacts(), in_use)) or ""


def _shown(mapping: PortMapping, port: str) -> str:
    address = str(mapping.host_ip or "0.0.0.0")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# ---- on a running container -------------------------------------------------------------------------


def plan_port_add(name: str, spec: str, state: State, context: PortContext) -> PortPlan:
    """One more mapping for a running container. NotFoundError, ConfigError, ExistsError."""
    container = state.container(name)
    wanted = PortMapping.parse(spec)
    egress = _egress(container, state)
    chosen = choose_ports([wanted], egress, state, context, container.name)
    opened = {(port, m.proto) for m in chosen for _, _, port, _ in m.expand()}

    @functools.cache  # the endpoints usually have the container's
    def with_opened(exposed: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
        return tuple(sorted(opened.union(exposed)))

    return PortPlan(
        container=replace(
            container,
            published=(*container.published, wanted),
            ports=(*container.ports, *chosen),
            exposed=with_opened(container.exposed),
        ),
        endpoints=tuple(
            replace(
                endpoint,
                ports=(*endpoint.ports, *(m for m in chosen if endpoint.serves(m))),
                exposed=with_opened(endpoint.exposed),
                phase=Phase.CHANGING,
            )
            for endpoint in egress
        ),
        mappings=chosen,
    )


def plan_port_remove(name: str, what: str, state: State) -> PortPlan:
    """Without one mapping: its number in `port ls`, or what that shows. NotFoundError, ConfigError.

    A spec without host address matches whatever address it is published at.
    """
    container = state.container(name)
    egress = _egress(container, state)
    mapping = _find_mapping(container, what)
    ports = list(container.ports)
    ports.remove(mapping)
    wanted = list(container.published)
    source = next((w for w in wanted if _came_from(mapping, w)), None)
    if source is not None:
        wanted.remove(source)
    return PortPlan(
        container=replace(container, ports=tuple(ports), published=tuple(wanted)),
        endpoints=tuple(
            replace(endpoint, ports=tuple(m for m in endpoint.ports if m != mapping), phase=Phase.CHANGING)
            for endpoint in egress
        ),
        mappings=(mapping,),
    )


def plan_port_set(name: str, what: str, rules: str, state: State) -> PortPlan:
    """Another ACL for one mapping ("": everybody may connect), under a number of its own: it is written
    whole before the port leads to it. NotFoundError, ConfigError."""
    container = state.container(name)
    egress = _egress(container, state)
    mapping = _find_mapping(container, what)
    ports, _, behind = what.partition(",")
    if behind:  # without them the port would be open to everybody
        raise ConfigError(f"rules stand apart from the port: {quoted(ports)} {behind}")
    allow, deny = parse_acl(rules)
    refuse_acls([replace(mapping, allow=allow, deny=deny)], egress, state)
    changed = with_acl(replace(mapping, allow=allow, deny=deny), used_acls(state))
    wanted = tuple(
        replace(w, allow=allow, deny=deny) if _came_from(mapping, w) else w for w in container.published
    )

    def exchanged(ports: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
        return tuple(changed if m == mapping else m for m in ports)

    return PortPlan(
        container=replace(container, ports=exchanged(container.ports), published=wanted),
        endpoints=tuple(
            replace(endpoint, ports=exchanged(endpoint.ports), phase=Phase.CHANGING) for endpoint in egress
        ),
        mappings=(changed,),
        before=mapping,
    )


def _came_from(mapping: PortMapping, wanted: PortMapping) -> bool:
    same = (mapping.proto, mapping.container_port, mapping.count, mapping.allow, mapping.deny)
    if same != (wanted.proto, wanted.container_port, wanted.count, wanted.allow, wanted.deny):
        return False
    if wanted.host_ip not in (None, mapping.host_ip):
        return False
    return wanted.host_port <= mapping.host_port <= (wanted.host_port_last or wanted.host_port or 65535)


def _find_mapping(container: Container, what: str) -> PortMapping:
    if what.isascii() and what.isdigit() and len(what) <= 6:
        number = int(what)
        if not 1 <= number <= len(container.ports):
            raise NotFoundError(
                f"container {container.name} has no port mapping number {number}: {_meant(container, number)}"
            )
        return container.ports[number - 1]
    spec = PortMapping.parse(what).open
    found = [m for m in container.ports if m.open == spec]
    if not found and spec.host_ip is None:
        found = [m for m in container.ports if replace(m.open, host_ip=None) == spec]
    if not found:
        raise NotFoundError(f"container {container.name} has no port mapping {quoted(what)}")
    if len(found) > 1:
        listed = ", ".join(str(m) for m in found)
        raise ConfigError(f"{quoted(what)} may be each of {listed}: name the host address too")
    return found[0]


def _meant(container: Container, number: int) -> str:
    """What to say instead of a number that no mapping has: it may be a port."""
    for index, mapping in enumerate(container.ports, start=1):
        if number in (mapping.host_port, mapping.container_port):
            return (
                f'name it as "{replace(mapping.open, host_ip=None)}", or {index} (port ls {container.name})'
            )
    return f"`port ls {container.name}` shows the numbers"


def _egress(container: Container, state: State) -> tuple[Endpoint, ...]:
    """The endpoints that carry the container's ports, the IPv4 one first."""
    if container.shares:
        raise ConfigError("conflicting options: port publishing and the container type network mode")
    if container.network_mode == "host":
        raise ConfigError("ports cannot be published in host network mode: the host's are the container's")
    if not state.alive(container.sandbox_id):
        raise ConfigError(f"container {container.name} is not running")
    egress = egress_endpoints(state.endpoints_of_sandbox(container.sandbox_id))
    if not egress:
        raise ConfigError(
            f"ports of container {container.name} cannot be published: it is on no network that leads outside"
        )
    network = state.networks[egress[0].network_id]
    if not traits(network).published:
        raise ConfigError(
            f"ports of container {container.name} cannot be published: "
            f"on network {network.name} it is reached at its own address"
        )
    return egress


def egress_endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Those of a sandbox's endpoints that have a default route, the IPv4 one first."""
    return tuple(sorted((e for e in endpoints if e.gateway), key=lambda e: not e.gateway4))


def carried(mapping: PortMapping, endpoints: Iterable[Endpoint]) -> bool:
    """An endpoint of the container's sandbox has the port: without one it leads nowhere."""
    return any(mapping in endpoint.ports for endpoint in endpoints)


def shown(mapping: PortMapping, endpoints: Iterable[Endpoint]) -> tuple[PortMapping, ...]:
    """The mapping as Docker lists it: one that is published everywhere once for each family that the container
    is reached by. `endpoints`: of its sandbox; none of them: IPv4."""
    if mapping.host_ip is not None:
        return (mapping,)
    families = sorted({version for endpoint in endpoints for version in endpoint.egress_families}) or [4]
    return tuple(replace(mapping, host_ip=ip_address("0.0.0.0" if v == 4 else "::")) for v in families)


# ---- ports that the kernel must not choose -----------------------------------------------------------


def parse_reserved(text: str) -> frozenset[int]:
    """The ports of net.ipv4.ip_local_reserved_ports, as in "8080,9000-9010"."""
    ports: set[int] = set()
    for part in text.replace("\n", "").split(","):
        first, _, last = part.strip().partition("-")
        if first:
            ports.update(range(int(first), int(last or first) + 1))
    return frozenset(ports)


def reserved_text(ports: Iterable[int]) -> str:
    """The text of net.ipv4.ip_local_reserved_ports for the ports: ascending, neighbours joined to ranges."""
    ranges: list[list[int]] = []
    for port in sorted(ports):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
