# SPDX-License-Identifier: Apache-2.0
"""The host's network at one moment: what plans, drivers, `doctor` and the agent all start from. Pure.

It is read in one place, `datapath/kernel/observe.py`. What follows from it (which devices are uplinks, what the default
MTU is) is decided here, so that nobody decides it in another way. What there is much of is a tuple: such a class is
made in a tenth of a dataclass's time, which every command takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from datapath.model.parsing import Address, Interface, Prefix
from datapath.model.resolv import ResolvConf

DEFAULT_MTU = 1500
ETHERNET, LOOPBACK = 1, 772  # ARPHRD_* of linux/if_arp.h
# The same, of devices whose packets begin with their IP header: PPP, raw IP, the tunnels IPIP, IP6TNL, SIT, GRE and
# GRE over IPv6, none (tun, WireGuard, xfrm), void. From a frame that is sent there the kernel itself takes the
# Ethernet header off, for these and no others (dev_is_mac_header_xmit).
_BARE = frozenset((512, 519, 768, 769, 776, 778, 823, 0xFFFE, 0xFFFF))
_RT_SCOPE_UNIVERSE = 0
_FR_ACT_TO_TBL = 1
# RTPROT_* of linux/rtnetlink.h: gated, zebra, bird, xorp, babel, openr, and what FRR calls bgp, isis, ospf, rip, eigrp.
_DAEMONS = frozenset((8, 11, 12, 14, 42, 99, 186, 187, 188, 189, 192))
_USUAL_TABLES = (253, 254, 255)  # RT_TABLE_DEFAULT, _MAIN, _LOCAL
_IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, DAD failed, deprecated, tentative
# The same of what programs send from: one that is tentative is not in a second, and by then no command may follow.
_IFA_F_UNSENT = 0x01 | 0x08 | 0x20


class Device(NamedTuple):
    """`kind` as rtnetlink names it ("veth", "bridge"; "": hardware and loopback). `master`: the index of the bridge
    that it is a port of; 0: of none. `hardware`: ARPHRD_*, what its frames begin with. `slave`: what it is a slave of,
    as rtnetlink names that ("bridge", "vrf"). `many_peers`: a tunnel that asks its neighbours for its other end."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int = 0
    hardware: int = ETHERNET
    slave: str = ""
    many_peers: bool = False


class DeviceAddress(NamedTuple):
    """An address of a device. `scope`: RT_SCOPE_*; `flags`: IFA_F_*."""

    ifindex: int
    scope: int
    flags: int
    interface: Interface


class Route(NamedTuple):
    """A unicast route. `devices`: of its hops, none for some. `mtu`: its own, 0: it has none. `source`: the address
    that the host is told to send from. `protocol`: RTPROT_*, who has made it."""

    prefix: Prefix
    devices: tuple[int, ...]
    metric: int
    mtu: int
    gateway: Address | None
    source: Address | None = None
    protocol: int = 0

    @property
    def device(self) -> int:
        """That of the first hop; 0: there is none."""
        return next(iter(self.devices), 0)


class Rule(NamedTuple):
    """A rule of policy routing. `key`: all of it as the kernel tells it, to be compared: a struct fib_rule_hdr, then
    attributes."""

    version: int
    key: bytes

    @property
    def usual(self) -> bool:
        """It leads to one of the tables that every host has."""
        table, action = self.key[4], self.key[7]
        return action == _FR_ACT_TO_TBL and table in _USUAL_TABLES


class XfrmPolicy(NamedTuple):
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


