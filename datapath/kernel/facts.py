# SPDX-License-Identifier: Apache-2.0
"""The devices, addresses, routes and uplinks of a network namespace, read through rtnetlink."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import NamedTuple

from datapath.errors import KernelError
from datapath.kernel import netns, rtnetlink
from datapath.kernel.rtnetlink import ADDR, LINK, ROUTE, Message, Rtnetlink, attributes
from datapath.model.observed import Device, Stack

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, DAD failed, deprecated, tentative
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 8, 9
_RTAX_MTU = 2
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, index
_RT_SCOPE_UNIVERSE = 0
_RTN_UNICAST = 1
_DEFAULT_MTU = 1500

Interface = IPv4Interface | IPv6Interface
Prefix = IPv4Network | IPv6Network


class Uplink(NamedTuple):
    """A device that leads out of the host."""

    ifindex: int
    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mtu: int


class Facts(NamedTuple):
    """What the host has: all addresses; routes without default, link-local and multicast ones."""

    addresses: tuple[Interface, ...]
    routes: tuple[Prefix, ...]
    default_mtu: int
    default_route: bool
    names: tuple[str, ...]
    uplinks: tuple[Uplink, ...]


@contextlib.contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """The system's errors as KernelError."""
    try:
        yield
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0) from error


class DeviceAddress(NamedTuple):
    """An address of a device. `flags`: IFA_F_*."""

    ifindex: int
    scope: int
    flags: int
    interface: Interface


class Route(NamedTuple):
    """`device`: of the first hop if there are several; 0: none. `mtu`: its own, 0: it has none."""

    prefix: Prefix
    device: int
    metric: int
    mtu: int
    gateway: IPv4Address | IPv6Address | None


def read(route: Rtnetlink, names: Mapping[int, str], ours: Collection[str]) -> Facts:
    """`names` are the devices by index; `ours` are left out of the uplinks only."""
    held = addresses(route)
    prefixes, mtu = _routes(route)
    return Facts(
        addresses=tuple(one.interface for one in held),
        routes=prefixes,
        default_mtu=mtu or _DEFAULT_MTU,
        default_route=mtu != 0,
        names=tuple(names.values()),
        uplinks=uplinks(route, held, names, ours),
    )


def addresses(route: Rtnetlink) -> list[DeviceAddress]:
    with translated("list", "addresses"):
        bodies = route.dump(Message(rtnetlink.GETADDR, ADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    return [one for one in map(_device_address, bodies) if one is not None]


def _device_address(body: bytes) -> DeviceAddress | None:
    family, length, flags, scope, index = ADDR.unpack_from(body)
    found = attributes(body[ADDR.size :])
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)  # on point-to-point devices they differ
    if raw is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if _IFA_FLAGS in found:
        flags = _number(found[_IFA_FLAGS])
    interface = IPv4Interface((raw, length)) if family == socket.AF_INET else IPv6Interface((raw, length))
    return DeviceAddress(index, scope, flags, interface)


def uplinks(
    route: Rtnetlink, held: Sequence[DeviceAddress], names: Mapping[int, str], ours: Collection[str]
) -> tuple[Uplink, ...]:
    """The devices that lead out of the host. Only those with a global address are looked at: there may be hundreds of
    others."""
    found: dict[int, dict[int, IPv4Address | IPv6Address]] = {}
    for one in held:
        name = names.get(one.ifindex)
        if one.scope != _RT_SCOPE_UNIVERSE or name is None or name in ours:
            continue
        first = found.setdefault(one.ifindex, {})
        if not one.flags & _IFA_F_UNFIT:
            first.setdefault(one.interface.version, one.interface.ip)
    result = []
    for index, first in found.items():
        flags, mtu = _link(route, index)
        if flags & _IFF_UP and not flags & _IFF_LOOPBACK:
            ipv4, ipv6 = first.get(4), first.get(6)
            assert not isinstance(ipv4, IPv6Address) and not isinstance(ipv6, IPv4Address)
            result.append(Uplink(index, names[index], ipv4, ipv6, mtu))
    return tuple(result)


def unicast_routes(route: Rtnetlink, family: int) -> list[Route]:
    """The unicast routes of all tables; the kernel leaves out others, as the socket checks strictly."""
    with translated("list", "routes"):
        bodies = route.dump(
            Message(rtnetlink.GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, _RTN_UNICAST, 0))
        )
    return [_route(body) for body in bodies]


