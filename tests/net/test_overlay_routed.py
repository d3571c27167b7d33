# SPDX-License-Identifier: Apache-2.0
"""S23: networks without tunnels, and routers: a host behind one, and blocks that routing daemons tell of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from datapath.cluster import keys
from datapath.store.cluster import Put
from tests.net import routers
from tests.net.agents import agent
from tests.net.cluster import Cluster, Member, remove, rows
from tests.net.hosts import FAR, SLOWNESS, ask, echo_server, eventually, loses, ordinary, reaches
from tests.net.routers import needs_bird, needs_frr
from tests.net.test_doctor import failed_checks
from tests.net.test_overlay import TRIED, clear, hears_of, reaches_from

ANNOUNCE = "-o com.datapath.transport=direct -o com.datapath.announce=true"


@pytest.fixture(scope="module")
def three(cluster: Cluster) -> Cluster:
    """Two hosts on one link and the third behind a router; all look at where packets come from."""
    routers.far_member(cluster)
    for host in cluster:
        host.sh("sysctl -q -w net.ipv4.conf.all.rp_filter=1")
        host.sh("sysctl -q -w net.ipv4.conf.eth0.rp_filter=1")
    return cluster


@pytest.fixture
def clean(three: Cluster) -> Iterator[Cluster]:
    clear(three, 3)
    yield three
    clear(three, 3)


def network_of(cluster: Cluster, options: str) -> None:
    """The network `ov` with the containers `a`, `b` and `c` on the three hosts, which know of each other."""
    cluster[0].ctl(f"network create -d overlay --subnet 10.7.0.0/16 {options} ov")
    for host, name in zip(cluster, "abc", strict=True):
        host.run(name, "--network ov", echo_server("tcp", 80))
    for host in cluster:
        hears_of(host, "ov")


def transports(host: Member) -> dict[str, str]:
    """As `network inspect` says it."""
    (found,) = json.loads(host.ctl("network inspect ov"))
    return {peer["Name"]: peer.get("Transport", "") for peer in found["Peers"]}


def routes(host: Member, more: str = "proto 200") -> list[str]:
    return [line.split()[0] for line in host.sh(f"ip route show {more}").splitlines()]


def outside_tunnels(host: Member, name: str, address: str) -> bool:
    """Pings reach the address, and none leaves the host's uplink in a tunnel."""
    said = host.folder / "seen"
    with said.open("w") as out:
        seen = host.start("tcpdump -nn -l -i eth0 -c 1 udp port 4789", stdout=out)
    with eventually() as until:
        until(lambda: "eth0" in host.sh("cat /proc/net/dev") and seen.poll() is None)
    try:
        return reaches_from(host, name, address) and seen.poll() is None and not said.read_text()
    finally:
        seen.terminate()
        seen.wait()


def all_reach_all(cluster: Cluster) -> bool:
    """Members, and the hosts themselves."""
    return all(
        reaches_from(host, name, other.address(far, "ov"))
        and reaches(host.try_, other.address(far, "ov"), TRIED)
        for host, name in zip(cluster, "abc", strict=True)
        for other, far in zip(cluster, "abc", strict=True)
    )


# ---- without routing daemons -----------------------------------------------------------------------


def test_s23_a_host_behind_a_router_is_reached_in_a_tunnel_and_inspect_says_so(clean: Cluster) -> None:
    network_of(clean, "-o com.datapath.transport=direct")
    assert all_reach_all(clean)
    assert transports(clean[0]) == {"h1": "", "h2": "direct", "h3": "vxlan"}
    assert transports(clean[2]) == {"h1": "vxlan", "h2": "vxlan", "h3": ""}
    assert [routes(host) for host in clean] == [[], [], []]
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-o com.datapath.announce=true", "needs com.datapath.transport=direct or auto"),
        (f"{ANNOUNCE} --internal", "conflicting options: com.datapath.announce and internal"),
        (f"{ANNOUNCE} -o com.datapath.deny=192.0.2.0/24", "conflicting options: com.datapath.announce and"),
    ],
)
def test_s32_what_cannot_be_announced_is_refused(clean: Cluster, options: str, said: str) -> None:
    assert said in clean[0].refused(f"network create -d overlay {options} ov")
    assert clean[0].ctl("network ls -q --filter name=ov") == ""


