# SPDX-License-Identifier: Apache-2.0
"""The devices, addresses, routes and rules of a network namespace, read through rtnetlink."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from datapath.errors import KernelError
from datapath.kernel import rtnetlink
from datapath.kernel.rtnetlink import ADDR, LINK, ROUTE, RULE, Message, Rtnetlink, attributes
from datapath.model.host import Device, DeviceAddress, Route, Rule
from datapath.model.parsing import Address

_IFF_UP = 0x1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
_IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 37, 46
_IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_GRE_REMOTE, _IFLA_GRE_COLLECT_METADATA = 2, 4, 7, 18
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 8, 9
_RTA_PREFSRC = 7
_RTAX_MTU = 2
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, index
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_MAIN, _LOCAL = 254, 255  # RT_TABLE_*

Interface = IPv4Interface | IPv6Interface
Prefix = IPv4Network | IPv6Network


@contextlib.contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """The system's errors as KernelError."""
    try:
        yield
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0) from error


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


def unicast_routes(route: Rtnetlink, family: int) -> list[Route]:
    """The unicast routes of all tables; the kernel leaves out others, as the socket checks strictly."""
    return [_route(body) for body in _routes(route, family, _RTN_UNICAST)]


def local_routes(route: Rtnetlink, family: int) -> list[Prefix]:
    """What the host takes for its own, whatever rule a packet is under: routes of type local, of its addresses too.
    Other tables' hold for the packets of some rule only (a transparent proxy's, a VRF's)."""
    bodies = _routes(route, family, _RTN_LOCAL)
    return [_route(body).prefix for body in bodies if ROUTE.unpack_from(body)[4] in (_MAIN, _LOCAL)]


def _routes(route: Rtnetlink, family: int, kind: int) -> list[bytes]:
    with translated("list", "routes"):
        return list(route.dump(Message(rtnetlink.GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, kind, 0))))


def _route(body: bytes) -> Route:
    family, length, _, _, _, protocol, *_ = ROUTE.unpack_from(body)
    found = attributes(body[ROUTE.size :])
    size = 4 if family == socket.AF_INET else 16
    raw = found.get(_RTA_DST, bytes(size))
    device = _number(found.get(_RTA_OIF, b""))
    metrics = attributes(found.get(_RTA_METRICS, b""))
    prefix = (
        IPv4Network((raw, length), strict=False)
        if family == socket.AF_INET
        else IPv6Network((raw, length), strict=False)
    )
    return Route(
        prefix,
        (device,) if device else tuple(_hops(found.get(_RTA_MULTIPATH, b""))),
        _number(found.get(_RTA_PRIORITY, b"")),
        _number(metrics.get(_RTAX_MTU, b"")),
        _address(found.get(_RTA_GATEWAY)),
        _address(found.get(_RTA_PREFSRC)),
        protocol,
    )


def _hops(data: bytes) -> Iterator[int]:
    """The devices of a route with several hops."""
    at = 0
    while at + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, at)
        yield index
        at += max(length + 3 & ~3, _HOP.size)


def _address(raw: bytes | None) -> Address | None:
    return ip_address(raw) if raw else None


def rules(route: Rtnetlink) -> list[Rule]:
    """The rules of policy routing. A kernel without them has none."""
    found = []
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        try:
            with translated("list", "routing rules"):
                bodies = route.dump(Message(rtnetlink.GETRULE, RULE.pack(family, 0, 0, 0, 0, 0, 0)))
        except KernelError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                raise
            continue
        found += [Rule(version, body) for body in bodies]
    return found


def mtu(route: Rtnetlink, index: int) -> int | None:
    """Bytes of an IP packet that the device takes; None: it has just gone."""
    found = device(route, index)
    return found.mtu if found else None


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


def is_cut_off(route: Rtnetlink, index: int) -> bool:
    """The device is gone, or its other end is in a network namespace that nobody is in or holds any more: the kernel
    takes both ends away with that, in its own time."""
    try:
        with translated("look at", f"device {index}"):
            body = route.get(Message(rtnetlink.GETLINK, LINK.pack(0, 0, index, 0, 0)))
            raw = attributes(body[LINK.size :]).get(_IFLA_LINK_NETNSID)
            if raw is None:
                return False  # it is in this one
            loopback = LINK.pack(0, 0, 1, 0, 0) + rtnetlink.attribute(_IFLA_TARGET_NETNSID, raw)
            route.get(Message(rtnetlink.GETLINK, loopback))
    except KernelError as error:
        # EINVAL: that number is no living namespace's. One that the kernel has begun to take away has -1.
        if error.errno in (errno.ENODEV, errno.EINVAL):
            return True
        raise
    return False


def _device(body: bytes) -> Device:
    _, hardware, index, flags, _ = LINK.unpack_from(body)
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
        hardware=hardware,
        slave=info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0").decode(),
        many_peers=_has_many_peers(info),
    )


def _has_many_peers(info: Mapping[int, bytes]) -> bool:
    """A GRE device whose other end is a group, or nobody in particular. (GRE over IPv6 is like others even then.)"""
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"gre":
        return False
    gre = attributes(info.get(_IFLA_INFO_DATA, b""))
    remote = gre.get(_IFLA_GRE_REMOTE, bytes(4))
    return _IFLA_GRE_COLLECT_METADATA not in gre and (not any(remote) or remote[0] >> 4 == 0xE)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)
