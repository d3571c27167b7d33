# SPDX-License-Identifier: Apache-2.0
"""Takes samples in rounds, one mode after the other, until the ratios are precise enough or a bound is reached.

Not every experiment needs as many rounds: to some there is a bar, and points of a sweep support each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from datapath.bench import stats
from datapath.bench.bars import PROMISED
from datapath.bench.model import (
    Cost,
    Experiment,
    Histogram,
    Observes,
    Ratio,
    Sample,
    Series,
    Suite,
)
from datapath.bench.place import MissingError
from datapath.errors import DatapathError

Clock = Callable[[], float]
Wanted = Callable[[Experiment], bool]


@dataclass(frozen=True, slots=True)
class Bounds:
    """When an experiment is over. `tight`: all intervals are within such a part of their medians; `rounds` and
    `seconds` at most; `others` and `swept` instead of `rounds` for experiments without a bar, and for those of them
    that are points of a sweep (0: as many as the one before). `budget`: seconds of the whole run, of which every
    experiment may use its share, as large as its rounds are many, and as much more as the fewest useful rounds take."""

    tight: float = 0.02
    rounds: int = 30
    seconds: float = 300.0
    budget: float = math.inf
    others: int = 0
    swept: int = 0

    def most(self, experiment: Experiment) -> int:
        """Rounds that it may have."""
        if experiment.point.label in PROMISED:
            return self.rounds
        others = self.others or self.rounds
        return (self.swept or others) if experiment.point.swept else others


@dataclass(frozen=True, slots=True)
class Progress:
    """Experiment `number` of `total` has so many rounds. `stopped` is empty while it goes on."""

    number: int
    total: int
    label: str
    rounds: int
    ratios: tuple[Ratio, ...] = ()
    stopped: str = ""


@dataclass(slots=True)
class Outcome:
    """What was measured, in the order in which it was."""

    series: list[Series] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def failed(self) -> list[Series]:
        return [series for series in self.series if series.stopped.startswith("failed")]


@dataclass(slots=True)
class Runner:
    """One run. What fails is recorded and the rest goes on; KeyboardInterrupt ends it with what was
    measured until then."""

    bounds: Bounds
    progress: Callable[[Progress], None]
    clock: Clock = time.monotonic
    outcome: Outcome = field(default_factory=Outcome)
    _end: float = math.inf
    _left: dict[str, int] = field(default_factory=dict)  # label -> rounds, of those that are still to come
    _total: int = 0

    def run(self, suites: Sequence[Suite], wanted: Wanted = lambda experiment: True) -> Outcome:
        """What several suites have is measured once."""
        self._end = self.clock() + self.bounds.budget
        planned = [(suite, chosen(suite, wanted)) for suite in suites]
        self._left = {
            experiment.point.label: self.bounds.most(experiment)
            for _, experiments in planned
            for experiment in experiments
        }
        self._total = len(self._left)
        try:
            for suite, experiments in planned:
                if experiments:
                    self._suite(suite, experiments)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self.outcome.skipped |= dict.fromkeys(self._left, "interrupted before it")
        return self.outcome

    def _suite(self, suite: Suite, experiments: Sequence[Experiment]) -> None:
        try:
            with suite:
                for experiment in experiments:
                    if experiment.point.label in self._left:
                        self._experiment(experiment)
                if isinstance(suite, Observes) and self.clock() < self._end:
                    histograms, costs = suite.observe()
                    self.outcome.histograms += histograms
                    self.outcome.costs += costs
        except Exception as error:
            self.outcome.skipped[f"suite {suite.name}"] = reason(error)

    def _experiment(self, experiment: Experiment) -> None:
        now, left = self.clock(), sum(self._left.values())
        part = self._left.pop(experiment.point.label) / left
        if now >= self._end:
            self.outcome.skipped[experiment.point.label] = "the time was used up"
            return
        share = now + (self._end - now) * part
        self._tell(experiment, [])
        rounds: list[dict[str, Sample]] = []
        stopped = ""
        try:
            with experiment:
                for mode, why in experiment.lost.items():
                    self.outcome.skipped[f"{experiment.point.label} in mode {mode}"] = why
                try:
                    stopped = self._rounds(experiment, rounds, share)
                except KeyboardInterrupt:  # held back: should leaving fail too, it must not be forgotten
                    stopped = "interrupted"
        except KeyboardInterrupt:
            stopped = "interrupted"
        except MissingError as error:
            self.outcome.skipped[experiment.point.label] = str(error)
            return
        except Exception as error:
            failed = f"failed: {reason(error)}"
            self.outcome.interrupted = stopped == "interrupted"
            stopped = failed
        self._record(experiment, rounds, stopped)
        if stopped == "interrupted" or self.outcome.interrupted:
            raise KeyboardInterrupt

    def _rounds(self, experiment: Experiment, rounds: list[dict[str, Sample]], share: float) -> str:
        """Fill `rounds`; the answer says what ended it."""
        began, modes = self.clock(), experiment.modes
        most = self.bounds.most(experiment)
        take = _Taker(experiment).sample
        for mode in () if experiment.warm else modes:
            take(mode)  # the first one pays for caches, neighbours and pages: not counted
        while True:
            first = len(rounds) % len(modes)  # nobody always goes first
            rounds.append({mode: take(mode) for mode in modes[first:] + modes[:first]})
            self._tell(experiment, rounds)
            found = stats.ratios(transposed(modes, rounds))
            now = self.clock()
            if found and all(stats.tight(ratio, self.bounds.tight) for ratio in found):
                return "tight"
            if len(rounds) >= most:
                return "rounds"
            enough = len(rounds) >= stats.FEWEST and now >= share
            if enough or now >= self._end or now - began >= self.bounds.seconds:
                return "time"

    def _record(self, experiment: Experiment, rounds: list[dict[str, Sample]], stopped: str) -> None:
        self._tell(experiment, rounds, stopped)
        self.outcome.series.append(
            Series(
                point=experiment.point,
                title=experiment.title,
                unit=experiment.unit,
                better=experiment.better,
                samples=transposed(experiment.modes, rounds),
                stopped=stopped,
            )
        )

    def _tell(self, experiment: Experiment, rounds: list[dict[str, Sample]], stopped: str = "") -> None:
        found = stats.ratios(transposed(experiment.modes, rounds))
        number = self._total - len(self._left)
        self.progress(Progress(number, self._total, experiment.point.label, len(rounds), found, stopped))


def chosen(suite: Suite, wanted: Wanted) -> list[Experiment]:
    """The experiments that are asked for. Those that no mode can do are not there."""
    return [experiment for experiment in suite.experiments() if experiment.modes and wanted(experiment)]


def transposed(modes: Iterable[str], rounds: Sequence[dict[str, Sample]]) -> dict[str, tuple[Sample, ...]]:
    return {mode: tuple(samples[mode] for samples in rounds) for mode in modes}


class _Taker:
    """Takes samples of one experiment. One that fails is taken again, once in an experiment: tools have their moments,
    and half an hour of rounds should not end with one. What it said is in the details of the other one."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._again = True

    def sample(self, mode: str) -> Sample:
        try:
            return self._measured(mode)
        except MissingError:
            raise
        except DatapathError as error:
            if not self._again:
                raise
            self._again = False
            found = self._measured(mode)
            return replace(found, details={**found.details, "failed_before": reason(error)})

    def _measured(self, mode: str) -> Sample:
        sample = self._experiment.sample(mode)
        if not math.isfinite(sample.value) or sample.value < 0:
            raise DatapathError(f"{mode} measured {sample.value} {self._experiment.unit}")
        return sample


def reason(error: BaseException) -> str:
    """One line for what went wrong; a group's first error and how many more."""
    if isinstance(error, BaseExceptionGroup):
        more = len(error.exceptions) - 1
        return reason(error.exceptions[0]) + (f" (and {more} more)" if more else "")
    if isinstance(error, DatapathError):
        return str(error)
    return " ".join(f"internal error: {type(error).__name__}: {error}".split())
