# SPDX-License-Identifier: Apache-2.0
"""What hosts of a cluster write into its store, with real servers of etcd (S23)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from datapath.cluster import addresses, keys, members, networks
from datapath.cluster.allotment import Known, block_of, choose, reserve, spare_blocks
from datapath.cluster.commit import ForgottenError
from datapath.cluster.liveness import Liveness
from datapath.errors import ConfigError, ExistsError, InUseError, NotFoundError, StateError
from datapath.kernel.netns import enter
from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.peers import Peer, Remote
from datapath.store.cluster import Outcome, Put
from datapath.store.etcd.client import EtcdCluster
from tests.net.cluster_rows import (
    CLUSTER_ID,
    VIEWS,
    Counted,
    endpoint,
    join,
    known,
    network,
    peer,
    start,
    start_known,
)
from tests.net.etcd import Etcd
from tests.net.hosts import eventually

# ---- hosts ------------------------------------------------------------------------------------


def test_s23_the_first_host_makes_the_cluster_and_each_has_a_number(store: EtcdCluster) -> None:
    first = members.join(store, peer(1), "run 1", CLUSTER_ID, port=8472)
    assert first.info == keys.ClusterInfo(CLUSTER_ID, 1, 8472) and first.peer.number == 1
    second = members.join(store, peer(2), "run 2", "d" * 32)
    assert second.info == first.info and second.peer.number == 2
    assert [(one.peer.name, one.alive) for one in members.hosts(store)] == [("h1", False), ("h2", False)]
    with pytest.raises(ConfigError, match="port 4789 for tunnels is not that of the cluster, 8472"):
        members.join(store, peer(3), "run 3", CLUSTER_ID, port=4789)


def test_s23_a_host_that_is_alone_may_change_the_port_of_tunnels(store: EtcdCluster) -> None:
    members.join(store, peer(1), "run 1", CLUSTER_ID)
    changed = members.join(store, peer(1), "run 1", CLUSTER_ID, port=8472)
    assert (changed.info.id, changed.info.port) == (CLUSTER_ID, 8472)
    assert members.join(store, peer(2), "run 2", "d" * 32).info == changed.info
    with pytest.raises(ConfigError, match="port 4789 for tunnels is not that of the cluster, 8472"):
        members.join(store, peer(1), "run 1", CLUSTER_ID, port=4789)


def test_s23_joining_again_writes_nothing_unless_the_host_has_changed(store: EtcdCluster) -> None:
    join(store, 1)
    before = store.list()
    assert join(store, 1).number == 1 and store.list().revision == before.revision
    renamed = join(store, 1, name="web", mtu=9000)
    assert [(one.peer.name, one.peer.mtu, one.peer.number) for one in members.hosts(store)] == [
        ("web", 9000, 1)
    ]
    assert renamed.number == 1 and keys.HOST_NAMES + "h1" not in store.list().entries
    assert join(store, 2, name="h1").number == 2


def test_s23_many_hosts_join_at_once_and_no_two_have_one_number(etcd: Etcd) -> None:
    def one(number: int) -> int:
        with etcd.client() as client:
            return join(client, number).number

    with ThreadPoolExecutor(12) as pool:
        numbers = list(pool.map(one, range(1, 25)))
    assert len({*numbers}) == 24


def test_s23_two_hosts_with_one_name_or_address_are_both_named(store: EtcdCluster) -> None:
    join(store, 1)
    with pytest.raises(ExistsError) as name:
        join(store, 2, name="h1")
    assert str(name.value) == (
        f"host name h1 of this host ({peer(2).id[:12]}, 192.0.2.2) is taken by another host of the cluster "
        f"({peer(1).id[:12]}, 192.0.2.1): rename one, or forget the other if it is no more"
    )
    with pytest.raises(ExistsError, match=r"address 192\.0\.2\.1 of this host \(h2\) is that of host h1"):
        join(store, 2, address=ip_address("192.0.2.1"))
    assert len(members.hosts(store)) == 1


def test_s23_a_copy_of_a_state_directory_is_refused_while_the_other_host_lives(store: EtcdCluster) -> None:
    """What is alive is known by a lease that its agent keeps. After a reboot the host is itself."""
    join(store, 1)
    life = Liveness(store, peer(1).id, "run 1", 30)
    life.begin()
    copy = peer(1, name="h9", address=ip_address("192.0.2.9"))
    with pytest.raises(
        ExistsError, match=r"host h9 \(192\.0\.2\.9\) has the id of host h1 \(192\.0\.2\.1\), which is"
    ):
        members.join(store, copy, "run 9", CLUSTER_ID)
    members.join(store, peer(1), "run after a reboot", CLUSTER_ID)
    members.join(store, copy, "run 1", CLUSTER_ID)  # it was renamed while it lives
    life.end()
    assert members.join(store, peer(1), "run 3", CLUSTER_ID).peer.name == "h1"


def test_s23_a_host_is_alive_as_long_as_it_says_so(store: EtcdCluster) -> None:
    join(store, 1)
    life = Liveness(store, peer(1).id, "run 1", 1)
    assert not life.beat() and life.beat()
    assert members.hosts(store)[0].alive
    with eventually() as until:
        until(lambda: not members.hosts(store)[0].alive)
    assert not life.beat() and members.hosts(store)[0].alive  # the lease had ended: a new one
    life.end()
    assert not members.hosts(store)[0].alive
    members.forget(store, "h1")
    with pytest.raises(ForgottenError, match="this host has been forgotten by the cluster"):
        life.beat()
    assert not store.list(keys.ALIVE).entries


def test_s23_a_store_of_another_format_or_with_something_else_is_refused(store: EtcdCluster) -> None:
    store.txn([], [Put("cluster", '{"format":2,"id":"x","new":[1]}')])
    with pytest.raises(
        StateError, match="is of format 2, and this datapath knows format 1: upgrade datapath"
    ):
        join(store, 1)
    store.txn([], [Put("cluster", '{"format":0}')])
    with pytest.raises(StateError, match="is of format 0"):
        join(store, 1)
    for value in ("hello", "[1]", "{}"):
        store.txn([], [Put("cluster", value)])
        with pytest.raises(
            StateError, match=r"cluster store etcd://127\.0\.0\.1:23790 has something else at the keys"
        ):
            join(store, 1)
    assert set(store.list().entries) == {"cluster"}


def test_s23_keys_of_something_else_are_refused_and_left_alone(store: EtcdCluster) -> None:
    store.txn([], [Put("config", "flannel's")])
    with pytest.raises(
        StateError, match=r"something else at the keys of datapath: choose others by kv\.path"
    ):
        join(store, 1)
    assert set(store.list().entries) == {"config"}


def test_s23_another_cluster_than_the_one_that_was_joined_is_refused(store: EtcdCluster) -> None:
    join(store, 1)
    with pytest.raises(StateError, match=r"has another cluster \(cccccccccccc\) than .* \(eeeeeeeeeeee\)"):
        members.join(store, peer(2), "run 2", "d" * 32, expected="e" * 32)


def test_s23_a_later_version_may_add_fields(store: EtcdCluster) -> None:
    host = join(store, 1)
    made = networks.create(store, network())
    claimed = start(store, host, made)
    for key, entry in store.list().entries.items():
        if entry.value.startswith("{") and key != keys.POOLS:
            store.txn([], [Put(key, entry.value[:-1] + ',"later":[1]}')])
    part = addresses.part(store, [made.id])
    assert part.remotes == (claimed.remote,) and part.networks == (made,) and part.peers == (host,)
    assert members.hosts(store)[0].peer == host and networks.find(store, "ov") == made


def test_s23_a_key_that_cannot_be_read_is_named_and_the_rest_is_believed(store: EtcdCluster) -> None:
    host = join(store, 1)
    made = networks.create(store, network())
    claimed = start(store, host, made)
    store.txn([], [Put(keys.endpoint_key(made.id, ip_address("10.9.0.9")), "{"), Put(keys.HOSTS + "x", "[]")])
    part = addresses.part(store, [made.id])
    assert part.remotes == (claimed.remote,) and part.peers == (host,)
    assert [line.startswith("key ") and "cannot be read" in line for line in part.broken] == [True, True]


# ---- leaving ----------------------------------------------------------------------------------


def test_s23_a_host_that_is_gone_is_forgotten_with_all_that_it_had(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24"))
    claims = [start(store, host, made, number) for host in hosts for number in (1, 2, 3)]
    other = networks.create(store, network("other", "10.8.0.0/24", ident="b"))
    start(store, hosts[1], other, 9)
    found = members.forget(store, "h2")
    assert found.peer == hosts[1] and len(found.remotes) == 4 and len(found.blocks) == 2
    part = addresses.part(store, [made.id, other.id])
    assert {remote.id for remote in part.remotes} == {one.remote.id for one in claims[:3]}
    assert {block.peer for block in part.blocks} == {hosts[0].id} and part.peers == (hosts[0],)
    assert join(store, 3, name="h2").number == 2
    with pytest.raises(NotFoundError, match="host h9 not found"):
        members.forget(store, "h9")


def test_s23_a_host_that_lives_is_forgotten_by_force_only_and_starts_nothing_then(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network())
    start(store, hosts[1], made)
    life = Liveness(store, hosts[1].id, "run 2", 30)
    life.begin()
    with pytest.raises(InUseError, match="host h2 is alive"):
        members.forget(store, "h2")
    with pytest.raises(ConfigError, match="host h1 is this one"):
        members.forget(store, "h1", me=hosts[0].id)
    members.forget(store, "h2", force=True, me=hosts[0].id)
    assert not addresses.part(store, [made.id]).remotes
    with pytest.raises(ForgottenError, match="this host has been forgotten by the cluster"):
        start(store, hosts[1], made, 2)


def test_s23_forgetting_is_completed_by_doing_it_again(store: EtcdCluster) -> None:
    """It was killed when some keys were deleted, or when only those of hosts, names and numbers were."""
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network())
    for number in range(230):
        start_known(store, hosts[1], made, number)

    class Killed(Exception):
        pass

    class Fragile(EtcdCluster):
        left = 1

        def txn(self, *asked: object) -> Outcome:
            if not Fragile.left:
                raise Killed
            Fragile.left -= 1
            return super().txn(*asked)  # type: ignore[arg-type]

    with Fragile(store._gateway.where) as fragile, pytest.raises(Killed):
        members.forget(fragile, "h2")
    assert 0 < len(addresses.part(store, [made.id]).remotes) < 230
    members.forget(store, "h2")
    assert set(
        store.list(keys.HOSTS, keys.HOST_NAMES, keys.NUMBERS, keys.BLOCKS, keys.ENDPOINTS).entries
    ) == {*(keys.HOSTS + hosts[0].id, keys.HOST_NAMES + "h1", keys.NUMBERS + "1")}


# ---- draining ---------------------------------------------------------------------------------


def test_s23_a_drained_host_begins_nothing_and_keeps_what_it_has(store: EtcdCluster) -> None:
    host = join(store, 1)
    made = networks.create(store, network())
    first = start(store, host, made)
    assert members.drain(store, "h1") == host and members.hosts(store)[0].draining
    members.drain(store, host.id[:31])  # again, and by the beginning of its id
    with pytest.raises(InUseError, match="this host is drained"):
        start(store, host, made, 2)
    with pytest.raises(InUseError, match="this host is drained"):
        addresses.claim_block(store, host.id, made, ip_network("10.9.255.192/26"))
    addresses.release(store, first.remote)
    members.drain(store, "h1", on=False)
    start(store, host, made, 2)
    with pytest.raises(NotFoundError, match="host h7 not found"):
        members.drain(store, "h7")


def test_s23_a_host_leaves_when_it_has_no_endpoints(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network())
    claimed = start(store, hosts[0], made)
    with pytest.raises(InUseError, match=r'active endpoints .*name:"c1-h1"'):
        members.leave(store, hosts[0].id)
    addresses.release(store, claimed.remote)
    members.leave(store, hosts[0].id)
    assert [one.peer.name for one in members.hosts(store)] == ["h2"]
    assert not store.list(keys.BLOCKS).entries
    members.leave(store, hosts[0].id)  # once more, after an interruption
    assert [one.peer.name for one in members.hosts(store)] == ["h2"]


# ---- networks ---------------------------------------------------------------------------------


def test_s23_a_network_is_created_once_for_all_hosts(store: EtcdCluster) -> None:
    join(store, 1)
    made = networks.create(store, network("ov", "10.9.0.0/16", "fd00:9::/64"))
    assert made.vni in networks.VNIS
    assert (
        networks.find(store, "ov")
        == networks.find(store, made.id[:5])
        == networks.find(store, made.id)
        == made
    )
    assert networks.networks(store) == (made,)
    with pytest.raises(ExistsError, match=r"^network with name ov already exists$"):
        networks.create(store, network("ov", "10.10.0.0/16", ident="b"))
    with pytest.raises(ConfigError) as overlap:
        networks.create(store, network("two", "10.9.128.0/20", ident="b"))
    assert str(overlap.value) == (
        "invalid pool request: Pool overlaps with other one on this address space: "
        "10.9.128.0/20 overlaps 10.9.0.0/16 of network ov"
    )
    with pytest.raises(ExistsError, match=f"VNI {made.vni} is already used by network ov"):
        networks.create(store, network("two", "10.10.0.0/16", ident="b"), vni=made.vni)
    for bad in (-1, 1 << 24):
        with pytest.raises(ConfigError, match="invalid VNI"):
            networks.create(store, network("two", "10.10.0.0/16", ident="b"), vni=bad)
    with pytest.raises(NotFoundError, match="network ov2 not found"):
        networks.find(store, "ov2")
    networks.create(store, network("ov2", "10.10.0.0/16", ident="ab"), vni=256)
    with pytest.raises(ConfigError, match="network a is ambiguous"):
        networks.find(store, "a")


def test_s23_a_network_of_a_store_that_nobody_joined_is_refused(store: EtcdCluster) -> None:
    with pytest.raises(NotFoundError, match="has no cluster: this host has to join first"):
        networks.create(store, network())


def test_s23_networks_that_are_created_at_once_have_different_pools_and_vnis(etcd: Etcd) -> None:
    """And ids whose VNI would be the same."""
    with etcd.client() as client:
        join(client, 1)

    def one(number: int) -> Network:
        with etcd.client() as client:
            wanted = replace(
                network(f"n{number}", ident="a"), id=f"{'a' * 12}{number:052x}", subnets=(), ipv6=True
            )
            return networks.create(client, wanted, (4, 6), networks.default_pools(CLUSTER_ID), AVOID)

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(one, range(6)))
    assert len({net.vni for net in made}) == 6
    prefixes = sorted(str(net.subnet4.prefix) for net in made if net.subnet4)
    assert prefixes == [f"10.0.{number}.0/24" for number in (0, 2, 3, 4, 5, 6)]
    assert all(net.subnet6 and net.subnet6.gateway in net.subnet6.prefix for net in made)
    assert len({net.subnet6.prefix for net in made if net.subnet6}) == 6


AVOID = (ip_network("10.0.1.128/25"),)


def test_s23_one_name_of_two_hosts_at_once_is_one_network(etcd: Etcd) -> None:
    with etcd.client() as client:
        join(client, 1)

    def one(number: int) -> bool:
        with etcd.client() as client:
            try:
                networks.create(client, network("ov", f"10.{number}.0.0/16", ident=f"{number:x}"))
            except ExistsError:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(1, 9))) == 1
    with etcd.client() as client:
        assert len(client.list(keys.POOLS).entries[keys.POOLS].value.split(",")) == 1
        assert len(client.list(keys.VNIS).entries) == 1


def test_s23_a_network_with_endpoints_is_not_removed_and_they_are_named(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/16", "fd00:9::/64"))
    claims = [start(store, host, made, number) for host in hosts for number in (1, 2, 3, 4)]
    with pytest.raises(InUseError) as active:
        networks.remove(store, made.id)
    text = str(active.value)
    assert text.startswith("error while removing network: network ov has active endpoints (name:")
    assert 'name:"c1-h1"' in text and "on host h1" in text and text.endswith(" and 3 more)")
    for claimed in claims:
        addresses.release(store, claimed.remote)
    networks.remove(store, made.id)
    networks.remove(store, made.id)  # which is gone
    left = [
        key for key in store.list().entries if not key.startswith((keys.HOSTS, keys.HOST_NAMES, keys.NUMBERS))
    ]
    assert sorted(left) == [keys.CLUSTER, keys.POOLS] and keys.read_pools("{}") == {}
    with pytest.raises(NotFoundError, match="network ov not found: it was removed on another host"):
        start(store, hosts[0], made)


def test_s23_a_start_and_a_removal_at_once_do_not_both_succeed(etcd: Etcd) -> None:
    with etcd.client() as client:
        host = join(client, 1)
    for number in range(10):
        with etcd.client() as client:
            made = networks.create(client, network("ov", ident=f"{number:x}"))
        both = threading.Barrier(2)

        def begin(made: Network = made, both: threading.Barrier = both) -> bool:
            with etcd.client() as client:
                both.wait(10)
                try:
                    addresses.claim(client, host.id, made, Known(), endpoint(made, host, 1))
                except NotFoundError:
                    return False
                return True

        def remove(made: Network = made, both: threading.Barrier = both) -> bool:
            with etcd.client() as client:
                both.wait(10)
                try:
                    networks.remove(client, made.id)
                except InUseError:
                    return False
                return True

        with ThreadPoolExecutor(2) as pool:
            started, removed = pool.submit(begin), pool.submit(remove)
            assert started.result() != removed.result()
        with etcd.client() as client:
            if not removed.result():
                addresses.release(client, addresses.part(client, [made.id]).remotes[0])
                networks.remove(client, made.id)
            assert not client.list(keys.ENDPOINTS, keys.BLOCKS, keys.NETWORKS, keys.NAMES, keys.VNIS).entries


# ---- addresses --------------------------------------------------------------------------------


def test_s23_eight_hosts_start_25_containers_each_at_once(etcd: Etcd) -> None:
    """200 different addresses, and at most 1.2 transactions for each."""
    with etcd.client() as client:
        hosts = [join(client, number) for number in range(1, 9)]
        made = networks.create(client, network("ov", "10.9.0.0/20", "fd00:9::/64"))
    VIEWS.clear()

    def one(host: Peer) -> tuple[list[Remote], int]:
        with enter(etcd.path), Counted(etcd) as client:
            found = [start_known(client, host, made, number).remote for number in range(25)]
            assert client.lists == 0
            return found, client.txns

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, hosts))
    remotes = [remote for found, _ in results for remote in found]
    assert len({remote.ipv4 for remote in remotes}) == len({remote.ipv6 for remote in remotes}) == 200
    assert sum(txns for _, txns in results) <= 240
    with etcd.client() as client:
        part = addresses.part(client, [made.id])
    assert {(one.id, one.ipv4, one.ipv6) for one in part.remotes} == {(r.id, r.ipv4, r.ipv6) for r in remotes}
    subnet = made.subnet4
    assert subnet is not None
    for remote in remotes:  # none is an exception: each is reached by its block
        block = block_of(subnet, remote.ipv4 or ip_address("::"))
        assert block in {one.prefix for one in part.blocks if one.peer == remote.peer}


def test_s23_a_subnet_is_used_up_to_the_last_address_that_is_not_kept(etcd: Etcd) -> None:
    """Docker's usual /24 with five hosts: 253 addresses, of which a quarter is its hosts' own."""
    with etcd.client() as client:
        hosts = [join(client, number) for number in range(1, 6)]
        made = networks.create(client, network("ov", "10.9.0.0/24"))
    VIEWS.clear()

    def one(host: Peer) -> list[Address]:
        found: list[Address] = []
        with etcd.client() as client:
            for number in range(253):
                try:
                    found += keys.addresses_of(start_known(client, host, made, number).remote)
                except ConfigError as error:
                    assert str(error) == (
                        "no available IPv4 addresses on this network's address pools: ov (10.9.0.0/24): remove a "
                        "container or choose a larger subnet"
                    )
                    break
        return found

    with ThreadPoolExecutor(5) as pool:
        found = [address for some in pool.map(one, hosts) for address in some]
    assert len(found) == len({*found}) == 253


def test_s23_a_wanted_address_is_had_unless_it_is_used_or_kept(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24"))
    subnet = made.subnets[0]
    first = start(store, hosts[0], made)
    (block,) = first.blocks
    kept, last = (ip_address(number) for number in (reserve(subnet, block.prefix)[0], int(block.prefix[-2])))
    with pytest.raises(ConfigError, match=f"address {kept} is kept for containers of host .* whose block"):
        start(store, hosts[1], made, 1, str(kept))
    exception = start(store, hosts[1], made, 1, str(last))
    assert exception.remote.ipv4 == last and len(exception.blocks) == 1  # and a block of its own, its first
    with pytest.raises(ConfigError, match=f"Address already in use: {last}"):
        start(store, hosts[0], made, 2, str(last))
    with pytest.raises(ExistsError, match=f"Address already in use: {last} is that of c1-h2"):
        addresses.claim(store, hosts[0].id, made, Known(), endpoint(made, hosts[0], 2), [last])
    assert start(store, hosts[0], made, 2, str(kept)).remote.ipv4 == kept
    for wrong, why in (
        ("10.9.0.1", "gateway"),
        ("10.9.0.255", "broadcast"),
        ("10.8.0.1", "no configured subnet"),
    ):
        with pytest.raises(ConfigError, match=why):
            start(store, hosts[0], made, 3, wrong)


def test_s23_what_is_out_of_date_is_learnt_from_the_refusal(etcd: Etcd, store: EtcdCluster) -> None:
    """The block that a host would take first is another's, and so is the address."""
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24"))
    chosen = choose(made, hosts[0].id, Known(), 4)
    assert chosen.block is not None
    assert addresses.claim_block(store, hosts[1].id, made, chosen.block)
    assert not addresses.claim_block(store, hosts[0].id, made, chosen.block)
    with enter(etcd.path), Counted(etcd) as counted:
        claimed = addresses.claim(counted, hosts[0].id, made, Known(), endpoint(made, hosts[0], 1))
        assert (counted.txns, counted.lists, claimed.tries) == (2, 0, 2)
    assert claimed.blocks[0].prefix != chosen.block


