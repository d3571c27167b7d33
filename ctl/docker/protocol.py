# SPDX-License-Identifier: Apache-2.0
"""The words of libnetwork's remote driver protocol, and what they are in ours. Pure.

Its requests are JSON objects, one for each method; what is in them was recorded of dockerd 20.10, 26.1 and 28.5
(`tests/unit/data/docker.jsonl`). ConfigError for what cannot be one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby
from typing import Any, NamedTuple

from datapath.drivers.base import JoinInfo
from datapath.errors import ConfigError, quoted
from datapath.model.endpoints import EndpointRequest
from datapath.model.fields import Fields, items, part, switch, text
from datapath.model.networks import OPT_ENDPOINT_IFNAME, NetworkRequest
from datapath.model.parsing import PORT_PROTOCOLS, parse_address, parse_interface

from . import DRIVER, OWNER

SOCKET = f"/run/docker/plugins/{DRIVER}.sock"

PREFIX = "com.docker.network."
PORT_MAP, GENERIC, INTERNAL = f"{PREFIX}portmap", f"{PREFIX}generic", f"{PREFIX}internal"
IPV4, IPV6 = f"{PREFIX}enable_ipv4", f"{PREFIX}enable_ipv6"

_ID = re.compile(r"[0-9a-f]{64}")
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_PORTS = range(65536)


class Binding(NamedTuple):
    """One entry of a port map. `last` not 0: the host port is to be chosen from `first` to it; `first` 0: from all."""

    proto: str
    address: str
    first: int
    last: int
    port: int


def parse(body: bytes) -> Fields:
    """A request; an empty one is an object without fields."""
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"the request is no object of JSON but a {type(found).__name__}")
    return found


def ident(fields: Fields, name: str) -> str:
    """A field that is one of Docker's ids."""
    value = text(fields, name)
    if not _ID.fullmatch(value):
        raise ConfigError(f"{name} must be 64 hex digits, not {quoted(value)}")
    return value


# ---- networks --------------------------------------------------------------------------------------


def network_request(fields: Fields) -> NetworkRequest:
    """CreateNetwork. Its name is not told: the network is called by its id until Docker is asked."""
    options = part(fields, "Options")
    pools = [*items(fields, "IPv4Data"), *items(fields, "IPv6Data")]
    ipv4, ipv6 = switch(options, IPV4, True), switch(options, IPV6, False)
    wanted = [parse_interface(text(pool, "Pool"), "subnet") for pool in pools]
    for version, enabled in ((4, ipv4), (6, ipv6)):
        if enabled and not any(pool.version == version and pool.network.prefixlen for pool in wanted):
            raise ConfigError(f"Docker has allotted no IPv{version} subnet: its IPAM driver must be default")
    network = ident(fields, "NetworkID")
    return NetworkRequest(
        name=network[:12],
        subnets=tuple(text(pool, "Pool") for pool in pools),
        gateways=tuple(str(parse_interface(way, "gateway").ip) for p in pools if (way := text(p, "Gateway"))),
        aux_addresses=tuple(
            f"{name}={parse_interface(text(aux, name), f'auxiliary address {quoted(name)}').ip}"
            for aux in (part(pool, "AuxAddresses") for pool in pools)
            for name in aux
        ),
        internal=switch(options, INTERNAL, False),
        ipv4=ipv4,
        ipv6=ipv6,
        options=tuple(pairs(part(options, GENERIC))),
        owner=OWNER,
        ident=network,
    )


def pairs(options: Fields) -> Iterator[str]:
    """Options as they are typed."""
    for name in options:
        value = options[name]
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(value, str):
            raise ConfigError(f"option {quoted(name)} must be a string, not {quoted(json.dumps(value))}")
        yield f"{name}={value}"


# ---- endpoints -------------------------------------------------------------------------------------


