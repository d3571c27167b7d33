# SPDX-License-Identifier: Apache-2.0
"""Beside others who do networking on the host, each of them the real one: dockerd with its own bridges, ufw, firewalld,
podman with netavark. Each goes on as before, none of their rules changes, and neither does anything of ours.
(kube-proxy's rules: test_host_routed.py. The CNI plugins bridge, firewall and portmap: test_cni.py.)"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net import clients, look
from tests.net.clients import Machine
from tests.net.dockerd import HTTPD, IMAGE, PAGE, DockerHost, needs_docker
from tests.net.hosts import HOST, OUTSIDE, TIMEOUT, Failed, Host, eventually, reaches, words
from tests.net.wire import Container, call, counters, fails, rises, serving, start_container

FIREWALLD = Path(sys.prefix) / "firewalld"  # unpacked there by the Makefile
needs_ufw = pytest.mark.skipif(not shutil.which("ufw"), reason="needs ufw")
needs_firewalld = pytest.mark.skipif(
    not (FIREWALLD / "usr/sbin/firewalld").exists(), reason="needs firewalld"
)
needs_netavark = pytest.mark.skipif(
    not shutil.which("podman") or not Path("/usr/lib/podman/netavark").exists(), reason="needs netavark"
)


def rules(host: Host) -> list[str]:
    """All rules of the packet filter, of whatever tool, without counters, and the bridges."""
    found = re.sub(r"(counter packets) \d+ bytes \d+", r"\1", host.sh("nft list ruleset"))
    bridges = (line.split()[1] for line in host.sh("ip -o link show type bridge").splitlines())
    return [*found.splitlines(), *bridges]


# ---- dockerd with its own bridge -------------------------------------------------------------------------------


@pytest.fixture
def docker_root() -> Path | None:
    """That of another release (tests/doors): this machine's."""
    return None


@pytest.fixture
def docker(request: pytest.FixtureRequest, tmp_path: Path, docker_root: Path | None) -> Iterator[DockerHost]:
    """As it is installed: docker0, rules, docker-proxy, `FORWARD DROP`; containers outlive it."""
    made = DockerHost(
        tmp_path,
        "--iptables=true",
        "--bridge=",
        "--bip=10.76.0.1/24",
        "--live-restore",
        "--userland-proxy=true",
        root=docker_root,
    )
    with contextlib.closing(made):
        made.serve()
        made.up()
        table.client(request, made.version)
        yield made
        if containers := made.docker("ps -aq").split():
            made.docker(["rm", "-f", *containers])


def page(run: Callable[[str], str], address: str, port: int) -> bool:
    return run(f"curl -sS -m 30 http://{address}:{port}/") + "\n" == PAGE


def inside(host: DockerHost, name: str, address: str, port: int) -> bool:
    return host.exec(name, f"wget -q -O - http://{address}:{port}/") + "\n" == PAGE


