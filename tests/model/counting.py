# SPDX-License-Identifier: Apache-2.0
"""What the programs have counted, beside what the reference has."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from datapath.kernel._libbpf import ffi

from datapath.kernel import abi
from tests.model.addresses import MAPPED
from tests.model.counts import Had
from tests.model.fixtures import NAMES, Programs
from tests.model.packet import Key
from tests.model.reference import Reference
from tests.model.topology import Topology
from tests.model.watching import Passed, Refused, Watch

_COUNTERS = struct.Struct("=QQ")


def raw_key(key: Key) -> bytes:
    """As struct tuple holds it."""
    proto, src, sport, dst, dport = key
    if len(src) == 4:
        src, dst = MAPPED + src, MAPPED + dst
    return src + dst + (sport << 16 | dport).to_bytes(4, "big") + bytes((proto, 0, 0, 0))


def connections(programs: Programs, reference: Reference) -> str:
    """Packets and bytes of each direction of all connections; of one whose end is not sure nothing is said."""
    known = reference.connections.table.values()
    wanted = {
        raw_key(key): connection.counts.sums[at]
        for connection, original in known
        if original and not connection.resumed
        for at, key in enumerate((connection.original, connection.answer))
    }
    size, row, at = abi.layout("tuple").size, abi.layout("conn").size, ffi.offsetof("struct conn", "packets")
    for name in ("pending", "conns"):
        for keys, values, count in programs.maps[name].batches():
            for i in range(count):
                key = keys[i * size : (i + 1) * size]
                counted = _COUNTERS.unpack_from(values, i * row + at)
                if wanted.get(key, counted) != counted:
                    return f"counted in {name}: {counted} instead of {wanted[key]}, {key.hex()}"
    return ""


def services(programs: Programs, topology: Topology) -> str:
    """What services and their backends have had."""
    counted = {
        key.number: Had(*(sum(getattr(copy, one.name) for copy in copies) for one in fields(Had)))
        for key, copies in programs.maps["service_counts"].read_all()
    }
    for service in topology.services:
        had = counted.get(service.number, Had())
        if had != service.ledger.service:
            return f"counted of service {service.number}: {had} instead of {service.ledger.service}"
        for backend in service.backends:
            had = counted.get(programs.backend_number(service, backend), Had())
            wanted = service.ledger.of(backend)
            if service.algorithm != "maglev":  # which one was refused nobody can see
                had.failed = wanted.failed = 0
            if had != wanted:
                return f"counted of backend {backend.name}: {had} instead of {wanted}"
    return ""


def watched(programs: Programs, watch: Watch) -> str:
    """Who has talked to whom, and what was refused: rows and totals together."""
    passed, refused = Passed(), Refused()
    for key, flow in programs.maps["flows"].read_all():
        for half in (flow.a, flow.b):
            sent = half.packets, half.bytes
            _add(passed, (key.network, half.from_, half.to, key.proto), sent)
    for key, edge in programs.maps["edges"].read_all():
        sent, received = edge[1:3], edge[3:5]
        if key.reason:
            _add(refused, (key.network, key.from_, NAMES[key.reason]), sent)
        else:
            _add(passed, (key.network, key.from_, key.to, key.proto), sent)
            _add(passed, (key.network, key.to, key.from_, key.proto), received)
    return _differs(passed, watch.passed) or _differs(refused, watch.refused)


def _differs(counted: Counter[Any], wanted: Counter[Any]) -> str:
    for one in counted.keys() | wanted.keys():
        # How long a header is that lies about it says nothing.
        if counted[one] != wanted[one] and one[2:] != ("DROP_TRUNCATED", "bytes"):
            return f"counted of who talks to whom: {one}: {counted[one]} instead of {wanted[one]}"
    return ""


def _add(sums: Counter[Any], key: tuple[Any, ...], counted: Sequence[int]) -> None:
    for what, number in zip(("packets", "bytes"), counted, strict=True):
        sums[*key, what] += number
