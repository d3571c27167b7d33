# SPDX-License-Identifier: Apache-2.0
"""How a process that stays is told to end: SIGTERM and SIGINT, which interrupt nothing that it does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def signals() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A descriptor that can be read once the process is to end, and whether it is. For the main thread."""
    with ExitStack() as stack:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing))
        caught: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda n, _: caught.append(n)))
        yield reading, lambda: bool(caught)
