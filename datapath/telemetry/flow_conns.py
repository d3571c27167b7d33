# SPDX-License-Identifier: Apache-2.0
"""What is translated, of networks with flows, as the connection tables have it: read in bulk, as flow_tables does.

The packet programs count it in its connection, and in the total that it belongs to. So totals have it already: what
connections have counted that are shown by themselves is taken off them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from datapath.dataplane.connections import leftover
from datapath.kernel import abi
from datapath.model.connections import STATES
from datapath.model.flows import ALLOWED, OUTSIDE, FlowHead, FlowLine
from datapath.telemetry.flow_tables import Heads, Key, Total, text

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane

_TABLES = ("pending", "conns")  # in this order: what moves from one to the other meanwhile is met in both
_ORIGINAL = int(abi.ConnFlag.CONN_ORIGINAL)
_TUPLE, _CONN = abi.layout("tuple"), abi.layout("conn")
_ROW = _CONN.select("other", "last_seen", "state", "since", "packets", "bytes")
_BACK = _CONN.select("last_seen", "packets", "bytes")
_SIDES = _TUPLE.select("src", "dst", "sport", "dport")


class Conn(NamedTuple):
    """An entry of the original direction: its packed key, fields of its row, what it is about, and its total's key."""

    key: bytes
    row: tuple[Any, ...]
    head: FlowHead
    total: Key


@dataclass(slots=True)
class Conns:
    """Connections that are counted, by the packed keys of their original direction; and when each was seen last in the
    other direction (ns, CLOCK_MONOTONIC), its packets and bytes, by that one's keys."""

    rows: dict[bytes, Conn] = field(default_factory=dict)
    back: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)

    def seen(self, conn: Conn) -> int:
        """Its last packet, in either direction."""
        return max(int(conn.row[1]), self.back.get(conn.row[0], (0,))[0])

    def counted(self, conn: Conn) -> tuple[int, int, int, int, int]:
        """Connections, packets and bytes of who has opened it, and of the other."""
        _, packets, octets = self.back.get(conn.row[0], (0, 0, 0))
        return 1, conn.row[4], conn.row[5], packets, octets


def read(found: Dataplane, heads: Heads) -> Conns:
    """Those that are meant, both directions of each."""
    conns, left = Conns(), leftover(found)
    for table in _TABLES:
        for keys, values, _ in getattr(found, table).batches():
            watched = _CONN.column(values, "watched")
            if any(watched):
                _pick(conns, watched, keys, values, heads, left)
    return conns


def _pick(
    conns: Conns,
    watched: list[int],
    keys: bytes,
    values: bytes,
    heads: Heads,
    left: Callable[[int, int, int], bool],
) -> None:
    columns = zip(
        watched,
        _CONN.column(values, "flags"),
        _TUPLE.column(keys, "proto"),
        _CONN.column(values, "from_endpoint"),
        _CONN.column(values, "to_endpoint"),
        _CONN.column(values, "other", "sport"),
        _TUPLE.column(keys, "sport"),
        _CONN.column(values, "removals"),
        strict=True,
    )
    about = [
        (0 if left(sender, receiver, seen) else network, proto)
        + ((sender, receiver, asked, 0) if flags & _ORIGINAL else (receiver, sender, port, 0))
        for network, flags, proto, sender, receiver, asked, port, seen in columns
    ]
    flags = _CONN.column(values, "flags")
    size = _TUPLE.size
    for i in [i for i, total in enumerate(about) if total[0] and heads[total] is not None]:
        key, total, head = keys[i * size : (i + 1) * size], about[i], heads[about[i]]
        if flags[i] & _ORIGINAL and head is not None:
            conns.rows[key] = Conn(key, _ROW.unpack_from(values, i * _CONN.size), head, total)
        else:
            conns.back[key] = _BACK.unpack_from(values, i * _CONN.size)


def taken_off(totals: Iterable[Total], conns: Conns) -> tuple[list[Total], list[int]]:
    """What has ended: totals without what connections have counted that are shown by themselves. And what these have
    counted that has no total, as there was no room for one: connections, packets and bytes each way."""
    shown: dict[Key, list[int]] = {}
    for conn in conns.rows.values():
        sums = shown.setdefault(conn.total, [0] * 5)
        for place, number in enumerate(conns.counted(conn)):
            sums[place] += number
    left = []
    for total in totals:
        taken = shown.pop(total.key, None)
        if taken is None:
            left.append(total)
            continue
        # A packet may be counted between the two looks, and a connection of which only the middle was seen is none.
        rest = tuple(max(number - less, 0) for number, less in zip(total.counted, taken, strict=True))
        if any(rest):
            left.append(total._replace(counted=rest))
    return left, [sum(column) for column in zip(*shown.values(), strict=True)] or [0] * 5


def line(conns: Conns, conn: Conn, services: Mapping[str, str], now: int) -> FlowLine:
    """The line of a connection. `services`: their names, by their addresses."""
    source, asked, sport, port = _SIDES.unpack(conn.key)
    server, _, server_port, _ = _SIDES.unpack(conn.row[0])
    head, counted = conn.head, conns.counted(conn)
    published = ""
    if (asked, port) != (server, server_port) and head.destination != OUTSIDE:
        number = int.from_bytes(port, "big")
        published = services.get(text(asked), "") + (f":{number}" if number else "")
    state = STATES[conn.row[2]] if head.protocol == "tcp" else "replied" if counted[3] else "new"
    return FlowLine(
        head.network,
        head.source,
        text(source),
        int.from_bytes(sport, "big"),
        head.destination,
        text(server),
        head.port,
        head.protocol,
        ALLOWED,
        "",
        state,
        *counted,
        max(now - ((conn.row[3] << 24) or conn.row[1]), 0) / 1e9,
        max(now - conns.seen(conn), 0) / 1e9,
        published,
    )
