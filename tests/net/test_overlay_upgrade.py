# SPDX-License-Identifier: Apache-2.0
"""S30 on networks of several hosts: another version's packet programs take the place of those that run, on one host
and then the other, while packets pass between these: in tunnels, as they are, and encrypted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import forked
from tests.net.cluster import Cluster, Member, agents, remotes
from tests.net.hosts import PATIENCE, eventually, pinging, sent_and_lost
from tests.net.test_doctor import doctor
from tests.net.test_overlay_wireguard import folder, prepared, pytestmark
from tests.net.test_upgrade import CALLER, TALKER, Version, as_version, built, use_objects

__all__ = ["folder", "pytestmark"]
NETWORKS = {
    "vx": "--subnet 10.7.0.0/16",
    "routed": "--subnet 10.8.0.0/16 -o com.datapath.transport=direct -o com.datapath.announce=true",
    "secret": "--subnet 10.9.0.0/16 -o encrypted",
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Its conntrack GC runs half as often, so that its objects are others."""
    return built(tmp_path_factory.mktemp("other"), "conn_gc", conn_gc=("(SECOND / 10)", "(SECOND / 5)"))


@pytest.fixture(scope="module")
def pair(cluster: Cluster, folder: Path) -> Iterator[Cluster]:
    """The container `a` on the first host and `b` on the second, each on a network of each kind; agents."""
    forked.in_child.append(use_objects)
    for host in cluster:
        prepared(host, folder)
    for name, options in NETWORKS.items():
        cluster[0].ctl(f"network create -d overlay {options} {name}")
    with agents(cluster.hosts), eventually() as until:
        for host, name in zip(cluster, "ab", strict=True):
            host.run(
                name, " ".join(f"--network {network}" for network in NETWORKS), ["python3", "-c", TALKER]
            )
        until(lambda: remotes(cluster[0]).keys() == {"b"} and remotes(cluster[1]).keys() == {"a"})
        until(lambda: all(answers(cluster, network) for network in NETWORKS))
        yield cluster


def answers(cluster: Cluster, network: str) -> bool:
    address = cluster[1].address("b", network)
    return cluster[0].try_in("a", ["bash", "-c", f"</dev/tcp/{address}/80"]).returncode == 0


def inside(host: Member, name: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{host.process(name)}/ns/net"]


def test_s30_programs_are_replaced_up_and_down_and_no_packet_between_hosts_is_lost(
    pair: Cluster, other: Version
) -> None:
    first, second = pair.hosts
    before = [sum(host.drops().values()) for host in pair]
    pings, callers = [], []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for number, network in enumerate(NETWORKS):
        there, back = second.address("b", network), first.address("a", network)
        pings += [
            pinging(first, there, 71 + number, 0.01, inside(first, "a")),
            pinging(second, back, 81 + number, 0.01, inside(second, "b")),
            pinging(first, there, 91 + number, 0.01),
        ]
        callers.append(first.start([*inside(first, "a"), "python3", "-c", CALLER, there, "80"], **pipes))
    for process in callers:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for version in (other, None):
        for host in pair:
            as_version(host, version)
            assert "replaced" in host.ctl("upgrade")
    for process in callers:
        said, wrong = process.communicate("", timeout=PATIENCE)
        assert process.returncode == 0 and int(said) > 20, wrong
    for process in pings:
        sent, lost = sent_and_lost(process)
        assert sent > 20 and lost == 0
    assert [sum(host.drops().values()) for host in pair] == before
    assert [doctor(host) for host in pair] == [[], []]
    assert not any((host.bpffs / "datapath" / "next").exists() for host in pair)
