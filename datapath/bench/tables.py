# SPDX-License-Identifier: Apache-2.0
"""A run as rows of text, for the terminal and for the page. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datapath.bench import bars, stats
from datapath.bench.compare import Comparison
from datapath.bench.model import DOCKER_DATAPATH, DOCKERS, MODES, NONE, Histogram, Ratio, Run, Series

Rows = list[list[str]]


@dataclass(frozen=True, slots=True)
class Table:
    """`name` is a heading, one word or a few."""

    name: str
    headings: list[str]
    rows: Rows


def tables(run: Run) -> list[Table]:
    """All that there is something in."""
    found = [
        *(promised(run), losses(run), absolute(run), relative(run), in_words(run)),
        *(latencies(run), costs(run), troubles(run)),
    ]
    return [table for table in found if table.rows]


def modes(run: Run) -> list[str]:
    """Those that were measured, in the usual order."""
    there = {mode for series in run.series for mode in series.samples}
    return [mode for mode in MODES if mode in there]


def absolute(run: Run) -> Table:
    """The medians, in the figures' own units."""
    wanted = modes(run)
    rows = []
    for series in run.series:
        found = stats.medians(series)
        if found:
            values = [stats.number(found[mode]) if mode in found else "" for mode in wanted]
            rows.append([series.point.label, f"{series.unit} {ARROW[series.better]}", *values])
    return Table("Medians", ["EXPERIMENT", "UNIT", *map(str.upper, wanted)], rows)


ARROW = {"higher": "↑", "lower": "↓"}
ARROWS = "↑ higher is better, ↓ lower is better"


def relative(run: Run) -> Table:
    """The subject's ratios to every other mode, as they were measured, and those of Docker's two modes."""
    wanted = modes(run)
    subject = stats.subject(wanted) if wanted else ""
    pairs = [(subject, mode) for mode in wanted if mode != subject]
    if subject != DOCKER_DATAPATH and set(DOCKERS) <= set(wanted):
        pairs.append(DOCKERS)
    rows = []
    for series in run.series:
        found = {pair: ratio for pair in pairs if (ratio := stats.ratio(series.samples, *pair))}
        if found:
            cells = [stats.ratio_text(found[pair]) if pair in found else "" for pair in pairs]
            first = next(iter(found.values()))
            rows.append(
                [
                    f"{series.point.label} {ARROW[series.better]}",
                    *cells,
                    f"{first.rounds} {series.stopped.partition(':')[0]}",
                ]
            )
    headings = ["/".join(pair).upper() for pair in pairs]
    return Table("Ratios", ["EXPERIMENT", *headings, "ROUNDS"], rows)


def in_words(run: Run) -> Table:
    """Who wins each experiment."""
    found = [(series, stats.ratios(series.samples)) for series in run.series]
    rows = [[series.point.label, verdict(series, ratios)] for series, ratios in found if ratios]
    return Table("In words", ["EXPERIMENT", "WHO WINS"], rows)


def losses(run: Run) -> Table:
    """The experiments in which another mode than the subject wins."""
    rows = []
    for series in run.series:
        for found in stats.ratios(series.samples):
            behind = stats.advantage(found.median, series.better) < 1 and not stats.tie(found)
            if found.base != NONE and stats.sure(found) and behind:
                rows.append([series.point.label, stats.outcome(found, series.better)])
    return Table("Where others win", ["EXPERIMENT", "WHO WINS"], rows)


def verdict(series: Series, found: Sequence[Ratio]) -> str:
    """Who wins, losses first: "iptables wins by 3.1%; tie with nftables; ebpf ahead of docker 2.3×". The mode
    without containers is a limit and not a competitor, unless there is no other."""
    rivals = [ratio for ratio in found if ratio.base != NONE] or list(found)
    groups: dict[str, list[str]] = {"lost": [], "tie": [], "won": [], "unknown": []}
    for ratio in rivals:
        words = stats.outcome(ratio, series.better)
        who, _, how_much = words.partition(" ")
        if not stats.sure(ratio):
            groups["unknown"].append(ratio.base)
        elif stats.tie(ratio):
            groups["tie"].append(ratio.base)
        elif who == ratio.base:
            groups["lost"].append(f"{ratio.base} wins {how_much}")
        else:
            groups["won"].append(f"{ratio.base} {how_much}")
    parts = [*groups["lost"]]
    if groups["tie"]:
        parts.append(f"tie with {', '.join(groups['tie'])}")
    if groups["won"]:
        parts.append(f"{rivals[0].mode} ahead of {', '.join(groups['won'])}")
    if groups["unknown"]:
        parts.append(f"too few rounds for {', '.join(groups['unknown'])}")
    return "; ".join(parts)


