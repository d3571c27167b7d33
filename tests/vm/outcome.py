# SPDX-License-Identifier: Apache-2.0
"""What became of a machine: read from its console, from what the guest wrote, and from the clock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple
from xml.etree import ElementTree


class Kind(Enum):
    """Each with the exit code that stands for it; 1 and 2 are pytest's and every tool's."""

    PASSED = 0
    FAILED = 1
    WRONG_CALL = 2
    PANIC = 3
    LOST = 4
    TIMEOUT = 5
    UNFETCHED = 6
    TOO_OLD = 7
    UNPREPARED = 8
    INTERRUPTED = 130


# The worst first: what several kernels together came to.
SEVERITY = (
    *(Kind.PANIC, Kind.FAILED, Kind.LOST, Kind.TIMEOUT, Kind.TOO_OLD),
    *(Kind.WRONG_CALL, Kind.UNPREPARED, Kind.UNFETCHED, Kind.PASSED),
)


class LabError(Exception):
    """This machine cannot run the lab: a program is missing, a disk is full. Told in one line."""

    kind = Kind.UNPREPARED


class UnfetchedError(LabError):
    """There is no such kernel, or it could not be fetched."""

    kind = Kind.UNFETCHED


class WrongCallError(LabError):
    """What was asked for makes no sense."""

    kind = Kind.WRONG_CALL


class Outcome(NamedTuple):
    """`line` is the one line that is told."""

    kind: Kind
    line: str


class Counts(NamedTuple):
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Result(NamedTuple):
    """What is told about one kernel. `facts`: what the guest wrote, and what of it was asked for."""

    kernel: str
    outcome: Outcome
    counts: Counts
    facts: dict[str, Any]


PANIC = re.compile(r"Kernel panic - not syncing: .*")
NO_ROOT = "Unable to mount root fs"
CAUSE = re.compile(r"(?:BUG: (?!soft lockup)|Oops: |general protection fault|Unable to handle kernel ).*")
QEMU = re.compile(r"^(?:qemu-system-\w+: |KVM internal error).*", re.MULTILINE)


def classify(
    exit_code: int | None, console: str, counts: Counts, seconds: float, timed_out: bool = False
) -> Outcome:
    """`exit_code` is pytest's as the guest wrote it, None if it came to nothing. A panic counts before all
    else: a kernel that dies after the last test has died."""
    panic = PANIC.search(console)
    if panic:
        cause = CAUSE.search(console, endpos=panic.start())
        why = f"{cause[0].strip()}; " if cause else ""
        hint = ": are its modules beside it, those of 9p and virtio?" if NO_ROOT in panic[0] else ""
        return Outcome(Kind.PANIC, f"the kernel panicked: {why}{panic[0].strip()}{hint}")
    if timed_out:
        return Outcome(Kind.TIMEOUT, f"time-out: not done after {seconds:.0f} s, and stopped")
    if exit_code is None:
        said = QEMU.findall(console)
        words = said[-1] if said else last_line(console)
        return Outcome(Kind.LOST, f"the machine was lost: it ended without a result; last words: {words}")
    if exit_code == 0 and not counts.passed:
        return Outcome(Kind.FAILED, f"no test was run: {counts} in {seconds:.0f} s")
    if exit_code == 0:
        return Outcome(Kind.PASSED, f"{counts} in {seconds:.0f} s")
    if exit_code == 1:
        return Outcome(Kind.FAILED, f"tests failed: {counts} in {seconds:.0f} s")
    if exit_code in (4, 5):
        return Outcome(Kind.WRONG_CALL, "pytest found no such tests: see TESTS")
    return Outcome(Kind.FAILED, f"pytest ended with {exit_code}: {counts} in {seconds:.0f} s")


def last_line(console: str) -> str:
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "none"


def warnings(console: str) -> list[str]:
    """What the kernel complained about without dying of it."""
    found = re.findall(r"(?:WARNING: |BUG: |INFO: rcu_|INFO: task ).*", console)
    return [line.strip() for line in found]


class Case(NamedTuple):
    """A test as it came out; what is expected to fail has passed. `node`: pytest's id of it."""

    node: str
    counts: Counts
    reason: str  # for which it was skipped


def cases(junit: str) -> list[Case]:
    """Those of a junit file. One that was not written to its end counts for nothing."""
    try:
        found = list(ElementTree.fromstring(junit).iter("testcase"))
    except ElementTree.ParseError:
        return []
    return [_case(one) for one in found]


def _case(found: ElementTree.Element) -> Case:
    *folders, classes = re.split(r"\.(?=test_)", found.get("classname", ""), maxsplit=1)
    module, *inner = classes.split(".")
    path = "/".join([*".".join(folders).split("."), f"{module}.py"])
    node = "::".join([path, *inner, found.get("name", "")])
    kinds = {child.tag: child for child in found}
    if "failure" in kinds or "error" in kinds:
        return Case(node, Counts(failed=1), "")
    if "skipped" in kinds and kinds["skipped"].get("type") != "pytest.xfail":
        return Case(node, Counts(skipped=1), kinds["skipped"].get("message", ""))
    return Case(node, Counts(passed=1), "")


def total(counts: Iterable[Counts]) -> Counts:
    return Counts(*map(sum, zip(Counts(), *counts, strict=True)))


def count(junit: str) -> tuple[Counts, list[str]]:
    """The tests of a junit file, and why those that were skipped were."""
    found = cases(junit)
    return total(case.counts for case in found), sorted(
        {case.reason for case in found if case.counts.skipped}
    )


def unnamed(reasons: list[str]) -> list[str]:
    """Those reasons for a skip that name nothing which the kernel lacks."""
    return [reason for reason in reasons if "this kernel" not in reason]
