# SPDX-License-Identifier: Apache-2.0
"""The rows that the packet programs' maps have to contain, as tuples of `structs`. Pure.

The function that makes rows is called like the map that they are for: network_entry → networks, and so on.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, NamedTuple

from datapath.dataplane.layout import LIMIT_DIRECTIONS, ROLE_FORWARDING, NetworkFlag
from datapath.dataplane.structs import (
    NO_MAC,
    AclKey,
    BindingKey,
    DeviceKey,
    DeviceValue,
    EndpointKey,
    EndpointValue,
    HostRoutedKey,
    LimitKey,
    LimitValue,
    LinkKey,
    LinkValue,
    MemberKey,
    MemberValue,
    NetworkValue,
    OriginKey,
    OriginValue,
    PortKey,
    PortValue,
    ReservedKey,
    RouterKey,
    SubnetValue,
)
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import VEPA, Network, gateway_mac, has_flows
from datapath.model.parsing import PORT_PROTOCOLS, Address
from datapath.model.ports import PortMapping
from datapath.model.resolv import RESOLVER
from datapath.model.services import Service
from datapath.model.state import State

# All of the host's addresses of a family; the zero address, which is also `::`, is None.
EVERY4, EVERY6 = IPv4Address("0.0.0.0"), None
_LONGEST = 2**62  # ns: behind any clock, and nothing that is added to it leaves 64 bits
_MAPPED = IPv6Network("::ffff:0:0/96")


class PortRange(NamedTuple):
    """`length` rows whose keys are `key` and its successors by port. A value's port goes up with the key's."""

    key: Any
    value: Any
    length: int


class PortRanges(Mapping[Any, Any]):
    """Rows as ranges of ports, so that ten thousand of them can be packed as one."""

    def __init__(self, ranges: Iterable[PortRange]) -> None:
        self.ranges = tuple(ranges)

    @functools.cached_property
    def _rows(self) -> dict[Any, Any]:
        return dict(pair for port_range in self.ranges for pair in _expanded(port_range))

    def __getitem__(self, key: Any) -> Any:
        return self._rows[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _expanded(port_range: PortRange) -> Iterator[tuple[Any, Any]]:
    key, value, length = port_range
    for i in range(length):
        up = value._replace(port=value.port + i) if isinstance(value, PortValue | OriginValue) else value
        yield key._replace(port=key.port + i), up


class EndpointEntries(NamedTuple):
    """The rows of one endpoint in `devices`, `endpoints`, `members`, `routers` and `limits`."""

    device: tuple[DeviceKey, DeviceValue]
    endpoints: dict[EndpointKey, EndpointValue]
    member: tuple[MemberKey, MemberValue]
    routers: dict[RouterKey, EndpointValue]
    limits: dict[LimitKey, LimitValue]


def network_entry(
    network: Network,
    endpoints: Iterable[Endpoint],
    ifindex: int,
    mtu: int,
    linklocal: IPv6Address | None = None,
) -> tuple[int, NetworkValue]:
    """Index and value in `networks`. `endpoints` are its members, `ifindex` is its gateway device."""
    lan = traits(network).lan  # the gateway's address is somebody else's
    flags: dict[NetworkFlag, bool] = {
        "NETWORK_ACTIVE": True,
        "NETWORK_IPV4": network.subnet4 is not None,
        "NETWORK_IPV6": network.subnet6 is not None,
        "NETWORK_ICC": network.icc,
        "NETWORK_INTERNAL": network.internal and not network.parent,
        "NETWORK_MASQUERADE": network.masquerade and not lan,
        "NETWORK_RESOLVER": network.resolver != RESOLVER,
        "NETWORK_BESIDE": network.beside,
        "NETWORK_HOST_ROUTED": bool(network.host_routed),
        "NETWORK_OVERLAY": bool(network.vni),
        "NETWORK_LAN": lan,
        "NETWORK_VEPA": network.flag == VEPA,
        "NETWORK_L3": network.routed,
        "NETWORK_QUESTIONS": traits(network).questions,
        "NETWORK_FLOWS": has_flows(network),
    }
    subnet4, subnet6 = network.subnet4, network.subnet6
    broadcast = subnet4.prefix.broadcast_address if subnet4 and subnet4.prefix.prefixlen < 31 else None
    return network.number, NetworkValue(
        flags=frozenset(name for name, wanted in flags.items() if wanted),
        ifindex=ifindex,
        slots=max((endpoint.slot for endpoint in endpoints), default=-1) + 1,
        mtu=mtu,
        broadcast=broadcast if isinstance(broadcast, IPv4Address) else None,
        mac=gateway_mac(network),
        gateway4=subnet4.gateway if subnet4 and not lan else None,
        gateway6=subnet6.gateway if subnet6 and not lan else None,
        gateway_linklocal=linklocal,
    )


def host_routed_entries(network: Network) -> dict[HostRoutedKey, SubnetValue]:
    """`host_routed` of the network: what its members reach by way of the host's stack."""
    value = SubnetValue(network.number)
    return {
        HostRoutedKey(
            32 + prefix.prefixlen + (96 if prefix.version == 4 else 0),
            network.number,
            None if prefix.network_address == IPv6Address(0) else prefix.network_address,
        ): value
        for prefix in network.host_routed
    }


