# SPDX-License-Identifier: Apache-2.0
"""Networks whose driver, or whose IPAM driver, is a plugin: what it is asked for before anything is built.

Pure, but for what the plugin answers; what it gives out goes back if no row has it at the end of the command."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from datapath.errors import ConfigError, PluginError, quoted
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import Network, NetworkRequest, Subnet, mac_for
from datapath.model.parsing import Address, Interface, Prefix, parse_address, parse_mac, parse_pair
from datapath.model.plugins import (
    ADDRESS_TYPE,
    ENDPOINT_MAC,
    ENDPOINT_NAME,
    GATEWAY,
    AllocatedPool,
    Capability,
    Plugins,
    PoolRequest,
)
from datapath.plan import ipam

_TRIES = 64  # pools that a plugin may offer which overlap others


def capability(request: NetworkRequest, there: str, plugins: Plugins) -> Capability:
    """What the plugin of the driver's name says of itself. `there`: which drivers there are besides. ConfigError: there
    is none of that name; PluginError."""
    if not plugins.has(request.driver):
        raise ConfigError(
            f"network driver {quoted(request.driver)} does not exist: there is {there}; "
            f"and no plugin of that name in {plugins.places}"
        )
    return plugins.network_driver(request.driver)


def check_ipam(request: NetworkRequest, plugin: bool, spans: bool, plugins: Plugins) -> None:
    """Refuses an IPAM driver that nobody offers, before any is asked for something. `plugin`: the network's driver is
    one; `spans`: the network is the cluster's. ConfigError, PluginError."""
    if not request.leased:
        for text in request.ipam_options:
            name = parse_pair(text, "IPAM option")[0]
            raise ConfigError(f"option {quoted(name)} of IPAM driver {request.ipam_driver} is unknown")
    if request.unmanaged:
        if not plugin:
            raise ConfigError(f"IPAM driver null gives no addresses: a {request.driver} network needs some")
        if request.subnets or request.ip_ranges or request.gateways or request.aux_addresses:
            raise ConfigError("null ipam driver does not handle specific address pool requests")
    if not request.leased:
        return
    if spans:
        raise ConfigError(
            f"IPAM driver {request.ipam_driver} is not available: the cluster gives out the addresses"
        )
    if not plugins.has(request.ipam_driver):
        raise ConfigError(
            f"IPAM driver {quoted(request.ipam_driver)} does not exist: there is default; "
            f"and no plugin of that name in {plugins.places}"
        )
    plugins.ipam_driver(request.ipam_driver)


def generic_options(given: Iterable[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """-o of `network create` over default-network-opts, which only the plugin understands. ConfigError."""
    return {**defaults, **dict(parse_pair(text, "driver option") for text in given)}


# ---- pools -----------------------------------------------------------------------------------------------


class Pools:
    """The pools of a new network that an IPAM plugin gives out. `space`: its word for where addresses are unique;
    `taken`: prefixes that a pool which was not asked for must not overlap."""

    def __init__(
        self, request: NetworkRequest, space: str, taken: Collection[Prefix], plugins: Plugins
    ) -> None:
        self._name, self._plugins, self._space = request.ipam_driver, plugins, space
        self._options = dict(parse_pair(text, "IPAM option") for text in request.ipam_options)
        self._taken = taken

    def subnet(self, given: Subnet | None, version: int, skip_gateway: bool) -> Subnet:
        """What becomes of a subnet that was asked for, or of none. PluginError."""
        pool = self._pool(given, version)
        asked = given or Subnet(pool.prefix)
        gateway: Address | None = pool.gateway.ip if pool.gateway and asked.gateway is None else None
        if gateway is None and not (skip_gateway and asked.gateway is None):
            wanted = "" if asked.gateway is None else str(asked.gateway)
            gateway = self._address(pool, wanted, {ADDRESS_TYPE: GATEWAY}).ip
        for address in asked.aux.values():
            self._address(pool, str(address), {})
        return replace(asked, prefix=pool.prefix, gateway=gateway, pool=pool.ident)

    def _pool(self, given: Subnet | None, version: int) -> AllocatedPool:
        """One that overlaps nothing, as Docker looks for it: what overlaps is kept until it has one that does not."""
        prefix = str(given.prefix) if given else ""
        area = str(given.ip_range) if given and given.ip_range else ""
        wanted = PoolRequest(self._space, prefix, area, self._options, version == 6)
        for _ in range(_TRIES):
            pool = self._plugins.pool(self._name, wanted)
            if given and pool.prefix != given.prefix:
                raise PluginError(f"plugin {self._name} gave the pool {pool.prefix}, not {given.prefix}")
            if given or ipam.overlapping(pool.prefix, self._taken) is None:
                return pool
        raise PluginError(f"plugin {self._name} has no pool that overlaps nothing: choose one with --subnet")

    def _address(self, pool: AllocatedPool, wanted: str, options: Mapping[str, str]) -> Interface:
        found = self._plugins.address(self._name, pool.ident, wanted, options)
        return _checked(self._name, found, pool.prefix, wanted)


def _checked(name: str, found: Interface, prefix: Prefix, wanted: str) -> Interface:
    """An address that a plugin gave out. PluginError: it is not one that was asked for."""
    if found.version != prefix.version or found.ip not in prefix:
        raise PluginError(f"plugin {name} gave the address {found.ip}, which is not in {prefix}")
    if wanted and str(found.ip) != wanted:
        raise PluginError(f"plugin {name} gave the address {found.ip}, not {wanted}")
    return found


# ---- addresses of endpoints ------------------------------------------------------------------------------


def lease(
    request: EndpointRequest,
    network: Network,
    members: Sequence[Endpoint],
    ident: str,
    name: str,
    plugins: Plugins,
) -> tuple[EndpointRequest, Any, Any]:
    """The addresses of a new endpoint, IPv4 and IPv6; and the request with a MAC address, if the plugin wants to know
    it beforehand. ConfigError, PluginError."""
    options = {ENDPOINT_NAME: name}
    if plugins.ipam_driver(network.ipam_driver).needs_mac:
        request = replace(request, mac=parse_mac(request.mac) if request.mac else made_mac(ident))
        options[ENDPOINT_MAC] = request.mac
    texts = {4: request.ip, 6: request.ip6}
    found: dict[int, IPv4Interface | IPv6Interface] = {}
    wanted = {version: str(_asked(text, version, network)) if text else "" for version, text in texts.items()}
    for subnet in network.subnets:
        version = subnet.prefix.version
        given = plugins.address(network.ipam_driver, subnet.pool, wanted[version], options)
        given = _checked(network.ipam_driver, given, subnet.prefix, wanted[version])
        if given.ip in {one.ip for member in members for one in (member.ipv4, member.ipv6) if one}:
            raise PluginError(
                f"plugin {network.ipam_driver} gave the address {given.ip}, which is in use already"
            )
        found[version] = given if network.plugin else ip_interface((given.ip.packed, subnet.prefix.prefixlen))
    return request, found.get(4), found.get(6)


def _asked(text: str, version: int, network: Network) -> Address:
    address = parse_address(text, f"IPv{version} address")
    if address.version != version or address.is_unspecified:
        raise ConfigError(f"invalid IPv{version} address: {quoted(text)}")
    subnet = network.subnet4 if version == 4 else network.subnet6
    if subnet is None or address not in subnet.prefix:
        raise ConfigError(f"no configured subnet or ip-range contain the IP address {address}")
    return address


def made_mac(ident: str) -> str:
    """A MAC address for an endpoint that may have none of its address: it follows from its id."""
    return mac_for(IPv4Address(int(ident[:8], 16)))
