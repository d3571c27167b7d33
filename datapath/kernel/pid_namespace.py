# SPDX-License-Identifier: Apache-2.0
"""Runs work in a PID namespace, so that it leaves no process and no mount behind, however it ends.

The work has a PID and a mount namespace of its own. If its first process or the caller is killed, the
kernel ends every process in there, and unmounts what was mounted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from datapath.errors import KernelError
from datapath.kernel import syscalls
from datapath.kernel.process import code_of

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Callable[[], int]) -> int:
    """The exit code of `work`. Signals are passed on to it.

    It is run in a fork of the caller, whose open files and modules it has.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)
            first = os.fork()
            if first == 0:
                _first_process(work)
            syscalls.setns(own, syscalls.CLONE_NEWPID)  # for what the caller starts from now on
        finally:
            os.close(own)
    except OSError as error:
        raise KernelError("make", "a process namespace", error.errno or 0) from error
    before = {number: signal.signal(number, lambda n, _: _pass_on(first, n)) for number in _PASSED_ON}
    try:
        return code_of(os.waitpid(first, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _first_process(work: Callable[[], int]) -> NoReturn:
    """Process 1 of the namespace: it waits for orphans. When it ends, all others do."""
    code = 255
    try:
        os.setpgid(0, 0)  # a terminal's Ctrl-C comes once, by way of the caller
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", flags=syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.mount("proc", "/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
        worker = os.fork()
        if worker == 0:
            code = 1
            code = work()
        else:
            for number in _PASSED_ON:
                signal.signal(number, lambda n, _: _pass_on(worker, n))
            while True:
                pid, status = os.wait()
                if pid == worker:
                    code = code_of(status)
                    break
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
