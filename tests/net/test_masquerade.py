# SPDX-License-Identifier: Apache-2.0
"""S21: containers reach the outside through the host's address; what comes back finds the right container; the
host's own connections stay its own."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import FAR, HOST, OUTSIDE, PATIENCE, Host, Namespace, eventually, reaches
from tests.net.wire import (
    Container,
    Place,
    call,
    counters,
    device_mac,
    fails,
    opened,
    rises,
    serving,
    start_container,
    taps,
)
from tests.softirqs import settle

ROUTER, DISTANT = "198.51.100.1", "198.51.100.2"
NARROW = 1300  # MTU of the way to the distant machine


class Topology(NamedTuple):
    host: Host
    distant: Namespace  # behind the machine outside, which is a router
    a: Container
    b: Container
    outside: Namespace


@pytest.fixture(scope="module")
def topology(shared_host: Host) -> Iterator[Topology]:
    host, distant = shared_host, Namespace()
    try:
        router = host.outside
        router.sh(f"ip link add far mtu {NARROW} type veth peer name eth0 netns {distant.pid}")
        router.sh(f"ip address add {ROUTER}/24 dev far")
        router.sh("ip link set far up")
        router.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000"
        )
        router.sh("ip route add unreachable 203.0.113.99")
        distant.sh(f"ip address add {DISTANT}/24 dev eth0")
        distant.sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000")
        distant.sh("ip link set eth0 mtu 1500 up")  # so that only the router knows
        distant.sh(f"ip route add default via {ROUTER}")
        a = start_container(host, "a", "-p 8081:80")
        b = start_container(host, "b")
        yield Topology(host, distant, a, b, router)
        host.ctl("rm -f a b")
    finally:
        distant.close()


# ---- out and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s21_tcp_and_udp_go_out_with_the_hosts_address(topology: Topology, proto: str) -> None:
    with (
        serving(topology.outside, proto, 7500, OUTSIDE),
        serving(topology.outside, proto, 7500, FAR),
        serving(topology.distant, proto, 7500),
        taps((topology.outside, "eth0"), (topology.distant, "eth0")) as watching,
    ):
        for client in (topology.a, topology.b):
            for address in (OUTSIDE, FAR, DISTANT):
                answer = call(client, proto, address, 7500)
                assert (answer.seen, answer.peer) == (HOST, address)
        for tap in watching:
            frames = tap.frames()
            assert frames
            assert not [f for f in frames if pk.packed(topology.a.ip) in f or pk.packed(topology.b.ip) in f]


def test_s21_ping_goes_out_and_comes_back_from_every_distance(topology: Topology) -> None:
    for client in (topology.a, topology.b):
        for address in (OUTSIDE, FAR, DISTANT):
            assert reaches(client.try_, address, 3)
    shown = topology.a.sh(f"ping -n -c 1 {DISTANT}")
    assert "ttl=62" in shown  # the router and this host are hops


def test_s21_a_container_that_binds_its_source_port_is_seen_with_it_where_that_is_possible(
    topology: Topology,
) -> None:
    with serving(topology.outside, "tcp", 7500):
        assert call(topology.a, "tcp", OUTSIDE, 7500, source=("0.0.0.0", 5001)).seen_port == 5001
        # The host's own range is no exception.
        answer = call(topology.a, "tcp", OUTSIDE, 7500, source=("0.0.0.0", 40001))
        assert (answer.seen, answer.seen_port) == (HOST, 40001)


def test_s21_a_published_port_is_no_source_port(topology: Topology) -> None:
    with serving(topology.outside, "tcp", 7500):
        assert call(topology.b, "tcp", OUTSIDE, 7500, source=("0.0.0.0", 8081)).seen_port != 8081


def test_s21_the_routes_preferred_source_is_the_address_that_is_used(topology: Topology) -> None:
    topology.host.sh("ip address add 192.0.2.20/24 dev eth0")
    topology.host.sh(f"ip route replace default via {OUTSIDE} src 192.0.2.20")
    try:
        with serving(topology.outside, "tcp", 7500):
            assert call(topology.a, "tcp", FAR, 7500).seen == "192.0.2.20"
            assert call(topology.a, "tcp", OUTSIDE, 7500).seen == HOST
            assert call(topology.host, "tcp", FAR, 7500).seen == "192.0.2.20"
    finally:
        topology.host.sh(f"ip route replace default via {OUTSIDE}")
        topology.host.sh("ip address del 192.0.2.20/24 dev eth0")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s21_two_containers_with_one_source_port_to_one_server_are_kept_apart(
    topology: Topology, proto: str
) -> None:
    """Their conversations are open at the same time, and each hears its own answers."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sources: set[tuple[str, int]] = set()
    with (
        opened(topology.distant, kind) as server,
        opened(topology.a, kind) as a,
        opened(topology.b, kind) as b,
    ):
        server.bind((DISTANT, 7501))
        clients = {b"a": a, b"b": b}
        accepted: dict[bytes, socket.socket] = {}
        if proto == "tcp":
            server.listen()
        for name, client in clients.items():
            client.bind(("0.0.0.0", 5002))
            client.connect((DISTANT, 7501))
            if proto == "tcp":
                accepted[name], peer = server.accept()
                sources.add(peer)
        for _ in range(3):
            for name, client in clients.items():
                client.send(b"from " + name)
            for name, client in clients.items():
                if proto == "tcp":
                    assert accepted[name].recv(100) == b"from " + name
                    accepted[name].send(b"to " + name)
                else:
                    data, peer = server.recvfrom(100)
                    sources.add(peer)
                    server.sendto(b"to " + data[5:], peer)
                    del client
            for name, client in clients.items():
                assert client.recv(100) == b"to " + name
        for connection in accepted.values():
            connection.close()
    assert len(sources) == 2 and {address for address, _ in sources} == {HOST}


