# SPDX-License-Identifier: Apache-2.0
"""The rows of the maps about names: what each name resolves to, and what each endpoint's questions are answered with.
Pure.

Members of a network find each other by the container's name, its short id, its hostname and its aliases there, each
also with ".NETWORK" behind it, and the network's domain if it has one; all of an endpoint's addresses are the
container's name with the network's. Names are there as long as the container runs. Of a network of several hosts those
on others have their names here, too. A service's name is its virtual address's, or where it has none its backends', and
`tasks.` before it always theirs. Records are rendered here, as they are sent (RFC 1035).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple

from datapath.dataplane.name_owners import (
    Owner,
    addresses,
    asks,
    attached,
    has_names,
    is_named,
    owner_elsewhere,
    owner_here,
    owners,
    service_names,
    service_owners,
    service_place,
)
from datapath.dataplane.structs import (
    LongNameKey,
    NameKey,
    NameSetKey,
    NameSetValue,
    NameValue,
    ResolverKey,
    ResolverValue,
    RrsetValue,
    SubnetKey,
    SubnetValue,
    UpstreamValue,
)
from datapath.dataplane.wire_names import AAAA, PTR, A, Key, name_key, record, set_id, wire
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint, Link
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.peers import Remote
from datapath.model.resolv import MAX_SERVERS, NameFacts, Server, servers
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan import backends

_IN_ROW = 48  # bytes of records in a name's own row
_IN_SET = 1020  # and in a row of `name_sets`
_LONGEST = 255  # bytes of a record, as its set has a byte for that
SCOPE_ENDPOINT = 0x80000000  # enum name_scope of abi.h
_MAX_NETWORKS = 16  # in struct resolver

# What is known of one name: by type the data of its records.
Data = dict[int, dict[bytes, None]]


class NameRows(NamedTuple):
    """Rows of `names`, `long_names`, `name_sets` and `resolvers`."""

    names: dict[NameKey, NameValue]
    long_names: dict[LongNameKey, NameValue]
    name_sets: dict[NameSetKey, NameSetValue]
    resolvers: dict[ResolverKey, ResolverValue]


class Touched(NamedTuple):
    """What rows may be about sandboxes, or endpoints on other hosts: names as text, the keys of names and of who has
    addresses, and the numbers of endpoints."""

    texts: frozenset[str]
    keys: frozenset[Key]
    endpoints: frozenset[int]

    @property
    def sets(self) -> frozenset[NameSetKey]:
        """The rows of `name_sets` that these names may have."""
        return frozenset(NameSetKey(set_id(key, kind)) for key in self.keys for kind in (A, AAAA, PTR))


# ---- names as they are asked for ---------------------------------------------------------------------------------


def _texts(names: Iterable[str], network: Network) -> Iterator[str]:
    """The names as they are asked for: by themselves, and with the network's or its domain behind them."""
    for name in names:
        yield name.lower()
        yield f"{name}.{network.name}".lower()
        if network.domain:
            yield f"{name}.{network.domain}".lower()


def _keys(scope: int, texts: Iterable[str], touched: Touched | None = None) -> Iterator[Key]:
    """Of those that can be asked for, and are among what is touched."""
    for text in texts:
        if touched is None or text in touched.texts:
            key = name_key(scope, text)
            if key is not None:
                yield key


# ---- rows ------------------------------------------------------------------------------------------------------


def name_rows(state: State, facts: NameFacts, touched: Touched | None = None) -> NameRows:
    """All rows that there have to be; `touched`: those of them that are among these."""
    found: dict[Key, Data] = {}
    networks = {network.id: network for network in state.networks.values() if has_names(network)}
    scopes = None if touched is None else {key.scope for key in touched.keys}
    for network in networks.values():
        if scopes is None or network.number in scopes:
            for owner in owners(network, state, _bare(network, touched)):
                _add(found, network, owner, touched)
            for owner in service_owners(network, state, _bare(network, touched)):
                _add(found, network, owner, touched)
    if scopes is None or any(scope & SCOPE_ENDPOINT for scope in scopes):
        for sandbox_id in state.sandboxes:
            scope = private_scope(sandbox_id, state)
            if scope and (scopes is None or scope in scopes):
                for client in state.endpoints_of_sandbox(sandbox_id):
                    if client.network_id in networks:
                        _add_links(found, scope, client, networks[client.network_id], state, touched)
    rows = NameRows({}, {}, {}, {})
    for key, data in found.items():
        value = _rendered(key, data, facts.ttl, rows.name_sets)
        if isinstance(key, NameKey):
            rows.names[key] = value
        else:
            rows.long_names[key] = value
    for endpoint in state.endpoints.values():
        if (touched is None or endpoint.number in touched.endpoints) and asks(endpoint, state):
            rows.resolvers[ResolverKey(endpoint.number)] = resolver_entry(endpoint.sandbox_id, state, facts)
    return rows


