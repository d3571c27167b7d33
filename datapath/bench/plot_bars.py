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
    places: list[tuple[float, str]] = []
    headings: list[int] = []
    reached = [1.0]
    y, path = 0.0, None
    for series in group:
        if several and series.point.path != path:
            path = series.point.path
            headings.append(len(places))
            places.append((y + 0.32, LANES.get(path, path)))
            y += 0.5
        y = _block(axes, y, series, shown, reference, places, reached)
    axes.set_yticks([place for place, _ in places], [text for _, text in places])
    for number in headings:
        axes.get_yticklabels()[number].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(y, 0)
    axes.axvline(1, color=COLOURS[reference], linewidth=1.6, zorder=3)
    axes.text(1, -0.06, reference, color=COLOURS[reference], ha="center", va="bottom", weight="bold")
    _ratio_axis(axes, reached)
    axes.set_xlabel(f"times as good as {reference}   (right: better →)")
    figure.set_size_inches(WIDTH, y + 1.0)
    return figure


def _block(
    axes: Axes,
    y: float,
    series: Series,
    shown: Sequence[str],
    reference: str,
    places: list[tuple[float, str]],
    reached: list[float],
) -> float:
    """The bars of one series, from `y` inches down; where the next block begins."""
    single = len(shown) == 1
    bar = 0.25 if single else 0.21
    found = [ratio for mode in shown if (ratio := stats.ratio(series.samples, mode, reference))]
    medians = {mode: stats.number(value) for mode, value in stats.medians(series).items()}
    theirs = f"{medians[reference]} {series.unit}"
    title = textwrap.fill(series.title, 38) + ("" if single else f"\n{reference}: {theirs}")
    height = max(bar * len(found), 0.17 * len(title.splitlines()))
    places.append((y + height / 2, title))
    at = y + (height - bar * len(found)) / 2 + bar / 2
    for ratio in found:
        reached += _bar(axes, at, ratio, series, bar, name=not single)
        ours = medians[ratio.mode]
        words = f"{ours} vs {theirs}" if single else f"{ours} {series.unit}"
        axes.text(1.01, at, words, transform=_beside(axes), fontsize=8, va="center")
        at += bar
    return y + height + (0.12 if single else 0.18)


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
        words += " ?"
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
    axes.set_xlim(2 ** (low - (1.4 * room if low < -0.02 * spread else room / 3)), 2 ** (high + 1.6 * room))
    ratio_ticks(axes.xaxis, *axes.get_xlim())
    axes.grid(axis="x", color=INK, alpha=0.12)
    axes.set_axisbelow(True)
