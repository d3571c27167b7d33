# SPDX-License-Identifier: Apache-2.0
"""Addresses of networks of several hosts: chosen and claimed for an endpoint before it is made, released when it is
gone, and owed while the cluster's store is away.

The endpoint's row is written before its address is claimed, so that a command that is killed leaves no address that
nobody knows of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import TYPE_CHECKING

from datapath.engine import cluster, joining, spanning, telling
from datapath.engine.telling import remote_of, supersede
from datapath.engine.transaction import Transaction
from datapath.errors import ConfigError, NotFoundError, StateError
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network, gateway_mac, mac_for
from datapath.model.parsing import Interface
from datapath.model.peers import Owed
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan import ipam

if TYPE_CHECKING:
    from datapath.cluster.allotment import Known
    from datapath.store.cluster import Cluster


# ---- before an endpoint is planned ---------------------------------------------------------------


def prepare(tx: Transaction, asked: Iterable[EndpointRequest], before: Sequence[str] = ()) -> None:
    """Makes networks known here that only the cluster knows, and chooses an address on each that spans hosts. `before`:
    addresses to take if they are free. What is wrong with a name the plan says, if there is no cluster."""
    for request in asked:
        network = _network(tx, request.network)
        if network is None or not network.spans:
            continue
        try:
            tx.allotted[network.id] = _allot(tx, network, request, before)
        except NotFoundError as gone:  # there may be another one of that name by now
            if network.id in tx.state.networks:
                raise
            try:
                network = spanning.adopt(tx, request.network)
            except NotFoundError:
                raise gone from None
            tx.allotted[network.id] = _allot(tx, network, request, before)


def _network(tx: Transaction, name: str) -> Network | None:
    """None: it is no network, or the plan is to say why not."""
    if name.startswith("container:"):
        return None
    with suppress(NotFoundError):
        return tx.state.network(name)
    if not tx.link.configured:
        return None
    return spanning.adopt(tx, name)


def _allot(
    tx: Transaction, network: Network, request: EndpointRequest, before: Sequence[str]
) -> tuple[str, ...]:
    """An address of each family that the user has not chosen one of."""
    from datapath.cluster.allotment import choose, choose_offline

    me = tx.state.installation_id
    try:
        what = f"network {network.name}"
        store = tx.link.store(what)
        with store.within(joining.SHORTLY if _reserve(tx, network) else joining.PATIENCE):
            joining.joined(tx, what)
            cluster.settle(tx, store)
            spanning.update(tx, store, [network.id])
    except StateError as error:
        tx.link.away = error
    known, prefer = known_of(tx.state, network), [ip_address(text) for text in before]
    found = []
    for subnet in network.subnets:
        version = subnet.prefix.version
        if request.ip if version == 4 else request.ip6:
            continue
        if tx.link.away is None:
            choice = choose(network, me, known, version, prefer=prefer)
            found.append(str(choice.address))
        else:
            with _naming(tx.link.away):
                found.append(str(choose_offline(network, me, known, version, prefer=prefer)))
    return tuple(found)


def _reserve(tx: Transaction, network: Network) -> bool:
    """This host has addresses that it can give without the store."""
    return any(b.peer == tx.state.installation_id for b in tx.state.blocks_of_network(network.id))


@contextmanager
def _naming(away: StateError) -> Iterator[None]:
    """What cannot be done without the store is refused with why that could not be asked."""
    try:
        yield
    except ConfigError as error:
        raise StateError(f"{error} ({away})") from error


def known_of(state: State, network: Network, without: Iterable[str] = ()) -> Known:
    """What this host knows of the network's addresses. `without`: ids of endpoints of its own that claim one yet."""
    from datapath.cluster.allotment import Known

    own = [e for e in state.endpoints_of_network(network.id) if e.id not in without]
    found = Known.of(state.blocks_of_network(network.id), state.remotes_of_network(network.id), own)
    for service in state.services_of_network(network.id):
        for vip in service.vips:
            found = found.using(vip, service.id)
    return found


# ---- an endpoint that is being made --------------------------------------------------------------


def claim(tx: Transaction, *planned: Endpoint) -> tuple[Endpoint, ...]:
    """Claims the addresses of endpoints whose rows are written, and of which nothing else is there yet; the endpoints
    with what they have got, which is another address if another host was faster. ExistsError, ConfigError: an address
    that the user asks for is taken, or another host's; StateError: the store is away, and it is not of the reserve."""
    found = tuple(_claim(tx, endpoint) for endpoint in planned)
    tx.commit(*(new for new, old in zip(found, planned, strict=True) if new != old), durable=False)
    if any(tx.state.networks[endpoint.network_id].spans for endpoint in planned):
        joining.advise(tx)
    return found