def test_s21_two_pings_with_one_identifier_are_kept_apart(topology: Topology) -> None:
    gateway = device_mac(topology.host, "dp0")
    with taps(topology.a, topology.b) as (a, b):
        for box_, tap, sequence in ((topology.a, a, 100), (topology.b, b, 200)):
            packet = pk.ipv4(box_.ip, DISTANT, pk.echo(pk.ECHO, 77, b"ping" + bytes(20), sequence=sequence))
            tap.send(pk.ethernet(gateway, box_.mac, pk.ETH_IPV4, packet))
        for box_, tap, sequence in ((topology.a, a, 100), (topology.b, b, 200)):
            wanted = pk.echo(pk.ECHO_REPLY, 77, b"ping" + bytes(20), sequence=sequence)
            body = wanted.finish(b"", b"")
            found = tap.wait_for(lambda f, body=body, ip=box_.ip: pk.packed(ip) in f and body in f)  # type: ignore[misc]
            assert len([f for f in found if b"ping" in f]) == 1


def test_s21_without_masquerading_the_source_stays(topology: Topology) -> None:
    host = topology.host
    host.ctl(
        "network create --subnet 10.71.0.0/24 -o com.docker.network.bridge.enable_ip_masquerade=false bare"
    )
    topology.outside.sh(f"ip route add 10.71.0.0/24 via {HOST}")
    bare = start_container(host, "bare", "--network bare -p 8085:80")
    try:
        assert reaches(bare.try_, DISTANT)
        for proto in ("tcp", "udp"):
            with serving(topology.distant, proto, 7500), serving(bare, proto, 7500):
                answer = call(bare, proto, DISTANT, 7500, source=("0.0.0.0", 40002))
                assert (answer.seen, answer.seen_port) == (bare.ip, 40002)
                # It is egress, not ingress.
                assert fails(topology.distant, proto, bare.ip, 7500)
        with serving(bare, "tcp", 80):
            assert call(topology.distant, "tcp", HOST, 8085).seen == DISTANT
    finally:
        host.ctl("rm -f bare")
        host.ctl("network rm bare")
        topology.outside.sh("ip route del 10.71.0.0/24")


def test_s21_without_ip_masq_in_the_daemon_json_the_source_stays(make_host: Callable[..., Host]) -> None:
    host = make_host(config={"ip-masq": False})
    host.outside.sh(f"ip route add 172.17.0.0/16 via {HOST}")
    a = start_container(host, "a")
    with serving(host.outside, "tcp", 7500):
        assert call(a, "tcp", OUTSIDE, 7500).seen == a.ip


# ---- ICMP errors -------------------------------------------------------------------------------------------


