# SPDX-License-Identifier: Apache-2.0
"""Who has names on a network, and which: endpoints of this host, and those on other hosts of a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from datapath.dataplane.structs import NameKey
from datapath.dataplane.wire_names import address_key, endpoint_key
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.host import HostNetwork
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.peers import Remote
from datapath.model.resolv import NameFacts, Server, servers
from datapath.model.rows import Phase, short
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan import backends


class Owner(NamedTuple):
    """Somebody on a network. `names`: what the others there call it, without the network; the first is what its
    addresses are called. `places`: the keys of the rows that say so."""

    names: tuple[str, ...]
    addresses: tuple[Address, ...]
    places: tuple[NameKey, ...]


class Told(NamedTuple):
    """What other hosts need to know of an endpoint to give it the names that it has here: fields of a `Remote`."""

    sandbox_id: str
    name: str
    hostname: str
    aliases: tuple[str, ...]


# ---- whether -------------------------------------------------------------------------------------------------------


def has_names(network: Network) -> bool:
    """Its members find each other by name now."""
    return network.built and network.named and traits(network).told


def is_told(endpoint: Endpoint, network: Network) -> bool:
    """The packet programs know the endpoint, once it is there. Where they answer questions only, one that was handed
    over has no device for these, nor one that was there before they did."""
    one = traits(network)
    return one.programs or (one.questions and endpoint.host_ifindex != 0)


def attached(endpoint: Endpoint) -> bool:
    """It is there."""
    return endpoint.phase in (Phase.READY, Phase.CHANGING)


def _served(endpoint: Endpoint) -> bool:
    """It is there, and names are our business: who moves the device into the sandbox himself (Docker) answers himself
    for what is asked in there, and says himself what the sandbox is called."""
    return attached(endpoint) and not endpoint.handed_over


def is_named(endpoint: Endpoint, state: State) -> bool:
    """The others on its network find it by name now."""
    network = state.networks[endpoint.network_id]
    if not _served(endpoint) or not has_names(network) or not is_told(endpoint, network):
        return False
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return bool(sandbox.key)
    container = state.containers.get(endpoint.sandbox_id)
    return container is not None and container.running


def asks(endpoint: Endpoint, state: State) -> bool:
    """Its questions are answered: somebody is there, on a network of the packet programs."""
    if not _served(endpoint) or not is_told(endpoint, state.networks[endpoint.network_id]):
        return False
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    if sandbox is not None and sandbox.foreign:
        return bool(sandbox.key)
    return state.alive(endpoint.sandbox_id)


def host_is_asked(state: State, facts: NameFacts, observed: HostNetwork) -> bool:
    """Questions may go to a name server of the host's own. What it answers comes by the host's loopback device."""

    def its_own(asked: Iterable[Server]) -> bool:
        return any(not one.device and observed.has(one.address) for one in asked)

    usual = its_own(facts.servers)
    for endpoint in state.endpoints.values():
        owner = state.containers.get(endpoint.sandbox_id)
        given = owner.dns if owner is not None else endpoint.dns
        if (its_own(servers(given)) if given else usual) and asks(endpoint, state):
            return True
    return False


# ---- which ---------------------------------------------------------------------------------------------------------


def told(endpoint: Endpoint, state: State) -> Told:
    """What the endpoint's names follow from, on any host. One that is handed over has none: its owner says himself
    what it is called."""
    if endpoint.handed_over:
        return Told("", "", "", ())
    container = state.containers.get(endpoint.sandbox_id)
    if container is not None:
        return Told(container.id, container.name, container.hostname, endpoint.aliases)
    sandbox = state.sandboxes.get(endpoint.sandbox_id)
    own = sandbox.hostnames if sandbox is not None and sandbox.foreign else ()
    return Told("", own[0] if own else "", "", (*own[1:], *endpoint.aliases))


def _names(sandbox_id: str, name: str, hostname: str, aliases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in (name, short(sandbox_id), hostname, *aliases) if one))


def addresses(endpoint: Endpoint) -> tuple[Address, ...]:
    """Those that its names resolve to."""
    return tuple(interface.ip for interface in (endpoint.ipv4, endpoint.ipv6) if interface is not None)


def owner_here(endpoint: Endpoint, scope: int, state: State) -> Owner:
    """An endpoint of this host; `scope`: its network's number."""
    place = endpoint_key(scope, endpoint.number)
    return Owner(_names(*told(endpoint, state)), addresses(endpoint), (place,))


def owner_elsewhere(remote: Remote, scope: int) -> Owner:
    """An endpoint on another host. The programs have no number for it: each address has a row."""
    names = _names(remote.sandbox_id, remote.name, remote.hostname, remote.aliases)
    found = tuple(address for address in (remote.ipv4, remote.ipv6) if address is not None)
    return Owner(names, found, tuple(address_key(scope, address) for address in found))


TASKS = "tasks."  # before a service's name: all of its backends


def service_place(service: Service, state: State) -> NameKey:
    """The key of the row that says what the service's addresses are called."""
    return endpoint_key(state.networks[service.network_id].number, service.number)


def service_names(service: Service) -> tuple[str, str]:
    """Its own, and that of all of its backends."""
    return service.name, f"{TASKS}{service.name}"


def service_owners(network: Network, state: State, among: Set[str] | None = None) -> Iterator[Owner]:
    """The services of a network that has names: by their own, and all of their backends. `among` as for `owners`."""
    for service in state.services_of_network(network.id):
        if among is not None and not _is_asked(service.name.lower(), among):
            continue
        if not backends.is_there(service):
            continue
        behind = tuple(address for one in backends.backends(service, state) for address in one.addresses)
        place = (service_place(service, state),) if service.vips else ()
        yield Owner((service.name,), service.vips or behind, place)
        yield Owner(service_names(service)[1:], behind, ())


def _is_asked(name: str, among: Set[str]) -> bool:
    return name in among or f"{TASKS}{name}" in among


def owners(network: Network, state: State, among: Set[str] | None = None) -> Iterator[Owner]:
    """Everybody who has names on a network that has some; `among`: one of these, in lower case. Other hosts may have
    many endpoints, of which few do."""
    services = {s.name.lower() for s in state.services_of_network(network.id) if backends.is_there(s)}
    for endpoint in state.endpoints_of_network(network.id):
        if is_named(endpoint, state):
            owner = _besides(owner_here(endpoint, network.number, state), services)
            if among is None or any(name.lower() in among for name in owner.names):
                yield owner
    for remote in state.remotes_of_network(network.id):
        if among is None or _is_called(remote, among):
            yield owner_elsewhere(remote, network.number)


def _besides(owner: Owner, services: Set[str]) -> Owner:
    """Without the names that are services': a container of a service's name is found by its others."""
    if not services:
        return owner
    return owner._replace(names=tuple(name for name in owner.names if name.lower() not in services))


def _is_called(remote: Remote, among: Set[str]) -> bool:
    return (
        remote.name.lower() in among
        or short(remote.sandbox_id) in among
        or remote.hostname.lower() in among
        or any(alias.lower() in among for alias in remote.aliases)
    )
