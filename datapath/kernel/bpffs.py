# SPDX-License-Identifier: Apache-2.0
"""BPF file systems, and the pins in them, which keep maps, programs and links alive without any process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from datapath.errors import KernelError
from datapath.kernel import bpf_calls as bpf
from datapath.kernel import log, syscalls

_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC of linux/magic.h


def unmount(path: Path) -> None:
    """KernelError: the kernel refuses."""
    try:
        with log.operation("unmount", path):
            syscalls.umount(str(path))
    except OSError as error:
        raise KernelError("unmount", str(path), error.errno or 0) from error


def is_bpffs(path: Path) -> bool:
    """Whether what is mounted at the path is a BPF file system."""
    return syscalls.statfs_type(str(path)) == _MAGIC


def mount(path: Path) -> None:
    """Mounts a new one on the folder. KernelError: the kernel refuses."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        with log.operation("mount bpffs on", path):
            syscalls.mount("bpf", str(path), "bpf", flags, "mode=700")
    except OSError as error:
        raise KernelError("mount bpffs on", str(path), error.errno or 0) from error


def pin(fd: int, path: Path) -> None:
    """Pins a map, program or link. KernelError: the kernel refuses, EEXIST if there is a pin of that name."""
    with log.operation("pin", path):
        bpf.check(bpf.lib.bpf_obj_pin(fd, os.fsencode(path)), "pin", str(path))


def unpin(path: Path) -> bool:
    """Removes a pin; False: there is none. Without other pins and fds, what was pinned goes: a link's program is
    detached. KernelError: the kernel refuses."""
    try:
        with log.operation("unpin", path):
            os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError("unpin", str(path), error.errno or 0) from error
    return True


def get_pinned(path: Path | str) -> int | None:
    """The fd of a pinned object; None: there is no such pin."""
    fd: int = bpf.lib.bpf_obj_get(os.fsencode(path))
    if fd >= 0:
        return fd
    if fd == -errno.ENOENT:
        return None
    raise bpf.error("open pin", str(path), fd)