def test_s23_blocks_are_routes_while_the_network_has_them(clean: Cluster) -> None:
    network_of(clean, ANNOUNCE)
    blocks = [row["prefix"] for row in rows(clean[0], "blocks")]
    assert sorted(prefix for host in clean for prefix in routes(host)) == sorted(blocks)
    assert all_reach_all(clean)  # the host's own packets, too, which the routes are about
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 3
    (own,) = routes(clean[0])
    clean[0].sh(f"ip route del {own} proto 200")
    assert failed_checks(clean[0]) == {"announced"}
    clean[0].ctl("reconcile")
    assert routes(clean[0]) == [own]
    gateway = clean[0].sh(f"ip route get {clean[0].address('a', 'ov')}").split(" dev ")[1].split()[0]
    clean[0].sh(f"ip route add 10.7.200.0/24 dev {gateway} proto 200")
    assert failed_checks(clean[0]) == {"announced"}
    clean[0].ctl("reconcile")
    assert routes(clean[0]) == [own]
    for host, name in zip(clean, "abc", strict=True):
        host.ctl(f"rm -f {name}")
    clean[2].ctl("down")
    assert routes(clean[2]) == []
    clean[0].ctl("network rm ov")
    assert routes(clean[0]) == []


def test_s23_blocks_of_a_host_that_is_drained_or_forgotten_are_its_routes_no_more(clean: Cluster) -> None:
    """As long as something of it runs they are: who is drained has what it has, and who is forgotten by force has it
    until it hears that somebody else has been given it."""
    first, _, third = clean
    network_of(clean, ANNOUNCE)
    first.ctl("cluster drain-host h3")
    (block,) = routes(third)
    assert all_reach_all(clean)
    remove(third, "c")
    assert routes(third) == [] and block not in {row["prefix"] for row in rows(third, "blocks")}
    assert not clean.etcd.etcdctl("get --prefix datapath/v1/blocks/ --keys-only").count(block)
    assert third.ctl("doctor") == "No problems found."
    assert "drained" in third.refused("run -d --network ov sleep 1")
    third.ctl("cluster drain-host --off h3")
    third.run("c", "--network ov", echo_server("tcp", 80))
    (block,) = routes(third)
    address = third.address("c", "ov")
    assert first.ctl("cluster forget --force h3") == "h3"
    (own,) = (row for row in rows(first, "peers") if row["name"] == "h1")
    (network,) = (row for row in rows(first, "networks") if row["name"] == "ov")
    with clean.etcd.client() as store:
        store.txn([], [Put(keys.block_key(network["id"], ip_network(block)), keys.block_value(own["id"]))])
    first.run("d", f"--network ov --ip {address}")
    assert block in routes(first)
    with agent(third) as back, eventually() as until:
        back.says("is another host's by now")
        until(lambda: block not in routes(third))
    remove(third, "c")
    third.run("c", "--network ov", echo_server("tcp", 80))
    (other,) = routes(third)
    assert other != block
    hears_of(first, "ov")
    assert reaches_from(first, "d", third.address("c", "ov"))
    assert [host.ctl("doctor") for host in (first, third)] == ["No problems found."] * 2


# ---- with them -------------------------------------------------------------------------------------


@contextmanager
def birds(cluster: Cluster, tmp_path: Path, hosts: int = 3) -> Iterator[None]:
    """BIRD on the router, and on so many hosts as the example says."""
    with ExitStack() as stack:
        (tmp_path / "router").mkdir()
        everybody = list(cluster)
        stack.enter_context(routers.bird(cluster.switch, routers.of_router(everybody), tmp_path / "router"))
        for host in everybody[:hosts]:
            (tmp_path / host.name).mkdir()
            stack.enter_context(routers.bird(host, routers.example("bird.conf", host), tmp_path / host.name))
        yield


