# SPDX-License-Identifier: Apache-2.0
"""Faults of a cluster's store while packets pass between two hosts: none is lost, and all is whole afterwards (S23)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ctl.agent import renewal
from datapath.errors import StateError
from datapath.store.cluster import Put
from tests.net import faults
from tests.net.agents import agent
from tests.net.cluster import STORE, Cluster, Member, agents, remotes, whole
from tests.net.hosts import SLOWNESS, eventually, ordinary, pinging, reaches, sent_and_lost
from tests.net.test_adversity import fill, small_disk
from tests.net.test_faults import LONG

Maker = Callable[..., Cluster]
BRISK: dict[str, Any] = {"cluster-store-opts": {"discovery.ttl": "6", "discovery.heartbeat": "1"}}
USUAL: dict[str, Any] = {"cluster-store-opts": {}}
ALIVE = "get --prefix datapath/v1/alive/"


@contextmanager
def passing(made: Cluster, interval: float = 0.001) -> Iterator[None]:
    """Hosts with agents, a container on the first two, and pings, one each `interval` seconds, from one to the other:
    all are answered, and in the end every host holds what a new one would."""
    first, second, *_ = made.hosts
    with agents(made.hosts):
        first.ctl("network create -d overlay ov")
        first.run("c1", "--network ov")
        second.run("c2", "--network ov")
        with eventually() as until:
            until(lambda: "c2" in remotes(first))
        within = ("nsenter", "-t", str(second.process("c2")), "--net")
        running = pinging(second, first.address("c1", "ov"), 9, interval, within)
        yield
        whole(made)
        sent, lost = sent_and_lost(running)
        assert lost == 0 and sent > 100


def test_s23_of_three_servers_one_dies_and_then_the_leader(make_cluster: Maker) -> None:
    made = make_cluster(2, servers=3)
    with passing(made), eventually() as until:
        for which in ("another", "the leader"):
            leader = made.etcd.leader()
            number = leader if which == "the leader" else (leader + 1) % 3
            made.etcd.kill(number)
            made[1].run("c3", "--network ov")
            until(lambda: "c3" in remotes(made[0]))
            made.etcd.begin(number)
            made.etcd.ready()
            made[1].ctl("rm -f c3")
            until(lambda: "c3" not in remotes(made[0]))


def test_s23_the_store_is_full(make_cluster: Maker) -> None:
    """What begins is of the hosts' reserves, what ends is still written; and once there is room, the rest."""
    made = make_cluster(2, options="--quota-backend-bytes 400000")
    first, second = made.hosts
    with passing(made), eventually() as until:
        with made.etcd.client() as store, pytest.raises(StateError):
            for number in range(1000):
                store.txn([], [Put(f"other/{number}", "x" * 20000)])
        said = second.refused("network create -d overlay other")
        assert f"cluster store etcd://{STORE}:23790 is full: " in said
        second.run("c3", "--network ov")
        assert reaches(lambda command: second.try_in("c3", command), first.address("c1", "ov"))
        first.run("c4", "--network ov")
        first.ctl("rm -f c4")
        assert '"owed"' in second.try_ctl("doctor --json").stdout
        made.etcd.etcdctl("del --prefix datapath/v1/other/")
        made.etcd.etcdctl(f"compact {made.etcd.revision()}")
        made.etcd.etcdctl("defrag")
        made.etcd.etcdctl("alarm disarm")
        until(lambda: "c3" in remotes(first))


def test_s23_the_disk_under_the_store_is_full(make_cluster: Maker) -> None:
    """A server that cannot write ends, and does not begin again; once there is room it has all that it had said."""
    made = make_cluster(2)
    first, second = made.hosts
    made.etcd.kill(0)
    data = made.etcd.folder / "s0"
    shutil.rmtree(data)
    with small_disk(data, "170m"):  # what it writes first it has set aside: twice 64 MB
        made.etcd.begin(0)
        made.etcd.ready()
        with passing(made), eventually() as until:
            ballast = fill(data)
            with made.etcd.client() as store, pytest.raises(StateError):
                for number in range(100):
                    store.txn([], [Put(f"other/{number}", "x" * 20000)])
            made.etcd.ended(0)
            began = time.monotonic()
            said = second.refused("network create -d overlay other")
            assert time.monotonic() - began < 5 * SLOWNESS + ordinary(second)
            assert f"cluster store etcd://{STORE}:23790 does not answer: " in said and "\n" not in said
            second.run("c3", "--network ov")
            assert reaches(lambda command: second.try_in("c3", command), first.address("c1", "ov"))
            first.run("c4", "--network ov")
            first.ctl("rm -f c4")
            assert '"owed"' in second.try_ctl("doctor --json").stdout
            made.etcd.begin(0)
            made.etcd.ended(0)
            ballast.unlink()
            made.etcd.begin(0)
            made.etcd.ready()
            until(lambda: "c3" in remotes(first))
        made.etcd.kill(0)


