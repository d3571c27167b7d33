# SPDX-License-Identifier: Apache-2.0
"""Messages of rtnetlink about devices, addresses and default routes; and steps, which are messages with a name."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from datapath.errors import KernelError
from datapath.kernel import log, rtnetlink
from datapath.kernel.facts import Interface
from datapath.kernel.rtnetlink import (
    CREATE,
    DELLINK,
    DELROUTE,
    EXCL,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    REPLACE,
    SETLINK,
    Message,
    Refused,
    Rtnetlink,
    attribute,
    text,
    u32,
)
from datapath.model.devices import NETKIT, VETH

LOOPBACK = 1  # the kernel gives every namespace's loopback this index
IFF_UP = 0x1
IFF_NOARP = 0x80
_IFA_F_NODAD = 0x02
# linux/if_link.h, if_addr.h, rtnetlink.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_INFO_PEER = 1  # VETH_INFO_PEER and IFLA_NETKIT_PEER_INFO
_IFLA_NETKIT_MODE, _NETKIT_L2 = 5, 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 6, 7, 18
_RT_TABLE_MAIN, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RTN_UNICAST, _RT_SCOPE_NOWHERE = 254, 255, 4, 1, 255
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

# What is done and to what, for the error if the kernel refuses it; and the message that asks for it.
Step = tuple[str, str, Message]


def do(route: Rtnetlink, *steps: Step) -> None:
    """Has all steps done, in order, with one system call. KernelError names the first that was refused."""
    try:
        with log.operation(lambda: ", ".join(f"{what} {subject}" for what, subject, _ in steps)):
            route.do(*(message for _, _, message in steps))
    except Refused as error:
        operation, subject, _ = steps[error.place]
        raise KernelError(operation, subject, error.errno or 0) from error
    except OSError as error:
        raise KernelError(*steps[0][:2], error.errno or 0) from error


def family(version: int) -> int:
    """The address family of an IP version."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def end(name: str, mtu: int, mac: str = "", netns: int | None = None) -> bytes:
    """The attributes of one end of a new pair. `mac` empty: the kernel chooses; `netns`: an fd of the namespace that
    it is made in, None: that of the socket."""
    attributes = text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu)
    if mac:
        attributes += attribute(_IFLA_ADDRESS, packed_mac(mac))
    return attributes if netns is None else attributes + u32(_IFLA_NET_NS_FD, netns)


def packed_mac(mac: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def new_pair(one: bytes, other: bytes, kind: str = VETH) -> Message:
    """Makes a pair of devices of a kind, VETH or NETKIT, from the attributes of its ends. Of netkit, `one` is the
    primary device, which alone may change how either end works."""
    header = rtnetlink.LINK.pack(0, 0, 0, 0, 0)
    data = attribute(_INFO_PEER, header + other)
    if kind == NETKIT:
        data += u32(_IFLA_NETKIT_MODE, _NETKIT_L2)
    info = attribute(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind) + attribute(_IFLA_INFO_DATA, data))
    return Message(NEWLINK, header + one + info, CREATE | EXCL)


def set_flags(index: int, flags: int) -> Message:
    """Sets these of the device's flags (IFF_*), and leaves the others."""
    return Message(SETLINK, rtnetlink.LINK.pack(0, 0, index, flags, flags))


def named(device: str | int) -> bytes:
    """The device that a message is about, by name or index."""
    if isinstance(device, int):
        return rtnetlink.LINK.pack(0, 0, device, 0, 0)
    return rtnetlink.LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, device)


LOOPBACK_UP: Step = ("set up", "device lo", set_flags(LOOPBACK, IFF_UP))


def bring_up(index: int, name: str, addresses: Sequence[Interface], exist_ok: bool = False) -> Iterator[Step]:
    """Gives a device addresses, usable at once, and sets it up. `exist_ok`: one that it has already is fine."""
    flags = CREATE | (REPLACE if exist_ok else EXCL)
    for address in addresses:
        length, packed = address.network.prefixlen, address.ip.packed
        body = rtnetlink.ADDR.pack(family(address.version), length, 0, 0, index)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        if address.version == 6:
            body += u32(_IFA_FLAGS, _IFA_F_NODAD)
        elif length < 31:
            body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
        yield "add", f"address {address} to {name}", Message(NEWADDR, body, flags)
    yield "set up", f"device {name}", set_flags(index, IFF_UP)