@needs_docker
@door("Docker", 18)
def test_beside_dockers_own_bridges_both_kinds_of_containers_work_and_no_rule_changes(
    docker: DockerHost,
) -> None:
    host = docker
    assert "-P FORWARD DROP" in host.sh("iptables -S FORWARD")
    host.docker(f"run -d --name theirs -p 8081:80 {IMAGE} {HTTPD}")
    host.docker("network create --subnet 10.77.0.0/24 more")
    host.docker(f"run -d --name second --network more -p 8083:80 {IMAGE} {HTTPD}")
    before = rules(host)
    assert len(before) > 30
    host.docker("network create -d datapath --subnet 10.5.0.0/16 n1")
    host.docker(f"run -d --name ours --network n1 -p 8080:80 {IMAGE} {HTTPD}")
    host.ctl("network create --subnet 10.6.0.0/16 own")
    own = start_container(host, "own", "--network own -p 8082:80")
    assert rules(host) == before
    with serving(own, "tcp", 80), serving(host.outside, "tcp", 7400):

        def ports_answer() -> None:
            for port in (8080, 8081, 8083):
                assert page(host.outside.sh, HOST, port)
            assert call(host.outside, "tcp", HOST, 8082).seen == OUTSIDE

        def all_is_well() -> None:
            ports_answer()
            for port in (8080, 8081, 8083):
                for address in (HOST, "127.0.0.1"):
                    assert page(host.sh, address, port), (address, port)
                # The ports of either kind are reached from containers of either kind.
                for name in ("ours", "theirs", "second"):
                    assert inside(host, name, HOST, port), (name, port)
            for place in (host.outside, host):
                assert call(place, "tcp", HOST, 8082).peer == HOST
            for port in (8080, 8081, 8083):
                assert own.sh(f"curl -sS -m 30 http://{HOST}:{port}/") + "\n" == PAGE
            assert call(own, "tcp", OUTSIDE, 7400).seen == HOST
            for name in ("ours", "theirs", "second"):
                assert host.exec(name, f"nc -w 30 {OUTSIDE} 7400").split()[0] == HOST

        all_is_well()
        # Only by its ports: nothing of theirs comes straight to a container of ours.
        assert host.try_docker("exec theirs nc -w 1 10.5.0.2 80").returncode
        host.docker("restart -t 0 theirs")
        assert sorted(rules(host)) == sorted(before)
        ports_answer()
        # The daemon writes its rules anew, and containers go on meanwhile.
        host.down()
        assert page(host.outside.sh, HOST, 8080) and call(host.outside, "tcp", HOST, 8082).seen == OUTSIDE
        host.up()
        before = rules(host)
        ports_answer()
        for command in ("reconcile", "upgrade"):
            host.ctl(command)
            assert rules(host) == before, command
        host.try_("iptables -t nat -F")
        assert page(host.outside.sh, HOST, 8080)
        host.down()
        host.up()
        all_is_well()
    look.detected(host)  # their bridges have got addresses meanwhile
    host.ctl("reconcile")
    assert host.clean()
    before = rules(host)
    host.docker("rm -f ours")
    host.docker("network rm n1")
    host.ctl("rm -f own")
    host.ctl("network rm own")
    host.ctl("down --force")
    assert rules(host) == before
    assert page(host.outside.sh, HOST, 8081) and inside(host, "second", HOST, 8081)


def port_is(host: Host, *, ours: bool) -> None:
    """Or docker-proxy's, which comes and goes in its own time."""
    with eventually() as until:
        until(lambda: ("8080" in host.ctl("port ls")) == ours)


@needs_docker
@door("Docker", 19)
def test_a_container_on_a_bridge_of_dockers_too_leaves_and_answers_by_the_network_that_docker_says(
    docker: DockerHost,
) -> None:
    """The one whose name comes first; ports are published there alone."""
    host = docker
    host.docker("network create -d datapath --subnet 10.5.0.0/16 n1")
    host.docker("network create --subnet 10.77.0.0/24 zone")
    host.docker(f"run -d --name both --network n1 -p 8080:80 {IMAGE} {HTTPD}")
    for network, gateway, ours in (("zone", "10.5.0.1", True), ("bridge", "10.76.0.1", False)):
        host.docker(f"network connect {network} both")
        assert f"default via {gateway} " in host.exec("both", "ip route")
        port_is(host, ours=ours)
        assert page(host.outside.sh, HOST, 8080) and page(host.sh, "127.0.0.1", 8080)
        assert ("8080" in host.sh("ss -ltn")) != ours
        assert host.exec("both", f"ping -c 1 -W 30 {OUTSIDE}")
        host.docker(f"network disconnect {network} both")
        port_is(host, ours=True)
        assert page(host.outside.sh, HOST, 8080)
    look.detected(host)  # their bridges have got addresses meanwhile
    host.ctl("reconcile")
    assert host.clean()


# ---- firewalls -------------------------------------------------------------------------------------------------


