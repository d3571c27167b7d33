# SPDX-License-Identifier: Apache-2.0
"""What networks, links and published ports say of who may talk to whom, as policies; and the rows as a world. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from datapath.model.endpoints import Endpoint
from datapath.model.host import HostNetwork
from datapath.model.networks import Network
from datapath.model.parsing import PORT_PROTOCOLS, Address, Prefix
from datapath.model.policies import (
    Layer,
    Member,
    Policy,
    PortScope,
    PublishedPort,
    Rule,
    Rules,
    Selector,
    World,
)
from datapath.model.ports import PortMapping
from datapath.model.state import State

_ALL = {4: ip_address("0.0.0.0"), 6: ip_address("::")}


def world_of(state: State, host: Iterable[Address], lan: Iterable[Prefix]) -> World:
    """Whom policies can be about, of the rows. `host`: its own addresses, those of gateways too; `lan`: the prefixes on
    the links of its outside devices."""
    members = [_member(endpoint, state) for endpoint in state.endpoints.values()]
    for number, remote in enumerate(state.remotes.values(), 1):
        network = state.networks[remote.network_id].name
        identity = (remote.name, remote.labels, remote.addresses, remote.sandbox_id, bool(remote.name))
        members.append(Member(-number, network, *identity, here=False))
    published = [port for endpoint in state.endpoints.values() for port in _published(endpoint)]
    return World(tuple(members), tuple(host), tuple(lan), tuple(published))


def world_here(state: State, host: HostNetwork) -> World:
    """The same with the host's own addresses, and the prefixes on the links of its outside devices."""
    outside = {uplink.ifindex for uplink in host.uplinks}
    lan = (one.interface.network for one in host.addresses if one.ifindex in outside)
    return world_of(state, host.ips, tuple(dict.fromkeys(lan)))


def _member(endpoint: Endpoint, state: State) -> Member:
    """One whose owner tells no name is not known by its labels either: they may be missing."""
    holder = state.holder(endpoint)
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    name = holder.name if holder else sandbox.name if sandbox else ""
    labels = holder.labels if holder else sandbox.labels if sandbox else {}
    addresses = tuple(interface.ip for interface in (endpoint.ipv4, endpoint.ipv6) if interface)
    network = state.networks[endpoint.network_id].name
    return Member(endpoint.number, network, name, labels, addresses, endpoint.sandbox_id, bool(name))


def _published(endpoint: Endpoint) -> Iterator[PublishedPort]:
    for mapping in endpoint.ports:
        for version in set(mapping.families) & set(endpoint.egress_families):
            for address, port, _, protocol in mapping.expand():
                yield PublishedPort(address or _ALL[version], PORT_PROTOCOLS[protocol], port, endpoint.number)


def builtin_policies(state: State) -> tuple[Policy, ...]:
    """icc=false, --link and --internal of networks, allow= and deny= of published ports."""
    return tuple(
        policy
        for network in state.networks.values()
        for policy in (*_of_network(network), *_links(network, state), *_of_ports(network, state))
    )


def _of_network(network: Network) -> Iterator[Policy]:
    members = Selector(network=network.name)
    if not network.icc:
        yield _built(f"(network {network.name})", members, Rules(allow=()), "DROP_ICC", among=network.name)
    if network.internal:
        egress = Rules(deny=(Rule(Selector("outside"), number=1),))
        name = f"(internal {network.name})"
        yield Policy(name, members, egress=egress, layer=Layer.BUILTIN, reason="DROP_INTERNAL")


def _links(network: Network, state: State) -> Iterator[Policy]:
    """A link opens the server's exposed ports to every container that runs in the client's sandbox."""
    if network.icc:
        return
    for client in state.endpoints_of_network(network.id):
        owner = state.containers.get(client.sandbox_id)
        for link in (*(owner.links if owner else ()), *client.links):
            target = state.containers.get(link.server)
            server = state.endpoint(target.sandbox_id, network.id) if target else None
            if target is None or server is None:
                continue
            ports: dict[str, list[tuple[int, int]]] = defaultdict(list)
            for port, protocol in server.exposed:
                ports[protocol].append((port, port))
            peer = Selector(ident=client.sandbox_id, network=network.name)
            allow = tuple(
                Rule(peer, tuple(sorted(some)), protocol, number)
                for number, (protocol, some) in enumerate(ports.items(), 1)
            )
            subject = Selector(ident=server.sandbox_id, network=network.name)
            name = f"(link {state.holder_name(client)} {target.name} {network.name})"
            yield _built(name, subject, Rules(allow=allow), "DROP_ICC", among=network.name)


def _of_ports(network: Network, state: State) -> Iterator[Policy]:
    for endpoint in state.endpoints_of_network(network.id):
        for mapping in endpoint.ports:
            if mapping.acl_text:
                protocol = PORT_PROTOCOLS[mapping.proto]
                last = mapping.host_port + mapping.count - 1
                scope = PortScope(protocol, mapping.host_port, last, mapping.host_ip)
                subject = Selector(ident=endpoint.sandbox_id, network=network.name)
                yield _built(f"(port {mapping.open})", subject, acl_rules(mapping), "DROP_DENIED", scope)


def acl_rules(mapping: PortMapping) -> Rules:
    """Of an ACL the longest prefix decides: each is without those of the other kind that are in it."""
    deny = [Rule(_without(prefix, mapping.allow), number=n) for n, prefix in enumerate(mapping.deny, 1)]
    first = len(deny) + 1
    allow = [Rule(_without(prefix, mapping.deny), number=n) for n, prefix in enumerate(mapping.allow, first)]
    return Rules(tuple(deny), tuple(allow) if allow else None)


def _without(prefix: Prefix, others: Iterable[Prefix]) -> Selector:
    inner = [p for p in others if p.version == prefix.version and p.network_address in prefix and p != prefix]
    return Selector(prefix=prefix, excepted=tuple(p for p in inner if p.prefixlen > prefix.prefixlen))


def _built(
    name: str,
    subject: Selector,
    ingress: Rules,
    reason: str,
    published: PortScope | None = None,
    among: str = "",
) -> Policy:
    return Policy(
        name, subject, ingress, published=published, among=among, layer=Layer.BUILTIN, reason=reason
    )
