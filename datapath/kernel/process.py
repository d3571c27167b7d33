# SPDX-License-Identifier: Apache-2.0
"""Processes named by (pid, start time), so that a number given out again is never taken for the old one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal as signals
import socket
import struct
from collections.abc import Iterable, Iterator

from datapath.errors import ConfigError, DatapathError, KernelError

_KILL_TIMEOUT = 10.0  # seconds that a killed process may take, e.g. in uninterruptible sleep
_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR)

# The lock of the command that is at work: a program that changes the host for it holds it too, for as long as it
# runs. If the command is killed meanwhile, the next one waits until the program has done what it was told.
kept: set[int] = set()


class ExecError(ConfigError):
    """The command could not be run. `exit_code` is a shell's: 127 not found, 126 otherwise."""

    def __init__(self, command: str, number: int, why: str = "") -> None:
        super().__init__(f"cannot run {command}: {why or os.strerror(number)}")
        self.command = command
        self.errno = number
        self.exit_code = 127 if number in _NOT_FOUND else 126


_TABLES = {"user": "/etc/passwd", "group": "/etc/group"}  # of the container


def failure(report: str) -> DatapathError:
    """What a child had to say before it gave up: operation, subject and errno, separated by tabs."""
    operation, subject, number = report.split("\t")
    if operation == "run" and number != "0":
        return ExecError(subject, int(number))
    if operation == "find":
        return ConfigError(f"unable to find {subject}: no matching entries in {_TABLES[subject.split()[0]]}")
    return KernelError(operation, subject, int(number))


def code_of(status: int) -> int:
    """The exit code as shells tell it: 128 + N after signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def lift(fd: int) -> int:
    """A duplicate out of the way of the standard fds and their neighbours."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks since boot (field 22 of stat). None: no such process, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise KernelError("look at", f"process {pid}", error.errno or 0) from error
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, start: int) -> bool:
    return pid > 0 and start_time(pid) == start


def peer(opened: socket.socket) -> tuple[int, int]:
    """(pid, start time) of the process that has connected to a Unix socket. (0, 0): it cannot be told, as that of a
    process in a pid namespace which is not below ours. A start time of 0 is nobody's: it has ended since."""
    try:
        pid, _, _ = struct.unpack("3i", opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return (pid, start_time(pid) or 0) if pid > 0 else (0, 0)
    except (OSError, KernelError):
        return 0, 0


@contextlib.contextmanager
def pidfd(pid: int, start: int) -> Iterator[int | None]:
    """An fd that stands for the process for good. None: it is not alive."""
    fd = None
    try:
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            # Of a number that is meanwhile another process's thread, or that is given up at this moment, older kernels
            # (6.1) say EINVAL, newer ones (6.18) ENOENT.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise KernelError("open", f"process {pid}", error.errno or 0) from error
            yield None
            return
        yield fd if alive(pid, start) else None  # asked after the fd was taken, so it holds for the fd
    finally:
        if fd is not None:
            os.close(fd)


def send(fd: int, signal: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signals.pidfd_send_signal(fd, signal)


def ended(fd: int, timeout: float) -> bool:
    """Wait until the process of the pidfd has ended; seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))


def terminate(pid: int, start: int, timeout: float, signal: int = signals.SIGTERM) -> bool:
    """End the process: the signal, then after `timeout` seconds SIGKILL. Whether the first was enough.

    Returns when it has ended; one that is not alive has. KernelError if it outlives SIGKILL.
    """
    with pidfd(pid, start) as fd:
        if fd is None:
            return True
        send(fd, signal)
        if ended(fd, timeout):
            return True
        send(fd, signals.SIGKILL)
        if not ended(fd, _KILL_TIMEOUT):
            raise KernelError("kill", f"process {pid}", detail="still there, it may be stuck in the kernel")
    return False


def kill_all(processes: Iterable[tuple[int, int]], failures: list[Exception]) -> None:
    """Ends processes, given by pid and start, all at once; returns when each has ended, or cannot be ended, which is
    added to the failures."""
    found = list(processes)
    for pid, start in found:
        with pidfd(pid, start) as fd:
            if fd is not None:
                send(fd, signals.SIGKILL)
    for pid, start in found:
        try:
            terminate(pid, start, _KILL_TIMEOUT, signals.SIGKILL)
        except KernelError as error:
            failures.append(error)