def _route(body: bytes) -> Route:
    family, length, *_ = ROUTE.unpack_from(body)
    found = attributes(body[ROUTE.size :])
    size = 4 if family == socket.AF_INET else 16
    raw = found.get(_RTA_DST, bytes(size))
    device = _number(found.get(_RTA_OIF, b""))
    if not device and _RTA_MULTIPATH in found:
        device = _HOP.unpack_from(found[_RTA_MULTIPATH])[3]
    metrics = attributes(found.get(_RTA_METRICS, b""))
    prefix = (
        IPv4Network((raw, length), strict=False)
        if family == socket.AF_INET
        else IPv6Network((raw, length), strict=False)
    )
    return Route(
        prefix,
        device,
        _number(found.get(_RTA_PRIORITY, b"")),
        _number(metrics.get(_RTAX_MTU, b"")),
        ip_address(found[_RTA_GATEWAY]) if _RTA_GATEWAY in found else None,
    )


def gateways(route: Rtnetlink) -> list[tuple[int, IPv4Address | IPv6Address]]:
    """(device, gateway) of each default route that has a gateway."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        found += [
            (one.device, one.gateway)
            for one in unicast_routes(route, family)
            if not one.prefix.prefixlen and one.gateway
        ]
    return found


def _routes(route: Rtnetlink) -> tuple[tuple[Prefix, ...], int]:
    """Destinations; MTU of the best default route, or else of its device, IPv4 before IPv6."""
    prefixes: list[Prefix] = []
    defaults: list[tuple[int, int, int, int]] = []  # version, metric, device, own MTU or 0
    for family in (socket.AF_INET, socket.AF_INET6):
        for one in unicast_routes(route, family):
            prefix = one.prefix
            if not prefix.prefixlen:
                defaults.append((prefix.version, one.metric, one.device, one.mtu))
            elif not prefix.is_multicast and not (prefix.version == 6 and prefix.is_link_local):
                prefixes.append(prefix)
    _, _, device, mtu = min(defaults, default=(0, 0, 0, 0))
    if device and not mtu:
        _, mtu = _link(route, device)
    return tuple(dict.fromkeys(prefixes)), mtu


def _link(route: Rtnetlink, index: int) -> tuple[int, int]:
    """Flags and MTU of the device; zeros if it has just gone."""
    try:
        with translated("look at", f"device {index}"):
            body = route.get(Message(rtnetlink.GETLINK, LINK.pack(0, 0, index, 0, 0)))
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):  # EINVAL: index 0, a route without a device
            return 0, 0
        raise
    return LINK.unpack_from(body)[3], _number(attributes(body[LINK.size :])[_IFLA_MTU])


def mtu(route: Rtnetlink, index: int) -> int | None:
    """Bytes of an IP packet that the device takes; None: it has just gone."""
    return _link(route, index)[1] or None


def devices(route: Rtnetlink) -> list[Device]:
    with translated("list", "devices"):
        return [_device(body) for body in route.dump(Message(rtnetlink.GETLINK, LINK.pack(0, 0, 0, 0, 0)))]


def device(route: Rtnetlink, index: int) -> Device | None:
    """The device with that index; None: there is none."""
    try:
        with translated("look at", f"device {index}"):
            return _device(route.get(Message(rtnetlink.GETLINK, LINK.pack(0, 0, index, 0, 0))))
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _device(body: bytes) -> Device:
    _, _, index, flags, _ = LINK.unpack_from(body)
    found = attributes(body[LINK.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    return Device(
        ifindex=index,
        name=os.fsdecode(found[_IFLA_IFNAME].rstrip(b"\0")),
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found[_IFLA_MTU]),
        up=bool(flags & _IFF_UP),
        master=_number(found.get(_IFLA_MASTER, b"")),
    )


def stack(where: netns.Netns) -> Stack:
    """Devices, addresses and default routes of a namespace. KernelError: they cannot be read, or it is gone."""
    with netns.enter(where), translated("open", "rtnetlink socket"):
        opened = Rtnetlink()
    with opened as route:
        known = {one.ifindex: one for one in devices(route)}
        names = {index: one.name for index, one in known.items()}
        by_device: dict[str, set[Interface]] = {}
        for one in addresses(route):
            by_device.setdefault(names.get(one.ifindex, ""), set()).add(one.interface)
        defaults = frozenset((names.get(index, ""), gateway) for index, gateway in gateways(route))
    return Stack(
        {one.name: one for one in known.values()},
        {name: frozenset(found) for name, found in by_device.items()},
        defaults,
    )


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)