def endpoint_request(fields: Fields) -> EndpointRequest:
    """CreateEndpoint. Docker's own options (com.docker.network.…) that are no one's business but its own are passed
    over: of the settings of devices, dockerd takes care itself."""
    interface, options = part(fields, "Interface"), part(fields, "Options")
    mine = {k: v for k, v in options.items() if not k.startswith(PREFIX) or k == OPT_ENDPOINT_IFNAME}
    return EndpointRequest(
        network=ident(fields, "NetworkID"),
        ip=_address(text(interface, "Address"), 4),
        ip6=_address(text(interface, "AddressIPv6"), 6),
        mac=text(interface, "MacAddress"),
        driver_options=tuple(pairs(mine)),
    )


def _address(given: str, version: int) -> str:
    if not given:
        return ""
    found = parse_interface(given, f"IPv{version} address")
    if found.version != version:
        raise ConfigError(f"{quoted(given)} is no IPv{version} address")
    return str(found.ip)


def join_reply(info: JoinInfo) -> dict[str, Any]:
    """What Docker is to do with the device. Without a gateway it would make a bridge of its own, docker_gwbridge,
    unless the network is internal."""
    name = {"SrcName": info.source, "DstPrefix": info.prefix or "eth"}
    if not info.prefix:
        name["DstName"] = info.ifname  # which old versions do not know
    return {
        "InterfaceName": name,
        "Gateway": _gateway(info.gateway4),
        "GatewayIPv6": _gateway(info.gateway6),
        "StaticRoutes": [],
    }


def _gateway(address: IPv4Address | IPv6Address | None) -> str:
    return "" if address is None else str(address)


# ---- published ports -------------------------------------------------------------------------------


def port_specs(options: Fields) -> tuple[str, ...] | None:
    """The port map, one mapping for as many consecutive ports as possible; None: there is none, not even an empty
    one."""
    if options.get(PORT_MAP) is None:
        return None
    return tuple(_specs({_binding(entry) for entry in items(options, PORT_MAP)}))


def publishable(spec: str) -> bool:
    """Its protocol is one that ports can be published for."""
    return spec.rpartition("/")[2] in PORT_PROTOCOLS


def _binding(entry: Fields) -> Binding:
    number = entry.get("Proto")
    proto = _PROTOCOLS.get(number) if isinstance(number, int) else None
    if proto is None:
        raise ConfigError(f"protocol {quoted(json.dumps(number))} of a port is not available")
    port, first, last = (_port(entry, name) for name in ("Port", "HostPort", "HostPortEnd"))
    if not port:
        raise ConfigError("a published port has no number")
    if last and last < first:
        raise ConfigError(f"the host ports {first}-{last} of port {port} are none")
    address = text(entry, "HostIP")
    return Binding(
        proto, str(parse_address(address)) if address else "", first, 0 if last == first else last, port
    )


def _port(entry: Fields, name: str) -> int:
    value = entry.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value not in _PORTS:
        raise ConfigError(f"{name} must be a port, not {quoted(json.dumps(value))}")
    return value


def _specs(bindings: Iterable[Binding]) -> Iterator[str]:
    """The longest runs, in the order of protocol, address and container port."""

    def run(indexed: tuple[int, Binding]) -> tuple[object, ...]:
        index, one = indexed
        host = "chosen" if not one.first else one.first - one.port
        # One that is chosen from some ports is alone.
        return (one.proto, one.address, host, one.port - index, one if one.last else None)

    ordered = sorted(
        bindings, key=lambda b: (b.proto, b.address, b.first - b.port if b.first else -(1 << 17), b.port, b)
    )
    for _, group in groupby(enumerate(ordered), run):
        found = [one for _, one in group]
        first, last = found[0], found[-1]
        host = _range(first.first, first.last or last.first) if first.first else ""
        address = f"[{first.address}]" if ":" in first.address else first.address
        left = f"{address}:{host}:" if address else f"{host}:" if host else ""
        yield f"{left}{_range(first.port, last.port)}/{first.proto}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
