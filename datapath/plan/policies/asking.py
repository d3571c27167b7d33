# SPDX-License-Identifier: Apache-2.0
"""What `why` is asked: words to an opening between two parties. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.model.endpoints import Endpoint
from datapath.model.host import HostNetwork
from datapath.model.parsing import PORT_PROTOCOLS, PROTOCOLS, Address, parse_address
from datapath.model.policies import Kind, Opening, Party, PublishedPort, World
from datapath.model.state import State, stack_of

HOST = "host"
_PUBLISHED = re.compile(r"(?:(\[[^]]+\]|[0-9.]+))?:([0-9]{1,5})(?:/([a-z]+))?")
_ANYWHERE = (ip_address("0.0.0.0"), ip_address("::"))


class Question(NamedTuple):
    """As it is typed. `port` None: it was left out; `ipv6`: between containers and the host, which have both."""

    source: str
    destination: str
    protocol: str = ""
    port: int | None = None
    ipv6: bool = False


class Asked(NamedTuple):
    """What is meant. `address`, `port`: where it is sent to, which are the host's where `opening.published` is;
    `source`, `destination`: the endpoints of those that are containers of this host; `unpublished`: it is a port of the
    host's that nobody publishes."""

    opening: Opening
    address: Address
    port: int = 0
    source: Endpoint | None = None
    destination: Endpoint | None = None
    unpublished: bool = False


class _Door(NamedTuple):
    """A port of the host's. `address` None: whichever it is asked at."""

    address: Address | None
    port: int
    protocol: str


def understand(question: Question, state: State, world: World, host: HostNetwork) -> Asked:
    """ConfigError: the words do not make an opening; NotFoundError: there is no such container."""
    door = _door(question.destination)
    protocol, port = _service(question, door)
    ends = [_end(question.source, state), door or _end(question.destination, state)]
    return _Meeting(state, world, host, question.ipv6).opening(ends, protocol, port)


def _door(text: str) -> _Door | None:
    found = _PUBLISHED.fullmatch(text)
    if found is None:
        return None
    address, port, protocol = found.groups()
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"invalid port in {quoted(text)}: expected 1 to 65535")
    return _Door(parse_address(address.strip("[]")) if address else None, int(port), protocol or "")


def _service(question: Question, door: _Door | None) -> tuple[int, int]:
    """The protocol's number and the port."""
    names = (*PORT_PROTOCOLS, "icmp")
    name = question.protocol.lower() or (door.protocol if door else "") or ("tcp" if door else "")
    if not name:
        raise ConfigError("which protocol? tcp PORT, udp PORT or icmp")
    if name not in names:
        raise ConfigError(f"unknown protocol {quoted(name)}: there are {', '.join(names)}")
    if door and (question.port is not None or door.protocol not in ("", name) or name == "icmp"):
        raise ConfigError(
            f"{quoted(question.destination)} is one port: it takes tcp or udp, and no other port"
        )
    if name == "icmp":
        if question.port is not None:
            raise ConfigError("icmp has no ports")
        return PROTOCOLS["icmp"], 0
    if door:
        return PROTOCOLS[name], door.port
    if question.port is None:
        raise ConfigError(f"{name} has ports: which one?")
    return PROTOCOLS[name], question.port


def _end(text: str, state: State) -> str | Address:
    """The id of a container's stack, HOST, or an address."""
    if text == HOST:
        return HOST
    if re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|\[.*\]", text) and not text.isdigit():
        return parse_address(text.removeprefix("[").removesuffix("]"))
    return stack_of(state, text)


