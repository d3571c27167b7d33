# SPDX-License-Identifier: Apache-2.0
"""One record at DEBUG of each operation on the kernel, with how long it took, for those who have set up logging.

Importing `logging` costs a command several milliseconds, so nothing here does: a process in which nobody has imported
it has set up none. Loggers are called like the rooms: datapath.kernel, datapath.dataplane, datapath.telemetry.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

_SILENT = nullcontext()


def operation(
    what: str | Callable[[], str], subject: object = "", detail: object = None, room: str = "kernel"
) -> AbstractContextManager[None]:
    """Logs the block when it ends: "write map ports (10000): 3.120 ms", or that it failed. `what` may be a function,
    which is called only if there is a record to write."""
    logging = sys.modules.get("logging")
    if logging is None:
        return _SILENT
    logger = logging.getLogger(f"datapath.{room}")
    if not logger.isEnabledFor(logging.DEBUG):
        return _SILENT
    return _Timed(logger, f"{what if isinstance(what, str) else what()} {subject}".strip(), detail)


class _Timed:
    """Measures a block and logs it."""

    def __init__(self, logger: Logger, what: str, detail: object) -> None:
        self._logger = logger
        self._what = what if detail is None else f"{what} ({detail})"
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        milliseconds = (time.perf_counter() - self._began) * 1000
        if error is None:
            self._logger.debug("%s: %.3f ms", self._what, milliseconds)
        else:
            self._logger.debug("%s: %.3f ms, failed: %s", self._what, milliseconds, error or kind)
