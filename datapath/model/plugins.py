# SPDX-License-Identifier: Apache-2.0
"""Docker's plugins: processes of others that are the driver of a network, or give out its addresses. Pure.

What they say by libnetwork's remote protocol, as it is kept in rows and as plans ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol

from datapath.model.parsing import Address, Interface, Prefix

DEFAULT_IPAM = "default"  # ours
NULL_IPAM = "null"  # nobody: a plugin gives its members' addresses itself, as those of DHCP do


def is_leased(name: str) -> bool:
    """The IPAM driver of that name is a plugin."""
    return name not in (DEFAULT_IPAM, NULL_IPAM, "")


def is_unmanaged(name: str) -> bool:
    """The IPAM driver of that name gives out nothing."""
    return name == NULL_IPAM


# What `Data` of an IPAM plugin calls the gateway, and what is asked for when it has none.
GATEWAY = "com.docker.network.gateway"
ADDRESS_TYPE = "RequestAddressType"
ENDPOINT_NAME = "com.docker.network.endpoint.name"
ENDPOINT_MAC = "com.docker.network.endpoint.macaddress"


# What `Options` of CreateNetwork says of a network itself.
INTERNAL = "com.docker.network.internal"
IPV4, IPV6 = "com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6"


def network_flags(ipv4: bool, ipv6: bool, internal: bool) -> dict[str, bool]:
    """Those of a network."""
    return {IPV4: ipv4, IPV6: ipv6, **({INTERNAL: True} if internal else {})}


class Plugin(NamedTuple):
    """Where a plugin listens. `address`: `unix:///PATH`, `tcp://HOST:PORT`, `http://…` or `https://…`. Of TLS, paths
    of files: `ca` of the certificates that its own has to be signed by, "": it is not checked; `certificate` and `key`
    of ours."""

    name: str
    address: str
    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = False


class Capability(NamedTuple):
    """What a network plugin says of itself. `scope`: "local" or "global"; `checks_gateway`: it is asked whether a
    network needs gateway addresses."""

    scope: str = "local"
    checks_gateway: bool = False


class IpamCapability(NamedTuple):
    """What an IPAM plugin says of itself. `needs_mac`: it wants to know an endpoint's MAC address."""

    needs_mac: bool = False


class PoolRequest(NamedTuple):
    """What is asked of an IPAM plugin. `prefix` and `range`: "": it may choose."""

    space: str
    prefix: str
    range: str
    options: Mapping[str, str]
    ipv6: bool


class AllocatedPool(NamedTuple):
    """What it answers. `ident`: its own name of the pool; `gateway`: None: one has to be asked for."""

    ident: str
    prefix: Prefix
    gateway: Interface | None = None


class Lease(NamedTuple):
    """A pool that an IPAM plugin has given out, or an address of one; `address` "": the pool itself."""

    driver: str
    pool: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A route in the sandbox. `next_hop` None: the destination is on link, at the endpoint's device."""

    destination: Prefix
    next_hop: Address | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """What a network plugin has answered when an endpoint joined its sandbox. `source`: what the device was called on
    the host, "": the endpoint has none; `gateway4`, `gateway6`: next hops of default routes. `gateway_service`: without
    a next hop the sandbox is to have another way out; else it is meant to have none."""

    source: str = ""
    gateway4: IPv4Address | None = None
    gateway6: IPv6Address | None = None
    routes: tuple[StaticRoute, ...] = field(default=())
    gateway_service: bool = True

    def gateway(self, version: int) -> Address | None:
        """The next hop of the default route of that IP version."""
        return self.gateway4 if version == 4 else self.gateway6


class Plugins(Protocol):
    """What plans ask of plugins. All methods but the first two raise PluginError if the plugin refuses or does not
    answer. What an IPAM plugin gives out is noted, and goes back when the command ends and no row has it."""

    @property
    def places(self) -> str:
        """The folders in which plugins are looked for, for messages."""

    def has(self, name: str) -> bool:
        """There is a plugin of that name, whether it answers or not."""

    def network_driver(self, name: str) -> Capability:
        """What the network plugin says of itself. PluginError: it is none."""

    def skips_gateway(
        self, name: str, generic: Mapping[str, str], flags: Mapping[str, bool]
    ) -> tuple[bool, bool]:
        """Whether a network with these options (see `CreateNetwork`) needs no gateway address: IPv4, IPv6."""

    def ipam_driver(self, name: str) -> IpamCapability:
        """What the IPAM plugin says of itself. PluginError: it is none."""

    def address_space(self, name: str, scope: str) -> str:
        """The IPAM plugin's word for the addresses of networks of that scope."""

    def pool(self, name: str, request: PoolRequest) -> AllocatedPool:
        """A pool of addresses."""

    def address(self, name: str, pool: str, wanted: str, options: Mapping[str, str]) -> Interface:
        """An address of a pool. `wanted`: "": any."""


class NoPlugins:
    """There are none."""

    places = "any folder"

    def has(self, name: str) -> bool:
        return False

    def network_driver(self, name: str) -> Capability:
        raise LookupError(name)

    def skips_gateway(
        self, name: str, generic: Mapping[str, str], flags: Mapping[str, bool]
    ) -> tuple[bool, bool]:
        raise LookupError(name)

    def ipam_driver(self, name: str) -> IpamCapability:
        raise LookupError(name)

    def address_space(self, name: str, scope: str) -> str:
        raise LookupError(name)

    def pool(self, name: str, request: PoolRequest) -> AllocatedPool:
        raise LookupError(name)

    def address(self, name: str, pool: str, wanted: str, options: Mapping[str, str]) -> Interface:
        raise LookupError(name)