def test_s21_port_unreachable_and_reset_come_back_at_once(topology: Topology) -> None:
    for client in (topology.a, topology.b):
        for address in (OUTSIDE, FAR, DISTANT):
            assert fails(client, "udp", address, 7599, PATIENCE) == errno.ECONNREFUSED
            assert fails(client, "tcp", address, 7599, PATIENCE) == errno.ECONNREFUSED


def test_s21_host_unreachable_comes_back(topology: Topology) -> None:
    for proto in ("tcp", "udp"):  # the router says it once a second
        with eventually() as until:
            until(lambda p=proto: fails(topology.a, p, "203.0.113.99", 7599, 1) == errno.EHOSTUNREACH)  # type: ignore[misc]
    assert "Destination Host Unreachable" in topology.a.try_("ping -n -c 2 -W 60 203.0.113.99").stdout


def test_s21_the_hosts_own_unreachable_routes_are_told_too(topology: Topology) -> None:
    topology.host.sh("ip route add unreachable 203.0.113.98")
    topology.host.sh("ip route add prohibit 203.0.113.97")
    try:
        assert fails(topology.a, "udp", "203.0.113.98", 7599, PATIENCE) == errno.EHOSTUNREACH
        assert fails(topology.a, "tcp", "203.0.113.97", 7599, PATIENCE) in (errno.EACCES, errno.EHOSTUNREACH)
    finally:
        topology.host.sh("ip route del unreachable 203.0.113.98")
        topology.host.sh("ip route del prohibit 203.0.113.97")


def test_s21_port_unreachable_reaches_the_container_that_sent_and_not_the_other(topology: Topology) -> None:
    """Both have sent from the same port to the same closed port."""
    with (
        opened(topology.a, socket.SOCK_DGRAM) as a,
        opened(topology.b, socket.SOCK_DGRAM) as b,
        taps(topology.b) as (tap,),
    ):
        for client in (a, b):
            client.bind(("0.0.0.0", 5003))
            client.connect((DISTANT, 7598))
        a.send(b"mine")
        with pytest.raises(ConnectionRefusedError):
            a.recv(10)
        assert not tap.frames()


def test_s21_a_ping_that_is_too_big_and_must_not_be_fragmented_hears_the_mtu(topology: Topology) -> None:
    assert reaches(lambda c: topology.a.try_(f"{c} -M do -s {NARROW - 28}"), DISTANT)
    done = topology.b.try_(f"ping -n -c 1 -W 60 -M do -s {NARROW - 27} {DISTANT}")
    assert done.returncode != 0 and re.search(rf"mtu ?= ?{NARROW}", done.stdout + done.stderr), done


@pytest.mark.parametrize("method", ["", "-I", "-T -p 7500"], ids=["udp", "icmp", "tcp"])
def test_s21_traceroute_shows_every_hop(topology: Topology, method: str) -> None:
    with serving(topology.distant, "tcp", 7500):
        shown = topology.a.sh(f"traceroute -n -w 20,0,0 -q 2 -m 5 {method} {DISTANT}")
    hops = [line.split()[1] for line in shown.splitlines()[1:]]
    assert hops == [topology.a.gateway, OUTSIDE, DISTANT], shown


def test_s21_errors_about_the_hosts_own_packets_are_the_hosts(topology: Topology) -> None:
    assert fails(topology.host, "udp", DISTANT, 7599, PATIENCE) == errno.ECONNREFUSED
    shown = topology.host.sh(f"traceroute -n -w 20,0,0 -q 1 -m 5 {DISTANT}")
    assert [line.split()[1] for line in shown.splitlines()[1:]] == [OUTSIDE, DISTANT]
    topology.host.sh("ip route flush cache")
    done = topology.host.try_(f"ping -n -c 1 -W 60 -M do -s {NARROW} {DISTANT}")
    assert re.search(rf"mtu ?= ?{NARROW}", done.stdout + done.stderr)


# ---- large transfers -----------------------------------------------------------------------------------------


def _transfer(server: Place, client: Place, address: str, port: int, listen: int, download: bool) -> None:
    """5 MB one way, compared by their sum."""
    data = os.urandom(5_000_000)
    got = hashlib.sha256()

    def receive(connection: socket.socket) -> None:
        while part := connection.recv(1 << 16):
            got.update(part)

    with opened(server) as listener, opened(client) as out:
        listener.bind(("0.0.0.0", listen))
        listener.listen()
        for used in (listener, out):
            used.settimeout(PATIENCE)
        out.connect((address, port))
        accepted, _ = listener.accept()
        accepted.settimeout(PATIENCE)
        with accepted:
            sender, receiver = (accepted, out) if download else (out, accepted)
            thread = threading.Thread(target=receive, args=(receiver,))
            thread.start()
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert got.digest() == hashlib.sha256(data).digest()


