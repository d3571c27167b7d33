# SPDX-License-Identifier: Apache-2.0
"""S23: networks of the driver overlay: what one host creates all know, members reach each other across hosts, and the
rest is as on bridge networks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.net.cluster import OUTSIDE, Cluster, Member, remove, rows
from tests.net.etcd import hasty
from tests.net.hosts import PATIENCE, SLOWNESS, ask, echo_server, eventually, loses, ordinary, ping, reaches
from tests.net.test_doctor import failed_checks

MakeCluster = Callable[..., Cluster]
TRIED = 3  # pings, none of which may be lost


def hears_of(host: Member, network: str) -> None:
    """Without an agent a host learns of the others when it starts a container: not by one that got an address of the
    host's reserve, as the store took too long to answer."""

    def has_heard() -> bool:
        host.run("visitor", f"--network {network}")
        heard = not rows(host, "owed")
        remove(host, "visitor")
        return heard

    with eventually() as until:
        until(has_heard)


def reaches_from(host: Member, name: str, address: str) -> bool:
    return reaches(lambda command: host.try_in(name, command), address, TRIED)


def is_lost_from(host: Member, name: str, address: str) -> bool:
    return loses(lambda command: host.try_in(name, command), address)


def network_of(cluster: Cluster, name: str, options: str = "") -> None:
    """A network with the container `a` on the first host and `b` on the second, which know of each other."""
    cluster[0].ctl(f"network create -d overlay --attachable {options} {name}")
    cluster[0].run("a", f"--network {name}")
    cluster[1].run("b", f"--network {name}")
    hears_of(cluster[0], name)


def clear(cluster: Cluster, count: int = 2) -> None:
    """Every container and network of the first so many hosts goes, and what is left of them is nothing."""
    for host in cluster.hosts[:count]:
        if names := host.ctl("ps -aq").split():
            remove(host, *names)
            if rows(host, "owed"):
                host.ctl("reconcile")  # the store took too long to answer
    if found := cluster[0].ctl("network ls -q --filter scope=global").split():
        cluster[0].ctl(["network", "rm", *found])
        for host in cluster.hosts[1:count]:
            # Without an agent it has not heard that they are gone.
            host.try_ctl(["network", "rm", *found])
    for host in cluster.hosts[:count]:
        host.ctl("reconcile")


@pytest.fixture
def clean(cluster: Cluster) -> Cluster:
    """Without what the test before has made."""
    clear(cluster)
    return cluster


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Cluster:
    """The network `ov` with the container `a` on the first host and `b` on the second."""
    network_of(cluster, "ov", "--subnet 10.7.0.0/16")
    return cluster


# ---- two hosts ------------------------------------------------------------------------------------


def test_s23_a_network_that_one_host_creates_is_there_on_all(pair: Cluster) -> None:
    one, other = (json.loads(host.ctl("network inspect ov"))[0] for host in pair)
    assert (one["Id"], one["Scope"], one["Driver"]) == (other["Id"], "global", "overlay")
    assert one["IPAM"] == other["IPAM"]
    peers = [{"Name": "h1", "IP": pair[0].vtep}, {"Name": "h2", "IP": pair[1].vtep}]
    assert one["Peers"] == other["Peers"] == peers


def test_s23_members_on_two_hosts_reach_each_other_at_once(pair: Cluster) -> None:
    for host, name, other, peer in ((pair[0], "a", pair[1], "b"), (pair[1], "b", pair[0], "a")):
        said = host.in_(name, ping(other.address(peer, "ov"), TRIED).replace("-q ", ""))
        assert " 0% packet loss" in said and "ttl=64" in said


def test_s23_members_have_an_mtu_that_leaves_room_for_the_tunnel(pair: Cluster) -> None:
    assert "mtu 1450" in pair[0].in_("a", "ip link show eth0")
    assert "mtu 1450" in pair[1].in_("b", "ip link show eth0")


def test_s23_the_host_reaches_members_on_other_hosts(pair: Cluster) -> None:
    assert reaches(pair[0].try_, pair[1].address("b", "ov"), TRIED)


