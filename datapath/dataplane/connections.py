# SPDX-License-Identifier: Apache-2.0
"""The connection tables (conntrack): listing connections, counting them, and deleting them.

A connection has two entries: that of the original direction, in which its first packet went, and that of the reply
direction. A table may have a million: whole batches are read, of each entry only the fields that decide are unpacked,
and only what is shown becomes objects. The packet programs go on meanwhile: a change of theirs may be seen or not.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from datapath.kernel.bpf_maps import BPF_EXIST
from datapath.model.connections import STATES, Connection, ConnectionFilter
from datapath.model.parsing import PROTOCOLS, Address, Prefix

_OUTSIDE, _HOST = int(abi.OtherParty.PARTY_OUTSIDE), int(abi.OtherParty.PARTY_HOST)
_NO_ENDPOINTS = frozenset(int(party) for party in abi.OtherParty)
_ORIGINAL = int(abi.ConnFlag.CONN_ORIGINAL)
_COUNTED = int(abi.ConnFlag.CONN_COUNTED)
_SERVICE = int(abi.ConnFlag.CONN_SERVICE)
_ESTABLISHED, _CLOSED = int(abi.ConnState.CONN_ESTABLISHED), int(abi.ConnState.CONN_CLOSED)
_CLOSING = int(abi.ConnState.CONN_CLOSING)
_CONN = abi.layout("conn").select(
    *("other", "last_seen", "from_endpoint", "to_network", "to_endpoint", "flags", "state", "since"),
    *("packets", "bytes", "removals"),
)
_TUPLE = abi.layout("tuple").select("src", "dst", "sport", "dport", "proto")
_KEY_SIZE = abi.layout("tuple").size
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_PROTO = abi.layout("tuple").offset("proto")
_SPORT = slice(abi.layout("tuple").offset("sport"), abi.layout("tuple").offset("sport") + 2)
_DNS = (53).to_bytes(2, "big")
_SURROGATE = b"\x01" + bytes(7)  # 100::/64
_MAPPED = bytes(10) + b"\xff\xff"
_STREAM = 2 * 10**9 >> 24  # in the unit of `since`

# Connections of which only one side has spoken, and all others.
TABLES = ("pending", "conns")


def _endpoint(party: int) -> int:
    """The endpoint's number; 0: the party is not an endpoint."""
    return 0 if party == _HOST else party


class Original(NamedTuple):
    """A connection's entry of the original direction. `key` and `other`: the packed keys (struct tuple) of its two
    entries, original and reply. `last_seen`: nanoseconds of the monotonic clock. `packets` and `octets`: of this
    direction."""

    key: bytes
    other: bytes
    last_seen: int
    from_endpoint: int
    to_network: int
    to_endpoint: int
    flags: int
    state: int
    since: int
    packets: int
    octets: int
    removals: int

    @property
    def arrived(self) -> bool:
        """Somebody who is no endpoint has opened it."""
        return not _endpoint(self.from_endpoint)

    @property
    def asked(self) -> tuple[int, int]:
        """The protocol's number and the port that it was opened to."""
        _, _, _, port, proto = _TUPLE.unpack(self.key)
        return proto, _port(port)

    @property
    def served(self) -> bool:
        """It is one to a backend of a service."""
        return bool(self.flags & _SERVICE)

    @property
    def owner(self) -> int:
        """The endpoint that the connection counts for (as conn_owner() of conntrack.h)."""
        return _endpoint(self.from_endpoint) or _endpoint(self.to_endpoint)

    @property
    def load(self) -> tuple[int, bytes] | None:
        """The row of `loads` that the connection is counted in: the backend, and its packed address."""
        return (self.to_endpoint, self.other[:16]) if self.flags & _COUNTED else None


def originals(dataplane: Dataplane, table: str) -> Iterator[Original]:
    """Every connection of a table, by its entry of the original direction, but for those that are left of endpoints
    that were removed."""
    left = leftover(dataplane)
    for keys, values, _ in getattr(dataplane, table).batches():
        at = 0
        for fields in _CONN.iter_unpack(values):
            if fields[5] & _ORIGINAL and not left(fields[2], fields[4], fields[10]):
                yield Original(keys[at : at + _KEY_SIZE], *fields)
            at += _KEY_SIZE


def leftover(dataplane: Dataplane) -> Callable[[int, int, int], bool]:
    """Whether a row of the tables is left of an endpoint that was removed, by its `from_endpoint`, `to_endpoint` and
    `removals`: what the programs ask in conn_is_left() of conntrack.h."""
    count = dataplane.removals[0].count
    if not count:
        return lambda sender, receiver, seen: False
    there = _NO_ENDPOINTS.union(key.endpoint for key in dataplane.quotas)
    return lambda sender, receiver, seen: seen != count and not (sender in there and receiver in there)


