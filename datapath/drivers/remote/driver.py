# SPDX-License-Identifier: Apache-2.0
"""Networks whose driver is a plugin: each step is a request to it, and what it answers to Join is carried out.

As in Docker what is to be made fails with the plugin, and what is to be taken away does not: that a plugin refuses it,
or is away, is a warning. The plugin is told again in the order of Docker: RevokeExternalConnectivity, Leave, the device
comes back to the host, DeleteEndpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from datapath.dataplane.entries import PortRanges
from datapath.dataplane.structs import AclKey
from datapath.drivers.base import Driver, JoinInfo, Repair
from datapath.drivers.comparison import Comparison
from datapath.drivers.context import Context
from datapath.drivers.inside.driver import addresses
from datapath.drivers.remote import words
from datapath.drivers.remote.requests import Requests
from datapath.drivers.remote.spec import PLUGIN
from datapath.errors import DatapathError, NotSupportedError, PluginError
from datapath.kernel import given
from datapath.kernel.links import Links
from datapath.model.drivers import Scope
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.networks import OPT_ENDPOINT_IFNAME, Network
from datapath.model.ports import PortMapping


class Remote(Driver):
    """Any plugin's."""

    spec = PLUGIN

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._requests = Requests(context)

    # ---- networks ------------------------------------------------------------------------

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        more: Mapping[str, str] = {}
        if network.scope == Scope.GLOBAL:  # what a swarm's manager asks for all hosts together
            answer = self._requests.attempt(network, "AllocateNetwork", words.allocate_network(network))
            more = words.allocated_options(answer)
            self._requests.tell(
                network, "DiscoverNew", words.discovery(_address(self.context)), missing_ok=True
            )
        self._requests.call(network, "CreateNetwork", words.create_network(network, more))

    def delete_network(self, network: Network) -> None:
        self._requests.tell(network, "DeleteNetwork", {"NetworkID": network.id})
        if network.scope == Scope.GLOBAL:
            self._requests.tell(network, "FreeNetwork", {"NetworkID": network.id}, missing_ok=True)

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        plugins, fields = self.context.plugins, words.create_endpoint(network, endpoint)
        plugins.programmed[endpoint.id] = None
        plugins.deleted.discard(endpoint.id)
        answer = self._requests.call(network, "CreateEndpoint", fields)
        with ExitStack() as undo:
            undo.callback(self.delete_endpoint, network, endpoint, sandbox)
            try:
                made = replace(words.created(answer, endpoint), joined=None)
            except DatapathError as error:
                self._requests.fail(fields)
                raise PluginError(f"plugin {network.driver}: CreateEndpoint: {error}") from None
            undo.pop_all()
        return made

    def join(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint:
        fields = {
            **words.both(network, endpoint),
            "SandboxKey": sandbox,
            "Options": words.port_options(endpoint),
        }
        answer = self._requests.call(network, "Join", fields)
        try:
            joined, prefix = words.joined(answer)
        except DatapathError as error:
            raise PluginError(f"plugin {network.driver}: its answer to Join is wrong: {error}") from None
        endpoint = replace(endpoint, joined=joined)
        with ExitStack() as undo:
            if joined.source:
                endpoint = self._take(network, endpoint, sandbox, prefix, undo)
            else:
                self.context.links.loopback_up(sandbox)
            endpoint = self._routed(network, endpoint, sandbox)
            undo.pop_all()
        self._requests.tell(network, "EndpointOperInfo", words.both(network, endpoint), missing_ok=True)
        return endpoint

    def _take(
        self, network: Network, endpoint: Endpoint, sandbox: str, prefix: str, undo: ExitStack
    ) -> Endpoint:
        """Moves the device that the plugin has made into the sandbox."""
        assert endpoint.joined is not None
        source = endpoint.joined.source
        if source in self.context.ours():
            raise PluginError(
                f"plugin {network.driver}: its answer to Join names device {source}, which is not its own"
            )
        if self.context.links.index(source) is None:
            raise PluginError(
                f"plugin {network.driver}: its answer to Join names device {source}, which is not there"
            )
        if OPT_ENDPOINT_IFNAME in endpoint.driver_options:
            ifname = endpoint.ifname
        else:
            ifname = given.free_name(sandbox, prefix or network.iface_prefix)
        undo.callback(self._give_back, network, source, ifname, sandbox)
        self.context.links.move(source, sandbox, ifname)
        mac = given.prepare(sandbox, ifname, endpoint.mac if endpoint.static_mac else "")
        endpoint = replace(endpoint, ifname=ifname, mac=mac)
        self.context.links.configure(
            *(sandbox, ifname, addresses(endpoint)),
            ipv6=endpoint.ipv6 is not None,
            sysctls=endpoint.sysctls,
        )
        return endpoint

    def _routed(self, network: Network, endpoint: Endpoint, sandbox: str) -> Endpoint:
        """With the routes of Join: those on link first, as others' next hops may be behind them."""
        assert endpoint.joined is not None
        device = endpoint.ifname if endpoint.joined.source else ""
        routes = sorted(endpoint.joined.routes, key=lambda route: route.next_hop is not None)
        given.add_routes(sandbox, device, [(route.destination, route.next_hop) for route in routes])
        if endpoint.gateway:
            self.set_routes(network, endpoint, sandbox)
        return endpoint

    def join_info(self, network: Network, endpoint: Endpoint, mtu: int) -> JoinInfo:
        if endpoint.joined is None:
            raise NotSupportedError(f"endpoints of driver {network.driver} that somebody else moves")
        return JoinInfo(
            source="",
            ifname=endpoint.ifname,
            mac=endpoint.mac,
            addresses=tuple(addresses(endpoint)),
            gateway4=endpoint.joined.gateway4 if endpoint.gateway4 else None,
            gateway6=endpoint.joined.gateway6 if endpoint.gateway6 else None,
            mtu=mtu,
            sysctls=endpoint.sysctls,
        )

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        if endpoint.id in self.context.plugins.deleted:
            return  # the command is taken back, and has done so at once
        self.context.plugins.deleted.add(endpoint.id)
        if endpoint.gateway:
            self._revoke(network, endpoint)
        self._requests.tell(network, "Leave", words.both(network, endpoint))
        if endpoint.joined is not None and endpoint.joined.source and sandbox is not None:
            self._give_back(network, endpoint.joined.source, endpoint.ifname, sandbox)
        self._requests.tell(network, "DeleteEndpoint", words.both(network, endpoint))

    def _give_back(self, network: Network, source: str, ifname: str, sandbox: str) -> None:
        """The device is on the host again, as the plugin has made it, before that is told to delete it."""
        try:
            with Links(sandbox) as inside:
                given.give_back(inside, ifname, source)
        except DatapathError as error:
            self.context.warn(f"device {source} of network {network.name}: {error}")

    # ---- the way out -----------------------------------------------------------------------

    def set_routes(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        links = self.context.links
        for version in (4, 6):
            hop = endpoint.joined.gateway(version) if endpoint.joined else None
            if version in endpoint.egress_families and hop is not None:
                links.set_gateway(sandbox, endpoint.ifname, hop)
            elif endpoint.joined is not None and endpoint.joined.source:
                links.remove_gateway(sandbox, endpoint.ifname, version)
        if endpoint.gateway:
            self._program(network, endpoint, endpoint.ports)
        else:
            self._revoke(network, endpoint)

    def publish(
        self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...], reserved: PortRanges
    ) -> None:
        self._program(network, endpoint, endpoint.ports)

    def unpublish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: PortRanges,
        acls: frozenset[int],
    ) -> None:
        self._revoke(network, endpoint)
        left = tuple(mapping for mapping in endpoint.ports if mapping not in mappings)
        if left:
            self._program(network, endpoint, left)

    def sync_ports(
        self, network: Network, endpoint: Endpoint, reserved: PortRanges, acls: Mapping[AclKey, int]
    ) -> None:
        if endpoint.joined is not None and endpoint.gateway:
            self._program(network, endpoint, endpoint.ports)

    def _program(self, network: Network, endpoint: Endpoint, ports: tuple[PortMapping, ...]) -> None:
        """ProgramExternalConnectivity with all ports of the endpoint; once a command, for the same ones. The protocol
        has no word for some more: they go and come again."""
        known = self.context.plugins.programmed.get(endpoint.id, ())
        if known == ports and endpoint.id in self.context.plugins.programmed:
            return
        if known is not None:
            self._revoke(network, endpoint)
        fields = {
            **words.both(network, endpoint),
            "Options": words.port_options(replace(endpoint, ports=ports)),
        }
        self._requests.attempt(network, "ProgramExternalConnectivity", fields)
        self.context.plugins.programmed[endpoint.id] = ports

    def _revoke(self, network: Network, endpoint: Endpoint) -> None:
        if self.context.plugins.programmed.get(endpoint.id, ()) is not None:
            self.context.plugins.programmed[endpoint.id] = None
            self._requests.tell(
                network, "RevokeExternalConnectivity", words.both(network, endpoint), missing_ok=True
            )

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.remote import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.inside import repair

        return repair.REPAIRS


def _address(context: Context) -> str:
    """By which others on the network reach this host."""
    uplinks = context.links.observe().uplinks
    return next((str(one.ipv4 or one.ipv6) for one in uplinks if one.ipv4 or one.ipv6), "")
