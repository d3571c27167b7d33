# SPDX-License-Identifier: Apache-2.0
"""The store of a cluster in etcd, with real servers (S23)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datapath.errors import ConfigError, PrivilegeError, StateError
from datapath.kernel.netns import enter
from datapath.model.clusters import ClusterStore
from datapath.store.cluster import (
    Absent,
    Change,
    CompactedError,
    Delete,
    Put,
    RestoredError,
    UncertainError,
    Unchanged,
)
from datapath.store.etcd.client import EtcdCluster
from tests.net.etcd import Etcd, hasty, make_certificates
from tests.net.hosts import Host, Namespace, eventually


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Etcd]:
    """A server of this test's own."""
    found = Etcd(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Etcd]:
    found = Etcd(tmp_path, 3)
    try:
        yield found
    finally:
        found.close()


class Watching:
    """A watch by a thread of its own, which collects what it is told."""

    def __init__(self, etcd: Etcd, prefixes: list[str], since: int) -> None:
        self.seen: list[Change] = []
        self.error: Exception | None = None
        self._client = EtcdCluster(etcd.where())
        self._watching = self._client.watch(prefixes, since)
        self.watch = self._watching.__enter__()
        self._thread = threading.Thread(target=self._run, args=(etcd.path,))
        self._thread.start()

    def _run(self, path: str) -> None:
        try:
            with enter(path):
                for batch in self.watch:
                    self.seen += batch
        except Exception as error:
            self.error = error

    def waits_for(self, count: int) -> list[Change]:
        with eventually() as until:
            until(lambda: len(self.seen) >= count or self.error)
        return self.seen

    def close(self) -> None:
        self._watching.__exit__(None, None, None)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._client.close()


def test_s23_a_key_is_created_by_one_of_many_and_the_others_learn_by_whom(etcd: Etcd) -> None:
    def create(number: int) -> bool:
        with etcd.client() as client:
            done = client.txn([Absent("eps/n/10.0.0.2")], [Put("eps/n/10.0.0.2", f"host {number}")])
            assert done.succeeded or done.found["eps/n/10.0.0.2"].value.startswith("host ")
            return done.succeeded

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(24))) == 1


def test_s23_a_transaction_is_done_as_a_whole_or_not_at_all(etcd: Etcd) -> None:
    with etcd.client() as client:
        first = client.txn([Absent("a"), Absent("b")], [Put("a", "1"), Put("b", "ü\n")])
        assert first.succeeded and not first.found
        entries = client.list().entries
        assert {key: entry.value for key, entry in entries.items()} == {"a": "1", "b": "ü\n"}
        assert entries["a"].created == entries["a"].modified == first.revision
        refused = client.txn([Unchanged("a", first.revision), Absent("b")], [Delete("a"), Put("c", "x")])
        assert (
            not refused.succeeded
            and set(refused.found) == {"a", "b"}
            and set(client.list().entries) == {"a", "b"}
        )
        assert client.txn([Unchanged("a", first.revision)], [Delete("a"), Put("c", "x")]).succeeded
        assert set(client.list().entries) == {"b", "c"}
        with pytest.raises(ValueError, match="128"):
            client.txn([], [Put(str(i), "") for i in range(129)])


def test_s23_a_list_has_every_key_of_its_prefix_and_of_one_moment(etcd: Etcd) -> None:
    """More than a page of them, and none of a neighbouring prefix or of another cluster's."""
    with etcd.client() as client, etcd.client(prefix="other/datapath/v1") as other:
        other.txn([], [Put("eps/a/1", "not ours")])
        client.txn([], [Put("eps/ab/1", "neighbour"), Put("eps0", "neighbour")])
        wanted = {f"eps/a/{number:05}" for number in range(5200)}
        for start in range(0, 5200, 100):
            client.txn([], [Put(f"eps/a/{number:05}", "v") for number in range(start, start + 100)])
        found = client.list("eps/a/")
        assert set(found.entries) == wanted
        assert found.revision == client.list("nothing").revision
        assert set(other.list().entries) == {"eps/a/1"}


