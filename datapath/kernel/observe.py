# SPDX-License-Identifier: Apache-2.0
"""The observation of a host's network: the one place that asks the kernel what the host is."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import cgroup, facts, masquerading, netns, sysctl, xfrm
from datapath.kernel.facts import translated
from datapath.kernel.rtnetlink import Rtnetlink
from datapath.model.host import Device, DeviceAddress, HostNetwork, Route
from datapath.model.observed import Stack
from datapath.model.resolv import ResolvConf

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
RESOLV_CONF = "/etc/resolv.conf"


def host(ours: Collection[str] = ()) -> HostNetwork:
    """The network of the calling thread's namespace, with every device. `ours`: names of devices that datapath has
    made itself. KernelError."""
    with opened() as route:
        return observe(route, frozenset(ours), every=True)


def opened() -> Rtnetlink:
    """A socket in the calling thread's namespace. KernelError."""
    with translated("open", "rtnetlink socket"):
        return Rtnetlink()


def observe(route: Rtnetlink, ours: frozenset[str], *, every: bool) -> HostNetwork:
    """The network of the namespace that the thread is in and that the socket was opened in."""
    addresses = tuple(facts.addresses(route))
    routes = _routes(route)
    group = _group()
    names, devices = _every(route) if every else _some(route, addresses, routes)
    return HostNetwork(
        names=names,
        devices=devices,
        addresses=addresses,
        routes=routes,
        rules=tuple(facts.rules(route)),
        xfrm=xfrm.policies(),
        local=tuple(one for family in _FAMILIES for one in facts.local_routes(route, family)),
        ephemeral=sysctl.ephemeral_ports(),
        reserved=sysctl.read(sysctl.RESERVED_PORTS),
        resolv=_resolv_conf(),
        group=group,
        whole=cgroup.whole(group) if group else 0,
        ours=ours,
        other_nat=masquerading.is_used(),
    )


def _routes(route: Rtnetlink) -> tuple[Route, ...]:
    return tuple(one for family in _FAMILIES for one in facts.unicast_routes(route, family))


def _every(route: Rtnetlink) -> tuple[dict[int, str], dict[int, Device]]:
    devices = {one.ifindex: one for one in facts.devices(route)}
    return {index: one.name for index, one in devices.items()}, devices


def _some(
    route: Rtnetlink, addresses: tuple[DeviceAddress, ...], routes: tuple[Route, ...]
) -> tuple[dict[int, str], dict[int, Device]]:
    """All names, but only those devices that have an address or a route: there may be hundreds of others."""
    with translated("list", "devices"):
        names = dict(socket.if_nameindex())
    used = {one.ifindex for one in addresses} | {index for one in routes for index in one.devices}
    found = ((index, facts.device(route, index)) for index in sorted(used & names.keys()))
    return names, {index: one for index, one in found if one is not None}


def _group() -> str:
    try:
        return cgroup.mount_point()
    except NotSupportedError:
        return ""


def resolv_conf_state() -> str:
    """What is another when the host's resolv.conf has changed, or another file has taken its place."""
    try:
        found = os.stat(RESOLV_CONF)
    except OSError:
        return ""
    return f"{found.st_dev} {found.st_ino} {found.st_mtime_ns} {found.st_size}"


def _resolv_conf() -> ResolvConf:
    try:
        text = Path(RESOLV_CONF).read_text(errors="replace")
    except OSError:
        return ResolvConf()
    return ResolvConf.parse(text)


def names_by_mac(where: netns.Netns, mac: str) -> tuple[str, ...]:
    """The devices of a namespace that have that MAC address; none, if the namespace is gone."""
    try:
        return tuple(device.name for device in stack(where).devices.values() if device.mac == mac)
    except KernelError:
        return ()


def stack(where: netns.Netns) -> Stack:
    """Devices, addresses and default routes of a namespace. KernelError: they cannot be read, or it is gone."""
    with netns.enter(where):
        route = opened()
    with route:
        names, devices = _every(route)
        addresses = tuple(facts.addresses(route))
        found = Stack.of(HostNetwork(names, devices, addresses, _routes(route)))
    return replace(found, localnet=_localnet(where, found.devices))


def _localnet(where: netns.Netns, names: Iterable[str]) -> frozenset[str]:
    """Those of a namespace's devices by which addresses of 127.0.0.0/8 can be reached."""
    paths = {sysctl.route_localnet(name): name for name in names}
    with netns.enter(where):
        found = sysctl.read_existing(paths)
    return frozenset(paths[path] for path, value in found.items() if value == "1")
