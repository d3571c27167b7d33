# SPDX-License-Identifier: Apache-2.0
"""The agent of a host that is a member of a cluster: what it hears and tells, and what it survives (S23, S35)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path

import pytest

from ctl.agent import renewal
from datapath.cluster import keys, owed
from datapath.model.peers import Peer, Remote
from datapath.store.cluster import Put
from datapath.store.etcd.client import EtcdCluster
from tests.net.agents import Agent, agent
from tests.net.cluster import Cluster, agents, remotes, rows
from tests.net.etcd import hasty
from tests.net.hosts import eventually

Maker = Callable[..., Cluster]
ALIVE = "get --prefix datapath/v1/alive/ --keys-only"


@pytest.fixture
def ov(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the network `ov`, and the container c1 on h1."""
    cluster[0].ctl("network create -d overlay ov")
    cluster[0].run("c1", "--network ov")
    try:
        yield cluster
    finally:
        cluster.clear()


def test_s23_an_agent_hears_of_endpoints_of_other_hosts(ov: Cluster) -> None:
    first, second = ov.hosts
    with agents(ov.hosts), eventually() as until:
        second.run("c2", "--network ov")
        until(lambda: remotes(first) == {"c2": second.address("c2", "ov")})
        second.ctl("rm -f c2")
        until(lambda: not remotes(first))
    for host in ov.hosts:
        assert host.ctl("doctor") == "No problems found."


def test_s23_an_agent_says_that_its_host_lives_until_it_is_gone_for_long(make_cluster: Maker) -> None:
    made = make_cluster(1, config={"cluster-store-opts": {"discovery.ttl": "2", "discovery.heartbeat": "1"}})
    made[0].ctl("network create -d overlay ov")
    assert not made.etcd.etcdctl(ALIVE)
    with eventually() as until:
        with agent(made[0]) as running:
            until(lambda: made.etcd.etcdctl(ALIVE))
            made.etcd.etcdctl("del --prefix datapath/v1/alive/")
            running.kill()
        with agent(made[0]):
            until(lambda: made.etcd.etcdctl(ALIVE))
        until(lambda: not made.etcd.etcdctl(ALIVE))


def test_s23_an_agent_that_was_killed_lists_all_again(ov: Cluster) -> None:
    """O5: news are missed, and nothing else."""
    first, second = ov.hosts
    with agent(first) as running:
        second.run("c2", "--network ov")
        with eventually() as until:
            until(lambda: "c2" in remotes(first))
        running.kill()
    second.ctl("rm -f c2")
    second.run("c3", "--network ov")
    assert set(remotes(first)) == {"c2"}
    with agent(first), eventually() as until:
        until(lambda: set(remotes(first)) == {"c3"})
    assert first.ctl("doctor") == "No problems found."


def test_s23_what_a_command_owes_is_sent_once_the_store_is_back(ov: Cluster) -> None:
    first, _ = ov.hosts
    with agent(first) as running:
        with ov.store_away(), hasty():
            first.run("c4", "--network ov")
            first.ctl("rm -f c1")
            assert len(rows(first, "owed")) == 2 and '"owed"' in first.try_ctl("doctor --json").stdout
            running.says("does not answer")
        with eventually() as until:
            until(lambda: not rows(first, "owed"))
        running.says("the store answers again")
    keys = ov.etcd.etcdctl("get --prefix datapath/v1/eps/ --keys-only").split()
    assert [key.rpartition("/")[2] for key in keys] == [first.address("c4", "ov")]
    first.ctl("rm -f c4")
    first.run("c1", "--network ov")


def test_s23_a_network_that_is_removed_elsewhere_goes(ov: Cluster) -> None:
    first, second = ov.hosts
    first.ctl("network create -d overlay other")
    second.ctl("run --rm --network other true")
    with agent(second), eventually() as until:
        first.ctl("network rm other")
        until(lambda: "other" not in {row["name"] for row in rows(second, "networks")})
    assert second.ctl("doctor") == "No problems found."


