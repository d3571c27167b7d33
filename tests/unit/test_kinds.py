# SPDX-License-Identifier: Apache-2.0
"""The table of kinds drives store and snapshots: a further kind needs an entry in it and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from datapath.errors import ConfigError, ExistsError, NotFoundError, StateError
from datapath.model.kinds import KINDS, Column, Kind
from datapath.model.rows import Phase, Row
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State
from datapath.store.sqlite import SQLiteStore
from tests.unit.test_model import CONTAINER, ENDPOINT, NETWORK

VERSION_1 = Path(__file__).with_name("data") / "store_version_1.sql"


@dataclass(frozen=True, slots=True)
class Balancer:
    """A kind that only this test knows: an address of a network that stands for several endpoints."""

    id: str
    name: str
    network_id: str
    vip: IPv4Address | None = None
    backends: tuple[str, ...] = ()
    phase: Phase = Phase.CREATING


BALANCERS = Kind(
    Balancer,
    "balancers",
    (
        Column("name", unique=True),
        Column("network_id", refers_to="networks"),
        Column("vip", str, lambda balancer: balancer.vip and str(balancer.vip), optional=True),
    ),
    unique=(("network_id", "vip"),),
    missing="balancer {} not found",
)
FIVE = (*KINDS, BALANCERS)
WEB = Balancer("5" * 64, "web", NETWORK.id, IPv4Address("10.0.0.99"), (ENDPOINT.id,))


@pytest.fixture(params=["new", "version 1"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLiteStore]:
    """A store with the fifth kind in it: made with it, and made before anybody knew of it."""
    if request.param == "version 1":
        make_version_1(tmp_path)
    with SQLiteStore(tmp_path, kinds=FIVE) as opened:
        with opened.lock():  # which takes it to this version
            opened.put(NETWORK)
        yield opened


def make_version_1(directory: Path) -> None:
    with sqlite3.connect(directory / "datapath.db") as db:
        db.executescript(VERSION_1.read_text())
    db.close()


# ---- a fifth kind ------------------------------------------------------------------------------------


def test_a_further_kind_is_stored_loaded_found_and_deleted(store: SQLiteStore) -> None:
    store.put(WEB)
    state = store.load()
    assert state.rows(Balancer) == {WEB.id: WEB}
    assert state.get(Balancer, "web") == state.get(Balancer, "555") == state.named(Balancer, "web") == WEB
    assert state.network("br1") == NETWORK
    with SQLiteStore(store.path.parent, reading=True, kinds=FIVE) as reader:
        assert reader.load() == state
    store.put(replace(WEB, phase=Phase.READY))
    assert store.load().get(Balancer, "web").phase is Phase.READY
    store.delete(WEB)
    assert store.load().rows(Balancer) == {}


def test_a_further_kind_has_its_unique_values_and_references(store: SQLiteStore) -> None:
    store.put(WEB)
    with pytest.raises(ExistsError, match=r"already taken: balancers\.name$"):
        store.put(replace(WEB, id="6" * 64, vip=None))
    with pytest.raises(ExistsError, match=r"already taken: balancers\.network_id, balancers\.vip$"):
        store.put(replace(WEB, id="6" * 64, name="other"))
    for number in (6, 7):
        store.put(replace(WEB, id=str(number) * 64, name=f"other{number}", vip=None))
    with pytest.raises(StateError, match="in use"):
        store.delete(NETWORK)
    rows: tuple[Row, ...] = (NETWORK, *store.load().rows(Balancer).values(), *store.load().endpoints.values())
    with store.transaction():
        for row in rows:
            store.delete(row)


def test_what_was_interrupted_is_found_before_what_it_refers_to(store: SQLiteStore) -> None:
    ready = replace(CONTAINER, phase=Phase.READY)
    with store.transaction():
        for row in (ready, replace(ENDPOINT, phase=Phase.CHANGING), Sandbox(CONTAINER.id), WEB):
            store.put(row)
    kinds = [type(row).__name__ for row in store.load().unfinished]
    assert kinds == ["Balancer", "Endpoint", "Sandbox", "Network"]


def test_a_snapshot_is_never_changed(store: SQLiteStore) -> None:
    before = store.load()
    with_it = before.including(WEB, replace(NETWORK, name="renamed"))
    assert with_it.get(Balancer, "web") == WEB
    assert with_it.find_network("br1") is None and with_it.find_network("renamed") is not None
    assert with_it.without(WEB, NETWORK).rows(Balancer) == {}
    assert before.rows(Balancer) == {} and before.network("br1") == NETWORK


def test_a_name_that_no_row_has_is_said_in_the_kinds_words(store: SQLiteStore) -> None:
    state = store.load().including(WEB, replace(WEB, id="56" + "0" * 62, name="other"))
    with pytest.raises(NotFoundError, match=r"^balancer db not found$"):
        state.get(Balancer, "db")
    with pytest.raises(NotFoundError):
        state.get(Balancer, "")
    with pytest.raises(ConfigError, match=r"balancer 5 is ambiguous \(2 matches found"):
        state.get(Balancer, "5")


def test_a_row_of_no_kind_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store, pytest.raises(TypeError, match="Balancer is no kind of row"):
        store.put(WEB)
    with pytest.raises(TypeError, match="Balancer is no kind of row"):
        State().including(WEB)


def test_a_reader_takes_a_table_that_was_never_made_as_empty(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    with SQLiteStore(tmp_path, reading=True, kinds=FIVE) as reader:
        assert reader.load().rows(Balancer) == {}
        assert reader.load().network("br1") == NETWORK
    assert "balancers" not in tables(tmp_path)


def test_a_program_that_does_not_know_the_kind_leaves_its_rows_alone(store: SQLiteStore) -> None:
    store.put(WEB)
    with SQLiteStore(store.path.parent) as older:
        assert older.load().network("br1") == NETWORK
        with pytest.raises(StateError, match="in use"):
            older.delete(NETWORK)
    assert store.load().rows(Balancer) == {WEB.id: WEB}


# ---- databases of version 1 ------------------------------------------------------------------------------


def tables(directory: Path) -> dict[str, str]:
    """The statement that made each table."""
    with sqlite3.connect(directory / "datapath.db") as db:
        found = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    db.close()
    return {name: " ".join(sql.split()).replace("( ", "(").replace(" )", ")") for name, sql in found}


LATER = {
    "peers",
    "blocks",
    "remotes",
    "lapses",
    "drains",
    "owed",
    "services",
    "policies",
}  # tables that version 1 did not have


def test_a_new_database_has_the_tables_of_version_1_as_they_were(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    make_version_1(tmp_path / "old")
    SQLiteStore(tmp_path / "new").close()
    old, new = tables(tmp_path / "old"), tables(tmp_path / "new")
    assert {name: new[name] for name in old} == old
    assert set(new) - set(old) == LATER


def test_a_database_of_version_1_is_read_and_written(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    before = tables(tmp_path)
    with SQLiteStore(tmp_path) as store, store.lock():
        state = store.load()
        assert state.network("br1") == NETWORK
        assert state.endpoints == {ENDPOINT.id: ENDPOINT}
        assert state.container("web") == CONTAINER
        assert state.sandboxes == {CONTAINER.id: Sandbox(CONTAINER.id, "/proc/1/ns/net", Phase.READY)}
        assert [network.phase for network in state.networks.values()] == [Phase.READY] * 3 + [Phase.CREATING]
        assert (store.note("net/ipv4/ip_local_reserved_ports"), store.next_number()) == ("", 2)
        rows: tuple[Row, ...] = (ENDPOINT, CONTAINER, NETWORK, *state.sandboxes.values())
        with store.transaction():
            for row in rows:
                store.delete(row)
                store.put(row)
        assert store.load() == state
    after = tables(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= LATER
