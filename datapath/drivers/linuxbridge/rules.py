# SPDX-License-Identifier: Apache-2.0
"""What a linuxbridge network's packet filter rules are about, whichever tool they are written for. Pure.

The rules are those of Docker without its userland proxy: see `iptables` and `nftables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from datapath.dataplane import entries, structs
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.parsing import PORT_PROTOCOLS, Address, Prefix
from datapath.model.ports import PortMapping

R = TypeVar("R")

_PROTOCOLS = {number: name for name, number in PORT_PROTOCOLS.items()}


class Ruleset(Protocol[R]):
    """Which rules of type R there are to be, as the module of a tool says it: `iptables` or `nftables`."""

    @property
    def BASE(self) -> tuple[R, ...]:
        """What leads packets into the networks' chains."""

    def network_rules(self, network: Network, version: int) -> list[R]: ...

    def endpoint_rules(self, network: Network, endpoint: Endpoint, version: int) -> list[R]: ...

    def port_rules(
        self, network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping], version: int
    ) -> list[R]: ...

    def link_rules(self, network: Network, links: Iterable[structs.LinkKey], version: int) -> list[R]: ...

    def of_container(self, ip: Address) -> Callable[[R], bool]:
        """Whether a rule is about the container, those of links left out."""

    def of_links(self, ip: Address) -> Callable[[R], bool]:
        """Whether a rule is of a link from or to the container."""


class Published(NamedTuple):
    """One published port. `host` None: every address of the host."""

    proto: str
    host: Address | None
    host_port: int
    address: Address
    port: int


class Opened(NamedTuple):
    """A port of one member that --link opens to another."""

    client: Address
    server: Address
    proto: str
    port: int


class Differences(NamedTuple):
    """Between rules that there are to be and those that there are, in words; `text`: what the tool has to be told
    so that there are none. `missing`: with whose they are; `orphans`, `disordered`: the places and texts."""

    missing: list[tuple[str, str]]
    orphans: list[str]
    disordered: list[str]
    text: str


def versions(network: Network) -> tuple[int, ...]:
    """The IP versions that the network has."""
    return tuple(subnet.prefix.version for subnet in network.subnets)


def subnet(network: Network, version: int) -> Prefix:
    return next(one.prefix for one in network.subnets if one.prefix.version == version)


def address(endpoint: Endpoint, version: int) -> Address | None:
    interface = endpoint.ipv4 if version == 4 else endpoint.ipv6
    return interface.ip if interface else None


def published(
    network: Network, endpoint: Endpoint, mappings: Iterable[PortMapping], version: int
) -> Iterator[Published]:
    """The ports of one family that the mappings publish; none on an internal network."""
    if network.internal:
        return
    for key, value in entries.port_entries(network, endpoint, mappings).items():
        if value.addr.version == version:
            host = None if key.addr is None or key.addr.is_unspecified else key.addr
            yield Published(_PROTOCOLS[key.proto], host, key.port, value.addr, value.port)


def opened(links: Iterable[structs.LinkKey], version: int) -> Iterator[Opened]:
    for key in links:
        if key.server.version == version:
            yield Opened(key.client, key.server, _PROTOCOLS[key.proto], key.port)
