# SPDX-License-Identifier: Apache-2.0
"""The kernel lab's judgement: what a console says, which kernel is meant, which selection is run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.vm import archive, lab, machine, outcome, verified
from tests.vm.outcome import Counts, Kind, classify

ROOT = Path(__file__).parents[2]
CONSOLES = ROOT / "tests/vm/consoles"
COUNTS = Counts(passed=3, failed=1, skipped=2)


def console(name: str) -> str:
    """The end of what a machine really said."""
    return (CONSOLES / f"{name}.log").read_text()


def test_a_panic_is_told_by_its_cause_and_counts_before_all_else() -> None:
    """S29. The machine was told to crash (sysrq); whatever the guest had written by then."""
    for code in (None, 0, 1):
        told = classify(code, console("panic"), COUNTS, 20.0, timed_out=True)
        assert told.kind is Kind.PANIC
        assert told.line == "the kernel panicked: Kernel panic - not syncing: sysrq triggered crash"


def test_an_oops_names_what_the_kernel_stumbled_over() -> None:
    told = classify(
        None, "BUG: kernel NULL pointer dereference\nKernel panic - not syncing: x\n", COUNTS, 1.0
    )
    assert told.line == (
        "the kernel panicked: BUG: kernel NULL pointer dereference; Kernel panic - not syncing: x"
    )


def test_a_machine_that_ends_without_a_result_is_lost() -> None:
    """S29. QEMU was killed in the middle."""
    told = classify(None, console("lost"), Counts(), 20.0)
    assert told.kind is Kind.LOST
    assert told.line.startswith("the machine was lost: it ended without a result; last words: [")


def test_a_machine_that_never_started_is_lost_and_qemus_words_are_told() -> None:
    """S29. A KVM that cannot run the kernel."""
    told = classify(None, console("qemu"), Counts(), 1.0)
    assert told.kind is Kind.LOST
    assert "last words: qemu-system-x86_64: " in told.line


def test_a_time_out_is_no_lost_machine() -> None:
    told = classify(None, console("timeout"), Counts(), 60.0, timed_out=True)
    assert told == (Kind.TIMEOUT, "time-out: not done after 60 s, and stopped")


def test_a_time_out_on_the_running_kernel_is_told_as_in_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    monkeypatch.setattr(machine, "KEEPER", ("sh", "-c", "exec sleep 60", "sh"))
    assert lab.main(["run", "--timeout", "0.5", "running", "tests/unit/test_lab.py"]) == Kind.TIMEOUT.value
    said = capsys.readouterr().out
    assert re.fullmatch(r"lab: running: time-out: not done after \d s, and stopped\n", said)


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        (0, Kind.PASSED, "3 passed, 1 failed, 2 skipped in 60 s"),
        (1, Kind.FAILED, "tests failed: 3 passed, 1 failed, 2 skipped in 60 s"),
        (3, Kind.FAILED, "pytest ended with 3: 3 passed, 1 failed, 2 skipped in 60 s"),
        (5, Kind.WRONG_CALL, "pytest found no such tests: see TESTS"),
    ],
)
def test_what_pytest_said_is_the_result(code: int, kind: Kind, line: str) -> None:
    assert classify(code, console("passed"), COUNTS, 60.0) == (kind, line)


def test_every_outcome_has_an_exit_code_of_its_own() -> None:
    assert len({kind.value for kind in Kind}) == len(list(Kind)) == len(Kind.__members__)


def test_complaints_of_a_kernel_that_lives_are_collected() -> None:
    said = "[    1.0] ok\n[    2.0] WARNING: CPU: 0 PID: 9 at net/core/dev.c:1 f+0x1/0x2\n"
    assert outcome.warnings(said) == ["WARNING: CPU: 0 PID: 9 at net/core/dev.c:1 f+0x1/0x2"]
    assert outcome.warnings(console("passed")) == []


def test_a_junit_file_is_counted_with_what_is_expected_to_fail_as_passed() -> None:
    text = """<testsuites><testsuite><testcase/><testcase><failure/></testcase><testcase><error/></testcase>
    <testcase><skipped type="pytest.skip" message="this kernel has no netkit"/></testcase>
    <testcase><skipped type="pytest.xfail" message="known"/></testcase></testsuite></testsuites>"""
    assert outcome.count(text) == (Counts(2, 2, 1), ["this kernel has no netkit"])


def test_a_skip_that_names_no_feature_is_found() -> None:
    reasons = ["this kernel has no netkit", "needs a static busybox"]
    assert outcome.unnamed(reasons) == ["needs a static busybox"]


# ---- kernels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("6.1", "6.1.0-50"),
        ("6.12", "6.12.117+deb13"),
        ("6", "6.19.14+deb13"),
        ("7", "7.3.4+deb13"),
        ("7.0", "7.0.13+deb13"),
        ("6.12.107", "6.12.107+deb13"),
        ("5.4", None),
    ],
)
def test_a_series_means_its_newest_kernel(wanted: str, found: str | None) -> None:
    offered = (
        *("6.1.0-47", "6.1.0-50", "6.12.107+deb13", "6.12.117+deb13", "6.19.9+deb13", "6.19.14+deb13"),
        *("7.0.9+deb13", "7.0.13+deb13", "7.3.4+deb13"),
    )
    assert archive.newest(offered, wanted) == found


@pytest.mark.parametrize("name", ["/no/such/bzImage", "newest"])
def test_what_is_neither_a_version_nor_an_image_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.vm.machine.missing", list)
    assert lab.main(["shell", name]) == Kind.UNPREPARED.value
    assert capsys.readouterr().err == f"lab: {name} is neither a version such as 6.12 nor a kernel image\n"


def test_tests_that_are_not_there_are_a_wrong_call_and_no_kernel_that_could_not_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who runs the lab wherever it can be had, and does without it elsewhere, has to tell them apart."""
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    assert lab.main(["run", "6.12", "tests/net/test_nothing.py"]) == Kind.WRONG_CALL.value
    assert "tests/net/test_nothing.py" in capsys.readouterr().err