def _claim(tx: Transaction, endpoint: Endpoint) -> Endpoint:
    network = tx.state.networks[endpoint.network_id]
    if not network.spans:
        return endpoint
    from datapath.cluster import addresses
    from datapath.cluster.commit import ForgottenError

    static = [a.ip for a, wanted in _own(endpoint) if wanted]
    known = known_of(tx.state, network, (endpoint.id,))
    if tx.link.away is None:
        store = tx.link.store(f"network {network.name}")
        names = {peer.id: peer.name for peer in tx.state.peers.values()}
        try:
            with store.within(joining.PATIENCE):
                claimed = addresses.claim(
                    *(store, tx.state.installation_id, network, known),
                    lambda v4, v6: remote_of(_having(endpoint, network, v4, v6), tx.state),
                    wanted=static,
                    prefer=[a.ip for a, _ in _own(endpoint)],
                    names=names,
                )
        except addresses.UnsettledError as error:
            tx.commit(*(Owed(key) for key in error.keys))
            raise
        except ForgottenError:
            raise  # its reserve may be another host's by now
        except StateError as error:
            tx.link.away = error
        else:
            cluster.follow(tx, cluster.News(claimed.blocks))
            return _having(endpoint, network, claimed.remote.ipv4, claimed.remote.ipv6)
    return _claim_later(tx, endpoint, network, known)


def _claim_later(tx: Transaction, endpoint: Endpoint, network: Network, known: Known) -> Endpoint:
    """Of this host's own reserve, whatever was planned while the store could still be asked; it is told when it is
    back."""
    from datapath.cluster import owed
    from datapath.cluster.allotment import choose_offline

    assert tx.link.away is not None
    me, v4, v6 = tx.state.installation_id, None, None
    for interface, static in _own(endpoint):
        wanted, prefer = (interface.ip, []) if static else (None, [interface.ip])
        with _naming(tx.link.away):
            chosen = choose_offline(network, me, known, interface.version, wanted, prefer)
        if isinstance(chosen, IPv4Address):
            v4 = chosen
        else:
            v6 = chosen
    endpoint = _having(endpoint, network, v4, v6)
    claims = owed.claims(remote_of(endpoint, tx.state))
    tx.commit(*(Owed(key, value) for key, value in claims.items()), durable=False)
    return endpoint


def _own(endpoint: Endpoint) -> list[tuple[Interface, bool]]:
    """Its addresses, and whether the user has chosen them."""
    both = ((endpoint.ipv4, endpoint.static4), (endpoint.ipv6, endpoint.static6))
    return [(address, static) for address, static in both if address is not None]


def _having(endpoint: Endpoint, network: Network, v4: IPv4Address | None, v6: IPv6Address | None) -> Endpoint:
    """The endpoint with these addresses; its MAC address follows them, if it did."""
    lead, first = (endpoint.ipv4 or endpoint.ipv6), v4 or v6
    mac = endpoint.mac
    if lead is not None and first is not None and mac == mac_for(lead.ip):
        mac = ipam.choose_mac(first, {gateway_mac(network)})
    subnet4, subnet6 = network.subnet4, network.subnet6
    ipv4 = IPv4Interface((v4, subnet4.prefix.prefixlen)) if v4 and subnet4 else None
    ipv6 = IPv6Interface((v6, subnet6.prefix.prefixlen)) if v6 and subnet6 else None
    return replace(endpoint, ipv4=ipv4, ipv6=ipv6, mac=mac)


# ---- an endpoint that changes or goes ------------------------------------------------------------


def renew(tx: Transaction, members: Iterable[Endpoint], before: State) -> None:
    """Tells the other hosts what these endpoints are called now. `before`: the rows as they were."""
    for endpoint in members:
        if not tx.state.networks[endpoint.network_id].spans or endpoint.phase == Phase.REMOVING:
            continue
        old, new = remote_of(endpoint, before), remote_of(tx.state.endpoints[endpoint.id], tx.state)
        if old != new:
            telling.renew(tx, old, new)


def release(tx: Transaction, endpoint: Endpoint) -> tuple[Owed, ...]:
    """The addresses of an endpoint that is gone here may be given again; what is owed, to be written with its end."""
    network = tx.state.networks[endpoint.network_id]
    if not network.spans or not traits(network).endpoints:
        return ()
    from datapath.cluster import addresses, owed

    remote = remote_of(endpoint, tx.state)
    if tx.link.away is None:
        try:
            store = tx.link.store("an endpoint's end")
            with store.within(joining.SHORTLY):
                addresses.release(store, remote)
                _give_back(tx, store, network, endpoint)
            supersede(tx, owed.releases(remote))
            return ()
        except ConfigError as error:  # daemon.json names the store no more
            tx.link.away = StateError(str(error))
        except StateError as error:
            tx.link.away = error
    return tuple(Owed(key, value) for key, value in owed.releases(remote).items())


def _give_back(tx: Transaction, store: Cluster, network: Network, gone: Endpoint) -> None:
    """The other hosts may have what this one has no use for any more, without the endpoint. What is gone from its rows
    and not from the store when it is killed in between, it has again when it lists what is there."""
    from datapath.cluster import addresses, members
    from datapath.cluster.allotment import Known, spare_blocks

    me, blocks = tx.state.installation_id, tx.state.blocks_of_network(network.id)
    own = [one for one in tx.state.endpoints_of_network(network.id) if one.id != gone.id]
    kept = 1 if own or not members.is_draining(store, me) else 0
    spare = spare_blocks(me, Known.of(blocks, endpoints=own), kept)
    if spare:
        cluster.follow(tx, cluster.News(gone=tuple(block for block in blocks if block.prefix in spare)))
        addresses.release_blocks(store, me, network.id, spare)
