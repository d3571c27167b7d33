# SPDX-License-Identifier: Apache-2.0
"""datapathctl bench …"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datapath.errors import ConfigError, DatapathError, NotFoundError, printable, quoted

from . import completing
from .command import Command, Group, Number, PathType, format_option, warn
from .errors import ended
from .output import emit, folded, listing, table
from .progress import showing

if TYPE_CHECKING:
    from datapath.bench.model import Experiment, Run, Suite, SuiteFactory
    from datapath.bench.runner import Outcome
    from datapath.bench.tables import Table

RESULTS = "results.json"
ALL_SUITES = "full"
ALL = (
    "ebpf,iptables,nftables,docker-datapath,docker,none,aardvark,dnsmasq,unbound,direct,routed,vxlan,macvlan,"
    "ipvs,nginx,haproxy,dsr"
)
EXPERIMENTS = {
    "Suite": "SUITE",
    "Experiment": "EXPERIMENT",
    "Title": "TITLE",
    "Unit": "UNIT",
    "Modes": "MODES",
}


@click.group("bench", cls=Group)
def bench() -> None:
    """Compare with iptables, nftables and Docker."""
    if importlib.util.find_spec("datapath.bench") is None:
        raise ConfigError("bench is a package of its own: apt install datapath-bench")


def registry() -> Mapping[str, SuiteFactory]:
    """The suites that there are, by name."""
    from datapath.bench.suites import SUITES

    return SUITES


suite_option = click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    shell_complete=completing.among(lambda ctx: [*registry(), ALL_SUITES]),
    help="Only this suite; may be repeated (default: full).",
)
modes_option = click.option(
    "--modes",
    default=ALL,
    metavar="MODE,…",
    shell_complete=completing.words(*ALL.split(","), comma=True),
    help=f"Modes to measure (default: {ALL}).",
)
filter_option = click.option(
    "--filter",
    "words",
    default="",
    metavar="WORDS",
    help="Only experiments whose name contains all WORDS; KEY=VALUE is a whole word of it.",
)


class Rounds(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # it has none before click 8.4
    """N, N,M or N,M,K, all of them 1 or more."""

    name = "rounds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 10]
        if len(words) > 3 or len(numbers) < len(words) or 0 in numbers:
            self.fail(f"{value!r} is not one to three numbers above 0, with commas between.", param, ctx)
        return tuple(numbers)


@bench.command("run", cls=Command)
@suite_option
@modes_option
@click.option(
    "--seconds",
    type=Number(),
    default=1.0,
    metavar="N",
    help="Duration of one sample in seconds (default: 1).",
)
@click.option(
    "--rounds",
    type=Rounds(),
    default="30",
    metavar="N[,M[,K]]",
    help="Maximum number of rounds (default: 30); M for experiments without a target, K for points of sweeps.",
)
@click.option(
    "--tight",
    type=Number(),
    default=2.0,
    metavar="PCT",
    help="Stop when every 95% confidence interval is within ±PCT% (default: 2).",
)
@click.option(
    "--budget", type=Number(), default=60.0, metavar="MIN", help="Maximum duration in minutes (default: 60)."
)
@click.option(
    "--out",
    type=PathType(path_type=Path),
    metavar="DIR",
    help="Output directory (default: bench-DATE-TIME).",
)
@filter_option
@click.option("--docker", default="docker", metavar="PROGRAM", help="Docker client (default: docker).")
@click.option(
    "--dockerd",
    default="dockerd",
    metavar="PATH",
    help="Docker daemon, or the root directory of a system that has one (default: dockerd).",
)
def run(
    *,
    suites: tuple[str, ...],
    modes: str,
    seconds: float,
    rounds: tuple[int, ...],
    tight: float,
    budget: float,
    out: Path | None,
    words: str,
    docker: str,
    dockerd: str,
) -> None:
    """Run benchmarks and write a report.

    Prints tables and writes results.json, report.html and plots. The modes are measured in turns (A B C, B C A,
    C A B, …) until the ratios between them are precise enough. Ctrl-C ends the run and writes what was measured.
    """
    from datapath.bench.measure import in_pid_namespace, measure
    from datapath.bench.runner import Bounds

    others, swept = (*rounds[1:], 0, 0)[:2]
    bounds = Bounds(tight=tight / 100, rounds=rounds[0], budget=60 * budget, others=others, swept=swept)
    wanted_modes = _modes(modes)
    names = _names(suites)
    command = [
        "datapathctl",
        "bench",
        "run",
        *(word for name in suites or (ALL_SUITES,) for word in ("--suite", name)),
    ]
    command += [
        "--modes",
        ",".join(wanted_modes),
        "--seconds",
        f"{seconds:g}",
        "--rounds",
        ",".join(map(str, rounds)),
    ]
    command += ["--tight", f"{tight:g}", "--budget", f"{budget:g}", *(["--filter", words] if words else [])]
    folder = _folder(out)
    with _built(names, wanted_modes, seconds, docker, dockerd) as built:
        _check(built, words)
        own_pid_namespace = any(getattr(suite, "own_pid_namespace", False) for suite in built)

    def work() -> int:
        with _built(names, wanted_modes, seconds, docker, dockerd) as built:
            folder.mkdir(parents=True, exist_ok=True)
            with showing() as show:
                found, outcome = measure(
                    built, bounds, command, show, lambda asked: matches(asked, words), (docker, dockerd)
                )
        _keep(found, folder)
        _raise(outcome)
        return 0

    # In a PID namespace it can leave nothing behind, even if it is killed; errors are reported inside.
    click.get_current_context().exit(in_pid_namespace(lambda: ended(work)) if own_pid_namespace else work())


@bench.command("ls", cls=Command)
@suite_option
@modes_option
@filter_option
@format_option(field="Experiment")
def ls(suites: tuple[str, ...], modes: str, words: str, format_: str) -> None:
    """List the experiments."""
    with _built(_names(suites), _modes(modes), 1.0, "docker", "dockerd") as built:
        rows = [
            {
                "Suite": suite.name,
                "Experiment": experiment.point.label,
                "Title": experiment.title,
                "Unit": experiment.unit,
                "Modes": ",".join(experiment.modes),
            }
            for suite in built
            for experiment in suite.experiments()
            if matches(experiment, words)
        ]
    emit(listing(rows if format_ else folded(rows, EXPERIMENTS, ("Title",)), EXPERIMENTS, format_))


@bench.command("compare", cls=Command)
@click.argument("before", type=PathType(path_type=Path), metavar="A.json")
@click.argument("after", type=PathType(path_type=Path), metavar="B.json")
@format_option(field="Verdict")
def compare(before: Path, after: Path, format_: str) -> None:
    """Compare two runs.

    Exit code 1 if B is worse: if one of its ratios to iptables or to no container is worse than in A by more than
    5%, and beyond both confidence intervals.
    """
    from datapath.bench import tables
    from datapath.bench.compare import compare
    from datapath.bench.results import read

    found = compare(read(before), read(after))
    if not found.changes:
        raise ConfigError(f"{before} and {after} have nothing in common that could be compared")
    shown = tables.compared(found)
    if format_:
        columns = {heading.title().replace(" ", ""): heading for heading in shown.headings}
        emit(listing([dict(zip(columns, row, strict=True)) for row in shown.rows], columns, format_))
    else:
        _show(shown)
    for path, labels in ((before, found.only_before), (after, found.only_after)):
        for label in labels:
            warn(f"only in {path}: {label}")
    if found.regressions:
        worse = dict.fromkeys(change.point.label for change in found.regressions)
        raise DatapathError(f"worse than before: {', '.join(worse)}")


@bench.command("report", cls=Command)
@click.argument("file", type=PathType(path_type=Path), metavar="FILE")
@click.option(
    "--out", type=PathType(path_type=Path), metavar="DIR", help="Output directory (default: that of FILE)."
)
def report(file: Path, out: Path | None) -> None:
    """Write the report of a run again.

    Prints the tables of FILE, a results.json, and writes report.html and plots.
    """
    from datapath.bench import page
    from datapath.bench.results import read

    found = read(file)
    _print(found)
    folder = out or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in page.write(found, folder):
        click.echo(printable(str(path)), err=True)


# ---- what was asked for -----------------------------------------------------------------------


def _names(asked: Sequence[str]) -> tuple[str, ...]:
    """The suites that these names stand for, each once."""
    from datapath.bench.suites import FULL

    known = registry()
    full = tuple(name for name in FULL if name in known) or tuple(known)
    found: list[str] = []
    for name in asked or (ALL_SUITES,):
        if name not in known and name != ALL_SUITES:
            there = ", ".join((*known, ALL_SUITES))
            raise NotFoundError(f"no suite is called {quoted(name)}; there are: {there}")
        found += full if name == ALL_SUITES else (name,)
    return tuple(dict.fromkeys(found))


def _modes(asked: str) -> tuple[str, ...]:
    from datapath.bench.model import MODES

    found = tuple(dict.fromkeys(asked.replace(",", " ").split()))
    for mode in found:
        if mode not in MODES:
            raise ConfigError(f"invalid mode {quoted(mode)}: expected some of {', '.join(MODES)}")
    if not found:
        raise ConfigError(f"no mode is given: expected some of {', '.join(MODES)}")
    return found


def matches(experiment: Experiment, words: str) -> bool:
    """All words are somewhere in its name or its title; what has a `=` is a word of its name: services=1 is not 10."""
    label = experiment.point.label.casefold()
    text, own = f"{label} {experiment.title}".casefold(), label.split()
    return all(word in (own if "=" in word else text) for word in words.casefold().split())


def _check(built: Sequence[Suite], words: str) -> None:
    if not any(matches(experiment, words) for suite in built for experiment in suite.experiments()):
        raise NotFoundError(f"no experiment is called like {quoted(words)}: see 'datapathctl bench ls'")


def _folder(out: Path | None) -> Path:
    folder = out or Path(time.strftime("bench-%Y%m%d-%H%M%S"))
    if (folder / RESULTS).exists():
        raise ConfigError(f"{folder / RESULTS} is there already: choose another --out")
    return folder


# ---- measuring --------------------------------------------------------------------------------


@contextlib.contextmanager
def _built(
    names: Sequence[str], modes: tuple[str, ...], seconds: float, docker: str, dockerd: str
) -> Iterator[list[Suite]]:
    """The suites, with a directory for what they need while they run."""
    import tempfile

    from datapath.bench.model import SuiteOptions

    with tempfile.TemporaryDirectory(prefix="datapath-bench-") as folder:
        program = (sys.executable, "-m", f"{__package__.removesuffix('.cli')}.main")
        options = SuiteOptions(seconds, Path(folder), docker, dockerd, program)
        yield [registry()[name](modes, options) for name in names]


def _raise(outcome: Outcome) -> None:
    """The error that the command ends with, if something was not measured."""
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.failed or outcome.skipped:
        count = len(outcome.failed) + len(outcome.skipped)
        raise DatapathError(f"{count} of the experiments or suites failed or were not reached: see above")


# ---- what it says -----------------------------------------------------------------------------


def _keep(found: Run, folder: Path) -> None:
    """The samples first: nothing that goes wrong later may lose them."""
    from datapath.bench import page
    from datapath.bench.results import write

    write(found, folder / RESULTS)
    _print(found)
    paths = [folder / RESULTS]
    try:
        paths += page.write(found, folder)
    except DatapathError as error:
        warn(str(error))
    for path in paths:
        click.echo(printable(str(path)), err=True)


def _print(found: Run) -> None:
    from datapath.bench import tables

    for number, each in enumerate(tables.tables(found)):
        if number:
            click.echo()
        _show(each)


def _show(found: Table) -> None:
    click.echo(found.name)
    emit(table(found.headings, found.rows))
