# SPDX-License-Identifier: Apache-2.0
"""The kernel lab's judgement: what a console says, which kernel is meant, which selection is run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.net import compared
from tests.vm import archive, columns, foreign, lab, machine, outcome, verified
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
    monkeypatch.setattr("os.geteuid", lambda: 0)
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


def test_a_run_in_which_every_test_was_skipped_has_not_passed() -> None:
    told = classify(0, console("passed"), Counts(skipped=5), 60.0)
    assert told == (Kind.FAILED, "no test was run: 0 passed, 0 failed, 5 skipped in 60 s")


def test_an_image_without_its_modules_is_hinted_at() -> None:
    """The root file system is reached by 9p over virtio, which most kernels have as modules."""
    said = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
    told = classify(None, said, Counts(), 3.0)
    assert told.kind is Kind.PANIC
    assert told.line.endswith(": are its modules beside it, those of 9p and virtio?")


def test_every_outcome_has_an_exit_code_of_its_own() -> None:
    assert len({kind.value for kind in Kind}) == len(list(Kind)) == len(Kind.__members__)
    assert {*outcome.SEVERITY, Kind.INTERRUPTED} == set(Kind)


def test_complaints_of_a_kernel_that_lives_are_collected() -> None:
    said = "[    1.0] ok\n[    2.0] WARNING: CPU: 0 PID: 9 at net/core/dev.c:1 f+0x1/0x2\n"
    assert outcome.warnings(said) == ["WARNING: CPU: 0 PID: 9 at net/core/dev.c:1 f+0x1/0x2"]
    assert outcome.warnings(console("passed")) == []


def test_a_junit_file_is_counted_with_what_is_expected_to_fail_as_passed() -> None:
    text = """<testsuites><testsuite><testcase/><testcase><failure/></testcase><testcase><error/></testcase>
    <testcase><skipped type="pytest.skip" message="this kernel has no netkit"/></testcase>
    <testcase><skipped type="pytest.xfail" message="known"/></testcase></testsuite></testsuites>"""
    assert outcome.count(text) == (Counts(2, 2, 1), ["this kernel has no netkit"])
    assert outcome.count(text[:100]) == (Counts(), [])  # the disk was full


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, on a machine that has what the lab needs. Nothing is collected."""
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    monkeypatch.setattr(verified, "RECORD", tmp_path / "verified.json")
    verified.RECORD.write_text('{"6.12": {"one": 100}}')
    monkeypatch.setattr(columns, "RECORD", tmp_path / "columns.json")
    monkeypatch.setattr(columns, "PAGE", tmp_path / "lab.md")
    columns.RECORD.write_text("{}")
    columns.PAGE.write_text(f"before {columns.BEGIN}\n{columns.END} after")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("tests.vm.machine.missing", list)
    return tmp_path


@pytest.mark.parametrize("name", ["", "..", "/no/such/bzImage", "newest", "bzImage-6.12", "my-6.12-kernel"])
def test_what_is_neither_a_version_nor_an_image_is_refused(
    name: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("shell", "run"):
        assert lab.main([command, name]) == Kind.WRONG_CALL.value
        said = f"{name or 'KERNEL='} is neither a version such as 6.12 nor a kernel image"
        assert capsys.readouterr().err == f"lab: {said}\n"
    assert not (cache / "results").exists()


def test_a_file_that_is_no_kernel_is_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["run", str(ROOT / "Makefile")]) == Kind.WRONG_CALL.value
    assert capsys.readouterr().err == f"lab: {ROOT / 'Makefile'} is no kernel image\n"


