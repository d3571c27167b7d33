# SPDX-License-Identifier: Apache-2.0
"""What this machine must offer, found out by asking for it, never by version numbers."""

from __future__ import annotations

import os
from pathlib import Path

from datapath.errors import NotSupportedError, PrivilegeError
from datapath.kernel import cgroup


def require() -> None:
    """Raises PrivilegeError or NotSupportedError naming the first thing that is missing."""
    if os.geteuid() != 0:
        raise PrivilegeError("needs root: run it with sudo")
    if "bpf" not in (line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()):
        raise NotSupportedError("the BPF file system (CONFIG_BPF_SYSCALL)")
    cgroup.mount_point()
