# SPDX-License-Identifier: Apache-2.0
"""Lines over what a sweep varies, and histograms of latencies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from datapath.bench import stats
from datapath.bench.model import EBPF, MODES, NONE, Histogram
from datapath.bench.plot_style import COLOURS, INK, new_figure, number_ticks, ratio_ticks, sorted_advantages
from datapath.bench.sweeps import Sweep
from datapath.bench.tables import bucket_text, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_sweep(sweep: Sweep, reference: str) -> Figure:
    """Left the figures, right the ratios; both over the parameter, on a logarithmic axis."""
    figure, (left, right) = new_figure(height=4.0, columns=2)
    first = sweep.series[0]
    ends: dict[str, tuple[float, float]] = {}
    relative_ends: dict[str, tuple[float, float]] = {}
    seen: list[float] = []
    for mode in [mode for mode in MODES if any(series.samples.get(mode) for series in sweep.series)]:
        points = [
            (
                x,
                stats.medians(series)[mode],
                *stats.interval([sample.value for sample in series.samples[mode]])[:2],
            )
            for x, series in zip(sweep.values, sweep.series, strict=True)
            if series.samples.get(mode)
        ]
        _line(left, mode, points)
        ends[mode] = points[-1][:2]
        seen += [value for point in points for value in point[1:]]
        _relative_line(right, sweep, mode, reference, relative_ends)
    if min(seen) > 0 and max(seen) > 8 * min(seen):
        left.set_yscale("log")
        number_ticks(left.yaxis, *left.get_ylim())
    else:
        left.set_ylim(0, 1.08 * max(seen))
    left.set_title(f"{first.unit} ({first.better} is better)")
    right.set_title(f"times as good as {reference} (higher: better)")
    right.axhline(1, color=COLOURS[reference], linewidth=1.6)
    right.set_yscale("log", base=2)
    relative_ends[reference] = max(sweep.values), 1.0
    ratio_ticks(right.yaxis, *right.get_ylim())
    figure.suptitle(sweep.title, x=0.01, ha="left", weight="bold")
    for axes in (left, right):
        _parameter_axis(axes, sweep)
    figure.draw_without_rendering()  # only now the axes are where they stay
    for axes, last in ((left, ends), (right, relative_ends)):
        _end_labels(axes, last)
    return figure


def _relative_line(
    axes: Axes, sweep: Sweep, mode: str, reference: str, ends: dict[str, tuple[float, float]]
) -> None:
    if mode == reference:
        return
    points: list[tuple[float, float, float, float]] = []
    for x, series in zip(sweep.values, sweep.series, strict=True):
        found = stats.ratio(series.samples, mode, reference)
        if found:
            value, low, high = sorted_advantages(found, series)
            if low > 0 and isfinite(high):
                points.append((x, value, low, high))
    if points:
        _line(axes, mode, points)
        ends[mode] = points[-1][:2]


def _line(axes: Axes, mode: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    """Through (x, median, low, high)."""
    xs, ys, lows, highs = zip(*points, strict=True)
    colour = COLOURS[mode]
    width, style = (2.4 if mode == EBPF else 1.6), (":" if mode == NONE else "-")
    axes.plot(xs, ys, color=colour, linewidth=width, marker="o", markersize=4, linestyle=style)
    axes.vlines(xs, lows, highs, color=colour, linewidth=1.2)


def _parameter_axis(axes: Axes, sweep: Sweep) -> None:
    from matplotlib.ticker import NullLocator

    low, high = min(sweep.values), max(sweep.values)
    if low > 0 and high >= 8 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.28)
    else:
        axes.set_xlim(low - 0.04 * (high - low), high + 0.28 * (high - low))
    axes.set_xticks(sweep.values, [f"{value:,}" for value in sweep.values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(sweep.parameter)
    axes.grid(axis="y", color=INK, alpha=0.12)


def _end_labels(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """The modes' names at the ends of their lines, moved apart where they would lie on each other."""
    to_shown = axes.transData.transform
    at = {mode: float(to_shown(end)[1]) for mode, end in ends.items()}
    gap = 13 * axes.figure.dpi / 72
    placed = apart(at, gap)
    for mode, y in placed.items():
        axes.annotate(
            mode,
            ends[mode],
            xytext=(8, (y - at[mode]) * 72 / axes.figure.dpi),
            textcoords="offset points",
            color=COLOURS[mode],
            va="center",
            fontsize=9,
            weight="bold",
        )


def apart(at: Mapping[str, float], gap: float) -> dict[str, float]:
    """The same positions with at least `gap` between them, moved as a block around where they were."""
    placed: dict[str, float] = {}
    blocks: list[list[str]] = []
    for name in sorted(at, key=lambda each: at[each]):
        blocks.append([name])
        while len(blocks) > 1 and _bottom(blocks[-1], at, gap) < _top(blocks[-2], at, gap) + gap:
            last = blocks.pop()
            blocks[-1] += last
    for block in blocks:
        bottom = _bottom(block, at, gap)
        placed |= {name: bottom + number * gap for number, name in enumerate(block)}
    return placed


def _bottom(block: Sequence[str], at: Mapping[str, float], gap: float) -> float:
    return sum(at[name] for name in block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[str], at: Mapping[str, float], gap: float) -> float:
    return _bottom(block, at, gap) + gap * (len(block) - 1)


# ---- latencies --------------------------------------------------------------------------------


def draw_latency(group: Sequence[Histogram]) -> Figure:
    """One strip a mode, all over the same axis; the bucket of the median is full, the others are pale."""
    used = [i for each in group for i, count in enumerate(each.counts) if count]
    low, high = min(used), max(used) + 1
    figure, strips = new_figure(height=0.9 + 0.85 * len(group), rows=len(group))
    most = max(max(each.counts) / sum(each.counts) for each in group)
    for axes, histogram in zip(strips, group, strict=True):
        colour = COLOURS.get(histogram.mode, INK)
        middle, total = quantile(histogram, 0.5), sum(histogram.counts)
        for i in range(low, min(high, len(histogram.counts))):
            share = histogram.counts[i] / total
            axes.bar(i, share, width=0.96, align="edge", color=colour, alpha=0.95 if i == middle else 0.45)
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.12 * most)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0, labelbottom=False)
        words = f"median {bucket_text(middle)}\n99% within {bucket_text(quantile(histogram, 0.99))}"
        beside: Any = {"transform": axes.transAxes, "va": "center"}
        axes.text(-0.01, 0.5, histogram.mode, **beside, ha="right", color=colour, weight="bold")
        axes.text(1.01, 0.5, words, **beside, fontsize=8)
    edges = list(range(low, high + 1, max(1, (high - low) // 10)))
    strips[-1].tick_params(axis="x", length=3, labelbottom=True)
    strips[-1].set_xticks(edges, [re.sub("–[^ ]*", "", bucket_text(edge)) for edge in edges])
    figure.suptitle(group[0].title, x=0.01, ha="left", weight="bold")
    return figure
