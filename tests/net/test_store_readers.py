# SPDX-License-Identifier: Apache-2.0
"""Readers of the state database beside a writer that has stopped, on file systems that tests/unit cannot mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.store import database, locking, snapshot_copy
from datapath.store.sqlite import SQLiteStore

HOLD = """
import fcntl, sys, time
held = [open(path, "r+b") for path in sys.argv[2:]]
for file in held:
    {"posix": fcntl.lockf, "flock": fcntl.flock}[sys.argv[1]](file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A directory on an overlay of two file systems, where a file's device number is that of a layer."""
    state, parts = tmp_path / "state", tmp_path / "parts"
    for path in (state, parts):
        path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "lower", parts], check=True)
    try:
        for name in ("low", "up", "work"):
            (parts / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "lower", parts / "low"], check=True)
        layers = f"lowerdir={parts / 'low'},upperdir={parts / 'up'},workdir={parts / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", state], check=True)
        yield state
        subprocess.run(["umount", state], check=True)
    finally:
        subprocess.run(["umount", "-R", parts], check=True)


@pytest.fixture
def holding() -> Iterator[list[subprocess.Popen[str]]]:
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def hold(holding: list[subprocess.Popen[str]], how: str, *paths: Path) -> None:
    """Have another process lock the files until the test ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, how, *paths], stdout=subprocess.PIPE, text=True)
    holding.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def test_a_reader_on_an_overlay_does_not_wait_for_a_writer_that_keeps_it_out(
    overlay: Path, holding: list[subprocess.Popen[str]]
) -> None:
    """As if the first process to open the file had stopped while it builds the journal's index."""
    with SQLiteStore(overlay) as store:
        path = store.path
    assert not snapshot_copy.kept_out(path)
    path.with_name("datapath.db-shm").touch()
    hold(holding, "posix", path.with_name("datapath.db-shm"))
    assert snapshot_copy.kept_out(path)
    began = time.monotonic()
    with SQLiteStore(overlay, reading=True) as reader:
        assert len(reader.load().networks) == 3
    assert time.monotonic() - began < database.BUSY_SECONDS  # what waiting would have taken


def test_the_holder_of_the_lock_is_seen_on_an_overlay(
    overlay: Path, holding: list[subprocess.Popen[str]]
) -> None:
    with SQLiteStore(overlay) as store, store.lock():
        pass
    assert not locking.held(overlay / "lock")
    hold(holding, "flock", overlay / "lock")
    assert locking.held(overlay / "lock")


def test_asking_who_holds_a_lock_keeps_ones_own(tmp_path: Path) -> None:
    """POSIX locks of a process go when it closes any ordinary descriptor of the file."""
    path = tmp_path / "file"
    path.touch()
    with path.open("r+b") as file:
        os.lockf(file.fileno(), os.F_LOCK, 0)
        assert locking.identity(path)
        code = f"import os; os.lockf(os.open({str(path)!r}, os.O_RDWR), os.F_TLOCK, 0)"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "Resource temporarily unavailable" in child.stderr