def gateway_device(network: Network, ifindex: int) -> tuple[DeviceKey, DeviceValue]:
    """The network's gateway device in `devices`."""
    return DeviceKey(ifindex), DeviceValue("DEVICE_GATEWAY", network.number, mac=gateway_mac(network))


def endpoint_entries(network: Network, endpoint: Endpoint) -> EndpointEntries:
    """The rows that make the endpoint a member of its network; its link-local address has one where there is IPv6."""
    addr4 = endpoint.ipv4.ip if endpoint.ipv4 else None
    addr6 = endpoint.ipv6.ip if endpoint.ipv6 else None
    linklocal = endpoint.linklocal if endpoint.ipv6 else None
    index, number, mac = endpoint.host_ifindex, endpoint.number, endpoint.mac
    forwarding, limits = ROLE_FORWARDING * endpoint.forwarding, limit_entries(endpoint)
    limited = sum(key.direction for key in limits)
    device = DeviceValue(
        kind="DEVICE_ENDPOINT",
        network=network.number,
        endpoint=number,
        mac=mac,
        addr4=addr4,
        addr6=addr6,
        linklocal=linklocal,
        forwarding=forwarding,
        limited=limited,
    )
    value = EndpointValue(ifindex=index, number=number, mac=mac, forwarding=forwarding, limited=limited)
    addresses = [addr4, addr6, linklocal, *(also.ip for also in endpoint.link_local)]
    return EndpointEntries(
        device=(DeviceKey(ifindex=index), device),
        endpoints={
            EndpointKey(network=network.number, addr=address): value
            for address in addresses
            if address is not None
        },
        member=(
            MemberKey(network=network.number, slot=endpoint.slot),
            MemberValue(ifindex=index, endpoint=number),
        ),
        routers={
            RouterKey(network=network.number, endpoint=0, mac=mac): value,
            RouterKey(network=network.number, endpoint=number, mac=NO_MAC): value,
        }
        if endpoint.forwarding
        else {},
        limits=limits,
    )


def limit_entries(endpoint: Endpoint) -> dict[LimitKey, LimitValue]:
    """`limits` of the endpoint. The burst is the time in which its rate fills the bucket, ns."""
    return {
        LimitKey(endpoint.number, LIMIT_DIRECTIONS[limit.direction]): LimitValue(
            limit.rate, min(limit.burst * 10**9 // limit.rate, _LONGEST)
        )
        for limit in endpoint.limits
    }


def port_entries(
    network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping] | None = None
) -> PortRanges:
    """`ports` of the endpoint, or of these of its mappings only: of each IP version that leaves by this endpoint."""
    return PortRanges(_port_ranges(network, endpoint, endpoint.ports if mappings is None else mappings))


