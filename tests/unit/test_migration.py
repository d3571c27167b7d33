# SPDX-License-Identifier: Apache-2.0
"""A database of an earlier version is read as it is, and taken to this version by the first command that locks it."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from datapath.errors import NewerStateError, StateError
from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping
from datapath.model.state import State
from datapath.store import schema, steps
from datapath.store.sqlite import SQLiteStore
from tests.unit.store_rows import WEB, fill, network

# What of the rows of version 1 had another name then.
ACL = PortMapping("tcp", None, 8081, 80, deny=(), acl=7)
OLD = (
    ("networks", '"built":true', '"realised":true'),
    ("endpoints", '"acl":7', '"filter":7'),
    ("containers", '"acl":7', '"filter":7'),
)
BUILT = network(name="built", id="b" * 64, number=3, device="dp-b", built=True)


def make_old(directory: Path) -> list[str]:
    """A database of version 1, and its rows as SQL."""
    with SQLiteStore(directory) as store:
        fill(store)
        endpoint = next(iter(store.load().endpoints.values()))
        store.put(BUILT)
        store.put(Endpoint(**{**{n: getattr(endpoint, n) for n in endpoint.__slots__}, "ports": (ACL,)}))
        store.put(Container(WEB, "web", "now", ("true",), ports=(ACL,), published=(ACL,)))
    with closing(sqlite3.connect(directory / "datapath.db")) as db:
        for table, now, before in OLD:
            changed = db.execute(
                f"UPDATE {table} SET body = replace(body, ?, ?) WHERE instr(body, ?)", (now, before, now)
            )
            assert changed.rowcount >= 1
        db.execute("DELETE FROM meta WHERE key = 'release'")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    return dump(directory / "datapath.db")


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    make_old(tmp_path)
    yield tmp_path


def check_rows(found: State) -> None:
    assert found.network("built") == BUILT
    assert [endpoint.ports for endpoint in found.endpoints.values()] == [(ACL,)]
    container = found.container("web")
    assert (container.ports, container.published) == ((ACL,), (ACL,))


def test_the_last_step_leads_to_this_version_and_each_to_the_one_after_the_step_before() -> None:
    assert [step.version for step in steps.STEPS] == list(range(2, schema.VERSION + 1))


def test_a_reader_reads_it_and_writes_nothing(old: Path) -> None:
    before = {path.name: path.read_bytes() for path in old.iterdir() if path.suffix == ".db"}
    with SQLiteStore(old, reading=True) as reader:
        check_rows(reader.load())
        assert reader.load() == reader.load()
        assert reader.note("sysctl") is None
        assert reader.file.outdated and reader.file.version == 1
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.suffix == ".db"} == before
    assert not list(old.glob("datapath.db.*"))


def test_a_reader_that_stays_sees_what_another_version_writes_and_when_it_is_taken_on(old: Path) -> None:
    with SQLiteStore(old, reading=True) as reader:
        check_rows(reader.load())
        with closing(sqlite3.connect(old / "datapath.db")) as db:
            db.execute("UPDATE networks SET body = replace(body, 'true', 'false') WHERE name = 'built'")
            db.commit()
        assert not reader.load().network("built").built
        with SQLiteStore(old) as writer, writer.lock():
            writer.put(BUILT)
        check_rows(reader.load())


def test_the_first_lock_takes_it_on_and_a_copy_is_kept(tmp_path: Path) -> None:
    before = make_old(tmp_path)
    with SQLiteStore(tmp_path) as store:
        check_rows(store.load())
        assert dump(store.path) == before, "nothing is written before it is locked"
        with pytest.raises(RuntimeError, match="under the lock"):
            store.put(BUILT)
        with store.lock():
            check_rows(store.load())
            store.put(BUILT)
        copy = store.file.kept
        with store.lock():
            pass
    assert copy == tmp_path / "datapath.db.v1"
    assert dump(copy) == before
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.new*"))
    text = "\n".join(dump(tmp_path / "datapath.db"))
    assert not any(was in text for _, _, was in OLD) and f"('release','{steps.STEPS[-1].release}')" in text
    with SQLiteStore(tmp_path) as again, again.lock():
        check_rows(again.load())
        assert again.file.kept is None
        again.destroy()
    assert not tmp_path.exists(), "the copy goes with it"


def test_the_copy_put_back_is_the_database_of_before(tmp_path: Path) -> None:
    before = make_old(tmp_path)
    with SQLiteStore(tmp_path) as store, store.lock():
        pass
    (tmp_path / "datapath.db.v1").rename(tmp_path / "datapath.db")
    assert dump(tmp_path / "datapath.db") == before
    with SQLiteStore(tmp_path, reading=True) as reader:
        check_rows(reader.load())


def test_two_commands_that_found_it_old_take_it_on_once(old: Path) -> None:
    with SQLiteStore(old) as first, SQLiteStore(old) as second:
        with first.lock():
            first.put(network(name="later", id="9" * 64, number=9, device="dp-9"))
        with second.lock():
            check_rows(second.load())
            assert second.load().network("later").number == 9
            assert (first.file.kept, second.file.kept) == (old / "datapath.db.v1", None)


@pytest.mark.parametrize(
    ("table", "body", "why"),
    [
        (
            "networks",
            '{"id":"x","realised":true,"built":true}',
            "old name 'realised' and its new one 'built'",
        ),
        ("endpoints", '{"ports":[1]}', "a row of endpoints cannot be read"),
        ("containers", "[]", "a row of containers cannot be read"),
        ("containers", "not json", "a row of containers cannot be read"),
    ],
)
def test_a_row_that_cannot_be_read_is_reported_and_nothing_changes(
    tmp_path: Path, table: str, body: str, why: str
) -> None:
    make_old(tmp_path)
    with closing(sqlite3.connect(tmp_path / "datapath.db")) as db:
        db.execute(f"UPDATE {table} SET body = ?", (body,))
        db.commit()
    before = dump(tmp_path / "datapath.db")
    for _ in range(2):
        with SQLiteStore(tmp_path) as store, pytest.raises(StateError, match=why) as caught, store.lock():
            pass
        assert "is damaged" in str(caught.value) and "\n" not in str(caught.value)
    with SQLiteStore(tmp_path, reading=True) as store, pytest.raises(StateError, match=why):
        store.load()
    assert dump(tmp_path / "datapath.db") == before


def test_a_version_before_services_refuses_a_database_that_may_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLiteStore(tmp_path) as store, store.lock():
        fill(store)
    monkeypatch.setattr(steps, "STEPS", steps.STEPS[:1])
    monkeypatch.setattr(schema, "VERSION", 2)
    said = r"version 3, this program knows version 2: use datapath 0\.1\.0"
    for reading in (False, True):
        with pytest.raises(NewerStateError, match=said):
            SQLiteStore(tmp_path, reading=reading).load()


# ---- more steps, and later versions -----------------------------------------------------------------------


def add_step(monkeypatch: pytest.MonkeyPatch, step: steps.Step) -> None:
    monkeypatch.setattr(steps, "STEPS", (*steps.STEPS, step))
    monkeypatch.setattr(schema, "VERSION", step.version)


def coloured(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE networks ADD COLUMN colour TEXT")
    steps.rewrite(db, "networks", lambda row: row.update(labels={"colour": "red"}))


def test_all_steps_are_taken_at_once_and_the_copy_is_of_the_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_old(tmp_path)
    add_step(monkeypatch, steps.Step(schema.VERSION + 1, "9.8", coloured))
    with SQLiteStore(tmp_path, reading=True) as reader:
        assert reader.load().network("built").labels == {"colour": "red"}
    with SQLiteStore(tmp_path) as store, store.lock():
        assert store.load().network("built").labels == {"colour": "red"}
    assert dump(tmp_path / "datapath.db.v1") == before
    assert {path.name for path in tmp_path.glob("datapath.db.*")} == {"datapath.db.v1"}


def test_a_step_that_fails_takes_those_before_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_old(tmp_path)

    def failing(db: sqlite3.Connection) -> None:
        coloured(db)
        raise ValueError("a row of networks cannot be read: no colour")

    add_step(monkeypatch, steps.Step(schema.VERSION + 1, "9.8", failing))
    with SQLiteStore(tmp_path) as store, pytest.raises(StateError, match="no colour"), store.lock():
        pass
    assert dump(tmp_path / "datapath.db") == before


def test_a_later_version_is_refused_by_the_name_of_the_release_that_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is opened; and when it was taken on while this process had it open."""
    make_old(tmp_path)
    this = schema.VERSION
    message = f"has version {this + 1}, this program knows version {this}: use datapath 9.8 or later"
    with SQLiteStore(tmp_path) as ours:
        with ours.lock():
            pass
        with monkeypatch.context() as later:
            add_step(later, steps.Step(schema.VERSION + 1, "9.8", coloured))
            with SQLiteStore(tmp_path) as theirs, theirs.lock():
                pass
        before = dump(tmp_path / "datapath.db")
        with pytest.raises(NewerStateError, match=message), ours.lock():
            pass
    for reading in (True, False):
        with pytest.raises(NewerStateError, match=message):
            SQLiteStore(tmp_path, reading=reading)
    assert dump(tmp_path / "datapath.db") == before


