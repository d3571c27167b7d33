# SPDX-License-Identifier: Apache-2.0
"""Packets that are larger than a network of containers takes, or than their way out does: cut where they may be, as the
kernel's own forwarding cuts them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.net.compare import config, host_case, options
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace, eventually
from tests.net.test_hostnet_route import (
    MEASURING,
    SENDING,
    SINK,
    STREAMING,
    Keep,
    narrow_way,
    script,
    serve,
    serve_in,
)

MakeHost = Callable[..., Host]
NARROW = 1280
# Says, for each IPv4 packet that arrives, how long it is, whether it is a fragment, and its options.
WATCHING = """
import json, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
tap.bind(("eth0", 0x800))
print("ready", flush=True)
while True:
    packet, where = tap.recvfrom(65536)
    if where[2] != socket.PACKET_OUTGOING:
        size = (packet[0] & 15) * 4
        word = int.from_bytes(packet[6:8], "big")
        print(json.dumps([len(packet), word & 0x3FFF, packet[20:size].hex()]), flush=True)
"""
# Answers with what was sent, in a datagram that need not stay whole.
RETURNING = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IP, 10, 5)
server.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    server.sendto(*server.recvfrom(65535))
"""
# Sends so many bytes, and wants them back.
GETTING_BACK = """
import os, socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(60)
client.connect((sys.argv[1], int(sys.argv[2])))
data = os.urandom(int(sys.argv[3]))
client.send(data)
assert client.recv(65535) == data
"""
# As SENDING, with IP options.
SENDING_OPTIONS = SENDING.replace(
    "client.connect(", "client.setsockopt(0, 4, bytes.fromhex(sys.argv[5]))\nclient.connect("
)


