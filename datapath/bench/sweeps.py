# SPDX-License-Identifier: Apache-2.0
"""Groups series that are points of one line. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datapath.bench.model import Run, Series

FEWEST = 3  # points that make a line


@dataclass(frozen=True, slots=True)
class Sweep:
    """The same work on the same path with one parameter changed; `values[i]` is that of `series[i]`, ascending.
    `label` is what the points' labels have in common."""

    label: str
    title: str
    parameter: str
    values: tuple[int, ...]
    series: tuple[Series, ...]


def sweeps(run: Run) -> list[Sweep]:
    """Every line that can be drawn."""
    groups: dict[tuple[str, str, str], list[tuple[int, Series]]] = {}
    for series in run.series:
        if any(series.samples.values()):
            for name, value in series.point.parameters.items():
                groups.setdefault((_rest(series, name), name, series.unit), []).append((value, series))
    found = []
    for (rest, name, _), members in groups.items():
        members.sort(key=lambda member: member[0])
        values = tuple(value for value, _ in members)
        if len(set(values)) >= FEWEST:
            titles = {series.title for _, series in members}
            title = titles.pop() if len(titles) == 1 else rest
            found.append(Sweep(rest, title, name, values, tuple(series for _, series in members)))
    return found


def _rest(series: Series, name: str) -> str:
    """The label of the point without one of its parameters."""
    point = series.point
    others = {key: value for key, value in point.parameters.items() if key != name}
    return replace(point, parameters=others).label


def singles(run: Run) -> list[Series]:
    """What is on no line."""
    on_lines = {id(series) for sweep in sweeps(run) for series in sweep.series}
    return [series for series in run.series if id(series) not in on_lines and any(series.samples.values())]
