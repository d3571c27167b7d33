# SPDX-License-Identifier: Apache-2.0
"""datapathctl cluster …: the hosts of a cluster, drained and forgotten (S23)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.net.agents import agent
from tests.net.cluster import Cluster, Member, agents, remotes, rows
from tests.net.etcd import hasty
from tests.net.hosts import Host, eventually

Maker = Callable[..., Cluster]
SHORTLY = {"cluster-store-opts": {"discovery.ttl": "2", "discovery.heartbeat": "1"}}


def seen(host: Member) -> dict[str, Any]:
    """The hosts of the cluster by name."""
    lines = host.ctl("cluster hosts --json").splitlines()
    return {one["Name"]: one for one in map(json.loads, lines)}


def test_s23_the_hosts_of_a_cluster_are_shown_drained_and_forgotten(make_cluster: Maker) -> None:
    made = make_cluster(2, config=SHORTLY)
    first, second = made.hosts
    assert first.ctl("cluster hosts").split() == ["NAME", "ID", "ADDRESS", "STATE", "BLOCKS", "ENDPOINTS"]
    first.ctl("network create -d overlay --subnet 10.60.0.0/24 ov")
    first.run("c1", "--network ov")
    second.run("c2", "--network ov")
    with eventually() as until:
        with agents(made.hosts) as (_, theirs):
            until(lambda: [one["State"] for one in seen(first).values()] == ["alive"] * 2)
            found = seen(second)
            assert [(one["Address"], one["Blocks"], one["Endpoints"]) for one in found.values()] == [
                (first.vtep, 1, 1),
                (second.vtep, 1, 1),
            ]
            assert found["h2"]["Self"] and not found["h1"]["Self"]
            assert first.refused("cluster forget h2").endswith(
                "host h2 is alive: stop it, or let it leave; --force forgets it and what it runs"
            )
            assert "host h1 is this one" in first.refused("cluster forget h1")
            assert first.ctl("cluster drain-host h2") == "h2"
            assert "drained" in second.refused("run -d --network ov sleep 1")
            assert seen(first)["h2"]["Draining"] and "alive, draining" in first.ctl("cluster hosts")
            second.ctl("cluster drain-host --off h2")
            second.run("c3", "--network ov")
            theirs.kill()
        with agent(first):
            until(lambda: seen(first)["h2"]["State"] == "away")
            address = second.address("c3", "ov")
            assert first.ctl(["cluster", "forget", found["h2"]["ID"][:6]]) == "h2"
            assert list(seen(first)) == ["h1"]
            until(lambda: not remotes(first) and len(rows(first, "peers")) == 1)
            first.run("c4", f"--network ov --ip {address}")
            assert first.ctl("doctor") == "No problems found."
    assert not made.etcd.etcdctl(f"get --prefix datapath/v1/hosts/{found['h2']['ID']}")


def test_s23_without_its_store_the_hosts_that_are_known_are_shown(cluster: Cluster) -> None:
    first = cluster[0]
    first.ctl("network create -d overlay ov")
    with cluster.store_away(), hasty():
        done = first.try_ctl("cluster hosts")
        assert done.returncode == 0 and "h1 *" in done.stdout and "unknown" in done.stdout
        assert "does not answer: Connection refused: this is what this host" in done.stderr
        for words in ("drain-host h1", "forget h2"):
            assert "does not answer: Connection refused" in first.refused(f"cluster {words}")
    first.ctl("network rm ov")


def test_s23_what_is_wrong_with_a_command_about_hosts_is_said_in_a_line(cluster: Cluster, host: Host) -> None:
    assert "names no cluster-store" in host.refused("cluster hosts")
    assert "names no cluster-store" in host.refused("cluster forget h1")
    first = cluster[0]
    assert first.refused("cluster drain-host nobody") == "datapathctl: host nobody not found"
    assert first.refused("cluster forget nobody") == "datapathctl: host nobody not found"
    for words in ("drain-host", "forget", "drain-host a b"):
        assert first.try_ctl(f"cluster {words}").returncode == 2