def test_s23_a_watch_tells_every_change_of_its_prefixes_once_and_in_order(etcd: Etcd) -> None:
    """Whatever was changed before it began, and while its server was away."""
    with etcd.client() as client:
        since = client.txn([], [Put("hosts/a", "1")]).revision
        client.txn([], [Put("hosts/b", "1"), Put("blocks/n/1", "1"), Put("others/x", "1")])
        watching = Watching(etcd, ["hosts/", "blocks/n/"], since)
        try:
            assert len(watching.waits_for(2)) == 2
            client.txn([], [Put("hosts/b", "2"), Delete("hosts/a")])
            client.txn([], [Put("blocks/n/1", "2")])
            watching.waits_for(5)
            etcd.kill(0)
            time.sleep(0.3)  # it asks a server that is not there meanwhile
            etcd.begin(0)
            etcd.ready()
            for number in range(20):
                client.txn([], [Put("hosts/c", str(number))])
            seen = watching.waits_for(25)
            hosts = [(c.key, c.entry.value if c.entry else None) for c in seen if c.key.startswith("hosts/")]
            assert hosts[:1] == [("hosts/b", "1")] and sorted(hosts[1:3]) == [
                ("hosts/a", None),
                ("hosts/b", "2"),
            ]
            assert hosts[3:] == [("hosts/c", str(number)) for number in range(20)]
            blocks = [c.entry.value for c in seen if c.key.startswith("blocks/") and c.entry]
            assert blocks == ["1", "2"] and len(seen) == 25 and watching.error is None
        finally:
            watching.close()


def test_s23_a_watch_says_that_the_store_was_restored_from_an_older_copy(alone: Etcd, tmp_path: Path) -> None:
    """etcd itself says nothing until it has come to the revision that is waited for."""
    with alone.client() as client:
        client.txn([], [Put("hosts/a", "1")])
        alone.save(tmp_path / "snapshot")
        since = [client.txn([], [Put("hosts/a", str(number))]) for number in range(5)][-1].revision
    watching = Watching(alone, ["hosts/", "blocks/n/"], since)
    try:
        with alone.client() as client:
            client.txn([], [Put("hosts/b", "1")])
        watching.waits_for(1)
        alone.restore(tmp_path / "snapshot")
        with eventually() as until:
            until(lambda: watching.error)
        assert isinstance(watching.error, RestoredError) and len(watching.seen) == 1
    finally:
        watching.close()


def test_s23_a_watch_of_many_prefixes_is_told_of_each(etcd: Etcd) -> None:
    """Also when changes come while it begins."""
    prefixes = [f"{kind}/{'0123456789abcdef' * 4}/" for kind in "abcdefghij"]
    with etcd.client() as client:
        for number in range(20):
            watching = Watching(etcd, prefixes, client.list().revision)
            try:
                for prefix in prefixes:
                    client.txn([], [Put(f"{prefix}k", str(number))])
                seen = watching.waits_for(len(prefixes))
                assert sorted(one.key for one in seen) == [f"{prefix}k" for prefix in prefixes]
            finally:
                watching.close()


def test_s23_a_watch_of_what_was_compacted_says_so_and_a_list_goes_on_from_there(etcd: Etcd) -> None:
    with etcd.client() as client:
        old = client.txn([], [Put("hosts/a", "1")]).revision
        new = client.txn([], [Put("hosts/a", "2")]).revision
        client.txn([], [Put("hosts/a", "3")])
        etcd.etcdctl(f"compact {new}")
        with client.watch(["hosts/"], old - 1) as watch, pytest.raises(CompactedError) as caught:
            next(iter(watch))
        assert caught.value.revision == new
        found = client.list("hosts/")
        watching = Watching(etcd, ["hosts/"], found.revision)
        try:
            client.txn([], [Put("hosts/a", "4")])
            (change,) = watching.waits_for(1)
            assert change.entry is not None and change.entry.value == "4"
        finally:
            watching.close()


def test_s23_a_lease_that_is_not_kept_alive_takes_its_keys_with_it(etcd: Etcd) -> None:
    with etcd.client() as client:
        lease = client.grant(2)
        since = client.txn([Absent("alive/a")], [Put("alive/a", "1", lease)]).revision
        assert client.keep_alive(lease) and client.list("alive/").entries["alive/a"].lease == lease
        with client.watch(["alive/"], since) as watch:
            (gone,) = next(iter(watch))
        assert gone.key == "alive/a" and gone.entry is None
        assert not client.keep_alive(lease)
        client.revoke(lease)
        other = client.grant(60)
        client.txn([], [Put("alive/b", "1", other)])
        client.revoke(other)
        assert not client.list("alive/").entries


