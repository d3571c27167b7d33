# SPDX-License-Identifier: Apache-2.0
"""The agent of a host that is a member of a cluster: what it hears and tells, and what it survives (S23, S35)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.net.agents import agent
from tests.net.cluster import Cluster, agents, remotes, rows
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
        with ov.store_away():
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
            with made.cut_off(made.etcd):
                until(lambda: "does not answer: no answer in time" in made[0].try_ctl("doctor").stdout)
            until(lambda: made[0].try_ctl("doctor").stdout == "No problems found.\n")
