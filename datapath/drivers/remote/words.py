# SPDX-License-Identifier: Apache-2.0
"""The words of libnetwork's remote protocol: what is asked of a plugin, and what its answers mean. Pure.

Recorded of dockerd 20.10 to 28.5, and read in moby (daemon/libnetwork/drivers/remote, ipams/remote). ConfigError for
an answer that means nothing; the caller says whose it is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any, cast

from datapath.errors import ConfigError, quoted
from datapath.model.endpoints import Endpoint
from datapath.model.fields import Fields, items, part, switch, text
from datapath.model.networks import OPT_ENDPOINT_IFNAME, Network, Subnet
from datapath.model.parsing import (
    PORT_PROTOCOLS,
    Address,
    Interface,
    parse_address,
    parse_interface,
    parse_mac,
)
from datapath.model.plugins import (
    ENDPOINT_MAC,
    GATEWAY,
    NULL_IPAM,
    AllocatedPool,
    Capability,
    IpamCapability,
    Joined,
    PoolRequest,
    StaticRoute,
    network_flags,
)
from datapath.model.ports import PortMapping

NETWORK, IPAM = "NetworkDriver", "IpamDriver"

_PREFIX = "com.docker.network."
GENERIC = f"{_PREFIX}generic"
_PORT_MAP, _EXPOSED = f"{_PREFIX}portmap", f"{_PREFIX}endpoint.exposedports"
_DNS = f"{_PREFIX}endpoint.dnsservers"
_SPACES = {"local": "LocalDefault", "global": "GlobalDefault"}

_DEVICE = re.compile(r"[^\s/:]{1,15}")  # what the kernel takes for a name, but for "." and ".."
_IFACE_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,10}")
_MOST_ROUTES = 1000
_SCOPES = ("local", "global")


# ---- what is said of networks ------------------------------------------------------------------------------------


def network_options(generic: Mapping[str, str], flags: Mapping[str, bool]) -> dict[str, Any]:
    """`Options` of CreateNetwork. `flags`: see `model.plugins.network_flags`."""
    return {**flags, GENERIC: dict(generic)}


def create_network(network: Network, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """CreateNetwork. `more`: options that AllocateNetwork has answered."""
    flags = network_flags(network.ipv4, network.ipv6, network.internal)
    return {
        "NetworkID": network.id,
        "Options": network_options({**network.generic, **(more or {})}, flags),
        "IPv4Data": _pools(network, 4),
        "IPv6Data": _pools(network, 6),
    }


def allocate_network(network: Network) -> dict[str, Any]:
    """AllocateNetwork, which has no flags."""
    return {**create_network(network), "Options": dict(network.generic)}


def _pools(network: Network, version: int) -> list[dict[str, Any]]:
    subnet = network.subnet4 if version == 4 else network.subnet6
    if subnet is not None:
        space = network.address_space or _SPACES.get(network.scope, _SPACES["local"])
        return [_pool(space, subnet)]
    if network.ipam_driver == NULL_IPAM and (network.ipv4 if version == 4 else network.ipv6):
        return [{"AddressSpace": NULL_IPAM, "Pool": "0.0.0.0/0" if version == 4 else "::/0"}]
    return []


def _pool(space: str, subnet: Subnet) -> dict[str, Any]:
    length = subnet.prefix.prefixlen
    found: dict[str, Any] = {"AddressSpace": space, "Pool": str(subnet.prefix)}
    if subnet.gateway is not None:
        found["Gateway"] = f"{subnet.gateway}/{length}"
    if subnet.aux:
        found["AuxAddresses"] = {name: f"{address}/{length}" for name, address in subnet.aux.items()}
    return found


# ---- what is said of endpoints -----------------------------------------------------------------------------------


def both(network: Network, endpoint: Endpoint) -> dict[str, Any]:
    """The two ids."""
    return {"NetworkID": network.id, "EndpointID": endpoint.id}


def create_endpoint(network: Network, endpoint: Endpoint) -> dict[str, Any]:
    """CreateEndpoint: with a MAC address if the user has chosen it, else it is the plugin's to choose."""
    options = {key: value for key, value in endpoint.driver_options.items() if key != OPT_ENDPOINT_IFNAME}
    mac = endpoint.mac if endpoint.static_mac else ""
    more: dict[str, Any] = {}
    if mac:
        more[ENDPOINT_MAC] = base64.b64encode(bytes.fromhex(mac.replace(":", ""))).decode()
    if endpoint.dns:
        more[_DNS] = list(endpoint.dns)
    return {
        **both(network, endpoint),
        "Interface": {
            "Address": str(endpoint.ipv4 or ""),
            "AddressIPv6": str(endpoint.ipv6 or ""),
            "MacAddress": mac,
        },
        "Options": {**options, **more, **port_options(endpoint)},
    }