class Ufw:
    """Its files are copies of the machine's, mounted there for it alone."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.folder / "ufw"
        self.folder.mkdir()
        shutil.copytree("/etc/ufw", self.folder / "etc")
        shutil.copy("/etc/default/ufw", self.folder / "default")

    def __call__(self, command: str) -> str:
        mounts = (
            f"mount --bind {self.folder}/etc /etc/ufw",
            f"mount --bind {self.folder}/default /etc/default/ufw",
            "mount -t tmpfs tmpfs /run",
        )
        script = " && ".join((*mounts, f"exec ufw {command}"))
        return self.host.sh(["unshare", "--mount", "sh", "-c", script])


def serves_as_ever(host: Host, web: Container, peer: Container) -> None:
    """Published ports, ways out, and containers among each other, over TCP and UDP."""
    before = counters(host)
    for proto in ("tcp", "udp"):
        with serving(web, proto, 80), serving(host.outside, proto, 7400):
            assert call(host.outside, proto, HOST, 8080).seen == OUTSIDE
            for address in (HOST, "127.0.0.1"):
                assert call(host, proto, address, 8080).peer == address
            assert call(peer, proto, HOST, 8080).peer == HOST
            assert call(peer, proto, web.ip, 80).seen == peer.ip
            assert call(peer, proto, OUTSIDE, 7400).seen == HOST
    assert reaches(peer.try_, OUTSIDE)
    assert rises(before, counters(host)) == {}


def closed_for_the_host(host: Host, peer: Container) -> None:
    """The firewall is in force for what is the host's, of containers too, as it says."""
    with serving(host, "tcp", 7401):
        assert fails(host.outside, "tcp", HOST, 7401)
        assert fails(peer, "tcp", HOST, 7401) and fails(peer, "tcp", peer.gateway, 7401)


@needs_ufw
def test_beside_ufw_that_denies_what_comes_in_and_what_is_routed(host: Host) -> None:
    """Published ports are not its business, but allow= and deny= of the port; the host's own services are."""
    host.sh("sysctl -qw net.ipv4.ip_forward=1")  # else it says nothing of what is routed
    ufw = Ufw(host)
    ufw("default deny routed")
    ufw("--force enable")
    ufw("allow 22/tcp")
    ufw("reload")
    before = rules(host)
    assert "Default: deny (incoming), allow (outgoing), deny (routed)" in ufw("status verbose")
    web, peer = start_container(host, "web", "-p 8080:80 -p 8080:80/udp"), start_container(host, "peer")
    serves_as_ever(host, web, peer)
    closed_for_the_host(host, peer)
    assert rules(host) == before
    ufw("reload")
    serves_as_ever(host, web, peer)
    assert rules(host) == before
    # What a rule for the gateway device lets in is reached.
    ufw("allow in on dp0 to any port 7401 proto tcp")
    with serving(host, "tcp", 7401):
        assert call(peer, "tcp", peer.gateway, 7401).seen == peer.ip
    # And a port is closed where it is published.
    host.ctl("port set web 8080:80 deny=0.0.0.0/0")
    with serving(web, "tcp", 80):
        assert fails(host.outside, "tcp", HOST, 8080)
    before = rules(host)
    host.ctl("down --force")
    assert rules(host) == before
    ufw("disable")