def _port_ranges(
    network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping]
) -> Iterator[PortRange]:
    for mapping in mappings:
        proto, default_deny = PORT_PROTOCOLS[mapping.proto], int(bool(mapping.allow))
        for address, target in _published_at(endpoint, mapping):
            value = PortValue(
                network=network.number,
                endpoint=endpoint.number,
                acl=mapping.acl,
                addr=target,
                port=mapping.container_port,
                default_deny=default_deny,
                shared=int(mapping.shared),
            )
            yield PortRange(PortKey(addr=address, port=mapping.host_port, proto=proto), value, mapping.count)


def _published_at(endpoint: Endpoint, mapping: PortMapping) -> Iterator[tuple[Address | None, Address]]:
    """The host's address and the endpoint's, of each IP version that leaves by this endpoint."""
    targets = {4: endpoint.ipv4, 6: endpoint.ipv6}
    for version in mapping.families:
        target = targets[version]
        if target is None or version not in endpoint.egress_families:
            continue
        address = mapping.host_ip
        if address is None or address.is_unspecified:
            address = EVERY4 if version == 4 else EVERY6
        yield address, target.ip


def origin_entries(endpoint: Endpoint, mappings: Iterable[PortMapping] | None = None) -> PortRanges:
    """`origins` of the endpoint, or of these of its mappings only, and of those for the same ports of the container.
    Of several host ports for one port the first counts, so it comes last."""
    concerned = endpoint.ports if endpoint.host_ifname else ()  # a service sends nothing itself
    if mappings is not None:
        wanted = tuple(mappings)
        concerned = tuple(m for m in concerned if any(_share_port(m, other) for other in wanted))
    return PortRanges(
        PortRange(
            OriginKey(address, endpoint.number, mapping.container_port, PORT_PROTOCOLS[mapping.proto]),
            OriginValue(mapping.host_port),
            mapping.count,
        )
        for mapping in reversed(concerned)
        for address, _ in _published_at(endpoint, mapping)
    )


def _share_port(one: PortMapping, other: PortMapping) -> bool:
    """Do both lead to one port of the container?"""
    first = max(one.container_port, other.container_port)
    last = min(one.container_port + one.count, other.container_port + other.count)
    return one.proto == other.proto and first < last


def acl_entries(mappings: Iterable[PortMapping]) -> dict[AclKey, int]:
    """Rows of `acls` for the mappings' allow= and deny= prefixes: 1 may connect, 0 may not."""
    result: dict[AclKey, int] = {}
    for mapping in mappings:
        for prefixes, allow in ((mapping.allow, 1), (mapping.deny, 0)):
            for prefix in prefixes:
                length = 32 + prefix.prefixlen + (96 if prefix.version == 4 else 0)
                address = None if prefix.network_address == IPv6Address(0) else prefix.network_address
                result[AclKey(prefixlen=length, acl=mapping.acl, addr=address)] = allow
                if isinstance(prefix, IPv6Network) and _MAPPED.subnet_of(prefix):
                    # In the map it covers IPv4 too, which was not meant: that keeps what it has without.
                    result.setdefault(_every4(mapping), int(not mapping.allow))
    # A rule for all of IPv4 goes before what only stands in for it.
    for mapping in mappings:
        for prefixes, allow in ((mapping.allow, 1), (mapping.deny, 0)):
            if any(prefix.version == 4 and not prefix.prefixlen for prefix in prefixes):
                result[_every4(mapping)] = allow
    return result


def _every4(mapping: PortMapping) -> AclKey:
    """All of IPv4 in the mapping's rules: a prefix of 96 bits of an IPv6 address, after the 32 of `acl`."""
    return AclKey(prefixlen=32 + 96, acl=mapping.acl, addr=EVERY4)


def number_entries(state: State, mappings: Iterable[PortMapping] | None = None) -> PortRanges:
    """`reserved` and `bindings`: which numbers of the host's ports are taken; only the numbers of these mappings if
    given, and then 0 for a row that has to go."""
    asked = None if mappings is None else tuple(mappings)
    return PortRanges((*reserved_entries(state, asked).ranges, *binding_entries(state, asked).ranges))