def test_s23_a_leader_that_is_killed_is_noticed_by_nobody(three: Etcd) -> None:
    """Every change is written once, and told once."""
    with three.client() as client:
        since = client.list().revision
        watching = Watching(three, ["k/"], since)
        try:
            for number in range(60):
                if number == 20:
                    three.kill(three.leader())
                key = f"k/{number}"
                with eventually() as until:
                    until(partial(_written, client, key))
            assert sorted(c.key for c in watching.waits_for(60)) == sorted(f"k/{n}" for n in range(60))
            assert len(watching.seen) == 60 and watching.error is None
        finally:
            watching.close()
        found = client.status()
        assert sorted(bool(one.error) for one in found.members) == [False, False, True]
        assert sum(one.leader for one in found.members) == 1 and not found.alarms


def _written(client: EtcdCluster, key: str) -> bool:
    """Creates the key, as who does not know whether it has done so before."""
    try:
        return client.txn([Absent(key)], [Put(key, "")]).succeeded or key in client.list(key).entries
    except UncertainError:
        return False


def _listening(place: Namespace, port: int) -> bool:
    return place.try_(f"nc -z 127.0.0.1 {port}").returncode == 0


def test_s23_without_a_majority_it_is_refused_in_time(three: Etcd) -> None:
    with three.client() as client:
        client.txn([], [Put("a", "1")])
        for number in list(three.servers)[:2]:
            three.kill(number)
        began = time.monotonic()
        with pytest.raises(StateError):
            client.txn([], [Put("a", "2")])
        assert time.monotonic() - began < 30


