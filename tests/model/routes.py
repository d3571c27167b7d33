# SPDX-License-Identifier: Apache-2.0
"""The host's routing as the kernel asks it: its own addresses, then the rules in their order, each with a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from tests.model.packet import TCP, UDP, Key

if TYPE_CHECKING:
    from tests.model.topology import Network, Uplink

MAIN = 254
LEGACY_TOS = 0x1C  # what `tos` of an IPv4 rule is compared with: the kernel masks the rest of the DSCP


class Flow(NamedTuple):
    """What a route is asked for. Ports: of TCP and UDP alone; the kernel's rules know none of an echo's."""

    src: bytes
    dst: bytes
    proto: int = -1
    sport: int = 0
    dport: int = 0
    tos: int = 0  # the DSCP, in its place: the two bits of ECN are not asked about

    @classmethod
    def of(cls, key: Key, tos: int = 0) -> Flow:
        proto, src, sport, dst, dport = key
        if proto not in (TCP, UDP):
            sport = dport = 0
        return cls(src, dst, proto, sport, dport, tos & 0xFC)


def within(address: bytes, prefix: int, length: int, size: int) -> bool:
    return size == len(address) and int.from_bytes(address, "big") >> (8 * size - length) == prefix


@dataclass(eq=False)
class Route:
    prefix: int  # the bits of `length` alone
    length: int
    size: int  # of an address of the family, bytes
    kind: str  # out, net, stop, encap, local, none
    uplink: Uplink | None = None
    network: Network | None = None
    via: bytes = b""  # the next hop, if it is a member of the network
    source: bytes = b""  # what the route says that is sent from; else the uplink's own
    connected: bool = False  # whom it leads to is on the link

    def masquerade_source(self) -> bytes:
        return self.source or (self.uplink.address(self.size) if self.uplink else b"")


def prefix_of(text: str) -> tuple[int, int, int]:
    """Its bits, how many, and an address's bytes."""
    net = ip_network(text)
    return (
        int(net.network_address) >> (net.max_prefixlen - net.prefixlen),
        net.prefixlen,
        net.max_prefixlen // 8,
    )


def route(
    prefix: str,
    kind: str,
    uplink: Uplink | None = None,
    network: Network | None = None,
    source: bytes = b"",
    via: bytes = b"",
) -> Route:
    return Route(*prefix_of(prefix), kind, uplink, network, via, source)


@dataclass(frozen=True)
class Rule:
    """`ip rule`: what is not said matches everything."""

    table: int
    size: int
    source: tuple[int, int] | None = None  # prefix's bits, length
    proto: int | None = None
    sport: int | None = None
    dport: int | None = None
    tos: int | None = None

    def matches(self, flow: Flow) -> bool:
        return (
            self.size == len(flow.dst)
            and (self.source is None or within(flow.src, *self.source, self.size))
            and (self.proto is None or self.proto == flow.proto)
            and (self.sport is None or self.sport == flow.sport)
            and (self.dport is None or self.dport == flow.dport)
            and (self.tos is None or self.tos == flow.tos & (LEGACY_TOS if self.size == 4 else 0xFC))
        )


LOCAL = Route(0, 0, 0, "local")
ANYIP = Route(0, 0, 0, "local")
NOWHERE = Route(0, 0, 0, "none")


class Way(NamedTuple):
    route: Route
    rule: Rule | None = None  # that led to it; None: the main table has it


@dataclass
class Routing:
    host: set[bytes]  # addresses of the host
    broadcasts: set[bytes]  # of the uplinks' and the networks' subnets
    tables: dict[int, list[Route]]
    rules: list[Rule] = field(default_factory=list)  # in their order; the main table is behind them
    anyip: list[Route] = field(default_factory=list)  # whole prefixes that are the host's

    def __post_init__(self) -> None:
        for routes in (*self.tables.values(), self.anyip):
            routes.sort(key=lambda one: -one.length)
        self._cache: dict[tuple[bytes, tuple[Rule, ...]], Way] = {}

    def is_anyip(self, address: bytes) -> bool:
        """It is of a prefix that is the host's as a whole."""
        return self._best(address, self.anyip) is not None

    def way(self, flow: Flow) -> Way:
        rules = tuple(rule for rule in self.rules if rule.matches(flow)) if self.rules else ()
        key = flow.dst, rules
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._way(flow.dst, rules)
        return found

    def _way(self, address: bytes, rules: tuple[Rule, ...]) -> Way:
        if address in self.host or address in self.broadcasts:
            return Way(LOCAL)
        if self._best(address, self.anyip):
            return Way(ANYIP)
        for rule in rules:
            found = self._best(address, self.tables[rule.table])
            if found:
                return Way(found, rule)
        return Way(self._best(address, self.tables[MAIN]) or NOWHERE)

    def ways(self, address: bytes) -> list[Route]:
        """All by which it may be reached, whatever rules lead to them; the main table's last."""
        found = [self._best(address, self.tables[rule.table]) for rule in self.rules]
        return [*(one for one in found if one), self._way(address, ()).route]

    @staticmethod
    def _best(address: bytes, routes: list[Route]) -> Route | None:
        for one in routes:
            if within(address, one.prefix, one.length, one.size):
                return one
        return None
