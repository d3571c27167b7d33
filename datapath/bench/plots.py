# SPDX-License-Identifier: Apache-2.0
"""A run as figures. Needs matplotlib; every function here that draws returns a figure and writes nothing."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import floor, isfinite, log2, log10
from typing import TYPE_CHECKING, Any

from datapath.bench import stats
from datapath.bench.model import EBPF, MODES, NONE, Histogram, Ratio, Run, Series
from datapath.bench.sweeps import Sweep, singles, sweeps
from datapath.bench.tables import bucket_text, modes, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(zip(MODES, ("#0b72d0", "#d1495b", "#dd8f1d", "#239a86", "#818b98"), strict=True))
INK = "#1b1f24"  # the page puts the reader's own colour in its place
WIDTH = 9.6  # inches; at DPI it is about as wide as a README is shown
DPI = 150
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
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
LANES = {"": "control plane"}


@dataclass(frozen=True, slots=True)
class Plot:
    """`name` is that of its file, without a suffix; `caption` what a reader sees, in a sentence."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def plots(run: Run) -> list[Plot]:
    """What there is to draw, in the order of the page."""
    found: list[Plot] = []
    there = modes(run)
    reference = stats.reference(there) if there else None
    if reference:
        found += _bars(run, there, reference)
        found += [
            Plot(
                f"sweep-{_slug(f'{sweep.label} {sweep.parameter}')}",
                f"{sweep.title} by the number of {sweep.parameter}: medians, and all relative to {reference}.",
                partial(draw_sweep, sweep, reference),
            )
            for sweep in sweeps(run)
        ]
    titles = dict.fromkeys(histogram.title for histogram in run.histograms if any(histogram.counts))
    for title in titles:
        group = [each for each in run.histograms if each.title == title and any(each.counts)]
        caption = f"{title}: how long it took, as a share of all; the axis is logarithmic."
        found.append(Plot(f"latency-{_slug(title)}", caption, partial(draw_latency, group)))
    return found


def _bars(run: Run, there: Sequence[str], reference: str) -> Iterable[Plot]:
    subject = stats.subject(there)
    measured = [series for series in singles(run) if stats.ratio(series.samples, subject, reference)]
    if not measured:
        return
    paths = list(dict.fromkeys(series.point.path for series in measured))
    measured.sort(key=lambda series: paths.index(series.point.path))
    how = "Bars to the right are better, also where a lower figure is better; whiskers are 95% intervals."
    yield Plot(
        "summary",
        f"{subject} relative to {reference}, all of the work. {how}",
        partial(draw_bars, measured, [subject], reference),
    )
    others = [mode for mode in there if mode != reference]
    for path in paths:
        group = [series for series in measured if series.point.path == path]
        yield Plot(
            f"relative-{_slug(LANES.get(path, path))}",
            f"{LANES.get(path, path)}: every mode relative to {reference}. {how}",
            partial(draw_bars, group, others, reference),
        )


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split())


# ---- bars -------------------------------------------------------------------------------------


def draw_bars(group: Sequence[Series], shown: Sequence[str], reference: str) -> Figure:
    """A block of bars for each series, one a mode, from the line of the reference; paths under headings."""
    figure, (axes,) = _figure(height=1.0)
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


def sorted_advantages(found: Ratio, series: Series) -> tuple[float, float, float]:
    """How many times better: the median, and the ends of the interval, the lower one first."""
    value, *ends = (stats.advantage(each, series.better) for each in (found.median, found.low, found.high))
    return value, min(ends), max(ends)


def times_text(value: float) -> str:
    return f"{value:.2f}×" if 0.1 <= value < 10 else f"{stats.number(value)}×"


# ---- sweeps -----------------------------------------------------------------------------------


def draw_sweep(sweep: Sweep, reference: str) -> Figure:
    """Left the figures, right the ratios; both over the parameter, on a logarithmic axis."""
    figure, (left, right) = _figure(height=4.0, columns=2)
    first = sweep.series[0]
    ends: dict[str, float] = {}
    relative_ends: dict[str, float] = {}
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
        ends[mode] = points[-1][1]
        seen += [value for point in points for value in point[1:]]
        _relative_line(right, sweep, mode, reference, relative_ends)
    if min(seen) > 0 and max(seen) > 8 * min(seen):
        left.set_yscale("log")
        _number_ticks(left.yaxis, *left.get_ylim())
    else:
        left.set_ylim(0, 1.08 * max(seen))
    left.set_title(f"{first.unit} ({first.better} is better)")
    right.set_title(f"times as good as {reference} (higher: better)")
    right.axhline(1, color=COLOURS[reference], linewidth=1.6)
    right.set_yscale("log", base=2)
    relative_ends[reference] = 1.0
    _ratio_ticks(right.yaxis, *right.get_ylim())
    figure.suptitle(sweep.title, x=0.01, ha="left", weight="bold")
    for axes in (left, right):
        _parameter_axis(axes, sweep)
    figure.draw_without_rendering()  # only now the axes are where they stay
    for axes, last in ((left, ends), (right, relative_ends)):
        _end_labels(axes, max(sweep.values), last)
    return figure


def _relative_line(axes: Axes, sweep: Sweep, mode: str, reference: str, ends: dict[str, float]) -> None:
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
        ends[mode] = points[-1][1]


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


def _end_labels(axes: Axes, x: float, ends: Mapping[str, float]) -> None:
    """The modes' names at the ends of their lines, moved apart where they would lie on each other."""
    to_shown = axes.transData.transform
    at = {mode: float(to_shown((x, y))[1]) for mode, y in ends.items()}
    gap = 13 * axes.figure.dpi / 72
    placed = apart(at, gap)
    for mode, y in placed.items():
        axes.annotate(
            mode,
            (x, ends[mode]),
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
    figure, strips = _figure(height=0.9 + 0.85 * len(group), rows=len(group))
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


# ---- what all have in common ------------------------------------------------------------------


def _figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.patch.set_alpha(0)
    made = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in made:
        axes.patch.set_alpha(0)
    return figure, made


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
    _ratio_ticks(axes.xaxis, *axes.get_xlim())
    axes.grid(axis="x", color=INK, alpha=0.12)
    axes.set_axisbelow(True)


_ABOVE = (1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_BELOW = (0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)


def _ratio_ticks(axis: Any, low: float, high: float) -> None:
    """1, and as many round factors on both sides as there is room for, the nearest to 1 first."""
    gap = log2(high / low) / 12
    kept = [1.0]
    for tick in sorted((*_ABOVE, *_BELOW), key=lambda each: abs(log2(each))):
        if low < tick < high and all(abs(log2(tick / other)) >= gap for other in kept):
            kept.append(tick)
    _plain_ticks(axis, sorted(kept), "×")


def _number_ticks(axis: Any, low: float, high: float) -> None:
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