def test_s35_over_tls_with_certificates(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls")
    stranger = make_certificates(tmp_path / "stranger")
    etcd = Etcd(tmp_path, tls=files)
    names = {"ca_file": str(files / "ca.crt"), "cert_file": str(files / "client.crt")}
    names["key_file"] = str(files / "client.key")
    try:
        with etcd.client(**names) as client:
            since = client.txn([Absent("a")], [Put("a", "1")]).revision
            assert client.list().entries["a"].value == "1"
            with client.watch(["a"], since - 1) as watch:
                assert next(iter(watch))[0].key == "a"
        for wrong, said in (
            ({**names, "ca_file": str(stranger / "ca.crt")}, "its certificate is not accepted"),
            ({"ca_file": names["ca_file"]}, "does not answer"),
            ({}, "does not answer"),
        ):
            with etcd.client(**wrong) as client, hasty(), pytest.raises(StateError, match=said) as caught:
                client.list()
            assert "\n" not in str(caught.value)
        with (
            pytest.raises(ConfigError, match=r"kv.cacertfile /nowhere cannot be used"),
            etcd.client(ca_file="/nowhere"),
        ):
            pass
    finally:
        etcd.close()


def test_s35_a_user_may_do_what_its_role_says(tmp_path: Path) -> None:
    """And a token that the server has forgotten is asked for again."""
    etcd = Etcd(tmp_path)
    password = tmp_path / "password"
    password.write_text("secret\n")
    try:
        etcd.etcdctl("user add root:rootpw")
        etcd.etcdctl("user grant-role root root")
        for name, rights in (("reader", "read"), ("writer", "readwrite")):
            etcd.etcdctl(f"role add {name}")
            etcd.etcdctl(f"role grant-permission --prefix=true {name} {rights} datapath/v1/")
            etcd.etcdctl(f"user add {name}:secret")
            etcd.etcdctl(f"user grant-role {name} {name}")
        etcd.etcdctl("auth enable")
        with etcd.client() as client, pytest.raises(PrivilegeError, match=r"wants a user: kv\.username"):
            client.list()
        with etcd.client(user="writer", password_file=str(password)) as client:
            client.txn([Absent("a")], [Put("a", "1")])
            etcd.kill(0)
            etcd.begin(0)
            with eventually() as until:
                until(partial(_listening, etcd, etcd.port(0)))
            assert client.list().entries["a"].value == "1"
        with etcd.client(user="reader", password_file=str(password)) as client:
            assert client.list().entries["a"].value == "1"
            with pytest.raises(PrivilegeError, match="does not let reader do this: permission denied"):
                client.txn([], [Put("a", "2")])
            assert client.list().entries["a"].value == "1"
        password.write_text("wrong")
        for file, kind, said in (
            (password, PrivilegeError, "does not let reader do this: authentication failed"),
            (tmp_path / "nowhere", ConfigError, r"kv\.passwordfile .*/nowhere cannot be read"),
        ):
            with (
                etcd.client(user="reader", password_file=str(file)) as client,
                pytest.raises(kind, match=said),
            ):
                client.list()
    finally:
        etcd.close()


def test_s37_a_store_that_is_not_there_is_named_within_seconds(tmp_path: Path) -> None:
    """Nobody listens, nobody answers, or something else does."""
    place = Namespace()
    try:
        place.start(["busybox", "httpd", "-f", "-p", "127.0.0.1:8000", "-h", str(tmp_path)])
        place.start(["sh", "-c", "exec nc -lk 127.0.0.1 8001"])
        for port in (8000, 8001):
            with eventually() as until:
                until(partial(_listening, place, port))
        for port, why in (
            (1, "Connection refused"),
            (8000, "what answers is no etcd"),
            (8001, "no answer in time"),
        ):
            where = ClusterStore((("127.0.0.1", port),))
            began = time.monotonic()
            with (
                enter(place.path),
                nullcontext() if port == 8001 else hasty(),  # one waits for as long as a user does
                EtcdCluster(where) as client,
                pytest.raises(StateError) as caught,
            ):
                client.list()
            assert str(caught.value) == f"cluster store etcd://127.0.0.1:{port} does not answer: {why}"
            assert time.monotonic() - began < 60
    finally:
        place.close()


class Ending(BaseHTTPRequestHandler):
    """Begins every watch, and ends it with an error."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        said = b'{"error": {"grpc_code": 14, "message": "etcdserver: server stopped"}}\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_s23_a_watch_does_not_storm_a_server_that_ends_it_at_once() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ending) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ClusterStore((("127.0.0.1", server.server_port),))
        with EtcdCluster(where) as client, client.watch(["hosts/"], 0) as watch:
            began = time.monotonic()
            thread = threading.Thread(target=lambda: list(watch))
            thread.start()
            with eventually() as until:
                until(lambda: Ending.asked >= 3)
            watch.close()
            thread.join(30)
            assert not thread.is_alive()
            assert Ending.asked <= 2 + (time.monotonic() - began) / 0.1
        server.shutdown()


def test_s23_a_full_store_says_so(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path, options="--quota-backend-bytes 100000")
    try:
        with etcd.client() as client:
            with pytest.raises(StateError, match="is full: mvcc: database space exceeded"):
                for number in range(1000):
                    client.txn([], [Put(f"k/{number}", "x" * 20000)])
            assert client.status().alarms == ("its disk quota is used up",)
            assert client.list("k/").entries
    finally:
        etcd.close()


def test_s23_cluster_status_shows_each_server(make_host: Callable[..., Host], tmp_path: Path) -> None:
    """Whether it answers, which one leads, and what the store complains of."""
    host = make_host(config={"cluster-store": "etcd://127.0.0.1:23790,127.0.0.1:1/lab"})
    said = host.try_ctl("cluster status")
    assert said.returncode == 14 and "Connection refused" in said.stdout
    assert said.stderr == "datapathctl: no server of the cluster store answers\n"
    host.start(
        [
            "etcd",
            "--data-dir",
            str(tmp_path / "data"),
            "--listen-client-urls",
            "http://127.0.0.1:23790",
            "--advertise-client-urls",
            "http://127.0.0.1:23790",
            "--listen-peer-urls",
            "http://127.0.0.1:24790",
            "--log-level",
            "error",
        ]
    )
    with eventually() as until:
        until(lambda: host.try_ctl("cluster status").returncode == 0)
    first, second = (json.loads(line) for line in host.ctl("cluster status --json").splitlines())
    assert (first["Server"], first["Status"], first["Leader"]) == ("127.0.0.1:23790", "ok", True)
    assert first["Size"] > 0 and first["Version"].startswith("3.")
    assert (second["Server"], second["Status"]) == ("127.0.0.1:1", "Connection refused")
    host.configure({})
    assert host.refused("cluster status").endswith(
        'names no cluster-store: add "cluster-store": "etcd://HOST:PORT"'
    )