@pytest.mark.parametrize("name", ["7", "6.12", "6.1.0-50", "6.1.0-50-amd64", "6.12.117+deb13-amd64"])
def test_a_version_may_be_what_uname_says(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(archive.Archive, "kernel", lambda _, wanted: asked.append(wanted))
    lab.find(lab.Target(name))
    assert asked == [name.removesuffix("-amd64")]


@pytest.mark.parametrize(
    ("target", "package"),
    [
        (lab.Target("6.12"), "linux-image-6.12.117+deb13-amd64"),
        (lab.Target("6.12", "arm64"), "linux-image-6.12.119+deb13-arm64"),
        (lab.Target("6.12", "arm64", "16k"), "linux-image-6.12.118+deb13-arm64-16k"),
    ],
)
def test_an_architecture_and_its_flavour_have_kernels_and_a_cache_of_their_own(
    target: lab.Target, package: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = (
        *("linux-image-6.12.117+deb13-amd64", "linux-image-6.12.119+deb13-arm64"),
        *("linux-image-6.12.118+deb13-arm64-16k", "linux-image-6.12.120+deb13-rt-arm64", "linux-image-arm64"),
    )
    store = archive.Archive(cache, target.architecture, target.flavour)
    monkeypatch.setattr(archive.Apt, "run", lambda *_, **__: "\n".join(offered))
    assert [f"linux-image-{version}-{store.suffix}" for version in store._offered()] == [package]
    assert (
        store.kernels.relative_to(cache).parts
        == {
            "6.12": ("kernels",),
            "6.12-arm64": ("arm64", "kernels"),
            "6.12-arm64-16k": ("arm64", "kernels-16k"),
        }[str(target)]
    )


def test_another_architecture_takes_versions_only_and_records_no_cases_of_hosts(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.vm.foreign.missing", list)
    assert lab.main(["run", "--arch", "arm64", "running"]) == Kind.WRONG_CALL.value
    assert capsys.readouterr().err == "lab: running is no version such as 6.12, which ARCH=arm64 takes\n"
    assert lab.main(["run", "--arch", "arm64", "--compare", "6.12"]) == Kind.WRONG_CALL.value
    assert capsys.readouterr().err == "lab: cases of hosts are recorded of amd64\n"
    monkeypatch.setattr("tests.vm.foreign.missing", lambda: ["qemu-system-aarch64"])
    assert lab.main(["run", "--arch", "arm64", "6.12"]) == Kind.UNPREPARED.value
    said = "lab: qemu-system-aarch64: not there; `make lab-deps ARCH=arm64` installs it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-5", "soon"])
def test_a_time_out_is_a_number_of_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        lab.main(["run", f"--timeout={seconds}", "6.12"])
    assert "--timeout" in capsys.readouterr().err


def test_who_is_not_root_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert lab.main(["run", "6.12"]) == Kind.WRONG_CALL.value
    assert capsys.readouterr().err == "lab: the lab needs root, as the tests do\n"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("cache", "the machine sees this tree unchanging"),
        (".", "the machine sees this tree"),
        (".l b", "blank"),
    ],
)
def test_a_cache_that_the_machine_cannot_share_is_refused(
    place: str, why: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "CACHE", lab.TREE / place)
    assert lab.main(["run", "6.12"]) == Kind.WRONG_CALL.value
    assert why in capsys.readouterr().err


def test_without_the_archive_the_newest_kernel_of_the_cache_is_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And who has none of that series is told why none came, which is another exit code than a broken machine's."""

    def fail(*_: object) -> None:
        raise outcome.UnfetchedError("apt-get: no way there")

    modules = cache / "kernels/6.12.107+deb13/lib/modules/6.12.107+deb13-amd64"
    modules.mkdir(parents=True)
    (modules / "vmlinuz").touch()
    store = archive.Archive(cache)
    monkeypatch.setattr(archive.Archive, "_update", lambda _: "apt-get: no way there")
    monkeypatch.setattr(archive.Archive, "_offered", lambda _: ["6.12.117+deb13", "7.3.4+deb13"])
    monkeypatch.setattr(archive.Archive, "_fetch", fail)
    assert store.kernel("6.12").image == modules / "vmlinuz"
    assert "6.12.107+deb13 is here" in capsys.readouterr().out
    with pytest.raises(outcome.UnfetchedError):
        store.kernel("7")


