# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from datapath.plan.ports import parse_reserved, reserved_text


@pytest.mark.parametrize(
    ("text", "ports", "again"),
    [
        ("", set(), ""),
        ("\n", set(), ""),
        ("8080\n", {8080}, "8080"),
        ("8080,9000-9002\n", {8080, 9000, 9001, 9002}, "8080,9000-9002"),
        ("1-2,3,5", {1, 2, 3, 5}, "1-3,5"),
    ],
)
def test_the_kernels_list_of_reserved_ports_is_read_and_written_in_its_own_form(
    text: str, ports: set[int], again: str
) -> None:
    assert parse_reserved(text) == ports
    assert reserved_text(ports) == again
