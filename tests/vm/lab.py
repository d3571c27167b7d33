# SPDX-License-Identifier: Apache-2.0
"""The kernel lab: boots a kernel of Debian's archive, or an image of one's own, and runs the tests in it.

    python -m tests.vm.lab run [--record] [--again] [--arch arm64 [--flavour 16k]] 6.12 [TEST…]
    python -m tests.vm.lab shell 6.12
    python -m tests.vm.lab matrix [--record] [--arch arm64] [TEST…]
    python -m tests.vm.lab table

The exit code is 0 if all tests passed, else that of `outcome.Kind`. docs/lab.md tells the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.again import FLAKY
from tests.net import compared
from tests.net.compare import VARIABLE as COMPARING
from tests.vm import archive, columns, foreign, machine, outcome, verified
from tests.vm.archive import Archive, Kernel
from tests.vm.outcome import Kind, LabError, Outcome, Result, WrongCallError

TREE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("LAB_CACHE") or TREE / ".lab").resolve()
# What is run where nothing else is said: emulated processors take the ten-fold.
SELECTIONS = {
    "amd64": Path(__file__).with_name("selection.txt"),
    "arm64": Path(__file__).with_name("selection-arm64.txt"),
}
RUNNING = "running"
TIMEOUT = 3600.0
SLOWNESS = 10  # how much longer the tests wait for something in an emulated machine
PASSED_ON = ("DATAPATH_ATTACH", "TEST_DEVICE", "TEST_PATIENCE")  # what the tests read from the environment
VERSION = re.compile(r"(\d+(?:\.\d+)*(?:[-+~][\w.+~-]*)?)")


class Target(NamedTuple):
    """A kernel to run the tests in: a version or a path, its architecture, and its flavour."""

    kernel: str
    architecture: str = archive.ARCHITECTURE
    flavour: str = ""

    @property
    def foreign(self) -> bool:
        return self.architecture != archive.ARCHITECTURE

    def __str__(self) -> str:
        return "-".join(filter(None, (self.kernel, self.architecture if self.foreign else "", self.flavour)))


# The kernels that `matrix` runs, by architecture: the table's columns.
MATRIX = {
    "amd64": tuple(map(Target, ("6.1", "6.12", "7", RUNNING))),
    "arm64": (Target("6.1", "arm64"), Target("6.12", "arm64"), Target("6.12", "arm64", "16k")),
}
COLUMNS = tuple(str(target) for targets in MATRIX.values() for target in targets)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lab", description="Run the tests in a machine with another kernel."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run the tests in one kernel")
    one.add_argument("--flavour", default="", help="of arm64's kernels: 16k has pages of 16 KiB")
    shell = commands.add_parser("shell", help="a shell, beside two containers")
    everything = commands.add_parser("matrix", help="run the tests in every kernel of the matrix")
    commands.add_parser("table", help="what was last seen of every kernel of the matrix")
    for sub in (one, shell):
        sub.add_argument("kernel", help=f"6.12, 7 (the newest 7.x), {RUNNING}, or the path of a bzImage")
    one.add_argument(
        "--again",
        action="store_true",
        help=f"up to {FLAKY} tests that fail are run once more, in a new machine: if all pass there they are flaky",
    )
    one.add_argument(
        "--compare",
        action="store_true",
        help="run cases of hosts in the kernel's own way too, and record both",
    )
    for sub in (one, everything):
        sub.add_argument("--arch", choices=archive.ARCHITECTURES, default=archive.ARCHITECTURE)
        sub.add_argument(
            "--record",
            action="store_true",
            help="record what the verifier counted, and without TESTS the column of the table",
        )
        sub.add_argument("--timeout", type=seconds, default=TIMEOUT, metavar="SECONDS")
        sub.add_argument("tests", nargs="*", help="files, folders or ids; default: tests/vm/selection*.txt")
    asked = parser.parse_args(argv)
    os.chdir(TREE)
    heed_signals()
    try:
        if asked.command == "table":
            print(columns.table([seen for name in COLUMNS if (seen := _last(name))]), end="")
            return int(Kind.PASSED.value)
        check()
        if asked.command == "shell":
            return _shell(asked.kernel)
        if asked.command == "run":
            target = Target(asked.kernel, asked.arch, asked.flavour)
            result = run(target, asked.tests, asked.timeout, asked.record, asked.compare)
            print(f"lab: {result.kernel}: {result.outcome.line}", flush=True)
            if asked.again and result.outcome.kind is Kind.FAILED:
                result = _again(target, result, asked.timeout)
            return int(result.outcome.kind.value)
        return _matrix(MATRIX[asked.arch], asked.tests, asked.timeout, asked.record)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return int(error.kind.value)
    except OSError as error:
        print(f"lab: {error}", file=sys.stderr)
        return Kind.UNPREPARED.value
    except KeyboardInterrupt:
        print("lab: interrupted; the machine is gone", file=sys.stderr)
        return Kind.INTERRUPTED.value


def heed_signals() -> None:
    """Who is told to end takes the machine away first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def seconds(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(text)
    return number


def check() -> None:
    """What no kernel would run under. WrongCallError."""
    if os.geteuid() != 0:
        raise WrongCallError("the lab needs root, as the tests do")
    for path in (TREE, CACHE):
        if re.search(r"\s", str(path)):
            raise WrongCallError(f"{path}: virtme-ng knows no path with a blank; choose another place")
    inside = CACHE.relative_to(TREE).parts if CACHE.is_relative_to(TREE) else (".",)
    if not inside or not inside[0].startswith("."):
        raise WrongCallError(
            f"LAB_CACHE={CACHE}: the machine sees this tree unchanging; choose a folder elsewhere"
        )


# ---- one kernel ----------------------------------------------------------------------


def find(target: Target) -> Kernel:
    """The image of that kernel, fetched if it has to be. WrongCallError, UnfetchedError, LabError."""
    name = target.kernel
    if missing := foreign.missing() if target.foreign else machine.missing():
        arch = f" ARCH={target.architecture}" if target.foreign else ""
        raise LabError(f"{', '.join(missing)}: not there; `make lab-deps{arch}` installs it")
    if target.foreign and not VERSION.fullmatch(name):
        raise WrongCallError(
            f"{name or 'KERNEL='} is no version such as 6.12, which ARCH={target.architecture} takes"
        )
    path = Path(name)
    if path.is_file():
        if re.search(r"\s", str(path.resolve())):
            raise WrongCallError(f"{path}: virtme-ng knows no path with a blank")
        if not machine.is_image(path):
            raise WrongCallError(f"{name} is no kernel image")
        return Kernel("", path.resolve())
    if not VERSION.fullmatch(name):
        raise WrongCallError(f"{name or 'KERNEL='} is neither a version such as 6.12 nor a kernel image")
    store = Archive(CACHE, target.architecture, target.flavour)
    return store.kernel(name.removesuffix(f"-{target.architecture}"))


def run(target: Target, tests: Sequence[str], timeout: float, record: bool, compare: bool = False) -> Result:
    """Runs the tests in that kernel and keeps everything in the folder of its results. `record`: the verifier's
    figures are, of this architecture, and the column of the table. `compare`: cases of hosts are, see
    `tests.net.compared`. LabError, OSError."""
    name = str(target)
    if compare and target.foreign:
        raise WrongCallError(f"cases of hosts are recorded of {archive.ARCHITECTURE}")
    counting = record and not target.foreign
    kernel = None if name == RUNNING else find(target)
    arguments = list(tests) or [f"@{SELECTIONS[target.architecture]}"]
    left = _folder(name) / "compared.json"
    comparing = {COMPARING: str(left)} if compare else {}
    _warm(arguments, comparing)
    with results_of(name) as results, contextlib.ExitStack() as stack:
        given = [f"{word}={os.environ[word]}" for word in PASSED_ON if word in os.environ]
        given += [f"{verified.RECORDING}=1"] if counting else []
        given += [f"{word}={value}" for word, value in comparing.items()]
        chosen = results / "tests"  # a kernel's command line has an end, at which the machine panics
        chosen.write_text("".join(f"{argument}\n" for argument in arguments))
        guest = [sys.executable, "-m", "tests.vm.guest", str(results), f"@{chosen}"]
        if kernel is None:
            argv = ["env", *given, *guest]
        elif target.foreign:
            given.append(f"TEST_SLOWNESS={SLOWNESS}")
            other = foreign.Foreign(CACHE, TREE)
            stack.enter_context(other.prepared())
            inside = [
                "env",
                *given,
                "python3",
                "-m",
                "tests.vm.guest",
                "/results",
                f"@/results/{chosen.name}",
            ]
            memory = os.environ.get("LAB_MEMORY", machine.MEMORY)
            print(f"lab: booting {kernel.image.name}, software emulation", flush=True)
            argv = other.command(kernel, results, inside, machine.CPUS, memory)
        else:
            kvm = machine.has_kvm(kernel)
            print(f"lab: booting {kernel.image.name}, {'KVM' if kvm else 'software emulation'}", flush=True)
            given += [] if kvm else [f"TEST_SLOWNESS={SLOWNESS}"]
            command = [str(TREE / "tests/vm/cached.sh"), "env", *given, *guest]
            argv = [*machine.command(kernel, results, kvm), "--", shlex.join(command)]
        result = _judge(name, tests, results, machine.run(argv, results, timeout))
    release, figures = result.facts.get("release", ""), result.facts.get("programs")
    passed = result.outcome.kind is Kind.PASSED
    chosen_by_options = any(test.startswith("-") for test in tests)
    if record and (passed or result.counts.failed) and name in COLUMNS and not chosen_by_options:
        junit = _text(_folder(name) / "junit.xml")
        columns.record(result, junit, tests, SELECTIONS[target.architecture], COLUMNS)
    if counting and figures and passed:
        verified.record(release, figures)
    elif figures and not verified.recorded(release):
        print(f"lab: {name}: no verifier figures are recorded for {verified.series(release)}: see RECORD")
    if compare:
        compared.take_in(left, whole=False)
    return result


def _again(target: Target, result: Result, timeout: float) -> Result:
    """What it came to with those tests run by themselves that had failed, if these are few."""
    found = outcome.cases(_text(_folder(result.kernel) / "junit.xml"))
    failed = list(dict.fromkeys(case.node for case in found if case.counts.failed))
    if not 0 < len(failed) <= FLAKY:
        return result
    print(f"lab: {result.kernel}: once more, by themselves: {' '.join(failed)}", flush=True)
    second = run(target, failed, timeout, record=False)
    flaky = second.outcome.kind is Kind.PASSED
    said = "flaky" if flaky else "failed twice, or one of them"
    print(f"lab: {result.kernel}: {second.outcome.line}; {said}: {' '.join(failed)}", flush=True)
    return second if flaky else result


def _folder(name: str) -> Path:
    return CACHE / "results" / name.strip("/").replace("/", "_")


@contextlib.contextmanager
def results_of(name: str) -> Iterator[Path]:
    """An empty folder for what comes out, ours alone. LabError: another lab has it."""
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError(f"a lab with {name} is running: wait for it, or give LAB_CACHE") from error
        for old in folder.iterdir():
            old.unlink()
        yield folder
    finally:
        os.close(held)


def _warm(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Collects the tests here first: the guest reads them compiled, and a name that is wrong costs no boot."""
    argv = [sys.executable, "-m", "pytest", "-q", "-q", "--collect-only", *arguments]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        said = outcome.last_line(done.stdout + done.stderr)
        raise WrongCallError(f"pytest cannot collect {' '.join(arguments)}: {said}")


def _judge(name: str, tests: Sequence[str], results: Path, ended: machine.Ended) -> Result:
    """Reads what the guest left, and writes result.json beside it. What was not written to its end counts as not
    there."""
    facts = _json(results / "facts.json")
    junit, exit_code = _text(results / "junit.xml"), _text(results / "exit").strip()
    counts, skipped = outcome.count(junit) if junit else (outcome.Counts(), [])
    code = int(exit_code) if exit_code.isdecimal() else None
    told = outcome.classify(code, ended.console, counts, ended.seconds, ended.timed_out)
    if told.kind is Kind.PASSED and (unnamed := outcome.unnamed(skipped)):
        told = Outcome(Kind.FAILED, f"a skip names no feature that the kernel lacks: {unnamed[0]}")
    if told.kind is Kind.PASSED and facts.get("refused"):
        told = Outcome(Kind.TOO_OLD, f"too old, and told so: {facts['refused']}")
    facts |= {"tests": list(tests), "skipped_for": skipped, "warnings": outcome.warnings(ended.console)}
    summary = {
        "kernel": name,
        "outcome": told.kind.name,
        "line": told.line,
        "seconds": round(ended.seconds),
        **counts._asdict(),
        **facts,
    }
    (results / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    for line in facts["warnings"]:
        print(f"lab: {name}: the kernel complained: {line}")
    return Result(name, told, counts, facts)


def _last(name: str) -> Result | None:
    """What the last run in that kernel came to."""
    read = _json(_folder(name) / "result.json")
    if not read:
        return None
    told = Outcome(Kind[read["outcome"]], read["line"])
    return Result(name, told, outcome.Counts(*(read[field] for field in outcome.Counts._fields)), read)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    """Nothing, if it was not written to its end."""
    try:
        read: dict[str, Any] = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return read


# ---- a shell -------------------------------------------------------------------------


def _shell(name: str) -> int:
    """Its exit code, or that of virtme-ng if there came no shell."""
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        if name == RUNNING:
            argv = [sys.executable, "-m", "tests.vm.shell"]
        else:
            kernel = find(Target(name))
            kvm = machine.has_kvm(kernel)
            argv = machine.command(kernel, Path(scratch), kvm, ["--shell", str(TREE / "tests/vm/shell.sh")])
        environment = {**machine.environment(), "TMPDIR": scratch}
        return subprocess.run([*machine.KEEPER, *argv], env=environment, check=False).returncode


# ---- the matrix ----------------------------------------------------------------------


def _matrix(targets: Sequence[Target], tests: Sequence[str], timeout: float, record: bool) -> int:
    results: list[Result] = []
    for target in targets:
        name = str(target)
        try:
            results.append(run(target, tests, timeout, record))
        except LabError as error:
            results.append(Result(name, Outcome(error.kind, str(error)), outcome.Counts(), {}))
        print(f"lab: {name}: {results[-1].outcome.line}", flush=True)
        (CACHE / "matrix.md").write_text(
            columns.table(results)
        )  # what was seen stays, if the next is interrupted
    print(columns.table(results), end="")
    kinds = {result.outcome.kind for result in results}
    return int(next(kind for kind in outcome.SEVERITY if kind in kinds).value)


if __name__ == "__main__":
    sys.exit(main())