def test_tests_that_are_not_there_are_a_wrong_call_and_the_last_results_stay(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = cache / "results/running/result.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert lab.main(["run", "running", "tests/net/test_nothing.py"]) == Kind.WRONG_CALL.value
    assert "tests/net/test_nothing.py" in capsys.readouterr().err
    assert kept.exists()


# ---- what the guest leaves -----------------------------------------------------------

FACTS = {"release": "6.12.7", "tcx": True, "netkit": True, "refused": "", "programs": {"one": 300}}
JUNIT = "<testsuites><testsuite><testcase/></testsuite></testsuites>"


def guest(monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """The running kernel's tests come to an end with these files instead."""
    script = "for word; do case $word in *=*) ;; */results/*) cd $word; break;; esac; done; " + "; ".join(
        f"printf %s {shlex.quote(text)} >{name}" for name, text in files.items()
    )
    monkeypatch.setattr(machine, "KEEPER", ("sh", "-c", script, "sh"))
    monkeypatch.setattr(lab, "_warm", lambda arguments, environment: None)


def test_a_kernel_that_lacks_what_the_programs_need_has_not_passed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S29. Else a program that the oldest supported kernel refuses would be as good as one that it loads."""
    facts = json.dumps({**FACTS, "refused": "this kernel does not have bpf_new", "programs": {}})
    guest(monkeypatch, **{"facts.json": facts, "junit.xml": JUNIT, "exit": "0"})
    assert lab.main(["run", "running"]) == Kind.TOO_OLD.value
    assert (
        capsys.readouterr().out == "lab: running: too old, and told so: this kernel does not have bpf_new\n"
    )


FAILED = """<testsuites><testsuite>
<testcase classname="tests.bpf.test_one" name="test_a[4]"><failure/></testcase>
<testcase classname="tests.bpf.test_one" name="test_b"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize(("second", "code"), [("0", 0), ("1", 1)], ids=["passes", "fails"])
def test_a_test_that_failed_is_run_again_by_itself_in_a_new_machine(
    second: str, code: int, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = "tests/bpf/test_one.py::test_a[4]"
    guest(monkeypatch, **{"facts.json": json.dumps(FACTS), "junit.xml": FAILED, "exit": "1"})
    run, asked = lab.run, []

    def runs(target: lab.Target, tests: Sequence[str], *rest: Any, **named: Any) -> outcome.Result:
        asked.append(list(tests))
        result = run(target, tests, *rest, **named)
        guest(monkeypatch, **{"facts.json": json.dumps(FACTS), "junit.xml": JUNIT, "exit": second})
        return result

    monkeypatch.setattr(lab, "run", runs)
    assert lab.main(["run", "--again", "running", "tests/bpf"]) == code
    assert asked == [["tests/bpf"], [node]]
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith(f"{'failed twice, or one of them' if code else 'flaky'}: {node}")


def test_of_many_that_failed_none_is_run_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = '<testcase classname="tests.bpf.test_one" name="test_{}"><failure/></testcase>'
    junit = f"<testsuites><testsuite>{''.join(map(one.format, 'abcd'))}</testsuite></testsuites>"
    guest(monkeypatch, **{"facts.json": json.dumps(FACTS), "junit.xml": junit, "exit": "1"})
    assert lab.main(["run", "--again", "running"]) == Kind.FAILED.value
    assert len(outcome.cases((cache / "results/running/junit.xml").read_text())) == 4


@pytest.mark.parametrize(("code", "figures"), [("0", {"one": 300}), ("1", {"one": 100})])
def test_figures_are_recorded_if_all_tests_passed_and_else_left_as_they_were(
    code: str, figures: dict[str, int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S29."""
    guest(monkeypatch, **{"facts.json": json.dumps(FACTS), "junit.xml": JUNIT, "exit": code})
    assert lab.main(["run", "--record", "running"]) == int(code)
    assert verified.recorded("6.12.7") == figures
    monkeypatch.setenv(verified.RECORDING, "1")
    assert verified.recorded("6.12.7") == {}  # in the guest: it is compared with nothing


def test_another_architectures_column_is_recorded_and_the_verifiers_figures_stay(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S29. They are this architecture's, and what other runs are held to."""
    facts = json.dumps({**FACTS, "release": "6.12.7-arm64"})
    guest(monkeypatch, **{"facts.json": facts, "junit.xml": JUNIT, "exit": "0"})
    monkeypatch.setattr(lab, "find", lambda _: archive.Kernel("6.12.7-arm64", cache))
    monkeypatch.setattr(foreign.Foreign, "_prepare", lambda _: None)
    monkeypatch.setattr(foreign.Foreign, "command", lambda _, kernel, results, *more: [str(results)])
    figures = verified.RECORD.read_text()
    assert lab.main(["run", "--record", "--arch", "arm64", "6.12"]) == 0
    assert list(json.loads(columns.RECORD.read_text())) == ["6.12-arm64"]
    assert verified.RECORD.read_text() == figures


def test_what_came_out_of_cases_of_hosts_is_recorded_if_it_was_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared, "RECORD", cache / "compared.json")
    monkeypatch.setattr(compared, "PAGE", cache / "page.md")
    found = {"1 It is right.": {"gre": {"ebpf": "right"}}}
    files = {
        "facts.json": json.dumps(FACTS),
        "junit.xml": JUNIT,
        "exit": "0",
        "compared.json": json.dumps({"release": "6.12.7", "cases": found}),
    }
    guest(monkeypatch, **files)
    places = f"{compared.CASES_HERE}{compared.END}\n{compared.UPLINKS_HERE}{compared.END}\n"
    for words, recorded in (([], {}), (["--compare"], {"6.12": found})):
        compared.RECORD.write_text("{}")
        compared.PAGE.write_text(places)
        assert lab.main(["run", *words, "running"]) == 0
        assert json.loads(compared.RECORD.read_text()) == recorded
        assert ("| gre | not run | right on 6.12 |" in compared.PAGE.read_text()) == bool(recorded)


def test_a_series_without_figures_is_pointed_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.dumps({**FACTS, "release": "9.9.1"})
    guest(monkeypatch, **{"facts.json": facts, "junit.xml": JUNIT, "exit": "0"})
    assert lab.main(["run", "running"]) == 0
    assert "no verifier figures are recorded for 9.9" in capsys.readouterr().out


def test_what_was_not_written_to_its_end_counts_as_not_there(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guest(monkeypatch, **{"facts.json": '{"rel', "junit.xml": JUNIT[:20], "exit": ""})
    assert lab.main(["run", "running"]) == Kind.LOST.value
    assert "the machine was lost" in capsys.readouterr().out


def test_two_labs_with_one_kernel_do_not_share_their_results(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guest(monkeypatch, exit="0")
    with lab.results_of("running") as held:
        (held / "exit").write_text("1")
        assert lab.main(["run", "running"]) == Kind.UNPREPARED.value
        assert (held / "exit").read_text() == "1"
    assert capsys.readouterr().err.startswith("lab: a lab with running is running: wait for it")


def test_two_labs_of_another_architecture_do_not_share_its_root(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their kernels are. The second would take the tree away from the first."""
    monkeypatch.setattr(lab, "find", lambda _: archive.Kernel("6.12.7-arm64", cache))
    monkeypatch.setattr(lab, "_warm", lambda arguments, environment: None)
    monkeypatch.setattr(foreign.Foreign, "_prepare", lambda _: None)
    with foreign.Foreign(cache, ROOT).prepared():
        assert lab.main(["run", "--arch", "arm64", "6.1"]) == Kind.UNPREPARED.value
    assert capsys.readouterr().err.startswith("lab: a lab with arm64 is running, in the same root: wait")


def test_a_cache_that_cannot_be_written_is_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "results").symlink_to("/dev/full")
    assert lab.main(["run", "running", "tests/unit/test_lab.py"]) == Kind.UNPREPARED.value
    assert re.fullmatch(r"lab: .*\n", capsys.readouterr().err)


def test_a_reader_that_leaves_does_not_hold_the_machine(tmp_path: Path) -> None:
    """`make lab | head`: the machine would wait for ever to be read."""
    source, writer = os.pipe()
    gone, left = os.pipe()
    os.close(gone)
    os.write(writer, b"words")
    os.close(writer)
    with (
        (tmp_path / "kept").open("wb") as kept,
        os.fdopen(left, "wb", 0) as nobody,
        os.fdopen(source, "rb") as pipe,
    ):
        machine._copy(pipe, nobody, kept)
    assert (tmp_path / "kept").read_bytes() == b"words"


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ((Kind.UNFETCHED, Kind.FAILED, Kind.PASSED), Kind.FAILED),
        ((Kind.PASSED, Kind.TIMEOUT, Kind.PANIC), Kind.PANIC),
        ((Kind.PASSED, Kind.UNFETCHED), Kind.UNFETCHED),
        ((Kind.PASSED, Kind.PASSED), Kind.PASSED),
    ],
)
def test_the_matrix_ends_as_its_worst_kernel(
    kinds: tuple[Kind, ...], told: Kind, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter(kinds)

    def run(target: lab.Target, *_: object) -> outcome.Result:
        return outcome.Result(str(target), outcome.Outcome(next(ends), ""), COUNTS, {})

    monkeypatch.setattr(lab, "run", run)
    targets = [lab.Target(str(number)) for number in range(len(kinds))]
    monkeypatch.setitem(lab.MATRIX, "amd64", targets)
    assert lab.main(["matrix"]) == told.value


def junit(*cases: str) -> str:
    """`cases`: pytest's ids; what failed has an exclamation mark."""
    found = []
    for case in cases:
        node, _, failed = case.partition("!")
        path, *inner, name = node.split("::")
        classname = ".".join([path.removesuffix(".py").replace("/", "."), *inner])
        child = "<failure/>" if failed or case.endswith("!") else ""
        found.append(f'<testcase classname="{classname}" name="{name}">{child}</testcase>')
    return f"<testsuites><testsuite>{''.join(found)}</testsuite></testsuites>"


PORT = "tests/net/test_port.py::test_a_port"
KIND = "tests/net/test_kind.py::TestKind"
GONE = "tests/net/test_gone.py::test_gone"


@pytest.fixture
def selected(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A selection of two lines and a folder with one file; of arm64, five tests are recorded."""
    selection = cache / "selection.txt"
    selection.write_text(f"{PORT}\n{KIND}\ntests/some\n")
    (cache / "tests/some").mkdir(parents=True)
    (cache / "tests/some/test_one.py").touch()
    monkeypatch.setitem(lab.SELECTIONS, "amd64", selection)
    monkeypatch.setattr(columns, "ROOT", cache)
    others = {"parts": {"all": [5, 0, 0]}, "tests": [], "release": "6.12.7-arm64"}
    columns.RECORD.write_text(json.dumps({"6.12-arm64": others}))
    return cache


def recorded(kernel: str = "running") -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(columns.RECORD.read_text()).get(kernel, {}).get("parts", {})
    return found


def ran(
    monkeypatch: pytest.MonkeyPatch, *cases: str, tests: tuple[str, ...] = (), record: bool = True
) -> None:
    failed = any(case.endswith("!") for case in cases)
    guest(
        monkeypatch,
        **{"facts.json": json.dumps(FACTS), "junit.xml": junit(*cases), "exit": str(int(failed))},
    )
    words = ["--record"] if record else []
    assert lab.main(["run", *words, "running", *tests]) == int(failed)


def test_a_run_is_a_column_of_the_page_if_it_is_to_be_recorded(
    selected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = columns.PAGE.read_text()
    everything = (f"{PORT}[tcp]", f"{PORT}[udp]", f"{KIND}::test_it", "tests/some/test_one.py::test_one")
    ran(monkeypatch, *everything, record=False)
    assert columns.PAGE.read_text() == page
    ran(monkeypatch, *everything)
    assert recorded() == {PORT: [2, 0, 0], KIND: [1, 0, 0], "tests/some/test_one.py": [1, 0, 0]}
    assert (
        "| tests | 4 passed, 0 failed, 0 skipped | 5 passed, 0 failed, 0 skipped |"
        in columns.PAGE.read_text()
    )
    assert list(json.loads(columns.RECORD.read_text())) == ["running", "6.12-arm64"]


def test_a_column_may_be_recorded_in_parts_and_says_so_while_one_is_missing(
    selected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(monkeypatch, f"{PORT}[tcp]", f"{PORT}[udp]!", f"{KIND}::test_it")
    assert recorded() == {KIND: [1, 0, 0]}
    assert "| tests | 1 passed, 0 failed, 0 skipped, of a part of the selection |" in columns.PAGE.read_text()
    # Not the whole of what the selection has, and what it does not have.
    ran(monkeypatch, f"{PORT}[udp]", tests=(f"{PORT}[udp]",))
    ran(monkeypatch, GONE, tests=(GONE,))
    assert recorded() == {KIND: [1, 0, 0]}
    both = (f"{PORT}[tcp]", f"{PORT}[udp]", "tests/some/test_one.py::test_one")
    ran(monkeypatch, *both, tests=("tests/net/test_port.py", "tests/some"))
    assert "| tests | 4 passed, 0 failed, 0 skipped | 5 passed" in columns.PAGE.read_text()
    ran(monkeypatch, f"{PORT}[tcp]!", f"{PORT}[udp]", tests=(PORT,))
    assert recorded() == {KIND: [1, 0, 0], "tests/some/test_one.py": [1, 0, 0]}


def test_of_a_column_whose_parts_are_not_known_a_run_of_some_changes_the_figures_only(
    selected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"running": {"parts": {"all": [7, 0, 0]}, "tests": [], "programs": {"one": 1}}}
    columns.RECORD.write_text(json.dumps(old))
    ran(monkeypatch, f"{PORT}[tcp]", tests=(PORT,))
    assert recorded() == {"all": [7, 0, 0]}
    assert "| `one` | 300 |" in columns.PAGE.read_text()
    ran(monkeypatch, f"{PORT}[tcp]", tests=("--", "-k", "tcp"))
    ran(monkeypatch, f"{PORT}[tcp]")
    assert recorded() == {PORT: [1, 0, 0]}


def test_the_page_has_the_table_of_what_is_recorded() -> None:
    page = columns.PAGE.read_text()
    assert columns.written(page) == page
    assert [result.kernel for result in columns.recorded()] == [
        name for name in lab.COLUMNS if name in json.loads(columns.RECORD.read_text())
    ]


def test_of_a_kernel_that_said_nothing_the_table_says_nothing() -> None:
    rows = columns.table([outcome.Result("6.1", outcome.Outcome(Kind.LOST, ""), Counts(), {})]).splitlines()
    assert "| attached by |  |" in rows
    assert "| netkit |  |" in rows
    assert "| programs loaded |  |" in rows


def test_tests_that_were_asked_for_are_named_where_they_are_few() -> None:
    for asked, told in ((["one", "two"], "of one, of two |"), (["one"] * 4, "of 4 arguments |")):
        seen = outcome.Result("6.1", outcome.Outcome(Kind.PASSED, ""), COUNTS, {"tests": asked})
        assert columns.table([seen]).splitlines()[3].endswith(told)


def test_the_table_shows_what_was_last_seen_of_each_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    some = ["tests/bpf/test_one.py"]
    for kernel, tcx, figures, tests in (
        ("6.1", False, {"one": 1234}, []),
        ("6.12", True, {"one": 99, "two": 5}, some),
    ):
        results = tmp_path / "results" / kernel
        results.mkdir(parents=True)
        seen = {"kernel": kernel, "outcome": "PASSED", "line": "", **COUNTS._asdict()}
        facts = {"release": f"{kernel}.7", "tcx": tcx, "netkit": tcx, "programs": figures}
        facts |= {"tests": tests, "skipped_for": [] if tcx else ["this kernel has no tcx"]}
        (results / "result.json").write_text(json.dumps({**seen, **facts}))
    assert lab.main(["table"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["", "6.1.7", "6.12.7"],
        ["---", "---:", "---:"],
        ["outcome", "passed", "passed"],
        ["tests", str(COUNTS), f"{COUNTS}, of {some[0]}"],
        ["skipped for", "this kernel has no tcx", ""],
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
    lines = [line for path in lab.SELECTIONS.values() for line in path.read_text().splitlines()]
    for line in lines:
        path, *names = re.sub(r"\[.*", "", line).split("::")
        assert (ROOT / path).exists(), line
        if names:
            defined = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(n, "name")}
            assert set(names) <= defined, line
