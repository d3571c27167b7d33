# SPDX-License-Identifier: Apache-2.0
"""Bars: how many times as good as the reference each mode is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isfinite, log2
from typing import TYPE_CHECKING, Any

from datapath.bench import stats
from datapath.bench.model import Ratio, Series
from datapath.bench.plot_style import COLOURS, INK, WIDTH, new_figure, ratio_ticks, sorted_advantages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANES = {"": "control plane"}  # paths that have no name


def draw_bars(group: Sequence[Series], shown: Sequence[str], reference: str) -> Figure:
    """A block of bars for each series, one a mode, from the line of the reference; paths under headings."""
    figure, (axes,) = new_figure(height=1.0)
    several = len({series.point.path for series in group}) > 1
    single = len(shown) == 1
    bar = 0.25 if single else 0.21  # inches
    labels: list[tuple[float, str]] = []
    headings: list[int] = []
    y, path, farthest = 0.0, None, [1.0]
    for series in group:
        if several and series.point.path != path:
            path = series.point.path
            y += 0.38
            labels.append((y - 0.06, LANES.get(path, path)))
            headings.append(len(labels) - 1)
            y += 0.12
        present = [mode for mode in shown if stats.ratio(series.samples, mode, reference)]
        middle = y + bar * len(present) / 2
        medians = {mode: stats.number(value) for mode, value in stats.medians(series).items()}
        theirs = f"{medians[reference]} {series.unit}"
        title = textwrap.fill(series.title, 34)
        labels.append((middle, title if single else f"{title}\n{reference}: {theirs}"))
        for mode in present:
            found = stats.ratio(series.samples, mode, reference)
            assert found is not None
            farthest += _bar(axes, y + bar / 2, found, series, bar, name=not single)
            words = f"{medians[mode]} vs {theirs}" if single else f"{medians[mode]} {series.unit}"
            axes.text(1.01, y + bar / 2, words, transform=_beside(axes), fontsize=8, va="center")
            y += bar
        y += 0.12 if single else 0.18
    axes.set_yticks([middle for middle, _ in labels], [text for _, text in labels])
    for number in headings:
        axes.get_yticklabels()[number].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(y, 0)
    axes.axvline(1, color=COLOURS[reference], linewidth=1.6, zorder=3)
    axes.text(1, -0.06, reference, color=COLOURS[reference], ha="center", va="bottom", weight="bold")
    _ratio_axis(axes, farthest)
    axes.set_xlabel(f"times as good as {reference}   (right: better →)")
    figure.set_size_inches(WIDTH, y + 1.0)
    return figure


def _bar(axes: Axes, y: float, found: Ratio, series: Series, height: float, *, name: bool) -> list[float]:
    """One bar with its whisker and its words; what the axis has to reach."""
    value, low, high = sorted_advantages(found, series)
    if not isfinite(value) or not value:
        axes.text(1, y, f"  {found.mode}: not comparable with 0", va="center", fontsize=8)
        return []
    colour = COLOURS[found.mode]
    sure = stats.sure(found)
    axes.barh(y, value - 1, left=1, height=height * 0.82, color=colour, alpha=0.9 if sure else 0.35)
    ends = [end for end in (low, high) if isfinite(end) and end > 0]
    if len(ends) == 2:
        axes.plot(ends, [y, y], color=INK, linewidth=1.1, zorder=4)
        for end in ends:
            axes.plot([end, end], [y - height / 5, y + height / 5], color=INK, linewidth=1.1, zorder=4)
    words = times_text(value)
    if not sure:
        words += " (too few rounds)"
    elif stats.tie(found):
        words += " tie"
    words = f"{found.mode} {words}" if name else words
    right = value >= 1
    axes.annotate(
        words,
        (max([value, *ends]) if right else min([value, *ends]), y),
        xytext=(5 if right else -5, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=8.5,
        color=colour,
        weight="bold",
    )
    return [value, *ends]


def times_text(value: float) -> str:
    return f"{value:.2f}×" if 0.1 <= value < 10 else f"{stats.number(value)}×"


def _beside(axes: Axes) -> Any:
    """x in parts of the axes' width, y in data."""
    return axes.get_yaxis_transform()


def _ratio_axis(axes: Axes, reached: Sequence[float]) -> None:
    """Logarithmic, so that twice as good and half as good are equally far from 1, with room for words."""
    spread = max(abs(log2(value)) for value in reached)
    low = min(0.0, *(log2(value) for value in reached))
    high = max(0.0, *(log2(value) for value in reached))
    room = 0.28 * max(high - low, 0.2)
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (low - (room if low < -0.02 * spread else room / 3)), 2 ** (high + 1.6 * room))
    ratio_ticks(axes.xaxis, *axes.get_xlim())
    axes.grid(axis="x", color=INK, alpha=0.12)
    axes.set_axisbelow(True)
