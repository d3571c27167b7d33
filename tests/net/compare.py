# SPDX-License-Identifier: Apache-2.0
"""What a host can be like, and whether containers' packets go right on it: in the kernel's own way and in ours.

A test with `host_case` is one row of docs/compatibility.md. It takes `mode` and is run with "ebpf" like any test. With
COMPARE_HOST in the environment (`make compare-host`) it is run with "iptables" as well, the kernel's own forwarding
with Docker's rules, which is the reference, and `tests/net/compared.py` writes the table from what came out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

VARIABLE = "COMPARE_HOST"  # the file in which it is left what came out
EBPF, IPTABLES = "ebpf", "iptables"
MODE = "com.datapath.mode"
RIGHT, WRONG, NOT_RUN = "right", "wrong", "not run"  # or else why it is not right, as the test says
UPLINKS = 1  # the kind of those cases that are about devices of many kinds

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


# ---- what came out -----------------------------------------------------------------------------------------


class Collector:
    """A plugin of pytest, in the process that knows of all tests. It leaves what came out in a file, for
    `tests.net.compared`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cases: dict[str, dict[str, dict[str, str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = dict(report.user_properties).get("host_case")
        if not isinstance(case, list | tuple) or (report.when != "call" and report.passed):
            return
        kind, sentence, mode, why, uplink = case
        if report.skipped:
            told = str(why) if hasattr(report, "wasxfail") else NOT_RUN  # xfail: it is as was said
        else:
            told = RIGHT if report.passed else WRONG
        modes = self._cases.setdefault(f"{kind} {sentence}", {}).setdefault(uplink, {})
        modes[mode] = max(told, modes.get(mode, told), key=_weight)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._cases and exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
        ):  # not interrupted
            self._file.write_text(json.dumps({"release": os.uname().release, "cases": self._cases}))


def _weight(told: str) -> int:
    """Of several tests of one case the one counts that has the most to say."""
    return {NOT_RUN: 0, RIGHT: 1, WRONG: 3}.get(told, 2)


def note(item: pytest.Item) -> None:
    """Called for each test before it runs: what it is a case of goes with its report, also from another process."""
    mark = item.get_closest_marker("host_case")
    if mark:
        params = item.callspec.params if isinstance(item, pytest.Function) else {}
        uplink = params.get("kind", "") if mark.args[0] == UPLINKS else ""
        item.user_properties.append(("host_case", [*mark.args, uplink]))