def _bare(network: Network, touched: Touched | None) -> set[str] | None:
    """What somebody is called, without the network, of whose names one is touched; None: all are."""
    if touched is None:
        return None
    names = set(touched.texts)
    for suffix in filter(None, (network.name, network.domain)):
        end = f".{suffix}".lower()
        names |= {text.removesuffix(end) for text in touched.texts}
    return names - {""}


def _add(found: dict[Key, Data], network: Network, owner: Owner, touched: Touched | None) -> None:
    """The names of one member, and what its addresses are called."""
    for key in _keys(network.number, _texts(owner.names, network), touched):
        _add_addresses(found.setdefault(key, {}), owner.addresses)
    target = next(filter(None, (wire(f"{name}.{network.name}") for name in owner.names)), b"")
    for place in owner.places:
        if target and (touched is None or place in touched.keys):
            found[place] = {PTR: {target: None}}


def _add_links(
    found: dict[Key, Data],
    scope: int,
    client: Endpoint,
    network: Network,
    state: State,
    touched: Touched | None,
) -> None:
    """What --link calls the containers that are linked to, on one network of the client's."""
    for link in _links(client, state):
        target = state.containers.get(link.server)
        server = state.endpoint(target.sandbox_id, network.id) if target else None
        if server is not None and is_named(server, state):
            for key in _keys(scope, _texts((link.alias,), network), touched):
                _add_addresses(found.setdefault(key, {}), addresses(server))


def _add_addresses(data: Data, found: Iterable[Address]) -> None:
    for address in found:
        data.setdefault(A if address.version == 4 else AAAA, {})[address.packed] = None


def _links(endpoint: Endpoint, state: State) -> tuple[Link, ...]:
    owner = state.containers.get(endpoint.sandbox_id)
    return (*(owner.links if owner else ()), *endpoint.links)


def private_scope(sandbox_id: str, state: State) -> int:
    """That of the names which only this sandbox sees; 0: it has none."""
    endpoints = state.endpoints_of_sandbox(sandbox_id)
    if any(_links(endpoint, state) for endpoint in endpoints):
        return SCOPE_ENDPOINT | endpoints[0].number
    return 0