def reserved_entries(state: State, mappings: Collection[PortMapping] | None = None) -> PortRanges:
    """`reserved`: how many published ports of the host use each number."""
    published = _published(state, mappings)
    asked = published if mappings is None else list(mappings)
    return PortRanges(
        run
        for name, proto in PORT_PROTOCOLS.items()
        for run in _counted_runs(
            ReservedKey(0, proto),
            [mapping for mapping in asked if mapping.proto == name],
            [mapping for mapping in published if mapping.proto == name],
        )
    )


def binding_entries(state: State, mappings: Collection[PortMapping] | None = None) -> PortRanges:
    """`bindings`: how many of them use it at every address of a family, and how many at single ones; without those
    that the host's sockets may have too."""
    published = [mapping for mapping in _published(state, mappings) if not mapping.shared]
    asked = published if mappings is None else list(mappings)

    def of(mappings: list[PortMapping], name: str, family: int, every: int) -> list[PortMapping]:
        found = (m for m in mappings if m.proto == name and family in m.families)
        return [m for m in found if (m.host_ip is None or m.host_ip.is_unspecified) == bool(every)]

    return PortRanges(
        run
        for name, proto in PORT_PROTOCOLS.items()
        for family, every in itertools.product((4, 6), (0, 1))
        for run in _counted_runs(
            BindingKey(0, proto, family, every),
            of(asked, name, family, every),
            of(published, name, family, every),
        )
    )


def _published(state: State, asked: Collection[PortMapping] | None = None) -> list[PortMapping]:
    """All that is published, or what of it is between the numbers asked about; not by linuxbridge networks."""
    told = (e for e in state.endpoints.values() if traits(state.networks[e.network_id]).programs)
    holders: tuple[Endpoint | Service, ...] = (*told, *state.services.values())
    if asked is None:
        return [mapping for one in holders for mapping in one.ports]
    first = min((mapping.host_port for mapping in asked), default=0)
    end = max((mapping.host_port + mapping.count for mapping in asked), default=0)
    return [m for one in holders for m in one.ports if m.host_port < end and m.host_port + m.count > first]


def _counted_runs(key: Any, asked: list[PortMapping], published: list[PortMapping]) -> Iterator[PortRange]:
    """How many of the published use each number that is asked about: between two neighbouring ends of ranges the
    count is the same."""
    changes, wanted = _ends(published), _ends(asked)
    count = inside = 0
    for first, end in itertools.pairwise(sorted({*changes, *wanted})):
        count += changes[first]
        inside += wanted[first]
        if inside:
            yield PortRange(key._replace(port=first), count, end - first)


def _ends(mappings: list[PortMapping]) -> Counter[int]:
    """+1 where a range of host ports begins, -1 behind its last one."""
    ends = Counter(mapping.host_port for mapping in mappings)
    ends.subtract(mapping.host_port + mapping.count for mapping in mappings)
    return ends


def link_entries(network: Network, state: State) -> dict[LinkKey, LinkValue]:
    """`links` of a network whose members may not talk to each other: what --link opens. Else nothing.

    A link opens the server's exposed ports to every container that runs in the client's sandbox.
    """
    result: dict[LinkKey, LinkValue] = {}
    if network.icc:
        return result
    for client in state.endpoints_of_network(network.id):
        owner = state.containers.get(client.sandbox_id)
        for link in (*(owner.links if owner else ()), *client.links):
            target = state.containers.get(link.server)
            server = state.endpoint(target.sandbox_id, network.id) if target else None
            if server is not None:
                result.update(_opened(client, server))
    return result


def _opened(client: Endpoint, server: Endpoint) -> dict[LinkKey, LinkValue]:
    both = ((client.ipv4, server.ipv4), (client.ipv6, server.ipv6))
    pairs = [(one.ip, other.ip) for one, other in both if one and other]
    value = LinkValue(client=client.number, server=server.number)
    return {
        LinkKey(client=source, server=target, port=port, proto=PORT_PROTOCOLS[proto]): value
        for source, target in pairs
        for port, proto in server.exposed
    }