def default_route(index: int, name: str, gateway: Address) -> Step:
    """Makes the gateway the default route of its family with that device, in place of one through the same device. The
    unspecified address: everybody is on the device's link."""
    scope = _RT_SCOPE_LINK if gateway.is_unspecified and gateway.version == 4 else _RT_SCOPE_UNIVERSE
    header = rtnetlink.ROUTE.pack(
        *(family(gateway.version), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
    )
    body = header + u32(_RTA_OIF, index)
    if not gateway.is_unspecified:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    return "add", f"default route via {gateway} to {name}", Message(NEWROUTE, body, CREATE | REPLACE)


def static_route(index: int, destination: Prefix, next_hop: Address | None) -> Step:
    """Makes a prefix be reached by a next hop, whichever device that is behind; with None on link at the device."""
    header = rtnetlink.ROUTE.pack(
        *(family(destination.version), destination.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC),
        *(_RT_SCOPE_LINK if next_hop is None and destination.version == 4 else 0, _RTN_UNICAST, 0),
    )
    body = header + attribute(_RTA_DST, destination.network_address.packed)
    body += u32(_RTA_OIF, index) if next_hop is None else attribute(_RTA_GATEWAY, next_hop.packed)
    where = "on link" if next_hop is None else f"via {next_hop}"
    return "add", f"route to {destination} {where}", Message(NEWROUTE, body, CREATE | REPLACE)


def remove_default_route(index: int, version: int) -> Step:
    """Removes the default route of that IP version (4, 6) through the device."""
    header = rtnetlink.ROUTE.pack(family(version), 0, 0, 0, _RT_TABLE_MAIN, 0, _RT_SCOPE_NOWHERE, 0, 0)
    message = Message(DELROUTE, header + u32(_RTA_OIF, index))
    return "remove", f"default route of device {index}", message


def host_route(
    index: int, name: str, destination: IPv4Address, gateway: Address, source: IPv4Address, metric: int
) -> Step:
    """Makes one address, which may be one of 127.0.0.0/8, be reached by a gateway of either family, before any other
    way to it; packets have that source. If it is the gateway itself, it is on the device's link. Routes of other
    devices, with another metric, stay."""
    scope = _RT_SCOPE_LINK if gateway == destination else _RT_SCOPE_UNIVERSE
    header = rtnetlink.ROUTE.pack(
        *(
            socket.AF_INET,
            destination.max_prefixlen,
            0,
            0,
            _RT_TABLE_LOCAL,
            _RTPROT_STATIC,
            scope,
            _RTN_UNICAST,
            0,
        )
    )
    if gateway == destination:
        via = b""
    elif gateway.version == 4:
        via = attribute(_RTA_GATEWAY, gateway.packed)
    else:
        via = attribute(_RTA_VIA, int(socket.AF_INET6).to_bytes(2, sys.byteorder) + gateway.packed)
    body = header + attribute(_RTA_DST, destination.packed) + via + u32(_RTA_OIF, index)
    body += attribute(_RTA_PREFSRC, source.packed) + u32(_RTA_PRIORITY, metric)
    return "add", f"route to {destination} by {name}", Message(NEWROUTE, body, CREATE | REPLACE)


def direct_route(index: int, name: str, address: Address, source: Address | None) -> Step:
    """Makes one address be on the device's link; packets have that source, None: that which the kernel chooses."""
    scope = _RT_SCOPE_LINK if address.version == 4 else _RT_SCOPE_UNIVERSE
    header = rtnetlink.ROUTE.pack(
        *(family(address.version), address.max_prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC),
        *(scope, _RTN_UNICAST, 0),
    )
    body = header + attribute(_RTA_DST, address.packed) + u32(_RTA_OIF, index)
    if source is not None:
        body += attribute(_RTA_PREFSRC, source.packed)
    return "add", f"route to {address} by {name}", Message(NEWROUTE, body, CREATE | REPLACE)


def remove_direct_route(index: int, name: str, address: Address) -> Step:
    """Takes that route back."""
    header = rtnetlink.ROUTE.pack(
        *(family(address.version), address.max_prefixlen, 0, 0, _RT_TABLE_MAIN, 0),
        *(_RT_SCOPE_NOWHERE, 0, 0),
    )
    body = header + attribute(_RTA_DST, address.packed) + u32(_RTA_OIF, index)
    return "remove", f"route to {address} by {name}", Message(DELROUTE, body)


def prefix_route(index: int, name: str, prefix: Prefix, protocol: int) -> Step:
    """Makes a prefix be on the device's link. `protocol`: RTPROT_*, by which others know whose route it is."""
    scope = _RT_SCOPE_LINK if prefix.version == 4 else _RT_SCOPE_UNIVERSE
    header = rtnetlink.ROUTE.pack(
        *(family(prefix.version), prefix.prefixlen, 0, 0, _RT_TABLE_MAIN, protocol, scope, _RTN_UNICAST, 0)
    )
    body = header + attribute(_RTA_DST, prefix.network_address.packed) + u32(_RTA_OIF, index)
    return "add", f"route to {prefix} by {name}", Message(NEWROUTE, body, CREATE | REPLACE)


def remove_prefix_route(index: int, name: str, prefix: Prefix, protocol: int) -> Step:
    """Takes that route back."""
    header = rtnetlink.ROUTE.pack(
        *(family(prefix.version), prefix.prefixlen, 0, 0, _RT_TABLE_MAIN, protocol),
        *(_RT_SCOPE_NOWHERE, 0, 0),
    )
    body = header + attribute(_RTA_DST, prefix.network_address.packed) + u32(_RTA_OIF, index)
    return "remove", f"route to {prefix} by {name}", Message(DELROUTE, body)


def change(index: int, attributes: bytes) -> Message:
    """Changes attributes of a device."""
    return Message(SETLINK, rtnetlink.LINK.pack(0, 0, index, 0, 0) + attributes)


def set_down(index: int) -> Message:
    return Message(SETLINK, rtnetlink.LINK.pack(0, 0, index, 0, IFF_UP))


def moved(netns: int) -> bytes:
    """Into the namespace of that fd."""
    return u32(_IFLA_NET_NS_FD, netns)


def new_name(name: str) -> bytes:
    return text(_IFLA_IFNAME, name)


def new_mac(mac: str) -> bytes:
    return attribute(_IFLA_ADDRESS, packed_mac(mac))


def new_mtu(mtu: int) -> bytes:
    """Bytes of an IP packet."""
    return u32(_IFLA_MTU, mtu)


def delete(device: str | int) -> Message:
    return Message(DELLINK, named(device))


def unchanged(device: str | int) -> Message:
    """A change of nothing, which is refused if there is no such device."""
    return Message(SETLINK, named(device))
