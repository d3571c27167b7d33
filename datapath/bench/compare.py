# SPDX-License-Identifier: Apache-2.0
"""Two runs, point by point. No I/O, no clock.

Absolute figures of two runs, let alone of two machines, say little about the datapath. What is compared are the ratios
to a mode that was measured in the same rounds of the same file: to iptables, and to no container at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datapath.bench import stats
from datapath.bench.model import EBPF, IPTABLES, NONE, Better, Point, Ratio, Run, Series

BASES = (IPTABLES, NONE)
WORSE = 1.05  # times; less is not worth a word even if it is certain


@dataclass(frozen=True, slots=True)
class Change:
    """One mode of one point: both medians in the series' unit, both ratios to `base`, and how many times better the
    second ratio is. `verdict`: "better", "worse" (beyond both intervals and by more than 5%), "same"."""

    point: Point
    unit: str
    better: Better
    mode: str
    before: float
    after: float
    ratio_before: Ratio
    ratio_after: Ratio
    times: float
    verdict: str

    @property
    def regression(self) -> bool:
        """The other modes are not ours: what they do is for information."""
        return self.mode == EBPF and self.verdict == "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`only_before`, `only_after`: labels of points that only one of the files has."""

    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regression)


def compare(before: Run, after: Run) -> Comparison:
    old, new = _by_label(before), _by_label(after)
    return Comparison(
        changes=tuple(
            change for label, series in old.items() if label in new for change in _changes(series, new[label])
        ),
        only_before=tuple(label for label in old if label not in new),
        only_after=tuple(label for label in new if label not in old),
    )


def _by_label(run: Run) -> dict[str, Series]:
    return {series.point.label: series for series in run.series if any(series.samples.values())}


def _changes(before: Series, after: Series) -> Iterable[Change]:
    if (before.unit, before.better) != (after.unit, after.better):
        return
    old, new = stats.medians(before), stats.medians(after)
    for mode in old:
        for base in BASES:
            first = stats.ratio(before.samples, mode, base) if mode != base else None
            second = stats.ratio(after.samples, mode, base)
            if first and second:
                times = _times(first, second, before.better)
                yield Change(
                    point=before.point,
                    unit=before.unit,
                    better=before.better,
                    mode=mode,
                    before=old[mode],
                    after=new[mode],
                    ratio_before=first,
                    ratio_after=second,
                    times=times,
                    verdict=_verdict(first, second, times),
                )


def _times(before: Ratio, after: Ratio, better: Better) -> float:
    if before.median == after.median:  # both may be 0, or infinite
        return 1.0
    return stats.advantage(after.median / before.median if before.median else float("inf"), better)


def _verdict(before: Ratio, after: Ratio, times: float) -> str:
    """Too few rounds on either side: no difference can be shown."""
    apart = before.high < after.low or after.high < before.low
    if not apart or not stats.sure(before) or not stats.sure(after):
        return "same"
    if times < 1 / WORSE:
        return "worse"
    return "better" if times > WORSE else "same"