def test_s35_a_host_without_an_agent_is_told_that_it_hears_nothing(make_cluster: Maker) -> None:
    opts = {"discovery.ttl": "2", "discovery.heartbeat": "1"}
    made = make_cluster(1, config={"cluster-store-opts": opts})
    said = made[0].try_ctl("network create -d overlay ov").stderr
    assert said.startswith("WARNING: no agent is at work on this host: ") and "datapathctl agent" in said
    assert made[0].try_ctl("run -d --name c1 --network ov sleep 3600").stderr == said
    with eventually() as until:
        until(lambda: "cluster-news" in made[0].try_ctl("doctor --json").stdout)
        assert "no agent is at work on this host" in made[0].try_ctl("doctor").stdout
        with agent(made[0]):
            until(lambda: made[0].try_ctl("doctor").stdout == "No problems found.\n")
            assert made[0].try_ctl("run -d --network ov sleep 3600").stderr == ""
            with made.cut_off(made.etcd), hasty():
                until(lambda: "does not answer: no answer in time" in made[0].try_ctl("doctor").stdout)
            until(lambda: made[0].try_ctl("doctor").stdout == "No problems found.\n")


def test_s23_an_agent_takes_memory_for_its_own_networks_only(make_cluster: Maker) -> None:
    """Of 1,000 hosts, of which 20 share a network with this one and have 2,000 containers on it: at most 40 MB. Those
    on networks of others cost it nothing."""
    made = make_cluster(1)
    first = made[0]
    ident = first.ctl("network create -d overlay --subnet 10.64.0.0/12 ov")
    first.run("c1", "--network ov")
    hosts = [
        Peer(f"{number:032x}", f"n{number}", number, IPv4Address("198.18.0.0") + number, _mac(number))
        for number in range(2, 1001)
    ]
    put = {keys.HOSTS + host.id: keys.peer_value(host) for host in hosts}
    put |= _members(ident, "10.65.0.0/16", hosts[:20], 100)
    elsewhere = _members("e" * 64, "10.66.0.0/16", hosts[20:120], 200)
    with agent(first) as running, made.etcd.client() as store, eventually() as until:
        _write(store, put)
        more = (
            replace(_member(ident, hosts[0], IPv4Address("10.65.0.200") + n), name=f"m{n}") for n in count()
        )

        def hears() -> None:
            """It has heard of all that has been written."""
            one = next(more)
            _write(store, owed.claims(one))
            until(lambda: one.name in remotes(first))

        until(lambda: len(remotes(first)) == 2000)
        before = _settled(running, hears)
        assert before <= 40 << 20, f"{before >> 10} KB"
        _write(store, elsewhere)
        after = _settled(running, hears)
        assert after <= 40 << 20 and after - before < 2 << 20, f"{before >> 10} and then {after >> 10} KB"


def _members(network_id: str, within: str, hosts: Sequence[Peer], each: int) -> dict[str, str]:
    """Keys of these hosts' blocks and containers, of which each has so many."""
    found: dict[str, str] = {}
    for host, block in zip(hosts, IPv4Network(within).subnets(new_prefix=24), strict=False):
        found[keys.block_key(network_id, block)] = keys.block_value(host.id)
        for number in range(1, each + 1):
            found |= owed.claims(_member(network_id, host, block[number]))
    return found


def _member(network_id: str, host: Peer, address: IPv4Address) -> Remote:
    ident = f"{int(address):064x}"
    name = f"c-{address}"
    return Remote(ident, network_id, host.id, _mac(int(address)), ident, name, ident[-12:], ipv4=address)


def _mac(number: int) -> str:
    return ":".join(f"{byte:02x}" for byte in (2, 0, *number.to_bytes(4, "big")))


def _write(store: EtcdCluster, put: Mapping[str, str]) -> None:
    items = list(put.items())
    for start in range(0, len(items), 100):
        store.txn([], [Put(*one) for one in items[start : start + 100]])


def _settled(running: Agent, hears: Callable[[], None]) -> int:
    """Bytes of memory of an agent that has heard of all, and does not start itself again for memory: it has little, or
    has just done so."""

    def begun() -> int:
        return sum("following the host" in line for line in running.said)

    def is_settled() -> bool:
        renewed = any("MB are in use: starting again" in line for line in running.said)
        return begun() == 1 + renewed and (renewed or _resident(running.pid) <= renewal.MOST)

    with eventually() as until:
        while True:
            until(is_settled)
            before = begun()
            hears()
            found = _resident(running.pid)
            if is_settled() and begun() == before:
                return found


def _resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
