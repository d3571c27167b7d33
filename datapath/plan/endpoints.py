# SPDX-License-Identifier: Apache-2.0
"""Endpoints: their addresses and names, which of them has the default routes, connect and disconnect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, NamedTuple

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, ExistsError, NotFoundError, quoted
from datapath.model.containers import Container
from datapath.model.drivers import spec_of, traits
from datapath.model.endpoints import Endpoint, EndpointRequest, Link
from datapath.model.networks import OPT_ENDPOINT_IFNAME, Network, Subnet, gateway_mac
from datapath.model.observed import HostFacts
from datapath.model.parsing import HOSTNAME, Address, parse_address, parse_mac
from datapath.model.peers import Remote
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import Fresh, State
from datapath.plan import endpoint_options, ipam, remotes
from datapath.plan.acls import refuse_acls
from datapath.plan.holders import format_holder
from datapath.plan.link_local import link_local_addresses
from datapath.plan.memberships import endpoint_memberships, refuse_shared_ports
from datapath.plan.networks import plan_default_bridge
from datapath.plan.plugins import lease, made_mac

SHARED_STACK = (
    "container sharing network namespace with another container or host "
    "cannot be connected to any other network"
)


PRIVATE_STACK = (
    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
)


class ConnectPlan(NamedTuple):
    """`network` first has to be built if it is not. `changed`: endpoints of the same sandbox that gain or
    lose a default route or the ports; already as they are to be. `warnings` are for the user."""

    container: Container
    network: Network
    endpoint: Endpoint
    changed: tuple[Endpoint, ...] = ()
    warnings: tuple[str, ...] = ()


class DisconnectPlan(NamedTuple):
    """`endpoint` is to go ("removing"); `changed` as in ConnectPlan."""

    container: Container
    network: Network
    endpoint: Endpoint
    changed: tuple[Endpoint, ...] = ()


def check_hostname(text: str, what: str, limit: int = 63) -> str:
    """A name that may stand in a hosts file. ConfigError."""
    if not HOSTNAME.fullmatch(text) or len(text) > limit:
        raise ConfigError(f"invalid {what}: {quoted(text)}")
    return text


def network_mtu(network: Network, facts: HostFacts) -> int:
    """Bytes of an IP packet on the network: its option, else what the host's default route takes."""
    return network.mtu or facts.default_mtu


def ready_network(network: Network, state: State, facts: HostFacts, config: DaemonConfig) -> Network:
    """The network with its addresses: the default one gets them when it is first used."""
    if network.name == "bridge" and network.predefined and not network.built:
        return plan_default_bridge(state, facts, config)
    return network


def plan_endpoint(
    request: EndpointRequest,
    network: Network,
    sandbox_id: str,
    name: str,
    state: State,
    fresh: Fresh,
    prefer: Sequence[str] = (),
) -> Endpoint:
    """A new endpoint of the sandbox on a bridge network. ConfigError, ExistsError.

    Gateway flags and ports are left to `assign_gateways`. `name` is that of the container, for messages. `prefer`:
    addresses to take if they are free.
    """
    if state.endpoint(sandbox_id, network.id) is not None:
        raise ExistsError(f"endpoint with name {name} already exists in network {network.name}")
    if not network.predefined:
        aliases = tuple(check_hostname(alias, "network alias", 253) for alias in request.aliases)
    elif request.aliases:
        raise ConfigError("network-scoped alias is supported only for containers in user defined networks")
    else:
        aliases = ()
    members = state.endpoints_of_network(network.id)
    prefer = fresh.allotted.get(network.id, ()) if network.spans else prefer
    options = endpoint_options.parse(request.driver_options, network.plugin)
    endpoint_options.refuse_limits(options, network)
    endpoint_options.refuse_forwarding(options, network)
    services = endpoint_memberships(options, network, state)
    ident = fresh.new_id()
    if network.leased:
        request, ipv4, ipv6 = lease(request, network, members, ident, name, fresh.plugins)
        static4, static6 = bool(request.ip), bool(request.ip6)
    else:
        ipv4, static4 = _address(4, request.ip, network, members, state, prefer)
        ipv6, static6 = _address(6, request.ip6, network, members, state, prefer)
    mac = _mac(request.mac, network, members, ipv4 or ipv6, state) or made_mac(ident)
    link_local = tuple(link_local_addresses(request.link_local_ips, mac, network, members, state))
    return Endpoint(
        id=ident,
        network_id=network.id,
        sandbox_id=sandbox_id,
        number=fresh.next_number(),
        slot=_lowest_free({member.slot for member in members}),
        ifname=ifname_in(network, {e.ifname for e in state.endpoints_of_sandbox(sandbox_id)}, options),
        host_ifname=_host_ifname(network, ident, state),
        mac=mac,
        ipv4=ipv4,
        ipv6=ipv6,
        aliases=aliases,
        links=parse_links(request.links, state, must_run=False),
        gw_priority=request.gw_priority,
        static4=static4,
        static6=static6,
        static_mac=bool(request.mac),
        driver_options=options,
        link_local=link_local,
        dns=tuple(str(parse_address(text, "IP address for dns")) for text in request.dns),
        services=services,
    )


