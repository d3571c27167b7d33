# SPDX-License-Identifier: Apache-2.0
"""What policies mean, their rows, and the programs, in random worlds: a little of `make fuzz-policies`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datapath.kernel import netns
from tests.bpf.fixtures import Programs, Topology
from tests.bpf.policy_worlds import PACKETS, World, programs_of

WORLDS, AT_ONCE = 60, 20


@pytest.fixture(scope="module")
def loaded(topology: Topology) -> Iterator[Programs]:
    with netns.enter(topology.host):
        made = programs_of(topology)
    yield made
    made.close()


@pytest.mark.parametrize("first", range(1, WORLDS + 1, AT_ONCE))
def test_the_programs_do_what_policies_mean_and_what_others_mean_that_take_their_place(
    programs: Programs, first: int
) -> None:
    compared = sum(World(programs, seed, PACKETS).compare() for seed in range(first, first + AT_ONCE))
    assert compared > AT_ONCE * PACKETS // 5, "most packets meet no program"
