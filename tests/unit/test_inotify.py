# SPDX-License-Identifier: Apache-2.0
"""News of files, of real ones."""

from __future__ import annotations

import os
import select
from pathlib import Path

from datapath.kernel.inotify import Written


def woken(one: Written) -> bool:
    return bool(select.select([one], [], [], 0)[0])


def test_what_is_written_to_a_file_is_said_once(tmp_path: Path) -> None:
    with Written("rows", "journal") as one:
        assert one.follow(tmp_path) and not one.follow(tmp_path)
        assert not woken(one) and not one.drain()
        (tmp_path / "other").write_text("x")
        assert not one.drain()
        (tmp_path / "journal").write_text("x")
        assert woken(one) and one.drain()
        assert not woken(one) and not one.drain()


def test_a_folder_that_takes_the_place_of_another_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Written("rows") as one:
        assert not one.follow(folder)
        folder.mkdir()
        assert one.follow(folder)
        folder.rmdir()
        assert not one.follow(folder)
        folder.mkdir()
        assert one.follow(folder)
        (folder / "rows").write_text("x")
        assert one.drain()


def test_more_than_the_kernel_keeps_is_still_news(tmp_path: Path) -> None:
    """It keeps max_queued_events, and joins those that follow each other and are alike."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with Written("rows") as one:
        one.follow(tmp_path)
        files = [os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY, 0o600) for name in ("a", "b")]
        for number in range(most + 2):
            os.pwrite(files[number % 2], b"x", 0)
        for fd in files:
            os.close(fd)
        assert one.drain()
