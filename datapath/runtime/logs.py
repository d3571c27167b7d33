# SPDX-License-Identifier: Apache-2.0
"""Reads what a container has written, with the times that its shim has noted. See `logfile`."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_FOLLOW_INTERVAL = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class LogRequest:
    """`tail`: only so many lines from the end; `since`, `until`: only lines of that time (seconds since 1970);
    `timestamps`: the time before each line."""

    follow: bool = False
    tail: int | None = None
    since: float | None = None
    until: float | None = None
    timestamps: bool = False

    @property
    def plain(self) -> bool:
        """Nothing has to be known of times."""
        return self.since is None and self.until is None and not self.timestamps


def read(path: Path, request: LogRequest, alive: Callable[[], bool]) -> Iterator[bytes]:
    """The output in the log at the path, the older files of it first. While `alive`, what comes is followed."""
    old = [line for file in _older(path) for line in _Reader(file, hole=True).lines(request)]
    reader = _Reader(path)
    lines = [*old, *reader.lines(request)]
    if request.tail is not None:
        lines = lines[-request.tail :] if request.tail else []
    if lines:
        yield b"".join(lines)
    while request.follow:
        ended = not alive()
        if lines := reader.lines(request):
            yield b"".join(lines)
        if ended or (request.until is not None and time.time() > request.until):
            return
        time.sleep(_FOLLOW_INTERVAL)


def _older(path: Path) -> list[Path]:
    """The files before the newest one, the oldest first."""
    numbers = sorted(
        int(found.suffix[1:]) for found in path.parent.glob(f"{path.name}.*") if found.suffix[1:].isdigit()
    )
    return [path.with_name(f"{path.name}.{number}") for number in reversed(numbers)]


class _Reader:
    """A file of a log, read on from where it was. `hole`: it may begin with one, where a burst was left out."""

    def __init__(self, path: Path, hole: bool = False) -> None:
        self.path = path
        self._hole = hole
        self._position = 0
        self._within = False  # of a line

    def lines(self, request: LogRequest) -> list[bytes]:
        """The lines that have come, those that are wanted."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._position:  # it has been begun anew
                    self._position = 0
                file.seek(self._position)
                text = file.read()
        except FileNotFoundError:
            return []
        self._position += len(text)
        if self._hole and text.startswith(b"\0"):
            text = text.lstrip(b"\0")
            text = text.partition(b"\n")[2] or text  # the rest of a line
        found = text.splitlines(keepends=True)
        if request.plain:
            return found
        times = _times(self.path)
        position = self._position - len(text)
        wanted = []
        for line in found:
            position += len(line)
            when = _time_of(position, times)
            if request.since is not None and when < request.since * 1e9:
                continue
            if request.until is not None and when > request.until * 1e9:
                continue
            wanted.append(_stamp(when) + line if request.timestamps and not self._within else line)
            self._within = not line.endswith(b"\n")
        return wanted


def _times(path: Path) -> list[tuple[int, int]]:
    """Pairs of size and time, ascending. What is newer has the time when the file was last written."""
    try:
        data = path.with_name(path.name + ".times").read_bytes()
    except FileNotFoundError:
        data = b""
    whole = len(data) // 16 * 16
    return [
        (int.from_bytes(data[i : i + 8], "little"), int.from_bytes(data[i + 8 : i + 16], "little"))
        for i in range(0, whole, 16)
    ] + [(1 << 63, path.stat().st_mtime_ns)]


def _time_of(end: int, times: list[tuple[int, int]]) -> int:
    """When the log was first seen to have so many bytes, in ns."""
    return times[bisect.bisect_left(times, (end, 0))][1]


def _stamp(when: int) -> bytes:
    """RFC 3339 with nanoseconds, as Docker writes it."""
    moment = datetime.fromtimestamp(when // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{when % 10**9:09d}Z ".encode()
