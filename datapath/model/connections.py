# SPDX-License-Identifier: Apache-2.0
"""Connections as users see them: both directions as one; and filters for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from datapath.errors import ConfigError, quoted
from datapath.model.parsing import PROTOCOLS, Prefix, parse_address_or_prefix

STATES = ("new", "replied", "established", "closing", "closed")


class Connection(NamedTuple):
    """A tuple with its addresses as text, because there are many.

    `source` to `destination` is the first packet as it was sent, `nat_source` to `nat_destination` as it was
    translated. Seconds: `idle` since the last packet, `expires` until it is forgotten if there is no other.
    ICMP echo: the source's port is the identifier. `confirmed`: both sides have spoken. `owner`: the endpoint
    number of the container that it counts for, 0: none. `packets` and `bytes`, from the IP header on, are those of the
    first packet's direction, `reply_packets` and `reply_bytes` those of the other."""

    proto: str
    source: tuple[str, int]
    destination: tuple[str, int]
    nat_source: tuple[str, int]
    nat_destination: tuple[str, int]
    state: str
    idle: float
    expires: float
    confirmed: bool
    endpoints: tuple[int, ...]
    owner: int
    packets: int = 0
    bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


class ConnectionFilter(NamedTuple):
    """Which connections are meant: those that fit every field that is not None. `source` and `destination`
    fit what was asked for and what it was made into. `endpoints`: numbers, of which one takes part."""

    endpoints: frozenset[int] | None = None
    proto: int | None = None
    source: Prefix | None = None
    destination: Prefix | None = None
    state: int | None = None

    @classmethod
    def parse(
        cls, proto: str = "", source: str = "", destination: str = "", state: str = ""
    ) -> ConnectionFilter:
        """The words of `ct ls`, "" for what does not matter. ConfigError."""
        return cls(
            proto=PROTOCOLS[_word(proto, PROTOCOLS, "protocol")] if proto else None,
            source=parse_address_or_prefix(source, "source") if source else None,
            destination=parse_address_or_prefix(destination, "destination") if destination else None,
            state=STATES.index(_word(state, dict.fromkeys(STATES, 0), "state")) if state else None,
        )


def _word(text: str, known: Mapping[str, int], what: str) -> str:
    word = text.lower()
    if word not in known:
        raise ConfigError(f"invalid {what} {quoted(text)}: expected {', '.join(known)}")
    return word


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """`states`: (table, state) -> connections; `tables`: table -> (entries, most), two entries a connection;
    `drops`: reason -> (packets, bytes); `quotas`: container -> (connections, openings); the limits, 0: none."""

    states: Mapping[tuple[str, str], int]
    tables: Mapping[str, tuple[int, int]]
    drops: Mapping[str, tuple[int, int]]
    quotas: Mapping[str, tuple[int, int]]
    max_connections: int
    max_openings: int
