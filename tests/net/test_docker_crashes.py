# SPDX-License-Identifier: Apache-2.0
"""S25 and S30, with a real dockerd: it and the driver are killed while much is under way; and two daemons at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net.dockerd import HTTPD, IMAGE, DockerHost, needs_docker
from tests.net.hosts import HOST, TIMEOUT, eventually
from tests.net.test_docker import STREAM, download

pytestmark = needs_docker
NAMES = [f"c{number}" for number in range(6)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"))
    with contextlib.closing(made):
        begin(made)
        yield made


def begin(host: DockerHost) -> None:
    """The daemon and the driver are up, and a network is there."""
    host.serve()
    host.up()
    host.docker("network create -d datapath --subnet 10.5.0.0/16 n1")


@pytest.fixture
def host(request: pytest.FixtureRequest, shared: DockerHost) -> Iterator[DockerHost]:
    """The module's host. Whatever happened, what Docker has is removed, and then nothing is left."""
    table.client(request, shared.version)
    yield shared
    for _ in range(2):  # one whose start was cut off may take another
        if containers := shared.docker("ps -aq").split():
            shared.try_docker(["rm", "-f", *containers])
    assert shared.docker("ps -aq") == ""
    shared.ctl("reconcile")
    assert shared.clean()
    assert shared.ctl("ps -q") == "" and "80" not in shared.ctl("port ls")
    assert not [line for line in shared.sh("ip -br link").splitlines() if line.startswith("veth")]


def at_once(host: DockerHost, commands: Sequence[str]) -> list[subprocess.Popen[str]]:
    return [host.start([*host.client, *command.split()], stderr=subprocess.PIPE) for command in commands]


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What those that failed have said."""
    said = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    return [text for text, process in zip(said, processes, strict=True) if process.returncode]


def starts(port: int = 8000) -> list[str]:
    return [
        f"run -d --name {name} --network n1 -p {port + number}:80 {IMAGE} {HTTPD}"
        for number, name in enumerate(NAMES)
    ]


@contextlib.contextmanager
def killing(host: DockerHost, times: int) -> Iterator[list[int]]:
    """The driver is killed so many times, each another process, whatever it is at; those that it was."""
    killed: list[int] = []
    stopping = threading.Event()

    def kill() -> None:
        while len(killed) < times and not stopping.is_set():
            for pid in set(host.drivers()) - set(killed):
                stopping.wait(random.Random(len(killed)).uniform(0.2, 1.0))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            stopping.wait(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join()


def removed(host: DockerHost) -> None:
    """All that have one of the names. Where one's removal was cut off, Docker has it still, and its name is taken."""
    with eventually() as until:

        def are_gone() -> bool:
            left = sorted({*NAMES} & {*host.docker("ps -a --format {{.Names}}").split()})
            if left:
                host.try_docker(["rm", "-f", *left])
            return not left

        until(are_gone)


def published(host: DockerHost, port: str) -> bool:
    return port in host.ctl("port ls")


def answers(host: DockerHost, port: int) -> None:
    with eventually() as until:
        until(lambda: host.outside.try_(f"curl -sS -m 30 http://{HOST}:{port}/").returncode == 0)


@door("Docker", 20)
def test_s25_a_driver_that_is_killed_while_several_start_and_are_removed_loses_none(host: DockerHost) -> None:
    """What Docker is refused is one clear line; what it says that it has done is so."""
    host.docker(f"run -d --name stays --network n1 -p 8099:80 {IMAGE} {STREAM}")
    with download(host, 8099):
        with killing(host, 3) as killed:
            refused = ended(at_once(host, starts()))
            running = [name for name in NAMES if name in host.docker("ps --format {{.Names}}").split()]
            for name in running:
                answers(host, 8000 + int(name[1:]))
            ended(at_once(host, [f"rm -f {name}" for name in NAMES]))
        removed(host)
        assert killed and len(running) + len(refused) >= len(NAMES)
        assert all("docker: Error response from daemon" in text for text in refused), refused
        assert ended(at_once(host, starts())) == []  # the same addresses, names and ports
        for port in range(8000, 8006):
            answers(host, port)
        host.docker(["rm", "-f", *NAMES])


@door("Docker", 20)
def test_s25_a_daemon_that_is_killed_while_several_start_is_whole_after_it(host: DockerHost) -> None:
    for moment in (0.2, 0.8) if os.environ.get("DATAPATH_LONG") else (0.5,):
        starting = at_once(host, starts())
        threading.Event().wait(moment)  # whatever has been done by then
        host.down(signal.SIGKILL)
        ended(starting)
        host.up()
        host.docker(["rm", "-f", *NAMES])
        assert ended(at_once(host, starts())) == []
        answers(host, 8005)
        host.docker(["rm", "-f", *NAMES])


