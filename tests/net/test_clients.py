# SPDX-License-Identifier: Apache-2.0
"""S25: podman 4 and containerd of this release drive the CNI plugin, unmodified."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net import clients, pods
from tests.net.clients import CLEAN, Machine, answers
from tests.net.hosts import HOST, Host, eventually


@pytest.fixture
def machine(request: pytest.FixtureRequest, host: Host) -> Iterator[Machine]:
    host.preloaded = True
    made = Machine(host)
    with contextlib.closing(made):
        table.of_machine(request, made.sh)
        yield made


@door("podman", 1, 2, 3, 4, 5, 8, 9, 10)
@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
def test_s25_podman_runs_containers_on_a_network_of_its_configuration(host: Host, machine: Machine) -> None:
    """Ports, which podman binds after ADD, addresses, two networks, a crash, and nothing is left."""
    clients.podman(machine)
    named = {"portMappings": True, "ips": True, "mac": True, "aliases": True}
    options = {"com.datapath.domain": "dns.podman"}
    for number, name in enumerate(("n1", "n2"), start=1):
        machine.network(name, subnet=f"10.8{number}.0.0/24", capabilities=named, options=options)
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
    ident = machine.sh("podman inspect -f {{.Id}} api")[:12]
    for name in ("api", "api.n1", "api.dns.podman", ident):
        assert machine.sh(f"podman exec web wget -qO- http://{name}/") == "hello", name
    machine.sh("podman network disconnect n2 api")
    shown = machine.sh("podman exec api cat /etc/resolv.conf")
    assert "nameserver 10.81.0.1" in shown and "10.82.0.1" not in shown and "search dns.podman" in shown
    assert machine.sh("podman exec api wget -qO- http://web/") == "hello"
    machine.sh("podman restart -t 0 web")
    answers(host, HOST, 8080)
    assert host.try_ctl("doctor").stdout == CLEAN
    code = "import socket, time; s = socket.create_server(('', 8090)); print(flush=True); time.sleep(3600)"
    holder = host.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == "\n"
    holder.stdout.close()
    refused = machine.try_(f"{run} --name late --network n1 -p 8090:80 {serve}")  # after ADD, so DEL follows
    assert refused.returncode and "address already in use" in refused.stderr, refused
    machine.sh("podman rm -f -t 0 late")
    assert "late" not in host.ctl("ps") and "8090" not in host.ctl("port ls")
    for what in ("ConmonPid", "Pid"):
        pid = int(machine.sh(f"podman inspect -f {{{{.State.{what}}}}} web"))
        assert pid > 1
        machine.sh(f"kill -9 {pid}")
    machine.try_("podman rm -f -t 0 web")  # it notices that conmon is gone, and says so
    machine.sh(f"{run} --replace --name web --network n1 -p 8080:80 {serve}")
    answers(host, HOST, 8080)
    ipam = {"type": "host-local", "subnet": "10.88.9.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    machine.network("lan", "0.4.0", {"type": "bridge", "isGateway": True, "bridge": "br9", "ipam": ipam})
    machine.sh(f"{run} --name behind --network lan -p 8300:80 {serve}")
    assert machine.sh("podman inspect -f {{.NetworkSettings.Networks.lan.IPAddress}} behind") == "10.88.9.2"
    for place in (HOST, "127.0.0.1"):
        answers(host, place, 8300)
    host.ctl("reconcile")  # br9 is a device of the host's, which has got an address of its own since
    assert host.try_ctl("doctor").stdout == CLEAN
    machine.sh("podman rm -f -t 0 -a")
    with eventually() as until:  # a process of podman's own cleans up, which may come later
        until(lambda: "cni" not in host.ctl("ps") + host.ctl("network ls"))
    host.ctl("reconcile")
    assert host.try_ctl("doctor").stdout == CLEAN


@door("containerd", 1, 2)
@pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd")
def test_s25_containerd_runs_containers_with_cni(host: Host, machine: Machine) -> None:
    clients.containerd(machine)
    clients.runs_with_ctr(host, machine)


@door("containerd", 3)
@pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd")
def test_s25_containerd_runs_pods_as_kubernetes_asks_for_them(host: Host, machine: Machine) -> None:
    pods.runs_pods(host, machine, "1.0.0")
