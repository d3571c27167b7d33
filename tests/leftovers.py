# SPDX-License-Identifier: Apache-2.0
"""What a run of the suite has for itself, and what is left of it at the end.

A run of root's is in a network and a mount namespace of its own. So it cannot touch the machine's devices, mounts and
ports, what is in there is what it made, and two runs at once do not meet. Its processes are those that inherited its
name, and those in whose mount namespace its folder is: as it is mounted on itself, that is every one that was made
from the run's, the ones of containers too, whose shims start with an empty environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datapath.kernel import syscalls

VARIABLE = "DATAPATH_TEST_RUN"
MS_PRIVATE = 0x40000
# What every namespace has from when the module of such tunnels is loaded, which a test may be the first to need.
OF_MODULES = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "sit0", "ip6tnl0", "ip6gre0", "ip6_vti0")
)
PATIENCE = 60.0  # seconds for what is about to end: only a run that leaves something waits as long

Found = dict[str, set[str]]


class Mount(NamedTuple):
    device: str  # of the file system: "major:minor"
    root: str  # what of it is mounted
    point: str


def mounts(pid: int | str = "self") -> list[Mount]:
    text = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
    return [Mount(*line.split()[2:5]) for line in text.splitlines()]


class Run:
    """Made once, before anything else is. Without `apart` it has a name only, and shares all else."""

    def __init__(self, folder: Path, apart: bool) -> None:
        # A run within a run is part of it.
        self.name = ".".join(filter(None, [os.environ.get(VARIABLE), f"{os.getpid()}-{time.time_ns()}"]))
        os.environ[VARIABLE] = self.name
        self._folder: Mount | None = None
        if apart:
            syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
            syscalls.mount("", "/", flags=MS_PRIVATE | syscalls.MS_REC)
            syscalls.mount(str(folder), str(folder), flags=syscalls.MS_BIND)
            self._folder = next(mount for mount in mounts() if mount.point == str(folder.resolve()))
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._before = self.inventory()

    def inventory(self) -> Found:
        """What a careless test could leave. Without namespaces of its own a run makes processes only."""
        found: Found = {"processes": set(), "network namespaces": set()}
        if self._folder:
            found["devices"] = {name for _, name in socket.if_nameindex()} - OF_MODULES
            found["mounts"] = {mount.point for mount in mounts()}
            found["network namespaces"] = set(_held_by(os.getpid()))
        for pid in self._processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                if command:  # else it has ended, and its parent has not asked yet
                    found["processes"].add(f"{pid} {command.decode(errors='replace').strip()}")
                    found["network namespaces"].update(_held_by(pid))
        return found

    def left_behind(self, in_a_hurry: bool) -> Found:
        """What there is now and was not at the beginning; what is about to end gets the time for it."""
        deadline = time.monotonic() + (1 if in_a_hurry else PATIENCE)
        while True:
            after = self.inventory()
            left = {kind: things for kind in after if (things := after[kind] - self._before[kind])}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def _processes(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if self._is_ours(int(entry.name)):
                        yield int(entry.name)

    def _is_ours(self, pid: int) -> bool:
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if f"{os.fsdecode(variable)}.".startswith(f"{VARIABLE}={self.name}."):
                return True
        return self._folder is not None and any(
            mount.device == self._folder.device and f"{mount.root}/".startswith(f"{self._folder.root}/")
            for mount in mounts(pid)
        )


def _held_by(pid: int) -> Iterator[str]:
    """The network namespaces that its threads are in, and those that it has open."""
    for pattern in ("task/*/ns/net", "fd/*"):
        for link in Path(f"/proc/{pid}").glob(pattern):
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("net:"):
                    yield target