class Firewalld:
    """The daemon with a message bus of its own; what it keeps is in the host's folder."""

    BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/></policy></busconfig>"""

    def __init__(self, host: Host) -> None:
        self.host, self.folder = host, host.folder / "firewalld"
        shutil.copytree(FIREWALLD / "etc/firewalld", self.folder)
        (self.folder / "bus.conf").write_text(self.BUS)
        packages = FIREWALLD / "usr/lib/python3/dist-packages"
        self.env = {"PYTHONPATH": str(packages), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        script = (
            "mount -t tmpfs tmpfs /run && mkdir /run/dbus && "
            f"dbus-daemon --config-file={self.folder}/bus.conf --nofork --nopidfile & "
            f"exec /usr/bin/python3 {FIREWALLD}/usr/sbin/firewalld --nofork --nopid --log-file {self.folder}/log "
            f"--system-config {self.folder} --default-config {FIREWALLD}/usr/lib/firewalld"
        )
        argv = ["nsenter", f"--net={host.path}", "unshare", "--mount", "sh", "-c", script]
        with (host.folder / "firewalld.log").open("w") as log:
            self.process = subprocess.Popen(
                argv, env=self.env, stdout=log, stderr=log, text=True, start_new_session=True
            )
        host.background.append(self.process)
        with eventually() as until:
            until(lambda: self.try_("--state").stdout == "running\n")

    def try_(self, command: str) -> subprocess.CompletedProcess[str]:
        argv = [
            "nsenter",
            f"--net={self.host.path}",
            f"--mount=/proc/{self.process.pid}/ns/mnt",
            "/usr/bin/python3",
        ]
        return subprocess.run(
            [*argv, str(FIREWALLD / "usr/bin/firewall-cmd"), *words(command)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def __call__(self, command: str) -> str:
        done = self.try_(command)
        if done.returncode:
            raise Failed(f"firewall-cmd {command}: {done.stdout}{done.stderr}")
        return done.stdout


@needs_firewalld
def test_beside_firewalld_whose_default_zone_drops_everything(host: Host) -> None:
    """And through its reloads, which begin with an empty set of rules."""
    firewall = Firewalld(host)
    firewall("--set-default-zone=drop")
    web = start_container(host, "web", "-p 8080:80 -p 8080:80/udp")
    before = rules(host)
    peer = start_container(host, "peer")
    serves_as_ever(host, web, peer)
    closed_for_the_host(host, peer)
    assert rules(host) == before and len(before) > 100
    for command in ("--reload", "--complete-reload"):
        firewall(command)
        serves_as_ever(host, web, peer)
        closed_for_the_host(host, peer)
    # What a zone for the gateway device lets in is reached.
    firewall("--zone=trusted --add-interface=dp0")
    with serving(host, "tcp", 7401):
        assert call(peer, "tcp", peer.gateway, 7401).seen == peer.ip
    before = rules(host)
    host.ctl("down --force")
    assert rules(host) == before


# ---- podman ----------------------------------------------------------------------------------------------------


@needs_netavark
@door("podman", 11)
def test_beside_podmans_own_bridge_by_netavark(host: Host) -> None:
    host.preloaded = True
    machine = Machine(host)
    with contextlib.closing(machine):
        clients.podman(machine, netavark=True)
        beside_podmans_own_bridge(host, machine)


def beside_podmans_own_bridge(host: Host, machine: Machine) -> None:
    """Netavark's network and ours: published ports of both, ways out, and its restart and reload."""
    host.sh("iptables -P FORWARD DROP")
    # Netavark 1.4 has no rule there for what is new; later ones have tables of their own alone, which lift no DROP.
    for end in "-d", "-s":
        host.sh(f"iptables -A FORWARD {end} 10.78.0.0/24 -j ACCEPT")
    run, serve = f"podman run -d --cgroup-parent {machine.cgroup}", "bb httpd -f -p 80 -h /www"
    machine.sh(
        "podman network create --disable-dns --subnet 10.78.0.0/24 theirs"
    )  # aardvark-dns is not there
    machine.sh(f"{run} --name theirs --network theirs -p 8081:80 {serve}")
    clients.answers(host, HOST, 8081)
    before = rules(host)
    web, peer = start_container(host, "web", "-p 8080:80 -p 8080:80/udp"), start_container(host, "peer")

    def both_work() -> None:
        serves_as_ever(host, web, peer)
        for place, address in ((host.outside, HOST), (host, HOST), (host, "127.0.0.1"), (peer, HOST)):
            assert place.sh(f"curl -sS -m 30 http://{address}:8081/") == "hello", (place, address)
        with serving(web, "tcp", 80):
            seen = machine.sh(f"podman exec theirs nc -w 30 {HOST} 8080").split()[0]
            assert seen.startswith("10.78.0.")
        with serving(host.outside, "tcp", 7400):
            assert machine.sh(f"podman exec theirs nc -w 30 {OUTSIDE} 7400").split()[0] == HOST

    both_work()
    assert rules(host) == before
    machine.sh("podman restart -t 0 theirs")
    machine.sh("podman network reload theirs")
    host.ctl("reconcile")  # its bridge was made anew: an agent would have seen it
    both_work()
    before = rules(host)
    host.ctl("down --force")
    assert rules(host) == before
    clients.answers(host, HOST, 8081)
    machine.sh("podman rm -f -t 0 -a")
