# SPDX-License-Identifier: Apache-2.0
"""Control groups of a run: made, locked while the run lives, and removed, also those that killed runs have left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from datapath.errors import KernelError
from datapath.kernel import cgroup

_PREFIX = "datapath-bench-"
_PATIENCE = 5.0  # seconds that killed processes may take to leave a group


@contextlib.contextmanager
def group(name: str) -> Iterator[Path]:
    """A group of the cgroup2 hierarchy. Groups of its name in other hierarchies are removed with it."""
    root = Path(cgroup.mount_point())
    _sweep(root)
    place = root / f"{_PREFIX}{name}"
    try:
        place.mkdir()
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("make", f"control group {place}", error.errno or 0) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is free once its run has ended
        yield place
    finally:
        deadline = time.monotonic() + _PATIENCE
        while not _remove(place.name) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.close(fd)


def _sweep(root: Path) -> None:
    for old in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(old.name)
            finally:
                os.close(fd)


def _remove(name: str) -> bool:
    """In every hierarchy, with what is below. False: a process is still in there."""
    done = True
    for root in cgroup.mount_points():
        if not os.path.isdir(f"{root}/{name}"):
            continue
        for folder, _, _ in os.walk(f"{root}/{name}", topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                done = False
    return done
