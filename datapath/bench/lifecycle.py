# SPDX-License-Identifier: Apache-2.0
"""Experiments of the control plane: how long a change takes. In milliseconds, without any program's start: this
product's library is called, Docker's daemon is asked over its socket."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from datapath.bench.model import DOCKERS, NONE, Better, Experiment, Point, Sample
from datapath.bench.topologies import Topology
from datapath.bench.traffic import Topologies

_MOST_OF_DOCKER = 200  # ports: 17 s a sample


@dataclass(slots=True)
class Change:
    """A row. `act` makes the change once; the seconds of its steps, which are called `steps`; what is measured are the
    first `counted` of them. A sample is the mean of as many as fit into its time."""

    topologies: Topologies
    point: Point
    modes: tuple[str, ...]
    title: str
    act: Callable[[Topology], tuple[float, ...]]
    steps: tuple[str, ...]
    counted: int = 2
    unit: str = "ms"
    better: Better = "lower"
    warm: bool = False
    lost: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Experiment:
        self.modes, self.lost = self.topologies.each(self.modes, self._prepare, ExitStack())
        return self

    def _prepare(self, mode: str, _: ExitStack) -> None:
        topology = self.topologies.of(mode)
        topology.populate(1, 2)
        topology.publish(1)

    def __exit__(self, *exc: object) -> None:
        pass

    def sample(self, mode: str) -> Sample:
        topology = self.topologies.of(mode)
        end = time.monotonic() + self.topologies.options.seconds
        found = [self.act(topology)]
        while time.monotonic() < end:
            found.append(self.act(topology))
        means = [1000 * statistics.fmean(values) for values in zip(*found, strict=True)]
        parts = {f"{step}_ms": mean for step, mean in zip(self.steps, means, strict=True)}
        return Sample(sum(means[: self.counted]), {**parts, "times": len(found)})


def attach(topologies: Topologies, modes: tuple[str, ...]) -> Change:
    return Change(
        topologies,
        Point("attach_detach"),
        _without(modes, NONE),
        "Connect a running container to a network, and disconnect it",
        lambda topology: topology.attach_detach(),
        ("attach", "detach"),
    )


def publish(topologies: Topologies, modes: tuple[str, ...], count: int) -> Change:
    """Docker: see topology_docker."""
    words = (
        "Publish a port, and take it back" if count == 1 else f"Publish {count:,} ports, and take them back"
    )
    if count > _MOST_OF_DOCKER:
        modes = _without(modes, *DOCKERS)
    elif set(DOCKERS) & set(modes):
        words += " (Docker: by starting and removing a container, less one without ports)"
    return Change(
        topologies,
        Point("publish_unpublish", parameters={"ports": count}),
        _without(modes, NONE),
        words,
        lambda topology: topology.open_close(count),
        ("publish", "unpublish"),
    )


def start(topologies: Topologies, modes: tuple[str, ...], count: int, asleep: bool = False) -> Change:
    """`asleep`: of Docker's modes alone, whose driver is not there until it is asked."""
    words = "a published port" if count == 1 else f"{count} published ports"
    which = "start_asleep" if asleep else "start"
    return Change(
        topologies,
        Point(which, parameters={"ports": count}),
        tuple(mode for mode in modes if mode in DOCKERS) if asleep else _without(modes, NONE),
        f"Start a container with {words}{', the driver not running' if asleep else ''}",
        lambda topology: topology.start_remove(count, asleep),
        ("start", "remove"),
        counted=1,
    )


def start_across(topologies: Topologies, modes: tuple[str, ...]) -> Change:
    """By the command line, as a container on a bridge network beside it."""
    return Change(
        topologies,
        Point("start_across_hosts"),
        modes,
        "Start a container on an overlay network, and for the detail MORE one on a bridge network",
        lambda topology: topology.start_remove(0),
        ("start", "remove", "start_on_bridge", "remove_from_bridge"),
        counted=1,
    )


def start_many(topologies: Topologies, modes: tuple[str, ...], count: int) -> Change:
    return Change(
        topologies,
        Point("start_at_once", parameters={"containers": count}),
        tuple(mode for mode in modes if mode in DOCKERS),
        f"Start {count} containers at once, until the last one runs",
        lambda topology: topology.start_remove_many(count),
        ("start", "remove"),
        counted=1,
    )


def restart(topologies: Topologies, modes: tuple[str, ...]) -> Change:
    return Change(
        topologies,
        Point("restart"),
        _without(modes, NONE),
        "Everything down, and two networks, two containers, two ports again",
        lambda topology: (topology.restart(),),
        ("restart",),
    )


def _without(modes: tuple[str, ...], *gone: str) -> tuple[str, ...]:
    return tuple(mode for mode in modes if mode not in gone)
