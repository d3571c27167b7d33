# SPDX-License-Identifier: Apache-2.0
"""Beside containers that the kernel's own packet filter masquerades, as Docker's and podman's own networks are: whoever
asks a server is answered, also where both kinds ask it with the same number. Neither knows of the other's."""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import NamedTuple

import pytest

from datapath.kernel import masquerading
from datapath.kernel.netns import enter
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, Host, Namespace
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import KINDS, Container, Place, opened, start_container

SERVERS, PORT = {4: OUTSIDE, 6: OUTSIDE6}, 90
RULES = """
table inet theirs {
  chain leaving {
    type nat hook postrouting priority srcnat
    ip saddr 10.75.0.0/24 masquerade
    ip6 saddr fd75::/64 masquerade
  }
}
"""
FORWARDING = "net.ipv4.ip_forward={0} net.ipv6.conf.all.forwarding={0}"
Ask = Callable[
    [bytes], tuple[bytes, int]
]  # what came back of it, and from which number the server has seen it

needs_legacy = pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="needs iptables-legacy")


class Beside(NamedTuple):
    """`ours` is a container of datapath's, `theirs` one that the kernel forwards for."""

    host: Host
    ours: Container
    theirs: Namespace

    def place(self, name: str) -> Place:
        return self.host if name == "host" else self.ours if name == "ours" else self.theirs


@pytest.fixture(scope="module")
def beside(shared_host: Host) -> Iterator[Beside]:
    host = shared_host
    plug_ipv6(host)
    theirs = Namespace()
    with closing(theirs):
        host.sh(f"ip link add theirs type veth peer name eth0 netns {theirs.pid}")
        host.sh("ip link set theirs up")
        theirs.sh("ip link set eth0 up")
        for family, network in ((4, "10.75.0.{}/24"), (6, "fd75::{}/64")):
            nodad = " nodad" if family == 6 else ""
            host.sh(f"ip -{family} address add {network.format(1)} dev theirs{nodad}")
            theirs.sh(f"ip -{family} address add {network.format(2)} dev eth0{nodad}")
            theirs.sh(f"ip -{family} route add default via {network.format(1).partition('/')[0]}")
        host.sh(f"sysctl -qw {FORWARDING.format(1)}")
        host.sh("nft -f -", input=RULES)
        host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd5::/64 net")
        yield Beside(host, start_container(host, "ours", "--network net"), theirs)


class Server:
    """The machine outside. A TCP connection stays that of who opened it."""

    def __init__(self, stack: ExitStack, place: Place, proto: str, family: int) -> None:
        self.stack, self.proto, self.address = stack, proto, (SERVERS[family], PORT)
        self.af = socket.AF_INET6 if family == 6 else socket.AF_INET
        if proto != "ping":
            self.socket = stack.enter_context(opened(place, KINDS[proto], self.af))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.address)
        if proto == "tcp":
            self.socket.listen()

    def client(self, place: Place, number: int) -> Ask:
        """Somebody who asks from that port, or with that identifier."""
        if self.proto == "ping":
            return self._pings(place, number)
        client = self.stack.enter_context(opened(place, KINDS[self.proto], self.af))
        client.bind(("", number))
        if self.proto == "udp":
            return lambda said: self._datagram(client, said)
        client.connect(self.address)
        accepted, peer = self.socket.accept()
        self.stack.enter_context(accepted)
        accepted.settimeout(PATIENCE)

        def ask(said: bytes) -> tuple[bytes, int]:
            client.sendall(said)
            accepted.sendall(accepted.recv(100))
            return client.recv(100), int(peer[1])

        return ask

    def _datagram(self, client: socket.socket, said: bytes) -> tuple[bytes, int]:
        client.sendto(said, self.address)
        heard, peer = self.socket.recvfrom(100)
        self.socket.sendto(heard, peer)
        return client.recv(100), int(peer[1])

    def _pings(self, place: Place, number: int) -> Ask:
        """Outside it is the kernel that answers; nobody says with which identifier it was asked."""
        six = self.af == socket.AF_INET6
        proto, request = (socket.IPPROTO_ICMPV6, 128) if six else (socket.IPPROTO_ICMP, 8)
        wire = self.stack.enter_context(opened(place, socket.SOCK_RAW, self.af, proto))

        def ask(said: bytes) -> tuple[bytes, int]:
            head = struct.pack("!HH", number, 1)
            checksum = 0 if six else _checksum(bytes((request, 0, 0, 0)) + head + said)
            wire.sendto(struct.pack("!BBH", request, 0, checksum) + head + said, (self.address[0], 0))
            while True:
                heard = wire.recv(200)[0 if six else 20 :]
                if heard[0] == (129 if six else 0) and heard[4:6] == head[:2]:
                    return heard[8:], 0

        return ask


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


