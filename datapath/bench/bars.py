# SPDX-License-Identifier: Apache-2.0
"""The targets of this datapath, and whether a run reaches them. No I/O, no clock.

A promise is a figure that is measured, and a bar for it. It is met, or missed, when the whole interval is on one side
of the bar; a tie when the bar is within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from datapath.bench import stats
from datapath.bench.model import (
    BY_OTHER_HOST,
    DIRECT,
    DNSMASQ,
    DOCKER,
    DOCKER_DATAPATH,
    DSR,
    EBPF,
    IPTABLES,
    MACVLAN,
    NONE,
    PATHS,
    ROUTED,
    TO_SERVICE,
    UNBOUND,
    Run,
    Series,
)

Verdict = Literal["met", "missed", "tie", "too few rounds", "not measured"]
Rows = Mapping[str, Series]  # by label


@dataclass(frozen=True, slots=True)
class Found:
    """A figure, its interval, and whether that is one of 95%."""

    value: float
    low: float
    high: float
    sure: bool


@dataclass(frozen=True, slots=True)
class Promise:
    """`label`: the row that it is about. `figure`: what is divided by what, or what is measured in which unit. `most`:
    the bar is an upper one; else it is a lower one."""

    label: str
    figure: str
    bar: float
    most: bool
    measured: Callable[[Run, Rows], Found | None]

    def verdict(self, found: Found | None) -> Verdict:
        if found is None:
            return "not measured"
        if not found.sure:
            return "too few rounds"
        best, worst = (found.low, found.high) if self.most else (found.high, found.low)
        if self._holds(worst):
            return "met"
        return "tie" if self._holds(best) else "missed"

    def _holds(self, value: float) -> bool:
        return value <= self.bar if self.most else value >= self.bar


def _to(base: str, label: str, mode: str) -> Callable[[Run, Rows], Found | None]:
    def measured(_: Run, rows: Rows) -> Found | None:
        found = stats.ratio(rows[label].samples, mode, base) if label in rows else None
        return Found(found.median, found.low, found.high, stats.sure(found)) if found else None

    return measured


def _itself(label: str, other: str) -> Callable[[Run, Rows], Found | None]:
    """Two rows are of different minutes, so each is taken relative to the loopback of its own rounds, if that was
    measured; the interval is as wide as both together."""

    def measured(_: Run, rows: Rows) -> Found | None:
        ends = []
        for row in (rows.get(label), rows.get(other)):
            if row is None or not row.samples.get(EBPF):
                return None
            found = stats.ratio(row.samples, EBPF, NONE)
            if found:
                ends.append((found.median, found.low, found.high, stats.sure(found)))
            else:
                ends.append(_interval([sample.value for sample in row.samples[EBPF]]))
        (a, a_low, a_high, a_sure), (b, b_low, b_high, b_sure) = ends
        return Found(a / b, a_low / b_high, a_high / b_low, a_sure and b_sure)

    return measured


def _detail(label: str, name: str) -> Callable[[Run, Rows], Found | None]:
    def measured(_: Run, rows: Rows) -> Found | None:
        row = rows.get(label)
        values = [float(sample.details[name]) for sample in row.samples.get(EBPF, ())] if row else []
        return Found(*_interval(values)) if values else None

    return measured


def _more(label: str) -> Callable[[Run, Rows], Found | None]:
    """How many ms more a container's start takes on the network that is measured than on a bridge network."""

    def measured(_: Run, rows: Rows) -> Found | None:
        samples = rows[label].samples.get(EBPF, ()) if label in rows else ()
        values = [float(s.details["start_ms"]) - float(s.details["start_on_bridge_ms"]) for s in samples]
        return Found(*_interval(values)) if values else None

    return measured


def _interval(values: Sequence[float]) -> tuple[float, float, float, bool]:
    low, high, confidence = stats.interval(values)
    return median(values), low, high, confidence >= stats.CONFIDENCE


def _median(label: str, times: float) -> Callable[[Run, Rows], Found | None]:
    """Our own figure, in a unit that is so many times smaller than the row's."""

    def measured(_: Run, rows: Rows) -> Found | None:
        values = (
            [times * sample.value for sample in rows[label].samples.get(EBPF, ())] if label in rows else []
        )
        return Found(*_interval(values)) if values else None

    return measured


def _cost(subject: str, what: str) -> Callable[[Run, Rows], Found | None]:
    def measured(run: Run, _: Rows) -> Found | None:
        values = [
            cost.value
            for cost in run.costs
            if (cost.mode, cost.subject, cost.what, cost.unit) == (EBPF, subject, what, "ns")
        ]
        return Found(values[-1], values[-1], values[-1], sure=True) if values else None

    return measured


def _ratio(label: str, base: str, bar: float, *, most: bool, mode: str = EBPF) -> Promise:
    return Promise(label, f"{mode}/{base}", bar, most, _to(base, label, mode))


