# SPDX-License-Identifier: Apache-2.0
"""What `datapath.store.base` promises, of each store that there is: an implementation joins by an entry in `STORES`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from datapath.errors import ExistsError, StateError
from datapath.model.containers import Container
from datapath.model.rows import Phase, Row
from datapath.model.sandboxes import Sandbox
from datapath.store.base import Store
from datapath.store.sqlite import SQLiteStore
from tests.unit.store_rows import DB, WEB, endpoint, fill, network, second

MakeStore = Callable[..., Store]
STORES: dict[str, MakeStore] = {"sqlite": SQLiteStore}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(params=list(STORES))
def another(request: pytest.FixtureRequest, directory: Path) -> MakeStore:
    """Opens the one store of the test once more, as another command would."""
    return partial(STORES[request.param], directory)


@pytest.fixture
def store(another: MakeStore) -> Iterator[Store]:
    with another() as opened:
        yield opened


# ---- first use ---------------------------------------------------------------------------------------


def test_the_store_is_made_on_first_use_with_the_predefined_networks(store: Store) -> None:
    state = store.load()
    assert [(n.name, n.phase) for n in state.networks.values()] == [
        (n, Phase.READY) for n in ("bridge", "host", "none")
    ]
    assert state.installation_id == store.installation_id != ""


def test_opening_it_again_finds_the_same(store: Store, another: MakeStore) -> None:
    with another() as again:
        assert again.load() == store.load()


# ---- rows --------------------------------------------------------------------------------------------


def test_what_is_put_is_loaded_until_it_is_deleted(store: Store) -> None:
    fill(store)
    state = store.load()
    assert state.endpoints == {endpoint().id: endpoint()}
    assert state.container("web").argv == ("true",)
    things: tuple[Row, ...] = (endpoint(), Sandbox(WEB), Sandbox(DB), state.container("web"), network())
    for thing in things:
        store.delete(thing)
        store.delete(thing)
    after = store.load()
    assert (len(after.networks), after.sandboxes, after.endpoints, after.containers) == (3, {}, {}, {})


def test_putting_again_replaces(store: Store) -> None:
    fill(store)
    changed = endpoint(phase=Phase.READY, ipv4=IPv4Interface("10.0.0.9/24"), host_ifindex=7)
    store.put(changed)
    assert store.load().endpoints == {changed.id: changed}


@pytest.mark.parametrize(
    "thing",
    [
        network(id="b" * 64, number=3, device="other"),
        network(id="b" * 64, name="other", device="other"),
        network(id="b" * 64, name="other", number=3),
        Container(DB, "web", "now", ("true",)),
        second(number=1),
        second(slot=0),
        second(mac="02:42:0a:00:00:02"),
        second(ipv4=IPv4Interface("10.0.0.2/24")),
        second(ipv4=IPv4Interface("10.0.0.2/16")),
        second(host_ifname="veth1"),
        second(sandbox_id=WEB, ifname="eth1"),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_the_store_refuses_a_value_that_another_row_has(store: Store, thing: Row) -> None:
    fill(store)
    before = store.load()
    with pytest.raises(ExistsError, match="already taken"):
        store.put(thing)
    assert store.load() == before


def test_an_endpoint_that_has_nothing_in_common_with_others_is_taken(store: Store) -> None:
    fill(store)
    store.put(second())
    assert len(store.load().endpoints) == 2


@pytest.mark.parametrize("thing", [network(), Sandbox(WEB)], ids=lambda thing: type(thing).__name__)
def test_what_an_endpoint_needs_cannot_be_deleted(store: Store, thing: Row) -> None:
    fill(store)
    with pytest.raises(StateError, match="in use"):
        store.delete(thing)
    assert len(store.load().endpoints) == 1


def test_a_row_that_has_not_changed_is_the_same_object(another: MakeStore) -> None:
    with another() as store:
        store.put(network(name="first"))
        store.put(network(id="b" * 64, name="second", number=3, device="dp-b"))
        before = store.load()
        first, second = before.network("first"), before.network("second")
        store.put(replace(second, phase=Phase.CREATING))
        after = store.load()
    assert after.network("first") is first
    assert after.network("second") == replace(second, phase=Phase.CREATING)


def test_a_store_that_is_kept_sees_what_others_have_written(another: MakeStore) -> None:
    with another() as kept:
        kept.put(network(name="first"))
        before = kept.load().network("first")
        with another() as other:
            other.put(replace(before, name="second"))
        assert kept.load().network("second").id == before.id
        with another() as other:
            other.delete(before)
        assert before.id not in kept.load().networks


# ---- transactions ------------------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    fill(store)
    before = store.load()
    with pytest.raises(RuntimeError), store.transaction():
        store.put(second())
        with store.transaction():
            store.delete(Container(WEB, "web", "now", ("true",)))
        raise RuntimeError
    assert store.load() == before


def test_another_command_sees_a_transaction_only_when_it_is_complete(
    store: Store, another: MakeStore
) -> None:
    with another() as reader:
        with store.transaction():
            store.put(network())
            assert "net" not in [n.name for n in reader.load().networks.values()]
        assert reader.load().network("net") == network()


@pytest.mark.parametrize("error", [PermissionError(13, "x", "/elsewhere"), OSError(5, "x"), ValueError("x")])
def test_the_callers_own_errors_are_left_alone(store: Store, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, store.lock(), store.transaction():
        raise error
    assert caught.value is error


def test_the_order_in_a_transaction_is_free(store: Store) -> None:
    rows: tuple[Row, ...] = (endpoint(), Sandbox(WEB), network())
    with store.transaction():
        for row in rows:
            store.put(row)
    assert store.load().endpoints == {endpoint().id: endpoint()}
    with store.transaction():
        for row in reversed(rows):
            store.delete(row)
    assert store.load().endpoints == {}


def test_a_reference_to_a_row_that_is_missing_fails_the_transaction(store: Store) -> None:
    fill(store)
    before = store.load()
    with pytest.raises(StateError), store.transaction():
        store.put(network(id="b" * 64, name="other", number=3, device="other"))
        store.put(second(sandbox_id="9" * 64))
    assert store.load() == before


@pytest.mark.parametrize("durable", [True, False])
def test_a_transaction_is_seen_by_others_when_it_has_ended(
    store: Store, another: MakeStore, durable: bool
) -> None:
    with store.transaction(durable=durable):
        store.put(network())
    with another(reading=True) as reader:
        assert reader.load().network("net") == network()
    with pytest.raises(ExistsError), store.transaction(durable=durable):
        store.put(network(id="b" * 64, number=3, device="other"))


# ---- what belongs to the host ------------------------------------------------------------------------


def test_numbers_are_never_used_again(store: Store, another: MakeStore) -> None:
    first = [store.next_number() for _ in range(3)]
    with another() as again:
        assert [*first, again.next_number()] == [1, 2, 3, 4]


def test_a_note_is_kept_until_it_is_forgotten(store: Store, another: MakeStore) -> None:
    assert store.note("sysctl") is None
    store.set_note("sysctl", "1")
    store.set_note("sysctl", "")
    with another() as other:
        assert other.note("sysctl") == ""
        other.set_note("sysctl", None)
        other.set_note("sysctl", None)
    assert store.note("sysctl") is None


def test_notes_and_numbers_are_part_of_the_transaction(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.set_note("sysctl", "1")
        assert store.next_number() == 1
        raise RuntimeError
    assert store.note("sysctl") is None
    assert store.next_number() == 1


def test_the_lock_is_held_by_one_command_and_the_next_is_told_after_the_timeout(
    store: Store, another: MakeStore
) -> None:
    with store.lock(), another() as other:
        with pytest.raises(StateError, match=r"another command has held .* for 0\.05 s"), other.lock(0.05):
            pass
        assert len(other.load().networks) == 3
    with store.lock(60):
        pass


def test_the_lock_is_given_back_even_if_a_child_still_has_the_file(store: Store, another: MakeStore) -> None:
    with store.lock():
        child = os.fork()
        if child == 0:
            time.sleep(3600)
            os._exit(0)
    try:
        with another() as other, other.lock(60):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_command_that_waited_for_a_destroyed_store_leaves_nothing(
    another: MakeStore, directory: Path
) -> None:
    """It opened the store before and locks it after: neither the lock file nor the directory is made again."""
    with another() as late:
        with another() as store, store.lock():
            store.destroy()
        with pytest.raises(StateError, match="taken away meanwhile"), late.lock():
            pass
        assert not directory.exists()
        directory.mkdir()  # as if it had not been empty
        with pytest.raises(StateError, match="taken away meanwhile"), late.lock():
            pass
        assert list(directory.iterdir()) == []
    with pytest.raises(StateError, match="taken away meanwhile"):
        another(create=False)
    assert list(directory.iterdir()) == []


def test_a_store_that_was_destroyed_or_replaced_is_not_current(another: MakeStore) -> None:
    with another() as store:
        assert store.current
        with store.lock():
            store.destroy()
        assert not store.current
        with another() as replacement:
            assert replacement.current
            assert not store.current
