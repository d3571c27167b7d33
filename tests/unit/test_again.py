# SPDX-License-Identifier: Apache-2.0
"""What becomes of a run when a test in it failed: once more by itself, and then?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.again import RERUN, Report, judge

TREE = Path(__file__).resolve().parents[2]
FIVE = ["a", "b", "c", "d", "e"]
MANY = [f"t{number}" for number in range(RERUN + 2)]


@pytest.mark.parametrize(
    ("report", "pass_now", "code", "lines"),
    [
        (Report(), "", 0, []),
        (Report(1, ["a"]), "a", 0, ["flaky: a"]),
        (Report(1, ["a"]), "", 1, ["failed twice: a"]),
        (Report(1, ["a", "b"]), "b", 1, ["flaky: b", "failed twice: a"]),
        (Report(1, FIVE[:3]), "abc", 0, ["flaky: a", "flaky: b", "flaky: c"]),
        (
            Report(1, FIVE[:4]),
            "abcd",
            1,
            ["flaky: a", "flaky: b", "flaky: c", "flaky: d", "too many are flaky: 4, of 3 that may be"],
        ),
        (Report(1, FIVE), "ab", 1, ["flaky: a", "flaky: b", *(f"failed twice: {test}" for test in "cde")]),
        (
            Report(1, MANY),
            "",
            1,
            [*(f"failed twice: {t}" for t in MANY[:RERUN]), "failed: 2 more, which were not run again"],
        ),
        (Report(1, ["a"], ["a worker ended"]), "a", 1, ["flaky: a", "error: a worker ended"]),
        (Report(1, [], ["left behind: eth7"]), "", 1, ["error: left behind: eth7"]),
        (Report(2, [], ["not collected: x.py"]), "", 1, ["error: not collected: x.py"]),
        (Report(1), "", 1, ["error: pytest's exit code is 1"]),
        (Report(2, ["a"]), "a", 1, ["flaky: a", "error: pytest's exit code is 2"]),
        (Report(3), "", 1, ["error: pytest's exit code is 3"]),
        (Report(5), "", 1, ["error: pytest's exit code is 5"]),
    ],
)
def test_the_verdict(report: Report, pass_now: str, code: int, lines: list[str]) -> None:
    assert judge(report, lambda test: test in pass_now) == (code, lines)


SUITE = """
import os, subprocess
from pathlib import Path
import pytest

here = Path(__file__).parent

def test_passes():
    pass

@pytest.mark.parametrize("word", ["first time [it] fails::"])
def test_flaky(word):
    if not (here / "once").exists():
        (here / "once").touch()
        assert False

def test_broken():
    assert {broken}

@pytest.fixture
def crumbling():
    yield
    assert {crumbling}

def test_teardown(crumbling):
    assert {crumbling}

def test_crashes():
    if {crashes} and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
"""
WELL = {"broken": "True", "crumbling": "True", "crashes": "False"}
FLAKY = "flaky: {0}::test_flaky[first time [it] fails::]"


def ran(folder: Path, text: str) -> tuple[int, list[str], str]:
    """Exit code, lines, and all that was printed, of such a suite."""
    suite, lines = folder / "test_suite.py", folder / "lines"
    suite.write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {
        "PYTHONPATH": str(TREE),
        "PYTEST_ADDOPTS": f"-p tests.conftest -p no:cacheprovider --rootdir {folder} --basetemp {folder}/inner",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.again", lines, sys.executable, "-m", "pytest", "-n", "2", suite],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    said = lines.read_text().splitlines()
    return done.returncode, [line.replace("test_suite.py", "{0}") for line in said], done.stdout


def test_a_suite_with_a_flaky_test_passes(tmp_path: Path) -> None:
    code, lines, text = ran(tmp_path, SUITE.format(**WELL))
    assert (code, lines) == (0, [FLAKY]), text
    assert "1 failed, 4 passed" in text and "1 passed" in text


def test_a_suite_where_a_test_fails_twice_does_not(tmp_path: Path) -> None:
    code, lines, text = ran(tmp_path, SUITE.format(**{**WELL, "broken": "False", "crumbling": "False"}))
    twice = [f"failed twice: {{0}}::test_{name}" for name in ("broken", "teardown")]
    assert (code, sorted(lines)) == (1, [*twice, FLAKY]), text


def test_a_suite_whose_worker_crashes_does_not(tmp_path: Path) -> None:
    code, lines, text = ran(tmp_path, SUITE.format(**{**WELL, "crashes": "True"}))
    assert code == 1 and "flaky: {0}::test_crashes" in lines, text
    assert any(line.startswith("error: a worker") for line in lines)


def test_a_suite_that_cannot_be_collected_does_not(tmp_path: Path) -> None:
    code, lines, text = ran(tmp_path, "import nothing_of_the_kind")
    assert code == 1 and "error: not collected: {0}" in lines, text