def test_s23_members_reach_the_outside_by_their_own_host(pair: Cluster) -> None:
    for host, name in ((pair[0], "a"), (pair[1], "b")):
        assert reaches_from(host, name, OUTSIDE)


def test_s23_ports_are_published_by_the_containers_own_host(pair: Cluster) -> None:
    pair[1].run("web", "--network ov -p 8080:80", echo_server("tcp", 80))
    try:
        with eventually() as until:
            until(lambda: pair.switch.try_(ask("tcp", pair[1].vtep, 8080)).returncode == 0)
        assert pair.switch.try_(ask("tcp", pair[0].vtep, 8080, 1)).returncode != 0
        said = pair[0].in_("a", ask("tcp", pair[1].address("web", "ov"), 80))
        assert pair[0].address("a", "ov") in said  # the server sees who asks
    finally:
        pair[1].ctl("rm -f web")


def test_s33_doctor_finds_nothing_on_either_host(pair: Cluster) -> None:
    for host in pair:
        assert host.ctl("doctor") == "No problems found."


def test_s23_network_ls_shows_the_scope(pair: Cluster) -> None:
    for host in pair:
        assert "global" in host.ctl("network ls --filter name=ov").splitlines()[1]


def test_s23_a_name_of_the_cluster_is_given_once(pair: Cluster) -> None:
    said = pair[1].refused("network create -d overlay ov")
    assert said == "datapathctl: network with name ov already exists"


def test_s23_a_network_that_others_use_is_not_removed(pair: Cluster) -> None:
    said = pair[1].refused("network rm ov")
    assert "network ov has active endpoints" in said
    assert reaches_from(pair[1], "b", pair[0].address("a", "ov"))


def test_s23_a_subnet_of_the_cluster_is_given_once(pair: Cluster) -> None:
    said = pair[1].refused("network create -d overlay --subnet 10.7.9.0/24 other")
    assert "10.7.9.0/24 overlaps 10.7.0.0/16 of network ov" in said


def test_s23_an_address_of_another_hosts_block_is_an_exception(pair: Cluster) -> None:
    theirs = pair[0].address("a", "ov")
    wanted = theirs.rpartition(".")[0] + "." + str(int(theirs.rpartition(".")[2]) + 5)
    pair[1].run("guest", f"--network ov --ip {wanted}")
    try:
        hears_of(pair[0], "ov")
        assert pair[1].address("guest", "ov") == wanted
        assert reaches_from(pair[0], "a", wanted)
        assert reaches_from(pair[1], "guest", theirs)
        assert pair[0].ctl("doctor") == "No problems found."
        said = pair[0].refused(f"run -d --network ov --ip {wanted} sleep 1")
        assert f'{wanted} belongs to container "guest" on host h2' in said
    finally:
        pair[1].ctl("rm -f guest")
    hears_of(pair[0], "ov")
    assert is_lost_from(pair[0], "a", wanted)


# ---- kinds of networks ----------------------------------------------------------------------------


def test_s23_members_of_a_network_without_icc_do_not_reach_each_other(clean: Cluster) -> None:
    network_of(clean, "quiet", "-o com.docker.network.bridge.enable_icc=false")
    assert is_lost_from(clean[0], "a", clean[1].address("b", "quiet"))
    assert reaches_from(clean[0], "a", OUTSIDE)
    assert clean[0].ctl("doctor") == "No problems found."


def test_s23_an_internal_network_leads_to_its_members_on_all_hosts_and_nowhere_else(clean: Cluster) -> None:
    network_of(clean, "inside", "--internal")
    assert reaches_from(clean[0], "a", clean[1].address("b", "inside"))
    assert is_lost_from(clean[0], "a", OUTSIDE)


def test_s23_members_reach_each_other_by_ipv6(clean: Cluster) -> None:
    network_of(clean, "six", "--ipv6 --subnet fd00:7::/64 --subnet 10.6.0.0/24")
    (found,) = clean[1].network("six")["Containers"].values()
    for family in ("IPv4Address", "IPv6Address"):
        assert reaches_from(clean[0], "a", found[family].partition("/")[0])
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2


