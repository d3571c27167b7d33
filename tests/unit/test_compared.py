# SPDX-License-Identifier: Apache-2.0
"""The record of cases of hosts, kernel by kernel, and the tables of docs/compatibility.md that are written from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net import compared
from tests.net.compare import NOT_RUN, RIGHT, VARIABLE, WRONG
from tests.net.compared import Record, cases_table, taken_in, uplinks_table, written

ROOT = Path(__file__).parents[2]
A, B = "1 Through an uplink.", "10 Something else."

CASES = """
import pytest
from tests.net.compare import host_case

@pytest.mark.parametrize("kind", ["tun", "gre", "vlan"])
@host_case(1, "Through an uplink.")
def test_uplinks(mode: str, kind: str) -> None:
    if kind == "gre":
        pytest.skip("this kernel has no gre devices")
    assert (kind, mode) != ("vlan", "ebpf")

@pytest.mark.parametrize("kind", ["one", "other"])
@host_case(10, "Something else.", iptables="it does not know")
def test_something_else(mode: str, kind: str) -> None:
    assert mode == "ebpf"

def test_no_case() -> None: ...
"""


def left_by(tmp_path: Path, code: str) -> Path:
    """What a run of these tests has left, or would have."""
    (tmp_path / "test_cases.py").write_text(code)
    left = tmp_path / "left.json"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "2"),
            *("--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "inner"), str(tmp_path)),
        ],
        env=environ | {"PYTHONPATH": str(ROOT), VARIABLE: str(left)},
        capture_output=True,
        check=False,
    )
    return left


def test_a_run_that_was_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """Else the cases that it did not come to would be taken away."""
    assert not left_by(tmp_path, f"{CASES}\ndef test_late() -> None:\n    raise KeyboardInterrupt\n").exists()


def test_a_run_leaves_what_came_out_of_its_cases(tmp_path: Path) -> None:
    assert json.loads(left_by(tmp_path, CASES).read_text()) == {
        "release": os.uname().release,
        "cases": {
            A: {
                "tun": {"ebpf": RIGHT, "iptables": RIGHT},
                "gre": {"ebpf": NOT_RUN, "iptables": NOT_RUN},
                "vlan": {"ebpf": WRONG, "iptables": RIGHT},
            },
            B: {"": {"ebpf": RIGHT, "iptables": "it does not know"}},
        },
    }


def test_a_part_of_the_cases_changes_what_is_recorded_of_them_alone() -> None:
    before: Record = {
        "6.12": {
            A: {"gre": {"ebpf": WRONG, "iptables": RIGHT}, "tun": {"ebpf": RIGHT}},
            B: {"": {"ebpf": RIGHT}},
        },
        "6.18": {B: {"": {"ebpf": RIGHT}}},
    }
    found = {A: {"gre": {"ebpf": RIGHT}, "tun": {"ebpf": NOT_RUN}}}
    after = taken_in(before, "6.12.117+deb13-amd64", found, whole=False)
    assert after == {
        "6.12": {
            A: {"gre": {"ebpf": RIGHT, "iptables": RIGHT}, "tun": {"ebpf": RIGHT}},
            B: {"": {"ebpf": RIGHT}},
        },
        "6.18": {B: {"": {"ebpf": RIGHT}}},
    }


def test_a_whole_run_takes_away_what_is_no_case_any_more() -> None:
    before: Record = {
        "6.12": {A: {"gre": {"ebpf": RIGHT}}, "2 Gone.": {"": {"ebpf": RIGHT}}},
        "6.18": {B: {"": {"ebpf": WRONG}}, "2 Gone.": {"": {"ebpf": RIGHT}}},
    }
    found = {A: {"gre": {"ebpf": NOT_RUN}}, B: {"": {"ebpf": RIGHT}}}
    after = taken_in(before, "6.18.44", found, whole=True)
    assert after == {"6.12": {A: {"gre": {"ebpf": RIGHT}}}, "6.18": {B: {"": {"ebpf": RIGHT}}}}


def test_kernels_and_cases_are_kept_in_their_order() -> None:
    found = {case: {"": {"ebpf": RIGHT}} for case in (B, "2 Two.", A)}
    record: Record = {}
    for release in ("6.12.117", "7.3.4", "6.1.0-50"):
        record = taken_in(record, release, found, whole=False)
    assert list(record) == ["6.1", "6.12", "7.3"]
    assert list(record["6.1"]) == [A, "2 Two.", B]


def test_a_case_that_is_wrong_on_one_kernel_is_wrong() -> None:
    record: Record = {
        "6.1": {A: {"gre": {"ebpf": WRONG}, "tun": {"ebpf": RIGHT, "iptables": RIGHT}}},
        "6.18": {
            A: {"tun": {"ebpf": RIGHT, "iptables": RIGHT}},
            B: {"": {"ebpf": RIGHT, "iptables": "no idea"}},
        },
    }
    assert cases_table(record)[2:] == [
        "| 1 | Through an uplink. | right | **wrong** on 6.1 (gre) | 6.1, 6.18 |",
        "| 10 | Something else. | no: no idea | right | 6.18 |",
    ]
    assert uplinks_table(record)[2:] == [
        "| gre | not run | **wrong** on 6.1 (Through an uplink.) |",
        "| tun | right on 6.1, 6.18 | right on 6.1, 6.18 |",
    ]


def test_tables_are_written_where_they_are() -> None:
    page = (
        f"a\n{compared.CASES_HERE}\nold\n{compared.END}\nb\n{compared.UPLINKS_HERE}\nold\n{compared.END}\nc\n"
    )
    new = written(page, {})
    assert (
        "old" not in new
        and new.split("|")[0] == f"a\n{compared.CASES_HERE}\n"
        and new.endswith(f"{compared.END}\nc\n")
    )
    assert written(new, {}) == new
    with pytest.raises(AssertionError, match="no place"):
        written("a\n", {})


def test_the_page_is_as_the_record_says() -> None:
    page = compared.PAGE.read_text()
    assert written(page, json.loads(compared.RECORD.read_text())) == page
