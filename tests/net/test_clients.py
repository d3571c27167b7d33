# SPDX-License-Identifier: Apache-2.0
"""S25: podman 4 and containerd of this release drive the CNI plugin, unmodified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import clients
from tests.net.clients import Machine
from tests.net.hosts import HOST, Host, eventually

CLEAN = "No problems found.\n"


@pytest.fixture
def machine(host: Host) -> Iterator[Machine]:
    host.preloaded = True
    made = Machine(host)
    yield made
    made.close()


def answers(host: Host, place: str, port: int) -> None:
    """The page is there, as soon as the server in the container listens."""
    where = host.outside if place == HOST else host
    with eventually() as until:
        until(lambda: where.try_(f"curl -s -m 5 http://{place}:{port}/").stdout == "hello\n")


@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
def test_s25_podman_runs_containers_on_a_network_of_its_configuration(host: Host, machine: Machine) -> None:
    """Ports, which podman binds after ADD, addresses, two networks, a crash, and nothing is left."""
    clients.podman(machine)
    for number, name in enumerate(("n1", "n2"), start=1):
        machine.network(name, subnet=f"10.8{number}.0.0/24")
    run = f"podman run -d --cgroup-parent {machine.cgroup}"
    serve = "bb httpd -f -p 80 -h /www"
    machine.sh(f"{run} --name web --network n1 -p 8080:80 -p 9000-9003:9000-9003 {serve}")
    for place in (HOST, "127.0.0.1"):
        answers(host, place, 8080)
    assert "0.0.0.0:8080->80/tcp" in machine.sh("podman ps --format {{.Ports}}")
    assert "web" in host.ctl("ps --format {{.Names}}")
    refused = machine.try_(f"{run} --name second --network n1 -p 8080:80 {serve}")
    assert refused.returncode and "8080" in refused.stderr
    machine.sh("podman rm -f -t 0 second")
    answers(host, HOST, 8080)
    machine.sh(
        f"{run} --name api --network n2:ip=10.82.0.77,mac=02:42:aa:bb:cc:dd,interface_name=net7 {serve}"
    )
    shown = machine.sh("podman exec api ip -o address show net7")
    assert "10.82.0.77/24" in shown
    machine.sh("podman network connect n1 api")
    address = json.loads(machine.sh("podman inspect api"))[0]["NetworkSettings"]["Networks"]["n1"][
        "IPAddress"
    ]
    assert machine.sh(f"podman exec web wget -qO- http://{address}/") == "hello"
    machine.sh("podman network disconnect n2 api")
    machine.sh("podman restart -t 0 web")
    answers(host, HOST, 8080)
    assert host.try_ctl("doctor").stdout == CLEAN
    machine.sh("podman rm -f -t 0 -a")
    assert "cni" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN


@pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd")
def test_s25_containerd_runs_containers_with_cni(host: Host, machine: Machine, tmp_path: Path) -> None:
    """`ctr run --cni`; one that runs in the background is never said to be gone."""
    clients.containerd(machine)
    machine.network("n1", subnet="10.81.0.0/24")
    ctr = "ctr -a /run/containerd.sock"
    run, bb = f"{ctr} run --cni --snapshotter native", "docker.io/library/bb:latest"
    shown = machine.sh(f"{run} --rm --cgroup /{machine.cgroup}-1 {bb} c1 ip -o address show eth0")
    assert "10.81.0.2/24" in shown
    assert "cni" not in host.ctl("ps") + host.ctl("network ls")
    machine.sh(f"{run} -d --cgroup /{machine.cgroup}-2 {bb} c2 httpd -f -p 80 -h /www")
    answers(host, "10.81.0.2", 80)
    assert host.try_ctl("doctor").stdout == CLEAN
    assert "default-c2" in host.ctl("ps --format {{.Names}}")
    machine.sh(f"{ctr} task kill -s 9 c2")
    with eventually() as until:
        until(lambda: "STOPPED" in machine.sh(f"{ctr} task ls"))
    machine.sh(f"{ctr} task rm c2")
    with eventually() as until:
        until(lambda: "is gone" in host.try_ctl("doctor").stdout)
    shown = machine.sh(f"{run} --rm --cgroup /{machine.cgroup}-3 {bb} c3 ip -o address show eth0")
    assert "10.81.0.2/24" in shown
    assert host.try_ctl("doctor").stdout == CLEAN
    machine.sh(f"{ctr} container rm c2")
