# SPDX-License-Identifier: Apache-2.0
"""Overlay networks and the host that they are on: what it must have, what goes wrong there, and the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import datapath
from datapath.config.settings import Settings
from datapath.dataplane.programs import Dataplane
from datapath.engine import joining
from datapath.kernel import echoes, features, netns
from datapath.store.cluster import Delete, Put
from tests.net import look
from tests.net.cluster import STORE, Cluster, Member, remove, rows
from tests.net.doors import Space, spaces_of_a_test
from tests.net.etcd import hasty
from tests.net.hosts import SLOWNESS, ordinary, reaches
from tests.net.test_doctor import doctor, failed_checks
from tests.net.test_overlay import TRIED, clear, hears_of, network_of, reaches_from

MakeCluster = Callable[..., Cluster]
CREATE = "network create -d overlay ov"
NO_WIREGUARD = "WireGuard (CONFIG_WIREGUARD), which encrypted networks need"


@pytest.fixture
def clean(cluster: Cluster) -> Cluster:
    """Without what the test before has made."""
    clear(cluster)
    return cluster


@pytest.fixture(scope="module")
def third(cluster: Cluster) -> Member:
    """A host that is no member yet."""
    return cluster.add()


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """The network `ov` with the container `a` on the first host and `b` on the second: those of the test before, if it
    has left them so."""
    if [shown(host) for host in cluster.hosts[:2]] != [(["a"], ["ov"], []), (["b"], ["ov"], [])]:
        clear(cluster)
        network_of(cluster, "ov", "--subnet 10.7.0.0/16")
    return cluster


def shown(host: Member) -> tuple[list[str], list[str], list[str]]:
    """The host's containers, networks and problems."""
    names = "--format {{.Names}}", "--filter type=custom --format {{.Name}}"
    return (
        host.ctl(f"ps -a {names[0]}").split(),
        host.ctl(f"network ls {names[1]}").split(),
        host.try_ctl("doctor --format {{.Check}}").stdout.split(),
    )


@contextmanager
def pinned(host: Member) -> Iterator[Dataplane]:
    """The host's packet programs."""
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found, netns.enter(host.path):
        yield found


def refused_in_time(host: Member, command: str) -> str:
    began = time.monotonic()
    said = host.refused(command)
    assert time.monotonic() - began < 5 * SLOWNESS + ordinary(host)
    return said


def test_s23_blocks_that_nothing_is_left_in_are_given_back_but_for_one(clean: Cluster) -> None:
    """Of a network of four blocks of four addresses."""
    network_of(clean, "ov", "--subnet 10.7.0.0/28")
    for name in ("c", "d", "e", "f", "g"):
        clean[0].run(name, "--network ov")

    def blocks() -> list[str]:
        with clean.etcd.client() as store:
            found = store.list("hosts/", "blocks/").entries
        (me,) = (key[6:] for key, one in found.items() if key.startswith("hosts/") and '"h1"' in one.value)
        return [key for key, one in found.items() if key.startswith("blocks/") and me in one.value]

    assert len(blocks()) >= 2
    clean[0].ctl("rm -f a c d e f g")
    assert len(blocks()) == 1
    assert [host.ctl("doctor") for host in clean] == ["No problems found."] * 2
    clean[0].run("c", "--network ov")
    hears_of(clean[1], "ov")
    assert len(blocks()) == 1 and reaches_from(clean[1], "b", clean[0].address("c", "ov"))


# ---- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, 'network driver overlay needs a cluster store: set "cluster-store" in daemon.json'),
        (
            {"cluster-store": "etcd://192.0.2.201:2379"},
            "cluster store etcd://192.0.2.201:2379 does not answer",
        ),
        ({"cluster-store": f"etcd://{STORE}:1"}, "does not answer: Connection refused"),
        ({"cluster-store": "STORE", "cluster-advertise": "eth7"}, 'there is no device "eth7" on this host'),
        (
            {"cluster-store": "STORE", "cluster-advertise": "192.0.2.77"},
            "192.0.2.77 is not an address of this host",
        ),
    ],
)
def test_s37_what_a_cluster_needs_and_is_not_there_is_named_within_5_seconds(
    clean: Cluster, third: Member, config: dict[str, str], said: str
) -> None:
    host = third
    wanted = {
        key: clean.settings["cluster-store"] if value == "STORE" else value for key, value in config.items()
    }
    host.configure(wanted)
    try:
        assert said in refused_in_time(host, CREATE)
    finally:
        host.configure(clean.settings)
    assert host.ctl("network ls -q --filter type=custom") == ""


