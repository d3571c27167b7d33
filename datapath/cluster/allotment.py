# SPDX-License-Identifier: Apache-2.0
"""Which address an endpoint gets, and which block of addresses a host. Pure.

A network's addresses are cut into blocks. A host gives its endpoints addresses of its own blocks, so that the others
reach them with no news of each. The first quarter of a block is its owner's reserve: nobody else is given an address
of it, so the owner can give one while it cannot ask the store. What lies outside of all blocks, or in another host's
behind its reserve, any host can be given: it is an exception that the others have to be told of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import NamedTuple

from datapath.errors import ConfigError
from datapath.model.digests import sha256
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network, Subnet
from datapath.model.parsing import Address, Prefix
from datapath.model.peers import Block, Remote
from datapath.plan import ipam

_USUAL = {4: 26, 6: 112}  # prefix length of blocks, by IP version
_SHARES = 4  # a small network is cut into at least 2 to the power of this many blocks
_LEAST = 2  # bits of an address within the smallest block


class Known(NamedTuple):
    """What a host knows of a network: whose its blocks are (a host's id), and which addresses are used, by whom (an
    endpoint's id). It may be out of date: the store has the last word."""

    blocks: Mapping[Prefix, str] = {}
    used: Mapping[Address, str] = {}

    @classmethod
    def of(
        cls, blocks: Iterable[Block], remotes: Iterable[Remote] = (), endpoints: Iterable[Endpoint] = ()
    ) -> Known:
        """From rows of one network: other hosts' endpoints, and this host's own."""
        used: dict[Address, str] = {}
        for remote in remotes:
            used |= {address: remote.id for address in (remote.ipv4, remote.ipv6) if address is not None}
        for endpoint in endpoints:
            used |= {own.ip: endpoint.id for own in (endpoint.ipv4, endpoint.ipv6) if own is not None}
        return cls({block.prefix: block.peer for block in blocks}, used)

    def using(self, address: Address, endpoint: str) -> Known:
        """With the address used too."""
        return self._replace(used={**self.used, address: endpoint})

    def owning(self, prefix: Prefix, peer: str) -> Known:
        """With the block taken too."""
        return self._replace(blocks={**self.blocks, prefix: peer})


class Choice(NamedTuple):
    """`block`: of nobody yet, to be claimed together with the address."""

    address: Address
    block: Prefix | None = None


# ---- how a network is cut ----------------------------------------------------------------------


def area_of(subnet: Subnet) -> Prefix:
    """What of the subnet is cut into blocks: its ip range, if it has one."""
    return subnet.ip_range or subnet.prefix


def block_length(subnet: Subnet) -> int:
    """The prefix length of the subnet's blocks: /26, or /112 of IPv6; longer in a small one, so that there are 16 of
    them if each still has 4 addresses."""
    area = area_of(subnet)
    wanted = max(_USUAL[area.version], area.prefixlen + _SHARES)
    return max(min(wanted, area.max_prefixlen - _LEAST), area.prefixlen)


def block_of(subnet: Subnet, address: Address) -> Prefix | None:
    """The block that the address is in; None: it is outside of what is cut."""
    if address not in area_of(subnet):
        return None
    return ip_network((address, block_length(subnet)), strict=False)


def reserve(subnet: Subnet, block: Prefix) -> tuple[int, int]:
    """The first and the last address (as numbers) that only the owner of the block is given: a quarter of it, not
    counting addresses before them that nobody can have."""
    first = int(block.network_address)
    last = first + block.num_addresses - 1
    blocked = {int(address) for address in ipam.unavailable(subnet)}
    while first in blocked and first < last:
        first += 1
    return first, min(first + max(block.num_addresses // _SHARES, 1) - 1, last)


def _reserved_for(subnet: Subnet, address: Address, known: Known) -> tuple[Prefix, str] | None:
    """The block in whose reserve the address is, and whose it is."""
    block = block_of(subnet, address)
    if block is None or block not in known.blocks:
        return None
    first, last = reserve(subnet, block)
    return (block, known.blocks[block]) if first <= int(address) <= last else None


# ---- choices -----------------------------------------------------------------------------------


def choose(
    network: Network,
    me: str,
    known: Known,
    version: int,
    wanted: Address | None = None,
    prefer: Collection[Address] = (),
    names: Mapping[str, str] | None = None,
) -> Choice:
    """An address of that IP version for an endpoint of the host `me`: the wanted one, else a preferred one in an own
    block, else one of an own block behind its reserve, of a new block, of the own reserve, or else an exception. The
    first one of a host comes with a block, if there is one left. `names`: of hosts, by id, for messages. ConfigError:
    the wanted one cannot be had, or there is none left."""
    subnet = subnet_of(network, version)
    search = _Search(network, subnet, me, known)
    if wanted is not None:
        _check_wanted(subnet, wanted, me, known, names or {})
        return Choice(wanted, search.block_for(wanted))
    for address in prefer:
        if address.version == version and search.is_free(address) and search.is_own(address):
            return Choice(address)
    found = search.behind_reserves() or search.in_new_block() or search.in_reserves()
    found = found or search.exception()
    if found is None:
        raise ConfigError(
            f"no available IPv{version} addresses on this network's address pools: {network.name} "
            f"({area_of(subnet)}): remove a container or choose a larger subnet"
        )
    return found


def choose_offline(
    network: Network,
    me: str,
    known: Known,
    version: int,
    wanted: Address | None = None,
    prefer: Collection[Address] = (),
) -> Address:
    """An address of an own reserve, which can be given without asking the store. ConfigError: there is none, or the
    wanted one is not there."""
    subnet = subnet_of(network, version)
    search = _Search(network, subnet, me, known)
    if wanted is not None:
        _check_wanted(subnet, wanted, me, known, {})
        if not search.in_own_reserve(wanted):
            raise ConfigError(
                f"address {wanted} is not of this host's reserve on network {network.name}, and the cluster store "
                "cannot be asked for another"
            )
        return wanted
    for address in prefer:
        if address.version == version and search.is_free(address) and search.in_own_reserve(address):
            return address
    found = search.in_reserves()
    if found is None:
        raise ConfigError(
            f"no address of this host's own reserve on network {network.name} is free, and the cluster store "
            "cannot be asked for another"
        )
    return found.address


def spare_blocks(me: str, known: Known, kept: int = 1) -> tuple[Prefix, ...]:
    """Blocks of the host `me` in which it has no endpoint, but for one of each family: that is its reserve, and what
    comes and goes at a block's edge is no news each time. `known.used`: of this host's own endpoints only. `kept`: 0 if
    the host is drained, and begins nothing that could be in it."""
    found: list[Prefix] = []
    for version in (4, 6):
        mine = (block for block, peer in known.blocks.items() if peer == me and block.version == version)
        empty = sorted(block for block in mine if not any(address in block for address in known.used))
        found += empty[kept:]
    return tuple(found)


def subnet_of(network: Network, version: int) -> Subnet:
    """ConfigError: the network has no addresses of that IP version."""
    subnet = network.subnet4 if version == 4 else network.subnet6
    if subnet is None:
        raise ConfigError(f"network {network.name} has no IPv{version} addresses")
    return subnet


def _check_wanted(subnet: Subnet, wanted: Address, me: str, known: Known, names: Mapping[str, str]) -> None:
    ipam.check_static(subnet, wanted)
    if wanted in known.used:
        raise ConfigError(f"Address already in use: {wanted}")
    held = _reserved_for(subnet, wanted, known)
    if held is not None and held[1] != me:
        block, peer = held
        raise ConfigError(
            f"address {wanted} is kept for containers of host {names.get(peer, peer[:12])}, whose block {block} begins "
            "with it: choose one further back, or one outside of an --ip-range"
        )


class _Search:
    """For a free address of one subnet, on behalf of the host `me`."""

    def __init__(self, network: Network, subnet: Subnet, me: str, known: Known) -> None:
        self._network, self._subnet, self._me, self._known = network, subnet, me, known
        self._blocked = ipam.unavailable(subnet)
        self._length = block_length(subnet)
        self._version = subnet.prefix.version
        mine = (block for block, peer in known.blocks.items() if peer == me)
        self._own = sorted(block for block in mine if block.version == self._version)

    def is_free(self, address: Address) -> bool:
        return (
            address not in self._known.used
            and address not in self._blocked
            and address in self._subnet.prefix
        )

    def is_own(self, address: Address) -> bool:
        return block_of(self._subnet, address) in self._own

    def in_own_reserve(self, address: Address) -> bool:
        held = _reserved_for(self._subnet, address, self._known)
        return held is not None and held[1] == self._me

    def block_for(self, address: Address) -> Prefix | None:
        """To be claimed with an address that the user chose: this host has none yet, or it is the address's own."""
        if self._own:
            return None
        around = block_of(self._subnet, address)
        if around is not None and around not in self._known.blocks:
            return around
        return next(self._unowned(), None)

    def behind_reserves(self) -> Choice | None:
        return self._first((block, self._behind(block)) for block in self._own)

    def in_reserves(self) -> Choice | None:
        return self._first((block, reserve(self._subnet, block)) for block in self._own)

    def in_new_block(self) -> Choice | None:
        for block in self._unowned():
            found = self._free_in(self._behind(block)) or self._free_in(reserve(self._subnet, block))
            if found is not None:
                return Choice(found, block)
        return None

    def exception(self) -> Choice | None:
        """Of another host's block, behind its reserve: from the last one down, which its owner gives last."""
        others = sorted(
            block
            for block, peer in self._known.blocks.items()
            if block.version == self._version and peer != self._me
        )
        start = self._place() % len(others) if others else 0
        for block in (*others[start:], *others[:start]):
            found = self._free_in(self._behind(block), down=True)
            if found is not None:
                return Choice(found)
        return None

    def _place(self) -> int:
        """Where this host begins to look: another number than the other hosts' with every block that it has."""
        seed = f"{self._me}/{self._network.id}/{len(self._own)}".encode()
        return int.from_bytes(sha256(seed)[:8], "big")

    def _first(self, areas: Iterable[tuple[Prefix, tuple[int, int]]]) -> Choice | None:
        for _, area in areas:
            found = self._free_in(area)
            if found is not None:
                return Choice(found)
        return None

    def _behind(self, block: Prefix) -> tuple[int, int]:
        """The addresses of a block that are not its reserve."""
        return reserve(self._subnet, block)[1] + 1, int(block.broadcast_address)

    def _free_in(self, area: tuple[int, int], down: bool = False) -> Address | None:
        make: type[IPv4Address] | type[IPv6Address] = IPv4Address if self._version == 4 else IPv6Address
        first, last = area
        for number in range(last, first - 1, -1) if down else range(first, last + 1):
            address = make(number)
            if self.is_free(address):
                return address
        return None

    def _unowned(self) -> Iterator[Prefix]:
        """Blocks of nobody, from a place on that is this host's own: hosts that look at once find different ones."""
        area = area_of(self._subnet)
        count = 1 << (self._length - area.prefixlen)
        size = area.max_prefixlen - self._length
        base, width = int(area.network_address), area.max_prefixlen // 8
        start = self._place()
        for step in range(min(count, len(self._known.blocks) + len(self._known.used) + 1)):
            number = base + (((start + step) % count) << size)
            block = ip_network((number.to_bytes(width, "big"), self._length))
            if block not in self._known.blocks:
                yield block
