# SPDX-License-Identifier: Apache-2.0
"""The tables of connections, read and pruned as wholes.

There may be a million entries: whole batches are read, of each entry only the fields that decide are unpacked,
and only what is shown becomes objects. Nothing here stops the packet programs: what they change meanwhile may
be seen before or after.
"""

from __future__ import annotations

import errno
import functools
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi, sockets
from datapath.kernel.libbpf import BPF_EXIST, BPF_NOEXIST
from datapath.model.connections import PROTOCOLS, STATES, Connection, ConnectionFilter
from datapath.model.parsing import Address, Prefix

_HOST = int(abi.OtherParty.PARTY_HOST)
_ORIGINAL = int(abi.ConnFlag.CONN_ORIGINAL)
_ESTABLISHED, _CLOSED = int(abi.ConnState.CONN_ESTABLISHED), int(abi.ConnState.CONN_CLOSED)
_CONN = abi.layout("conn").select(
    "other", "last_seen", "from_endpoint", "to_network", "to_endpoint", "flags", "state"
)
_TUPLE = abi.layout("tuple").select("src", "dst", "sport", "dport", "proto")
_KEY_SIZE = abi.layout("tuple").size
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_PROTO = abi.layout("tuple").offset("proto")
_MAPPED = bytes(10) + b"\xff\xff"

TABLES = ("pending", "conns")
_NEVER = 1  # NEVER of quotas.h


def _container(party: int) -> int:
    """The endpoint's number, 0 for whoever is none."""
    return 0 if party == _HOST else party


class Original(NamedTuple):
    """The original direction of a connection as it lies in a table; both keys packed."""

    key: bytes
    other: bytes
    last_seen: int
    from_endpoint: int
    to_network: int
    to_endpoint: int
    flags: int
    state: int

    @property
    def owner(self) -> int:
        """The endpoint that the connection counts for (as conn_owner() of conntrack.h)."""
        return _container(self.from_endpoint) or _container(self.to_endpoint)


def originals(dataplane: Dataplane, table: str) -> Iterator[Original]:
    """Every connection of a table, by its original direction."""
    for keys, values, _ in getattr(dataplane, table).batches():
        at = 0
        for fields in _CONN.iter_unpack(values):
            if fields[5] & _ORIGINAL:
                yield Original(keys[at : at + _KEY_SIZE], *fields)
            at += _KEY_SIZE


def matcher(wanted: ConnectionFilter) -> Callable[[Original], bool]:
    """The filter for connections that are still packed."""
    tests: list[Callable[[Original], bool]] = []
    if wanted.endpoints is not None:
        numbers = wanted.endpoints - {0}
        tests.append(lambda original: original.from_endpoint in numbers or original.to_endpoint in numbers)
    if wanted.state is not None:
        state = wanted.state
        tests.append(lambda original: original.state == state)
    if wanted.proto is not None:
        proto = wanted.proto
        tests.append(lambda original: original.key[_PROTO] == proto)
    # What arrives at the server is the reverse of what it answers.
    if wanted.source is not None:
        inside = _within(wanted.source)
        tests.append(lambda original: inside(original.key[0:16]) or inside(original.other[16:32]))
    if wanted.destination is not None:
        inside_too = _within(wanted.destination)
        tests.append(lambda original: inside_too(original.key[16:32]) or inside_too(original.other[0:16]))
    if len(tests) <= 1:
        return tests[0] if tests else lambda original: True
    return lambda original: all(test(original) for test in tests)


def _within(prefix: Prefix) -> Callable[[bytes], bool]:
    first, last = _packed(prefix.network_address), _packed(prefix.broadcast_address)
    mapped = prefix.version == 4
    return lambda raw: first <= raw <= last and (raw[:12] == _MAPPED) == mapped


def _packed(address: Address) -> bytes:
    return _MAPPED + address.packed if address.version == 4 else address.packed


@functools.lru_cache(65536)
def _text(raw: bytes) -> str:
    return socket.inet_ntoa(raw[12:]) if raw[:12] == _MAPPED else socket.inet_ntop(socket.AF_INET6, raw)


@functools.lru_cache(65536)
def _address(raw: bytes) -> Address:
    return IPv4Address(raw[12:]) if raw[:12] == _MAPPED else IPv6Address(raw)


