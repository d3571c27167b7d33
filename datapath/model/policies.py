# SPDX-License-Identifier: Apache-2.0
"""Policies: who may open connections to whom; and who there is. What they mean says `datapath.model.judging`. Pure.

Protocols are IP's numbers, ports in host order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import NamedTuple

from datapath.model.parsing import PROTOCOLS, Address, Prefix
from datapath.model.rows import Phase

PORTS = (0, 65535)
# What a rule may say of protocols; ICMP is that of both families.
RULE_PROTOCOLS: Mapping[str, tuple[int, ...]] = {
    "tcp": (PROTOCOLS["tcp"],),
    "udp": (PROTOCOLS["udp"],),
    "icmp": (PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]),
}
# RFC 1918, RFC 6598, RFC 3927; RFC 4193, RFC 4291.
PRIVATE: tuple[Prefix, ...] = (
    *map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")),
    *map(ip_network, ("fc00::/7", "fe80::/10")),
)
# This network, loopback, groups, reserved ones and the broadcast address: nobody's on the internet.
SPECIAL: tuple[Prefix, ...] = (
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/127", "ff00::/8")),
)
# Where clouds tell machines about themselves: EC2 and most others, ECS, Alibaba, EC2.
METADATA: tuple[Prefix, ...] = (
    *map(ip_network, ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254")),
)
WORDS = ("any", "outside", "internet", "private", "lan", "metadata", "host", "self", "dns")


class Direction(StrEnum):
    """As the container sees it."""

    OUT = "out"
    IN = "in"


class Mode(StrEnum):
    """`audit`: what a policy would refuse is counted, and passes."""

    ENFORCE = "enforce"
    AUDIT = "audit"


class Action(StrEnum):
    """`reject`: the opener is told at once (ICMP, administratively prohibited); `drop`: nobody is."""

    ALLOW = "allow"
    REJECT = "reject"
    DROP = "drop"


class Layer(StrEnum):
    """Policies of one layer add up; every layer has to let a connection pass, as an image may bring labels."""

    BUILTIN = "builtin"  # what networks, links and published ports say
    OPERATOR = "operator"
    LABEL = "label"


class Kind(Enum):
    """What a party is."""

    MEMBER = "container"
    HOST = "host"
    OUTSIDE = "outside"
    NAMES = "names"  # outside name servers, by way of the container's resolver


@dataclass(frozen=True, slots=True)
class Member:
    """A container on one of its networks. `endpoint`: its number there, as in `Endpoint`; of one on another host, any
    that no other member has. `addresses`: one a family, which stands for others that it has. `ident`: of its stack, as
    in `Sandbox`. `known`: its name and labels are; else it is let nothing by
    what is said of names and labels, and refused all that is. `here`: it is on this host."""

    endpoint: int
    network: str
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    addresses: tuple[Address, ...] = ()
    ident: str = ""
    known: bool = True
    here: bool = True


class PublishedPort(NamedTuple):
    """A port of the host's that leads to an endpoint. `address`: the host's, 0.0.0.0 and :: are all of that family."""

    address: Address
    protocol: int
    port: int
    endpoint: int


@dataclass(frozen=True, slots=True)
class World:
    """Whom policies can be about. `host`: the host's own addresses, those of gateways too; `lan`: the prefixes on the
    links of its outside devices; `answers`: the addresses that containers were told for DNS names."""

    members: tuple[Member, ...] = ()
    host: tuple[Address, ...] = ()
    lan: tuple[Prefix, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    answers: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection, with the address that it has in it; None: only what is said of no address fits."""

    kind: Kind
    address: Address | None = None
    member: Member | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What begins a connection. `port`: the receiver's own, 0 where the protocol has none; `published`: the host's port
    by which it comes to that, whoever opens it."""

    source: Party
    destination: Party
    protocol: int
    port: int = 0
    published: PublishedPort | None = None

    def sides(self, direction: Direction) -> tuple[Party, Party]:
        """Whose direction it is, and the other one."""
        ends = (self.source, self.destination)
        return ends if direction == Direction.OUT else ends[::-1]

    @property
    def to_itself(self) -> bool:
        """A container has opened it to itself, by a published port of its own: that always passes."""
        ends = (self.source.member, self.destination.member)
        return None not in ends and len({member.endpoint for member in ends if member}) == 1


class Packet(NamedTuple):
    """A packet, as if it began something. `source_port`: with that of the opening they are its ports as sent."""

    opening: Opening
    source_port: int = 0


# Words of no addresses. What a container opens to itself is asked of no rule.
_KINDS = {"any": frozenset(Kind), "host": {Kind.HOST}, "dns": {Kind.NAMES}, "self": frozenset[Kind]()}


@dataclass(frozen=True, slots=True)
class Selector:
    """Whom a policy is for, or a rule. All that is given has to fit. `word`: one of WORDS; `name`: may have `*` and
    `?`; `domain`: a DNS name, `either`: which is written so that it could be a container's; `ident`: of a container's
    stack; `excepted`: addresses that do not fit."""

    word: str = ""
    prefix: Prefix | None = None
    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    network: str = ""
    domain: str = ""
    ident: str = ""
    excepted: tuple[Prefix, ...] = ()
    either: bool = field(default=False, compare=False)

    def fits(self, party: Party, world: World, unknown: bool = False) -> bool:
        """`unknown`: what it says where it asks for a name or label of a container whose are not known."""
        if party.address is not None and inside(party.address, self.excepted):
            return False
        if self.word:
            return self._means(party, world)
        if self.prefix is not None:
            return party.address is not None and inside(party.address, (self.prefix,))
        if self.domain:
            asked = party.kind is Kind.OUTSIDE and party.address in world.answers.get(self.domain, ())
            return asked or party.kind is Kind.NAMES
        member = party.member
        if member is None or self.network not in ("", member.network) or self.ident not in ("", member.ident):
            return False
        if not member.known and (self.name or self.labels):
            return unknown
        labelled = all(member.labels.get(key) == value for key, value in self.labels)
        return labelled and fnmatchcase(member.name, self.name or "*")

    def _means(self, party: Party, world: World) -> bool:
        if self.word in _KINDS:
            return party.kind in _KINDS[self.word]
        if party.kind is not Kind.OUTSIDE or party.address is None:
            return False
        if self.word == "internet":
            return not inside(party.address, PRIVATE + SPECIAL)
        return self.word == "outside" or inside(party.address, self.prefixes(world))

    def prefixes(self, world: World) -> tuple[Prefix, ...]:
        """Whose addresses begin or end where these do, its answer may be another."""
        words = {"internet": PRIVATE + SPECIAL, "private": PRIVATE, "lan": world.lan, "metadata": METADATA}
        asked = tuple(ip_network(address) for address in world.answers.get(self.domain, ()))
        own = () if self.prefix is None else (self.prefix,)
        return words.get(self.word, ()) + own + asked + self.excepted


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a list. `ports`: ranges, (): all; `protocol`: one of RULE_PROTOCOLS, "": all; `number`: its place in
    its policy, from 1; `where`: FILE:LINE."""

    peer: Selector
    ports: tuple[tuple[int, int], ...] = ()
    protocol: str = ""
    number: int = field(default=0, compare=False)
    where: str = field(default="", compare=False)

    def covers(self, protocol: int, port: int) -> bool:
        if self.protocol and protocol not in RULE_PROTOCOLS[self.protocol]:
            return False
        return not self.ports or any(first <= port <= last for first, last in self.ports)

    def fits(self, peer: Party, opening: Opening, world: World, unknown: bool) -> bool:
        # A name that may be reached may be asked for.
        covered = bool(self.peer.domain) and peer.kind is Kind.NAMES
        return (covered or self.covers(opening.protocol, opening.port)) and self.peer.fits(
            peer, world, unknown
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy says of one direction. `allow` None: it lists nothing, (): it lists nobody; `rate`: openings a
    second from one sender, 0: no limit."""

    deny: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] | None = None
    rate: int = 0

    @property
    def empty(self) -> bool:
        return not self.deny and self.allow is None


@dataclass(frozen=True, slots=True)
class PortScope:
    """Published ports that a policy is about. `address`: the host's that they are published at, None: any."""

    protocol: int
    first: int
    last: int
    address: Address | None = None

    def has(self, port: PublishedPort) -> bool:
        return (
            self.protocol == port.protocol
            and self.first <= port.port <= self.last
            and self.address in (None, port.address)
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of the store, where an operator has applied it; `id`, `created` and `phase` are that row's.
    `published`: only openings by these ports count, `among`: only those straight from a member of that network to
    another; both of `ingress` alone. `refuse` DROP: nobody is told; else all are but those outside. `reason`: of what
    it refuses, if not that of its direction; `where`: FILE:LINE."""

    name: str
    subject: Selector
    ingress: Rules = Rules()
    egress: Rules = Rules()
    mode: Mode = Mode.ENFORCE
    refuse: Action = Action.REJECT
    published: PortScope | None = None
    among: str = ""
    layer: Layer = Layer.OPERATOR
    reason: str = ""
    where: str = field(default="", compare=False)
    id: str = ""
    created: str = ""
    phase: Phase = Phase.READY

    def rules(self, direction: Direction) -> Rules:
        return self.egress if direction == Direction.OUT else self.ingress

    def concerns(self, direction: Direction, opening: Opening, world: World) -> bool:
        """It may refuse the opening."""
        if self.published and not (opening.published and self.published.has(opening.published)):
            return False
        ends = (opening.source.member, opening.destination.member)
        if self.among and (opening.published or any(m is None or m.network != self.among for m in ends)):
            return False
        return self.subject.fits(opening.sides(direction)[0], world, unknown=True)


class By(NamedTuple):
    """What has decided: a rule of a policy by its number; 0: that the policy lists others."""

    policy: str
    rule: int


class Step(NamedTuple):
    """What one direction says. `by` None: no policy is about it; `would`: what would refuse it, if its mode were not
    audit. `reason`: as counted, DROP_… of what is refused, WOULD_… of what would be, else ""."""

    direction: Direction
    action: Action = Action.ALLOW
    reason: str = ""
    by: By | None = None
    would: By | None = None


class Verdict(NamedTuple):
    """What becomes of an opening: the steps up to the one that refuses it."""

    steps: tuple[Step, ...]

    @property
    def action(self) -> Action:
        return self.steps[-1].action if self.steps else Action.ALLOW

    @property
    def decided(self) -> Step | None:
        """The step that has refused it, or would have; else that which a rule has let pass, the receiver's first."""
        found = [step for step in self.steps if step.reason] or [step for step in self.steps[::-1] if step.by]
        return found[0] if found and self.action is Action.ALLOW else self.steps[-1] if self.steps else None


def inside(address: Address, prefixes: Iterable[Prefix]) -> bool:
    """Of its own family."""
    return any(address.version == prefix.version and address in prefix for prefix in prefixes)
