# SPDX-License-Identifier: Apache-2.0
"""That the pretend hosts of a cluster reach each other and their store, and that faults are what they say."""

from __future__ import annotations

from tests.net.cluster import OUTSIDE, Cluster
from tests.net.hosts import loses, reaches


def test_hosts_of_a_cluster_have_names_and_reach_each_other_and_the_store(cluster: Cluster) -> None:
    first, second = cluster.hosts
    assert first.sh("hostname") == "h1" and second.sh("hostname") == "h2"
    for address in (second.vtep, second.vtep6, OUTSIDE, cluster.etcd.address):
        assert reaches(first.try_, address)


def test_a_machine_that_is_cut_off_is_reached_again_afterwards(cluster: Cluster) -> None:
    first, second = cluster.hosts
    with cluster.cut_off(second):
        assert loses(first.try_, second.vtep)
    assert reaches(first.try_, second.vtep)
    with cluster.store_away():
        assert reaches(first.try_, cluster.etcd.address)
    assert "is healthy" in cluster.etcd.try_(cluster.etcd.words("endpoint health")).stderr


def test_a_store_is_restored_to_what_a_snapshot_has(cluster: Cluster) -> None:
    path = cluster.folder / "snapshot"
    cluster.etcd.etcdctl("put a 1")
    cluster.etcd.save(path)
    cluster.etcd.etcdctl("put a 2")
    cluster.etcd.restore(path)
    assert cluster.etcd.etcdctl("get a --print-value-only") == "1"
