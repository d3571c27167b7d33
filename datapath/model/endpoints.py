# SPDX-License-Identifier: Apache-2.0
"""Endpoints: what joins a sandbox to a network."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from datapath.errors import ConfigError, quoted
from datapath.model.limits import Limit, limits_of
from datapath.model.networks import OPT_ENDPOINT_SYSCTLS, OPT_FORWARDING
from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix
from datapath.model.plugins import Joined
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.services import Membership

IFNAME = "IFNAME"  # stands for the device in its settings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Joins one sandbox to one network by a veth pair. `number` is never used twice on a host, `slot` is the
    member's place in its network. `gateway4`, `gateway6`: the sandbox's default route of that family is here.
    `ports` are the published ones, with concrete host ports; `static`: the user chose the address(es).
    `link_local`: addresses that were asked for beside the one that the kernel makes. `dns`: the servers that its owner
    names for what is not found among the names here, as in a resolv.conf; (): none.
    `owner_key`: the identifier that the sandbox's owner has for the endpoint, as Docker's endpoint id; "": none.
    `handed_over`: the owner moves the device into the sandbox himself, and answers for its name, addresses and routes
    there; the gateway flags are as the owner says. `published`: the ports that the owner wants once a default route is
    here, as asked for; `chosen`: those of them whose host port had been left open, with the one that was chosen.
    `static_mac`: the user chose the MAC address. `joined`: what the network's plugin said of the sandbox's device and
    routes; None: it has not been asked, or the network has none. `services`: those that its option names. `asker`,
    `asker_start`: pid and start time of the owner's process that asked for it and will move its device; 0: not known.
    """

    id: str
    network_id: str
    sandbox_id: str
    number: int
    slot: int
    ifname: str
    host_ifname: str
    mac: str
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None
    aliases: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    gateway4: bool = False
    gateway6: bool = False
    gw_priority: int = 0
    ports: tuple[PortMapping, ...] = ()
    exposed: tuple[tuple[int, str], ...] = ()
    static4: bool = False
    static6: bool = False
    driver_options: Mapping[str, str] = field(default_factory=dict)
    link_local: tuple[Interface, ...] = ()
    dns: tuple[str, ...] = ()
    host_ifindex: int = 0
    phase: Phase = Phase.CREATING
    owner_key: str = ""
    handed_over: bool = False
    published: tuple[PortMapping, ...] = ()
    chosen: tuple[PortMapping, ...] = ()
    static_mac: bool = False
    joined: Joined | None = None
    services: tuple[Membership, ...] = ()
    asker: int = 0
    asker_start: int = 0

    @property
    def sysctls(self) -> dict[str, str]:
        """Settings of the device in the sandbox that its driver options ask for: path below /proc/sys -> value."""
        pairs = (word.partition("=") for word in self.driver_options.get(OPT_ENDPOINT_SYSCTLS, "").split(","))
        return {
            "/".join(self.ifname if part == IFNAME else part for part in name.split(".")): value
            for name, _, value in pairs
            if name
        }

    @property
    def forwarding(self) -> bool:
        """It speaks for others too, as a router does."""
        return self.driver_options.get(OPT_FORWARDING) == "true"

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Of its bandwidth, one a direction at the most."""
        return limits_of(self.driver_options)

    @property
    def gateway(self) -> bool:
        """A default route of the sandbox is here."""
        return self.gateway4 or self.gateway6

    @property
    def egress_families(self) -> tuple[int, ...]:
        """The IP versions whose default route is here, and so the published ports."""
        return (4,) * self.gateway4 + (6,) * self.gateway6

    def leads(self, version: int) -> bool:
        """A default route of that IP version can be here, as far as is known."""
        address = self.ipv4 if version == 4 else self.ipv6
        return address is not None and (self.joined is None or self.joined.gateway(version) is not None)

    def serves(self, mapping: PortMapping) -> bool:
        """The mapping, or a part of it, leads here."""
        return any(version in self.egress_families for version in mapping.families)

    @property
    def linklocal(self) -> IPv6Address:
        """The address that the kernel gives the container's device (EUI-64 of its MAC)."""
        return linklocal_of(self.mac)


def linklocal_of(mac: str) -> IPv6Address:
    """fe80::/64 and the modified EUI-64 of the MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface_id = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface_id)


@dataclass(frozen=True, slots=True)
class Link:
    """--link: who has it may reach the container `server` (an id), also under the name `alias`."""

    server: str
    alias: str


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """What a user asks of one endpoint, as typed. In `Container.networks` the network is an id."""

    network: str
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    gw_priority: int = 0
    driver_options: tuple[str, ...] = ()
    link_local_ips: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> EndpointRequest:
        """The value of --network: a name, or Docker's long form `name=NET,alias=A,ip=…,mac-address=…`."""
        if "=" not in text:
            return cls(text)
        one = {"name": "network", "ip": "ip", "ip6": "ip6", "mac-address": "mac"}
        many = {"alias": "aliases", "link": "links", "driver-opt": "driver_options"}
        many["link-local-ip"] = "link_local_ips"
        found: dict[str, Any] = {}
        if not text.isprintable():
            raise ConfigError(f"invalid --network {quoted(text)}")
        for part in next(csv.reader([text])):
            key, equals, value = part.partition("=")
            key, value = key.strip().lower(), value.strip()
            if not equals:
                raise ConfigError(f"invalid field {quoted(part)} of --network: expected key=value")
            if not value and key != "name":
                raise ConfigError(
                    f"the field {quoted(key)} of --network is empty: leave it out if it is not meant"
                )
            if key in one:
                found[one[key]] = value
            elif key in many:
                found[many[key]] = (*found.get(many[key], ()), value)
            elif key == "gw-priority":
                if not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
                    raise ConfigError(f"invalid gw-priority {quoted(value)}: expected a whole number")
                found["gw_priority"] = int(value)
            else:
                there = ", ".join(sorted({*one, *many, "gw-priority"}))
                raise ConfigError(f"invalid field key {quoted(key)} of --network: there are {there}")
        if not found.get("network"):
            raise ConfigError(f"network name is not specified in --network {quoted(text)}: add name=…")
        return cls(**found)
