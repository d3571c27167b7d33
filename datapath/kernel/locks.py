# SPDX-License-Identifier: Apache-2.0
"""Locks of files, flock(2), as the kernel lists them: to ask without ever holding one."""

from __future__ import annotations

import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Some process holds the flock of this file; False too if the file or the list cannot be read."""
    try:
        with path.open("rb") as file:
            major, minor = _file_system(file.fileno())
            wanted = f"{major:02x}:{minor:02x}:{os.fstat(file.fileno()).st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and wanted in line.split() for line in lines)


def _file_system(fd: int) -> tuple[int, int]:
    """The device number of the file system, as /proc/locks has it. st_dev may be another: btrfs has one for each
    subvolume, overlayfs one for each layer."""
    told = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    mount = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, device, *_ = line.split()
        if number == mount:
            major, _, minor = device.partition(":")
            return int(major), int(minor)
    status = os.fstat(fd)  # of a mount that is not in sight
    return os.major(status.st_dev), os.minor(status.st_dev)
