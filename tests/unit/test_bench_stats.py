# SPDX-License-Identifier: Apache-2.0
"""What is said of samples: intervals that hold what they promise, ties that are called ties."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf, log

import pytest

from datapath.bench import stats
from datapath.bench.model import Ratio
from datapath.bench.tables import verdict
from tests.unit.toy_bench import series


@pytest.mark.parametrize("n", [6, 10, 25])
@pytest.mark.parametrize("draw", ["normal", "skewed", "heavy"])
def test_the_interval_covers_the_true_median_as_often_as_it_says(n: int, draw: str) -> None:
    """Of 4000 intervals 95% is 3800, with a standard deviation of 14. The median is known for each."""
    randomness = random.Random(7)
    draws: dict[str, tuple[Callable[[], float], float]] = {
        "normal": (lambda: randomness.gauss(5, 1), 5.0),
        "skewed": (lambda: randomness.expovariate(1.0), log(2)),
        "heavy": (lambda: randomness.gauss(0, 1) / (abs(randomness.gauss(0, 1)) + 1e-9), 0.0),
    }
    value, truth = draws[draw]
    hits = 0
    for _ in range(4000):
        low, high, confidence = stats.interval([value() for _ in range(n)])
        assert confidence >= 0.95
        hits += low <= truth <= high
    assert hits >= 3800 - 3 * 14


@pytest.mark.parametrize(
    ("n", "rank", "confidence"),
    [
        (1, 1, 0.0),
        (5, 1, 0.9375),
        (6, 1, 0.96875),
        (9, 2, 0.9609),
        (20, 6, 0.9586),
        (25, 8, 0.9567),
        (5000, 2431, 0.95),
    ],
)
def test_ranks_are_those_of_the_binomial_tables(n: int, rank: int, confidence: float) -> None:
    low, high, really = stats.interval(range(1, n + 1))
    assert (low, high) == (rank, n + 1 - rank)
    assert really == pytest.approx(confidence, abs=2e-3 if n == 5000 else 1e-4)


def test_ratios_are_taken_within_a_round() -> None:
    """The machine was three times slower in the middle; both modes felt it."""
    slow = [1.0, 1.1, 3.0, 3.3, 1.0, 1.0, 2.9]
    found = stats.ratio(
        series({"ebpf": [20 * s for s in slow], "iptables": [10 * s for s in slow]}).samples,
        "ebpf",
        "iptables",
    )
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == pytest.approx((2.0, 2.0, 2.0, 7))
    assert stats.tight(found, 1e-9)


def test_too_few_rounds_are_never_tight_nor_sure() -> None:
    five = stats.ratio(series({"ebpf": [1.0] * 5, "none": [2.0] * 5}).samples, "ebpf", "none")
    assert five is not None and not stats.sure(five) and not stats.tight(five, 1.0)
    assert stats.ratio(series({"ebpf": [], "none": []}).samples, "ebpf", "none") is None


@pytest.mark.parametrize(
    ("low", "high", "tight"), [(0.99, 1.01, True), (0.975, 1.0, False), (1.0, 1.03, False)]
)
def test_tight_looks_at_both_sides(low: float, high: float, tight: bool) -> None:
    assert stats.tight(Ratio("ebpf", "none", 1.0, low, high, 9, 0.96), 0.02) is tight


@pytest.mark.parametrize(
    ("median", "low", "high", "better", "words"),
    [
        (1.2, 1.1, 1.3, "higher", "ebpf by 20%"),
        (1.2, 1.1, 1.3, "lower", "iptables by 20%"),
        (0.5, 0.4, 0.6, "lower", "ebpf 2.0×"),
        (0.96, 0.95, 0.97, "higher", "iptables by 4.2%"),
        (1.3, 0.99, 1.6, "higher", "tie"),
        (0.01, 0.01, 0.01, "lower", "ebpf 100×"),
        (inf, inf, inf, "higher", "ebpf ∞×"),
        (0.0, 0.0, 0.0, "lower", "ebpf ∞×"),
    ],
)
def test_who_wins_in_words(median: float, low: float, high: float, better: str, words: str) -> None:
    found = Ratio("ebpf", "iptables", median, low, high, 9, 0.96)
    assert stats.outcome(found, "higher" if better == "higher" else "lower") == words


def test_a_verdict_begins_with_what_was_lost() -> None:
    measured = series(
        {
            "ebpf": [10.0] * 6,
            "iptables": [11.0] * 6,
            "nftables": [9.0, 11.0] * 3,
            "docker": [4.0] * 6,
            "none": [20.0] * 6,
        },
        better="higher",
        unit="Gbit/s",
    )
    assert verdict(measured, stats.ratios(measured.samples)) == (
        "iptables wins by 10%; tie with nftables; ebpf ahead of docker 2.5×"
    )
    few = series({"ebpf": [10.0] * 5, "iptables": [11.0] * 5})
    assert verdict(few, stats.ratios(few.samples)) == "too few rounds for iptables"


def test_nothing_can_be_divided_by_nothing() -> None:
    zero = series({"ebpf": [0.0] * 6, "iptables": [0.0, 1.0] * 3}).samples
    found = stats.ratio(zero, "iptables", "ebpf")
    assert found is not None and found.low == 1.0 and found.high == inf and not stats.tight(found, 0.5)
    assert "∞" in stats.ratio_text(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.5, "1.50"),
        (123.4, "123"),
        (999.7, "1,000"),
        (1234567, "1,230,000"),
        (inf, "∞"),
    ],
)
def test_numbers_have_three_digits_and_no_powers(value: float, text: str) -> None:
    assert stats.number(value) == text
