# SPDX-License-Identifier: Apache-2.0
"""A small benchmark of real work that needs no privilege: hashing, with more or less to hash in each mode."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from datapath.bench.model import (
    ACROSS,
    BALANCERS,
    DSR,
    RESOLVERS,
    Better,
    Cost,
    Experiment,
    Histogram,
    Point,
    Sample,
    Series,
)

KIB = {
    "ebpf": 16,
    "iptables": 64,
    "nftables": 16,
    "docker-datapath": 24,
    "docker": 32,
    "none": 8,
    **dict.fromkeys((*RESOLVERS, *ACROSS, *BALANCERS, DSR), 32),
}


def hashing(mode: str) -> Sample:
    """Microseconds for one hash, the best of a few."""
    block, took = bytes(KIB[mode] << 10), []
    for _ in range(3):
        began = time.perf_counter()
        hashlib.sha256(block).digest()
        took.append(time.perf_counter() - began)
    return Sample(1e6 * min(took), {"kib": KIB[mode]})


@dataclass
class ToyExperiment:
    """Writes into `log` what is done to it."""

    point: Point
    modes: tuple[str, ...]
    work: Callable[[str], Sample] = hashing
    log: list[str] = field(default_factory=list)
    leaving: BaseException | None = None
    unit: str = "µs"
    better: Better = "lower"
    title: str = ""
    warm: bool = False
    lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.title = f"The toy {self.point.workload}"

    def __enter__(self) -> Experiment:
        self.log.append("enter")
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.append("leave")
        if self.leaving:
            raise self.leaving

    def sample(self, mode: str) -> Sample:
        self.log.append(mode)
        return self.work(mode)


@dataclass
class ToySuite:
    made: Sequence[Experiment]
    name: str = "toy"
    entering: BaseException | None = None
    log: list[str] = field(default_factory=list)

    def __enter__(self) -> ToySuite:
        if self.entering:
            raise self.entering
        self.log.append("up")
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.append("down")

    def experiments(self) -> list[Experiment]:
        return list(self.made)


class ObservingSuite(ToySuite):
    def observe(self) -> tuple[tuple[Histogram, ...], tuple[Cost, ...]]:
        self.log.append("observe")
        histogram = Histogram("The toy's latency", "ebpf", (0, 0, 5, 90, 4, 1))
        return (histogram,), (Cost("ebpf", "the hash", "per block", "ns", 12.5),)


def series(
    samples: Mapping[str, Sequence[float]],
    *,
    workload: str = "hash",
    path: str = "",
    better: Better = "lower",
    unit: str = "µs",
    parameters: Mapping[str, int] | None = None,
    stopped: str = "tight",
) -> Series:
    return Series(
        Point(workload, path, parameters or {}),
        f"The toy {workload}",
        unit,
        better,
        {mode: tuple(Sample(float(value)) for value in values) for mode, values in samples.items()},
        stopped,
    )