def test_s23_a_host_is_cut_off_from_the_store_for_long(make_cluster: Maker) -> None:
    """Its lease ends, what others do is compacted, and it starts and ends containers itself meanwhile."""
    made = make_cluster(2, config=BRISK)
    first, second = made.hosts
    with passing(made), eventually() as until:
        second.run("c3", "--network ov")
        until(lambda: len(leases(made)) == 2)
        lose_the_store(second)
        until(lambda: len(leases(made)) == 1)
        first.run("c4", "--network ov")
        first.ctl("run --rm --network ov true")
        first.ctl("network create -d overlay other")
        second.run("c5", "--network ov")
        second.ctl("rm -f c3")
        assert "does not answer" in second.refused("network create -d overlay third")
        made.etcd.etcdctl(f"compact {made.etcd.revision()}")
        second.sh("nft delete table inet cut")
        until(lambda: remotes(second).keys() == {"c1", "c4"} and remotes(first).keys() == {"c2", "c5"})
        until(lambda: len(leases(made)) == 2)


def lose_the_store(host: Member) -> None:
    """What the host sends to the store is lost from now on, until `nft delete table inet cut`."""
    host.sh("nft add table inet cut")
    host.sh(["nft", "add chain inet cut out { type filter hook output priority 0; }"])
    host.sh(f"nft add rule inet cut out ip daddr {STORE} drop")


def leases(made: Cluster) -> dict[str, int]:
    """Of the hosts that say that they live: id -> number of the lease."""
    found = json.loads(made.etcd.etcdctl(f"{ALIVE} -w json")).get("kvs", [])
    return {one["key"]: one["lease"] for one in found}


@pytest.mark.skipif(not LONG, reason="ten minutes; DATAPATH_LONG=1")
def test_s23_hosts_are_cut_off_for_ten_minutes_one_from_the_store_and_one_from_all(
    make_cluster: Maker,
) -> None:
    """With the usual lease. Others come and go each minute, and what the store had said is compacted; hosts that live
    lose no packet, and those that come back have all news, and a lease again, within a minute."""
    made = make_cluster(3, config=USUAL)
    first, second, third = made.hosts
    with passing(made, 0.01), eventually() as until:
        third.run("far", "--network ov")
        until(lambda: len(leases(made)) == 3)
        before = leases(made)
        lose_the_store(second)
        with made.cut_off(third):
            began = time.monotonic()
            until(lambda: len(leases(made)) == 1)
            for minute in range(10):
                first.run(f"a{minute}", "--network ov")
                second.run(f"b{minute}", "--network ov")
                assert reaches(
                    lambda command: second.try_in("c2", command), first.address(f"a{minute}", "ov")
                )
                if minute:
                    first.ctl(f"rm -f a{minute - 1}")
                    second.ctl(f"rm -f b{minute - 1}")
                first.ctl(f"network create -d overlay other{minute}")
                assert "does not answer" in second.refused("network create -d overlay third")
                made.etcd.etcdctl(f"compact {made.etcd.revision()}")
                time.sleep(
                    max(0.0, began + 60 * (minute + 1) - time.monotonic())
                )  # the time is what is tried
            assert len(leases(made)) == 1
        second.sh("nft delete table inet cut")
        until(lambda: remotes(first).keys() == {"c2", "b9", "far"})
        until(lambda: remotes(second).keys() == {"c1", "a9", "far"})
        until(lambda: remotes(third).keys() == {"c1", "a9", "c2", "b9"})
        until(lambda: len(leases(made)) == 3)
        after = leases(made)
        assert sum(after[key] != lease for key, lease in before.items()) == 2
        for name, host in (("a9", first), ("b9", second)):
            address = host.address(name, "ov")
            assert reaches(lambda command: third.try_in("far", command), address)


def test_s23_a_hosts_addresses_are_given_again_once_it_was_killed_and_forgotten(make_cluster: Maker) -> None:
    made = make_cluster(3, config=BRISK)
    first, second, third = made.hosts
    with agents([first, second]), eventually() as until:
        with agent(third) as killed:
            first.ctl("network create -d overlay --subnet 10.7.0.0/16 ov")
            for number, host in enumerate(made.hosts, 1):
                host.run(f"c{number}", "--network ov")
            until(lambda: remotes(first).keys() == {"c2", "c3"})
            within = ("nsenter", "-t", str(second.process("c2")), "--net")
            running = pinging(second, first.address("c1", "ov"), 9, within=within)
            killed.kill()
        address = third.address("c3", "ov")
        with made.cut_off(third):
            assert "host h3 is alive" in first.refused("cluster forget h3")
            until(lambda: first.try_ctl("cluster forget h3").returncode == 0)
            until(lambda: "c3" not in remotes(first) and "c3" not in remotes(second))
            second.run("c4", f"--network ov --ip {address}")
            until(lambda: reaches(lambda command: first.try_in("c1", command), address))
        with agent(third) as back:  # it has lived all the time
            back.says(f"{address} is another host's by now")
            assert reaches(lambda command: first.try_in("c1", command), address)
            third.ctl("rm -f c3")
            third.run("c5", "--network ov")
            whole(made)
        sent, lost = sent_and_lost(running)
        assert lost == 0 and sent > 100


