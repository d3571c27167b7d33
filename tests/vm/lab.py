# SPDX-License-Identifier: Apache-2.0
"""The kernel lab: boots a kernel of Debian's archive, or an image of one's own, and runs the tests in it.

    python -m tests.vm.lab run [--record] 6.12 [TEST…]
    python -m tests.vm.lab shell 6.12
    python -m tests.vm.lab matrix
    python -m tests.vm.lab table

The exit code is 0 if all tests passed, else that of `outcome.Kind`. docs/lab.md tells the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.vm import archive, machine, outcome, verified
from tests.vm.archive import Archive, Kernel, UnpreparedError
from tests.vm.outcome import Kind, Outcome

TREE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("LAB_CACHE") or TREE / ".lab")
SELECTION = Path(__file__).with_name("selection.txt")
RUNNING = "running"
MATRIX = ("6.1", "6.12", "7", RUNNING)
TIMEOUT = 3600.0
SLOWNESS = 10  # how much longer the tests wait for something in an emulated machine


class NoSuchTestsError(Exception):
    """pytest does not find what it was told to run."""


class Result(NamedTuple):
    """What is told about one kernel."""

    kernel: str
    outcome: Outcome
    counts: outcome.Counts
    facts: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lab", description="Run the tests in a machine with another kernel."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run the tests in one kernel")
    shell = commands.add_parser("shell", help="a shell, beside two containers")
    everything = commands.add_parser("matrix", help="run the tests in every kernel of the matrix")
    commands.add_parser("table", help="what was last seen of every kernel of the matrix")
    for sub in (one, shell):
        sub.add_argument("kernel", help=f"6.12, 7 (the newest 7.x), {RUNNING}, or the path of a bzImage")
    for sub in (one, everything):
        sub.add_argument(
            "--record", action="store_true", help="take what the verifier counted as the figures"
        )
        sub.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS")
    one.add_argument("tests", nargs="*", help="files, folders or ids; default: tests/vm/selection.txt")
    asked = parser.parse_args(argv)
    os.chdir(TREE)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if asked.command == "shell":
            return _shell(asked.kernel)
        if asked.command == "run":
            result = run(asked.kernel, asked.tests, asked.timeout, asked.record)
            print(f"lab: {result.kernel}: {result.outcome.line}", flush=True)
            return int(result.outcome.kind.value)
        if asked.command == "table":
            print(table([seen for name in MATRIX if (seen := _last(name))]), end="")
            return int(Kind.PASSED.value)
        return _matrix(asked.timeout, asked.record)
    except UnpreparedError as error:
        print(f"lab: {error}", file=sys.stderr)
        return Kind.UNPREPARED.value
    except NoSuchTestsError as error:
        print(f"lab: {error}", file=sys.stderr)
        return Kind.WRONG_CALL.value
    except KeyboardInterrupt:
        print("lab: interrupted; the machine is gone", file=sys.stderr)
        return Kind.INTERRUPTED.value


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# ---- one kernel ----------------------------------------------------------------------


def find(name: str) -> Kernel:
    """UnpreparedError: there is no such kernel, or nothing that could run it."""
    if missing := machine.missing():
        raise UnpreparedError(f"{', '.join(missing)}: not there; `make lab` installs it as root")
    path = Path(name)
    if path.is_file():
        return Kernel("", path.resolve())
    if not archive.numbers(name) or "/" in name:
        raise UnpreparedError(f"{name} is neither a version such as 6.12 nor a kernel image")
    return Archive(CACHE).kernel(name)


def run(name: str, tests: Sequence[str], timeout: float, record: bool) -> Result:
    """Runs the tests in that kernel and keeps everything in the folder of its results."""
    results = _results(name)
    arguments = list(tests) or [f"@{SELECTION}"]
    _warm(arguments)
    guest = [sys.executable, "-m", "tests.vm.guest", str(results), *arguments]
    began = time.monotonic()
    if name == RUNNING:
        timed_out = False
        try:
            subprocess.run([*machine.KEEPER, *guest], check=False, timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        ended = machine.Ended("", timed_out, time.monotonic() - began)
    else:
        kernel = find(name)
        if record and kernel.release:
            verified.record(kernel.release, {})  # what is about to be replaced is compared with nothing
        kvm = machine.has_kvm(kernel)
        print(f"lab: booting {kernel.image.name}, {'KVM' if kvm else 'software emulation'}", flush=True)
        slow = [] if kvm else ["env", f"TEST_SLOWNESS={SLOWNESS}"]
        argv = [
            *machine.command(kernel, results, kvm),
            "--",
            shlex.join([str(TREE / "tests/vm/cached.sh"), *slow, *guest]),
        ]
        ended = machine.run(argv, results / "console.log", timeout)
    result = _judge(name, results, ended)
    if record and result.facts.get("programs"):
        verified.record(result.facts["release"], result.facts["programs"])
    return result


def _folder(name: str) -> Path:
    return CACHE / "results" / name.strip("/").replace("/", "_")


def _results(name: str) -> Path:
    """An empty folder for what comes out."""
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def _warm(arguments: Sequence[str]) -> None:
    """Collects the tests here first: the guest reads them compiled, and a name that is wrong costs no boot."""
    argv = [sys.executable, "-m", "pytest", "-q", "-q", "--collect-only", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoSuchTestsError(
            f"pytest cannot collect {' '.join(arguments)}: {outcome.last_line(done.stdout)}"
        )


def _judge(name: str, results: Path, ended: machine.Ended) -> Result:
    """Reads what the guest left, and writes result.json beside it."""
    read = {file: _text(results / file) for file in ("exit", "junit.xml", "facts.json")}
    facts: dict[str, Any] = json.loads(read["facts.json"] or "{}")
    counts, skipped = outcome.count(read["junit.xml"]) if read["junit.xml"] else (outcome.Counts(), [])
    code = int(read["exit"]) if read["exit"].strip() else None
    told = outcome.classify(code, ended.console, counts, ended.seconds, ended.timed_out)
    if told.kind is Kind.PASSED and (unnamed := outcome.unnamed(skipped)):
        told = Outcome(Kind.FAILED, f"a skip names no feature that the kernel lacks: {unnamed[0]}")
    if told.kind is Kind.PASSED and facts.get("refused"):
        told = Outcome(Kind.PASSED, f"too old, and told so: {facts['refused']}")
    summary = {
        "kernel": name,
        "outcome": told.kind.name,
        "line": told.line,
        "seconds": round(ended.seconds),
        **counts._asdict(),
        "skipped_for": skipped,
        "warnings": outcome.warnings(ended.console),
        **facts,
    }
    (results / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    for line in summary["warnings"]:
        print(f"lab: {name}: the kernel complained: {line}")
    return Result(name, told, counts, facts)


def _last(name: str) -> Result | None:
    """What the last run in that kernel came to."""
    text = _text(_folder(name) / "result.json")
    if not text:
        return None
    read = json.loads(text)
    told = Outcome(Kind[read["outcome"]], read["line"])
    return Result(name, told, outcome.Counts(*(read[field] for field in outcome.Counts._fields)), read)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# ---- a shell -------------------------------------------------------------------------


def _shell(name: str) -> int:
    kernel = find(name)
    kvm = machine.has_kvm(kernel)
    results = _results("shell")
    argv = machine.command(kernel, results, kvm, ["--shell", str(TREE / "tests/vm/shell.sh")])
    return subprocess.run([*machine.KEEPER, *argv], env=machine.environment(), check=False).returncode


# ---- the matrix ----------------------------------------------------------------------


def _matrix(timeout: float, record: bool) -> int:
    results = []
    for name in MATRIX:
        try:
            results.append(run(name, (), timeout, record))
        except UnpreparedError as error:
            results.append(Result(name, Outcome(Kind.UNPREPARED, str(error)), outcome.Counts(), {}))
        print(f"lab: {name}: {results[-1].outcome.line}", flush=True)
        (CACHE / "matrix.md").write_text(table(results))  # what was seen stays, if the next is interrupted
    print(table(results), end="")
    return max(result.outcome.kind.value for result in results)


def table(results: Sequence[Result]) -> str:
    """Kernels as columns, what is told about them as rows."""
    programs = sorted({program for result in results for program in result.facts.get("programs", {})})
    rows = [
        ["", *(result.facts.get("release", result.kernel) for result in results)],
        ["---", *("---:" for _ in results)],
        ["outcome", *(result.outcome.kind.name.lower() for result in results)],
        ["tests", *(str(result.counts) for result in results)],
        ["attached by", *("tcx" if result.facts.get("tcx") else "clsact" for result in results)],
        ["netkit", *("yes" if result.facts.get("netkit") else "no" for result in results)],
        ["programs loaded", *(str(len(result.facts.get("programs", {}))) for result in results)],
    ]
    for program in programs:
        figures = (result.facts.get("programs", {}).get(program) for result in results)
        rows.append([f"`{program}`", *(f"{figure:,}" if figure else "" for figure in figures)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