@pytest.fixture
def fresh_mtu(topology: Topology) -> Iterator[Topology]:
    """Nobody has learnt anything about the way's MTU yet; the segments' size is not agreed on at its ends."""
    for place in (topology.a, topology.b, topology.host, topology.distant):
        place.sh("ip route flush cache")
    yield topology


def test_s21_path_mtu_discovery_works_for_a_transfer_to_the_outside(fresh_mtu: Topology) -> None:
    _transfer(fresh_mtu.distant, fresh_mtu.a, DISTANT, 7502, 7502, download=False)
    assert f"mtu {NARROW}" in fresh_mtu.a.sh(f"ip route get {DISTANT}")


def test_s21_path_mtu_discovery_works_for_a_transfer_from_a_published_port(fresh_mtu: Topology) -> None:
    _transfer(fresh_mtu.a, fresh_mtu.distant, HOST, 8081, 80, download=True)
    assert f"mtu {NARROW}" in fresh_mtu.a.sh(f"ip route get {DISTANT}")


def test_s21_a_narrower_device_of_the_host_itself_is_noticed(topology: Topology) -> None:
    """The uplink's MTU is below the containers': this host is the router that says so."""
    topology.host.sh("ip link set eth0 mtu 1200")
    try:
        for place in (topology.a, topology.b):
            place.sh("ip route flush cache")
        _transfer(topology.outside, topology.a, OUTSIDE, 7503, 7503, download=False)
        assert "mtu 1200" in topology.a.sh(f"ip route get {OUTSIDE}")
        done = topology.b.try_(f"ping -n -c 1 -W 60 -M do -s 1300 {OUTSIDE}")
        assert re.search(r"mtu ?= ?1200", done.stdout + done.stderr)
        _transfer(topology.b, topology.outside, HOST, _published(topology), 80, download=True)
    finally:
        topology.host.ctl("port rm b 8086:80")
        topology.host.sh("ip link set eth0 mtu 1500")


def _published(topology: Topology) -> int:
    topology.host.ctl("port add b 8086:80")
    return 8086


def test_s21_what_is_too_big_for_the_egress_never_leaves_with_the_containers_address(
    topology: Topology,
) -> None:
    """Without the don't-fragment flag, on a conversation that is already known."""
    with (
        serving(topology.outside, "udp", 7504),
        taps((topology.outside, "eth0")) as (tap,),
        opened(topology.a, socket.SOCK_DGRAM) as client,
    ):
        client.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: never
        client.connect((OUTSIDE, 7504))
        client.send(b"small")
        assert client.recv(100)
        topology.host.sh("ip link set eth0 mtu 1200")
        try:
            for _ in range(3):
                client.send(bytes(1400))
            settle()
        finally:
            topology.host.sh("ip link set eth0 mtu 1500")
        assert not [f for f in tap.frames() if pk.packed(topology.a.ip) in f]


# ---- the host's own ------------------------------------------------------------------------------------------