class Watch:
    """What arrives at a device eth0."""

    def __init__(self, place: Namespace, prefix: list[str]) -> None:
        process = place.start([*prefix, *script(WATCHING)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        self.lines = process.stdout

    def until(self, length: int) -> list[tuple[int, int, str]]:
        """All packets up to the first of that length."""
        found: list[tuple[int, int, str]] = []
        while not found or found[-1][0] != length:
            found.append(tuple(json.loads(self.lines.readline())))
        return found[:-1]


def into(host: Host, name: str) -> list[str]:
    return ["nsenter", "-t", str(host.process(name)), "--net"]


def reached(place: Namespace, address: str, port: int) -> None:
    with eventually() as until:
        until(lambda: place.try_(script(SENDING, address, port, 10, 1)).returncode == 0)


def narrow_server(make: MakeHost, mode: str) -> Host:
    """With a published server in a network of 1280 bytes, and a client in another one."""
    host = make(config=config(mode))
    host.ctl(f"network create {options(mode)} -o com.docker.network.driver.mtu={NARROW} narrow")
    host.run("server", "--network narrow -p 8090:90/udp", script(MEASURING, 90))
    host.run("client")
    reached(host.outside, HOST, 8090)
    return host


@pytest.mark.parametrize("size", [1253, 1472, 4000, 20000])
@host_case(3, "A container behind 1280 bytes: what may be fragmented arrives at it in fragments of 1280")
def test_a_narrow_network_gets_fragments(keep: Keep, size: int, mode: str) -> None:
    """From the outside and from a container of another network; none of the packets is larger than its network."""
    host = keep(narrow_server, mode)
    watch = Watch(host, into(host, "server"))
    assert host.outside.sh(script(SENDING, HOST, 8090, size, 60)) == OUTSIDE
    host.in_("client", script(SENDING, HOST, 8090, size, 60))
    reached(host.outside, HOST, 8090)
    assert host.outside.sh(script(SENDING, HOST, 8090, 77, 60)) == OUTSIDE
    found = [one for one in watch.until(77 + 28) if one[0] != 10 + 28]
    assert max(length for length, *_ in found) <= NARROW
    assert len([word for _, word, _ in found if word == 0x2000]) == 2, "each has a first fragment"


def narrow_client(make: MakeHost, mode: str) -> Host:
    """With a client in a network of 1280 bytes, and a server outside that returns what it gets."""
    host = make(config=config(mode))
    host.ctl(f"network create {options(mode)} -o com.docker.network.driver.mtu={NARROW} narrow")
    host.run("client", "--network narrow")
    serve(host.outside, script(RETURNING, 90))
    return host


@pytest.mark.parametrize("size", [1253, 1472, 20000])
@host_case(
    3, "A container behind 1280 bytes: an answer that may be fragmented arrives at it in fragments of 1280"
)
def test_a_narrow_network_gets_answers_in_fragments(keep: Keep, size: int, mode: str) -> None:
    host = keep(narrow_client, mode)
    watch = Watch(host, into(host, "client"))
    host.in_("client", script(GETTING_BACK, OUTSIDE, 90, size))
    host.in_("client", script(GETTING_BACK, OUTSIDE, 90, 77))
    found = watch.until(77 + 28)
    assert found and max(length for length, *_ in found) <= NARROW
    assert host.in_("client", f"ping -n -q -c 1 -M dont -s {size} {OUTSIDE}")


COPIED, FIRST = "94040000", "52040000"  # router alert; of those without the copied flag, a traceroute's


@pytest.mark.parametrize("given", [COPIED, FIRST, COPIED + FIRST, FIRST + COPIED])
@host_case(
    3,
    "A way out of 1400 bytes: IP options are no reason not to fragment, and go into the fragments that they have to",
)
def test_options_go_into_fragments(keep: Keep, given: str, mode: str) -> None:
    host = keep(narrow_way, mode)
    watch = Watch(host.outside, [])
    assert host.in_("client", script(SENDING_OPTIONS, OUTSIDE, 90, 1450, 60, given)) == HOST
    assert host.in_("client", script(SENDING, OUTSIDE, 90, 77, 60)) == HOST
    first, last = watch.until(77 + 28)
    assert (first[1], first[2]) == (0x2000, given)
    assert last[1] < 0x2000 and last[2].replace("01", "") == (COPIED if COPIED in given else "")


@host_case(
    3,
    "A way out of 1400 bytes: TCP that may be fragmented passes, though its sender does not look for the path MTU",
)
def test_streams_that_may_be_fragmented_pass(make_host: MakeHost, mode: str) -> None:
    """The sender leaves them to be segmented by the device. The kernel cuts each segment; here it is told."""
    host = make_host(config=config(mode))
    host.run("client", "--sysctl net.ipv4.ip_no_pmtu_disc=1")
    host.sh("ip link set eth0 mtu 1400")
    serve(host.outside, script(SINK, OUTSIDE, 90))
    segment = int(host.in_("client", script(STREAMING, OUTSIDE, 90)))
    assert segment == 1500 - 52 if mode == "iptables" else 0 < segment <= 1400 - 52


@host_case(
    3,
    "A container behind 1280 bytes: TCP that may be fragmented reaches its published port, whatever it has said",
)
def test_streams_into_a_narrow_network(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    host.ctl(f"network create {options(mode)} -o com.docker.network.driver.mtu={NARROW} narrow")
    host.run("server", "--network narrow -p 8090:90")
    route = f"ip route change default via {gateway(host)} dev eth0 advmss 1460"
    host.sh([*into(host, "server"), *route.split()])
    serve_in(host, "server", script(SINK, "0.0.0.0", 90))
    host.outside.sh("sysctl -qw net.ipv4.ip_no_pmtu_disc=1")
    segment = int(host.outside.sh(script(STREAMING, HOST, 8090)))
    assert segment == 1500 - 52 if mode == "iptables" else 0 < segment <= NARROW - 52


def gateway(host: Host) -> str:
    return str(host.inspect("server")["NetworkSettings"]["Networks"]["narrow"]["Gateway"])
