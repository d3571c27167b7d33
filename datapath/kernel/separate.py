# SPDX-License-Identifier: Apache-2.0
"""A process apart for what talks to strangers: a child of this one that has given up everything which root may do, and
a pair of sockets to it."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from datapath.errors import InUseError, KernelError
from datapath.kernel.syscalls import prctl
from datapath.model.parsing import Address

Socket = socket.socket  # for those who only hand them on

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_NOBODY = 65534  # where nobody of that name is known
_BACKLOG = 128
_UNSENT = 30_000  # ms after which a connection ends whose other side takes nothing


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


@contextmanager
def listening(address: Address, port: int) -> Iterator[socket.socket]:
    """A socket for TCP there. InUseError: somebody has that port; KernelError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT)
        try:
            opened.bind((str(address), port))
            opened.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InUseError(f"another process listens at {address}, port {port}") from None
            raise KernelError("listen", f"{address}, port {port}", error.errno or 0) from error
        yield opened


def child(run: Callable[[], None], keep: Iterable[int]) -> int:
    """Forks; the child's pid. It has no descriptors but the standard ones and those to keep, no handlers of signals and
    a session of its own, runs, and ends; it is killed when this thread ends. What it raises is its exit code, 1."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _close_others({0, 1, 2, *keep})
        _die_with(parent)
        run()
        code = 0
    finally:
        os._exit(code)


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(int(name))


def _die_with(parent: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def become_nobody() -> None:
    """From now on this process is the user nobody, has no capabilities, and gains none by what it executes. OSError."""
    try:
        found = pwd.getpwnam("nobody")
        user, group = found.pw_uid, found.pw_gid
    except KeyError:
        user = group = _NOBODY
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _die_with(parent)  # which a change of the user has taken back
