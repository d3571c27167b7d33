# SPDX-License-Identifier: Apache-2.0
"""The host's network at one moment: what plans, drivers, `doctor` and the agent all start from. Pure.

It is read in one place, `datapath/kernel/observe.py`. What follows from it (which devices are uplinks, what the default
MTU is) is decided here, so that nobody decides it in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from datapath.model.parsing import Address, Interface, Prefix

DEFAULT_MTU = 1500
ETHERNET, LOOPBACK = 1, 772  # ARPHRD_* of linux/if_arp.h
_RT_SCOPE_UNIVERSE = 0
_IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, DAD failed, deprecated, tentative


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` as rtnetlink names it ("veth", "bridge"; "": hardware and loopback). `master`: the index of the bridge
    that it is a port of; 0: of none. `hardware`: ARPHRD_*, what its frames begin with."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int = 0
    hardware: int = ETHERNET


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """An address of a device. `scope`: RT_SCOPE_*; `flags`: IFA_F_*."""

    ifindex: int
    scope: int
    flags: int
    interface: Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route. `devices`: of its hops, none for some. `mtu`: its own, 0: it has none. `source`: the address
    that the host is told to send from."""

    prefix: Prefix
    devices: tuple[int, ...]
    metric: int
    mtu: int
    gateway: Address | None
    source: Address | None = None

    @property
    def device(self) -> int:
        """That of the first hop; 0: there is none."""
        return next(iter(self.devices), 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of policy routing. `key`: all of it as the kernel tells it, to be compared."""

    version: int
    key: bytes


@dataclass(frozen=True, slots=True)
class XfrmPolicy:
    """What the kernel does with packets of a kind (IPsec): it may "block" them, "protect" them as a template says, or
    "allow" them to pass as they are. `direction`: "in", "out", "fwd", or "socket". Prefixes are None for every
    address of both families; `proto`, `ifindex` 0: every; `sport`, `dport`: port and mask. `narrowed`: it is only about
    packets with a mark or of an xfrm interface, or allows only those of a device."""

    direction: str
    source: Prefix | None
    destination: Prefix | None
    proto: int
    sport: tuple[int, int]
    dport: tuple[int, int]
    ifindex: int
    priority: int
    action: str
    narrowed: bool


@dataclass(frozen=True, slots=True)
class XfrmPolicies:
    """All policies, in the order in which the kernel looks at them: the first about a packet counts. `blocked`:
    directions in which packets that no policy is about do not pass."""

    all: tuple[XfrmPolicy, ...] = ()
    blocked: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Any packet is treated otherwise than without policies."""
        return bool(self.all or self.blocked)


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device of the host that leads outside, and the addresses that packets leave with."""

    ifindex: int
    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mtu: int


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """`names`: all devices by index; `devices`: those with an address or a route, or all of them. `addresses`: all,
    in the kernel's order; `routes`: the unicast ones of all tables; `local`: destinations of those of type local.
    `ephemeral`: net.ipv4.ip_local_port_range, inclusive; `reserved`: net.ipv4.ip_local_reserved_ports, as it is
    written. `resolvers`: the name servers of resolv.conf, as they are written. `group`: where the cgroup2 hierarchy is
    mounted, "": nowhere. `ours`: names of devices that datapath has made itself."""

    names: Mapping[int, str] = field(default_factory=dict)
    devices: Mapping[int, Device] = field(default_factory=dict)
    addresses: tuple[DeviceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    xfrm: XfrmPolicies = XfrmPolicies()
    local: tuple[Prefix, ...] = ()
    ephemeral: tuple[int, int] = (32768, 60999)
    reserved: str = ""
    resolvers: tuple[str, ...] = ()
    group: str = ""
    ours: frozenset[str] = frozenset()

    @property
    def ips(self) -> frozenset[Address]:
        """All addresses of the host."""
        return frozenset(one.interface.ip for one in self.addresses)

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The devices that are up and have a global address, without loopback and ours."""
        found: dict[int, dict[int, Address]] = {}
        for one in self.addresses:
            device = self.devices.get(one.ifindex)
            if one.scope != _RT_SCOPE_UNIVERSE or device is None or device.name in self.ours:
                continue
            if not device.up or device.hardware == LOOPBACK:
                continue
            first = found.setdefault(one.ifindex, {})
            if not one.flags & _IFA_F_UNFIT:
                first.setdefault(one.interface.version, one.interface.ip)
        return tuple(self._uplink(self.devices[index], first) for index, first in found.items())

    @staticmethod
    def _uplink(device: Device, first: Mapping[int, Address]) -> Uplink:
        ipv4, ipv6 = first.get(4), first.get(6)
        assert not isinstance(ipv4, IPv6Address) and not isinstance(ipv6, IPv4Address)
        return Uplink(device.ifindex, device.name, ipv4, ipv6, device.mtu)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Destinations of the routes, without default, link-local and multicast ones."""
        found = (route.prefix for route in self.routes if route.prefix.prefixlen)
        return tuple(
            dict.fromkeys(
                prefix
                for prefix in found
                if not prefix.is_multicast and not (prefix.version == 6 and prefix.is_link_local)
            )
        )

    @property
    def local_prefixes(self) -> tuple[Prefix, ...]:
        """What is the host's though none of its devices has the address ("AnyIP"), without loopback."""
        return tuple(
            dict.fromkeys(
                prefix
                for prefix in self.local
                if not prefix.is_loopback
                and not (prefix.prefixlen == prefix.max_prefixlen and prefix.network_address in self.ips)
            )
        )

    @property
    def _route_mtu(self) -> int:
        """Of the best default route, or else of its device, IPv4 before IPv6; 0: there is none."""
        defaults = [route for route in self.routes if not route.prefix.prefixlen]
        best = min(((r.prefix.version, r.metric, r.device, r.mtu) for r in defaults), default=(0, 0, 0, 0))
        device = self.devices.get(best[2])
        return best[3] or (device.mtu if device else 0)

    @property
    def default_route(self) -> bool:
        """A default route says how large packets may be."""
        return self._route_mtu != 0

    @property
    def default_mtu(self) -> int:
        """Bytes of an IP packet that leaves by the default route; the Ethernet's if there is none."""
        return self._route_mtu or DEFAULT_MTU