def promised(run: Run) -> Table:
    """The bars of what was measured, and which are met."""
    rows = []
    there = {series.point.label for series in run.series}
    for promise, found in bars.judged(run):
        if found or promise.label in there:
            bar = f"{'≤' if promise.most else '≥'} {promise.bar:g}"
            text = _found_text(found) if found else ""
            rows.append([promise.label, promise.figure, bar, text, promise.verdict(found)])
    return Table("Promised", ["EXPERIMENT", "FIGURE", "BAR", "MEASURED", "VERDICT"], rows)


def _found_text(found: bars.Found) -> str:
    number = stats.factor if found.value < 2 else stats.number
    if found.low == found.high:
        return number(found.value)
    return f"{number(found.value)} ({number(found.low)}–{number(found.high)})"


def costs(run: Run) -> Table:
    """What single things cost: a row a thing, a column a mode."""
    there = [mode for mode in MODES if any(cost.mode == mode for cost in run.costs)]
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for cost in run.costs:
        rows.setdefault((cost.subject, cost.what, cost.unit), {})[cost.mode] = cost.value
    return Table(
        "Costs",
        ["WHERE", "WHAT", "UNIT", *map(str.upper, there)],
        [
            [*key, *(stats.number(values[mode]) if mode in values else "" for mode in there)]
            for key, values in rows.items()
        ],
    )


def latencies(run: Run) -> Table:
    """Where the middle and the tail of each histogram are: between two powers of two."""
    headings = ["LATENCY", "MODE", "COUNT", "MEDIAN", "99%", "99.9%"]
    rows = [
        [histogram.title, histogram.mode, f"{sum(histogram.counts):,}"]
        + [bucket_text(quantile(histogram, part)) for part in (0.5, 0.99, 0.999)]
        for histogram in run.histograms
        if any(histogram.counts)
    ]
    return Table("Latencies", headings, rows)


def quantile(histogram: Histogram, part: float) -> int:
    """The bucket in which that part of all is reached."""
    wanted, seen = part * sum(histogram.counts), 0
    for bucket, count in enumerate(histogram.counts):
        seen += count
        if count and seen >= wanted:
            return bucket
    return 0


def bucket_text(bucket: int) -> str:
    """256–512 ns, 1.0–2.0 µs."""
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))
        if 2**bucket >= scale
    )
    return f"{stats.number(2**bucket / scale)}–{stats.number(2 ** (bucket + 1) / scale)} {unit}"


def troubles(run: Run) -> Table:
    """What failed, what was not reached, what cannot be had here."""
    failed = [
        [series.point.label, series.stopped]
        for series in run.series
        if series.stopped.startswith("failed") or series.stopped == "interrupted"
    ]
    skipped = [[what, why] for what, why in run.skipped.items()]
    return Table("Not measured", ["WHAT", "WHY"], failed + skipped)


def compared(comparison: Comparison) -> Table:
    """Every point and mode of both files; a regression is called one."""
    rows = [
        [
            change.point.label,
            f"{change.mode}/{base}",
            f"{stats.number(change.before)} → {stats.number(change.after)} {change.unit}",
            stats.ratio_text(change.ratio_before),
            stats.ratio_text(change.ratio_after),
            f"{100 * (change.times - 1):+.1f}%",
            "REGRESSION" if change.regression else change.verdict,
        ]
        for change in comparison.changes
        for base in [change.ratio_before.base]
    ]
    headings = ["EXPERIMENT", "MODES", "MEDIANS", "RATIO BEFORE", "RATIO AFTER", "BETTER BY", "VERDICT"]
    return Table("Comparison", headings, rows)


def flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What is known of the machine, a line a thing: "cpu model", "AMD EPYC"."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} ")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}".replace("_", " "), " ".join(map(str, value))
        else:
            yield f"{prefix}{key}".replace("_", " "), str(value)