def test_s23_two_networks_are_apart_and_a_container_may_be_on_both(clean: Cluster) -> None:
    network_of(clean, "one")
    clean[0].ctl("network create -d overlay two")
    clean[1].run("far", "--network two")
    assert is_lost_from(clean[0], "a", clean[1].address("far", "two"))
    clean[0].ctl("network connect two a")
    hears_of(clean[1], "two")
    assert reaches_from(clean[0], "a", clean[1].address("far", "two"))
    assert reaches_from(clean[0], "a", clean[1].address("b", "one"))
    clean[0].ctl("network disconnect two a")
    assert is_lost_from(clean[0], "a", clean[1].address("far", "two"))
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2


def test_s23_a_container_that_is_started_again_has_its_address(clean: Cluster) -> None:
    network_of(clean, "again")
    before = clean[0].address("a", "again")
    clean[0].ctl("stop -t 0 a")
    clean[0].ctl("start a")
    assert clean[0].address("a", "again") == before
    assert reaches_from(clean[0], "a", clean[1].address("b", "again"))


def test_s23_the_vni_of_a_network_can_be_chosen_once(clean: Cluster) -> None:
    option = "-o com.docker.network.driver.overlay.vxlanid_list=4711"
    clean[0].ctl(f"network create -d overlay {option} mine")
    said = clean[1].refused(f"network create -d overlay {option} yours")
    assert said == "datapathctl: VNI 4711 is already used by network mine: choose another"
    assert clean[1].ctl("network ls -q --filter name=yours") == ""


def test_s23_a_network_that_is_gone_is_gone_for_all_hosts(clean: Cluster) -> None:
    network_of(clean, "brief")
    clean[0].ctl("rm -f a")
    clean[1].ctl("rm -f b")
    clean[0].ctl("network rm brief")
    said = clean[1].refused("run -d --network brief sleep 1")
    assert said == "datapathctl: network brief not found: it was removed on another host"
    assert clean[1].ctl("network ls -q --filter name=brief") == ""
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2


@pytest.mark.parametrize(("transport", "mtu"), [("direct", 1500), ("auto", 1450), ("vxlan", 1450)])
def test_s23_a_network_goes_by_tunnels_or_without_them(clean: Cluster, transport: str, mtu: int) -> None:
    network_of(clean, "way", f"-o com.datapath.transport={transport}")
    assert f"mtu {mtu}" in clean[0].in_("a", "ip link show eth0")
    address = clean[1].address("b", "way")
    assert reaches_from(clean[0], "a", address)
    assert clean[0].try_in("a", f"ping -c 1 -M do -s {mtu - 28} -W {PATIENCE:g} {address}").returncode == 0
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2


# ---- the store is away ----------------------------------------------------------------------------


def test_s23_what_runs_goes_on_without_the_store_and_a_hosts_own_containers_start(clean: Cluster) -> None:
    network_of(clean, "kept")
    with clean.store_away():
        assert reaches_from(clean[0], "a", clean[1].address("b", "kept"))
        began = time.monotonic()
        said = clean[1].refused("network create -d overlay new")
        assert "cluster store etcd://" in said and "does not answer" in said
        assert time.monotonic() - began < 5 * SLOWNESS + ordinary(clean[1])
        with hasty():
            clean[1].run("c", "--network kept")
            assert reaches_from(clean[0], "a", clean[1].address("c", "kept"))
            clean[1].ctl("rm -f b")
            assert failed_checks(clean[1]) == {"owed"}
            assert "kept" in clean[1].ctl("network ls")
    clean[1].run("d", "--network kept")
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2
    with clean.etcd.client() as store:
        keys = list(store.list("eps/").entries)
    owned = {clean[0].address("a", "kept"), clean[1].address("c", "kept"), clean[1].address("d", "kept")}
    assert {key.rpartition("/")[2] for key in keys} == owned