# ---- killed anywhere ---------------------------------------------------------------------------------------

TAKE_ON = """
import sys
from pathlib import Path
from datapath.store.sqlite import SQLiteStore
with SQLiteStore(Path(sys.argv[1])) as store, store.lock():
    pass
"""


@pytest.fixture(scope="module")
def stopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("stopper") / "stopper.so"
    source = Path(__file__).with_name("stopper.c")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


def test_killed_anywhere_it_is_the_old_one_or_the_new_one(tmp_path: Path, stopper: Path) -> None:
    """At each of its writes to the files: every reader, and the next command, finds all of it, of one version."""
    found, at, kept = [], 0, False
    while True:
        at += 1 if os.environ.get("DATAPATH_LONG") else 4
        directory = tmp_path / str(at)
        before = make_old(directory)
        environment = {**os.environ, "LD_PRELOAD": str(stopper), "STOP_AT": str(at)}
        process = os.posix_spawn(sys.executable, [sys.executable, "-c", TAKE_ON, str(directory)], environment)
        _, status = os.waitpid(process, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert status == 0
            break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        rows = dump(directory / "datapath.db")
        if rows[-1] == "(1,)":
            assert rows == before, at
        else:
            assert not any(was in "\n".join(rows) for _, _, was in OLD), at
            assert dump(directory / "datapath.db.v1") == before, at
        found.append(rows[-1])
        kept = kept or (directory / "datapath.db.v1").exists()
        with SQLiteStore(directory, reading=True) as reader:
            check_rows(reader.load())
        with SQLiteStore(directory) as store, store.lock():
            check_rows(store.load())
        assert dump(directory / "datapath.db.v1") == before, at
        assert not list(directory.glob("*.new*")), at
    assert len(found) > 5 and found == sorted(found) and {*found} == {"(1,)", f"({schema.VERSION},)"}, found
    assert kept
