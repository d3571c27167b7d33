# SPDX-License-Identifier: Apache-2.0
"""When the agent starts itself again, in place: as another version that was installed, or because it has grown.

Loading the packet programs and building networks, after a restart of the machine for one, takes memory that Python
never gives back, and that following the host does not need.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import datapath

_LOOK = 2.0  # seconds
_PACKAGE = Path(datapath.__file__).parent
_FILES = (_PACKAGE / "__init__.py", _PACKAGE / "objects" / "digest", Path(__file__))
MOST = 34 << 20  # bytes resident
_SELDOM = 600.0  # seconds between two that are for memory: a large host may need more
_LAST = "DATAPATH_AGENT_SHRUNK"  # the time of the last of these, for the process that it becomes

Stamp = tuple[tuple[int, int], ...] | None


class Renewed(Exception):
    """It is to be started again; why."""


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
        """Renewed."""
        self._look_at = now + _LOOK
        before, self._seen = self._seen, _stamp()
        if self._seen is not None and self._seen == before != self._started:
            raise Renewed("another version is installed")
        if _resident() > MOST and now - float(os.environ.get(_LAST, "-inf")) > _SELDOM:
            os.environ[_LAST] = f"{now:.0f}"
            raise Renewed(f"{_resident() >> 20} MB are in use")


def _stamp() -> Stamp:
    """Of the files of this installation; None: some are not there."""
    try:
        found = [os.stat(path) for path in _FILES]
    except OSError:
        return None
    return tuple((one.st_mtime_ns, one.st_ino) for one in found)


def _resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
