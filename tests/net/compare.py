# SPDX-License-Identifier: Apache-2.0
"""What a host can be like, and whether containers' packets go right on it: in the kernel's own way and in ours.

A test with `host_case` is one row of docs/compatibility.md. It takes `mode` and is run with "ebpf" like any test. With
COMPARE_HOST in the environment (`make compare-host`) it is run with "iptables" as well, the kernel's own forwarding
with Docker's rules, which is the reference, and the table is written from what came out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

VARIABLE = "COMPARE_HOST"  # the page whose table is to be written
EBPF, IPTABLES = "ebpf", "iptables"
MODE = "com.datapath.mode"
BEGIN, END = "<!-- make compare-host -->", "<!-- end -->"
RIGHT, WRONG, NOT_RUN = "right", "**wrong**", "not run"

Test = TypeVar("Test", bound=Callable[..., Any])


def host_case(kind: int, sentence: str, *, iptables: str = "", ebpf: str = "") -> Callable[[Test], Test]:
    """Decorates a test that takes `mode`. `kind`: what the case is an example of, a number by which the rows are
    ordered. `sentence`: what is right. `iptables`, `ebpf`: why it is not right in that mode, where the test must fail.
    Without `mode` in its options a network is eBPF's: see `options` and `config`."""

    def decorate(test: Test) -> Test:
        params = []
        for mode, why in ((EBPF, ebpf), (IPTABLES, iptables)):
            if mode == IPTABLES and VARIABLE not in os.environ:
                continue
            marks = [pytest.mark.host_case(kind, sentence, mode, why)]
            if why:
                marks.append(pytest.mark.xfail(reason=why, strict=True))
            params.append(pytest.param(mode, marks=marks, id=mode))
        decorated: Test = pytest.mark.parametrize("mode", params)(test)
        return decorated

    return decorate


def options(mode: str) -> str:
    """For `network create`: a network of that mode."""
    return f"-o {MODE}={mode}"


class Config(dict[str, Any]):
    """A daemon.json; a Host with it puts containers that name no network on one of that mode."""

    mode = EBPF


def config(mode: str, **more: Any) -> Config:
    """A daemon.json with which networks are of that mode. The network `bridge` cannot be, as with Docker
    default-network-opts are not for it: in its place a Host takes one of the name `plain`."""
    made = Config({"default-network-opts": {"bridge": {MODE: mode}}, **more})
    made.mode = mode
    return made


# ---- the table ---------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One case: what came out in each mode, of all variants of the test, and why it is not right."""

    outcomes: dict[str, set[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def cell(self, mode: str) -> str:
        found = self.outcomes.get(mode, {NOT_RUN})
        if WRONG in found or RIGHT not in found:
            return WRONG if WRONG in found else NOT_RUN
        return f"no: {self.reasons[mode]}" if self.reasons[mode] else RIGHT


class Collector:
    """A plugin of pytest, in the process that knows of all tests."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._rows: dict[tuple[int, str], Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = dict(report.user_properties).get("host_case")
        if not isinstance(case, list | tuple) or (report.when != "call" and report.passed):
            return
        kind, sentence, mode, why = case
        row = self._rows.setdefault((kind, sentence), Row())
        if report.skipped:
            outcome = RIGHT if hasattr(report, "wasxfail") else NOT_RUN  # xfail: it is as was said
        else:
            outcome = RIGHT if report.passed else WRONG
        row.outcomes.setdefault(mode, set()).add(outcome)
        row.reasons[mode] = why

    def pytest_sessionfinish(self) -> None:
        """Writes the table, in place of the one that is there."""
        lines = ["| kind | what is right | kernel (iptables mode) | datapath (eBPF) |", "|---|---|---|---|"]
        for (kind, sentence), row in sorted(self._rows.items()):
            lines.append(f"| {kind} | {sentence} | {row.cell(IPTABLES)} | {row.cell(EBPF)} |")
        text = self._page.read_text()
        table = "\n".join([BEGIN, *lines, END])
        found = re.subn(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, text, flags=re.S)
        assert found[1] == 1, f"{self._page} has no place for the table"
        self._page.write_text(found[0])


def note(item: pytest.Item) -> None:
    """Called for each test before it runs: what it is a case of goes with its report, also from another process."""
    mark = item.get_closest_marker("host_case")
    if mark:
        item.user_properties.append(("host_case", list(mark.args)))
