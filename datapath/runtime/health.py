# SPDX-License-Identifier: Apache-2.0
"""Checks of containers that are made inside of them: a command, which `exec` would run, without waiting for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from datapath.config.settings import Settings
from datapath.errors import NotFoundError, NotSupportedError
from datapath.kernel.probes import Outcome
from datapath.kernel.process import code_of, failure, pidfd
from datapath.model.containers import Container
from datapath.runtime import exec as runner
from datapath.runtime import groups
from datapath.runtime.start import environment

_SHELL = ("/bin/sh", "-c")
_KEPT = 4096  # bytes of output that are kept, as in Docker
_MOST = 1 << 20  # that are read: who writes more fails
_CHUNK = 65536
_killed: set[int] = set()  # pids


class CommandProbe:
    """A command in a running container, in its namespaces and its control group, as its user: whether its exit code is
    0. NotFoundError: the container has ended; KernelError."""

    def __init__(self, settings: Settings, container: Container, command: str) -> None:
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(pidfd(container.pid, container.pid_start))
            if target is None:
                raise NotFoundError("the container is not running")
            self._pid, self._output, self._report = runner.begin_in(
                target,
                {
                    "argv": [*_SHELL, command],
                    "env": environment(container),
                    "workdir": container.workdir or "/",
                    "user": container.user,
                    "tty": False,
                },
                _group(settings, container),
            )
        self._end = os.pidfd_open(self._pid)
        self._said, self._read = b"", 0
        self.waits = {self._end: select.EPOLLIN, self._output: select.EPOLLIN}

    def step(self, fd: int) -> Outcome | None:
        """None: it goes on. What it has begun besides may go on when its own process has ended."""
        if not self._take():
            return Outcome(False, f"the command has written more than {_MOST} bytes")
        if fd != self._end:
            return None
        code = self._reap()
        report = os.read(self._report, _CHUNK)  # what it has begun has it not: it is closed when it runs
        if report:
            return Outcome(False, str(failure(os.fsdecode(report))))
        text = self._said.decode(errors="replace").strip()
        return Outcome(code == 0, f"exit code {code}: {text}" if text else f"exit code {code}")

    def _take(self) -> bool:
        """Reads what is there of its output; False: it is too much."""
        with contextlib.suppress(BlockingIOError):
            part = os.read(self._output, _CHUNK)
            self._said = (self._said + part)[:_KEPT]
            self._read += len(part)
            if not part:  # nobody writes any more
                self.waits = {self._end: select.EPOLLIN}
        return self._read <= _MOST

    def _reap(self) -> int:
        pid, self._pid = self._pid, 0
        return code_of(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """Ends its process, with those of its session that there are, if it goes on."""
        if self._pid:
            for end in (os.killpg, os.kill):  # it may not have made itself a session yet
                with contextlib.suppress(ProcessLookupError):
                    end(self._pid, signal.SIGKILL)
            _killed.add(self._pid)
        for fd in (self._end, self._output, self._report):
            os.close(fd)


def reap() -> None:
    """Takes leave of commands that were killed. One that is stuck in the kernel is not waited for."""
    for pid in list(_killed):
        if os.waitpid(pid, os.WNOHANG)[0]:
            _killed.discard(pid)


def _group(settings: Settings, container: Container) -> Path | None:
    """The container's own control group, whose limits hold for the command."""
    with contextlib.suppress(NotSupportedError):
        found = groups.of(settings, container.id)
        if found.is_dir():
            return found
    return None
