# SPDX-License-Identifier: Apache-2.0
"""The verifier's work grows unnoticed until some kernel refuses: here it is noticed."""

from __future__ import annotations

import functools
import os

import pytest

from datapath.dataplane.layout import OBJECT_FILES
from tests.vm import verified

PROGRAMS = [program for programs in OBJECT_FILES.values() for program in programs]
RELEASE = os.uname().release

measured = functools.cache(verified.measure)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_not_much_harder_to_verify_than_was_recorded(program: str) -> None:
    """S29. A fifth more than the figure of this series of kernels has to be recorded on purpose."""
    figure = verified.recorded(RELEASE).get(program)
    series = verified.series(RELEASE)
    assert 0 < measured()[program] <= verified.allowed(figure), (
        f"{program}: {measured()[program]} instructions, {figure} recorded for {series}; if it has to be so: "
        f"make lab KERNEL={series} RECORD=1 TESTS=tests/bpf/test_verified.py (running, if it is this machine's)"
    )


def test_what_was_recorded_is_of_programs_that_are_there() -> None:
    """S29. A program that is new, gone or renamed is recorded anew."""
    figures = verified.recorded(RELEASE)
    assert not figures or set(figures) == set(PROGRAMS)