def known(cluster: Cluster, *hosts: Member) -> None:
    """The router, and the hosts, have learned of all blocks of these hosts."""
    wanted = {prefix for host in hosts for prefix in routes(host)}
    with eventually() as until:
        until(lambda: wanted <= set(cluster.switch.sh("ip route show proto bird").split()))
        until(lambda: all(wanted <= {*routes(host), *routes(host, "proto bird")} for host in hosts))


@needs_bird
def test_s23_hosts_behind_a_router_reach_each_other_by_routes_that_bird_has_learned(
    clean: Cluster, tmp_path: Path
) -> None:
    network_of(clean, ANNOUNCE)
    with birds(clean, tmp_path):
        known(clean, *clean)
        assert transports(clean[0]) == {"h1": "", "h2": "direct", "h3": "routed"}
        assert outside_tunnels(clean[0], "a", clean[2].address("c", "ov"))
        assert outside_tunnels(clean[2], "c", clean[1].address("b", "ov"))
        assert all_reach_all(clean)
        # A machine that is none of the cluster's reaches members, and they see who asks; its answers come back.
        for host, name in zip(clean, "abc", strict=True):
            assert FAR in clean.switch.sh(_ask_from_far(host.address(name, "ov")))
            assert reaches(clean.switch.try_, host.address(name, "ov"), TRIED)
            assert reaches_from(host, name, FAR)
        assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 3
    assert all_reach_all(clean)  # as before, in tunnels
    assert transports(clean[0])["h3"] == "vxlan"


def _ask_from_far(address: str) -> str:
    return f"nc -s {FAR} -w {int(10 * SLOWNESS)} {address} 80"


@needs_bird
def test_s23_a_session_hears_of_a_new_block_within_a_second(clean: Cluster, tmp_path: Path) -> None:
    """And a host that has heard of others' blocks may still take part for the first time."""
    clean[0].ctl(f"network create -d overlay --subnet 10.7.0.0/16 {ANNOUNCE} ov")
    clean[0].run("a", "--network ov")
    with birds(clean, tmp_path):
        known(clean, clean[0])
        clean[2].run("c", "--network ov")
        (block,) = routes(clean[2])
        began = time.monotonic()
        with eventually() as until:
            until(lambda: block in clean.switch.sh("ip route show proto bird"))
        assert time.monotonic() - began < SLOWNESS + ordinary(clean[2])
        hears_of(clean[0], "ov")
        assert reaches_from(clean[0], "a", clean[2].address("c", "ov"))


@needs_bird
def test_s23_nobody_outside_reaches_members_that_are_not_announced(clean: Cluster) -> None:
    """Though a router has been told the way by hand."""
    network_of(clean, "-o com.datapath.transport=direct")
    address = clean[0].address("a", "ov")
    clean.switch.sh(f"ip route add {address} via {clean[0].vtep}")
    try:
        assert loses(clean.switch.try_, address)
        assert clean.switch.try_(ask("tcp", address, 80, 1)).returncode != 0
    finally:
        clean.switch.sh(f"ip route del {address}")


@needs_bird
@needs_frr
def test_s23_frr_tells_of_blocks_as_bird_does(clean: Cluster, tmp_path: Path) -> None:
    network_of(clean, ANNOUNCE)
    with birds(clean, tmp_path, hosts=2), ExitStack() as stack:
        stack.enter_context(routers.frr(clean[2], routers.example("frr.conf", clean[2])))
        wanted = {prefix for host in clean for prefix in routes(host)}
        with eventually() as until:
            until(lambda: wanted <= set(clean.switch.sh("ip route show proto bird").split()))
            until(lambda: len(routes(clean[2], "proto bgp")) == 2)
        assert outside_tunnels(clean[0], "a", clean[2].address("c", "ov"))
        assert outside_tunnels(clean[2], "c", clean[0].address("a", "ov"))
        assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 3
