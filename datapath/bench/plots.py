# SPDX-License-Identifier: Apache-2.0
"""The plots of a run. Drawing needs matplotlib; what draws returns a figure and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from datapath.bench import stats
from datapath.bench.model import Run
from datapath.bench.plot_bars import LANES, draw_bars
from datapath.bench.plot_lines import draw_latency, draw_sweep
from datapath.bench.sweeps import singles, sweeps
from datapath.bench.tables import modes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Plot:
    """`name` is that of its file, without a suffix; `caption` what a reader sees, in a sentence."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def plots(run: Run) -> list[Plot]:
    """The plots of the run, in the order of the page."""
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
    how = (
        "Bars to the right are better, also where a lower figure is better; whiskers are 95% intervals, "
        "pale bars with “?” had too few rounds for one."
    )
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
