# SPDX-License-Identifier: Apache-2.0
"""The mount point of the cgroup2 hierarchy, which on hybrid systems is below the v1 controllers, under any name.

In a cgroup namespace, and below a bind mount, only a part of the hierarchy is seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import netns

_INIT = "/proc/1/root"  # the file system of the machine's first process, as far as it is seen
# The kernel's number of the hierarchy's root (BPF links tell it), which is the inode of its directory too.
ROOT = 1


def is_root(place: str) -> bool:
    """Whether all processes of the machine are below what is mounted there: in a cgroup namespace they are not."""
    try:
        return os.stat(place).st_ino == ROOT
    except OSError as error:
        raise KernelError("look at", f"control group {place}", error.errno or 0) from error


def mount_point(mounts: str = "/proc/self/mounts") -> str:
    """Where the root of cgroup2 is mounted, here or for the machine's first process; else the first place where a part
    of it is. NotSupportedError if it is nowhere."""
    places = [place for place, kind in _mounted(mounts) if kind == "cgroup2"]
    for place in (*places, *_of_init()):
        if _number(place) == ROOT:
            return place
    if not places:
        raise NotSupportedError("a mounted cgroup2 hierarchy (mount -t cgroup2 none DIR)")
    return places[0]


def _of_init() -> Iterator[str]:
    try:
        for place, kind in _mounted("/proc/1/mounts"):
            if kind == "cgroup2":
                yield _INIT + place
    except KernelError:
        return  # it is not seen from here


def _number(place: str) -> int:
    """The kernel's number of a control group; 0: there is none."""
    try:
        return os.stat(place).st_ino
    except OSError:
        return 0


def whole(place: str) -> int:
    """The number of the control group at the place if all processes of the caller's network namespace are in it, as far
    as can be told; else 0. A container with a network namespace of its own has all of its processes inside."""
    found = _number(place)
    return found if found == ROOT or not (netns.is_initial() or _outside()) else 0


def _outside() -> bool:
    """A process of the network namespace is outside of the caller's cgroup namespace."""
    own = netns.identity()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                away = any(line.startswith("0::/..") for line in file)
            if away and os.stat(f"/proc/{name}/ns/net").st_ino == own:
                return True
        except OSError:
            continue  # it has ended, or is not ours to look at
    return False


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
    for code in ("\\040", "\\011", "\\012", "\\134") if "\\" in place else ():
        place = place.replace(code, chr(int(code[1:], 8)))
    return place