def test_s37_a_store_of_another_format_is_refused(clean: Cluster) -> None:
    clean[0].ctl(CREATE)
    clean[0].ctl("network rm ov")
    clean[0].ctl("down")
    with clean.etcd.client() as store:
        before = store.list("cluster").entries["cluster"].value
        store.txn([], [Put("cluster", '{"format":99}')])
    try:
        assert "is of format 99, and this datapath knows format 1" in refused_in_time(clean[0], CREATE)
    finally:
        with clean.etcd.client() as store:
            store.txn([], [Put("cluster", before)])


def test_s37_two_hosts_with_one_name_are_told_apart(clean: Cluster) -> None:
    """Nothing is changed. It is the id that says which host it is: one that is called otherwise goes on."""
    network_of(clean, "ov")
    twin, before = clean.add("h1"), stored(clean)
    for command in ("network create -d overlay other", "run -d --network ov sleep 1"):
        said = refused_in_time(twin, command)
        assert "host name h1 of this host" in said and f"{clean[0].vtep}): rename one" in said
    assert stored(clean) == before
    assert look.devices(twin.sh).keys() == {"lo", "eth0"} and not rows(twin, "peers")
    clean[1].sh("hostname h1")
    said = refused_in_time(clean[1], "run -d --network ov sleep 1")
    assert "host name h1 of this host" in said and stored(clean) == before
    assert reaches_from(clean[1], "b", clean[0].address("a", "ov"))
    clean[1].sh("hostname h9")
    clean[1].run("c", "--network ov")
    names = {row["id"]: row["name"] for row in rows(clean[1], "peers")}
    clean[1].sh("hostname h2")
    twin.sh("hostname h3")
    twin.run("t", "--network ov")
    hears_of(clean[1], "ov")
    assert sorted(names.values()) == ["h1", "h9"]
    now = {row["id"]: row["name"] for row in rows(clean[1], "peers")}
    assert now.keys() > names.keys() and sorted(now.values()) == ["h1", "h2", "h3"]
    assert reaches_from(twin, "t", clean[1].address("c", "ov"))
    remove(twin, "t")
    twin.ctl("down")


def test_s37_a_subnet_that_another_host_has_a_route_to_is_refused_there(clean: Cluster) -> None:
    clean[0].ctl(f"{CREATE} --subnet 10.7.0.0/16")
    clean[1].sh("ip route add 10.7.3.0/24 dev eth0")
    try:
        said = refused_in_time(clean[1], "run -d --network ov sleep 1")
        assert "subnet 10.7.0.0/16 overlaps 10.7.3.0/24, an address or route of this host" in said
    finally:
        clean[1].sh("ip route del 10.7.3.0/24 dev eth0")


def test_s23_who_has_the_port_of_tunnels_is_named(clean: Cluster) -> None:
    """As Docker's overlay networks have it: a VXLAN device for each, which is in a namespace of its own."""
    host = clean[0]
    host.sh("ip link add vx1 type vxlan id 1 dstport 4789")
    host.sh("ip link set vx1 up")
    try:
        said = refused_in_time(host, CREATE)
        assert (
            "UDP port 4789, which the hosts of this cluster use for tunnels, is taken on this host by" in said
        )
        assert said.endswith("device vx1")
        assert clean[1].ctl("network ls -q --filter name=ov") == ""
    finally:
        host.sh("ip link del vx1")


