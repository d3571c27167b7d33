# SPDX-License-Identifier: Apache-2.0
"""The store keeps the desired state: through kills, two commands at once, and damage. Real files, real processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import ExistsError, StateError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase
from datapath.model.sandboxes import Sandbox
from datapath.store.sqlite import MAX_NUMBER, SQLiteStore
from tests.unit.store_rows import fill, network


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "state") as opened:
        yield opened


def python(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


# ---- first use ---------------------------------------------------------------------------------------


def test_only_its_owner_can_read_it(store: SQLiteStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


OPEN = """
from pathlib import Path
from datapath.store.sqlite import SQLiteStore
print(SQLiteStore(Path(sys.argv[1])).installation_id)
"""


def test_ten_commands_at_once_on_a_fresh_machine_make_one_store(tmp_path: Path) -> None:
    code = "import sys\n" + OPEN
    processes = [python(code, tmp_path / "state") for _ in range(10)]
    answers = {process.communicate(timeout=600)[0] for process in processes}
    assert len(answers) == 1
    assert [process.returncode for process in processes] == [0] * 10


def test_what_a_killed_first_command_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "datapath.db.new").write_bytes(b"half")
    with SQLiteStore(tmp_path) as store:
        assert len(store.load().networks) == 3
    assert not (tmp_path / "datapath.db.new").exists()


# ---- rows --------------------------------------------------------------------------------------------


def test_when_the_numbers_are_used_up_that_is_said(store: SQLiteStore) -> None:
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'endpoint'", (MAX_NUMBER,))
    with pytest.raises(StateError, match="used up"):
        store.next_number()


# ---- one at a time -------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from datapath.store.sqlite import SQLiteStore
store = SQLiteStore(Path(sys.argv[1]))
with store.lock():
    print("held", flush=True)
    time.sleep(3600)
"""


def test_the_lock_of_a_killed_command_is_free(store: SQLiteStore) -> None:
    process = python(HOLD, store.path.parent)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StateError), store.lock(0.05):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with store.lock(60):
        pass


COUNT = """
import sys
from pathlib import Path
from datapath.store.sqlite import SQLiteStore
store = SQLiteStore(Path(sys.argv[1]))
for _ in range(20):
    with store.lock(), store.transaction():
        print(store.next_number())
"""


def test_commands_that_run_at_once_get_different_numbers(store: SQLiteStore) -> None:
    processes = [python(COUNT, store.path.parent) for _ in range(4)]
    numbers = [int(n) for process in processes for n in process.communicate(timeout=600)[0].split()]
    assert sorted(numbers) == list(range(1, 81))


HUNGRY = """
import os, sys, time
from pathlib import Path
from datapath.store.sqlite import SQLiteStore
store = SQLiteStore(Path(sys.argv[1]))
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
while True:
    with store.lock():
        os.write(log, b".")
        time.sleep(0.005)
"""


def test_who_waits_for_the_lock_gets_it_before_those_who_come_later(
    store: SQLiteStore, tmp_path: Path
) -> None:
    """Commands that follow one another without a pause starve nobody."""
    log = tmp_path / "log"
    log.touch()
    hungry = [python(HUNGRY, store.path.parent, log) for _ in range(4)]
    try:
        while log.stat().st_size < 20:
            time.sleep(0.01)
        passed = []
        for _ in range(9):
            time.sleep(0.02)
            before = log.stat().st_size
            with store.lock():
                passed.append(log.stat().st_size - before)
    finally:
        for process in hungry:
            process.kill()
            process.communicate()
    assert sum(passed) < 9 * 20, passed


WRITE = """
import sys
from dataclasses import replace
from pathlib import Path
from datapath.model.sandboxes import Sandbox
from datapath.store.sqlite import SQLiteStore
store = SQLiteStore(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    with store.lock(), store.transaction():
        store.put(Sandbox(f"{number:064x}"))
        store.put(Sandbox(f"{number + 1:064x}"))
    number += 2
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_transactions_and_loses_none_that_was_reported(
    tmp_path: Path,
) -> None:
    for moment in (0.0, 0.003, 0.011, 0.02, 0.05):
        directory = tmp_path / str(moment)
        process = python(WRITE, directory)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            time.sleep(moment)
            process.kill()
            reported = process.stdout.read().split()
            process.wait()
        with SQLiteStore(directory) as store:
            found = len(store.load().sandboxes)
        assert found % 2 == 0
        assert found >= int(reported[-1] if reported else 0)


# ---- readers beside a writer that stands still -----------------------------------------------------------

PUT = """
import sys
from pathlib import Path
from datapath.model.sandboxes import Sandbox
from datapath.store.sqlite import SQLiteStore
with SQLiteStore(Path(sys.argv[1])) as store, store.lock(), store.transaction():
    store.put(Sandbox("b" * 64))
