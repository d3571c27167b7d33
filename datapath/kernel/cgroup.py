# SPDX-License-Identifier: Apache-2.0
"""Where the cgroup2 hierarchy is: on hybrid systems it hangs below the v1 controllers, under any name."""

from __future__ import annotations

from datapath.errors import KernelError, NotSupportedError


def mount_point(mounts: str = "/proc/self/mounts") -> str:
    """The first place where cgroup2 is mounted. NotSupportedError if it is nowhere."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, place, kind, *_ = line.split(" ")
                if kind == "cgroup2":
                    return _unescape(place)
    except OSError as error:
        raise KernelError("read", mounts, error.errno or 0) from error
    raise NotSupportedError("a mounted cgroup2 hierarchy (mount -t cgroup2 none DIR)")


def _unescape(place: str) -> str:
    """Undo the kernel's octal escapes of blanks, tabs, line breaks and backslashes."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        place = place.replace(code, chr(int(code[1:], 8)))
    return place