def port_options(endpoint: Endpoint) -> dict[str, Any]:
    """What Join and ProgramExternalConnectivity are told, too: exposed ports and the port map."""
    bindings = [one for mapping in endpoint.ports for one in _bindings(mapping)]
    published = ((port, proto) for m in endpoint.ports for _, _, port, proto in m.expand())
    exposed = dict.fromkeys((*endpoint.exposed, *published))
    known = [
        {"Proto": PORT_PROTOCOLS[proto], "Port": port} for port, proto in exposed if proto in PORT_PROTOCOLS
    ]
    return {_PORT_MAP: bindings, _EXPOSED: known}


def _bindings(mapping: PortMapping) -> list[dict[str, Any]]:
    return [
        {
            "Proto": PORT_PROTOCOLS[proto],
            "IP": "",
            "Port": port,
            "HostIP": str(address or ""),
            "HostPort": host_port,
            "HostPortEnd": host_port,
        }
        for address, host_port, port, proto in mapping.expand()
    ]


# ---- answers -----------------------------------------------------------------------------------------------------


def implements(answer: Fields) -> list[str]:
    """Plugin.Activate."""
    value = answer.get("Implements")
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError("Implements must be a list of strings")
    return value


def capability(answer: Fields) -> Capability:
    """NetworkDriver.GetCapabilities."""
    scope = text(answer, "Scope")
    for name, value in (("Scope", scope), ("ConnectivityScope", text(answer, "ConnectivityScope") or scope)):
        if value not in _SCOPES:
            raise ConfigError(
                f"invalid capability: expecting 'local' or 'global', got {quoted(value)} as {name}"
            )
    return Capability(scope, switch(answer, "GwAllocChecker", False))


def ipam_capability(answer: Fields) -> IpamCapability:
    """IpamDriver.GetCapabilities."""
    return IpamCapability(switch(answer, "RequiresMACAddress", False))


def address_space(answer: Fields, scope: str) -> str:
    """IpamDriver.GetDefaultAddressSpaces."""
    return text(answer, f"{scope.title()}DefaultAddressSpace")


def pool_request(request: PoolRequest) -> dict[str, Any]:
    """IpamDriver.RequestPool."""
    return {
        "AddressSpace": request.space,
        "Pool": request.prefix,
        "SubPool": request.range,
        "Options": dict(request.options),
        "V6": request.ipv6,
    }


def allocated_pool(answer: Fields, ipv6: bool) -> AllocatedPool:
    """What that answers."""
    ident, version = text(answer, "PoolID"), 6 if ipv6 else 4
    if not ident or len(ident) > 1000:
        raise ConfigError("PoolID is missing, or too long")
    found = _interface(answer, "Pool", version)
    if found is None:
        raise ConfigError("Pool is missing")
    data = part(answer, "Data")
    gateway = _interface(data, GATEWAY, version)
    if gateway is not None and gateway.ip not in found.network:
        raise ConfigError(f"its gateway {gateway} is not in the pool {found.network}")
    return AllocatedPool(ident, found.network, gateway)


def allocated_address(answer: Fields) -> Interface:
    """IpamDriver.RequestAddress."""
    address = text(answer, "Address")
    if not address:
        raise ConfigError("no address returned")
    return parse_interface(address, "Address")


