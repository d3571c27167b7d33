# SPDX-License-Identifier: Apache-2.0
"""S25: podman 5 with netavark's plugin, unmodified."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net import clients
from tests.net.clients import CLEAN, Machine, answers
from tests.net.doors import executable
from tests.net.hosts import HOST, OUTSIDE, Host
from tests.net.names import Upstreams


@pytest.fixture(params=["trixie", "sid"])
def machine(
    request: pytest.FixtureRequest, host: Host, client_root: Callable[[str], Path]
) -> Iterator[Machine]:
    host.preloaded = True
    made = Machine(host, client_root(request.param))
    with contextlib.closing(made):
        table.of_machine(request, made.sh)
        clients.podman(made, netavark=True)
        made.sh("mkdir -p /usr/local/lib/netavark")
        program = executable(host.folder / "bin", "ctl.netavark.main", host, "/usr/bin/python3")
        made.sh(f"cp {program} /usr/local/lib/netavark/")
        yield made


@door("podman", 1, 2, 3, 4, 5, 6, 7, 9)
def test_s25_podman_5_runs_containers_on_a_network_of_the_plugins(host: Host, machine: Machine) -> None:
    run, serve = f"podman run -d --cgroup-parent {machine.cgroup}", "bb httpd -f -p 80 -h /www"
    machine.sh("podman network create -d datapath n")
    network = json.loads(machine.sh("podman network inspect n"))[0]
    assert network["subnets"][0]["gateway"] and network["driver"] == "datapath"
    refused = machine.try_(f"podman network create -d datapath --subnet {network['subnets'][0]['subnet']} m")
    assert refused.returncode and "overlaps" in refused.stderr, refused
    machine.sh(f"{run} --name web --network n -p 8080:80 -p 9000-9003:9000-9003 {serve}")
    assert ":8080" in machine.sh("ss -ltn"), "podman listens itself"
    for place in (HOST, "127.0.0.1"):
        answers(host, place, 8080)
    assert "0.0.0.0:8080->80/tcp, 0.0.0.0:9000-9003->9000-9003/tcp" in machine.sh(
        "podman ps --format {{.Ports}}"
    )
    assert machine.try_(f"{run} --name second --network n -p 8080:80 {serve}").returncode
    machine.sh("podman rm -f -t 0 second")
    machine.sh("podman network create -d datapath --subnet 10.82.0.0/24 --subnet fd82::/64 -o mtu=1400 n2")
    options = "ip=10.82.0.77,mac=02:42:aa:bb:cc:dd,interface_name=net7"
    machine.sh(f"{run} --name api --network n2:{options} {serve}")
    shown = machine.sh("podman exec api ip address show net7")
    assert (
        "10.82.0.77/24" in shown
        and "02:42:aa:bb:cc:dd" in shown
        and "mtu 1400" in shown
        and "fd82::" in shown
    )
    machine.sh("podman network connect n api")
    networks = json.loads(machine.sh("podman inspect api"))[0]["NetworkSettings"]["Networks"]
    assert machine.sh(f"podman exec web wget -qO- http://{networks['n']['IPAddress']}/") == "hello"
    machine.sh("podman network disconnect n api")
    for command in (
        "podman network reload web",
        "podman restart -t 0 web",
        "podman stop -t 0 web",
        "podman start web",
    ):
        machine.sh(command)
        if "stop" not in command:
            answers(host, HOST, 8080)
        assert host.try_ctl("doctor").stdout == CLEAN, command
    machine.sh("podman pod create --name pod --network n -p 8200:80")
    machine.sh(f"{run} --pod pod {serve}")
    answers(host, HOST, 8200)
    machine.sh("podman pod rm -f -t 0 pod")
    began = time.monotonic()
    machine.sh(f"{run} --name many --network n -p 20000-20199:20000-20199 {serve}")
    assert time.monotonic() - began < 30
    assert len(host.ctl("port ls many").splitlines()) == 2
    machine.sh("podman rm -f -t 0 -a")
    assert "podman" not in host.ctl("ps") + host.ctl("network ls")
    machine.sh("podman network rm n n2")
    assert host.try_ctl("doctor").stdout == CLEAN


@door("podman", 8, 9)
def test_s25_after_a_crash_of_a_container_podman_5_starts_it_again(host: Host, machine: Machine) -> None:
    """conmon and the process are killed: nobody says that the endpoint is gone."""
    run, serve = f"podman run -d --cgroup-parent {machine.cgroup}", "bb httpd -f -p 80 -h /www"
    machine.sh("podman network create -d datapath --subnet 10.83.0.0/24 n")
    machine.sh(f"{run} --name web --network n:ip=10.83.0.5 -p 8080:80 {serve}")
    for what in ("ConmonPid", "Pid"):
        pid = int(machine.sh(f"podman inspect -f {{{{.State.{what}}}}} web"))
        assert pid > 1
        machine.sh(f"kill -9 {pid}")
    machine.try_("podman rm -f -t 0 web")  # it notices that conmon is gone, and says so
    machine.sh("podman rm -f -t 0 web")
    machine.sh(f"{run} --name web --network n:ip=10.83.0.5 -p 8080:80 {serve}")
    answers(host, HOST, 8080)
    machine.sh("podman rm -f -t 0 web")
    assert "podman" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN


@door("podman", 10)
def test_s17_containers_of_podman_5_find_each_other_by_name(host: Host, machine: Machine) -> None:
    """By name, short id, hostname and alias, by libc's search too; the resolver stays in resolv.conf as long as the
    container is on a network that has names, whichever was left; and other names are asked of the host's servers, or of
    those of `network create --dns`."""
    machine.write("/etc/resolv.conf", "search corp.example\nnameserver 192.0.2.77\n")
    run, serve = f"podman run -d --cgroup-parent {machine.cgroup}", "bb httpd -f -p 80 -h /www"
    once = f"podman run --rm --cgroup-parent {machine.cgroup}"
    for name, number, options in (
        ("n", 84, ""),
        ("n2", 85, f"--dns {OUTSIDE}"),
        ("mute", 86, "--disable-dns"),
    ):
        machine.sh(f"podman network create -d datapath --subnet 10.{number}.0.0/24 {options} {name}")
    ident = machine.sh(f"{run} --name web --hostname front --network n:alias=api {serve}")[:12]
    machine.sh(f"{run} --name asker --network n {serve}")

    def servers() -> set[str]:
        search, *others = machine.sh("podman exec asker cat /etc/resolv.conf").splitlines()
        assert search in ("search dns.podman", "search dns.podman corp.example")  # 5.4, 5.8
        return set(others)

    assert servers() == {"nameserver 10.84.0.1"}
    for name in ("web", "web.n", "web.dns.podman", ident, f"{ident}.n", "front", "API.n"):
        assert machine.sh(f"podman exec asker wget -qO- http://{name}/") == "hello", name
    machine.sh("podman network connect n2 asker")
    machine.sh("podman network connect --alias www n2 web")
    assert servers() == {"nameserver 10.84.0.1", "nameserver 10.85.0.1"}
    machine.sh("podman network disconnect n asker")
    assert servers() == {"nameserver 10.85.0.1"}
    assert machine.sh("podman exec asker wget -qO- http://www/") == "hello"
    assert machine.try_("podman exec asker wget -qO- http://api.n/").returncode, (
        "it is not on that network now"
    )
    asked = Upstreams(host.outside, host.folder / "asked", f"{OUTSIDE}=203.0.113.9")
    assert "203.0.113.9" in machine.sh("podman exec asker nslookup foreign.example")
    assert asked.whom("foreign.example")
    shown = machine.sh(f"{once} --network mute bb cat /etc/resolv.conf").splitlines()
    assert shown == ["search corp.example", "nameserver 192.0.2.77"]
    machine.sh("podman rename web shop")
    machine.sh("podman network reload shop")
    assert machine.sh("podman exec asker wget -qO- http://shop/") == "hello"
    assert host.try_ctl("doctor").stdout == CLEAN
    machine.sh("podman rm -f -t 0 -a")
    assert not host.ctl("names ls --format json")
    assert "podman" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN
