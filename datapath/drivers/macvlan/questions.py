# SPDX-License-Identifier: Apache-2.0
"""How members of macvlan networks ask for names: by a pair of devices each, beside their macvlan device, at whose other
end the packet programs are. Nothing else passes there, so what members send each other and the link costs nothing more
(docs/decisions/0052).

The programs know a member by its pair, with the addresses that its macvlan device has. A member that has none, as it
was handed over or is older than this, asks whom it will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv6Interface

from datapath.dataplane.structs import LinkKey, LinkValue
from datapath.drivers.context import Context
from datapath.drivers.ebpf.driver import EbpfBridge
from datapath.drivers.macvlan.spec import MACVLAN_SPEC, parent
from datapath.model.drivers import traits
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network

_MTU = 1500  # bytes of an IP packet: where the parent has gone


def _of_network(network: Network) -> Network:
    """As the packet programs have it."""
    return replace(network, device=MACVLAN_SPEC.gateway_device(network))


def _of_endpoint(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, ifname=MACVLAN_SPEC.resolver_device(endpoint))


class Questions:
    """The part of the driver that has to do with the packet programs."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._bridge = EbpfBridge(context)

    def create(self, network: Network, members: tuple[Endpoint, ...] = ()) -> None:
        """The network's gateway device, for programs of this version: others would let anything pass there."""
        if traits(network).questions and not self.context.dataplane.outdated:
            self._bridge.create_network(_of_network(network), self._mtu(network), members)

    def update(self, network: Network, members: tuple[Endpoint, ...]) -> None:
        """Makes the device again, if it is gone and there are members who ask by it; tells the programs what has
        changed."""
        if not traits(network).questions or not any(member.host_ifindex for member in members):
            return
        if not self._is_there(network):
            self.rebuild(network, members)
        else:
            self._bridge.update_network(_of_network(network), members, None, lambda endpoint: None)

    def rebuild(self, network: Network, members: tuple[Endpoint, ...]) -> None:
        """Takes away what there is, and makes it again."""
        self.delete(network)
        self.create(network, members)
        for member in members:
            self.restore(network, member)

    def delete(self, network: Network) -> None:
        """All of it but the pairs."""
        if traits(network).questions:
            self._bridge.delete_network(_of_network(network))

    def join(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint:
        """The pair of an endpoint whose device is in the sandbox. The endpoint, with the index of the host's end."""
        if not traits(network).questions or endpoint.handed_over or self.context.dataplane.outdated:
            return endpoint
        if not self._is_there(network):  # it is of a version without
            self.create(network)
        made = self._bridge.create_endpoint(
            _of_network(network), _of_endpoint(endpoint), self._mtu(network), sandbox
        )
        found = replace(endpoint, host_ifindex=made.host_ifindex)
        try:
            self._set_up(network, endpoint, sandbox)
        except BaseException:
            self.leave(network, found)
            raise
        return found

    def _set_up(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        """The sandbox's end. Where there is no IPv4, questions have a neighbour of IPv6 for their next hop."""
        bare = endpoint.ipv4 is None and endpoint.linklocal is not None
        own = [IPv6Interface((endpoint.linklocal, 64))] if bare and endpoint.linklocal else []
        device = MACVLAN_SPEC.resolver_device(endpoint)
        self.context.links.configure(sandbox, device, own, ipv6=bare)

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        """Tells the programs of an endpoint whose pair is there."""
        if traits(network).questions and endpoint.host_ifindex:
            self._bridge.restore(_of_network(network), _of_endpoint(endpoint))

    def leave(self, network: Network, endpoint: Endpoint) -> None:
        """Takes the pair away, and what the programs know of it."""
        if traits(network).questions:
            self._bridge.delete_endpoint(_of_network(network), _of_endpoint(endpoint))

    def open_links(self, network: Network, links: Mapping[LinkKey, LinkValue]) -> None:
        """What may pass between members that may not talk to each other else."""
        if links and self.context.loaded is not None:
            self._bridge.open_links(network, links)

    def _is_there(self, network: Network) -> bool:
        index = self.context.links.index(MACVLAN_SPEC.gateway_device(network))
        return index is not None and self.context.dataplane.networks[network.number].ifindex == index

    def _mtu(self, network: Network) -> int:
        return self.context.links.mtu(parent(network)) or _MTU
