# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/doors.md: from what tests came to, by client, release and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doors import table
from tests.doors.table import RIGHT, WRONG


def report(
    outcome: Any, *rows: int, release: str = "sid", when: Any = "call", version: str = "28.5.2"
) -> Any:
    said = [("door", ["Docker", rows, release]), ("version", version)]
    return pytest.TestReport("test", ("", 0, ""), {}, outcome, None, when, user_properties=said)


def collected(folder: Path, *reports: Any) -> dict[str, Any]:
    collector = table.Collector(folder / "run.json")
    for one in reports:
        collector.pytest_runtest_logreport(one)
    collector.pytest_sessionfinish(0)
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_a_row_works_if_none_of_its_tests_failed(tmp_path: Path) -> None:
    run = collected(
        tmp_path,
        report("passed", 1, 2),
        report("failed", 2),
        report("passed", 2),
        report("skipped", 3),
        report("failed", 4, when="teardown"),
        report("passed", 5, when="setup"),
    )
    assert run["seen"]["Docker"]["sid"]["rows"] == {"1": RIGHT, "2": WRONG, "4": WRONG}


def test_what_a_run_did_not_have_stays_as_it_was(tmp_path: Path) -> None:
    record = table.taken_in({}, collected(tmp_path, report("passed", 2), report("failed", 1)))
    later = collected(tmp_path, report("passed", 1, version="28.6"), report("passed", 1, release="bookworm"))
    seen = table.taken_in(record, later)["seen"]["Docker"]
    assert list(seen) == ["bookworm", "sid"]
    assert seen["sid"] == {"version": "28.6", "rows": {"1": RIGHT, "2": RIGHT}}


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    table.Collector(tmp_path / "run.json").pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert not (tmp_path / "run.json").exists()


def test_the_page_is_what_is_recorded() -> None:
    """Of every client in each release that there is; nothing that was tried failed."""
    record = json.loads(table.RECORD.read_text())
    page = table.PAGE.read_text()
    assert table.written(page, record) == page
    assert {name: list(releases) for name, releases in record["seen"].items()} == {
        name: list(table.RELEASES) for name in table.ROWS
    }
    assert WRONG not in "".join(line for line in page.splitlines() if line.startswith("|"))
