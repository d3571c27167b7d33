# SPDX-License-Identifier: Apache-2.0
"""The device of tunnels: a VXLAN device that is told each packet's network and peer by programs ("external", collect
metadata). Its socket holds the UDP port, and lets the kernel's GRO join what arrives in tunnels.

All errors are KernelError.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from fcntl import ioctl

from datapath.errors import KernelError
from datapath.kernel import facts, rtnetlink, sockets
from datapath.kernel.devices import find_index, index_of, quiet_ipv6
from datapath.kernel.netns import Netns, enter
from datapath.kernel.pyroute import opened, translated
from datapath.kernel.rtnetlink import Message, Refused, Rtnetlink, attributes

KIND = "vxlan"
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 3, 18, 1, 2  # linux/if_link.h
_IFLA_VXLAN_PORT, _IFLA_VXLAN_EXTERNAL = 15, 25
# Bytes: what the devices below take decides, which programs ask about each packet.
_MTU = 65000
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C  # linux/sockios.h, linux/ethtool.h


def create(name: str, port: int, mac: str, netns: Netns = None) -> int:
    """Makes the device, up and without addresses, for both families; its index. `port`: of UDP; `mac`: what frames to
    this host are addressed to. Undone on failure: errno EADDRINUSE if the port is held by a socket or another device
    of the namespace, EEXIST if there is a device of that name or for that port."""
    with enter(netns), opened() as route:
        with translated("create", f"device {name}"):
            route.link(
                "add",
                kind=KIND,
                ifname=name,
                address=mac,
                mtu=_MTU,
                vxlan_collect_metadata=True,
                vxlan_learning=0,
                vxlan_port=port,
                vxlan_udp_zero_csum6_tx=1,
                vxlan_udp_zero_csum6_rx=1,
            )
        index = index_of(name)
        try:
            quiet_ipv6(name)
            _join_nothing(name)
            with translated("set up", f"device {name}"):
                route.link("set", index=index, state="up")
        except BaseException:
            route.link("del", index=index)
            raise
    return index


def _join_nothing(name: str) -> None:
    """What comes to the device has been joined before, by GRO on the uplink, or cannot be: to look at it once more
    takes a queue of its own."""
    value = array("I", (_ETHTOOL_SGRO, 0))
    request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])  # struct ifreq
    with (
        facts.translated("switch off GRO of", f"device {name}"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way,
    ):
        ioctl(way, _SIOCETHTOOL, request)


def port_of(name: str) -> int | None:
    """The port of the `external` VXLAN device of that name; None: there is none, or it is another kind's."""
    index = find_index(name)
    if index is None:
        return None
    with facts.translated("open", "rtnetlink socket"):
        route = Rtnetlink()
    with route, facts.translated("look at", f"device {name}"):
        try:
            found = _vxlan(route.get(Message(rtnetlink.GETLINK, rtnetlink.LINK.pack(0, 0, index, 0, 0))))
        except Refused:  # it has just gone
            return None
    return found[1] if found is not None and found[2] else None


def delete(name: str) -> None:
    """Deletes the device, and returns when its port is free. None of that name is fine."""
    with opened() as route:
        index = find_index(name)
        if index is not None:
            with translated("delete", f"device {name}"):
                route.link("del", index=index)


def holder(port: int) -> str:
    """Who has the UDP port, for an error message: a VXLAN device, which is in this namespace or has been moved out of
    it, or a process."""
    with facts.translated("list", "devices"), Rtnetlink() as route:
        bodies = list(route.dump(Message(rtnetlink.GETLINK, rtnetlink.LINK.pack(0, 0, 0, 0, 0))))
    name = next((found[0] for found in map(_vxlan, bodies) if found is not None and found[1] == port), "")
    if name:
        return f"device {name}"
    moved = "a VXLAN device that was moved to another namespace, as Docker's overlay networks do"
    return sockets.find_holder("udp", None, port) or moved


def _vxlan(body: bytes) -> tuple[str, int, bool] | None:
    """Name, port and whether it is external; None: it is a device of another kind."""
    found = attributes(body[rtnetlink.LINK.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != KIND.encode():
        return None
    data = attributes(info.get(_IFLA_INFO_DATA, b""))
    name = os.fsdecode(found[_IFLA_IFNAME].rstrip(b"\0"))
    return (
        name,
        int.from_bytes(data.get(_IFLA_VXLAN_PORT, b""), "big"),
        any(data.get(_IFLA_VXLAN_EXTERNAL, b"")),
    )


def taken(error: KernelError) -> bool:
    """Somebody has the port. Two external devices on one port are refused with EEXIST."""
    return error.errno in (errno.EADDRINUSE, errno.EEXIST)
