# SPDX-License-Identifier: Apache-2.0
"""Notices that another version of datapath was installed: the agent is then started again, as that version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import datapath

_LOOK = 2.0  # seconds
_PACKAGE = Path(datapath.__file__).parent
_FILES = (_PACKAGE / "__init__.py", _PACKAGE / "objects" / "digest", Path(__file__))

Stamp = tuple[tuple[int, int], ...] | None


class Renewed(Exception):
    """Another version is installed."""


class Renewal:
    """The job of noticing it. An installation is under way until two looks see the same."""

    def __init__(self) -> None:
        self._started = self._seen = _stamp()
        self._look_at = 0.0

    def wakes(self, now: float) -> Sequence[int]:
        return ()

    def due(self) -> float:
        return self._look_at

    def work(self, now: float) -> None:
        self._look_at = now + _LOOK
        before, self._seen = self._seen, _stamp()
        if self._seen is not None and self._seen == before != self._started:
            raise Renewed


def _stamp() -> Stamp:
    """Of the files of this installation; None: some are not there."""
    try:
        found = [os.stat(path) for path in _FILES]
    except OSError:
        return None
    return tuple((one.st_mtime_ns, one.st_ino) for one in found)
