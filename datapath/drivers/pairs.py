# SPDX-License-Identifier: Apache-2.0
"""What networks whose members have a pair of devices each have in common, whatever forwards their packets."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import cast

from datapath.drivers import Driver
from datapath.errors import DatapathError, NotSupportedError
from datapath.kernel import bridges, features
from datapath.model.endpoints import Endpoint
from datapath.model.networks import OPT_DEVICE, VETH, Network
from datapath.model.parsing import Address


def require_netkit() -> None:
    """NotSupportedError that says what to do: this kernel has no netkit devices."""
    if not features.has_netkit():
        what = "netkit devices (CONFIG_NETKIT, since Linux 6.10)"
        raise NotSupportedError(f"{what}: use {OPT_DEVICE}={VETH}, or a kernel that has them")


class Bridged(Driver):
    """The container's end of an endpoint."""

    def configure(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        self.context.links.configure(
            sandbox,
            endpoint.ifname,
            [address for address in (endpoint.ipv4, endpoint.ipv6) if address],
            gateway4=cast(IPv4Address, gateway(network, 4)) if endpoint.gateway4 else None,
            gateway6=cast(IPv6Address, gateway(network, 6)) if endpoint.gateway6 else None,
            ipv6=network.ipv6,
        )

    def set_routes(self, network: Network, endpoint: Endpoint, sandbox: str) -> None:
        links = self.context.links
        for version, wanted in ((4, endpoint.gateway4), (6, endpoint.gateway6)):
            address = gateway(network, version)
            if wanted and address is not None:
                links.set_gateway(sandbox, endpoint.ifname, address)
            else:
                links.remove_gateway(sandbox, endpoint.ifname, version)

    def set_mtu(
        self,
        devices: tuple[str, ...],
        members: tuple[Endpoint, ...],
        mtu: int,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        """Of the network's own devices, and of both ends of its members' pairs."""
        bridges.set_mtu(None, (*devices, *(member.host_ifname for member in members)), mtu)
        for member in members:
            path = sandbox(member)
            if path is not None:
                bridges.set_mtu(path, (member.ifname,), mtu)


def gateway(network: Network, version: int) -> Address | None:
    subnet = network.subnet4 if version == 4 else network.subnet6
    return subnet.gateway if subnet else None


def attempt(failures: list[Exception], step: Callable[..., None], *args: object) -> None:
    """Does a step of taking something away; a failure does not keep the others from being done."""
    try:
        step(*args)
    except (DatapathError, ExceptionGroup) as error:
        failures.append(error)


def report(failures: list[Exception], message: str) -> None:
    if failures:
        raise ExceptionGroup(message, failures)