NUMBERS = iter(range(40000, 50000))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["udp", "tcp", "ping"])
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("usual", [True, False], ids=["ephemeral", "a server's"])
def test_both_kinds_ask_one_server_with_one_number(
    beside: Beside, usual: bool, order: str, proto: str, family: int
) -> None:
    number = next(NUMBERS) - (0 if usual else 35000)
    with ExitStack() as stack:
        server = Server(stack, beside.host.outside, proto, family)
        names = ["ours", "theirs"] if order == "ours first" else ["theirs", "ours"]
        asking = {}
        for name in names:
            asking[name] = server.client(beside.place(name), number)
            assert asking[name](name.encode() * 2)[0] == name.encode() * 2
        for name in (*names, *names):
            assert asking[name](name.encode() * 4)[0] == name.encode() * 4


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("order", [("ours", "host"), ("host", "ours")], ids=" ".join)
def test_the_host_itself_pings_with_a_containers_identifier(
    beside: Beside, order: tuple[str, str], family: int
) -> None:
    """Whether anybody else masquerades or not: nobody is told of its sockets for that."""
    with ExitStack() as stack:
        server = Server(stack, beside.host.outside, "ping", family)
        asking = {name: server.client(beside.place(name), 7) for name in order}
        for name in (*order, *order):
            assert asking[name](name.encode() * 2)[0] == name.encode() * 2


def test_a_port_is_one_for_all_servers_and_changes_for_no_rules_that_come_or_go(beside: Beside) -> None:
    """Endpoint-independent, also where it is not kept (RFC 4787, REQ-1); with no rules of others it is kept."""
    host, number = beside.host, next(NUMBERS)
    with ExitStack() as stack:
        server = Server(stack, host.outside, "udp", 4)
        first = server.client(beside.ours, number)
        seen = first(b"one")[1]
        assert seen != number
        host.sh("nft delete table inet theirs")
        try:
            assert host.try_ctl("doctor").returncode
            host.ctl("reconcile")
            assert host.ctl("doctor") == "No problems found."
            assert first(b"two")[1] == seen
            kept = next(NUMBERS)
            second = server.client(beside.ours, kept)
            assert second(b"three")[1] == kept
        finally:
            host.sh("nft -f -", input=RULES)
            host.ctl("reconcile")
        assert first(b"four")[1] == seen and second(b"five")[1] == kept


def test_a_published_port_is_a_containers_source_as_ever(beside: Beside) -> None:
    beside.host.ctl(
        f"run -d --name web --network net -p {HOST}:8080:9000/udp -p [{HOST6}]:8080:9000/udp sleep 3600"
    )
    web = Container(beside.host, "web")
    for family in (4, 6):
        with ExitStack() as stack:
            server = Server(stack, beside.host.outside, "udp", family)
            assert server.client(web, 9000)(b"me") == (b"me", 8080)


# ---- how it is known -------------------------------------------------------------------------------------------


def is_used(place: Place) -> bool:
    with enter(place.path):
        return masquerading.is_used()


@pytest.fixture
def bare() -> Iterator[Namespace]:
    made = Namespace()
    with closing(made):
        yield made


@pytest.mark.parametrize("forwarding", ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"])
def test_rules_for_sources_count_where_the_host_forwards(bare: Namespace, forwarding: str) -> None:
    bare.sh(
        "nft -f -",
        input="table ip filter { chain forward { type filter hook forward priority 0; accept; }; }",
    )
    bare.sh(f"sysctl -qw {forwarding}=1")
    assert not is_used(bare)
    bare.sh("nft add table ip nat")
    bare.sh("nft add chain ip nat POSTROUTING { type nat hook postrouting priority 100 ; }")
    bare.sh("nft add chain ip nat PREROUTING { type nat hook prerouting priority -100 ; }")
    bare.sh("nft add rule ip nat PREROUTING tcp dport 80 dnat to 10.0.0.1")
    assert not is_used(bare)  # only for destinations
    bare.sh("nft add rule ip nat POSTROUTING masquerade")
    assert is_used(bare)
    bare.sh(f"sysctl -qw {forwarding}=0")
    assert not is_used(bare)


@needs_legacy
@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
def test_the_table_of_the_old_tool_counts(bare: Namespace, tool: str) -> None:
    bare.sh("sysctl -qw net.ipv4.ip_forward=1")
    bare.sh(f"{tool} -t filter -P FORWARD DROP")
    assert not is_used(bare)
    bare.sh(f"{tool} -t nat -A POSTROUTING -j MASQUERADE")
    assert is_used(bare)