class _Meeting:
    """Finds the addresses by which two ends meet."""

    def __init__(self, state: State, world: World, host: HostNetwork, ipv6: bool) -> None:
        self.state, self.world, self.host, self.ipv6 = state, world, host, ipv6
        self._members = {member.endpoint: member for member in world.members if member.here}

    def opening(self, ends: list[str | Address | _Door], protocol: int, port: int) -> Asked:
        source, destination = ends
        assert not isinstance(source, _Door)
        if isinstance(destination, _Door):
            return self._to_door(source, destination, protocol)
        version = self._version(source, destination)
        here, there = self._endpoints(source, destination, version)
        if here is None and there is None:
            raise ConfigError("neither of the two is a container of this host")
        if protocol == PROTOCOLS["icmp"] and version == 6:
            protocol = PROTOCOLS["icmpv6"]
        parties = (
            self._party(source, here, there, version),
            self._party(destination, there, here, version),
        )
        address = parties[1].address
        assert address is not None
        return Asked(Opening(*parties, protocol, port), address, port, here, there)

    def _version(self, *ends: str | Address) -> int:
        """The family that both have."""
        versions = {end.version for end in ends if not isinstance(end, str)}
        if len(versions) > 1:
            raise ConfigError("one of the two addresses is of IPv4, and the other of IPv6")
        able = versions or {4, 6}
        for end in ends:
            if isinstance(end, str) and end != HOST:
                mine = self.state.endpoints_of_sandbox(end)
                able = {v for v in able if any(_address(one, v) for one in mine)}
        if not able:
            raise ConfigError("the two have no addresses of one family" + self._unattached(*ends))
        return max(able) if self.ipv6 else min(able)

    def _unattached(self, *ends: str | Address) -> str:
        """Why, where a container has none at all."""
        for end in ends:
            if isinstance(end, str) and end != HOST and not self.state.endpoints_of_sandbox(end):
                users = self.state.users(end)
                return f": container {users[0].name} is on no network now" if users else ""
        return ""

    def _endpoints(
        self, source: str | Address, destination: str | Address, version: int
    ) -> tuple[Endpoint | None, Endpoint | None]:
        """Those by which they meet: on a network that both are on, if there is one."""
        if source == destination:
            raise ConfigError("both are the same: what one opens to itself passes no program")
        mine, yours = (self._candidates(end, version) for end in (source, destination))
        for one in mine:
            for other in yours:
                if one.network_id == other.network_id:
                    if one.sandbox_id == other.sandbox_id:
                        raise ConfigError(
                            "the two share a network stack: between them nothing passes a program"
                        )
                    return one, other
        there = next(iter(yours), None)
        here = self._by_address(mine, destination) or next(iter(mine), None)
        return here, there

    def _candidates(self, end: str | Address, version: int) -> list[Endpoint]:
        """The endpoints of that end, the one with the default route first."""
        if isinstance(end, str):
            found = [] if end == HOST else list(self.state.endpoints_of_sandbox(end))
        else:
            found = [one for one in self.state.endpoints.values() if _address(one, version) == end]
        found = [one for one in found if _address(one, version)]
        return sorted(found, key=lambda one: version not in one.egress_families)

    def _by_address(self, mine: list[Endpoint], destination: str | Address) -> Endpoint | None:
        """The endpoint that has the address on its link."""
        if isinstance(destination, str):
            return None
        for one in mine:
            subnets = self.state.networks[one.network_id].subnets
            if any(destination in subnet.prefix for subnet in subnets):
                return one
        return None

    def _party(self, end: str | Address, own: Endpoint | None, other: Endpoint | None, version: int) -> Party:
        if own is not None:
            return Party(Kind.MEMBER, _address(own, version), self._members[own.number])
        if isinstance(end, str):
            return Party(Kind.HOST, self._host_address(other, version))
        for member in self.world.members:
            if not member.here and end in member.addresses:
                return Party(Kind.MEMBER, end, member)
        return Party(Kind.HOST if self.host.has(end) else Kind.OUTSIDE, end)

    def _host_address(self, other: Endpoint | None, version: int) -> Address:
        """That of the gateway of the network on which the host meets the other one."""
        network = self.state.networks[other.network_id] if other else None
        subnet = (network.subnet4 if version == 4 else network.subnet6) if network else None
        if subnet is None or subnet.gateway is None or not self.host.has(subnet.gateway):
            raise ConfigError("the host has no address on that network: say which one is meant")
        return subnet.gateway

    # ---- by a port of the host's ---------------------------------------------------------------------------------

    def _to_door(self, source: str | Address, door: _Door, protocol: int) -> Asked:
        given = [end for end in (source, door.address) if isinstance(end, Address)]
        version = self._version(*given, *([source] if isinstance(source, str) else []))
        if door.address is not None and not self.host.has(door.address):
            raise ConfigError(
                f"{door.address} is no address of this host: write its port behind the protocol"
            )
        mine = self._candidates(source, version)
        here = next(iter(mine), None)
        target = self._target(door, protocol, version)
        address = door.address or self._outside_address(here, version)
        if target is None:
            asker = (
                self._party(source, here, here, version)
                if here or source != HOST
                else Party(Kind.HOST, address)
            )
            if asker.kind is Kind.HOST:
                raise ConfigError(
                    f"nobody publishes port {door.port} at {address}, and the host asks itself there"
                )
            opening = Opening(asker, Party(Kind.HOST, address), protocol, door.port)
            return Asked(opening, address, door.port, here, unpublished=True)
        there, port, published = target
        if published.address not in _ANYWHERE:
            address = published.address
        asker = self._party(source, here, there, version)
        receiver = Party(Kind.MEMBER, _address(there, version), self._members[there.number])
        return Asked(Opening(asker, receiver, protocol, port, published), address, door.port, here, there)

    def _target(self, door: _Door, protocol: int, version: int) -> tuple[Endpoint, int, PublishedPort] | None:
        """Whose port it is, the container's port, and the published one; that at an address before that at all."""
        found: list[tuple[Endpoint, int, PublishedPort]] = []
        for endpoint in self.state.endpoints.values():
            for mapping in endpoint.ports if version in endpoint.egress_families else ():
                for at, host_port, port, name in mapping.expand() if version in mapping.families else ():
                    if (host_port, PROTOCOLS[name]) != (door.port, protocol):
                        continue
                    if at is None or door.address is None or at == door.address:
                        where = at or _ANYWHERE[version == 6]
                        found.append(
                            (endpoint, port, PublishedPort(where, protocol, host_port, endpoint.number))
                        )
        for service in self.state.services.values():
            for mapping in service.ports:
                if any((p, PROTOCOLS[name]) == (door.port, protocol) for _, p, _, name in mapping.expand()):
                    raise ConfigError(
                        f"port {door.port} is service {service.name}'s: ask about its containers"
                    )
        found.sort(key=lambda one: one[2].address in _ANYWHERE)
        return found[0] if found else None

    def _outside_address(self, here: Endpoint | None, version: int) -> Address:
        """An address of the host's by which its ports are asked: an uplink's, else the gateway's."""
        for uplink in self.host.uplinks:
            address = uplink.ipv4 if version == 4 else uplink.ipv6
            if address is not None:
                return address
        return self._host_address(here, version)


def _address(endpoint: Endpoint, version: int) -> Address | None:
    interface = endpoint.ipv4 if version == 4 else endpoint.ipv6
    return interface.ip if interface else None
