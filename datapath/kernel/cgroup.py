# SPDX-License-Identifier: Apache-2.0
"""The mount point of the cgroup2 hierarchy, which on hybrid systems is below the v1 controllers, under any name."""

from __future__ import annotations

import os
from collections.abc import Iterator

from datapath.errors import KernelError, NotSupportedError

# The kernel's number of the hierarchy's root (BPF links tell it), which is the inode of its directory too.
ROOT = 1


def is_root(place: str) -> bool:
    """Whether all processes of the machine are below what is mounted there: in a cgroup namespace they are not."""
    try:
        return os.stat(place).st_ino == ROOT
    except OSError as error:
        raise KernelError("look at", f"control group {place}", error.errno or 0) from error


def mount_point(mounts: str = "/proc/self/mounts") -> str:
    """The first place where cgroup2 is mounted. NotSupportedError if it is nowhere."""
    for place, kind in _mounted(mounts):
        if kind == "cgroup2":
            return place
    raise NotSupportedError("a mounted cgroup2 hierarchy (mount -t cgroup2 none DIR)")


def mount_points(mounts: str = "/proc/self/mounts") -> list[str]:
    """Where hierarchies of either version are mounted."""
    return [place for place, _ in _mounted(mounts)]


def _mounted(mounts: str) -> Iterator[tuple[str, str]]:
    """Place and kind of every mounted hierarchy."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, place, kind, *_ = line.split(" ")
                if kind in ("cgroup", "cgroup2"):
                    yield _unescape(place), kind
    except OSError as error:
        raise KernelError("read", mounts, error.errno or 0) from error


def _unescape(place: str) -> str:
    """Undo the kernel's octal escapes of blanks, tabs, line breaks and backslashes."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        place = place.replace(code, chr(int(code[1:], 8)))
    return place
