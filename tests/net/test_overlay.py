# SPDX-License-Identifier: Apache-2.0
"""S23: networks of the driver overlay: what one host creates all know, members reach each other across hosts, and the
rest is as on bridge networks."""

from __future__ import annotations

import json

import pytest

from tests.net.cluster import Cluster
from tests.net.hosts import Host, ping


def loss(host: Host, name: str, address: str, count: int = 3) -> str:
    """What ping says of the loss."""
    return host.try_in(name, ping(address, count).replace("-q ", "")).stdout


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Cluster:
    """The network `ov` with the container `a` on the first host and `b` on the second."""
    cluster[0].ctl("network create -d overlay --attachable --subnet 10.7.0.0/16 ov")
    cluster[0].run("a", "--network ov")
    cluster[1].run("b", "--network ov")
    cluster[0].run("c", "--network ov")
    return cluster


def test_s23_a_network_that_one_host_creates_is_there_on_all(pair: Cluster) -> None:
    one, other = (json.loads(host.ctl("network inspect ov"))[0] for host in pair)
    assert (one["Id"], one["Scope"], one["Driver"]) == (other["Id"], "global", "overlay")
    assert one["IPAM"] == other["IPAM"]
    assert [peer["Name"] for peer in one["Peers"]] == ["h1", "h2"]


def test_s23_members_on_two_hosts_reach_each_other_at_once(pair: Cluster) -> None:
    for host, name, other, peer in ((pair[0], "a", pair[1], "b"), (pair[1], "b", pair[0], "a")):
        said = loss(host, name, other.address(peer, "ov"))
        assert " 0% packet loss" in said and "ttl=64" in said


def test_s33_doctor_finds_nothing_on_either_host(pair: Cluster) -> None:
    for host in pair:
        assert host.ctl("doctor") == "No problems found."