def _lowest_free(used: set[int]) -> int:
    number = 0
    while number in used:
        number += 1
    return number


def require_addresses(network: Network, state: State) -> None:
    """There is an address for another member in each of the network's subnets. ConfigError: one has none."""
    members = [endpoint for endpoint in state.endpoints.values() if endpoint.network_id == network.id]
    for subnet in network.subnets:
        ipam.choose_address(subnet, holders_of(network, members, subnet.prefix.version, state))


def _holders(members: Iterable[Endpoint], version: int) -> dict[Address, Endpoint]:
    """Who has which address of that IP version."""
    return {
        interface.ip: member
        for member in members
        for interface in (member.ipv4, member.ipv6, *member.link_local)
        if interface is not None and interface.version == version
    }


def holders_of(
    network: Network, members: Iterable[Endpoint], version: int, state: State
) -> dict[Address, Endpoint | Remote | Service]:
    """Who has which address of that IP version: members, endpoints on other hosts, services."""
    holders: dict[Address, Endpoint | Remote | Service] = dict(remotes.addresses_elsewhere(network, state))
    services = state.services_of_network(network.id)
    holders |= {vip: service for service in services for vip in service.vips if vip.version == version}
    return holders | _holders(members, version)


def _address(
    version: int,
    text: str,
    network: Network,
    members: Sequence[Endpoint],
    state: State,
    prefer: Sequence[str],
) -> tuple[Any, bool]:
    """The new member's address of that family, as an interface address, and whether the user chose it."""
    subnet = network.subnet4 if version == 4 else network.subnet6
    holders = holders_of(network, members, version, state)
    if not text:
        if subnet is None:
            return None, False
        if network.spans:  # in turn with other hosts, and not by this one alone
            allotted = next(a for a in map(ip_address, prefer) if a.version == version)
            return _interface(allotted, subnet), False
        return _interface(ipam.choose_address(subnet, holders, prefer), subnet), False
    address = parse_address(text, f"IPv{version} address")
    if address.version != version or address.is_unspecified:
        raise ConfigError(f"invalid IPv{version} address: {quoted(text)}")
    if network.predefined:
        raise ConfigError("user specified IP address is supported on user defined networks only")
    if subnet is None:
        raise ConfigError(f"network {network.name} has no IPv{version}: {address} is not possible there")
    if not subnet.configured:
        raise ConfigError(
            "user specified IP address is supported only when connecting to networks "
            f"with user configured subnets: {network.name} has none (create it with --subnet)"
        )
    ipam.check_static(subnet, address)
    if address in holders:
        raise ExistsError(
            f"Address already in use: {address} belongs to {format_holder(holders[address], state)}"
        )
    return _interface(address, subnet), True


def _interface(address: Address, subnet: Subnet) -> IPv4Interface | IPv6Interface:
    return ip_interface((address.packed, subnet.prefix.prefixlen))


def _mac(
    text: str,
    network: Network,
    members: Sequence[Endpoint],
    interface: IPv4Interface | IPv6Interface | None,
    state: State,
) -> str:
    """ "": none was asked for, and there is no address that it would follow from."""
    holders: dict[str, Endpoint | Remote] = {r.mac: r for r in state.remotes_of_network(network.id)}
    holders |= {member.mac: member for member in members}
    gateway = "" if network.plugin else gateway_mac(network)
    if not text:
        return ipam.choose_mac(interface.ip, {*holders, gateway}) if interface else ""
    mac = parse_mac(text)
    if refusal := spec_of(network).refuses_mac:
        raise ConfigError(refusal)
    if mac == gateway:
        raise ConfigError(f"mac address {mac} is that of the network's gateway: choose another")
    if mac in holders:
        raise ExistsError(f"mac address {mac} is already used by {format_holder(holders[mac], state)}")
    return mac


def ifname_in(network: Network, used: Collection[str], options: Mapping[str, str]) -> str:
    """What an endpoint's device is called in a sandbox that has these devices of ours. ExistsError."""
    wanted = options.get(OPT_ENDPOINT_IFNAME, "")
    if wanted:
        if wanted in used:
            raise ExistsError(f"the container has a device {wanted} already")
        return wanted
    prefix = network.iface_prefix
    return next(name for i in range(len(used) + 1) if (name := f"{prefix}{i}") not in used)


def _host_ifname(network: Network, ident: str, state: State) -> str:
    """The kind of device and seven digits of the endpoint's id; if another endpoint has those, the next seven."""
    pair = traits(network).pair
    used = {endpoint.host_ifname for endpoint in state.endpoints.values()}
    return next(name for i in range(58) if (name := f"{pair}{ident[i : i + 7]}") not in used)


