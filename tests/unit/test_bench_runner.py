# SPDX-License-Identifier: Apache-2.0
"""How samples are taken: in turns, until it is enough, whatever fails."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from datapath.bench.model import Point, Sample
from datapath.bench.runner import Bounds, Outcome, Progress, Runner
from datapath.errors import DatapathError, KernelError
from tests.unit.toy_bench import ObservingSuite, ToyExperiment, ToySuite

MODES = ("ebpf", "iptables", "none")
DICE = random.Random(5)


class Clock:
    """Only a sample takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def working(self, seconds: float, value: Callable[[str], float]) -> Callable[[str], Sample]:
        def work(mode: str) -> Sample:
            self.now += seconds
            return Sample(value(mode))

        return work


def toy(name: str, work: Callable[[str], Sample], modes: tuple[str, ...] = MODES) -> ToyExperiment:
    return ToyExperiment(Point(name), modes, work)


def run(*experiments: ToyExperiment, bounds: Bounds | None = None, clock: Clock | None = None) -> Outcome:
    return Runner(bounds or Bounds(), lambda progress: None, clock or Clock()).run([ToySuite(experiments)])


def steady(mode: str) -> float:
    return {"ebpf": 1.0, "iptables": 2.0, "none": 0.5}[mode]


def noisy(mode: str) -> float:
    return DICE.uniform(1, 2)


def test_modes_take_turns_and_nobody_always_goes_first() -> None:
    experiment = toy("a", Clock().working(1, steady))
    outcome = run(experiment)
    e, i, n = MODES
    rounds = [e, i, n, i, n, e, n, e, i] * 2
    assert experiment.log == ["enter", *MODES, *rounds, "leave"], "a warm-up, then six rounds"
    (series,) = outcome.series
    assert {mode: len(samples) for mode, samples in series.samples.items()} == dict.fromkeys(MODES, 6)
    assert [sample.value for sample in series.samples["iptables"]] == [2.0] * 6
    assert series.stopped == "tight"


def test_rounds_go_on_until_the_intervals_are_narrow() -> None:
    """Noise of ±1% a sample: ±2% is quickly reached, ±0.4% takes more rounds."""

    def value(mode: str) -> float:
        return steady(mode) * DICE.uniform(0.99, 1.01)

    wide, narrow = (
        run(toy("a", Clock().working(1, value)), bounds=Bounds(tight=tight, rounds=1000, seconds=1e9)).series[
            0
        ]
        for tight in (0.02, 0.004)
    )
    assert wide.stopped == narrow.stopped == "tight"
    assert 6 <= len(wide.samples["ebpf"]) < len(narrow.samples["ebpf"]) < 1000


@pytest.mark.parametrize(
    ("bounds", "rounds", "stopped"),
    [
        (Bounds(tight=1e-9, rounds=9), 9, "rounds"),
        (Bounds(tight=1e-9, rounds=3), 3, "rounds"),
        (Bounds(tight=1e-9, seconds=30), 9, "time"),  # the warm-up counts
        (Bounds(tight=1e-9, budget=12), 3, "time"),
    ],
)
def test_bounds_end_what_does_not_settle(bounds: Bounds, rounds: int, stopped: str) -> None:
    clock = Clock()
    (series,) = run(toy("a", clock.working(1, noisy)), bounds=bounds, clock=clock).series
    assert (len(series.samples["none"]), series.stopped) == (rounds, stopped)


def test_the_budget_is_shared_and_what_is_saved_goes_to_those_that_need_it() -> None:
    """100 s for three: the first needs 21 s, the others share the rest evenly."""
    clock = Clock()
    a = toy("a", clock.working(1, steady))
    b, c = (toy(name, clock.working(1, noisy)) for name in "bc")
    outcome = run(a, b, c, bounds=Bounds(tight=1e-9, rounds=1000, budget=100), clock=clock)
    assert [(len(s.samples["ebpf"]), s.stopped) for s in outcome.series] == [
        (6, "tight"),
        (13, "time"),
        (12, "time"),
    ]


