# SPDX-License-Identifier: Apache-2.0
"""Classes of parties: whom the same selectors fit is one to every rule.

A prefix has one class as well, that of the addresses which are in no longer prefix: rows need not be multiplied by the
prefixes that overlap. Numbers mean something on this host alone, and begin at 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network

from datapath.model.parsing import Address, Prefix
from datapath.model.policies import Kind, Member, Party, Selector, World

_WHOLE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_GLOB = frozenset("*?")


class Classes:
    """Numbers of parties, by the selectors that fit them. `fitting`: places of those that fit a class; `possible`: also
    of those that may, where names or labels are not known; `names`: the class of outside name servers."""

    def __init__(self, selectors: Sequence[Selector], world: World) -> None:
        self.selectors = selectors
        self.world = world
        self.fitting: dict[int, frozenset[int]] = {}
        self.possible: dict[int, frozenset[int]] = {}
        self._numbers: dict[tuple[frozenset[int], frozenset[int], bool], int] = {}
        self._places: dict[tuple[object, ...], list[int]] = defaultdict(list)
        self._lengths: set[tuple[int, int]] = set()
        for place, selector in enumerate(selectors):
            for key in self._keys(selector):
                self._places[key].append(place)
        self.names = self.number(Party(Kind.NAMES))

    def _keys(self, selector: Selector) -> Iterator[tuple[object, ...]]:
        """Where `_candidates` looks for it: by what is rare."""
        if selector.word:
            yield ("word",)
        elif selector.prefix is not None or selector.domain:
            yield ("domain",) if selector.domain else ()
            for prefix in selector.prefixes(self.world):
                self._lengths.add((prefix.version, prefix.prefixlen))
                yield _key(prefix.version, prefix.prefixlen, prefix.network_address)
        else:
            if selector.name or selector.labels:
                yield ("asks",)
            if selector.name and not _GLOB & set(selector.name):
                yield ("name", selector.name)
            elif selector.ident:
                yield ("ident", selector.ident)
            elif selector.labels:
                yield ("label", *selector.labels[0])
            else:
                yield ("network", selector.network)

    def _candidates(self, party: Party) -> Iterator[int]:
        """Selectors that may fit; no other does."""
        keys: list[tuple[object, ...]] = [("word",)]
        if party.address is not None:
            version = party.address.version
            keys += [_key(version, length, party.address) for v, length in self._lengths if v == version]
        if party.kind is Kind.NAMES:
            keys.append(("domain",))
        if party.member is not None:
            member = party.member
            keys += [("network", ""), ("network", member.network), ("ident", member.ident)]
            keys += [("name", member.name), *(("label", *pair) for pair in member.labels.items())]
            keys += [] if member.known else [("asks",)]
        for key in keys:
            yield from self._places.get(key, ())

    def number(self, party: Party) -> int:
        """The party's class; a new one, if it is the first."""
        found = {*self._candidates(party)}
        fits = frozenset(n for n in found if self.selectors[n].fits(party, self.world))
        may_fit = fits
        if party.member is not None and not party.member.known:
            may_fit = frozenset(n for n in found if self.selectors[n].fits(party, self.world, unknown=True))
        signature = (fits, may_fit, party.kind is Kind.NAMES)
        if signature not in self._numbers:
            number = self._numbers[signature] = len(self._numbers) + 1
            self.fitting[number], self.possible[number] = fits, may_fit
        return self._numbers[signature]

    def prefixes(self) -> dict[Prefix, int]:
        """The class of every address that is not a member's of this host, by the longest prefix."""
        single: dict[Prefix, Party] = {}
        for member in self.world.members:
            for address in () if member.here else member.addresses:
                single[ip_network(address)] = Party(Kind.MEMBER, address, member)
        for address in self.world.host:
            single[ip_network(address)] = Party(Kind.HOST, address)
        wanted = {*_WHOLE, *single}
        for selector in self.selectors:
            wanted.update(selector.prefixes(self.world))
        return {
            prefix: self.number(single.get(prefix) or Party(Kind.OUTSIDE, address))
            for prefix, address in representatives(wanted)
        }

    def of_member(self, member: Member, version: int) -> int:
        """The class of the member with its address of that family; 0: it has none."""
        address = next((one for one in member.addresses if one.version == version), None)
        return 0 if address is None else self.number(Party(Kind.MEMBER, address, member))


def representatives(prefixes: Iterable[Prefix]) -> Iterator[tuple[Prefix, Address]]:
    """Each prefix with an address that is in it and in no longer one of them; without those that have none."""
    ordered = sorted(prefixes, key=lambda p: (p.version, int(p.network_address), p.prefixlen))
    around: list[tuple[Prefix, int]] = []  # with the first address that may be in no longer one
    for prefix in [*ordered, None]:
        while around and (prefix is None or not _within(prefix, around[-1][0])):
            outer, free = around.pop()
            if free <= int(outer.broadcast_address):
                yield outer, type(outer.network_address)(free)
        if prefix is not None:
            first = int(prefix.network_address)
            if around and around[-1][1] >= first:
                around[-1] = (around[-1][0], int(prefix.broadcast_address) + 1)
            around.append((prefix, first))


def _within(inner: Prefix, outer: Prefix) -> bool:
    return inner.version == outer.version and inner.network_address in outer


def _key(version: int, length: int, address: Address) -> tuple[object, ...]:
    return (version, length, int(address) >> address.max_prefixlen - length)