def _rendered(key: Key, data: Data, ttl: int, sets: dict[NameSetKey, NameSetValue]) -> NameValue:
    """The row of a name; records that it has no room for go to `sets`. Of more addresses than fit those are left out
    that came last."""
    kept, rrsets, inside = [], [], b""
    for kind in sorted(data):
        records = [one for one in (record(kind, ttl, item) for item in data[kind]) if len(one) <= _LONGEST]
        if kind == PTR:
            records = records[:1]
        if not records:
            continue
        size = len(records[0])
        if len(records) == 1 and len(inside) + size <= _IN_ROW:
            kept.append(0)
            rrsets.append(RrsetValue(kind, 1, size))
            inside += records[0]
            continue
        records = records[: _IN_SET // (2 * size)] if len(records) > 1 else records
        ident, twice = set_id(key, kind), 2 if len(records) > 1 else 1
        sets[NameSetKey(ident)] = NameSetValue(len(records), size, b"".join(records) * twice)
        kept.append(ident)
        rrsets.append(RrsetValue(kind, len(records), size))
    return NameValue(tuple(kept), tuple(rrsets), inside)


def resolver_entry(sandbox_id: str, state: State, facts: NameFacts) -> ResolverValue:
    """What questions of a sandbox's endpoints are answered with: of each the same."""
    endpoints = [e for e in state.endpoints_of_sandbox(sandbox_id) if attached(e)]
    endpoints.sort(key=lambda e: _order(e, state))
    owner = state.containers.get(sandbox_id)
    networks = [state.networks[e.network_id] for e in endpoints]
    numbers = tuple(network.number for network in networks if has_names(network))
    given = owner.dns if owner is not None else tuple(one for e in endpoints for one in e.dns)
    asked = servers(given) if given else facts.servers
    return ResolverValue(
        numbers[:_MAX_NETWORKS],
        private_scope(sandbox_id, state),
        _egress(endpoints, state),
        tuple(_upstreams(asked, networks, facts.links)),
    )


def _order(endpoint: Endpoint, state: State) -> tuple[int, bool, int, str]:
    """The order in which Docker looks through a sandbox's networks."""
    network = state.networks[endpoint.network_id]
    families = (endpoint.ipv4 is not None) + (endpoint.ipv6 is not None)
    return -endpoint.gw_priority, network.internal, -families, network.name


def _egress(endpoints: list[Endpoint], state: State) -> int:
    """The network by whose routes a sandbox's questions leave: that of its default route, if the packet programs
    know it."""
    ways = sorted(endpoints, key=lambda e: (not e.gateway4, not e.gateway6, _order(e, state)))
    networks = (state.networks[endpoint.network_id] for endpoint in ways)
    return next((n.number for n in networks if traits(n).told and not n.internal), 0)


def _upstreams(
    asked: Iterable[Server], networks: list[Network], links: Mapping[str, int]
) -> Iterator[UpstreamValue]:
    """Those of the servers that can be asked. One in a subnet of the sandbox's networks is a member of that."""
    programs = [network for network in networks if traits(network).programs]
    for one in tuple(asked)[:MAX_SERVERS]:
        if one.device and one.device not in links:
            continue
        member = next((n.number for n in programs if not one.device and _in_subnet(one.address, n)), 0)
        yield UpstreamValue(one.address, member, links[one.device] if one.device else 0)


def _in_subnet(address: Address, network: Network) -> bool:
    return any(
        address in subnet.prefix for subnet in network.subnets if subnet.prefix.version == address.version
    )


def subnet_entries(networks: Iterable[Network]) -> dict[SubnetKey, SubnetValue]:
    """`subnets` of these networks: who has an address in there is asked of nobody else. Others than members have
    addresses of the host's links too."""
    return {
        SubnetKey(
            prefix.prefixlen + (96 if prefix.version == 4 else 0),
            None if prefix.network_address == IPv6Address(0) else prefix.network_address,
        ): SubnetValue(network.number)
        for network in networks
        if not traits(network).lan
        for prefix in (subnet.prefix for subnet in network.subnets)
    }


# ---- what changes ----------------------------------------------------------------------------------------------


class _Touching:
    """Gathers what is touched."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._keys: set[Key] = set()

    def add(self, scope: int, names: Iterable[str], network: Network) -> None:
        found = list(_texts(names, network))
        self._texts.update(found)
        self._keys.update(_keys(scope, found))

    def add_owner(self, owner: Owner, network: Network) -> None:
        self.add(network.number, owner.names, network)
        self._keys.update(owner.places)

    def add_place(self, place: NameKey) -> None:
        self._keys.add(place)

    def all(self, endpoints: Iterable[int] = ()) -> Touched:
        return Touched(frozenset(self._texts), frozenset(self._keys), frozenset(endpoints))


def touched(sandbox_ids: Collection[str], *states: State) -> Touched:
    """What rows may be about these sandboxes, whatever has become of them in any of the states."""
    found, numbers = _Touching(), set[int]()
    for state in states:
        for sandbox_id in {*sandbox_ids, *_clients(sandbox_ids, state)}:
            scope = private_scope(sandbox_id, state)
            for endpoint in state.endpoints_of_sandbox(sandbox_id):
                network = state.networks[endpoint.network_id]
                found.add(scope, (link.alias for link in _links(endpoint, state)), network)
                if sandbox_id in sandbox_ids:
                    numbers.add(endpoint.number)
                    found.add_owner(owner_here(endpoint, network.number, state), network)
        for service in backends.touched(sandbox_ids, state).values():
            found.add(*_service_names(service, state))
    return found.all(numbers)


def touched_services(services: Iterable[Service], *states: State) -> Touched:
    """What rows may be about these services, as they are in any of the states."""
    found = _Touching()
    for state in states:
        for service in services:
            found.add(*_service_names(service, state))
            found.add_place(service_place(service, state))
    return found.all()


def _service_names(service: Service, state: State) -> tuple[int, tuple[str, ...], Network]:
    network = state.networks[service.network_id]
    return network.number, service_names(service), network


def touched_elsewhere(remotes: Iterable[Remote], *states: State) -> Touched:
    """What rows may be about these endpoints on other hosts, as their networks are in any of the states."""
    found, rows = _Touching(), list(remotes)
    for networks in {id(state.networks): state.networks for state in states}.values():
        for remote in rows:
            network = networks.get(remote.network_id)
            if network is not None:
                found.add_owner(owner_elsewhere(remote, network.number), network)
    return found.all()


def _clients(sandbox_ids: Collection[str], state: State) -> set[str]:
    """The sandboxes that have links to containers of these."""

    def leads(links: tuple[Link, ...]) -> bool:
        targets = (state.containers.get(link.server) for link in links)
        return any(target is not None and target.sandbox_id in sandbox_ids for target in targets)

    by_containers = {c.sandbox_id for c in state.containers.values() if c.links and leads(c.links)}
    return by_containers | {e.sandbox_id for e in state.endpoints.values() if e.links and leads(e.links)}
