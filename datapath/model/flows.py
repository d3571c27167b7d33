# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom, as users see it, and filters for that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from datapath.errors import ConfigError, meant, quoted
from datapath.model.parsing import PROTOCOLS

ALLOWED, REFUSED = VERDICTS = ("allowed", "refused")
HOST, OUTSIDE, PEER = "host", "outside", "another-host"
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class FlowLine(NamedTuple):
    """A row of what goes on, or a total of what has ended. `source` has begun it: the name of a container, or one of
    HOST, OUTSIDE and PEER. Addresses, the source's port and `state` are of rows alone, "" and 0 otherwise; `port`: the
    destination's. `published`: what was asked instead of that, ":8080" of the host, "front:80" of a service, or "".
    `reason`: of what was refused. Counted is what `source` has sent, and what it has received. Seconds: `opened` since
    it began, `idle` since the last packet."""

    network: str
    source: str
    source_address: str
    source_port: int
    destination: str
    destination_address: str
    port: int
    protocol: str
    verdict: str
    reason: str
    state: str
    connections: int
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    opened: float
    idle: float
    published: str = ""


class FlowHead(NamedTuple):
    """What is alike of all lines that make one total."""

    network: str
    source: str
    destination: str
    port: int
    protocol: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class Flows:
    """`lines`: the latest first; `watched`: how many networks have flows; `unplaced`: the total of what the table of
    totals had no room for."""

    lines: list[FlowLine]
    watched: int = 0
    unplaced: FlowLine | None = None


class FlowFilter(NamedTuple):
    """Lines that are meant; "", None and (): all. `between`: two names, in either direction; `since`: seconds;
    `labels`: what one of the two containers has, "key" or "key=value"; `negated`: on that network all but these."""

    network: str = ""
    source: str = ""
    destination: str = ""
    between: tuple[str, ...] = ()
    port: int | None = None
    protocol: str = ""
    verdict: str = ""
    reason: str = ""
    since: float | None = None
    labels: tuple[str, ...] = ()
    negated: bool = False

    def wants(self, head: FlowHead, *, labelled: bool = True) -> bool:
        """Whether lines about that are meant, if they had a packet since then. `labelled`: one of the two has the
        labels."""
        fits = (
            labelled
            and self.source in ("", head.source)
            and self.destination in ("", head.destination)
            and (not self.between or {head.source, head.destination} == set(self.between))
            and self.port in (None, head.port)
            and self.protocol in ("", head.protocol)
            and self.verdict in ("", head.verdict)
            and self.reason in ("", head.reason)
        )
        return self.network in ("", head.network) and fits != self.negated


def parse_word(text: str, known: Mapping[str, object] | tuple[str, ...], option: str) -> str:
    """One of the words, in lower case unless they are not; "": none. ConfigError names them, or one that is near."""
    word = text if text in known else text.lower()
    if not text or word in known:
        return word
    found = meant(text, list(known))
    hint = f"did you mean {found}?" if found else f"expected {', '.join(known)}"
    raise ConfigError(f"invalid {option} {quoted(text)}: {hint}")


def counted(line: FlowLine) -> tuple[int, int, int, int, int]:
    """Connections, packets and bytes sent, and received."""
    return line.connections, line.sent_packets, line.sent_bytes, line.received_packets, line.received_bytes


def grown(now: Iterable[FlowLine], before: Mapping[FlowHead, FlowLine]) -> list[FlowLine]:
    """What has been added to totals since they were `before`. One that counts less was taken away with its network, and
    is another now."""
    found = []
    for line in now:
        had = before.get(head_of(line))
        more = [one - was for one, was in zip(counted(line), counted(had), strict=True)] if had else [0]
        if had and min(more) >= 0:
            line = line._replace(
                connections=more[0],
                sent_packets=more[1],
                sent_bytes=more[2],
                received_packets=more[3],
                received_bytes=more[4],
            )
        if any(counted(line)):
            found.append(line)
    return found


def head_of(line: FlowLine) -> FlowHead:
    """What its total is about."""
    return FlowHead(
        *(line.network, line.source, line.destination, line.port, line.protocol, line.verdict, line.reason)
    )
