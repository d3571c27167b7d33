# SPDX-License-Identifier: Apache-2.0
"""Containers that have ended are started again; containers get other names; programs another user and directory."""

from __future__ import annotations

import signal
import sys
from functools import partial

import pytest

from tests.net import look
from tests.net.hosts import HOST, Host, ask, echo_server, eventually, reaches
from tests.net.test_adversity import KILLED_AT_COMMIT
from tests.net.test_doctor import doctor


@pytest.fixture
def host(emptied: Host) -> Host:
    return emptied


def answers(host: Host, port: int) -> bool:
    return host.outside.try_(ask("tcp", HOST, port)).returncode == 0


def test_a_container_that_is_started_again_has_its_address_its_networks_and_its_ports(host: Host) -> None:
    """Although others have come meanwhile, whose addresses would be the lowest free ones."""
    host.ctl("network create red")
    host.run("first")
    host.run("web", "-p 8081:80 -e A=1", echo_server("tcp", 80))
    host.ctl("network connect red web")
    host.ctl("port add web 8082:80")
    before = host.inspect("web")
    host.ctl("rm -f first")
    host.ctl("stop -t 0 web")
    host.run("second")
    assert host.ctl("start web") == "web"
    after = host.inspect("web")
    assert (after["Id"], after["Created"]) == (before["Id"], before["Created"])
    assert after["State"]["StartedAt"] > before["State"]["StartedAt"] and after["State"]["ExitCode"] == 0
    for network in (host.usual, "red"):
        one, two = (found["NetworkSettings"]["Networks"][network] for found in (before, after))
        assert (one["IPAddress"], one["MacAddress"]) == (two["IPAddress"], two["MacAddress"])
    for port in (8081, 8082):
        with eventually() as until:
            until(partial(answers, host, port))
    assert host.ctl("start web") == "web", "one that runs is fine"
    assert doctor(host) == []


def test_an_address_that_somebody_has_meanwhile_is_another_one(host: Host) -> None:
    host.run("web")
    address = host.address("web")
    host.ctl("stop -t 0 web")
    host.run("other")
    assert host.address("other") == address
    host.ctl("start web")
    assert host.address("web") != address
    assert reaches(lambda command: host.try_in("other", command), host.address("web"))


@pytest.mark.parametrize("mode", ["host", "none", "container:base"])
def test_a_container_of_every_mode_is_started_again(host: Host, mode: str) -> None:
    host.run("base")
    host.run("web", f"--network {mode}")
    before = host.in_("web", "readlink /proc/self/ns/net")
    host.ctl("stop -t 0 web")
    host.ctl("start web")
    after = host.in_("web", "readlink /proc/self/ns/net")
    assert mode == "none" or before == after
    assert doctor(host) == []


def test_a_start_that_fails_leaves_the_container_as_it_was(host: Host) -> None:
    host.run("web", "-p 8081:80")
    host.run("guest", "--network container:web")
    host.ctl("stop -t 0 web")
    assert "guest still uses its network" in host.refused("start web")
    host.ctl("rm -f guest")
    host.run("thief", "-p 8081:80")
    before = look.database(host)
    said = host.refused("start web")
    assert 'Bind for 0.0.0.0:8081 failed: port is already allocated (by container "thief")' in said
    assert look.database(host) == before
    host.ctl("rm -f thief")
    host.ctl("start web")


@pytest.mark.parametrize("commit", [1, 2, 3, 4, 5])
def test_a_start_that_is_killed_is_taken_back_by_the_next_command(shared_host: Host, commit: int) -> None:
    host = shared_host
    host.run("web", "-p 8081:80")
    host.ctl("stop -t 0 web")
    killed = host.try_([sys.executable, "-c", KILLED_AT_COMMIT, str(commit), "start", "web"])
    host.ctl("network create red")  # recovers
    state = host.inspect("web")["State"]
    assert killed.returncode in (0, -signal.SIGKILL)
    if killed.returncode:
        assert (state["Status"], state["ExitCode"]) == ("exited", 143)
    assert doctor(host) == []
    host.ctl("start web")
    host.ctl("rm -f web")
    host.ctl("network rm red")
    assert doctor(host) == []