@functools.cache
def _port(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def find(dataplane: Dataplane, wanted: ConnectionFilter) -> Iterator[Connection]:
    """The connections that are meant, unanswered ones first."""
    timeouts = dataplane.config[0]
    fits = matcher(wanted)
    now = time.monotonic_ns()
    for table in TABLES:
        found = [original for original in originals(dataplane, table) if fits(original)]
        replies = _last_seen(dataplane, table, {original.other for original in found})
        confirmed = table == "conns"
        lifetimes: dict[tuple[int, int], float] = {}
        for original in found:
            idle = max(now - max(original.last_seen, replies.get(original.other, 0)), 0) / 1e9
            kind = original.key[_PROTO], original.state
            lifetime = lifetimes.get(kind)
            if lifetime is None:
                lifetime = lifetimes[kind] = _lifetime(*kind, timeouts, confirmed)
            yield _connection(original, idle, lifetime, confirmed)


def _last_seen(dataplane: Dataplane, table: str, keys: set[bytes]) -> dict[bytes, int]:
    found = {}
    for packed, values, _ in getattr(dataplane, table).batches() if keys else ():
        at = 0
        for fields in _CONN.iter_unpack(values):
            key = packed[at : at + _KEY_SIZE]
            if not fields[5] & _ORIGINAL and key in keys:
                found[key] = fields[1]
            at += _KEY_SIZE
    return found


def _connection(original: Original, idle: float, lifetime: float, confirmed: bool) -> Connection:
    src, dst, sport, dport, proto = _TUPLE.unpack(original.key)
    back_src, back_dst, back_sport, back_dport, _ = _TUPLE.unpack(original.other)
    opener, server = _container(original.from_endpoint), _container(original.to_endpoint)
    return Connection(
        _NAMES.get(proto) or str(proto),
        (_text(src), _port(sport)),
        (_text(dst), _port(dport)),
        (_text(back_dst), _port(back_dport)),
        (_text(back_src), _port(back_sport)),
        STATES[original.state],
        idle,
        lifetime - idle if lifetime > idle else 0.0,
        confirmed,
        ((opener, server) if opener else (server,)) if server else (opener,) if opener else (),
        opener or server,
    )


def _lifetime(proto: int, state: int, timeouts: abi.config, confirmed: bool) -> float:
    """Seconds, as conn_timeout() of conntrack.h; an opening has no timer, but may be replaced after these."""
    if not confirmed:
        return float(timeouts.timeout_handshake)
    if state == _CLOSED:
        return float(timeouts.timeout_closing)
    if proto == PROTOCOLS["tcp"]:
        return float(timeouts.timeout_established if state >= _ESTABLISHED else timeouts.timeout_handshake)
    return float(timeouts.timeout_udp if proto == PROTOCOLS["udp"] else timeouts.timeout_icmp)


def states(dataplane: Dataplane) -> dict[tuple[str, str], int]:
    """(table, state) -> connections."""
    counted: Counter[tuple[str, str]] = Counter()
    for table in TABLES:
        for state, number in Counter(original.state for original in originals(dataplane, table)).items():
            counted[table, STATES[state]] = number
    return dict(counted)


# ---- forgetting ------------------------------------------------------------------------------------


def forget(dataplane: Dataplane, fits: Callable[[Original], bool]) -> int:
    """Deletes both directions of every connection that fits, and gives its container its quota back. How many."""
    total = 0
    for table in TABLES:
        found = [original for original in originals(dataplane, table) if fits(original)]
        total += len(found)
        _end(dataplane, table, found)
    return total


def _end(dataplane: Dataplane, table: str, found: Sequence[Original]) -> None:
    if not found:
        return
    # The reply last: without it an original is unusable, and no packet takes it up again.
    getattr(dataplane, table).delete_raw([original.key for original in found])
    getattr(dataplane, table).delete_raw([original.other for original in found])
    if table == "conns":
        _credit(dataplane, "conns", Counter(original.owner for original in found if original.owner))
    else:  # openings count for who opens
        _credit(dataplane, "openings", Counter(h.from_endpoint for h in found if h.from_endpoint))


def _credit(dataplane: Dataplane, field: str, ended: Counter[int]) -> None:
    """Between the two calls the programs may count one more or less: the limit is not that exact."""
    for number, count in ended.items():
        key = abi.quota_key(number)
        quota = dataplane.quotas.get(key)
        if quota is not None:
            left = {field: max(getattr(quota, field) - count, 0)}
            dataplane.quotas.set(key, quota._replace(**left), BPF_EXIST)


def open_quota(dataplane: Dataplane, number: int, *, new: bool = False) -> None:
    """From now on the endpoint's connections are counted: the programs count only where there is a row. `new`: it
    cannot have any yet."""
    # Programs of another version may not say when it has the first one.
    never = new and not dataplane.outdated
    try:
        dataplane.quotas.set(abi.quota_key(number), abi.quota(since=_NEVER if never else 0), BPF_NOEXIST)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise


def forget_endpoint(dataplane: Dataplane, number: int) -> None:
    """Deletes every connection that an endpoint takes part in, and its quota."""
    quota = dataplane.quotas.get(abi.quota_key(number))
    never = quota is not None and quota.since == _NEVER
    for table in () if never else TABLES:
        found = []
        # A reply whose original was evicted belongs to no connection, but may still hold the address.
        directions = []
        for keys, values, _ in getattr(dataplane, table).batches():
            at = 0
            for fields in _CONN.iter_unpack(values):
                if number in (fields[2], fields[4]):
                    key = keys[at : at + _KEY_SIZE]
                    directions.append(key)
                    if fields[5] & _ORIGINAL:
                        found.append(Original(key, *fields))
                at += _KEY_SIZE
        _end(dataplane, table, found)
        getattr(dataplane, table).delete_raw(directions)
    dataplane.quotas.discard([abi.quota_key(number)])


def forget_refused(
    dataplane: Dataplane, endpoint: int, ports: frozenset[tuple[int, int]], admits: Callable[[Address], bool]
) -> int:
    """Ends the connections to published (protocol, host port) of an endpoint whose client may no longer."""

    def fits(original: Original) -> bool:
        if original.to_endpoint != endpoint:
            return False
        src, dst, _, dport, proto = _TUPLE.unpack(original.key)
        if (proto, int.from_bytes(dport, "big")) not in ports or dst == original.other[0:16]:
            return False  # not by way of the published port
        return not admits(_address(src))

    return forget(dataplane, fits)


def forget_sockets(dataplane: Dataplane, addresses: Iterable[Address]) -> None:
    """Ends the host's sockets that were pointed at a container at one of these addresses, which is gone: the next
    holder of the address would get what they send."""
    layout = abi.layout("socket_key")
    cookie, address = layout.offset("cookie"), layout.offset("addr")
    wanted = {_packed(one) for one in addresses}
    found = [
        key
        for keys, _, count in dataplane.sockets.batches()
        for key in (keys[i * layout.size : (i + 1) * layout.size] for i in range(count))
        if key[address : address + 16] in wanted
    ]
    if found:
        sockets.destroy(frozenset(int.from_bytes(key[cookie : cookie + 8], "little") for key in found))
        dataplane.sockets.delete_raw(found)
