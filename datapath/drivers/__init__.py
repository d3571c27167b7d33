# SPDX-License-Identifier: Apache-2.0
"""Network drivers behind one interface: the steps of the Container Network Model, in its order.

A network is created once; an endpoint is created, joins a sandbox, is programmed for the outside, and goes the
same way back. Each step is separate, so that a sandbox that somebody else made and a device that somebody else
moves (Docker's plugin protocol, CNI) take the same way as `run`. Every step that takes something away is
idempotent and copes with its object half made: it is what cleans up after a killed command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from datapath.dataplane.entries import AclKey, LinkKey, LinkValue, Runs
from datapath.drivers.context import Context
from datapath.errors import NotSupportedError
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.ports import PortMapping


class Driver:
    """What every driver can be asked. The defaults suit a driver that builds nothing."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def create_network(self, network: Network, mtu: int, members: tuple[Endpoint, ...] = ()) -> None:
        """Builds what the network needs on the host. `mtu`: bytes of an IP packet. `members`: those that are there
        already, when it is built again."""

    def update_network(
        self,
        network: Network,
        members: tuple[Endpoint, ...],
        mtu: int | None,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        """Makes what may change of a network take effect. `mtu` None: as it is. `sandbox` names an endpoint's, if
        anybody is in it."""

    def delete_network(self, network: Network) -> None:
        """Takes that away."""

    def join(self, network: Network, endpoint: Endpoint, sandbox: str | None, mtu: int) -> Endpoint:
        """Puts the endpoint's device into the sandbox (a namespace's path) and opens it for traffic.

        Without a sandbox the device stays on the host for somebody else to move and address. Returns the
        endpoint with what is now known of it.
        """
        raise NotSupportedError(f"endpoints on networks of driver {network.driver}")

    def restore(self, network: Network, endpoint: Endpoint) -> None:
        """Opens an endpoint, whose device is in its sandbox, for traffic again: the programs had been unloaded."""

    def leave(self, network: Network, endpoint: Endpoint) -> None:
        """Closes it and removes its device; its connections are forgotten."""

    def set_routes(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        """Makes the sandbox's default routes lead through the endpoint, or not, as its flags say."""

    def program_links(self, network: Network, links: Mapping[LinkKey, LinkValue]) -> None:
        """Opens what `--link` opens on a network whose members may not talk."""

    def program_external(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: Runs,
    ) -> None:
        """Publishes ports of the endpoint. `reserved`: how often the host publishes each number, these included.

        Ports that are published already get the rules that the mappings have now.
        """

    def revoke_external(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: Runs,
        filters: frozenset[int],
    ) -> None:
        """Takes published ports back. `reserved`: how often each number is published without them, 0 if no more;
        `filters`: numbers of rules that nobody uses without them."""

    def reclaim_external(
        self,
        network: Network,
        endpoint: Endpoint,
        mappings: tuple[PortMapping, ...],
        reserved: Runs,
    ) -> None:
        """Ports that the endpoint and another one both had, while they move, are its own now."""
        self.program_external(network, endpoint, mappings, reserved)

    def forget_filters(self, filters: frozenset[int]) -> None:
        """Removes rules that no port leads to any more."""

    def align_external(
        self,
        network: Network,
        endpoint: Endpoint,
        reserved: Runs,
        acls: Mapping[AclKey, int],
    ) -> None:
        """Makes the endpoint's published ports what its row says, whatever a killed command left. `reserved` and
        `acls` are the whole host's."""

    def end_refused(self, endpoint: Endpoint, mappings: Iterable[PortMapping]) -> None:
        """Ends connections by way of these ports whose client may not connect any more."""


def find(network: Network, context: Context) -> Driver:
    """The driver of the network: that of its name, and of its mode."""
    from datapath.drivers.ebpf.driver import Bridge
    from datapath.drivers.host import Host
    from datapath.drivers.linuxbridge.driver import Classic
    from datapath.drivers.null import Null

    if network.classic:
        return Classic(context)
    drivers: dict[str, type[Driver]] = {"bridge": Bridge, "host": Host, "null": Null}
    return drivers[network.driver](context)
