# SPDX-License-Identifier: Apache-2.0
"""`doctor` asks other hosts whether packets arrive, through the tunnel and without: no process answers, and no
container has to be there (S35)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.net.cluster import Cluster, Member, agents, rows
from tests.net.hosts import eventually

Maker = Callable[..., Cluster]
TUNNEL = "(UDP port 4789)"


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Iterator[Cluster]:
    """Both hosts have a part in the network `ov`, and the second no container any more."""
    first, second = cluster.hosts
    with agents(cluster.hosts), eventually() as until:
        first.ctl("network create -d overlay --ipv6 ov")
        first.run("c1", "--network ov")
        second.ctl("run --rm --network ov true")
        until(lambda: blocks(first) == 2)
    yield cluster


def blocks(host: Member) -> int:
    """Hosts that this one knows blocks of."""
    return len({row["peer"] for row in rows(host, "blocks")})


def found(*hosts: Member) -> list[list[str]]:
    """What doctor says on each of these hosts, without what it means."""

    def one(host: Member) -> list[str]:
        said = host.try_ctl("doctor --format {{.Check}}|{{.Subject}}|{{.Detail}}")
        assert said.stderr == ""
        return said.stdout.splitlines()

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(one, hosts))


@contextmanager
def between(cluster: Cluster, rule: str, *machines: Member) -> Iterator[None]:
    """The switch treats datagrams to the tunnels' port that come from these machines by a rule of its packet filter."""
    switch = cluster.switch
    switch.sh("nft add table netdev between")
    try:
        for number, machine in enumerate(machines):
            hook = f"type filter hook ingress device p{machine.number} priority 0;"
            switch.sh(["nft", f"add chain netdev between from{number} {{ {hook} }}"])
            switch.sh(f"nft add rule netdev between from{number} udp dport 4789 {rule}")
        yield
    finally:
        switch.sh("nft delete table netdev between")


def test_s35_doctor_finds_nothing_where_packets_arrive(pair: Cluster) -> None:
    assert found(*pair.hosts) == [[], []]


@pytest.mark.parametrize("senders", [(0,), (0, 1)], ids=["one way", "both"])
def test_s35_a_firewall_that_drops_tunnels_is_found(pair: Cluster, senders: tuple[int, ...]) -> None:
    first, second = pair.hosts
    with between(pair, "drop", *(pair[number] for number in senders)):
        detail = f"it is there, and nothing comes back by its tunnel {TUNNEL}"
        assert found(first, second) == [
            [f"peer|host {other.name} ({other.vtep})|{detail}"] for other in (second, first)
        ]


def test_s35_a_host_that_is_down_is_told_from_that(pair: Cluster) -> None:
    first, second = pair.hosts
    with pair.cut_off(second):
        detail = f"nothing comes back from it, by its tunnel {TUNNEL} or without"
        assert found(first) == [[f"peer|host h2 ({second.vtep})|{detail}"]]
    assert found(first) == [[]]


def test_s35_what_takes_only_small_packets_in_between_is_found(pair: Cluster) -> None:
    first, second = pair.hosts
    pair.switch.sh("ip link set p2 mtu 1400")
    try:
        detail = "packets of 1400 bytes come back from it by its tunnel, those of 1500 are lost"
        assert found(first, second) == [
            [f"peer-mtu|host {other.name} ({other.vtep})|{detail}"] for other in (second, first)
        ]
    finally:
        pair.switch.sh("ip link set p2 mtu 1500")


def test_s35_a_device_that_sums_packets_in_tunnels_wrongly_is_found(pair: Cluster) -> None:
    """As one that does not know tunnels: the sum that it was left is that of a UDP header 76 bytes behind the outer
    IP header's begin."""
    first = pair[0]
    first.sh("ethtool -K eth0 tx off")
    try:
        assert found(first) == [[]]
        with between(pair, "@nh,608,16 set 0xdead", first):
            detail = (
                f"a checksum in a tunnel that was left to the device of {first.vtep} came back wrong from h2"
            )
            assert found(first) == [["|".join(("offload", "the way to other hosts", detail))]]
    finally:
        first.sh("ethtool -K eth0 tx on")


def test_s35_a_host_that_has_not_heard_of_this_one_is_found_and_what_is_to_be_done_about_it(
    make_cluster: Maker,
) -> None:
    """It drops what comes from a stranger. No agent is at work there, so it hears with its next command."""
    made = make_cluster(2)
    first, second = made.hosts
    first.ctl("network create -d overlay ov")
    for host in made.hosts:
        host.ctl("run --rm --network ov true")
    said = second.try_ctl("doctor").stdout
    assert f"host h1 ({first.vtep}): it is there, and nothing comes back by its tunnel {TUNNEL}" in said
    assert "may not have heard of this one yet (does its agent run?)" in said
    first.ctl("run --rm --network ov true")
    assert found(second) == [[]]


def test_s35_a_host_asks_over_ipv6_too(make_cluster: Maker) -> None:
    """A network that has only IPv4, in tunnels over IPv6; and one with both whose packets need no tunnel."""
    made = make_cluster(0)
    hosts = [made.add(config={"cluster-advertise": f"2001:db8:7::{number}"}) for number in (1, 2)]
    for options in ("", "--ipv6 -o com.datapath.transport=auto "):
        hosts[0].ctl(f"network create -d overlay {options}ov")
        for host in (*hosts, hosts[0]):
            host.ctl("run --rm --network ov true")
        assert found(hosts[0]) == [[]]
        with made.cut_off(hosts[1]):
            assert [line.partition("|")[0] for line in found(hosts[0])[0]] == ["peer"]
        with between(made, "meta length > 1400 drop", hosts[0]):
            assert [line.partition("|")[0] for line in found(hosts[0])[0]] == ["peer-mtu"]
        hosts[0].ctl("network rm ov")
        for host in hosts:
            host.try_ctl("network rm ov")