def test_s23_an_endpoint_is_written_anew_by_its_host_only(store: EtcdCluster) -> None:
    hosts = [join(store, number) for number in (1, 2)]
    made = networks.create(store, network("ov", "10.9.0.0/24", "fd00:9::/64"))
    old = start(store, hosts[0], made).remote
    new = replace(old, name="web", aliases=("www",), labels={"tier": "front"})
    addresses.update(store, old, new)
    assert addresses.part(store, [made.id]).remotes == (new,)
    addresses.update(store, old, replace(new, name="api"))  # what was known had been out of date
    assert addresses.part(store, [made.id]).remotes == (replace(new, name="api"),)
    addresses.release(store, replace(new, peer=hosts[1].id, id="f" * 64))  # of another host: left alone
    with pytest.raises(ExistsError, match="has been given to an endpoint of another host"):
        addresses.update(store, replace(new, peer=hosts[1].id), replace(new, peer=hosts[1].id))
    assert addresses.part(store, [made.id]).remotes == (replace(new, name="api"),)
    addresses.release(store, old)
    addresses.release(store, old)
    assert not store.list(keys.ENDPOINTS).entries


def test_s23_blocks_without_endpoints_are_given_back_but_for_one(store: EtcdCluster) -> None:
    host = join(store, 1)
    made = networks.create(store, network("ov", "10.9.0.0/24", "fd00:9::/64"))
    remotes = [start(store, host, made, number).remote for number in range(30)]
    assert len(store.list(keys.BLOCKS).entries) == 4  # 12, 12 and 6 of IPv4, all in one of IPv6
    for remote in remotes[:24]:
        addresses.release(store, remote)
    spare = spare_blocks(host.id, known(store, made))
    assert len(spare) == 1
    addresses.release_blocks(store, "f" * 32, made.id, spare)  # of another host: left alone
    assert len(store.list(keys.BLOCKS).entries) == 4
    addresses.release_blocks(store, host.id, made.id, spare)
    for remote in remotes[24:]:
        addresses.release(store, remote)
    addresses.release_blocks(store, host.id, made.id, spare_blocks(host.id, known(store, made)))
    assert len(store.list(keys.BLOCKS).entries) == 2