def test_the_table_shows_what_was_last_seen_of_each_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    for kernel, tcx, figures in (("6.1", False, {"one": 1234}), ("6.12", True, {"one": 99, "two": 5})):
        results = tmp_path / "results" / kernel
        results.mkdir(parents=True)
        seen = {"kernel": kernel, "outcome": "PASSED", "line": "", **COUNTS._asdict()}
        facts = {"release": f"{kernel}.7", "tcx": tcx, "netkit": tcx, "programs": figures}
        (results / "result.json").write_text(json.dumps({**seen, **facts}))
    assert lab.main(["table"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["", "6.1.7", "6.12.7"],
        ["---", "---:", "---:"],
        ["outcome", "passed", "passed"],
        ["tests", str(COUNTS), str(COUNTS)],
        ["attached by", "clsact", "tcx"],
        ["netkit", "no", "yes"],
        ["programs loaded", "1", "2"],
        ["`one`", "1,234", "99"],
        ["`two`", "", "5"],
    ]


# ---- figures and selection -----------------------------------------------------------


def test_a_figure_may_grow_by_a_fifth_and_never_beyond_half_of_the_limit() -> None:
    assert verified.allowed(1000) == 1200
    assert verified.allowed(450_000) == verified.allowed(None) == 500_000


def test_figures_are_kept_in_the_order_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "RECORD", tmp_path / "verified.json")
    for release in ("6.12.117+deb13-amd64", "6.1.0-50-amd64", "7.3.4+deb13-amd64"):
        verified.record(release, {"b": 2, "a": 1})
    assert list(json.loads(verified.RECORD.read_text())) == ["6.1", "6.12", "7.3"]
    assert verified.recorded("6.1.0-99-amd64") == {"a": 1, "b": 2}
    assert verified.recorded("6.2.0") == {}


def test_the_labs_selection_names_tests_that_are_there() -> None:
    """A test that is renamed would otherwise be missed only when the lab is next run."""
    for line in lab.SELECTION.read_text().splitlines():
        path, *names = re.sub(r"\[.*", "", line).split("::")
        assert (ROOT / path).exists(), line
        if names:
            defined = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(n, "name")}
            assert set(names) <= defined, line
