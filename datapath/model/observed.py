# SPDX-License-Identifier: Apache-2.0
"""The host as `doctor` observes it.

Map entries are tuples with the names of abi.h's fields; of networks and devices they are those of `entries`, with
enumerators by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datapath.model.host import Device as Device
from datapath.model.host import HostNetwork, Uplink
from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix
from datapath.model.resolv import RESOLVER, NameFacts
from datapath.model.wireguard import Encryption

Entries = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Stack:
    """One network namespace: devices by name; addresses by device; (device, gateway) of each default route,
    with the unspecified address if there is no gateway.
    `resolver`: devices by which the resolver's address is reached; `localnet`: those by which 127.0.0.0/8 may be."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    addresses: Mapping[str, frozenset[Interface]] = field(default_factory=dict)
    defaults: frozenset[tuple[str, Address]] = frozenset()
    resolver: frozenset[str] = frozenset()
    localnet: frozenset[str] = frozenset()

    def at(self, ifindex: int) -> Device | None:
        return next((device for device in self.devices.values() if device.ifindex == ifindex), None)

    @staticmethod
    def of(network: HostNetwork) -> Stack:
        """That of a namespace of which every device was read."""
        names = {index: device.name for index, device in network.devices.items()}
        addresses: dict[str, set[Interface]] = {}
        for one in network.addresses:
            addresses.setdefault(names.get(one.ifindex, ""), set()).add(one.interface)
        return Stack(
            {device.name: device for device in network.devices.values()},
            {name: frozenset(found) for name, found in addresses.items()},
            frozenset(
                (names.get(route.device, ""), route.gateway or route.prefix.network_address)
                for route in network.routes
                if not route.prefix.prefixlen
            ),
            frozenset(
                names.get(route.device, "")
                for route in network.routes
                if route.prefix.network_address == RESOLVER
                and route.prefix.prefixlen == RESOLVER.max_prefixlen
            ),
        )


@dataclass(frozen=True, slots=True)
class Programs:
    """What is pinned. `attached`: (hook, ifindex) where our program really runs; `sockets`: the socket hooks that
    do; `group`: the kernel's number of the control group that they are attached to, 0: of the one that was asked for;
    `foreign`: link pins with a program that is not ours; `tails`: programs that others find to go on in; `broken`:
    pin -> why it cannot be used; `outdated`: they are of another version; `upgrading`: an upgrade was not finished."""

    mounted: bool = False
    pinned: Mapping[str, frozenset[str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    maps: Mapping[str, Entries] = field(default_factory=dict)
    attached: frozenset[tuple[str, int]] = frozenset()
    sockets: frozenset[str] = frozenset()
    group: int = 0
    foreign: frozenset[str] = frozenset()
    tails: frozenset[str] = frozenset()
    broken: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    outdated: bool = False
    upgrading: bool = False
    flood_rate: int = 0

    @property
    def loaded(self) -> bool:
        return not self.missing


@dataclass(frozen=True, slots=True)
class Observed:
    """A host as it is. `network`: with every device of the host. `host`: the same as a stack. `sandboxes`: the stacks
    of those in which somebody lives. `alive`: containers whose process is there. `sysctls`: those that were asked
    for, as far as they exist. `reserved_before` and `reserved_written`: the notes of what ip_local_reserved_ports was
    before, and of what was written there. `filters`: what the packet filter's tool lists, by mode and IP version, of
    those that linuxbridge networks use; `unlisted`: why it does not. `forwarding_off`: settings that have to be on for
    such networks and are not; `forwarding_spare`: those that were switched on and that nothing needs any more.
    `names`: what rows about names need to know. `tunnel_port`: the UDP port of tunnels, 0: this host is of no cluster;
    `tunnel_device_port`: the one of the device for tunnels, 0: there is no such device. `plugins`: why plugins that
    networks need are no help, by name and what they have to implement; "": they answer. `encryption`: of encrypted
    tunnels; None: no network has any."""

    network: HostNetwork
    host: Stack
    sandboxes: Mapping[str, Stack]
    alive: frozenset[str]
    sysctls: Mapping[str, str]
    reserved_before: str | None
    programs: Programs
    reserved_written: str | None = None
    filters: Mapping[tuple[str, int], str] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    forwarding_off: frozenset[str] = frozenset()
    forwarding_spare: frozenset[str] = frozenset()
    names: NameFacts = field(default_factory=NameFacts)
    tunnel_port: int = 0
    tunnel_device_port: int = 0
    encryption: Encryption | None = None
    plugins: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The devices that lead out of the host."""
        return self.network.uplinks

    @property
    def addresses(self) -> frozenset[Address]:
        """All of the host's."""
        return self.network.ips


class HostFacts(NamedTuple):
    """What was observed of the host. `prefixes`: networks of its addresses and routes; a default route is
    no obstacle and ignored. `learned`: those of them that a routing daemon has heard of. `local_prefixes`: what is the
    host's besides its addresses. `default_mtu`: of its default
    route's device, bytes."""

    prefixes: tuple[Prefix, ...] = ()
    addresses: frozenset[Address] = frozenset()
    default_mtu: int = 1500
    default_route: bool = True
    devices: frozenset[str] = frozenset()
    uplinks: tuple[str, ...] = ()
    local_prefixes: tuple[Prefix, ...] = ()
    learned: tuple[Prefix, ...] = ()

    def has(self, address: Address) -> bool:
        """It is one of the host's own."""
        return address in self.addresses or any(
            address in prefix for prefix in self.local_prefixes if prefix.version == address.version
        )
