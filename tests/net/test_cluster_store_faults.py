# SPDX-License-Identifier: Apache-2.0
"""The store of a cluster goes away, is restored, is full, may not be written: what hosts believe and do then (S23)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from datapath.cluster import addresses, keys, members, networks, owed
from datapath.cluster.allotment import choose_offline, reserve
from datapath.cluster.commit import SECONDS, ForgottenError
from datapath.cluster.liveness import Liveness
from datapath.cluster.reassert import Reasserted, reassert
from datapath.errors import ConfigError, InUseError, PrivilegeError, StateError
from datapath.kernel.netns import enter
from datapath.model.networks import Network
from datapath.model.peers import Block, Peer, Remote
from datapath.store.cluster import DeleteAll, Put, UncertainError
from datapath.store.etcd.client import EtcdCluster
from tests.net.cluster_rows import (
    CLUSTER_ID,
    VIEWS,
    Counted,
    endpoint,
    join,
    known,
    network,
    start,
    start_known,
)
from tests.net.etcd import Etcd, make_certificates


@pytest.fixture
def counted(etcd: Etcd) -> Iterator[Counted]:
    with enter(etcd.path), Counted(etcd) as client:
        yield client


def again(
    store: EtcdCluster, host: Peer, made: Network, remotes: list[Remote], blocks: list[Block]
) -> Reasserted:
    """What the host says anew, having these."""
    bare = replace(host, number=0)
    return reassert(store, bare, f"run {host.name}", CLUSTER_ID, [made], blocks, remotes)


# ---- answers that are lost --------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
def test_s23_what_was_done_though_its_answer_was_lost_is_not_done_twice(counted: Counted, lost: int) -> None:
    """Each verb, with the answer to its transaction lost on the way, once and twice."""
    counted.lost = lost
    host = join(counted, 1)
    assert host.number == 1 and counted.lost == 0
    counted.lost = lost
    made = networks.create(counted, network())
    counted.lost = lost
    claimed = start(counted, host, made)
    assert claimed.tries == 1
    counted.lost = lost
    new = replace(claimed.remote, name="web")
    addresses.update(counted, claimed.remote, new)
    assert addresses.part(counted, [made.id]).remotes == (new,)
    with pytest.raises(InUseError):
        networks.remove(counted, made.id)
    counted.lost = lost
    addresses.release(counted, new)
    counted.lost = lost
    addresses.release_blocks(counted, host.id, made.id, [block.prefix for block in claimed.blocks])
    counted.lost = lost
    assert owed.send(counted, host.id, owed.claims(new)).conflicts == ()
    counted.lost = lost
    assert owed.send(counted, host.id, owed.releases(new)).conflicts == ()
    assert not counted.list(keys.ENDPOINTS, keys.BLOCKS).entries
    counted.lost = lost
    members.drain(counted, "h1")
    counted.lost = lost
    networks.remove(counted, made.id)
    counted.lost = lost
    members.forget(counted, "h1")
    assert counted.lost == 0
    assert set(counted.list().entries) == {keys.CLUSTER, keys.POOLS}


def test_s23_a_claim_of_which_nothing_is_known_names_what_may_be_left(counted: Counted) -> None:
    host = join(counted, 1)
    made = networks.create(counted, network())
    counted.lost = 100
    with pytest.raises(addresses.UnsettledError) as unsettled:
        start(counted, host, made)
    counted.lost = 0
    assert set(unsettled.value.keys) == set(counted.list(keys.ENDPOINTS).entries) != set()
    owed.send(counted, host.id, dict.fromkeys(unsettled.value.keys, ""))
    assert not counted.list(keys.ENDPOINTS).entries


# ---- the store is away ------------------------------------------------------------------------


def test_s23_a_store_that_is_away_is_named_within_5_seconds_by_every_verb(tmp_path: Path) -> None:
    """Nobody listens, or what listens does not answer."""
    etcd = Etcd(tmp_path)
    try:
        with etcd.client() as store:
            host = join(store, 1)
            made = networks.create(store, network())
            claimed = start(store, host, made)
            view = known(store, made)
            etcd.servers[0].send_signal(signal.SIGSTOP)
            verbs: tuple[Callable[[EtcdCluster], object], ...] = (
                lambda client: join(client, 1),
                lambda client: addresses.claim(client, host.id, made, view, endpoint(made, host, 2)),
                lambda client: networks.create(client, network("two", "10.8.0.0/16", ident="b")),
                lambda client: addresses.release(client, claimed.remote),
            )

            def seconds(verb: Callable[[EtcdCluster], object]) -> float:
                began = time.monotonic()
                with (
                    etcd.client() as client,
                    pytest.raises(StateError, match=r"store etcd://127\.0\.0\.1:23790"),
                ):
                    verb(client)
                return time.monotonic() - began

            with ThreadPoolExecutor(4) as pool:
                assert (
                    max(pool.map(seconds, verbs)) < 2 * SECONDS
                )  # it gives up once, however often it has asked
            with store.within(1):
                began = time.monotonic()
                with pytest.raises(StateError, match="does not answer: no answer in time"):
                    networks.networks(store)
                assert time.monotonic() - began < SECONDS  # which it takes without that
            etcd.kill(0)
            for verb in verbs:
                with (
                    pytest.raises(StateError, match="does not answer: Connection refused"),
                    store.within(0.3),
                ):
                    verb(store)
            etcd.begin(0)
            etcd.ready()
            # What was sent to the stopped server may have been done or not: but for that, all is as it was.
            assert {one.peer for one in members.hosts(store)} == {host}
    finally:
        etcd.close()


def test_s23_containers_start_and_end_while_the_store_is_away_and_it_learns_of_them_later(
    counted: Counted,
) -> None:
    hosts = [join(counted, number) for number in (1, 2)]
    made = networks.create(counted, network("ov", "10.9.0.0/24", "fd00:9::/64"))
    first = start(counted, hosts[0], made)
    subnet = made.subnets[0]
    view = known(counted, made)
    queue: dict[str, str] = {}
    begun: list[Remote] = []
    for number in range(10, 13):  # the store is away
        ipv4, ipv6 = (choose_offline(made, hosts[0].id, view, version) for version in (4, 6))
        remote = endpoint(made, hosts[0], number)(ipv4, ipv6)  # type: ignore[arg-type]
        view = view.using(ipv4, remote.id).using(ipv6, remote.id)
        begun.append(remote)
        queue = owed.merged(queue, owed.claims(remote))
        low, high = reserve(subnet, first.blocks[0].prefix)
        assert low <= int(ipv4) <= high
    queue = owed.merged(queue, owed.releases(begun[0]))
    queue = owed.merged(queue, owed.claims(replace(begun[1], name="renamed")))
    queue = owed.merged(queue, owed.releases(first.remote))
    counted.txns = 0
    for _ in range(2):  # a second time does no harm
        sent = owed.send(counted, hosts[0].id, queue)
        assert set(sent.done) == set(queue) and not sent.conflicts
    assert counted.txns <= 4
    part = addresses.part(counted, [made.id])
    assert sorted(part.remotes, key=lambda r: r.name) == [begun[2], replace(begun[1], name="renamed")]


def test_s23_without_an_own_reserve_nothing_starts_while_the_store_is_away(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24"))
    block = start(store, hosts[0], made).blocks[0].prefix
    view = known(store, made)
    for wanted, me in ((None, hosts[1].id), (ip_address("10.9.0.254"), hosts[1].id)):
        with pytest.raises(ConfigError, match="and the cluster store cannot be asked for another"):
            choose_offline(made, me, view, 4, wanted)
    own = [choose_offline(made, hosts[0].id, view, 4)]
    assert own[0] in block and choose_offline(made, hosts[0].id, view, 4, own[0]) == own[0]
    for number in range(4):
        try:
            view = view.using(choose_offline(made, hosts[0].id, view, 4), str(number))
        except ConfigError:
            break
    with pytest.raises(ConfigError, match="no address of this host's own reserve on network ov is free"):
        choose_offline(made, hosts[0].id, view, 4)


def test_s23_what_another_host_was_given_meanwhile_is_told_and_not_taken_back(store: EtcdCluster) -> None:
    """A host was cut off, forgotten by force, and its block given away, while it started a container."""
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24"))
    block = start(store, hosts[0], made).blocks[0]
    begun = endpoint(made, hosts[0], 9)(choose_offline(made, hosts[0].id, known(store, made), 4), None)  # type: ignore[arg-type]
    members.forget(store, "h1", force=True)
    assert addresses.claim_block(store, hosts[1].id, made, block.prefix)
    theirs = start(store, hosts[1], made, 1, str(begun.ipv4)).remote
    with pytest.raises(ForgottenError, match="this host has been forgotten"):
        owed.send(store, hosts[0].id, owed.claims(begun))
    join(store, 1)
    sent = owed.send(store, hosts[0].id, owed.claims(begun))
    assert sent.conflicts == (owed.Conflict(keys.endpoint_keys(begun)[0], theirs),) and not sent.done
    sent = owed.send(store, hosts[0].id, owed.releases(begun))  # it has ended: nothing is left to say
    assert sent.done == keys.endpoint_keys(begun) and not sent.conflicts
    assert addresses.part(store, [made.id]).remotes == (theirs,)
    gone = endpoint(replace(made, id="b" * 64), hosts[0], 9)(begun.ipv4, None)
    sent = owed.send(store, hosts[0].id, owed.claims(gone))
    assert sent.conflicts == (owed.Conflict(keys.endpoint_keys(gone)[0], gone=True),)


def test_s23_a_hundred_owed_keys_take_few_transactions(counted: Counted) -> None:
    host = join(counted, 1)
    made = networks.create(counted, network("ov", "10.9.0.0/16"))
    start(counted, host, made)
    queue: dict[str, str] = {}
    for number in range(100):
        queue |= owed.claims(endpoint(made, host, number + 10)(ip_address(f"10.9.200.{number}"), None))  # type: ignore[arg-type]
    counted.txns = 0
    assert len(owed.send(counted, host.id, queue).done) == 100 and counted.txns == 2
    assert len(owed.send(counted, host.id, dict.fromkeys(queue, "")).done) == 100
    assert len(addresses.part(counted, [made.id]).remotes) == 1


# ---- servers die ------------------------------------------------------------------------------


def test_s23_claims_go_on_when_the_leader_is_killed_and_no_address_is_given_twice(tmp_path: Path) -> None:
    """Four hosts start containers all the time; the leader of three servers is killed, and comes back."""
    etcd = Etcd(tmp_path, 3)
    try:
        with etcd.client() as store:
            hosts = [join(store, number) for number in range(1, 5)]
            made = networks.create(store, network("ov", "10.9.0.0/18"))
        VIEWS.clear()
        enough = threading.Event()
        doubtful: set[str] = set()

        def one(host: Peer) -> list[Remote]:
            found: list[Remote] = []
            with etcd.client() as client:
                for number in range(2000):
                    if enough.is_set():
                        break
                    try:
                        found.append(start_known(client, host, made, number).remote)
                    except addresses.UnsettledError as error:
                        doubtful.update(error.keys)
                    except StateError:
                        pass  # there was no leader for 5 seconds: the machine is busy
            return found

        with ThreadPoolExecutor(4) as pool:
            results = [pool.submit(one, host) for host in hosts]
            time.sleep(0.5)
            leader = etcd.leader()
            etcd.kill(leader)
            time.sleep(3)
            etcd.begin(leader)
            time.sleep(1)
            enough.set()
            remotes = [remote for result in results for remote in result.result()]
        assert len({remote.ipv4 for remote in remotes}) == len(remotes)
        with etcd.client() as store:
            written = {remote.id: remote for remote in addresses.part(store, [made.id]).remotes}
        assert [remote for remote in remotes if written.get(remote.id) != remote] == []
        more = [remote for remote in written.values() if remote.id not in {one.id for one in remotes}]
        assert {key for remote in more for key in keys.endpoint_keys(remote)} <= doubtful
    finally:
        etcd.close()


def test_s23_a_server_that_is_killed_and_begins_again_has_all_that_was_said(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path)
    try:
        with etcd.client() as store:
            host = join(store, 1)
            made = networks.create(store, network())
            VIEWS.clear()
            begun: list[Remote] = []

            def kill() -> None:
                time.sleep(0.2)
                etcd.kill(0)
                time.sleep(0.3)
                etcd.begin(0)

            killer = threading.Thread(target=kill)
            killer.start()
            end = time.monotonic() + 2
            number = 0
            doubtful = 0
            while time.monotonic() < end or killer.is_alive():
                number += 1
                try:
                    begun.append(start_known(store, host, made, number).remote)
                except addresses.UnsettledError:
                    doubtful += 1
            killer.join()
            found = {remote.id: remote for remote in addresses.part(store, [made.id]).remotes}
        assert [remote for remote in begun if found.get(remote.id) != remote] == []
        assert len(begun) <= len(found) <= len(begun) + doubtful
    finally:
        etcd.close()


# ---- the store has forgotten ------------------------------------------------------------------


def test_s23_of_a_store_that_was_restored_the_hosts_make_what_is_so_now(tmp_path: Path) -> None:
    """The copy is older than a network, a host, blocks, and endpoints that ended or began since."""
    etcd = Etcd(tmp_path)
    try:
        with etcd.client() as store:
            one, two = (join(store, number) for number in (1, 2))
            early = networks.create(store, network("early", "10.9.0.0/24"))
            ended = start(store, one, early, 1)
            stays = start(store, two, early, 1)
            etcd.save(tmp_path / "snapshot")
            addresses.release(store, ended.remote)
            addresses.release_blocks(store, one.id, early.id, [block.prefix for block in ended.blocks])
            late = networks.create(store, network("late", "10.8.0.0/24", ident="b"))
            unused = networks.create(store, network("unused", "10.7.0.0/24", ident="d"))
            three = join(store, 3)
            begun = [start(store, host, late, 5) for host in (one, three)]
            before = store.list().revision
        etcd.restore(tmp_path / "snapshot")
        with etcd.client() as store:
            assert store.list().revision < before
            first = again(store, one, late, [begun[0].remote], list(begun[0].blocks))
            assert not first.conflicts and set(first.deleted) == {
                *keys.endpoint_keys(ended.remote),
                keys.block_key(early.id, ended.blocks[0].prefix),
            }
            third = again(store, three, late, [begun[1].remote], list(begun[1].blocks))
            second = again(store, two, unused, [stays.remote], list(stays.blocks))
            assert not third.conflicts and not second.written and not second.deleted and not second.conflicts
            part = addresses.part(store, [early.id, late.id])
            assert sorted(r.id + r.network_id for r in part.remotes) == sorted(
                r.id + r.network_id for r in (stays.remote, begun[0].remote, begun[1].remote)
            )
            assert {net.name: net.vni for net in part.networks} == {"early": early.vni, "late": late.vni}
            assert {one.peer.name: one.peer.number for one in members.hosts(store)} == {
                "h1": 1,
                "h2": 2,
                "h3": 3,
            }
            with pytest.raises(ConfigError, match="overlaps"):  # the pool is taken again, too
                networks.create(store, network("more", "10.8.0.0/24", ident="e"))
            nothing = again(store, one, late, [begun[0].remote], list(begun[0].blocks))
            assert not nothing.written and not nothing.deleted
    finally:
        etcd.close()


def test_s23_an_emptied_store_gets_all_back_from_the_hosts_as_the_same_cluster(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24", "fd00:9::/64"))
    claims = [start(store, host, made, 1) for host in hosts]
    before = {key: entry.value for key, entry in store.list().entries.items()}
    store.txn([], [DeleteAll("")])
    for host, claimed in zip(reversed(hosts), reversed(claims), strict=True):
        found = reassert(store, host, "run", CLUSTER_ID, [made], claimed.blocks, [claimed.remote])
        assert not found.conflicts and found.joined.peer == host and found.joined.info.id == CLUSTER_ID
    assert {key: entry.value for key, entry in store.list().entries.items()} == before


# ---- a store that does not take it ------------------------------------------------------------


def test_s23_a_full_store_is_said_in_one_line_and_what_ends_is_still_written(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path, options="--quota-backend-bytes 200000")
    try:
        with etcd.client() as store:
            host = join(store, 1)
            made = networks.create(store, network())
            claimed = start(store, host, made)
            with pytest.raises(StateError):
                for number in range(1000):
                    store.txn([], [Put(f"other/{number}", "x" * 20000)])
            for verb in (
                lambda: start(store, host, made, 2),
                lambda: networks.create(store, network("two", "10.8.0.0/16", ident="b")),
                lambda: join(store, 2),
                Liveness(store, host.id, "run 1", 30).begin,
            ):
                with pytest.raises(
                    StateError, match=r"^cluster store etcd://\S+ is full: mvcc: database space"
                ) as full:
                    verb()
                assert not isinstance(full.value, UncertainError)
            addresses.release(store, claimed.remote)
            assert not addresses.part(store, [made.id]).remotes
    finally:
        etcd.close()


def test_s23_a_user_who_may_only_read_is_told_so_over_tls(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls")
    etcd = Etcd(tmp_path, tls=files)
    try:
        names = {"ca_file": str(files / "ca.crt"), "cert_file": str(files / "client.crt")}
        names["key_file"] = str(files / "client.key")
        with etcd.client(**names) as store:
            host = join(store, 1)
            made = networks.create(store, network())
            claimed = start(store, host, made)
        etcd.etcdctl("user add root:secret")
        etcd.etcdctl("user grant-role root root")
        etcd.etcdctl("role add reader")
        etcd.etcdctl("role grant-permission --prefix=true reader read datapath/v1/")
        etcd.etcdctl("user add reader:word")
        etcd.etcdctl("user grant-role reader reader")
        etcd.etcdctl("auth enable")
        (tmp_path / "word").write_text("word\n")
        named = names | {"cert_file": str(files / "server.crt"), "key_file": str(files / "server.key")}
        with (
            etcd.client(**named, user="reader", password_file=str(tmp_path / "word")) as store,
            pytest.raises(
                ConfigError, match=r"^kv\.certfile \S+ has a CommonName, which an etcd with users does not"
            ),
        ):
            store.list()
        with etcd.client(**names, user="reader", password_file=str(tmp_path / "word")) as store:
            assert addresses.part(store, [made.id]).remotes == (claimed.remote,)
            assert join(store, 1) == host  # there is nothing to write
            for verb in (
                lambda: start(store, host, made, 2),
                lambda: networks.create(store, network("two", "10.8.0.0/16", ident="b")),
                lambda: networks.remove(store, made.id),
                lambda: join(store, 2),
                lambda: members.drain(store, "h1"),
                lambda: addresses.release(store, claimed.remote),
            ):
                with pytest.raises(
                    PrivilegeError,
                    match=r"^cluster store etcd://.* does not let reader do this: permission denied$",
                ):
                    verb()
    finally:
        etcd.close()
