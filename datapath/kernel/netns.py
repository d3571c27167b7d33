# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: going in and back, and telling one from another.

A namespace is a path, an open fd, or None for the caller's own. What was tried (Linux 6.18) and is relied on:
entering is per thread, and so is everything resolved inside `enter`: sockets, `/proc/sys/net` and
`/proc/thread-self/net` are those of the entering *thread*. `/proc/net` and `/proc/self/net` are not: they
show the namespace of the process's main thread. An fd or socket keeps the namespace it was opened in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator

from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import syscalls

Netns = str | int | None

OWN = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE = 71
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h


def _open(netns: str | int) -> int:
    """An fd of our own for the namespace."""
    try:
        return os.dup(netns) if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", f"network namespace {netns}", error.errno or 0) from error


@contextlib.contextmanager
def enter(netns: Netns) -> Iterator[None]:
    """Run the block in the namespace, on this thread alone, then come back."""
    if netns is None:
        yield
        return
    target = _open(netns)
    try:
        own = _open(OWN)
        try:
            _setns(target, str(netns))
            try:
                yield
            finally:
                _setns(own, "of the caller")
        finally:
            os.close(own)
    finally:
        os.close(target)


@contextlib.contextmanager
def new() -> Iterator[int]:
    """A namespace of the block's own; it is gone with the block, unless somebody else holds it by then."""
    with enter(OWN):
        syscalls.unshare(syscalls.CLONE_NEWNET)
        made = _open(OWN)
    try:
        yield made
    finally:
        os.close(made)


def _setns(fd: int, name: str) -> None:
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    except OSError as error:
        raise KernelError("enter", f"network namespace {name}", error.errno or 0) from error


def cookie(netns: Netns = None) -> int:
    """The kernel's number for the namespace: never used twice until the machine restarts."""
    with enter(netns):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                raw = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                raise NotSupportedError("cookies of network namespaces", "5.14") from error
            raise KernelError("read", "the network namespace's cookie", error.errno or 0) from error
    return int.from_bytes(raw, sys.byteorder)


def identity(netns: Netns = None) -> int:
    """The namespace's inode number: unique among the living, may be used again once it is gone."""
    try:
        return os.fstat(netns).st_ino if isinstance(netns, int) else os.stat(netns or OWN).st_ino
    except OSError as error:
        raise KernelError("look at", f"network namespace {netns or OWN}", error.errno or 0) from error


def is_namespace(path: str) -> bool:
    """Whether a network namespace is at the path; for one that was bind-mounted there and unmounted it is not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == syscalls.CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def is_inhabited(path: str) -> bool:
    """Whether a process is in the network namespace at the path. Asks every process there is; those that may not be
    asked are passed over."""
    if not is_namespace(path):
        return False
    wanted = identity(path)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}/ns/net").st_ino == wanted:
                    return True
    return False


def is_initial() -> bool:
    """Whether the caller is in the namespace that the machine started with.

    Told by a setting that exists in no other one: /proc/1 may be somebody else's or not be readable.
    """
    return os.path.exists("/proc/sys/net/core/netdev_max_backlog")