@pytest.mark.skipif(features.has_kind("wireguard"), reason="this kernel has WireGuard")
@pytest.mark.parametrize("option", ["encrypted", "encrypted=true", "com.datapath.transport=wireguard"])
def test_o14_encryption_that_this_kernel_has_not_is_refused_before_anything_changes(
    clean: Cluster, third: Member, option: str
) -> None:
    """By a host that is a member, and by one that is none yet and does not become one."""
    before = stored(clean)
    for host in (clean[0], third):
        said = refused_in_time(host, f"{CREATE} -o {option}")
        assert NO_WIREGUARD in said
    assert stored(clean) == before
    assert not (clean[0].folder / "state" / "wireguard.key").exists()


@pytest.mark.skipif(features.has_kind("wireguard"), reason="this kernel has WireGuard")
def test_o14_a_host_that_cannot_encrypt_takes_no_part_in_what_another_has_created(clean: Cluster) -> None:
    clean[0].ctl(CREATE)
    with clean.etcd.client() as store:
        ((key, entry),) = store.list("networks/").entries.items()
        store.txn([], [Put(key, json.dumps(json.loads(entry.value) | {"options": {"encrypted": "true"}}))])
    before = stored(clean)
    said = refused_in_time(clean[1], "run -d --network ov sleep 1")
    assert NO_WIREGUARD in said
    assert stored(clean) == before and clean[1].ctl("ps -aq") == ""


def stored(cluster: Cluster) -> dict[str, str]:
    with cluster.etcd.client() as store:
        return {key: entry.value for key, entry in store.list().entries.items()}


# ---- what doctor sees, and what puts it right -----------------------------------------------------------


def test_s30_the_device_for_tunnels_is_made_again(pair: Cluster) -> None:
    pair[0].sh("ip link del dp-vxlan")
    assert "tunnel" in failed_checks(pair[0])
    pair[0].ctl("reconcile")
    assert doctor(pair[0]) == []
    pair[0].sh("ip link set dp-vxlan down")
    assert "down" in failed_checks(pair[0])
    pair[0].ctl("reconcile")
    assert doctor(pair[0]) == []


@pytest.mark.parametrize("name", ["peers", "vteps", "vnis", "overlays", "remote_blocks", "tunnel"])
def test_s30_rows_about_other_hosts_are_written_again(pair: Cluster, name: str) -> None:
    with pinned(pair[0]) as found:
        rows = getattr(found, name)
        if name == "tunnel":
            rows[0] = rows[0]._replace(port=1)
        else:
            rows.delete_many(list(rows))
    assert failed_checks(pair[0]) == {"entry-wrong" if name == "tunnel" else "entry-missing"}
    pair[0].ctl("reconcile")
    assert doctor(pair[0]) == []
    assert reaches_from(pair[0], "a", pair[1].address("b", "ov"))


def test_s30_another_mtu_on_the_way_to_the_others_is_followed(pair: Cluster) -> None:
    pair[0].sh("ip link set eth0 mtu 1400")
    try:
        assert "underlay" in failed_checks(pair[0])
        pair[0].ctl("_exited nobody 0")
        assert doctor(pair[0]) == []
        assert "mtu 1350" in pair[0].in_("a", "ip link show eth0")
        hears_of(pair[1], "ov")
        with pair.etcd.client() as store:
            hosts = [json.loads(one.value) for one in store.list("hosts/").entries.values()]
        assert {one["mtu"] for one in hosts if one["name"] == "h1"} == {1400}
    finally:
        pair[0].sh("ip link set eth0 mtu 1500")
    pair[0].ctl("_exited nobody 0")
    assert "mtu 1450" in pair[0].in_("a", "ip link show eth0")


def test_s30_a_host_whose_pins_are_gone_has_its_networks_again(pair: Cluster) -> None:
    """From its own rows: as after a restart of the machine, with the store away."""
    with pair.store_away(), hasty():
        for path in sorted((pair[0].bpffs / "datapath").rglob("*"), reverse=True):
            path.unlink() if not path.is_dir() else None
        pair[0].ctl("_exited nobody 0")
        assert reaches_from(pair[0], "a", pair[1].address("b", "ov"))
        assert doctor(pair[0]) == []


