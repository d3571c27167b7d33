# SPDX-License-Identifier: Apache-2.0
"""Containers as processes: created, started, waited for.

Between `spawn` and `release` the process exists in its namespaces and runs nothing, so that its network can
be made ready. If the caller is killed meanwhile, it disappears by itself. Afterwards its shim (see shim.py)
looks after it. If the shim is killed, the container goes on; once it has ended, `alive` is false and
`read_exit` is None: its code is unknown.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal as signals
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import NoReturn

from datapath.errors import KernelError
from datapath.kernel import syscalls
from datapath.kernel.process import ExecError as ExecError
from datapath.kernel.process import ended, failure, lift, send
from datapath.kernel.process import start_time as start_time
from datapath.runtime import terminal

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BOOT = "import sys; sys.path.append({!r}); from datapath.runtime import shim; shim.main()"
_ABORT_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to run, and where. Paths are the host's."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str = "/"
    user: str = ""
    netns: str = "new"  # or "host", or the path of a namespace to join
    hostname: str = ""
    domainname: str = ""
    hosts: str = ""  # files laid over those in /etc; "": leave what is there
    resolv_conf: str = ""
    hostname_file: str = ""
    rootfs: str = ""  # "": the host's file system
    log: str
    log_size: int = 0  # bytes; 0: without end
    log_files: int = 1
    exit_file: str
    exited: tuple[str, ...] = ()  # command to run at the end, with the exit code as one more argument
    exited_env: Mapping[str, str] = field(default_factory=dict)
    cgroup: str = ""  # the control group to run in, whose parent is the shim's; "": the caller's
    detach: bool = True
    tty: bool = False
    interactive: bool = False


class Created:
    """A started process that waits to be let go. Leaving the `with` block before `release` aborts it.

    In the foreground, `wait` goes inside the block too.
    """

    pid: int
    start: int  # clock ticks since boot
    shim_pid: int
    shim_start: int
    netns: str  # path, while the process lives

    def __init__(self, spec: Spec, up: int, go: int) -> None:
        self._spec = spec
        self._up = up
        self._go = go
        self._lines = b""
        self._processes: list[int] = []  # pidfds: the main process, the shim
        self._foreground = contextlib.ExitStack()
        self.released = False
        try:
            fields = self._read_line().split()
            self.pid, self.shim_pid = int(fields[1]), int(fields[2])
            for pid in (self.pid, self.shim_pid):
                self._processes.append(os.pidfd_open(pid))
            self.netns = f"/proc/{self.pid}/ns/net"
            self.start, self.shim_start = start_time(self.pid) or 0, start_time(self.shim_pid) or 0
        except OSError as error:
            self.abort()
            raise KernelError("watch", "the new container", error.errno or 0) from error
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Created:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.released:
            self.abort()
        self._close()

    def release(self) -> None:
        """Let it become the user's program; that has happened when this returns.

        ExecError if the command cannot be run, KernelError if its surroundings cannot be made. Nothing is
        left then, and the `exited` command is not run.
        """
        try:
            if not self._spec.detach:  # from here on a signal is the process's, not the caller's
                self._foreground.enter_context(terminal.signals_to(self._pass_on))
            with contextlib.suppress(BrokenPipeError):
                os.write(self._go, b"g")
            self._read_line()
        except BaseException:
            self.kill(signals.SIGKILL)
            self.abort()
            raise
        self.released = True
        if self._spec.detach:
            self._close()

    def abort(self) -> None:
        """End it, whatever it is doing. Returns when its processes have ended; twice is fine."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        deadline = time.monotonic() + _ABORT_TIMEOUT
        for fd in self._processes:
            if not ended(fd, deadline - time.monotonic()):
                send(fd, signals.SIGKILL)
                ended(fd, _ABORT_TIMEOUT)
        self._close()

    def wait(self) -> int | None:
        """Stay in the foreground until the end: the exit code, 128 + N after signal N. None: the shim died.

        Returns after the `exited` command has run. Signals go to the process, window sizes to its terminal.
        """
        try:
            if self._spec.tty and self._spec.interactive:
                self._foreground.enter_context(terminal.raw())
            return int(self._read_line().split()[1])
        except KernelError:
            return None
        finally:
            self._close()

    def _pass_on(self, number: int) -> None:
        send(self._processes[number == signals.SIGWINCH], number)

    def kill(self, signal: int) -> None:
        """Send a signal to the main process: before `release`, or in the foreground before `wait` returns."""
        if self._processes:
            send(self._processes[0], signal)

    def _read_line(self) -> str:
        """The shim's next line; KernelError or ExecError if it tells of a failure or says no more."""
        while b"\n" not in self._lines:
            part = os.read(self._up, 4096)
            if not part:
                raise KernelError("start", self._spec.argv[0], detail="the container's shim has died")
            self._lines += part
        raw, _, self._lines = self._lines.partition(b"\n")
        line = os.fsdecode(raw)
        if line.startswith("failed "):
            raise failure(line.removeprefix("failed "))
        return line

    def _close(self) -> None:
        self._foreground.close()
        for fd in (self._up, self._go, *self._processes):
            if fd >= 0:
                os.close(fd)
        self._up = self._go = -1
        self._processes = []


def spawn(spec: Spec) -> Created:
    """Start the shim and the main process, which waits for `release`. KernelError if it cannot be done."""
    with contextlib.ExitStack() as stack:

        def ours(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        try:
            content = ours(os.memfd_create("spec"))
            _write_all(content, marshal.dumps(asdict(spec) | {"argv": list(spec.argv)}))
            os.lseek(content, 0, os.SEEK_SET)
            up, up_end = os.pipe()
            ours(up_end)
            go_end, go = os.pipe()
            ours(go_end)
            null = ours(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            pid = os.fork()
        except OSError as error:
            raise KernelError("start", spec.argv[0], error.errno or 0) from error
        if pid == 0:
            stdio = (null, null, null) if spec.detach else (0 if spec.interactive else null, 1, 2)
            _become_shim((*stdio, content, up_end, go_end))
        os.waitpid(pid, 0)
    return Created(spec, up, go)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _become_shim(fds: tuple[int, ...]) -> NoReturn:
    """In the forked child: a grandchild in a session of its own, which nobody here has to reap."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)  # survives exec
        for number, fd in enumerate([lift(fd) for fd in fds]):
            os.dup2(fd, number)
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", _BOOT.format(_ROOT)], {})
    finally:
        os._exit(127)
