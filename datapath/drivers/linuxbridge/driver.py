# SPDX-License-Identifier: Apache-2.0
"""Bridge networks as Docker builds them: a Linux bridge, its ports, and packet filter rules. No packet program.

They are what the packet programs are measured against, so they are built as well as can be: a batch of rules a step,
and a path for packets that is Docker's without its userland proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_interface

from datapath.dataplane import entries, structs
from datapath.drivers.base import Repair, attempt, report
from datapath.drivers.comparison import Comparison
from datapath.drivers.inside.driver import waiting_name
from datapath.drivers.linuxbridge import firewall
from datapath.drivers.linuxbridge.spec import LINUX_BRIDGE
from datapath.drivers.pairs.driver import PairDriver
from datapath.kernel import bridges, netfilter
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.networks import Network, gateway_mac
from datapath.model.parsing import Interface
from datapath.model.ports import PortMapping


class LinuxBridge(PairDriver):
    """Driver bridge in the modes iptables and nftables."""

    spec = LINUX_BRIDGE

    # ---- networks ------------------------------------------------------------------------

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        netfilter.require_bridges()
        with ExitStack() as undo:
            undo.callback(self.delete_network, network)
            mac, addresses = gateway_mac(network), _addresses(network)
            bridges.create(network.device, mac, addresses, mtu, ipv6=network.ipv6)
            self._filter(network).create_network(network)
            undo.pop_all()

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        if mtu is None or mtu == self.context.links.mtu(network.device):
            return
        if _bridge(network) is not None:
            self.set_mtu((network.device,), members, mtu, sandbox)

    def delete_network(self, network: Network) -> None:
        failures: list[Exception] = []
        ifindex = _bridge(network)
        attempt(failures, self._filter(network).delete_network, network)
        if ifindex is not None:
            attempt(failures, self.context.links.delete, ifindex)
        report(failures, f"network {network.name} could not be removed completely")

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        links = self.context.links
        with ExitStack() as undo:
            undo.callback(self.delete_endpoint, network, endpoint)
            ifname = waiting_name(endpoint) if sandbox is None else endpoint.ifname
            ifindex, _ = links.create_endpoint(endpoint.host_ifname, ifname, sandbox, endpoint.mac, mtu)
            endpoint = replace(endpoint, host_ifindex=ifindex)
            self._filter(network).open(network, endpoint)
            bridges.enslave(endpoint.host_ifname, network.device)
            undo.pop_all()
        return endpoint

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        if self.context.links.index(endpoint.host_ifname) == endpoint.host_ifindex:
            bridges.enslave(endpoint.host_ifname, network.device)
        self._filter(network).align(network, replace(endpoint, ports=()))

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        failures: list[Exception] = []
        attempt(failures, self.context.links.delete_endpoint, endpoint.host_ifname, endpoint.host_ifindex)
        attempt(failures, self._filter(network).close, network, endpoint)
        addresses = [interface.ip for interface in (endpoint.ipv4, endpoint.ipv6) if interface]
        attempt(failures, netfilter.forget, addresses)
        report(failures, f"endpoint {endpoint.id[:12]} could not be removed completely")

    def open_links(self, network: Network, links: Mapping[structs.LinkKey, structs.LinkValue]) -> None:
        if links:
            self._filter(network).link(network, links)

    # ---- published ports -------------------------------------------------------------------

    def publish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: entries.PortRanges,
    ) -> None:
        if network.internal or not mappings:
            return
        self._filter(network).publish(network, endpoint, mappings)
        udp = {port for m in mappings if m.proto == "udp" for _, port, _, _ in m.expand()}
        for version in endpoint.egress_families:
            netfilter.forget_udp(version, udp)

    def unpublish(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: entries.PortRanges,
        acls: frozenset[int],
    ) -> None:
        if mappings:
            self._filter(network).revoke(network, endpoint, mappings)

    def take_over_ports(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: entries.PortRanges,
    ) -> None:
        """Nothing: each endpoint has rules of its own."""

    def sync_ports(
        self,
        network: Network,
        endpoint: Endpoint,
        reserved: entries.PortRanges,
        acls: Mapping[structs.AclKey, int],
    ) -> None:
        self._filter(network).align(network, endpoint)

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.linuxbridge import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.linuxbridge import repair

        return {**PairDriver.repairs(), **repair.REPAIRS}

    def _filter(self, network: Network) -> firewall.Filter:
        return firewall.find(network.mode)


def _addresses(network: Network) -> list[Interface]:
    """Those that the bridge holds."""
    return [ip_interface((s.gateway, s.prefix.prefixlen)) for s in network.subnets if s.gateway]


def _bridge(network: Network) -> int | None:
    """The index of the network's bridge; None: it is gone, even if another device has its name."""
    return bridges.find(network.device, gateway_mac(network), _addresses(network))
