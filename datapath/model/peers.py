# SPDX-License-Identifier: Apache-2.0
"""What a host knows of the other hosts of its cluster, and of their parts in networks of scope global.

These rows are copies of what the cluster's store says (`datapath.cluster`), of networks that this host takes part in
and no others. Packets are forwarded by them whether or not the store can be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from datapath.model.parsing import Address, Prefix
from datapath.model.rows import Phase


@dataclass(frozen=True, slots=True)
class Peer:
    """A host of the cluster; this one has a row too. `id`: its installation's, 32 hex digits; `number`: its own in the
    cluster, from 1, and another host's only after it was forgotten; `address`: its end of every tunnel (VTEP), `mac`:
    what frames inside of tunnels to it are addressed to; `mtu`: bytes of an IP packet that its underlay takes;
    `wireguard_key`: public, base64, "": it has none; `wireguard_port`: of UDP, where it receives what is encrypted."""

    id: str
    name: str
    number: int
    address: Address
    mac: str
    mtu: int = 1500
    wireguard_key: str = ""
    wireguard_port: int = 0
    phase: Phase = Phase.READY


@dataclass(frozen=True, slots=True)
class Block:
    """Addresses of a network that one host gives to its endpoints. `id`: the network's, `/` and the prefix; `peer`: the
    host's id."""

    id: str
    network_id: str
    prefix: Prefix
    peer: str
    phase: Phase = Phase.READY


@dataclass(frozen=True, slots=True)
class Remote:
    """An endpoint on another host. `id`: the endpoint's, 64 hex digits; `peer`: its host's id; `sandbox_id`: the
    container's, whose first 12 digits are a name of it; `name`: the container's; `services`: the weight that it has in
    each that it is a backend of now, by the service's id."""

    id: str
    network_id: str
    peer: str
    mac: str
    sandbox_id: str = ""
    name: str = ""
    hostname: str = ""
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    aliases: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, int] = field(default_factory=dict)
    phase: Phase = Phase.READY

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those that it has, the IPv4 one first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


@dataclass(frozen=True, slots=True)
class Lapse:
    """Another host has said that it lives, by its agent, and does not any more: services have no backends there. `id`:
    the host's. Packets to its endpoints are sent all the same."""

    id: str
    phase: Phase = Phase.READY


@dataclass(frozen=True, slots=True)
class Drain:
    """A host, this one perhaps, is drained: it begins nothing on networks of scope global, and services give its
    containers there no new connections. `id`: the host's."""

    id: str
    phase: Phase = Phase.READY


@dataclass(frozen=True, slots=True)
class Owed:
    """A write to the cluster's store that waits until that can be reached; the last one of its key. `id`: the key;
    `value`: what is to be there, "": nothing. Rows that caused it were written in the same transaction."""

    id: str
    value: str = ""
    phase: Phase = Phase.READY