"""
LONG = bool(os.environ.get("DATAPATH_LONG"))
READS = 1.0  # seconds that a reader may take; the quickest of a few, as the machine may be slow


@pytest.fixture(scope="module")
def stopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("stopper") / "stopper.so"
    source = Path(__file__).with_name("stopper.c")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


def stopped(library: Path, directory: Path, at: int) -> int | None:
    """A writer that has stopped after its call number `at` on the files; None: it does not make as many."""
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", PUT, str(directory)],
        {**os.environ, "LD_PRELOAD": str(library), "STOP_AT": str(at)},
    )
    _, status = os.waitpid(process, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return process
    assert status == 0
    return None


def test_a_reader_does_not_wait_for_a_writer_that_was_stopped_at_whatever_step(
    tmp_path: Path, stopper: Path
) -> None:
    """Some steps shut everybody out of the file: the first command builds the journal's index, the last one takes
    the journal into the file. Killed there, it is no obstacle to the next writer either."""
    with SQLiteStore(tmp_path):
        pass
    at, step = 1, 1 if LONG else 8
    found = []
    while process := stopped(stopper, tmp_path, at):
        try:
            for attempt in range(20):
                began = time.monotonic()
                with SQLiteStore(tmp_path, reading=True) as reader:
                    seen = "b" * 64 in reader.load().sandboxes
                if time.monotonic() - began < READS:
                    break
                assert attempt < 19, f"at {at}"
            found.append(seen)
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        with SQLiteStore(tmp_path) as store, store.lock(60), store.transaction():
            store.put(Sandbox("a" * 64))
            store.delete(Sandbox("b" * 64))
        at += step
    assert at > 20, "the files are changed otherwise now"
    assert found == sorted(found) and {*found} == {False, True}


# ---- damage ---------------------------------------------------------------------------------------------


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGE = [
    ("emptied", lambda path: os.truncate(path, 0), "is damaged"),
    ("cut short", lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged"),
    ("overwritten", lambda path: path.write_bytes(b"garbage " * 1000), "is damaged"),
    ("a hole in the middle", lambda path: overwrite(path, 4096, bytes(8192)), "is damaged"),
    ("gone, but not its journal", lambda path: path.rename(path.with_name("datapath.db-wal")), "is damaged"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_file_is_reported_with_what_to_do_and_never_replaced(
    tmp_path: Path, damage: Any, message: str
) -> None:
    with SQLiteStore(tmp_path) as store:
        fill(store)
        path = store.path
    damage(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")}
    with pytest.raises(StateError, match=message) as caught:
        SQLiteStore(tmp_path)
    assert "put back a copy" in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")} == before


@pytest.mark.parametrize(
    "body", ["", "{}", "[]", '{"id": "x"}', "not json", '{"id": 1, "name": 2, "number": 3}']
)
def test_a_damaged_row_is_reported(store: SQLiteStore, body: str) -> None:
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE networks SET body = ? WHERE name = 'bridge'", (body,))
    with pytest.raises(StateError, match="is damaged \\(a row of networks cannot be read"):
        store.load()


def test_a_row_with_a_field_of_a_newer_version_is_reported_by_its_name(store: SQLiteStore) -> None:
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE networks SET body = json_set(body, '$.colour', 'red') WHERE name = 'host'")
    with pytest.raises(
        StateError, match="a row of networks cannot be read: unknown field 'colour' of Network"
    ):
        store.load()


@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        ("PRAGMA application_id = 7", "is not a state database of datapath"),
        ("PRAGMA user_version = 99", "has version 99, this program knows version 3"),
        ("PRAGMA user_version = 0", "it has version 0"),
        ("DELETE FROM meta", "installation is missing"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused(tmp_path: Path, pragma: str, message: str) -> None:
    with SQLiteStore(tmp_path) as store, sqlite3.connect(store.path) as db:
        db.execute(pragma)
    with pytest.raises(StateError, match=message):
        SQLiteStore(tmp_path)


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateError, match="state"):
        SQLiteStore(tmp_path / "state")


def test_a_lock_file_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store:
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StateError), store.lock():
            pass
    assert not (tmp_path / "elsewhere").exists()


# ---- many commands of one process ----------------------------------------------------------------------


def test_a_write_that_waits_for_no_disk_is_there_at_once_and_the_next_one_waits(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store, SQLiteStore(tmp_path) as other:
        with store.transaction(durable=False):
            store.put(network(name="first"))
        assert other.load().network("first")
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        with pytest.raises(ExistsError), store.transaction(durable=False):
            store.put(network(id="b" * 64, name="first", number=3, device="dp-b"))
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


# ---- size -----------------------------------------------------------------------------------------------


def test_two_hundred_containers_with_two_thousand_ports_are_loaded_with_as_many_queries_as_none(
    store: SQLiteStore,
) -> None:
    ports = tuple(PortMapping("tcp", None, 10000 + i, 80 + i) for i in range(10))
    with_none = queries_of_a_load(store)
    with store.transaction():
        store.put(network())
        for i in range(200):
            ident = f"{i:064x}"
            store.put(Sandbox(ident, phase=Phase.READY))
            store.put(Container(ident, f"c{i}", "now", ("true",), ports=ports, published=ports))
            address = IPv4Interface(f"10.0.{i // 250}.{i % 250 + 2}/16")
            mac = f"02:42:0a:00:00:{i:02x}"
            store.put(
                Endpoint(ident, "a" * 64, ident, i + 1, i, "eth0", f"veth{i}", mac, address, ports=ports)
            )
    assert len(store.load().endpoints) == 200
    assert queries_of_a_load(store) == with_none


def queries_of_a_load(store: SQLiteStore) -> int:
    queries: list[str] = []
    with SQLiteStore(store.path.parent) as again:
        again._db.set_trace_callback(queries.append)
        again.load()
    return len(queries)
