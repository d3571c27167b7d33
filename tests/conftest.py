# SPDX-License-Identifier: Apache-2.0
"""The whole suite leaves the machine as it found it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _inventory() -> dict[str, set[str]]:
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


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The last assertion of the suite."""
    before = _inventory()
    yield
    deadline = time.monotonic() + 10
    while True:
        after = _inventory()
        left = {kind: after[kind] - before[kind] for kind in before}
        if not any(left.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not any(left.values()), f"left behind: {left}"
