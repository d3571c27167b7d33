# SPDX-License-Identifier: Apache-2.0
"""What pretend hosts with container runtimes have in common: roots of other releases, and control groups to remove."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_PATIENCE = 10.0  # seconds

# For a shell, to be called in a mount and a process namespace that nobody else is in. The root is not written to; there
# the folders are seen at their own places, and what is mounted on /run is the same inside and outside.
ENTER = """
enter() {  # an empty folder, the root, folders to be seen
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/up" "$1/work" "$1/root"
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/up,workdir=$1/work" "$1/root"
    cd "$1/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount --rbind /sys/fs/cgroup sys/fs/cgroup
    mount --rbind /dev dev
    mount --rbind /run run
    shift 2
    for folder in "$@"; do mkdir -p ".$folder"; mount --rbind "$folder" ".$folder"; done
    mkdir -p mnt
    pivot_root . mnt
    umount -l /mnt
}
"""


def remove_groups(name: str) -> None:
    """Those below which a runtime has put its containers, with a name that begins so, of all controllers. A group is
    busy until the processes that were killed in it have gone."""
    end = time.monotonic() + _PATIENCE
    while folders := [*_GROUPS.glob(f"{name}*"), *_GROUPS.glob(f"*/{name}*")]:
        for folder in folders:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        if time.monotonic() > end:
            return
        time.sleep(0.05)
