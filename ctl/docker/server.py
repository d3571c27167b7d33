# SPDX-License-Identifier: Apache-2.0
"""The process that answers Docker: started by the service manager when Docker first asks, and gone when it does not
ask any more; or by hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from datapath.config.settings import Settings
from datapath.errors import ConfigError, printable
from datapath.host import Host
from datapath.kernel import features, syscalls, unix_server
from datapath.kernel.ending import signals
from datapath.kernel.notify import notify

from .driver import Driver
from .names import Learner

IDLE = 30.0  # seconds, of one that the service manager has started


def say(line: str) -> None:
    """A line for the journal."""
    print(f"datapathctl docker: {printable(line)}", file=sys.stderr, flush=True)


def serve(settings: Settings, socket: Path | None, idle: float | None, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT, or until nobody has asked for `idle` seconds. `socket`: None: the one that the service
    manager passes, which stays its own. `say` takes lines for the journal. ConfigError: none is passed. InUseError:
    another process serves that socket. PrivilegeError, KernelError."""
    syscalls.return_memory()
    with ExitStack() as stack:
        stop, _ = stack.enter_context(signals())
        passed = unix_server.inherited(os.environ) if socket is None else None
        if socket is None and passed is None:
            raise ConfigError("no socket was passed: name one with --socket")
        features.require()
        opened = stack.enter_context(passed or unix_server.listening(socket or Path()))
        host = Host.open(settings, say, lasting=True)
        learner = Learner(host, dict(os.environ))
        stack.callback(learner.close)
        driver = Driver(host, learner.notice, say)
        notify("READY=1")
        unix_server.Server(opened, driver.handle, keep=False).run(stop, idle)
        notify("STOPPING=1")
