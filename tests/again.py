# SPDX-License-Identifier: Apache-2.0
"""Runs the suite, and then each test that failed once more by itself: one that passes now is flaky.

    python -m tests.again FILE COMMAND…

The command is one that ends up in pytest. Exit code 0: all is well, or no more than three tests were flaky. FILE gets
the lines about what was not well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

VARIABLE = "DATAPATH_TEST_REPORT"  # where pytest writes a Report
FLAKY = 3  # so many may be
RERUN = 10  # so many are run again; with more it is not chance


@dataclass
class Report:
    code: int = 0
    failed: list[str] = field(default_factory=list)  # tests, by their node ids
    errors: list[str] = field(default_factory=list)  # whatever else went wrong


class Recorder:
    """A plugin of pytest: in the process that knows of all tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._report = Report()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self._report.failed:  # itself and its teardown
            self._report.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._report.errors.append(f"not collected: {report.nodeid}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        if error:
            self._report.errors.append(f"a worker of pytest-xdist ended: {error}")

    def write(self, code: int, left: dict[str, set[str]]) -> None:
        self._report.code = int(code)
        self._report.errors += [f"left behind: {', '.join(sorted(things))}" for things in left.values()]
        self._path.write_text(json.dumps(asdict(self._report)))


def judge(report: Report, passes: Callable[[str], bool]) -> tuple[int, list[str]]:
    """The exit code, and what is to be said. `passes` runs one test again."""
    tried = {test: passes(test) for test in report.failed[:RERUN]}
    lines = [f"flaky: {test}" for test in tried if tried[test]]
    bad = [f"failed twice: {test}" for test in tried if not tried[test]]
    if more := len(report.failed) - len(tried):
        bad.append(f"failed: {more} more, which were not run again")
    if len(lines) > FLAKY:
        bad.append(f"too many are flaky: {len(lines)}, of {FLAKY} that may be")
    bad += [f"error: {error}" for error in report.errors]
    explained = report.failed if report.code == pytest.ExitCode.TESTS_FAILED else report.code == 0
    if not (bad or explained):
        bad.append(f"error: pytest's exit code is {report.code}")
    return int(bool(bad)), lines + bad


def run(command: Sequence[str]) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report"
        code = subprocess.run(command, env=os.environ | {VARIABLE: str(path)}, check=False).returncode
        if not path.exists():
            return Report(code, errors=[f"{' '.join(command)}: exit code {code}, before there was a report"])
        return Report(**json.loads(path.read_text()))


def passes(test: str) -> bool:
    print(f"\nOnce more, by itself: {test}", flush=True)
    return (
        subprocess.run([sys.executable, "-m", "pytest", "-p", "no:xdist", test], check=False).returncode == 0
    )


def main(path: Path, command: Sequence[str]) -> int:
    code, lines = judge(run(command), passes)
    path.write_text("".join(f"{line}\n" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
