# SPDX-License-Identifier: Apache-2.0
"""The whole suite leaves the machine as it found it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def inventory() -> dict[str, set[str]]:
    """What a careless test could leave: devices, mounts, BPF objects, container processes, held namespaces."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    processes, namespaces = set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "datapath.kernel import shim" in command or "sleep 3600" in command:
                processes.add(f"{entry.name} {command}")
            namespaces.add(os.readlink(entry / "ns" / "net"))
        except OSError:
            continue
    return {
        "devices": set(os.listdir("/sys/class/net")),
        "mounts": mounts,
        "processes": processes,
        "network namespaces": namespaces,
    }


def left_behind(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What there is now and was not then; what is about to end gets the time for it."""
    deadline = time.monotonic() + 10
    while True:
        after = inventory()
        left = {kind: after[kind] - before[kind] for kind in before if after[kind] - before[kind]}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The last assertion of the suite. Where several workers share the machine, whoever started them looks."""
    before = inventory()
    yield
    if "PYTEST_XDIST_WORKER" not in os.environ:
        left = left_behind(before)
        assert not left, f"left behind: {left}"
