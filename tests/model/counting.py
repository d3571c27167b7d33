# SPDX-License-Identifier: Apache-2.0
"""What the programs have counted, beside what the reference has."""

from __future__ import annotations

import struct
from dataclasses import fields

from datapath.kernel._libbpf import ffi

from datapath.kernel import abi
from tests.model.addresses import MAPPED
from tests.model.counts import Had
from tests.model.fixtures import Programs
from tests.model.packet import Key
from tests.model.reference import Reference
from tests.model.topology import Topology

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
