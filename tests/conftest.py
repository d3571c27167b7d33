# SPDX-License-Identifier: Apache-2.0
"""The whole suite leaves the machine as it found it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

# How much longer everything may take: in an emulated machine ten times is little.
SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))


def inventory() -> dict[str, set[str]]:
    """What a careless test could leave: devices, mounts, BPF objects, container processes, held namespaces."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    processes, namespaces = set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "datapath.runtime import shim" in command or "sleep 3600" in command:
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


BEFORE, LEFT = pytest.StashKey[dict[str, set[str]]](), pytest.StashKey[dict[str, set[str]]]()


def is_worker() -> bool:
    """Several of them share the machine: whoever started them looks at what is left."""
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_sessionstart(session: pytest.Session) -> None:
    if not is_worker():
        session.config.stash[BEFORE] = inventory()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last assertion of the suite: nothing is left."""
    if is_worker() or session.config.option.collectonly:
        return
    left = left_behind(session.config.stash[BEFORE])
    if left:
        session.config.stash[LEFT] = left
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = terminalreporter.config.stash.get(LEFT, None)
    if left:
        terminalreporter.section("left behind", red=True)
        for kind, things in left.items():
            terminalreporter.line(f"{kind}: {', '.join(sorted(things))}")
