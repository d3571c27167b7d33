# SPDX-License-Identifier: Apache-2.0
"""resolv.conf(5) as hosts have it, and the name servers that containers' questions go on to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from datapath.model.parsing import Address

RESOLVER = IPv4Address("127.0.0.11")  # whom a container asks, as in Docker
MAX_SERVERS = 3  # MAXNS of resolv.h: no more are ever asked
LOOPBACK = IPv4Address("127.0.0.1")
NO_SEARCH = "."  # --dns-search: none, not even the host's
_COMMENT = ("#", ";")


class Server(NamedTuple):
    """A name server. `device`: the host's device that a link-local address is asked by; "": any other address."""

    address: Address
    device: str = ""


class ResolvConf(NamedTuple):
    """What a resolv.conf says: `nameservers` as they are written; `search` of its last line of that kind; `options` of
    all lines; `others`: the lines that mean something else."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ResolvConf:
        """Reads it as leniently as the libraries that do: what cannot be understood is passed over. Several addresses
        on one line are several servers."""
        nameservers: list[str] = []
        search: tuple[str, ...] = ()
        options: list[str] = []
        others: list[str] = []
        for line in text.splitlines():
            word, *rest = _words(line) or ("",)
            if word == "nameserver":
                nameservers += [one for one in rest if server(one) is not None]
            elif word in ("search", "domain"):  # the last of either counts
                search = tuple(rest)
            elif word == "options":
                options += rest
            elif word:
                others.append(line.strip())
        return cls(tuple(nameservers), search, tuple(dict.fromkeys(options)), tuple(others))

    def __str__(self) -> str:
        lines = [f"nameserver {one}" for one in self.nameservers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(f"{line}\n" for line in (*lines, *self.others))


def _words(line: str) -> tuple[str, ...]:
    """Up to a comment."""
    found = []
    for word in line.split():
        if word.startswith(_COMMENT):
            break
        found.append(word)
    return tuple(found)


def server(text: str) -> Server | None:
    """`10.0.0.53`, `fe80::1%eth0`; None: it is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    device = text.partition("%")[2]
    return Server(address, device) if address.is_link_local or not device else None


@dataclass(frozen=True, slots=True)
class NameFacts:
    """What rows about names need to know besides the store's rows. `ttl`: seconds that an answer may be kept;
    `servers`: whom all ask who were given none of their own, in order; `links`: the host's devices, by name."""

    ttl: int = 0
    servers: tuple[Server, ...] = (Server(LOOPBACK),)
    links: Mapping[str, int] = field(default_factory=dict)


def servers(*lists: Iterable[str]) -> tuple[Server, ...]:
    """Those of the first list that has any; the host itself if none has, as libc does it."""
    for texts in lists:
        found = dict.fromkeys(one for one in map(server, texts) if one is not None)
        if found:
            return tuple(found)[:MAX_SERVERS]
    return (Server(LOOPBACK),)
