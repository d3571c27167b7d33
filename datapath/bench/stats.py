# SPDX-License-Identifier: Apache-2.0
"""Statistics of samples: ratios, medians and their confidence intervals. Without I/O, clock or randomness.

Ratios are taken within a round, where the samples of all modes were taken one right after the other: what is slow for
a while on a shared machine is slow for all of them, and falls out. Of these ratios the median counts, so that a
round in which something else ran does not.

The confidence interval of the median is that of the order statistics: the true median lies between the k-th
smallest and the k-th largest of n values unless fewer than k of them fell on one side of it, which is a
binomial distribution. It assumes nothing about how the values are distributed, needs no random numbers, and never
promises more than it holds; a bootstrap of a median does, for as few values as there are here. The price: there is
no interval of 95% for fewer than six rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from statistics import median

from datapath.bench.model import DOCKER_DATAPATH, EBPF, IPTABLES, MODES, Better, Ratio, Sample, Series

CONFIDENCE = 0.95
FEWEST = 6  # rounds that an interval of 95% takes: 1 - 2 / 2**6


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The narrowest interval for the median with at least 95%: low, high, and how much it really has. For fewer
    than FEWEST values: the smallest and the largest."""
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 0  # of 2**n sequences of tosses, so many have fewer than `rank` heads
    ways = 1  # to toss exactly `rank` heads
    while rank < n // 2 and 2 * (outside + ways) / 2**n <= 1 - CONFIDENCE:
        outside += ways
        ways = ways * (n - rank) // (rank + 1)
        rank += 1
    if not rank:
        outside, rank = 1, 1
    return ordered[rank - 1], ordered[n - rank], max(0.0, 1 - 2 * outside / 2**n)


def ratio(samples: Mapping[str, Sequence[Sample]], mode: str, base: str) -> Ratio | None:
    """`mode` relative to `base`. None without a single round of both."""
    rounds = [
        _quotient(ours.value, theirs.value)
        for ours, theirs in zip(samples.get(mode, ()), samples.get(base, ()), strict=False)
    ]
    if not rounds:
        return None
    low, high, confidence = interval(rounds)
    return Ratio(mode, base, median(rounds), low, high, len(rounds), confidence)


def _quotient(ours: float, theirs: float) -> float:
    if theirs:
        return ours / theirs
    return inf if ours else 1.0


def subject(modes: Sequence[str]) -> str:
    """The mode that the others are compared with: this datapath, if it is there, else Docker on it."""
    return next((mode for mode in (EBPF, DOCKER_DATAPATH) if mode in modes), modes[0])


def reference(modes: Sequence[str]) -> str | None:
    """The mode that plots show as 1: iptables, else the next best thing. None if there is nothing to compare."""
    others = [mode for mode in MODES if mode in modes and mode != subject(modes)]
    return IPTABLES if IPTABLES in others else next(iter(others), None)


def ratios(samples: Mapping[str, Sequence[Sample]]) -> tuple[Ratio, ...]:
    """The subject relative to every other mode."""
    modes = tuple(samples)
    found = (
        (ratio(samples, subject(modes), base) for base in modes if base != subject(modes)) if modes else ()
    )
    return tuple(each for each in found if each)


def tight(found: Ratio, within: float) -> bool:
    """Whether the whole interval is within such a part of the median: 0.02 is ±2%."""
    if found.confidence < CONFIDENCE or not isfinite(found.median):
        return False
    return max(found.high - found.median, found.median - found.low) <= within * found.median


def sure(found: Ratio) -> bool:
    return found.confidence >= CONFIDENCE


def tie(found: Ratio) -> bool:
    """Neither can be said to be ahead."""
    return found.low <= 1.0 <= found.high


def advantage(value: float, better: Better) -> float:
    """How many times better: a ratio as it is where higher is better, upside down where lower is."""
    if better == "higher":
        return value
    return 1 / value if value else inf


# ---- in words ---------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, without powers of ten: 0.0123, 1.23, 12.3, 1,230,000."""
    if not isfinite(value):
        return "∞"
    if not value:
        return "0"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    digits = f"{value:#.3g}".rstrip(".")
    return digits if "e" not in digits else f"{value:.3g}"


def ratio_text(found: Ratio) -> str:
    """1.230 (1.213–1.251); a tie is called one, and "?" marks too few rounds to say anything."""
    text = f"{factor(found.median)} ({factor(found.low)}–{factor(found.high)})"
    if not sure(found):
        return f"{text} ?"
    return f"{text} tie" if tie(found) else text


def factor(value: float) -> str:
    """What is near 1 with three decimals."""
    return f"{value:.3f}" if 0.1 <= value < 2 else number(value)


def by(times: float) -> str:
    """How far ahead somebody is who is so many times better, 1 or more: by 12%, 2.3×."""
    if not isfinite(times):
        return "∞×"
    if times >= 2:
        return f"{times:.1f}×" if times < 10 else f"{number(times)}×"
    return f"by {100 * (times - 1):.{0 if times >= 1.1 else 1}f}%"


def outcome(found: Ratio, better: Better) -> str:
    """Who is ahead, in words: "ebpf by 12%", "iptables by 3.1%", "tie", "too few rounds"."""
    if not sure(found):
        return "too few rounds"
    if tie(found):
        return "tie"
    ahead = advantage(found.median, better)
    return f"{found.mode} {by(ahead)}" if ahead > 1 else f"{found.base} {by(1 / ahead if ahead else inf)}"


def medians(series: Series) -> dict[str, float]:
    """Each mode's median, of the modes that have a sample."""
    return {mode: median(s.value for s in samples) for mode, samples in series.samples.items() if samples}
