# SPDX-License-Identifier: Apache-2.0
"""What a host, its networks and its published ports are, for the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model.addresses import ZERO4
from tests.model.routes import Route, Routing, within

if TYPE_CHECKING:
    from tests.model.services import Service
    from tests.model.tunnels import Overlay, Peer


@dataclass(eq=False)
class Network:
    number: int
    mac: bytes
    icc: bool = True
    internal: bool = False
    masquerade: bool = True
    beside: bool = False  # members have their default route elsewhere
    lan: bool = False  # members are on the link of `parent`, or reach nobody there if that is None
    parent: Uplink | None = None
    routed: bool = False  # the host's routes say where on that link (ipvlan's modes l3 and l3s)
    questions: bool = False  # the kernel hands over what members send: here they ask for names, and no more
    ipv4: bool = True
    ipv6: bool = False
    mtu: int = 1500
    broadcast: bytes = ZERO4
    gateway4: bytes = b""
    gateway6: bytes = b""
    linklocal: bytes = b""
    members: dict[bytes, Member] = field(default_factory=dict)  # by each of their addresses
    elsewhere: list[Elsewhere] = field(default_factory=list)
    flows: bool = False  # who talks to whom is counted
    services: dict[bytes, Service] = field(default_factory=dict)  # by their virtual addresses

    def gateway(self, size: int) -> bytes:
        """Of a network that is on a link it is an address of the host's like any."""
        return self.gateway4 if size == 4 else self.gateway6


@dataclass(eq=False)
class Member:
    network: Network
    number: int
    mac: bytes
    name: str
    addr4: bytes = b""
    addr6: bytes = b""
    linklocal: bytes = b""
    forwarding: bool = False  # it speaks for others, too, as a router does
    serves: bool = False  # it is a backend of a service
    resolves: bool = False  # it has a resolver, who knows the names of its network's members
    peer: Peer | None = None  # the other host that it is on

    @property
    def called(self) -> str:
        """What its addresses are called."""
        return f"{self.name}.n{self.network.number}"

    def owns(self, address: bytes) -> bool:
        return len(address) > 0 and address in (self.addr4, self.addr6, self.linklocal)


@dataclass(eq=False)
class Elsewhere:
    """An endpoint of a network that is on another host, of which this one knows the names."""

    name: str
    called: str
    addresses: tuple[bytes, ...]


@dataclass(eq=False)
class Uplink:
    name: str
    mac: bytes
    addr4: bytes
    addr6: bytes
    mtu: int = 1500
    ethernet: bool = True  # its frames have such a header; else they are bare IP packets
    linklocals: tuple[bytes, ...] = ()  # IPv6's, each the host's on this link (RFC 4007)
    network: Network | None = None  # whose members are on its link

    def address(self, size: int) -> bytes:
        return self.addr4 if size == 4 else self.addr6


FAR = -2  # number of all that are on other hosts

# The host's own loopback device, where it speaks with itself: as a place, and as who sends there.
LOOPBACK = Uplink("lo", bytes(6), b"", b"")
LOCAL_SENDER = Member(Network(0, bytes(6)), -1, bytes(6), "lo")


@dataclass(eq=False)
class Published:
    member: Member
    addr: bytes
    port: int
    rules: tuple[tuple[bytes, int, bool], ...] = ()  # prefix, its length, may connect
    filtered: bool = False
    refuse: bool = False
    announced: bool = False  # it is the member's own address, and any port
    service: Service | None = None  # it is published, and not its member, which is one of its backends

    def admits(self, address: bytes) -> bool:
        """The longest prefix that matches decides; without any, `refuse`."""
        if not self.filtered:
            return True
        best, verdict = -1, not self.refuse
        for prefix, length, allow in self.rules:
            if len(prefix) != len(address) or length <= best:
                continue
            shift = 8 * len(prefix) - length
            if int.from_bytes(prefix, "big") >> shift == int.from_bytes(address, "big") >> shift:
                best, verdict = length, allow
        return verdict


@dataclass
class Topology:
    networks: list[Network]
    members: list[Member]
    uplinks: list[Uplink]
    routing: Routing
    ports: dict[tuple[bytes, int, int], Published]  # host address (zero: all of the family), port, protocol
    links: set[tuple[bytes, bytes, int, int]]  # client, server, port, protocol
    nat_first: int
    nat_last: int
    behind: int = 0  # the network behind whose first member others are
    other_nat: bool = False  # its packet filter masquerades, too
    protected: list[Route] = field(
        default_factory=list
    )  # prefixes that IPsec policies for leaving packets name
    sockets: frozenset[tuple[int, int]] = frozenset()  # port, protocol: what processes of the host listen on
    overlay: Overlay | None = None  # the network that has members on other hosts

    @property
    def services(self) -> list[Service]:
        found = {id(one): one for net in self.networks for one in net.services.values()}
        return list(found.values())

    def __post_init__(self) -> None:
        self.reserved = {(port, proto) for _, port, proto in self.ports}
        self.host = self.routing.host
        self.broadcasts = self.routing.broadcasts

    def protects(self, address: bytes) -> bool:
        return any(within(address, one.prefix, one.length, one.size) for one in self.protected)

    def encrypts(self, net: Network) -> bool:
        return self.overlay is not None and self.overlay.network is net and self.overlay.encrypted is not None

    def published(self, address: bytes, port: int, proto: int) -> Published | None:
        """What answers at one of the host's addresses."""
        ports = self.ports
        return ports.get((address, port, proto)) or ports.get((bytes(len(address)), port, proto))
