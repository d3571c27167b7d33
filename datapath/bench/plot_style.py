# SPDX-License-Identifier: Apache-2.0
"""The style of all plots: colours, sizes, axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2, log10
from typing import TYPE_CHECKING, Any

from datapath.bench import stats
from datapath.bench.model import MODES, Ratio, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(
    zip(
        MODES,
        (
            *(
                "#0b72d0",
                "#d1495b",
                "#dd8f1d",
                "#0f9ed5",
                "#239a86",
                "#818b98",
                "#8d5bd1",
                "#b5532d",
                "#3d8b37",
            ),
            # Never beside those of the same colour.
            *("#0f9ed5", "#8d5bd1", "#d1495b", "#3d8b37"),
            *("#8d5bd1", "#3d8b37", "#b5532d"),
            "#d1495b",
        ),
        strict=True,
    )
)
INK = "#1b1f24"  # the page puts the reader's own colour in its place
WIDTH = 9.6  # inches; at DPI it is about as wide as a README is shown
DPI = 150
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "datapath",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def new_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.patch.set_alpha(0)
    made = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in made:
        axes.patch.set_alpha(0)
    return figure, made


_ABOVE = (1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_BELOW = (0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)


def ratio_ticks(axis: Any, low: float, high: float) -> None:
    """1, and as many round factors on both sides as there is room for, the nearest to 1 first."""
    gap = log2(high / low) / 12
    kept = [1.0]
    for tick in sorted((*_ABOVE, *_BELOW), key=lambda each: abs(log2(each))):
        if low < tick < high and all(abs(log2(tick / other)) >= gap for other in kept):
            kept.append(tick)
    _plain_ticks(axis, sorted(kept), "×")


def number_ticks(axis: Any, low: float, high: float) -> None:
    """Of a logarithmic axis: powers of ten as numbers that one can read, and more where there are few."""
    decades = range(floor(log10(low)), floor(log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) < 4 else (1,)
    _plain_ticks(
        axis, [step * 10.0**power for power in decades for step in steps if low < step * 10.0**power < high]
    )


def _plain_ticks(axis: Any, ticks: Sequence[float], suffix: str = "") -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter([f"{tick:,.12g}{suffix}" for tick in ticks]))


def sorted_advantages(found: Ratio, series: Series) -> tuple[float, float, float]:
    """How many times better: the median, and the ends of the interval, the lower one first."""
    value, *ends = (stats.advantage(each, series.better) for each in (found.median, found.low, found.high))
    return value, min(ends), max(ends)
