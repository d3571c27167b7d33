# SPDX-License-Identifier: Apache-2.0
"""The lines of `top`, printed or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datapath.errors import printable

from .flows import amount
from .formatting import clock, seconds
from .golang.values import Fraction

if TYPE_CHECKING:
    from datapath.telemetry.rates import ContainerRate, FlowRate, Rates

CONTAINERS = {
    "Container": "CONTAINER",
    "Networks": "NETWORKS",
    "Packets": "PACKETS/S",
    "Received": "RECEIVED/S",
    "Sent": "SENT/S",
    "Connections": "CONNS/S",
    "Refused": "REFUSED/S",
}
FLOWS = {
    "From": "FROM",
    "To": "TO",
    "Protocol": "PROTO",
    "Packets": "PACKETS/S",
    "Bytes": "BYTES/S",
    "Connections": "CONNS/S",
    "Last": "LAST",
}
REFUSED = {
    "From": "REFUSED FROM",
    "To": "TO",
    "Protocol": "PROTO",
    "Reason": "REASON",
    "Packets": "PACKETS/S",
    "Total": "PACKETS",
    "Last": "LAST",
}
SORTS = ("bytes", "packets", "connections", "refused", "name")


def tables(found: Rates, sort: str, word: str) -> list[tuple[Sequence[Mapping[str, Any]], Mapping[str, str]]]:
    """Containers, who talks to whom, and what is refused: those with the word in a name, sorted."""
    containers = sorted(found.containers, key=lambda one: _order(one, sort))
    flows, refused = (
        sorted(some, key=lambda one: _flow_order(one, sort)) for some in (found.flows, found.refused)
    )
    return [
        ([container_row(one) for one in containers if word in one.name], CONTAINERS),
        ([flow_row(one) for one in flows if _has(one, word)], FLOWS),
        ([flow_row(one) for one in refused if _has(one, word)], REFUSED),
    ]


def _order(one: ContainerRate, sort: str) -> tuple[Any, ...]:
    rates = {
        "bytes": one.received + one.sent,
        "packets": one.packets,
        "connections": one.connections,
        "refused": one.refused,
    }
    return (-rates.get(sort, 0), one.name)


def _flow_order(one: FlowRate, sort: str) -> tuple[Any, ...]:
    """What is alike otherwise: the latest first."""
    rates = {
        "bytes": one.bytes,
        "packets": one.packets,
        "connections": one.connections,
        "refused": one.packets,
    }
    return (-rates[sort], one.idle, one.head) if sort in rates else (0, 0, one.head[1:])


def _has(one: FlowRate, word: str) -> bool:
    return word in one.head.source or word in one.head.destination


def container_row(one: ContainerRate) -> dict[str, Any]:
    """What `top` knows about a container; null: none of its networks has flows."""
    numbers = {
        "Packets": rate(one.packets),
        "Received": amount(round(one.received)),
        "Sent": amount(round(one.sent)),
        "Connections": rate(one.connections),
        "Refused": rate(one.refused),
    }
    known = numbers if one.watched else dict.fromkeys(numbers)
    return {"Kind": "container", "Container": one.name, "Networks": ",".join(one.networks), **known}


def flow_row(one: FlowRate) -> dict[str, Any]:
    """What it knows about who talks to whom, or is refused."""
    head = one.head
    return {
        "Kind": head.verdict,
        "Network": head.network,
        "From": head.source,
        "To": f"{head.destination or '?'}{f':{head.port}' if head.port else ''}",
        "Destination": head.destination,
        "Port": head.port,
        "Protocol": head.protocol,
        "Reason": head.reason,
        "Packets": rate(one.packets),
        "Bytes": amount(round(one.bytes)),
        "Connections": rate(one.connections),
        "Total": one.total,
        "Last": seconds(round(one.idle)),
    }


def rate(number: float) -> Fraction:
    """So many a second: 0, 0.3, 17, 4213."""
    return Fraction(round(number, 3), f"{number:.1f}" if 0.05 <= number < 9.95 else f"{number:.0f}")


def cell(value: object) -> str:
    """What a table has for a value."""
    return "-" if value is None else printable(str(value))


def summary(found: Rates) -> str:
    """A line for the host: what passes each container's device once, what is dropped, what it costs."""
    packets = sum(one.packets for one in found.flows)
    length = sum(one.bytes for one in found.flows)
    opened = sum(one.connections for one in found.flows)
    dropped = ", ".join(
        f"{name} {rate(number)}"
        for name, number in sorted(found.dropped.items(), key=lambda one: -one[1])[:3]
    )
    words = [
        clock(),
        f"{rate(packets)} packets/s",
        f"{amount(round(length))}/s",
        f"{rate(opened)} connections/s",
        f"dropped: {dropped}" if dropped else "nothing dropped",
        f"top takes {found.own:.1%} of a processor",
    ]
    if found.programs is not None:
        words.append(f"the packet programs {found.programs:.1%}")
    if not found.watched:
        words.append("no network has the option com.datapath.flows=true")
    return "; ".join(words)