def created(answer: Fields, endpoint: Endpoint) -> Endpoint:
    """CreateEndpoint: the endpoint with what the plugin has chosen, of what it was not told."""
    interface = part(answer, "Interface")
    mac = text(interface, "MacAddress")
    if mac and endpoint.static_mac:
        raise ConfigError(
            f"driver modified interface MAC address: endpoint interface MAC address present ({endpoint.mac}). "
            f"Cannot be modified with {quoted(mac)}."
        )
    ipv4, ipv6 = _interface(interface, "Address", 4), _interface(interface, "AddressIPv6", 6)
    for given, has in ((ipv4, endpoint.ipv4), (ipv6, endpoint.ipv6)):
        if given is not None and has is not None:
            raise ConfigError(
                f"driver modified interface address: endpoint interface IP present ({has}). "
                f"Cannot be modified with {given}."
            )
    return replace(
        endpoint,
        mac=parse_mac(mac) if mac else endpoint.mac,
        static_mac=endpoint.static_mac or bool(mac),
        ipv4=cast(IPv4Interface | None, ipv4) or endpoint.ipv4,
        ipv6=cast(IPv6Interface | None, ipv6) or endpoint.ipv6,
    )


def joined(answer: Fields) -> tuple[Joined, str]:
    """Join: what it means for the sandbox, and what names of devices begin with there, "": as usual."""
    names = part(answer, "InterfaceName")
    source, prefix = text(names, "SrcName"), text(names, "DstPrefix")
    if source and (not _DEVICE.fullmatch(source) or source in (".", "..", "lo")):
        raise ConfigError(f"SrcName {quoted(source)} is no device that could be moved")
    if prefix and not _IFACE_PREFIX.fullmatch(prefix):
        raise ConfigError(f"DstPrefix {quoted(prefix)} is not the beginning of a device name")
    routes = items(answer, "StaticRoutes")
    if len(routes) > _MOST_ROUTES:
        raise ConfigError(f"there are {len(routes)} StaticRoutes, {_MOST_ROUTES} are possible")
    return (
        Joined(
            source,
            cast(IPv4Address | None, _gateway(answer, "Gateway", 4)),
            cast(IPv6Address | None, _gateway(answer, "GatewayIPv6", 6)),
            tuple(_route(route) for route in routes),
            not switch(answer, "DisableGatewayService", False),
        ),
        prefix,
    )


def _gateway(answer: Fields, name: str, version: int) -> Address | None:
    value = text(answer, name)
    if not value:
        return None
    address = parse_address(value, name)
    if address.version != version or address.is_unspecified:
        raise ConfigError(f"unable to parse {name} {quoted(value)}")
    return address


def _route(fields: Fields) -> StaticRoute:
    kind, hop = fields.get("RouteType", 0), text(fields, "NextHop")
    destination = parse_interface(text(fields, "Destination"), "Destination of a static route").network
    if isinstance(kind, bool) or kind not in (0, 1):
        raise ConfigError(f"RouteType of the route to {destination} must be 0 or 1")
    if kind == 1:  # connected, whatever next hop is named
        return StaticRoute(destination)
    if not hop:
        raise ConfigError(f"the route to {destination} has no NextHop")
    address = parse_address(hop, "nexthop IP")
    if address.version != destination.version:
        raise ConfigError(f"the next hop {address} of the route to {destination} is of another IP version")
    return StaticRoute(destination, address)


def _interface(fields: Fields, name: str, version: int) -> Interface | None:
    value = text(fields, name)
    if not value:
        return None
    found = parse_interface(value, name)
    mapped = found.ip.ipv4_mapped if isinstance(found.ip, IPv6Address) else None
    if mapped is not None and found.network.prefixlen >= 96:
        found = ip_interface((mapped.packed, found.network.prefixlen - 96))
    if found.version != version or found.ip.is_unspecified:
        raise ConfigError(f"{name} {quoted(value)} is no IPv{version} address")
    return found


def skipped(answer: Fields) -> tuple[bool, bool]:
    """GwAllocCheck."""
    return switch(answer, "SkipIPv4", False), switch(answer, "SkipIPv6", False)


def allocated_options(answer: Fields) -> dict[str, str]:
    """AllocateNetwork: options that CreateNetwork gets besides."""
    return {name: text(part(answer, "Options"), name) for name in part(answer, "Options")}


def discovery(address: str) -> dict[str, Any]:
    """DiscoverNew: this host, as one of its cluster. (DiscoverDelete is about others, of which a plugin is told nothing
    here.)"""
    return {
        "DiscoveryType": 1,
        "DiscoveryData": {"Address": address, "BindAddress": address, "Self": True},
    }
