# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom, as users see it, and filters for that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
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
    destination's. `reason`: of what was refused. Counted is what `source` has sent, and what it has received. Seconds:
    `opened` since it began, `idle` since the last packet."""

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


@dataclass(frozen=True, slots=True)
class Flows:
    """`lines`: the latest first; `watched`: how many networks have flows; `unplaced`: the total of what the table of
    totals had no room for."""

    lines: list[FlowLine]
    watched: int = 0
    unplaced: FlowLine | None = None


class FlowFilter(NamedTuple):
    """Lines that are meant; "", None and (): all. `between`: two names, in either direction; `since`: seconds."""

    network: str = ""
    source: str = ""
    destination: str = ""
    between: tuple[str, ...] = ()
    port: int | None = None
    protocol: str = ""
    verdict: str = ""
    reason: str = ""
    since: float | None = None

    def wants(self, line: FlowLine) -> bool:
        return (
            self.network in ("", line.network)
            and self.source in ("", line.source)
            and self.destination in ("", line.destination)
            and (not self.between or {line.source, line.destination} == set(self.between))
            and self.port in (None, line.port)
            and self.protocol in ("", line.protocol)
            and self.verdict in ("", line.verdict)
            and self.reason in ("", line.reason)
            and (self.since is None or line.idle <= self.since)
        )


def parse_word(text: str, known: Mapping[str, object] | tuple[str, ...], option: str) -> str:
    """One of the words, in lower case unless they are not; "": none. ConfigError names them, or one that is near."""
    word = text if text in known else text.lower()
    if not text or word in known:
        return word
    found = meant(text, list(known))
    hint = f"did you mean {found}?" if found else f"expected {', '.join(known)}"
    raise ConfigError(f"invalid {option} {quoted(text)}: {hint}")


def summed(lines: list[FlowLine]) -> list[FlowLine]:
    """One line for each source, destination, port, protocol and reason: what has ended and what goes on together."""
    found: dict[tuple[object, ...], FlowLine] = {}
    for line in lines:
        key = (line.network, line.source, line.destination, line.port, line.protocol, line.reason)
        before = found.get(key)
        total = line._replace(source_address="", source_port=0, destination_address="", state="")
        if before is not None:
            total = total._replace(
                connections=total.connections + before.connections,
                sent_packets=total.sent_packets + before.sent_packets,
                sent_bytes=total.sent_bytes + before.sent_bytes,
                received_packets=total.received_packets + before.received_packets,
                received_bytes=total.received_bytes + before.received_bytes,
                opened=max(total.opened, before.opened),
                idle=min(total.idle, before.idle),
            )
        found[key] = total
    return list(found.values())
