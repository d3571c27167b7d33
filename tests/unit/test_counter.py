# SPDX-License-Identifier: Apache-2.0
"""The processor's counters, as far as any machine has them."""

from __future__ import annotations

import time

import pytest

from datapath.kernel.counter import INSTRUCTIONS, TASK_CLOCK, Counter


def work(milliseconds: int) -> None:
    end = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < end:
        pass


def test_a_counter_counts_what_this_thread_does_in_the_block() -> None:
    work(20)  # which is not in the block
    before = time.monotonic_ns()
    with Counter(TASK_CLOCK) as clock:
        work(20)
    elapsed = (
        time.monotonic_ns() - before
    )  # what the machine's own host takes from the thread counts for the clock
    if clock.value is None:
        pytest.skip("this machine has no counters, or does not let us")
    assert 10e6 <= clock.value <= elapsed, "on a busy machine the two clocks are not that close"


def test_twice_the_work_is_twice_the_instructions_or_there_is_no_counter() -> None:
    found = []
    for size in (100_000, 200_000):
        with Counter(INSTRUCTIONS) as counter:
            sum(range(size))
        if counter.value is None:
            pytest.skip("this machine does not count instructions")
        found.append(counter.value)
    assert 1.5 < found[1] / found[0] < 2.5


def test_what_cannot_be_counted_is_no_number() -> None:
    with Counter((99, 99)) as counter:
        pass
    assert counter.value is None
