# SPDX-License-Identifier: Apache-2.0
"""Sockets of the host that talk to containers through published ports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.net.hosts import Host, ask, echo_server, eventually

# Sends whenever it is told to, and says what it heard.
TALK = """
import socket, sys
proto, address = sys.argv[1:]
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM)
client.settimeout(60)
client.connect((address, 8081))
for line in sys.stdin:
    try:
        client.send(b"?")
        print("heard", client.recv(100), flush=True)
    except OSError as error:
        print("error", error, flush=True)
"""


def _ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_s19_a_connected_socket_of_the_host_does_not_follow_an_address_to_its_next_holder(
    host: Host, address: str
) -> None:
    host.run("one", "-p 8081:80/udp", echo_server("udp", 80))
    first = host.address("one")
    argv = [sys.executable, "-u", "-c", TALK, "udp", address]
    talker = host.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with eventually() as until:
        until(lambda: "heard" in _ask(talker))
    host.ctl("rm -f one")
    host.run("two", "", echo_server("udp", 80))
    assert host.address("two") == first
    with eventually() as until:  # the server has had its moment
        until(lambda: host.try_(ask("udp", first, 80, 1)).returncode == 0)
    for _ in range(3):
        assert "error" in _ask(talker)


def test_s19_the_hosts_own_ipv6_address_stays_the_source(host: Host) -> None:
    host.sh("ip -6 address add 2001:db8::1/64 dev eth0 nodad")
    host.ctl("network create --ipv6 six")
    host.run("web", "--network six -p 8081:80", echo_server("tcp", 80, "::"))
    with eventually() as until:
        until(lambda: host.try_(ask("tcp", "2001:db8::1", 8081)).returncode == 0)
    assert host.sh(ask("tcp", "2001:db8::1", 8081)).split() == ["2001:db8::1", "2001:db8::1", "8081"]
