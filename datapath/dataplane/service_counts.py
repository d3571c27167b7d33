# SPDX-License-Identifier: Apache-2.0
"""What the packet programs have counted of services and their backends (map `service_counts`).

What passed is in the rows of backends, at once and on each CPU, so that one look is exact, whatever becomes of
connections. That of backends that are gone is in one more row of their service, which only commands write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi

_MAP = "service_counts"
_PAST = int(abi.ServiceCountFlag.COUNT_PAST)


class Counts(NamedTuple):
    """Connections that were opened and that could not be; packets and bytes, from the IP header on, to a backend and
    from it."""

    opened: int = 0
    failed: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0


def read(dataplane: Dataplane) -> dict[int, Counts]:
    """By the number of a service or a backend, what every CPU has counted."""
    if not dataplane.has(_MAP):
        return {}
    return {key.number: _sum(copies) for key, copies in dataplane.service_counts.read_all()}


def of_service(counts: dict[int, Counts], service: int, backends: Iterable[int]) -> Counts:
    """Of a service: its own connections, and what passed to and from its backends, those that are gone included."""
    passed = [counts.get(number, Counts()) for number in (*backends, service | _PAST)]
    return _sum([counts.get(service, Counts()), *(one._replace(opened=0, failed=0) for one in passed)])


def retire(dataplane: Dataplane, gone: Iterable[tuple[int, int]]) -> None:
    """These backends, each with its service, are none any more: what passed stays with the service. A command that is
    killed in this moment may lose it; it is not counted twice."""
    if not dataplane.has(_MAP):
        return
    rows = dataplane.service_counts
    for number, service in gone:
        copies = rows.pop(abi.service_count_key(number), None)
        if copies is None:
            continue
        past = abi.service_count_key(service | _PAST)
        total = _sum([_sum(copies), _sum(rows.get(past, ()))])._replace(opened=0, failed=0)
        layout = abi.layout("service_count")
        row = layout.pack(abi.service_count(**total._asdict())) + bytes(layout.size * (rows.copies - 1))
        rows.set_raw(abi.layout("service_count_key").pack(past), row)


def forget(dataplane: Dataplane, services: Iterable[int]) -> None:
    """These services are none any more."""
    if dataplane.has(_MAP):
        keys = [number | more for number in services for more in (0, _PAST)]
        dataplane.service_counts.delete_many(abi.service_count_key(key) for key in keys)


def _sum(copies: Iterable[tuple[int, ...]]) -> Counts:
    return Counts(*map(sum, zip(*copies, strict=True))) if copies else Counts()
