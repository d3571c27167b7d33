# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the devices once, the programs once a module, a clean connection table for every test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

pytest.register_assert_rewrite("tests.bpf.stage")

from datapath.kernel import netns  # noqa: E402
from tests.bpf.stage import Stage, World  # noqa: E402

MakeStage = Callable[..., Stage]
COMMON = ("from_container", "from_uplink", "conn_gc")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def loaded(world: World) -> Iterator[Stage]:
    made = Stage(world)
    yield made
    made.close()


@pytest.fixture
def stage(world: World, loaded: Stage) -> Iterator[Stage]:
    """The module's programs, without connections; the test runs in the host's namespace."""
    loaded.forget()
    with netns.enter(world.host):
        yield loaded


@pytest.fixture
def make_stage(world: World) -> Iterator[MakeStage]:
    """Programs of the test's own, with other map sizes or settings: those that containers and the outside meet."""
    made: list[Stage] = []

    def make(**how: object) -> Stage:
        made.append(Stage(world, **{"objects": COMMON, **how}))  # type: ignore[arg-type]
        return made[-1]

    with netns.enter(world.host):
        yield make
    for one in made:
        one.close()