def test_a_container_gets_another_name(host: Host) -> None:
    host.run("web")
    host.run("client", "--link web:server")
    host.ctl("rename web page")
    assert host.ctl("ps --format {{.Names}}").split() == ["client", "page"]
    # Not `getent hosts`: it asks for an IPv6 address first, and the host's resolver, which nobody is.
    assert host.in_("client", "getent ahostsv4 page").split()[0] == host.address("page")
    assert host.refused("stop web") == "datapathctl: No such container: web"
    assert "is already in use by container" in host.refused("rename page client")
    assert host.refused("rename page page").endswith(
        "Renaming a container with the same name as its current name"
    )
    assert "Invalid container name" in host.refused("rename page a/b")


def test_a_program_runs_as_the_user_and_in_the_directory_that_are_asked_for(host: Host) -> None:
    files = {"env": "# comment\nA=1\n\nB=two words\nHOST_HAS_NO_SUCH\n", "labels": "tier=front\nempty\n"}
    for name, text in files.items():
        (host.folder / name).write_text(text)
    options = (
        f"-u 65534:1 -w /usr --env-file {host.folder}/env -e C=3 --label-file {host.folder}/labels -l x=y"
    )
    said = host.ctl(["run", "--rm", *options.split(), "sh", "-c", "id -u; id -g; pwd; echo $A/$B/$C$HOME"])
    assert said.splitlines() == ["65534", "1", "/usr", "1/two words/3/nonexistent"]
    host.run("web", options)
    found = host.inspect("web")["Config"]
    assert (found["User"], found["WorkingDir"]) == ("65534:1", "/usr")
    assert found["Labels"] == {"tier": "front", "empty": "", "x": "y"}
    shown = "id -u; pwd; echo $A"
    assert host.ctl(["exec", "web", "sh", "-c", shown]).split() == ["65534", "/usr", "1"]
    assert host.ctl(["exec", "-u", "root", "-w", "/", "web", "sh", "-c", shown]).split() == ["0", "/", "1"]
    written = host.ctl(["run", "-u", "nobody", "--rm", "sh", "-c", "echo out > /dev/stdout; id -Gn"])
    assert written.splitlines() == ["out", "nogroup"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-u nosuch", "unable to find user nosuch: no matching entries in /etc/passwd"),
        ("-u 0:nosuch", "unable to find group nosuch: no matching entries in /etc/group"),
        ("-u a/b", 'invalid user "a/b": expected USER[:GROUP], names or numbers'),
        ("-w usr", 'the working directory "usr" is invalid, it needs to be an absolute path'),
        ("-w /nonexistent", "change to /nonexistent: No such file or directory (ENOENT)"),
        ("--env-file /nonexistent", "cannot read /nonexistent: No such file or directory"),
        ("--env-file /etc/hosts", "expected KEY=VALUE, or KEY"),
    ],
    ids=lambda value: value[:20],
)
def test_a_user_or_directory_that_is_not_there_is_refused(host: Host, options: str, says: str) -> None:
    assert says in host.refused(f"run {options} true")
    assert not (host.folder / "run/containers").is_dir() or not any(
        (host.folder / "run/containers").iterdir()
    )


def test_a_late_report_of_an_earlier_end_does_not_end_what_runs_again(host: Host) -> None:
    """The parent of the earlier process reports by a command of its own, which waits for the lock."""
    host.run("web")
    ident = host.inspect("web")["Id"]
    host.ctl("stop -t 0 web")
    host.ctl("start web")
    host.ctl(["_exited", ident, "143"])
    assert host.inspect("web")["State"]["Status"] == "running"
    assert host.in_("web", "echo here") == "here"
