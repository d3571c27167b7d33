# SPDX-License-Identifier: Apache-2.0
"""A run as a JSON file, with every sample in it, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from datapath.bench.model import Cost, Histogram, Point, Run, Sample, Series
from datapath.errors import ConfigError, quoted

FORMAT = 1
KIND = "datapath benchmark"

T = TypeVar("T")


def dumped(run: Run) -> str:
    """The file's text. Infinities and the like are no JSON: ValueError."""
    return json.dumps({"kind": KIND, **asdict(run)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(run: Run, path: Path) -> None:
    """All of it or nothing: a file that was there stays until the new one is complete."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(dumped(run), encoding="utf-8")
    os.replace(draft, path)


def read(path: Path) -> Run:
    """ConfigError when it is no such file, damaged, or of another format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON, or damaged: {error}") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ConfigError(f"{path} is no file that `bench run` wrote")
    if found.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {quoted(str(found.get('format')))}, this version reads {FORMAT} only"
        )
    try:
        return _run(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {_what(error)}") from error


def _what(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


# ---- from JSON, with every type looked at -----------------------------------------------------


def _run(found: Mapping[str, Any]) -> Run:
    return Run(
        format=FORMAT,
        started=_text(found["started"]),
        seconds=_number(found["seconds"]),
        command=_tuple(found["command"], _text),
        machine=_mapping(found["machine"], lambda value: value),
        series=_tuple(found["series"], _series),
        histograms=_tuple(found["histograms"], _histogram),
        costs=_tuple(found["costs"], _cost),
        skipped=_mapping(found["skipped"], _text),
    )


def _series(found: Any) -> Series:
    found = _mapping(found, lambda value: value)
    point = _mapping(found["point"], lambda value: value)
    better = found["better"]
    if better not in ("higher", "lower"):
        raise ValueError(f"better is {better!r}")
    samples = _mapping(found["samples"], lambda each: _tuple(each, _sample))
    if len({len(each) for each in samples.values()}) > 1:
        raise ValueError("modes with unequal numbers of rounds")
    return Series(
        point=Point(_text(point["workload"]), _text(point["path"]), _mapping(point["parameters"], _whole)),
        title=_text(found["title"]),
        unit=_text(found["unit"]),
        better=better,
        samples=samples,
        stopped=_text(found["stopped"]),
    )


def _sample(found: Any) -> Sample:
    found = _mapping(found, lambda value: value)
    return Sample(_number(found["value"]), _mapping(found["details"], lambda value: value))


def _histogram(found: Any) -> Histogram:
    found = _mapping(found, lambda value: value)
    return Histogram(_text(found["title"]), _text(found["mode"]), _tuple(found["counts"], _whole))


def _cost(found: Any) -> Cost:
    found = _mapping(found, lambda value: value)
    return Cost(
        mode=_text(found["mode"]),
        subject=_text(found["subject"]),
        what=_text(found["what"]),
        unit=_text(found["unit"]),
        value=_number(found["value"]),
    )


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r:.40} where a text is expected")
    return found


def _number(found: Any) -> float:
    """Not negative, and no NaN, which Python's JSON would let in."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < float("inf"):
        raise TypeError(f"{found!r:.40} where a number is expected")
    return float(found)


def _whole(found: Any) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise TypeError(f"{found!r:.40} where a whole number is expected")
    return found


def _tuple(found: Any, each: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(found, list):
        raise TypeError(f"{found!r:.40} where a list is expected")
    return tuple(each(value) for value in found)


def _mapping(found: Any, each: Callable[[Any], T]) -> dict[str, T]:
    if not isinstance(found, dict):
        raise TypeError(f"{found!r:.40} where an object is expected")
    return {key: each(value) for key, value in found.items()}
