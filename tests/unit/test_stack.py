# SPDX-License-Identifier: Apache-2.0
"""The packet programs fit the verifier's stack on every kernel."""

from __future__ import annotations

import pytest

from datapath.dataplane.layout import OBJECT_FILES
from datapath.kernel import abi
from tests.unit.stack import FRAMES, LIMIT, Program

MARGIN = 32  # bytes: another compiler may spill more


@pytest.mark.parametrize("name", OBJECT_FILES)
def test_a_program_and_all_that_it_calls_fit_the_stack(name: str) -> None:
    program = Program(abi.OBJECTS / f"{name}.bpf.o")
    assert set(OBJECT_FILES[name]) <= set(program.entries())
    for entry in program.entries():
        chain = program.worst(entry)
        assert chain.stack <= LIMIT - MARGIN, chain
        assert program.frames(entry) <= FRAMES, entry


def test_what_a_callback_takes_is_counted() -> None:
    """A chain that goes through bpf_loop is known, so that one which is too long would be seen."""
    chain = Program(abi.OBJECTS / "from_uplink.bpf.o").worst("from_uplink")
    assert len(chain.functions) >= 4 and chain.stack >= 256
