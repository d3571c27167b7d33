# SPDX-License-Identifier: Apache-2.0
"""Whether a container's end is recorded can be told without the library. Real files, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.model.containers import Container
from datapath.model.rows import Phase, Status
from datapath.store import reserve
from datapath.store.glance import knows_end
from datapath.store.locking import identity
from datapath.store.sqlite import SQLiteStore
from tests.unit.store_rows import DB, WEB, fill

ENDED = Container(WEB, "web", "now", ("true",), status=Status.EXITED, phase=Phase.READY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "100%3f? #1"
    with SQLiteStore(found) as store:
        fill(store)
    return found


@pytest.mark.parametrize(
    ("row", "known"),
    [
        (ENDED, True),
        (replace(ENDED, status=Status.RUNNING), False),
        (replace(ENDED, status=Status.CREATED), False),
        *((replace(ENDED, phase=phase), False) for phase in (Phase.CREATING, Phase.REMOVING)),
    ],
)
def test_what_is_left_to_be_done_for_a_container_is_not_passed_over(
    folder: Path, row: Container, known: bool
) -> None:
    with SQLiteStore(folder) as store:
        store.put(row)
    assert knows_end(str(folder), WEB) == known
    assert knows_end(str(folder), DB)  # there is no such container


def test_nobody_asks_where_everything_has_been_taken_away(folder: Path, tmp_path: Path) -> None:
    assert knows_end(str(tmp_path / "nowhere"), WEB)
    with SQLiteStore(folder) as store:
        store.destroy()
    assert knows_end(str(folder), WEB) and not folder.exists()


def test_what_cannot_be_read_is_left_to_the_command_that_says_so(folder: Path) -> None:
    (folder / "datapath.db").write_bytes(b"this is no database" * 100)
    assert not knows_end(str(folder), WEB)
    (folder / "lock").unlink()
    assert not knows_end(str(folder), WEB)


def test_it_waits_for_the_command_that_is_recording_it(folder: Path) -> None:
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(knows_end(str(folder), WEB)))
    with SQLiteStore(folder) as store:
        store.put(replace(ENDED, status=Status.RUNNING))
        with store.lock():
            asking.start()
            while not waited_for(folder / "lock"):
                assert asking.is_alive()
                time.sleep(0.002)
            store.put(ENDED)
        asking.join()
    assert found == [True]


def test_space_that_a_command_could_not_keep_again_as_the_lock_was_taken_here_is_kept_here(
    folder: Path,
) -> None:
    with SQLiteStore(folder) as store:
        store.put(ENDED)
    assert not (folder / "reserve").exists()
    assert knows_end(str(folder), WEB)
    assert (folder / "reserve").stat().st_size == reserve.size(folder)


def waited_for(lock: Path) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and identity(lock) in line for line in lines)


@pytest.mark.parametrize(("container", "says"), [(DB, "[]\n"), (WEB, "goes on\n")])
def test_the_command_of_a_containers_parent_loads_nothing_if_its_end_is_known(
    folder: Path, container: str, says: str
) -> None:
    """Each container that is stopped or removed starts one. One that has ended by itself needs the library."""
    script = """
import sys, ctl.main
if sys.argv.pop(1) == "goes on":
    import ctl.cli.main
    ctl.cli.main.main = lambda: print("goes on")
try:
    ctl.main.main()
except SystemExit:
    print([name for name in ("click", "datapath.engine", "datapath.kernel", "datapath.model") if name in sys.modules])
"""
    with SQLiteStore(folder) as store:
        store.put(replace(ENDED, status=Status.RUNNING))
    done = subprocess.run(
        [sys.executable, "-c", script, says.strip(), "_exited", container, "0"],
        env=os.environ | {"DATAPATH_STATE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, says), done.stderr


@pytest.mark.parametrize(
    ("words", "folder", "says"),
    [
        (["id", "zero"], "/nowhere", "'zero' is not a valid integer"),
        (["id"], "/nowhere", "Missing argument 'EXIT_CODE'"),
        (["id", "0"], "nowhere", "it must be an absolute path"),
        (["id", "0"], "", "DATAPATH_STATE_DIR is empty"),
    ],
)
def test_what_no_parent_of_a_container_says_is_a_mistake_still(
    words: list[str], folder: str, says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", "_exited", *words],
        env=os.environ | {"DATAPATH_STATE_DIR": folder},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "") and says in done.stderr