def test_s35_doctor_hears_what_came_while_it_stood_still(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: whenever it has sent something, for longer than it waits for that."""
    send = echoes._Asking._send

    def slowly(asking: echoes._Asking, one: tuple[int, str, int]) -> None:
        send(asking, one)
        time.sleep(0.6)

    monkeypatch.setattr(echoes._Asking, "_send", slowly)
    assert doctor(pair[0]) == []


def test_s30_reconcile_tells_the_store_what_it_could_not_be_told_before(pair: Cluster) -> None:
    with pair.store_away(), hasty():
        pair[0].run("late", "--network ov")
        assert failed_checks(pair[0]) == {"owed"}
        assert "does not answer" in pair[0].try_ctl("reconcile").stderr
    assert "repaired: the cluster store: 1 keys are still to be written" in pair[0].ctl("reconcile")
    assert doctor(pair[0]) == []
    address = pair[0].address("late", "ov")
    with pair.etcd.client() as store:
        assert [key for key in store.list("eps/").entries if key.endswith(f"/{address}")]
    remove(pair[0], "late")


def test_s31_a_down_that_could_not_take_the_host_out_of_the_cluster_says_why_and_is_completed(
    pair: Cluster,
) -> None:
    """The store has an address of this host's that it knows nothing of."""
    address = pair[0].address("a", "ov")
    with pair.etcd.client() as store:
        ((key, entry),) = (
            (key, entry) for key, entry in store.list("eps/").entries.items() if key.endswith(f"/{address}")
        )
        stray = key.replace(address, "10.7.250.9")
        store.txn([], [Put(stray, entry.value)])
    assert "this host has active endpoints on global networks" in pair[0].refused("down")
    assert look.devices(pair[0].sh).keys() == {"lo", "eth0"}
    with pair.etcd.client() as store:
        store.txn([], [Delete(stray)])
    pair[0].ctl("down")
    assert not (pair[0].folder / "state").exists()


def test_s31_down_takes_the_host_out_of_the_cluster(pair: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the store takes too long to be told of its containers' ends, one before and one in the same command."""
    pair[0].run("more", "--network ov")
    with monkeypatch.context() as patch:
        patch.setattr(joining, "SHORTLY", 0.0)
        remove(pair[0], "a")
        assert rows(pair[0], "owed")
        pair[0].ctl("down")
    assert look.devices(pair[0].sh).keys() == {"lo", "eth0"}
    with pair.etcd.client() as store:
        found = store.list("hosts/", "eps/", "blocks/", "hostnames/").entries
    assert not [key for key, one in found.items() if '"h1"' in one.value or key == "hostnames/h1"]
    hears_of(pair[0], "ov")
    assert reaches(pair[0].try_, pair[1].address("b", "ov"), TRIED)


# ---- other owners' sandboxes ------------------------------------------------------------------------------


def test_s33_sandboxes_of_other_owners_are_members_like_containers(
    pair: Cluster, spaces: Callable[[], Space]
) -> None:
    """As Docker's plugin protocol, CNI and podman ask for it; what the store is told goes with them."""
    host = pair[0]
    with_store = {key: value for key, value in (host.env or {}).items() if key.startswith("DATAPATH_")}
    library, space = datapath.Host.open(Settings.from_env(with_store)), spaces()
    with netns.enter(host.path):
        sandbox = library.sandboxes.adopt(space.path, "cni", key="pod-1", name="pod")
        endpoint = library.endpoints.create(
            datapath.EndpointRequest("ov", aliases=("api",)), "cni", "pod-1/ov"
        )
        library.endpoints.join(endpoint.id, sandbox.id)
    assert endpoint.ipv4 is not None
    with pair.etcd.client() as store:
        (told,) = (
            one for key, one in store.list("eps/").entries.items() if key.endswith(f"/{endpoint.ipv4.ip}")
        )
    assert json.loads(told.value)["aliases"] == ["api"]
    assert reaches_from(pair[1], "b", str(endpoint.ipv4.ip))
    with netns.enter(host.path):
        assert library.sandboxes.forget(sandbox.id, "cni")
    with pair.etcd.client() as store:
        assert not [key for key in store.list("eps/").entries if key.endswith(f"/{endpoint.ipv4.ip}")]
    assert doctor(host) == []
