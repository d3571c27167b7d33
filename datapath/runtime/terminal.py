# SPDX-License-Identifier: Apache-2.0
"""The caller's side of a foreground process: forwards signals, and sets the terminal to raw mode."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from types import FrameType

_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


@contextlib.contextmanager
def signals_to(receiver: Callable[[int], None]) -> Iterator[None]:
    """Hand the signals of a user or supervisor to `receiver`. On threads other than the main one: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        receiver(number)

    before = {number: signal.signal(number, handler) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def raw(fd: int = 0) -> Iterator[None]:
    """Keys reach the process unchanged (^C too) until the block ends. Does nothing if it is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
