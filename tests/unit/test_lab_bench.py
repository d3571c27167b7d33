# SPDX-License-Identifier: Apache-2.0
"""The benchmark in the kernel lab: what is asked of the machine, and what its end is called."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from ctl.cli import main
from tests.vm import benched, lab, machine
from tests.vm.archive import Kernel
from tests.vm.outcome import Kind


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, on a machine that has what the lab needs, and a kernel."""
    monkeypatch.setattr(lab, "CACHE", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(machine, "missing", list)
    monkeypatch.setattr(machine, "has_kvm", lambda _: False)
    monkeypatch.setattr(lab, "find", lambda _: Kernel("6.12.7", tmp_path / "vmlinuz"))
    return tmp_path


def booted(
    monkeypatch: pytest.MonkeyPatch, exit_code: str | None, console: str = "", timed_out: bool = False
) -> list[str]:
    """The machine ends so; what it was to run, once it has."""
    asked: list[str] = []

    def run(argv: Sequence[str], results: Path, timeout: float) -> machine.Ended:
        asked[:] = shlex.split(argv[-1])
        if exit_code is not None:
            (results / "exit").write_text(exit_code)
        return machine.Ended(console, timed_out, 60.0)

    monkeypatch.setattr(machine, "run", run)
    return asked


@pytest.mark.parametrize(
    ("exit_code", "console", "kind", "said"),
    [
        ("0\n", "", Kind.PASSED, "measured in 60 s: "),
        ("1\n", "", Kind.FAILED, "bench run ended with 1: see "),
        ("", "", Kind.LOST, "the machine was lost"),
        (None, "", Kind.LOST, "the machine was lost"),
        ("0\n", "Kernel panic - not syncing: x", Kind.PANIC, "the kernel panicked"),
    ],
)
def test_the_end_of_a_benchmark_in_a_machine_is_told(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exit_code: str | None,
    console: str,
    kind: Kind,
    said: str,
) -> None:
    booted(monkeypatch, exit_code, console)
    assert benched.main(["6.12"]) == kind.value
    assert f"lab: benchmark in 6.12: {said}" in capsys.readouterr().out


def test_a_benchmark_that_takes_too_long_is_a_time_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booted(monkeypatch, None, timed_out=True)
    assert benched.main(["--timeout", "5", "6.12"]) == Kind.TIMEOUT.value


def test_the_machine_is_given_the_options_and_reports_into_the_folder_of_its_results(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = booted(monkeypatch, "0")
    folder = str(cache / "results/bench-6.12")
    for options in (["--suite", "dns", "--filter", "a b"], []):
        assert benched.main(["6.12", *options]) == 0
        wanted = options or list(benched.REDUCED)
        assert asked[-len(wanted) - 2 :] == ["--in", folder, *wanted]


def test_the_reduced_form_is_one_row_of_connections_beside_rules_and_ipvs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `bench run` understands it."""
    options = dict(zip(benched.REDUCED[::2], benched.REDUCED[1::2], strict=True))
    chosen = ["--suite", options["--suite"], "--modes", options["--modes"], "--filter", options["--filter"]]
    assert main.run(["bench", "ls", *chosen, "--format", "{{.Experiment}}: {{.Modes}}"]) == 0
    assert capsys.readouterr().out == "tcp_connect container-service services=1: ebpf,iptables,ipvs\n"


def test_who_is_not_root_is_told_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert benched.main(["6.12"]) == Kind.WRONG_CALL.value
    assert capsys.readouterr().err == "lab: the lab needs root, as the tests do\n"
