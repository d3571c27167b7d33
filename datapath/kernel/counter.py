# SPDX-License-Identifier: Apache-2.0
"""A counter of the processor, such as that of instructions, over what the calling thread does in the kernel and out of
it. Many virtual machines have none."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_SYSCALL = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_HARDWARE, _SOFTWARE = 0, 1  # enum perf_type_id, linux/perf_event.h
INSTRUCTIONS = (_HARDWARE, 1)
TASK_CLOCK = (_SOFTWARE, 1)  # nanoseconds
_SIZE = 64  # PERF_ATTR_SIZE_VER0
_EXCLUDE_HV = 1 << 6


class Counter:
    """Counts while the block runs; `value` afterwards. None: this machine has no such counter, or does not let us."""

    def __init__(self, event: tuple[int, int] = INSTRUCTIONS) -> None:
        self._event = event
        self.value: int | None = None

    def __enter__(self) -> Counter:
        kind, config = self._event
        attributes = struct.pack("=IIQQQQQ", kind, _SIZE, config, 0, 0, 0, _EXCLUDE_HV).ljust(_SIZE, b"\0")
        number = _SYSCALL.get(platform.machine(), -1)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.syscall(number, attributes, 0, -1, -1, 0))  # this thread, any processor
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            self.value = int.from_bytes(os.read(self._fd, 8), "little")
            os.close(self._fd)
