# SPDX-License-Identifier: Apache-2.0
"""What a namespace has: addresses, routes, ways out. Read from an open rtnetlink socket of pyroute2."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

from datapath.errors import KernelError

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, DAD failed, deprecated, tentative
_RT_SCOPE_UNIVERSE = 0
_RTN_UNICAST = 1
_DEFAULT_MTU = 1500

Interface = IPv4Interface | IPv6Interface
Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device that leads out of the host."""

    ifindex: int
    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mtu: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the host has: all addresses; routes without default, link-local and multicast ones."""

    addresses: tuple[Interface, ...]
    routes: tuple[Prefix, ...]
    default_mtu: int
    default_route: bool
    names: tuple[str, ...]
    uplinks: tuple[Uplink, ...]


@contextlib.contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """Errors of pyroute2 and the system as KernelError."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise KernelError(operation, subject, abs(int(error.code))) from error
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0) from error


def read(route: Any, names: Mapping[int, str], ours: Collection[str]) -> Facts:
    """`names` are the devices by index; `ours` are left out of the uplinks only."""
    messages = addresses(route)
    prefixes, mtu = _routes(route)
    return Facts(
        addresses=tuple(interface(message) for message in messages),
        routes=prefixes,
        default_mtu=mtu or _DEFAULT_MTU,
        default_route=mtu != 0,
        names=tuple(names.values()),
        uplinks=uplinks(route, messages, names, ours),
    )


def addresses(route: Any) -> list[Any]:
    with translated("list", "addresses"):
        return list(route.addr("dump", family=socket.AF_UNSPEC))


def uplinks(
    route: Any, messages: Sequence[Any], names: Mapping[int, str], ours: Collection[str]
) -> tuple[Uplink, ...]:
    """Only devices with a global address are looked at one by one: there may be hundreds of others."""
    found: dict[int, dict[int, Any]] = {}
    for message in messages:
        name = names.get(message["index"])
        if message["scope"] != _RT_SCOPE_UNIVERSE or name is None or name in ours:
            continue
        first = found.setdefault(message["index"], {})
        address = interface(message)
        if not _attributes(message).get("IFA_FLAGS", message["flags"]) & _IFA_F_UNFIT:
            first.setdefault(address.version, address.ip)
    ways = []
    for index, first in found.items():
        link = _link(route, index)
        if link is not None and link["flags"] & _IFF_UP and not link["flags"] & _IFF_LOOPBACK:
            mtu = _attributes(link)["IFLA_MTU"]
            ways.append(Uplink(index, names[index], first.get(4), first.get(6), mtu))
    return tuple(ways)


def unicast_routes(route: Any, family: int) -> list[Any]:
    """Of all tables; the kernel leaves out the others (the socket checks strictly)."""
    with translated("list", "routes"):
        return list(route.route("dump", family=family, type=_RTN_UNICAST))


def device_of(message: Any) -> int:
    """The device of a route; of the first hop if there are several. 0: none."""
    attributes = _attributes(message)
    hops = attributes.get("RTA_MULTIPATH") or [{"oif": 0}]
    return int(attributes.get("RTA_OIF") or hops[0]["oif"])


def default_routes(route: Any) -> list[tuple[int, IPv4Address | IPv6Address]]:
    """(device, gateway) of each default route that has a gateway."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in unicast_routes(route, family):
            gateway = _attributes(message).get("RTA_GATEWAY")
            if not message["dst_len"] and gateway:
                found.append((device_of(message), ip_address(gateway)))
    return found


def _routes(route: Any) -> tuple[tuple[Prefix, ...], int]:
    """Destinations; MTU of the best default route, or else of its device, IPv4 before IPv6."""
    prefixes: list[Prefix] = []
    defaults: list[tuple[int, int, int, int]] = []  # family, metric, device, own MTU or 0
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in unicast_routes(route, family):
            attributes = _attributes(message)
            if not message["dst_len"]:
                metrics = attributes.get("RTA_METRICS")
                own = _attributes(metrics).get("RTAX_MTU", 0) if metrics else 0
                metric = attributes.get("RTA_PRIORITY", 0)
                defaults.append((family, metric, device_of(message), own))
                continue
            prefix = ip_network(f"{attributes['RTA_DST']}/{message['dst_len']}", strict=False)
            if not prefix.is_multicast and not (prefix.version == 6 and prefix.is_link_local):
                prefixes.append(prefix)
    _, _, device, mtu = min(defaults, default=(0, 0, 0, 0))
    link = _link(route, device) if device and not mtu else None
    if link:
        mtu = _attributes(link)["IFLA_MTU"]
    return tuple(dict.fromkeys(prefixes)), mtu


def _link(route: Any, index: int) -> Any:
    """The device, or None if it has just gone."""
    try:
        with translated("look at", f"device {index}"):
            return route.link("get", index=index)[0]
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):  # EINVAL: index 0, a route without a device
            return None
        raise


def mtu(route: Any, index: int) -> int | None:
    """Bytes of an IP packet that the device takes; None: it has just gone."""
    link = _link(route, index)
    return int(_attributes(link)["IFLA_MTU"]) if link is not None else None


def kind(route: Any, index: int) -> str:
    """As rtnetlink names it: "veth". "": hardware, or gone."""
    link = _link(route, index)
    return kind_of(link) if link else ""


def mac(route: Any, index: int) -> str:
    """Of a device. "": gone."""
    link = _link(route, index)
    return str(_attributes(link).get("IFLA_ADDRESS", "")) if link else ""


def kind_of(link: Any) -> str:
    info = _attributes(link).get("IFLA_LINKINFO")
    return str(_attributes(info).get("IFLA_INFO_KIND", "")) if info else ""


def _attributes(message: Any) -> dict[str, Any]:
    return dict(message["attrs"])


def interface(message: Any) -> Interface:
    """An address as rtnetlink tells it."""
    attributes = _attributes(message)
    local = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]  # on point-to-point devices they differ
    return ip_interface(f"{local}/{message['prefixlen']}")
