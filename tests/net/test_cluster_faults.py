# SPDX-License-Identifier: Apache-2.0
"""Faults of a cluster's store while packets pass between two hosts: none is lost, and all is whole afterwards (S23)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.net.cluster import Cluster, agents, remotes, whole
from tests.net.hosts import eventually, pinging, reaches, sent_and_lost

Maker = Callable[..., Cluster]


@contextmanager
def passing(made: Cluster) -> Iterator[None]:
    """Two hosts with agents and a container each, and pings every millisecond from one to the other: all are
    answered, and in the end every host holds what a new one would."""
    first, second = made.hosts
    with agents(made.hosts):
        first.ctl("network create -d overlay ov")
        first.run("c1", "--network ov")
        second.run("c2", "--network ov")
        with eventually() as until:
            until(lambda: "c2" in remotes(first))
        within = ("nsenter", "-t", str(second.process("c2")), "--net")
        running = pinging(second, first.address("c1", "ov"), 9, within=within)
        yield
        whole(made)
        sent, lost = sent_and_lost(running)
        assert lost == 0 and sent > 100


def test_s23_of_three_servers_the_leader_dies(make_cluster: Maker) -> None:
    made = make_cluster(2, servers=3)
    with passing(made):
        leader = made.etcd.leader()
        made.etcd.kill(leader)
        made[1].run("c3", "--network ov")
        with eventually() as until:
            until(lambda: "c3" in remotes(made[0]))
        made.etcd.begin(leader)
        made[1].ctl("rm -f c3")


def test_s23_the_store_is_restored_from_a_snapshot_of_before(make_cluster: Maker) -> None:
    made = make_cluster(2)
    with passing(made):
        made.etcd.save(made.folder / "snapshot")
        made[1].run("c3", "--network ov")
        made[0].run("c4", "--network ov")
        made[0].ctl("network create -d overlay later")
        made[0].run("c5", "--network later")
        made.etcd.restore(made.folder / "snapshot")


def test_s23_a_living_host_that_was_forgotten_by_force_joins_again(make_cluster: Maker) -> None:
    """With what it has: nobody else has been given any of it."""
    made = make_cluster(2)
    first, second = made.hosts
    with agents(made.hosts):
        first.ctl("network create -d overlay ov")
        first.run("c1", "--network ov")
        second.run("c2", "--network ov")
        assert first.ctl("cluster forget --force h2") == "h2"
        whole(made)
        assert remotes(first) == {"c2": second.address("c2", "ov")}
        assert reaches(lambda command: first.try_in("c1", command), second.address("c2", "ov"))