def parse_links(given: Iterable[str], state: State, *, must_run: bool) -> tuple[Link, ...]:
    """--link `container[:alias]`. NotFoundError, ConfigError."""
    links = []
    for text in given:
        name, colon, alias = text.partition(":")
        if not name or (colon and not alias) or ":" in alias:
            raise ConfigError(f"bad format for links: {quoted(text)}")
        alias = check_hostname(alias or name, "link alias", 253)
        server = state.find_container(name) or state.container(name)
        if must_run and not server.running:
            raise ConfigError(f"Cannot link to a non running container: /{server.name} AS /{alias}")
        links.append(Link(server.id, alias))
    return tuple(links)


# ---- egress --------------------------------------------------------------------------------------------


def plan_gateway_endpoint(
    endpoints: Iterable[Endpoint], state: State
) -> tuple[Endpoint | None, Endpoint | None]:
    """Which endpoints of one sandbox have its IPv4 and its IPv6 default route. Docker's order: highest
    gateway priority, more families, network name; internal networks have none. Where the default route is somebody
    else's they are those that publish ports."""

    def order(endpoint: Endpoint) -> tuple[bool, int, int, str]:
        families = (endpoint.ipv4 is not None) + (endpoint.ipv6 is not None)
        network = state.networks[endpoint.network_id]
        return network.beside, -endpoint.gw_priority, -families, network.name

    routed = [e for e in endpoints if not state.networks[e.network_id].internal]
    return (
        min((e for e in routed if e.leads(4)), key=order, default=None),
        min((e for e in routed if e.leads(6)), key=order, default=None),
    )


def assign_gateways(
    endpoints: Sequence[Endpoint], ports: tuple[PortMapping, ...], state: State
) -> tuple[Endpoint, ...]:
    """The endpoints of one sandbox with their default routes, and the published ports where these lead. Those that
    were handed over stay as their owner has said."""
    if any(endpoint.handed_over for endpoint in endpoints):
        return tuple(endpoints)
    gateway4, gateway6 = plan_gateway_endpoint(endpoints, state)
    routed = [replace(e, gateway4=e is gateway4, gateway6=e is gateway6) for e in endpoints]
    return tuple(
        replace(e, ports=tuple(m for m in ports if e.serves(m)))
        if traits(state.networks[e.network_id]).published
        else replace(e, ports=())
        for e in routed
    )


def _checked(endpoints: tuple[Endpoint, ...], state: State) -> tuple[Endpoint, ...]:
    """No port has moved to where its rules cannot be kept. ConfigError."""
    for endpoint in endpoints:
        refuse_acls(endpoint.ports, [endpoint], state)
    return endpoints


# ---- connect and disconnect ----------------------------------------------------------------------------


def plan_connect(
    name: str, request: EndpointRequest, state: State, facts: HostFacts, config: DaemonConfig, fresh: Fresh
) -> ConnectPlan:
    """`network connect` of a running container. NotFoundError, ConfigError, ExistsError."""
    container = state.container(name)
    network = state.network(request.network)
    like, spec = traits(network), spec_of(network)
    if container.shares or (container.network_mode == "host" and not like.host_stack):
        raise ConfigError(SHARED_STACK)
    if like.host_stack:
        raise ConfigError(spec.refuses_connect)
    if container.network_mode == "none":
        raise ConfigError(PRIVATE_STACK)
    if not like.endpoints:
        raise ConfigError(spec.refuses_connect)
    if not container.running:
        raise ConfigError(f"container {container.name} is not running")
    network = ready_network(network, state, facts, config)
    state = state.including(network)
    sandbox_id = container.sandbox_id
    endpoint = plan_endpoint(request, network, sandbox_id, container.name, state, fresh)
    endpoint = replace(endpoint, exposed=container.exposed)
    refuse_shared_ports(container, (endpoint,), state)
    before = state.endpoints_of_sandbox(sandbox_id)
    *others, endpoint = _checked(assign_gateways((*before, endpoint), container.ports, state), state)
    asked = replace(request, network=network.id)
    return ConnectPlan(
        container=replace(container, networks=(*container.networks, asked)),
        network=network,
        endpoint=endpoint,
        changed=tuple(new for old, new in zip(before, others, strict=True) if new != old),
    )


def plan_disconnect(network_name: str, name: str, state: State, force: bool = False) -> DisconnectPlan:
    """`network disconnect`. NotFoundError, ConfigError. `force`: also the endpoint of a container that has
    ended while others still share its stack."""
    network = state.network(network_name)
    container = state.container(name)
    if traits(network).host_stack:
        raise ConfigError(spec_of(network).refuses_disconnect)
    endpoint = None if container.shares else state.endpoint(container.sandbox_id, network.id)
    if endpoint is None and force:
        endpoint = state.endpoint(container.id, network.id)
    if endpoint is None:
        raise NotFoundError(f"container {container.name} is not connected to network {network.name}")
    before = [e for e in state.endpoints_of_sandbox(endpoint.sandbox_id) if e.id != endpoint.id]
    after = _checked(assign_gateways(before, container.ports, state), state)
    return DisconnectPlan(
        container=replace(
            container, networks=tuple(asked for asked in container.networks if asked.network != network.id)
        ),
        network=network,
        endpoint=replace(endpoint, phase=Phase.REMOVING),
        changed=tuple(new for old, new in zip(before, after, strict=True) if new != old),
    )
