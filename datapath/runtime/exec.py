# SPDX-License-Identifier: Apache-2.0
"""One more command in a running container, in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal as signals
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from datapath.errors import KernelError, NotFoundError
from datapath.kernel import syscalls
from datapath.kernel.process import code_of, failure, lift, pidfd
from datapath.runtime import init, terminal
from datapath.runtime.report import describe
from datapath.runtime.stdio import StdioRelay, copy_window_size

_NAMESPACES = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS


def exec_in(
    pid: int,
    start: int,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    tty: bool = False,
    interactive: bool = False,
    workdir: str = "/",
    user: str = "",
) -> int:
    """Run a command beside the container's main process (pid, start), with the caller's fds. Its exit code.

    ExecError if it cannot be run, NotFoundError if the container is not running. It ends with the container.
    """
    spec = {"argv": list(argv), "env": dict(env), "workdir": workdir, "user": user, "tty": tty}
    with pidfd(pid, start) as target, contextlib.ExitStack() as stack:
        if target is None:
            raise NotFoundError("the container is not running")

        def ours(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        outer = -1
        try:
            stdio = (0, 1, 2)
            if tty:
                outer, inner = (ours(fd) for fd in os.openpty())
                copy_window_size(1, outer)
                stdio = (inner, inner, inner)
            elif not interactive:
                stdio = (ours(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)), 1, 2)
            report, report_end = os.pipe()
            ours(report)
            child = os.fork()
        except OSError as error:
            raise KernelError("run", argv[0], error.errno or 0) from error
        if child == 0:
            _become_member(target, spec, stdio, report_end)
        os.close(report_end)
        if said := os.read(report, 65536):  # end of file: it has exec'ed
            os.waitpid(child, 0)
            raise failure(os.fsdecode(said))
        return _foreground(child, outer, interactive)


def begin_in(target: int, spec: Mapping[str, object], group: Path | None) -> tuple[int, int, int]:
    """The same, without waiting for it: its pid, which the caller has to reap; a descriptor that its output can be read
    from; one at which, if it could not be run, there is why when it has ended. Neither makes who reads wait. It has a
    session of its own. `group`: the control group that it is to be in. KernelError."""
    try:
        output, output_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        report, report_end = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        child = os.fork()
    except OSError as error:
        raise KernelError("run", "a check", error.errno or 0) from error
    if child == 0:
        os.set_blocking(output_end, True)
        with contextlib.suppress(OSError):  # it goes at this moment
            if group is not None:
                (group / "cgroup.procs").write_text("0")
        _become_member(target, spec, (null, output_end, output_end), report_end)
    for fd in (output_end, report_end, null):
        os.close(fd)
    os.set_blocking(report, False)
    return child, output, report


def _become_member(
    target: int, spec: Mapping[str, object], stdio: tuple[int, int, int], report: int
) -> NoReturn:
    step = ["enter", "the container's namespaces"]
    try:
        report = lift(report)
        stdin, stdout, stderr = (lift(fd) for fd in stdio)
        for name in os.listdir("/proc/self/fd"):  # the container gets no other fd of the caller's
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
        os.setsid()
        sys.path.clear()  # whatever would be imported from here on would be the container's
        syscalls.setns(target, _NAMESPACES)  # the root directory comes with the mount namespace
        init.exec_program(spec, (stdin, stdout, stderr), step)
    except BaseException as error:
        os.write(report, describe(step, error))
    finally:
        os._exit(1)


def _foreground(child: int, outer: int, interactive: bool) -> int:
    """Until the command ends; with a terminal in between (outer >= 0) what it shows is shown."""

    def pass_on(number: int) -> None:
        if number != signals.SIGWINCH:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)  # nobody else's: only we reap it
        elif outer >= 0:
            copy_window_size(1, outer)

    with contextlib.ExitStack() as stack:
        stack.enter_context(terminal.signals_to(pass_on))
        if outer >= 0:
            end = os.pidfd_open(child)
            stack.callback(os.close, end)
            relay = StdioRelay()
            relay.terminal = outer
            relay.add(outer, 1)
            if interactive:
                stack.enter_context(terminal.raw())
                relay.add(0, relay.inward(outer))
            while end not in relay.step([end]):
                pass
            relay.drain()
        return code_of(os.waitpid(child, 0)[1])
