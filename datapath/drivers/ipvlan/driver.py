# SPDX-License-Identifier: Apache-2.0
"""ipvlan networks: each member has IP addresses of its own on the network that the parent device is on, and all have
the parent's MAC address there. No kernel's ipvlan is needed: the packet programs hand packets over, at the parent and
at the members' pairs, and tell the link who has which address.

Other than with the kernel's, the host and its members reach each other: through a gateway device, which has no address,
and a route to each member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

from datapath.drivers.base import Repair, attempt, report
from datapath.drivers.comparison import Comparison
from datapath.drivers.ebpf.driver import EbpfBridge
from datapath.drivers.ipvlan.spec import IPVLAN_SPEC
from datapath.drivers.lan.spec import split_vlan
from datapath.errors import NotSupportedError
from datapath.kernel import features, macvlans, ways
from datapath.model.devices import VLAN
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Check, Finding
from datapath.model.host import ETHERNET
from datapath.model.networks import OPT_PARENT, Network
from datapath.model.parsing import Address


class Ipvlan(EbpfBridge):
    """Driver ipvlan."""

    spec = IPVLAN_SPEC

    # ---- networks ------------------------------------------------------------------------

    def require(self, network: Network) -> None:
        super().require(network)
        if network.made and not features.has_kind(VLAN):
            raise NotSupportedError(f"VLANs (CONFIG_VLAN_8021Q), which {OPT_PARENT}={network.made} needs")
        device = macvlans.find(network.parent) if network.parent else None
        if device is not None and device.hardware != ETHERNET:
            raise NotSupportedError(
                f"ipvlan networks on {device.name}, whose packets have no Ethernet header"
            )

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        if not self.context.dataplane.has("parents"):
            raise NotSupportedError(
                "ipvlan networks need the packet programs of this version: use `datapathctl upgrade`"
            )
        with ExitStack() as undo:
            if network.made and macvlans.find(network.made) is None:
                macvlans.create_vlan(network.made, *split_vlan(network.made))
                undo.callback(self._delete_made, network)
            super().create_network(network, self._mtu(network, mtu), members)
            undo.pop_all()

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        super().update_network(network, members, self._mtu(network, 0) or None, sandbox)

    def delete_network(self, network: Network) -> None:
        failures: list[Exception] = []
        attempt(failures, super().delete_network, network)
        attempt(failures, self._delete_made, network)
        report(failures, f"network {network.name} could not be removed completely")

    def _delete_made(self, network: Network) -> None:
        """Another's device that has the name now stays."""
        device = macvlans.find(network.made) if network.made else None
        if device is not None and device.kind == VLAN:
            self.context.links.delete(device.ifindex)

    def _mtu(self, network: Network, default: int) -> int:
        """Bytes of an IP packet: what the parent takes, unless the network's options say something else."""
        parent = self.context.links.mtu(network.parent) if network.parent else None
        return network.mtu or parent or default

    # ---- endpoints -----------------------------------------------------------------------

    def create_endpoint(
        self, network: Network, endpoint: Endpoint, mtu: int, sandbox: str | None = None
    ) -> Endpoint:
        endpoint = super().create_endpoint(network, endpoint, self._mtu(network, mtu), sandbox)
        with ExitStack() as undo:
            undo.callback(self.delete_endpoint, network, endpoint, sandbox)
            self._lead(network, endpoint)
            undo.pop_all()
        return endpoint

    def _lead(self, network: Network, endpoint: Endpoint) -> None:
        """The host's routes to the endpoint, for which it asks and answers as its own on the parent's link."""
        if not network.parent:
            return
        own = ways.own_addresses(network.parent)
        for address in _addresses(endpoint):
            ways.lead(network.device, address, own.get(address.version))

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        super().restore(network, endpoint)
        self._lead(network, endpoint)

    def delete_endpoint(self, network: Network, endpoint: Endpoint, sandbox: str | None = None) -> None:
        failures: list[Exception] = []
        for address in _addresses(endpoint) if network.parent else ():
            attempt(failures, ways.lead_no_more, network.device, address)
        attempt(failures, super().delete_endpoint, network, endpoint, sandbox)
        report(failures, f"endpoint {endpoint.id[:12]} could not be removed completely")

    # ---- doctor ----------------------------------------------------------------------------

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.ipvlan import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.lan import repair

        return {**EbpfBridge.repairs(), **repair.REPAIRS}


def _addresses(endpoint: Endpoint) -> list[Address]:
    """Those that it has on the parent's link."""
    return [one.ip for one in (endpoint.ipv4, endpoint.ipv6) if one is not None]