class Uplink(NamedTuple):
    """A device of the host that leads outside, and the addresses that packets leave with, which need not be its own.
    `bare`: its packets have no Ethernet header. `unserved`: why the packet programs cannot serve it; "": they can.
    `linklocal`: its own IPv6 address of that kind, from which name servers on its link are asked."""

    ifindex: int
    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mtu: int
    bare: bool = False
    unserved: str = ""
    linklocal: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """`names`: all devices by index; `devices`: those with an address or a route, or all of them. `addresses`: all,
    in the kernel's order; `routes`: the unicast ones of all tables; `local`: destinations of those of type local.
    `ephemeral`: net.ipv4.ip_local_port_range, inclusive; `reserved`: net.ipv4.ip_local_reserved_ports, as it is
    written. `resolv`: the host's resolv.conf; nothing if it has none. `group`: where the cgroup2 hierarchy is mounted,
    "": nowhere. `whole`: that group's number if all processes of the host are in it, else 0. `ours`:
    names of devices that datapath has made itself. `other_nat`: the host forwards, and its packet filter gives what is
    forwarded another source."""

    names: Mapping[int, str] = field(default_factory=dict)
    devices: Mapping[int, Device] = field(default_factory=dict)
    addresses: tuple[DeviceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    xfrm: XfrmPolicies = XfrmPolicies()
    local: tuple[Prefix, ...] = ()
    ephemeral: tuple[int, int] = (32768, 60999)
    reserved: str = ""
    resolv: ResolvConf = field(default_factory=ResolvConf)
    group: str = ""
    whole: int = 0
    ours: frozenset[str] = frozenset()
    other_nat: bool = False
    _uplinks: list[tuple[Uplink, ...]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def ips(self) -> frozenset[Address]:
        """All addresses of the host."""
        return frozenset(one.interface.ip for one in self.addresses)

    def has(self, address: Address) -> bool:
        """Whether packets to it stay on the host."""
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address in self.ips or any(address in one for one in self.local)

    def first_address(self, ifindex: int) -> Address | None:
        """The address of a device that other hosts reach it by: its first global one, IPv4 before IPv6."""
        found = (
            one.interface.ip
            for one in self.addresses
            if one.ifindex == ifindex and one.scope == _RT_SCOPE_UNIVERSE and not one.flags & _IFA_F_UNFIT
        )
        return min(found, key=lambda address: address.version, default=None)

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The devices that lead out of the host: those that are up and that a route leads out by, of whichever table,
        or that have a global address; without loopback and ours."""
        if not self._uplinks:  # a command asks five times
            self._uplinks.append(self._found_uplinks())
        return self._uplinks[0]

    def _found_uplinks(self) -> tuple[Uplink, ...]:
        own: dict[int, dict[int, Address]] = {}
        linklocals: dict[int, IPv6Address] = {}
        for one in self.addresses:
            address = one.interface.ip
            if isinstance(address, IPv6Address) and address.is_link_local and not one.flags & _IFA_F_UNSENT:
                linklocals.setdefault(one.ifindex, address)
            if one.scope == _RT_SCOPE_UNIVERSE:
                first = own.setdefault(one.ifindex, {})
                if not one.flags & _IFA_F_UNSENT:
                    first.setdefault(one.interface.version, one.interface.ip)
        ways: dict[int, dict[int, Route]] = {}
        for route in sorted(self.routes, key=lambda route: (route.prefix.prefixlen, route.metric)):
            if leads_out(route.prefix):
                for index in route.devices:
                    ways.setdefault(index, {}).setdefault(route.prefix.version, route)
        found = (self.devices.get(index) for index in dict.fromkeys((*own, *sorted(ways))))
        return tuple(
            self._uplink(device, own, ways.get(device.ifindex, {}), linklocals.get(device.ifindex))
            for device in found
            if device and device.up and device.hardware != LOOPBACK and device.name not in self.ours
        )

    @staticmethod
    def _uplink(
        device: Device,
        own: Mapping[int, Mapping[int, Address]],
        ways: Mapping[int, Route],
        linklocal: IPv6Address | None,
    ) -> Uplink:
        """`ways`: the device's most general route, by version."""
        sources: dict[int, Address | None] = {}
        for version in (4, 6):
            way = ways.get(version)
            sources[version] = own.get(device.ifindex, {}).get(version)
            if way is not None and way.source:
                sources[version] = way.source
            elif way is not None and not sources[version]:
                # As the kernel does it, which begins with the loopback device.
                others = (own[index].get(version) for index in sorted(own))
                sources[version] = next((address for address in others if address), None)
        ipv4, ipv6 = sources[4], sources[6]
        assert not isinstance(ipv4, IPv6Address) and not isinstance(ipv6, IPv4Address)
        bare, why = device.hardware in _BARE, unserved(device)
        return Uplink(device.ifindex, device.name, ipv4, ipv6, device.mtu, bare, why, linklocal)

    @property
    def steered(self) -> bool:
        """Not all packets of the host's own processes go where the main table leads: some by rules of policy
        routing, some by IPsec."""
        return bool(self.xfrm) or not all(rule.usual for rule in self.rules)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Destinations of the routes, without default, link-local and multicast ones."""
        found = (route.prefix for route in self.routes if route.prefix.prefixlen)
        return tuple(dict.fromkeys(prefix for prefix in found if leads_out(prefix)))

    @property
    def learned(self) -> tuple[Prefix, ...]:
        """Destinations of the routes that a routing daemon has heard of from others."""
        return tuple(route.prefix for route in self.routes if route.protocol in _DAEMONS)

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


def leads_out(prefix: Prefix) -> bool:
    """A route to there is more than the one to its own link that every device with IPv6 has."""
    return not prefix.is_multicast and not (prefix.version == 6 and prefix.is_link_local)


def unserved(device: Device) -> str:
    """Why the packet programs cannot serve an uplink; "": they can."""
    if device.slave == "vrf":
        return "it is in a VRF, and answers of containers do not take a VRF's routes"
    if device.many_peers:
        return "it is a GRE device without one remote end, whose packets come with the outer header"
    if device.hardware != ETHERNET and device.hardware not in _BARE:
        return f"its packets have a header that is not Ethernet's (device type {device.hardware})"
    return ""