def test_what_has_a_bar_gets_more_rounds_and_points_of_sweeps_fewer() -> None:
    work = Clock().working(1, noisy)
    points = (
        Point("attach_detach"),
        Point("tcp_connect", "outside-published", {"ports": 1}),
        Point("restart"),
        Point("publish_unpublish", "", {"ports": 1}),
        Point("tcp_connect", "outside-published", {"ports": 10}),
    )
    for bounds, rounds in (
        (Bounds(tight=1e-9, rounds=9, others=7, swept=3), [9, 9, 7, 7, 3]),
        (Bounds(tight=1e-9, rounds=9, others=7), [9, 9, 7, 7, 7]),
        (Bounds(tight=1e-9, rounds=9), [9] * 5),
    ):
        outcome = run(*(ToyExperiment(point, MODES, work) for point in points), bounds=bounds)
        assert [len(s.samples["ebpf"]) for s in outcome.series] == rounds


def test_shares_of_the_budget_are_as_large_as_rounds_are_many() -> None:
    """400 s: three parts of four for the first, which is 99 rounds and the warm-up."""
    clock = Clock()
    work = clock.working(1, noisy)
    bounds = Bounds(tight=1e-9, rounds=300, others=100, budget=400)
    outcome = run(toy("attach_detach", work), toy("other", work), bounds=bounds, clock=clock)
    assert [len(s.samples["ebpf"]) for s in outcome.series] == [99, 33]


def test_what_two_suites_have_is_measured_once() -> None:
    first, again, other = (toy(name, Clock().working(1, steady)) for name in "aab")
    suites = [ToySuite([first]), ObservingSuite([again]), ToySuite([other])]
    told: list[Progress] = []
    outcome = Runner(Bounds(), told.append).run(suites)
    assert [series.point.label for series in outcome.series] == ["a", "b"] and again.log == []
    assert suites[1].log == ["up", "observe", "down"], "it is looked into all the same"
    assert {(each.number, each.total) for each in told} == {(1, 2), (2, 2)}


def test_what_the_time_did_not_reach_is_named() -> None:
    clock = Clock()
    first, second = (toy(name, clock.working(10, noisy)) for name in ("one", "two"))
    outcome = run(first, second, bounds=Bounds(budget=200), clock=clock)
    assert [series.point.label for series in outcome.series] == ["one"]
    assert len(outcome.series[0].samples["ebpf"]) == 6, "its share was half, but fewer say nothing"
    assert outcome.skipped == {"two": "the time was used up"} and second.log == []


