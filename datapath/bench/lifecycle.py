# SPDX-License-Identifier: Apache-2.0
"""Experiments of the control plane: how long a change takes. In milliseconds, without any program's start: this
product's library is called, Docker's daemon is asked over its socket."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from datapath.bench.model import DOCKER, NONE, Better, Experiment, Point, Sample
from datapath.bench.scenes import Scene
from datapath.bench.traffic import Stage

_MOST_OF_DOCKER = 200  # ports: 17 s a sample


@dataclass(slots=True)
class Change:
    """A row. `act` makes the change once; the seconds of its steps, which are called `steps`. A sample is the mean
    of as many as fit into its time."""

    stage: Stage
    point: Point
    modes: tuple[str, ...]
    title: str
    act: Callable[[Scene], tuple[float, ...]]
    steps: tuple[str, ...]
    unit: str = "ms"
    better: Better = "lower"
    warm: bool = False
    lost: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Experiment:
        self.modes, self.lost = self.stage.each(self.modes, self._prepare, ExitStack())
        return self

    def _prepare(self, mode: str, _: ExitStack) -> None:
        scene = self.stage.scene(mode)
        scene.crowd(1, 2)
        scene.publish(1)

    def __exit__(self, *exc: object) -> None:
        pass

    def sample(self, mode: str) -> Sample:
        scene = self.stage.scene(mode)
        end = time.monotonic() + self.stage.options.seconds
        found = [self.act(scene)]
        while time.monotonic() < end:
            found.append(self.act(scene))
        means = [1000 * statistics.fmean(values) for values in zip(*found, strict=True)]
        parts = {f"{step}_ms": mean for step, mean in zip(self.steps, means, strict=True)}
        return Sample(sum(means), {**parts, "times": len(found)})


def attach(stage: Stage, modes: tuple[str, ...]) -> Change:
    return Change(
        stage,
        Point("attach_detach"),
        _without(modes, NONE),
        "Connect a running container to a network, and disconnect it",
        lambda scene: scene.attach_detach(),
        ("attach", "detach"),
    )


def publish(stage: Stage, modes: tuple[str, ...], count: int) -> Change:
    """Docker: see scenes_docker."""
    words = (
        "Publish a port, and take it back" if count == 1 else f"Publish {count:,} ports, and take them back"
    )
    if count > _MOST_OF_DOCKER:
        modes = _without(modes, DOCKER)
    elif DOCKER in modes:
        words += " (Docker: by starting and removing a container, less one without ports)"
    return Change(
        stage,
        Point("publish_unpublish", parameters={"ports": count}),
        _without(modes, NONE),
        words,
        lambda scene: scene.open_close(count),
        ("publish", "unpublish"),
    )


def restart(stage: Stage, modes: tuple[str, ...]) -> Change:
    return Change(
        stage,
        Point("restart"),
        _without(modes, NONE),
        "Everything down, and two networks, two containers, two ports again",
        lambda scene: (scene.restart(),),
        ("restart",),
    )


def _without(modes: tuple[str, ...], mode: str) -> tuple[str, ...]:
    return tuple(each for each in modes if each != mode)
