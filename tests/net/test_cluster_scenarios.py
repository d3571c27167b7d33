# SPDX-License-Identifier: Apache-2.0
"""Networks that span hosts, end to end, with an agent on each host (S23)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import pytest

from tests.net.agents import agent
from tests.net.cluster import Cluster, Member, agents, remotes, whole
from tests.net.etcd import hasty
from tests.net.hosts import PATIENCE, eventually, pinging, reaches, sent_and_lost

Maker = Callable[..., Cluster]


@pytest.fixture
def followed(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with an agent on each host, and no networks that span hosts."""
    with agents(cluster.hosts):
        try:
            yield cluster
        finally:
            cluster.clear()


def in_(host: Member, name: str) -> Callable[[str], CompletedProcess[str]]:
    return lambda command: host.try_in(name, command)


def within(host: Member, name: str) -> tuple[str, ...]:
    """What runs a command in a container's network."""
    return ("nsenter", "-t", str(host.process(name)), "--net")


def has_heard_of(name: str, host: Member) -> None:
    """Waits until the agent there has taken over that the container is here: until then the first one of its host is
    a stranger there, whose packets are dropped."""
    with eventually() as until:
        until(lambda: name in remotes(host))


def test_o1_a_network_is_there_on_the_other_host_at_once_and_its_name_is_taken(followed: Cluster) -> None:
    first, second = followed.hosts
    ident = first.ctl("network create -d overlay --subnet 10.61.0.0/24 ov")
    assert "ov" in second.ctl("network ls --format {{.Name}}").split()
    one, other = first.network("ov"), second.network("ov")
    assert one["Id"] == other["Id"] == ident and one["Scope"] == other["Scope"] == "global"
    assert one["Options"] == other["Options"] and one["IPAM"] == other["IPAM"]
    said = second.refused("network create -d overlay ov")
    assert "network with name ov already exists" in said


def test_o2_the_first_packet_by_name_arrives_from_the_containers_own_address(followed: Cluster) -> None:
    first, second = followed.hosts
    first.ctl("network create -d overlay ov")
    first.run("c1", "--network ov")
    second.run("c2", "--network ov")
    has_heard_of("c2", first)
    said = second.in_("c2", f"ping -n -c 1 -W {PATIENCE:g} c1")
    assert f"from {first.address('c1', 'ov')}: icmp_seq=1 ttl=64 " in said
    said = first.in_("c1", f"ping -n -c 1 -W {PATIENCE:g} c2")
    assert f"from {second.address('c2', 'ov')}: icmp_seq=1 ttl=64 " in said
    for host, name in ((first, "c1"), (second, "c2")):
        assert "mtu 1450" in host.in_(name, "ip link show eth0")
    whole(followed)


def test_o3_many_containers_at_once_have_addresses_of_their_own(make_cluster: Maker) -> None:
    """Three hosts with four each."""
    made = make_cluster(3)
    with agents(made.hosts), ThreadPoolExecutor(3) as pool:
        made[0].ctl("network create -d overlay ov")

        def start(host: Member) -> list[str]:
            for number in range(4):
                host.run(f"{host.name}-{number}", "--network ov")
            return [host.address(f"{host.name}-{number}", "ov") for number in range(4)]

        found = [address for some in pool.map(start, made.hosts) for address in some]
        assert len(set(found)) == 12
        with eventually() as until:
            until(lambda: all(len(remotes(host)) == 8 for host in made.hosts))
        for host in made.hosts:
            for address in found:
                assert reaches(in_(host, f"{host.name}-0"), address)
        whole(made)


def test_o4_packets_and_containers_go_on_without_the_store(followed: Cluster) -> None:
    first, second = followed.hosts
    first.ctl("network create -d overlay ov")
    first.run("c1", "--network ov")
    second.run("c2", "--network ov")
    has_heard_of("c2", first)
    running = pinging(second, first.address("c1", "ov"), 4, within=within(second, "c2"))
    with followed.store_away():
        second.run("c3", "--network ov")
        assert reaches(in_(second, "c3"), first.address("c1", "ov"))
        with hasty():
            said = second.refused("network create -d overlay other")
            assert "etcd://192.0.2.200:23790 does not answer" in said
            second.ctl("rm -f c3")
            second.run("c4", "--network ov")
    has_heard_of("c4", first)
    sent, lost = sent_and_lost(running)
    assert lost == 0 and sent > 100
    whole(followed)


def test_o5_a_container_that_starts_while_the_agent_is_dead_is_reached_by_address_at_once(
    cluster: Cluster,
) -> None:
    first, second = cluster.hosts
    try:
        with agent(second), agent(first) as killed:
            first.ctl("network create -d overlay ov")
            first.run("c1", "--network ov")
            second.run("c2", "--network ov")
            has_heard_of("c2", first)
            running = pinging(first, second.address("c2", "ov"), 5, within=within(first, "c1"))
            killed.kill()
            second.run("c3", "--network ov")
            assert reaches(in_(first, "c1"), second.address("c3", "ov"))
            with agent(first), eventually() as until:
                until(lambda: "c3" in remotes(first))  # a question that comes too early is waited for
                assert reaches(in_(first, "c1"), "c3")
                assert sent_and_lost(running)[1] == 0
                whole(cluster)
    finally:
        cluster.clear()


def test_o6_what_the_store_has_compacted_meanwhile_is_listed(cluster: Cluster) -> None:
    first, second = cluster.hosts
    try:
        first.ctl("network create -d overlay ov")
        first.run("c1", "--network ov")
        with agent(second):
            second.run("c2", "--network ov")
            second.ctl("rm -f c2")
            second.run("c3", "--network ov")
            status = json.loads(cluster.etcd.etcdctl("endpoint status -w json"))
            cluster.etcd.etcdctl(f"compact {status[0]['Status']['header']['revision']}")
            with agent(first), eventually() as until:
                until(lambda: set(remotes(first)) == {"c3"})
                whole(cluster)
    finally:
        cluster.clear()