def failing_in_round(number: int, error: BaseException, times: int = 2) -> Callable[[str], Sample]:
    """Whoever asks again is told the same."""
    left = [(number + 1) * len(MODES) - 1]

    def work(mode: str) -> Sample:
        left[0] -= 1
        if -times < left[0] <= 0:
            raise error
        return Sample(steady(mode))

    return work


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatapathError("wrk: connection refused"), "failed: wrk: connection refused"),
        (KernelError("create", "veth0", 17), "failed: create veth0: File exists (EEXIST)"),
        (ValueError("a\nb"), "failed: internal error: ValueError: a b"),
        (ExceptionGroup("", [DatapathError("x"), DatapathError("y")]), "failed: x (and 1 more)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_recorded_and_the_rest_goes_on(error: Exception, words: str) -> None:
    bad, good = toy("bad", failing_in_round(3, error)), toy("good", Clock().working(1, steady))
    outcome = run(bad, good)
    assert [series.stopped for series in outcome.series] == [words, "tight"]
    assert {len(samples) for samples in outcome.series[0].samples.values()} == {2}, "whole rounds only"
    assert bad.log[-1] == "leave" and outcome.failed == outcome.series[:1]


def test_what_fails_once_is_measured_again_and_that_is_noted() -> None:
    outcome = run(toy("bad", failing_in_round(3, DatapathError("wrk: a hiccup"), times=1)))
    (series,) = outcome.series
    assert series.stopped == "tight" and outcome.failed == []
    noted = [[sample.details for sample in samples] for samples in series.samples.values()]
    assert sorted(str(each) for samples in noted for each in samples if each) == [
        "{'failed_before': 'wrk: a hiccup'}"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_figure_that_is_none_is_a_failure(value: float) -> None:
    (series,) = run(toy("a", lambda mode: Sample(value))).series
    assert series.stopped.startswith("failed: ebpf measured")


def test_a_suite_that_cannot_be_built_does_not_stop_the_others() -> None:
    bad = ToySuite([toy("a", Clock().working(1, steady))], "bad", DatapathError("no bridge"))
    good = ToySuite([toy("b", Clock().working(1, steady))], "good")
    outcome = Runner(Bounds(), lambda progress: None).run([bad, good])
    assert outcome.skipped == {"suite bad": "no bridge"}
    assert [series.point.label for series in outcome.series] == ["b"] and good.log == ["up", "down"]


@pytest.mark.parametrize("leaving", [None, DatapathError("a veth is still there")])
def test_an_interruption_leaves_whole_rounds_and_takes_everything_down(leaving: Exception | None) -> None:
    experiment = toy("a", failing_in_round(3, KeyboardInterrupt()))
    experiment.leaving = leaving
    after = toy("b", Clock().working(1, steady))
    suite = ObservingSuite([experiment, after])
    outcome = Runner(Bounds(), lambda progress: None).run([suite])
    assert outcome.interrupted and len(outcome.series) == 1 and after.log == []
    assert {len(samples) for samples in outcome.series[0].samples.values()} == {2}
    assert outcome.series[0].stopped == ("failed: a veth is still there" if leaving else "interrupted")
    assert suite.log == ["up", "down"]
    assert outcome.skipped == {"b": "interrupted before it"}


def test_a_mode_that_could_not_be_set_up_is_named_and_the_others_are_measured() -> None:
    experiment = toy("a", Clock().working(1, steady), MODES[:2])
    experiment.lost["docker"] = "timed out"
    outcome = run(experiment)
    assert [series.stopped for series in outcome.series] == ["tight"]
    assert outcome.skipped == {"a in mode docker": "timed out"}


def test_programs_that_warm_up_by_themselves_are_not_asked_to() -> None:
    experiment = toy("a", Clock().working(1, steady))
    experiment.warm = True
    run(experiment)
    assert experiment.log.count("ebpf") == 6


def test_looking_inside_comes_after_the_last_measurement() -> None:
    suite = ObservingSuite([toy("a", Clock().working(1, steady))])
    outcome = Runner(Bounds(), lambda progress: None).run([suite])
    assert suite.log == ["up", "observe", "down"]
    assert [cost.value for cost in outcome.costs] == [12.5] and len(outcome.histograms) == 1


def test_only_what_is_wanted_is_measured() -> None:
    a, b, c = (toy(name, Clock().working(1, steady)) for name in "abc")
    c.modes = ()
    Runner(Bounds(), lambda progress: None).run([ToySuite([a, b, c])], lambda e: e.point.workload != "a")
    assert a.log == [] and b.log and c.log == []
    untouched = ToySuite([a])
    Runner(Bounds(), lambda progress: None).run([untouched], lambda experiment: False)
    assert untouched.log == []


def test_progress_is_told_from_the_setting_up_to_the_end() -> None:
    told: list[Progress] = []
    Runner(Bounds(), told.append, Clock()).run([ToySuite([toy("a", Clock().working(1, steady))])])
    assert [each.rounds for each in told] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert told[-1].stopped == "tight" and {(each.number, each.total) for each in told} == {(1, 1)}
    assert [ratio.median for ratio in told[-1].ratios] == [0.5, 2.0]


def test_real_work_comes_out_in_the_right_order() -> None:
    """Four times as much to hash takes about four times as long, whatever else the machine does."""
    experiment = ToyExperiment(Point("hash"), ("ebpf", "iptables"))
    outcome = Runner(Bounds(tight=0.2, rounds=60, seconds=20), lambda progress: None).run(
        [ToySuite([experiment])]
    )
    (series,) = outcome.series
    quotients = sorted(
        ours.value / theirs.value
        for ours, theirs in zip(series.samples["ebpf"], series.samples["iptables"], strict=True)
    )
    assert 0.1 < quotients[len(quotients) // 2] < 0.6
