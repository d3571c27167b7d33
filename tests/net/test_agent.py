# SPDX-License-Identifier: Apache-2.0
"""The agent: what of the host's changes it serves, and what it survives. Events are the kernel's own."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.net.agents import agent
from tests.net.hosts import HOST, Host, Namespace, ask, echo_server, eventually

NEW = "192.0.2.7"


def answers(host: Host, address: str, port: int, place: Namespace | None = None) -> bool:
    """The published port answers the machine outside at that address."""
    place = place or host.outside
    return place.try_(ask("tcp", address, port, 1)).returncode == 0


def published(host: Host, options: str = "-p 8081:80") -> None:
    host.run("web", options, echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: answers(host, HOST, 8081))


def rows(host: Host, name: str) -> str:
    """What a pinned map has, as text."""
    path = host.bpffs / "datapath" / "maps" / name
    return subprocess.run(
        ["bpftool", "map", "dump", "pinned", str(path)], capture_output=True, text=True
    ).stdout


def test_a_port_published_at_every_address_answers_at_a_new_one_at_once(host: Host) -> None:
    published(host)
    with agent(host) as running:
        host.sh(f"ip address add {NEW}/24 dev eth0")
        running.says(f"address {NEW}: new")
        assert answers(host, NEW, 8081)
        assert host.try_ctl("doctor").stdout == "No problems found.\n"


def test_a_new_outside_device_is_served_at_once(host: Host) -> None:
    published(host)
    other = Namespace()
    try:
        with agent(host) as running:
            host.sh(f"ip link add up1 type veth peer name eth0 netns {other.pid}")
            host.sh("ip address add 10.78.0.1/24 dev up1")
            host.sh("ip link set up1 up")
            other.sh("ip address add 10.78.0.2/24 dev eth0")
            other.sh("ip link set eth0 up")
            running.says("uplink up1: new")
            with eventually() as until:
                until(lambda: answers(host, "10.78.0.1", 8081, other))
            assert host.try_ctl("doctor").stdout == "No problems found.\n"
            host.sh("ip link delete up1")
            running.says("uplink up1: gone")
            assert host.try_ctl("doctor").stdout == "No problems found.\n"
    finally:
        other.close()


def test_without_an_agent_the_next_command_serves_a_new_address(host: Host) -> None:
    published(host)
    host.sh(f"ip address add {NEW}/24 dev eth0")
    host.ctl("network create other")
    assert answers(host, NEW, 8081)


def test_a_second_agent_says_so_in_one_line_and_ends(host: Host) -> None:
    with agent(host) as first:
        line = host.refused("agent")
        state = host.folder / "state" / "agent"
        assert line == f"datapathctl: another agent is at work already: it holds {state}"
        assert first.end() == 0
        assert not state.exists()
    with agent(host):
        pass


def test_signals_end_it_cleanly_and_leave_nothing(host: Host) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with agent(host) as one:
            assert one.end(number) == 0
            assert one.said[-1] == "datapathctl agent: ended"
        assert not (host.folder / "state").exists()


def test_one_that_was_killed_is_simply_started_again(host: Host) -> None:
    published(host)
    with agent(host) as one:
        one.kill()
    host.sh(f"ip address add {NEW}/24 dev eth0")
    with agent(host) as one:
        assert answers(host, NEW, 8081)
        one.kill()
    assert host.try_ctl("doctor").stdout == "No problems found.\n"
    host.ctl("down")
    assert not (host.folder / "state").exists()


def test_down_makes_it_idle_and_what_comes_next_is_served(host: Host) -> None:
    published(host)
    with agent(host) as one:
        host.ctl("down")
        host.sh(f"ip address add {NEW}/24 dev eth0")
        published(host)
        assert answers(host, NEW, 8081)
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        one.says("address 192.0.2.9: new")
        assert answers(host, "192.0.2.9", 8081)
        host.ctl("down")
        assert one.end() == 0
    assert not (host.folder / "state").exists()


def test_programs_and_state_that_are_taken_away_under_it_do_not_end_it(host: Host) -> None:
    published(host)
    with agent(host) as one:
        subprocess.run(["umount", "-l", str(host.bpffs)], check=True)
        try:
            host.sh(f"ip address add {NEW}/24 dev eth0")
            one.says("packet programs were missing")
        finally:
            subprocess.run(["umount", "-l", str(host.bpffs / "datapath")], check=False)
            subprocess.run(["mount", "-t", "bpf", "bpf", str(host.bpffs)], check=True)
        os.rename(host.folder / "state", host.folder / "away")
        host.sh("ip address add 192.0.2.8/24 dev eth0")
        with eventually() as until:
            until((host.folder / "state" / "agent").exists)
        (host.folder / "state" / "agent").unlink()
        (host.folder / "state").rmdir()
        os.rename(host.folder / "away", host.folder / "state")
        host.sh("ip address add 192.0.2.9/24 dev eth0")
        one.says("address 192.0.2.9: new")
        assert one.process.poll() is None


def test_a_changed_port_range_is_served_within_seconds(host: Host) -> None:
    published(host)
    with agent(host) as one:
        before = rows(host, "host")
        host.sh("sysctl -qw net.ipv4.ip_local_port_range='20000 30000'")
        one.says("port range: 20000-30000")
        assert rows(host, "host") != before
        assert host.try_ctl("doctor").stdout == "No problems found.\n"
