# SPDX-License-Identifier: Apache-2.0
"""The C library's heap of this process."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def spare() -> None:
    """From now on glibc gives back what it took for something large: blocks from 64 KiB have memory of their own,
    always, and threads, which are to come, share the one heap (mallopt(3)). Other C libraries need not be told."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (_M_MMAP_THRESHOLD, 64 << 10),
            (_M_TRIM_THRESHOLD, 128 << 10),
            (_M_ARENA_MAX, 1),
        ):
            mallopt(option, value)
