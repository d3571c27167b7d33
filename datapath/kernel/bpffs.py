# SPDX-License-Identifier: Apache-2.0
"""BPF file systems, in which objects are pinned."""

from __future__ import annotations

from pathlib import Path

from datapath.errors import KernelError
from datapath.kernel import syscalls

_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC of linux/magic.h


def is_bpffs(path: Path) -> bool:
    """Whether what is mounted at the path is a BPF file system."""
    return syscalls.statfs_type(str(path)) == _MAGIC


def mount(path: Path) -> None:
    """Mounts a new one on the folder. KernelError: the kernel refuses."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.mount("bpf", str(path), "bpf", flags, "mode=700")
    except OSError as error:
        raise KernelError("mount bpffs on", str(path), error.errno or 0) from error