@pytest.mark.skipif(not LONG, reason="nothing asks a wall clock: tests/unit/test_house.py; DATAPATH_LONG=1")
def test_s23_wall_clocks_differ_and_jump(make_cluster: Maker, tmp_path: Path) -> None:
    """By 5 minutes each way, and then by hours while agents are at work: nobody is thought dead, or hears less."""
    made = make_cluster(2, config=BRISK)
    source, library = Path(__file__).with_name("skew.c"), tmp_path / "skew.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    for host, seconds in zip(made.hosts, (300, -300), strict=True):
        (host.folder / "skew").write_text(str(seconds))
        assert host.env is not None
        host.env |= {"LD_PRELOAD": str(library), "SKEW": str(host.folder / "skew")}
        host.preloaded = False
    apart = int(made[0].sh("date +%s")) - int(made[1].sh("date +%s"))
    assert 590 < apart < 610
    with passing(made), eventually() as until:
        until(lambda: len(leases(made)) == 2)
        began = leases(made)
        for number, seconds in enumerate((-7200, 7200)):
            for host in made.hosts:
                (host.folder / "skew").write_text(str(seconds * (1 + host.number)))
            made[1].run(f"n{number}", "--network ov")
            until(partial(knows, made[0], f"n{number}"))
            later = heard(made[0]) + 2 * int(BRISK["cluster-store-opts"]["discovery.heartbeat"])
            until(partial(has_heard, made[0], later))
        assert leases(made) == began


def heard(host: Member) -> float:
    """When it last heard of the store, by a clock that nobody sets."""
    return float(json.loads((host.folder / "run" / "cluster").read_text())["at"])


def has_heard(host: Member, since: float) -> bool:
    return heard(host) > since


def knows(host: Member, name: str) -> bool:
    return name in remotes(host)


def followed(host: Member, agent: subprocess.Popen[str], names: set[str]) -> bool:
    """The agent has died, or the host knows these containers elsewhere."""
    return agent.poll() is not None or remotes(host).keys() == names


FAULTY = "from tests.net import faults; faults.install(); from ctl.cli.main import main; main()"


def faulty(host: Member, fault: str, *settings: str, **more: Any) -> subprocess.Popen[str]:
    """An agent with a fault, which it would lose if it started itself again for the memory that this takes."""
    known = f"{renewal._LAST}={time.monotonic():.0f}"
    argv = ["env", f"{faults.VARIABLE}={fault}", known, *settings, sys.executable, "-c", FAULTY, "agent"]
    return host.start(argv, **more)


def test_s30_an_agent_that_is_killed_at_any_step_has_missed_news_and_nothing_else(cluster: Cluster) -> None:
    first, second = cluster.hosts
    first.ctl("network create -d overlay ov")
    first.run("c1", "--network ov")
    second.run("c2", "--network ov")
    for number in count(1) if LONG else (4, 9, 15):
        running = faulty(first, f"kill@{number}")
        with eventually() as until:
            if number % 2:
                second.run("m", f"--network ov --label at={number}")
            else:
                second.try_ctl("rm -f m")
            until(partial(followed, first, running, {"c2", "m"} if number % 2 else {"c2"}))
        killed = running.poll() is not None
        assert killed or number > 4, "this is before it has done anything"
        running.kill()
        running.wait()
        with agent(first):
            whole(cluster)
        if number % 2:
            second.ctl("rm -f m")
        if not killed and number > 5:
            break
    cluster.clear()


@pytest.mark.skipif(not LONG, reason="200 containers; DATAPATH_LONG=1")
def test_o3_eight_hosts_start_25_containers_each_at_once(make_cluster: Maker) -> None:
    made = make_cluster(8)
    with agents(made.hosts), ThreadPoolExecutor(8) as pool:
        made[0].ctl("network create -d overlay --subnet 10.7.0.0/16 ov")
        before = made.etcd.revision()

        def start(host: Member) -> list[str]:
            for number in range(25):
                host.run(f"{host.name}-{number}", "--network ov")
            return [host.address(f"{host.name}-{number}", "ov") for number in range(25)]

        found = [address for some in pool.map(start, made.hosts) for address in some]
        written = made.etcd.revision() - before - 2 * 8  # each host has joined, and says that it lives
        assert len(set(found)) == 200 and written <= 1.2 * 200
        with eventually() as until:
            until(lambda: all(len(remotes(host)) == 175 for host in made.hosts))
        whole(made)


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