@door("Docker", 20)
def test_s25_ports_of_containers_that_a_killed_daemon_was_starting_are_the_next_ones(
    host: DockerHost,
) -> None:
    """Docker forgets them, and says so to nobody. The next container has the first one's address and the second one's
    port, which is refused as long as that daemon lives."""
    slow, waits = host.folder / "slow", host.folder / "waits"
    # No sandbox is made meanwhile. dockerd asks runtimes other things, too.
    wait = f"while [ -e {waits} ]; do sleep 0.05; done; exit 1"
    slow.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {wait};; esac\nexec runc "$@"\n')
    slow.chmod(0o755)
    waits.touch()
    host.down()
    host.up("--add-runtime", f"slow={slow}")
    try:
        starting = []
        for port in ("8000", "8001"):
            starting += at_once(host, [f"run -d --runtime slow --network n1 -p {port}:80 {IMAGE} {HTTPD}"])
            with eventually() as until:
                until(partial(published, host, port))
        refused = host.try_docker(f"run -d --name next --network n1 -p 8001:80 {IMAGE} {HTTPD}")
        assert refused.returncode == 125 and "port is already allocated" in refused.stderr
        host.docker("rm next")
        host.down(signal.SIGKILL)
    finally:
        waits.unlink()
    ended(starting)
    host.up()
    host.docker(["rm", "-f", *host.docker("ps -aq").split()])
    host.docker(f"run -d --name next --network n1 -p 8001:80 {IMAGE} {HTTPD}")
    assert "10.5.0.2/16" in host.exec("next", "ip -o address")
    answers(host, 8001)


@door("Docker", 20)
def test_s25_a_daemon_that_is_started_before_the_driver_finds_it_when_it_is_asked(host: DockerHost) -> None:
    """Its networks are listed meanwhile, and its containers start once the driver is there."""
    host.docker(f"create --name web --network n1 -p 8000:80 {IMAGE} {HTTPD}")
    host.down()
    host.unserve()
    host.up()
    assert "n1" in host.docker("network ls --format {{.Name}}").split()
    host.serve()
    host.docker("start web")
    answers(host, 8000)


@door("Docker", 20)
def test_s25_a_network_whose_creation_was_not_answered_can_be_created(host: DockerHost) -> None:
    """And one whose removal was not."""
    command = "network create -d datapath --subnet 10.6.0.0/16 n2"
    host.unserve()
    host.serve("unanswered")
    try:
        done = host.try_docker(command)
        assert done.returncode and "try again" in done.stderr
        host.docker(command)
        host.docker("network rm n2")
    finally:
        host.unserve()
        host.serve()
    host.docker(command)
    host.docker(f"run -d --name web --network n2 -p 8000:80 {IMAGE} {HTTPD}")
    answers(host, 8000)
    host.docker("rm -f web")
    host.docker("network rm n2")


@door("Docker", 13)
def test_s25_after_a_reboot_the_daemon_starts_containers_that_are_always_to_run(host: DockerHost) -> None:
    """Nobody has built the networks again before it: the first request of the daemon's does."""
    host.docker("network create -d datapath --subnet 10.6.0.0/16 n2")
    host.docker(f"run -d --name web --restart always --network n1 -p 8000:80 -p 90 {IMAGE} {HTTPD}")
    host.docker("network connect n2 web")
    host.docker(f"run -d --name gone --network n1 -p 8001:80 {IMAGE} {HTTPD}")
    host.down(signal.SIGKILL)
    host.reboot()
    host.up()
    answers(host, 8000)
    with eventually() as until:
        until(lambda: host.docker("ps --format {{.Names}}").split() == ["web"])
    host.docker("start gone")
    answers(host, 8001)
    assert host.clean()
    host.docker("rm -f web")
    host.docker("network rm n2")


@door("Docker", 21)
def test_s25_two_daemons_share_a_host_and_its_ports(host: DockerHost) -> None:
    second = "unix:///run/second.sock"
    folder = host.folder / "second"
    argv = [
        *(*host._inside, "dockerd", "-H", second),
        *("--data-root", str(folder), "--exec-root", "/run/second", "-p", "/run/second.pid"),
        *("--storage-driver", "vfs", "--config-file", str(host.folder / "none.json")),
        *(
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            f"/{host.cgroup}",
        ),
        *("--iptables=false", "--ip6tables=false", "--bridge=none", "--shutdown-timeout", "2"),
    ]
    with (host.folder / "second.log").open("w") as log:
        daemon = host.start(argv, stdout=log, stderr=log)

    def docker(command: str) -> subprocess.CompletedProcess[str]:
        return host.try_([*host.client[:-1], second, *command.split()])

    with eventually() as until:
        until(lambda: docker("version").returncode == 0)
    image = host.folder / "image.tar"
    host.docker(f"save -o {image} {IMAGE}")
    for command in (f"load -i {image}", "network create -d datapath --subnet 10.7.0.0/16 m1"):
        assert docker(command).returncode == 0
    host.docker(f"run -d --name mine --network n1 -p 8000:80 {IMAGE} {HTTPD}")
    taken = docker(f"run -d --name theirs --network m1 -p 8000:80 {IMAGE} {HTTPD}")
    assert taken.returncode == 125 and "already allocated" in taken.stderr
    assert docker("rm -f theirs").returncode == 0
    assert docker(f"run -d --name theirs --network m1 -p 8001:80 {IMAGE} {HTTPD}").returncode == 0
    answers(host, 8000)
    answers(host, 8001)
    assert host.clean()  # though the daemon that is asked does not know of half of it
    overlapping = docker("network create -d datapath --subnet 10.5.0.0/16 m2")
    assert overlapping.returncode and "Pool overlaps" in overlapping.stderr
    assert docker("rm -f theirs").returncode == 0 and docker("network rm m1").returncode == 0
    answers(host, 8000)
    daemon.terminate()
    daemon.wait(TIMEOUT)