ESTABLISHED = ("from_container", "a run, the same TCP segment to a member again and again")
ONE, MANY = (f"tcp_connect outside-published ports={count}" for count in (1, 10000))
SERVED, SERVED_AMONG_MANY = (f"tcp_connect {TO_SERVICE} services={count}" for count in (1, 1000))
CHANGING = f"tcp_insist {TO_SERVICE}"
NAME, MANY_NAMES = "dns_rr container-names", "dns_rr container-names names=10000"
TO_ONE = "to_one"  # a detail of MANY_NAMES: see `names`

PROMISES: tuple[Promise, ...] = (
    _ratio("tcp_rr container-container", NONE, 1.05, most=True),
    _ratio("tcp_rr container-container", IPTABLES, 0.80, most=True),
    _ratio("udp_pps container-container", IPTABLES, 1.4, most=False),
    _ratio(ONE, IPTABLES, 1.3, most=False),
    _ratio(MANY, IPTABLES, 15, most=False),
    Promise(MANY, f"{EBPF}/{EBPF} ports=1", 0.95, False, _itself(MANY, ONE)),
    _ratio("tcp_rr container-outside", IPTABLES, 0.85, most=True),
    _ratio("tcp_connect container-outside", IPTABLES, 1.3, most=False),
    *(_ratio(f"tcp_stream {path}", IPTABLES, 1.0, most=False) for path in PATHS),
    _ratio("publish_unpublish ports=200", DOCKER, 1 / 200, most=True),
    _ratio("attach_detach", DOCKER, 1 / 10, most=True),
    _ratio(ONE, EBPF, 0.97, most=False, mode=DOCKER_DATAPATH),
    _ratio("tcp_rr outside-published", EBPF, 1.03, most=True, mode=DOCKER_DATAPATH),
    _ratio("start ports=1", DOCKER, 1, most=True, mode=DOCKER_DATAPATH),
    _ratio("start ports=200", DOCKER, 1 / 8, most=True, mode=DOCKER_DATAPATH),
    Promise(
        "publish_unpublish ports=10000",
        f"{EBPF}, publish, ms",
        100,
        True,
        _detail("publish_unpublish ports=10000", "publish_ms"),
    ),
    *(_ratio(NAME, base, 1 / 4, most=True) for base in (DNSMASQ, UNBOUND)),
    _ratio(NAME, DOCKER, 1 / 8, most=True),
    Promise(MANY_NAMES, f"{EBPF}/{EBPF} names=1", 1.15, True, _detail(MANY_NAMES, TO_ONE)),
    _ratio("dns_rr host-resolver", NONE, 1.35, most=True),
    *(
        Promise(label, f"{EBPF}, ms", 5, True, _median(label, 1e-3))
        for label in (f"getaddrinfo_{library} failing-resolver" for library in ("glibc", "musl"))
    ),
    _ratio("tcp_rr across-hosts", NONE, 1.22, most=True),
    _ratio("tcp_rr across-hosts", DOCKER, 0.58, most=True),
    _ratio("tcp_rr across-hosts", NONE, 1.12, most=True, mode=DIRECT),
    _ratio("tcp_rr across-hosts", ROUTED, 0.86, most=True, mode=DIRECT),
    _ratio("tcp_rr across-hosts", NONE, 1.03, most=True, mode=MACVLAN),
    _ratio("tcp_rr host-host", NONE, 1.02, most=True),
    _ratio("tcp_stream across-hosts", NONE, 0.95, most=False),
    _ratio("udp_pps across-hosts", DOCKER, 2.3, most=False),
    Promise("start_across_hosts", f"{EBPF}, more than on a bridge, ms", 5, True, _more("start_across_hosts")),
    _ratio(SERVED, NONE, 0.95, most=False),
    _ratio(SERVED, IPTABLES, 1.3, most=False),
    _ratio(f"tcp_rr {TO_SERVICE} services=1", NONE, 1.03, most=True),
    _ratio(SERVED_AMONG_MANY, IPTABLES, 5, most=False),
    Promise(SERVED_AMONG_MANY, f"{EBPF}/{EBPF} services=1", 0.95, False, _itself(SERVED_AMONG_MANY, SERVED)),
    _ratio(f"tcp_rr {BY_OTHER_HOST}", NONE, 1.25, most=True),
    _ratio(f"tcp_rr {BY_OTHER_HOST}", NONE, 1.25, most=True, mode=DSR),
    Promise(CHANGING, f"{EBPF}, connections that failed", 0, True, _detail(CHANGING, "failed")),
    Promise(ESTABLISHED[0], f"{EBPF}, ns a packet", 120, True, _cost(*ESTABLISHED)),
)

PROMISED = frozenset(promise.label for promise in PROMISES)
"""Labels of rows that something is promised of."""


def judged(run: Run) -> Iterator[tuple[Promise, Found | None]]:
    """All promises, in order."""
    rows = {series.point.label: series for series in run.series if any(series.samples.values())}
    for promise in PROMISES:
        yield promise, promise.measured(run, rows)