def matcher(wanted: ConnectionFilter) -> Callable[[Original], bool]:
    """The filter as a test of packed entries."""
    tests: list[Callable[[Original], bool]] = []
    if wanted.endpoints is not None:
        numbers = wanted.endpoints - {0}
        tests.append(lambda conn: conn.from_endpoint in numbers or conn.to_endpoint in numbers)
    if wanted.state is not None:
        state = wanted.state
        tests.append(lambda conn: conn.state == state)
    if wanted.proto is not None:
        proto = wanted.proto
        tests.append(lambda conn: conn.key[_PROTO] == proto)
    # What arrives at the server is the reverse of what it answers.
    if wanted.source is not None:
        inside = _within(wanted.source)
        tests.append(lambda conn: inside(_as_known(conn.key[0:16])) or inside(conn.other[16:32]))
    if wanted.destination is not None:
        inside_too = _within(wanted.destination)
        tests.append(lambda conn: inside_too(conn.key[16:32]) or inside_too(conn.other[0:16]))
    if len(tests) <= 1:
        return tests[0] if tests else lambda conn: True
    return lambda conn: all(test(conn) for test in tests)


def _within(prefix: Prefix) -> Callable[[bytes], bool]:
    first, last = abi.pack_address(prefix.network_address), abi.pack_address(prefix.broadcast_address)
    mapped = prefix.version == 4
    return lambda raw: first <= raw <= last and abi.is_mapped(raw) == mapped


_text = functools.lru_cache(65536)(abi.address_text)
_address = functools.lru_cache(65536)(abi.unpack_address)


