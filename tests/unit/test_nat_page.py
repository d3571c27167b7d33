# SPDX-License-Identifier: Apache-2.0
"""What docs/nat.md says of RFC 4787, RFC 5382 and RFC 5508, is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/nat.md").read_text()
DEFAULT = "tests/bpf/test_nat.py"
NAMED = sorted(set(re.findall(r"`((?:tests/[\w/]+\.py::)?test_\w+)`", PAGE)))
HIGHEST = {"RFC 4787": 14, "RFC 5382": 10, "RFC 5508": 11}


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_exists(name: str) -> None:
    path, _, function = name.rpartition("::")
    assert f"def {function}(" in (ROOT / (path or DEFAULT)).read_text()


@pytest.mark.parametrize("rfc", HIGHEST)
def test_each_requirement_is_spoken_of(rfc: str) -> None:
    part = PAGE.split(f"## {rfc}")[1].split("\n## ")[0]
    told = {int(n) for row in re.findall(r"^\| REQ-([\d, ]+)", part, re.M) for n in row.split(", ")}
    assert told == set(range(1, HIGHEST[rfc] + 1))


def test_there_are_as_many_as_one_would_think() -> None:
    assert len(NAMED) > 25
