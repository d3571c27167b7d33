# SPDX-License-Identifier: Apache-2.0
"""What a page that stays open shows of a host: networks, containers, who talks to whom, and policies; and what of that
has changed since it was last looked at.

A picture is sections of entries by key, all of JSON: two of them are compared entry by entry, and only what differs
has to be sent to anybody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datapath.engine.engine import Engine
from datapath.model.flows import FlowLine, head_of
from datapath.model.state import State
from datapath.telemetry import snapshot
from datapath.telemetry.policies import listed

# Lines about who talks to whom: those that had a packet last. One container that scans ports makes thousands.
MOST_LINES = 5000
_AGAIN = 10.0  # seconds after which the state is read anew, whatever its files look like
# Policies are compiled to see what they have decided: again after two seconds at least, and for a hundredth of the time
# at most.
_PAUSE, _SHARE = 2.0, 100

Picture = dict[str, dict[str, dict[str, Any]]]


class Difference(NamedTuple):
    """`put`: section -> key -> entry that is new or another; `gone`: section -> keys that are not there any more."""

    put: Picture
    gone: dict[str, list[str]]


def difference(before: Picture, now: Picture) -> Difference:
    """What makes the one the other."""
    put: Picture = {}
    gone: dict[str, list[str]] = {}
    for section, entries in now.items():
        had = before.get(section, {})
        other = {key: entry for key, entry in entries.items() if had.get(key) != entry}
        left = [key for key in had if key not in entries]
        if other:
            put[section] = other
        if left:
            gone[section] = left
    return Difference(put, gone)


def patch(picture: Picture, put: Mapping[str, Any], gone: Mapping[str, Any]) -> None:
    """Makes the picture what the other one was, by the difference of the two."""
    for section, keys in gone.items():
        for key in keys:
            picture.get(section, {}).pop(key, None)
    for section, entries in put.items():
        picture.setdefault(section, {}).update(entries)


class Painter:
    """Makes pictures of one host, one after the other. What is in the store is read again when its files were written,
    so that a look costs what the tables of flows cost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = _Remembering(engine)
        self._lines: dict[str, dict[str, Any]] = {}
        self._policies: tuple[State | None, float, dict[str, dict[str, Any]]] = (None, 0.0, {})

    def picture(self) -> Picture:
        """As of now. Errors are those of `snapshot.take`."""
        found = snapshot.take(self._engine, most=MOST_LINES, counters=False)
        self._lines = _lines(found.totals, self._lines)
        rest = found.unplaced
        of_host = {
            "watched": sum(network.watched for network in found.networks),
            "more": len(self._lines) >= MOST_LINES,
            "unplaced": rest.sent_packets + rest.received_packets if rest else 0,
        }
        return {
            "networks": {one.name: one._asdict() for one in found.networks},
            "containers": {one.name or one.id[:12]: one._asdict() for one in found.members},
            "lines": self._lines,
            "policies": self._listed(),
            "host": {"": of_host},
        }

    def _listed(self) -> dict[str, dict[str, Any]]:
        state = self._engine.shown()
        if not state.policies:
            return {}
        had, due, made = self._policies
        if had is not state or time.monotonic() >= due:
            began = time.process_time()
            made = {
                glance.name: {**glance._asdict(), "openings": openings, "refused": refused}
                for glance, openings, refused in listed(self._engine, every=False)
            }
            pause = max(_PAUSE, _SHARE * (time.process_time() - began))
            self._policies = (state, time.monotonic() + pause, made)
        return made


class _Remembering(Engine):
    """The same engine for somebody who looks again and again."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.settings, engine.warn, tuple(engine.owners.values()))
        self._seen: tuple[object, float, State] | None = None

    def shown(self) -> State:
        files = self._files()
        if self._seen is None or self._seen[0] != files or time.monotonic() >= self._seen[1]:
            self._seen = (files, time.monotonic() + _AGAIN, super().shown())
        return self._seen[2]

    def _files(self) -> object:
        """What tells that the store has been written."""
        found = []
        for name in ("datapath.db", "datapath.db-wal"):
            try:
                stat = os.stat(self.settings.state_dir / name)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found


def _lines(found: Sequence[FlowLine], before: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By what they are about. One that counts what it did is the same, also in what it says of time, which is what
    reading a clock twice makes of it."""
    now = time.monotonic()
    made = {}
    for line in found:
        key = "\t".join(map(str, head_of(line)))
        entry, was = _line(line, now), before.get(key)
        made[key] = was if was is not None and _counts(was) == _counts(entry) else entry
    return made


def _counts(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["connections"], entry["sent_packets"], entry["received_packets"]


def _line(line: FlowLine, now: float) -> dict[str, Any]:
    """`first`, `last`: seconds of CLOCK_MONOTONIC."""
    entry = line._asdict()
    entry["first"], entry["last"] = round(now - entry.pop("opened"), 1), round(now - entry.pop("idle"), 1)
    return entry