@functools.cache
def _port(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def find(dataplane: Dataplane, wanted: ConnectionFilter) -> Iterator[Connection]:
    """The connections that fit the filter, unanswered ones first."""
    timeouts = dataplane.config[0]
    fits = matcher(wanted)
    now = time.monotonic_ns()
    for table in TABLES:
        conns = [conn for conn in originals(dataplane, table) if fits(conn)]
        replies = _replies(dataplane, table, {conn.other for conn in conns})
        confirmed = table == "conns"
        lifetimes: dict[tuple[int, int, bool, bool], float] = {}
        for conn in conns:
            back_seen, *back = replies.get(conn.other, (0, 0, 0))
            seen = max(conn.last_seen, back_seen)
            idle = max(now - seen, 0) / 1e9
            stream = (seen >> 24) - conn.since >= _STREAM
            kind = conn.key[_PROTO], conn.state, stream, conn.other[_SPORT] == _DNS
            lifetime = lifetimes.get(kind)
            if lifetime is None:
                lifetime = lifetimes[kind] = _lifetime(*kind, timeouts, confirmed)
            yield _connection(conn, idle, lifetime, confirmed, *back)


def _replies(dataplane: Dataplane, table: str, keys: set[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """Of the entries of the reply direction with these keys: when each was seen last, in ns, its packets and bytes."""
    found = {}
    for packed, values, _ in getattr(dataplane, table).batches() if keys else ():
        at = 0
        for fields in _CONN.iter_unpack(values):
            key = packed[at : at + _KEY_SIZE]
            if not fields[5] & _ORIGINAL and key in keys:
                found[key] = fields[1], *fields[8:10]
            at += _KEY_SIZE
    return found


def _as_known(address: bytes) -> bytes:
    """What stands for a container's loopback address in the tables is that address (asked_by() of names.h)."""
    return _MAPPED + address[12:16] if address.startswith(_SURROGATE) else address


def _connection(conn: Original, idle: float, lifetime: float, confirmed: bool, *back: int) -> Connection:
    """`back`: packets and bytes of the reply's direction."""
    src, dst, sport, dport, proto = _TUPLE.unpack(conn.key)
    src = _as_known(src)
    back_src, back_dst, back_sport, back_dport, _ = _TUPLE.unpack(conn.other)
    opener, server = _endpoint(conn.from_endpoint), _endpoint(conn.to_endpoint)
    return Connection(
        _NAMES.get(proto) or str(proto),
        (_text(src), _port(sport)),
        (_text(dst), _port(dport)),
        (_text(back_dst), _port(back_dport)),
        (_text(back_src), _port(back_sport)),
        STATES[conn.state],
        idle,
        lifetime - idle if lifetime > idle else 0.0,
        confirmed,
        ((opener, server) if opener else (server,)) if server else (opener,) if opener else (),
        opener or server,
        *(conn.packets, conn.octets, *back),
    )


def _lifetime(
    proto: int, state: int, stream: bool, dns: bool, timeouts: abi.config, confirmed: bool
) -> float:
    """Seconds, as conn_timeout() of conntrack.h; an opening has no timer, but may be replaced after these."""
    if not confirmed:
        return float(timeouts.timeout_handshake)
    if state == _CLOSED:
        return float(timeouts.timeout_closing)
    if proto == PROTOCOLS["tcp"]:
        if state == _CLOSING:
            return float(timeouts.timeout_half_closed)
        return float(timeouts.timeout_established if state == _ESTABLISHED else timeouts.timeout_handshake)
    if proto != PROTOCOLS["udp"]:
        return float(timeouts.timeout_icmp)
    if stream:
        return float(timeouts.timeout_udp)
    once = min(timeouts.timeout_udp, timeouts.timeout_udp_exchange)
    return float(min(once, timeouts.timeout_closing) if dns else once)


def states(dataplane: Dataplane) -> dict[tuple[str, str], int]:
    """(table, state) -> connections."""
    counted: Counter[tuple[str, str]] = Counter()
    for table in TABLES:
        for state, number in Counter(conn.state for conn in originals(dataplane, table)).items():
            counted[table, STATES[state]] = number
    return dict(counted)


# ---- forgetting ------------------------------------------------------------------------------------


def forget(dataplane: Dataplane, fits: Callable[[Original], bool]) -> int:
    """Deletes both entries of every connection that fits, and takes it off its endpoint's quota. Returns how many."""
    total = 0
    for table in TABLES:
        found = [conn for conn in originals(dataplane, table) if fits(conn)]
        total += len(found)
        _end(dataplane, table, found)
    return total


def _end(dataplane: Dataplane, table: str, found: Sequence[Original]) -> None:
    """Deletes both entries of these connections of the table, and takes them off what they count for."""
    if not found:
        return
    # The reply's entries last: without them the others count as torn, and no packet takes them up again.
    getattr(dataplane, table).delete_raw([conn.key for conn in found])
    getattr(dataplane, table).delete_raw([conn.other for conn in found])
    if table == "conns":
        _credit(dataplane, "quotas", "conns", Counter(conn.owner for conn in found if conn.owner))
        arrived = Counter(conn.owner for conn in found if conn.owner and conn.arrived)
        _credit(dataplane, "arrivals", "conns", arrived)
        for (number, address), count in Counter(conn.load for conn in found if conn.load).items():
            key = abi.load_key(number, _address(address))
            if row := dataplane.loads.get(key):
                dataplane.loads.set(key, row._replace(conns=max(row.conns - count, 0)), BPF_EXIST)
    else:  # openings count for who opens
        opened = Counter(conn.from_endpoint for conn in found if conn.from_endpoint)
        _credit(dataplane, "quotas", "openings", opened)


def _credit(dataplane: Dataplane, name: str, field: str, ended: Counter[int]) -> None:
    """Between the two calls the programs may count one more or less: the limit is not that exact."""
    rows = getattr(dataplane, name)
    for number, count in ended.items():
        key = abi.quota_key(number) if name == "quotas" else abi.arrival_key(number)
        row = rows.get(key)
        if row is not None:
            rows.set(key, row._replace(**{field: max(getattr(row, field) - count, 0)}), BPF_EXIST)


def recount(dataplane: Dataplane) -> None:
    """Counts anew how many confirmed connections each endpoint has, how many of these have arrived, and how many each
    backend has that is chosen by that."""
    counted, arrived, loads = Counter[int](), Counter[int](), Counter[tuple[int, bytes]]()
    for conn in originals(dataplane, "conns"):
        counted[conn.owner] += 1
        arrived[conn.owner] += conn.arrived
        if conn.load:
            loads[conn.load] += 1
    for backend, row in list(dataplane.loads.read_all()):
        there = loads[backend.endpoint, abi.pack_address(backend.addr)]
        dataplane.loads.set(backend, row._replace(conns=there))
    for name, numbers in (("quotas", counted), ("arrivals", arrived)):
        rows = getattr(dataplane, name)
        for key, row in list(rows.read_all()):
            rows.set(key, row._replace(conns=numbers[key.endpoint]))


def forget_refused(
    dataplane: Dataplane, endpoint: int, ports: frozenset[tuple[int, int]], admits: Callable[[Address], bool]
) -> int:
    """Deletes the connections to an endpoint by way of these published ports (protocol number, host port) whose
    client's address is not admitted any more. Returns how many."""

    def fits(conn: Original) -> bool:
        if conn.to_endpoint != endpoint:
            return False
        src, dst, _, dport, proto = _TUPLE.unpack(conn.key)
        if (proto, int.from_bytes(dport, "big")) not in ports or dst == conn.other[0:16]:
            return False  # not by way of the published port
        address = _address(src)
        return address is not None and not admits(address)

    return forget(dataplane, fits)


def forget_destinations(dataplane: Dataplane, addresses: frozenset[Address]) -> int:
    """Deletes the connections that were opened to one of these addresses as the host's own: to a published port there,
    or to the host itself. Returns how many."""
    packed = frozenset(map(abi.pack_address, addresses))
    return forget(dataplane, lambda conn: conn.to_endpoint != _OUTSIDE and conn.key[16:32] in packed)
