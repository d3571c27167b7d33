# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11's standard library lacks, under the kernel's own names.

Raises plain OSError with the path in it. Imports nothing but ctypes and os: the shim loads this file by its
path, in a child that lives for a few milliseconds, without the rest of the package.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_STRICTATIME = 0x1000000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
# Newer than some C libraries. A call this new has one number on every architecture but Alpha.
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 << 10  # what it is until glibc changes it

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, subject: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject or None)
    return result


def _path(path: str) -> bytes:
    return os.fsencode(path)


def return_memory() -> None:
    """From now on each large block goes back to the system when it is freed: glibc keeps such blocks once it has freed
    one, up to 32 MiB of them. Without effect in another C library."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace; for a pidfd, into those of its namespaces named by kind."""
    _check(_libc.setns(fd, kind))


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        _path(source) if source else None,
        _path(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, target)


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(_path(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.pivot_root(_path(new_root), _path(put_old)), new_root)


def setdomainname(name: str) -> None:
    encoded = os.fsencode(name)
    _check(_libc.setdomainname(encoded, ctypes.c_size_t(len(encoded))), name)


def sethostname(name: str) -> None:
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), name)


def open_tree(path: str, recursive: bool = False) -> int:
    """A copy of the mount at path that hangs nowhere yet: an fd for `move_mount`."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(
        _libc.syscall(
            ctypes.c_long(_NR_OPEN_TREE),
            ctypes.c_long(_AT_FDCWD),
            ctypes.c_char_p(_path(path)),
            ctypes.c_ulong(flags),
        ),
        path,
    )


def move_mount(fd: int, target: str) -> None:
    """Hang the mount that `open_tree` made at target; a symbolic link there is not followed."""
    _check(
        _libc.syscall(
            ctypes.c_long(_NR_MOVE_MOUNT),
            ctypes.c_long(fd),
            ctypes.c_char_p(b""),
            ctypes.c_long(_AT_FDCWD),
            ctypes.c_char_p(_path(target)),
            ctypes.c_ulong(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        target,
    )


def statfs_type(path: str) -> int:
    """f_type of the file system at path: a magic number of linux/magic.h."""
    # struct statfs begins with f_type, a long on every 64-bit architecture; the rest is not looked at.
    buffer = (ctypes.c_long * 32)()
    _check(_libc.statfs(_path(path), buffer), path)
    return int(buffer[0]) & 0xFFFFFFFF