HOST_PORTS = (1023, 1024, 5004, 20000, 32767, 32768, 45000, 60999, 61000, 65535)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s21_the_hosts_own_connections_are_never_taken_over(topology: Topology, proto: str) -> None:
    """From ports of every range, to the server that containers talk to from the same ports at the same time."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with opened(topology.distant, kind) as server:
        server.bind((DISTANT, 7505))
        if proto == "tcp":
            server.listen(64)
        pairs: list[tuple[str, socket.socket, Any]] = []
        try:
            for port in HOST_PORTS:
                for place in (topology.host, topology.a, topology.b):
                    client = opened(place, kind)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    client.bind(("0.0.0.0", port))
                    client.connect((DISTANT, 7505))
                    client.send(b"hello")
                    if proto == "tcp":
                        far, peer = server.accept()
                        assert far.recv(100) == b"hello"
                    else:
                        _, peer = server.recvfrom(100)
                        far = peer
                    assert peer[0] == HOST
                    if place is topology.host:
                        assert peer[1] == port
                    pairs.append((f"{peer}", client, far))
            for name, _, far in pairs:
                if proto == "tcp":
                    far.send(name.encode())
                else:
                    server.sendto(name.encode(), far)
            for name, client, _ in pairs:
                assert client.recv(100).decode() == name
            assert len({name for name, _, _ in pairs}) == len(pairs)
        finally:
            for _, client, far in pairs:
                client.close()
                if proto == "tcp":
                    far.close()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s21_the_host_can_use_a_port_that_a_containers_connection_got_first(
    topology: Topology, proto: str, request: pytest.FixtureRequest
) -> None:
    """To the same server, bound by hand: the kernel never chooses from that range by itself."""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with serving(topology.distant, proto, 7506), opened(topology.a, kind) as first:
        first.bind(("0.0.0.0", 5005))
        first.connect((DISTANT, 7506))
        first.send(b"?")
        assert first.recv(100).decode().split() == [HOST, "5005"]
        # Another server is no clash at all.
        with serving(topology.outside, proto, 7506):
            assert call(topology.host, proto, OUTSIDE, 7506, source=("0.0.0.0", 5005)).seen_port == 5005
        if proto == "tcp":
            reason = "the two are one connection on the wire: the host's packets are not translated"
            request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
        answer = call(topology.host, proto, DISTANT, 7506, source=("0.0.0.0", 5005), seconds=2)
        assert answer.seen == HOST
        # The container's conversation has made way, and goes on.
        first.send(b"?")
        assert first.recv(100).decode().split()[0] == HOST


def test_s21_what_the_outside_sends_unasked_is_the_hosts(topology: Topology) -> None:
    """To ports inside the range for masquerading too."""
    with serving(topology.host, "tcp", 5006), serving(topology.host, "udp", 5006):
        for proto in ("tcp", "udp"):
            assert call(topology.outside, proto, HOST, 5006).seen == OUTSIDE
    assert reaches(topology.outside.try_, HOST)
    assert fails(topology.outside, "tcp", HOST, 5007, PATIENCE) == errno.ECONNREFUSED


def test_s21_nobody_outside_can_send_into_a_containers_conversation(topology: Topology) -> None:
    """A stranger's packets to the port that a container's conversation has are the host's, and refused."""
    with serving(topology.distant, "udp", 7507), opened(topology.a, socket.SOCK_DGRAM) as client:
        client.connect((DISTANT, 7507))
        client.send(b"?")
        port = int(client.recv(100).decode().split()[1])
        with taps(topology.a) as (tap,), opened(topology.outside, socket.SOCK_DGRAM) as stranger:
            stranger.bind((FAR, 7507))
            stranger.sendto(b"intruder", (HOST, port))
            settle()
            assert not [f for f in tap.frames() if b"intruder" in f]


def test_s21_an_address_that_has_no_route_is_not_taken_for_the_hosts(host: Host) -> None:
    """On a host without a default route, not even at a published port."""
    web = start_container(host, "web", "-p 8081:80")
    client = start_container(host, "client", "")
    host.sh("ip route del default")
    with serving(web, "tcp", 80) as server:
        assert call(client, "tcp", HOST, 8081).seen == client.gateway
        server.peers.clear()
        assert fails(client, "tcp", "8.8.8.8", 8081)
        assert not server.peers


def test_s21_switching_the_hosts_forwarding_off_does_not_cut_containers_off(host: Host) -> None:
    """As every reload of sysctl.conf may: the kernel then switches it off for each device. The next command
    that changes anything makes it right again."""
    a = start_container(host, "a")
    host.sh("sysctl -qw net.ipv4.ip_forward=1")
    host.sh("sysctl -qw net.ipv4.ip_forward=0")
    assert "switched off" in host.try_ctl("network create any").stderr
    assert reaches(a.try_, OUTSIDE)
    assert host.sh("sysctl -n net.ipv4.ip_forward") == "0"


def test_s21_nothing_is_dropped_in_ordinary_use(topology: Topology) -> None:
    before = counters(topology.host)
    with serving(topology.distant, "tcp", 7508), serving(topology.distant, "udp", 7508):
        for _ in range(20):
            call(topology.a, "tcp", DISTANT, 7508)
            call(topology.b, "udp", DISTANT, 7508)
    assert rises(before, counters(topology.host)) == {}
