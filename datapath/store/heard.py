# SPDX-License-Identifier: Apache-2.0
"""When this host last heard of its cluster: a file in the run directory, which goes with a restart of the machine.

Whoever asks the store writes it, and so does the agent as long as it hears of changes. Time is the machine's since its
start, with what it has slept: a clock that is set does not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

_NAME = "cluster"


class Heard(NamedTuple):
    """`age`: seconds since all that other hosts had changed was known here; `revision`: the store's then; `error`: why
    the store did not answer since, "": it was not asked, or did."""

    age: float
    revision: int
    error: str = ""


def write(run_dir: Path, revision: int, error: str = "", at: float | None = None) -> None:
    """All up to this revision is known now, or was `at` that time of CLOCK_BOOTTIME. Whether it can be written does not
    matter to anybody."""
    at = now() if at is None else at
    path = run_dir / _NAME
    with contextlib.suppress(OSError):
        run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        beside = path.with_name(f".{_NAME}.{os.getpid()}")
        beside.write_text(json.dumps({"at": round(at, 3), "revision": revision, "error": error}))
        beside.replace(path)


def read(run_dir: Path) -> Heard | None:
    """None: nothing was heard since the machine has started."""
    try:
        found = json.loads((run_dir / _NAME).read_text())
        return Heard(max(0.0, now() - float(found["at"])), int(found["revision"]), str(found["error"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def fail(run_dir: Path, error: str) -> None:
    """The store does not answer: what is known is of when it last did."""
    before = read(run_dir)
    if before is not None:
        write(run_dir, before.revision, error, now() - before.age)


def discard(run_dir: Path) -> None:
    """The host is in no cluster any more."""
    with contextlib.suppress(OSError):
        (run_dir / _NAME).unlink()


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
