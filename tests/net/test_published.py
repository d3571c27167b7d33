# SPDX-License-Identifier: Apache-2.0
"""S18: an exposed port is recorded, and the host reaches it. S19: a published port is reached from everywhere."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import FAR, HOST, OUTSIDE, PATIENCE, Host
from tests.net.wire import (
    Container,
    call,
    device_mac,
    fails,
    opened,
    serving,
    start_container,
    taps,
)
from tests.softirqs import settle

SECOND = "192.0.2.10"  # another address of the host


class Topology(NamedTuple):
    host: Host
    web: Container  # 10.61.0.0/24; publishes what PORTS says
    peer: Container  # same network
    other: Container  # another network


PORTS = (
    "-p 8081:80 -p 8081:80/udp -p 127.0.0.1:8082:80 -p 127.0.0.1:8082:80/udp "
    f"-p {SECOND}:8083:80 -p {SECOND}:8083:80/udp -p 8100-8109:8200-8209 -p 0.0.0.0:8084:80"
)


@pytest.fixture(scope="module")
def topology(shared_host: Host) -> Iterator[Topology]:
    host = shared_host
    host.sh(f"ip address add {SECOND}/24 dev eth0")
    host.ctl("network create --subnet 10.61.0.0/24 -o com.docker.network.bridge.name=shop shop")
    host.ctl("network create --subnet 10.62.0.0/24 -o com.docker.network.bridge.name=yard yard")
    made = Topology(
        host,
        start_container(host, "web", f"--network shop {PORTS}"),
        start_container(host, "peer", "--network shop"),
        start_container(host, "other", "--network yard"),
    )
    yield made
    host.ctl("rm -f web peer other")
    host.ctl("network rm shop yard")


# ---- S18 -------------------------------------------------------------------------------------------------


def test_s18_an_exposed_port_is_shown_and_the_host_reaches_it(topology: Topology) -> None:
    exposing = start_container(topology.host, "exposing", "--expose 80 --expose 53/udp --expose 7000-7002")
    try:
        ports = topology.host.inspect("exposing")["Config"]["ExposedPorts"]
        assert set(ports) == {"80/tcp", "53/udp", "7000/tcp", "7001/tcp", "7002/tcp"}
        with serving(exposing, "tcp", 80), serving(exposing, "udp", 53):
            assert call(topology.host, "tcp", exposing.ip, 80).seen == exposing.gateway
            assert call(topology.host, "udp", exposing.ip, 53).seen == exposing.gateway
            # Exposed is not published.
            assert fails(topology.host.outside, "tcp", HOST, 80)
        assert topology.host.ctl("port ls exposing --format json") == ""
    finally:
        topology.host.ctl("rm -f exposing")


# ---- S19: from everywhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_from_outside_the_server_sees_the_clients_own_address(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80):
        for address in (HOST, SECOND):
            for source in (OUTSIDE, FAR):
                port = 40123 if address == HOST else 40124
                answer = call(topology.host.outside, proto, address, 8081, source=(source, port))
                assert answer == (source, port, address, 8081)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("address", [HOST, SECOND, "10.61.0.1", "10.62.0.1"])
def test_s19_from_the_host_by_each_of_its_addresses(topology: Topology, proto: str, address: str) -> None:
    """The server sees the address that a server of the host's would see."""
    with serving(topology.host, proto, 7080):
        seen = call(topology.host, proto, address, 7080).seen
    with serving(topology.web, proto, 80):
        answer = call(topology.host, proto, address, 8081)
        assert (answer.peer, answer.peer_port) == (address, 8081)
        assert answer.seen == seen


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3"])
def test_s19_from_the_host_by_loopback_the_server_sees_the_gateway(
    topology: Topology, proto: str, address: str
) -> None:
    with serving(topology.web, proto, 80):
        answer = call(topology.host, proto, address, 8081)
        assert (answer.peer, answer.peer_port) == (address, 8081)
        assert answer.seen == topology.web.gateway


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_from_the_host_by_an_ipv6_socket_with_a_mapped_address(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80):
        for address in ("127.0.0.1", HOST):
            answer = call(topology.host, proto, f"::ffff:{address}", 8081)
            assert (answer.peer, answer.peer_port) == (f"::ffff:{address}", 8081)


def test_s19_connecting_to_any_means_this_host(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80):
        assert call(topology.host, "tcp", "0.0.0.0", 8081).seen == topology.web.gateway


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_from_other_containers_of_the_same_and_of_another_network(topology: Topology, proto: str) -> None:
    """One of another network is seen with its own address; one of the same with the gateway's, or the answer
    would not take the way back."""
    with serving(topology.web, proto, 80):
        for client, seen in ((topology.other, topology.other.ip), (topology.peer, topology.web.gateway)):
            for address in (HOST, SECOND, topology.web.gateway, topology.other.gateway):
                answer = call(client, proto, address, 8081)
                assert (answer.seen, answer.peer, answer.peer_port) == (seen, address, 8081)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_hairpin_a_container_reaches_itself_through_the_hosts_address(
    topology: Topology, proto: str
) -> None:
    with serving(topology.web, proto, 80):
        for address in (HOST, SECOND, topology.web.gateway):
            answer = call(topology.web, proto, address, 8081)
            assert (answer.seen, answer.peer) == (topology.web.gateway, address)


def test_s19_udp_with_a_connected_socket_knows_its_peer(topology: Topology) -> None:
    clients: list[tuple[Host | Container, str]] = [
        (topology.host, "127.0.0.1"),
        (topology.host, HOST),
        (topology.other, HOST),
        (topology.web, HOST),
    ]
    with serving(topology.web, "udp", 80):
        for place, address in clients:
            with opened(place, socket.SOCK_DGRAM) as client:
                client.connect((address, 8081))
                assert client.getpeername() == (address, 8081)
                for _ in range(3):
                    client.send(b"?")
                    data, peer = client.recvfrom(100)
                    assert data and peer == (address, 8081)


def test_s19_one_unconnected_socket_talks_to_many_and_tells_them_apart(topology: Topology) -> None:
    with (
        serving(topology.web, "udp", 80),
        serving(topology.host, "udp", 7400),
        opened(topology.host, socket.SOCK_DGRAM) as client,
    ):
        targets = [("127.0.0.1", 8081), (HOST, 7400), (HOST, 8081), ("127.0.0.1", 7400), ("127.0.0.1", 8082)]
        for target in targets:
            client.sendto(b"?", target)
            _, _, _, peer = client.recvmsg(100)
            assert peer == target


def test_s19_two_connections_from_one_client_port_to_two_published_ports_of_one_server(
    topology: Topology,
) -> None:
    """8081 and 8084 both lead to 80: to the server they would be the same connection. The second gets another
    port, and the client keeps its address."""
    with serving(topology.web, "tcp", 80), opened(topology.host.outside) as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind((OUTSIDE, 40200))
        first.connect((HOST, 8081))
        second = call(topology.host.outside, "tcp", HOST, 8084, source=(OUTSIDE, 40200))
        assert (second.seen, second.peer_port) == (OUTSIDE, 8084)
        assert first.recv(100).decode().split() == [OUTSIDE, "40200"]


# ---- S19: host addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_a_port_published_at_127_0_0_1_answers_the_host_only(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80) as server:
        answer = call(topology.host, proto, "127.0.0.1", 8082)
        assert (answer.seen, answer.peer) == (topology.web.gateway, "127.0.0.1")
        server.peers.clear()
        strangers: list[tuple[object, str]] = [(topology.host, HOST), (topology.host, "10.61.0.1")]
        strangers += [(topology.host.outside, HOST), (topology.host.outside, SECOND)]
        strangers += [
            (p, a) for p in (topology.web, topology.peer, topology.other) for a in (HOST, "10.61.0.1")
        ]
        strangers += [(p, "127.0.0.1") for p in (topology.peer, topology.other)]
        for place, address in strangers:
            assert fails(place, proto, address, 8082), address  # type: ignore[arg-type]
        assert not server.peers


@pytest.mark.parametrize("forwarding", [0, 1])
def test_s19_a_crafted_packet_to_127_0_0_1_from_anywhere_is_nobodys(
    topology: Topology, forwarding: int
) -> None:
    """Over the wire to the host's MAC, even where the administrator has route_localnet on (moby#45610)."""
    topology.host.sh(f"sysctl -qw net.ipv4.conf.eth0.route_localnet={forwarding}")
    try:
        with (
            taps((topology.host.outside, "eth0"), topology.peer, (topology.other, "eth0"), topology.web) as (
                outside,
                peer,
                other,
                web,
            ),
        ):
            ways = (
                (
                    outside,
                    device_mac(topology.host.outside, "eth0"),
                    device_mac(topology.host, "eth0"),
                    OUTSIDE,
                ),
                (peer, topology.peer.mac, device_mac(topology.host, "shop"), topology.peer.ip),
                (other, topology.other.mac, device_mac(topology.host, "yard"), topology.other.ip),
            )
            for tap, src_mac, dst_mac, src in ways:
                for dst in ("127.0.0.1", "127.1.2.3"):
                    for port in (8081, 8082):
                        for carried in (pk.tcp(40300, port, pk.SYN), pk.udp(40300, port)):
                            packet = pk.ipv4(src, dst, carried)
                            tap.send(pk.ethernet(dst_mac, src_mac, pk.ETH_IPV4, packet))
            settle()
            assert not web.frames()
    finally:
        topology.host.sh("sysctl -qw net.ipv4.conf.eth0.route_localnet=0")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_a_port_published_at_one_address_answers_at_that_one_only(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80):
        for place in (topology.host, topology.host.outside, topology.other, topology.peer, topology.web):
            assert call(place, proto, SECOND, 8083).peer == SECOND
            assert fails(place, proto, HOST, 8083)
        assert fails(topology.host, proto, "127.0.0.1", 8083)


def test_s19_another_process_can_have_the_port_at_another_address(topology: Topology) -> None:
    for proto in ("tcp", "udp"):
        with serving(topology.web, proto, 80), serving(topology.host, proto, 8083, HOST):
            assert call(topology.host.outside, proto, HOST, 8083).seen == OUTSIDE
            assert call(topology.host, proto, HOST, 8083).seen == HOST
            assert call(topology.host.outside, proto, SECOND, 8083).peer == SECOND
            with opened(topology.host, {"tcp": 1, "udp": 2}[proto]) as wide, pytest.raises(OSError) as caught:
                wide.bind(("0.0.0.0", 8083))
            assert caught.value.errno == errno.EADDRINUSE


def test_s19_the_networks_host_binding_is_used_where_none_is_given(topology: Topology) -> None:
    host = topology.host
    host.ctl(f"network create -o com.docker.network.bridge.host_binding_ipv4={SECOND} bound")
    bound = start_container(host, "bound", "--network bound -p 8090:80 -p 0.0.0.0:8091:80")
    try:
        with serving(bound, "tcp", 80):
            assert call(host.outside, "tcp", SECOND, 8090).seen == OUTSIDE
            assert fails(host.outside, "tcp", HOST, 8090)
            assert call(host.outside, "tcp", HOST, 8091).seen == OUTSIDE
    finally:
        host.ctl("rm -f bound")
        host.ctl("network rm bound")


# ---- S19: ranges and chosen ports ----------------------------------------------------------------------------


def test_s19_a_range_is_published_one_to_one(topology: Topology) -> None:
    for offset in (0, 4, 9):
        with serving(topology.web, "tcp", 8200 + offset):
            assert call(topology.host.outside, "tcp", HOST, 8100 + offset).seen == OUTSIDE
            assert call(topology.host, "tcp", "127.0.0.1", 8100 + offset).peer_port == 8100 + offset
    with serving(topology.web, "tcp", 8210):
        assert fails(topology.host.outside, "tcp", HOST, 8110)


def test_s19_free_ports_are_chosen_for_p_without_a_host_port_and_for_all_exposed(topology: Topology) -> None:
    host = topology.host
    chosen = start_container(host, "chosen", "-p :80 -p 81 -P --expose 90 --expose 53/udp")
    try:
        ports = host.inspect("chosen")["NetworkSettings"]["Ports"]
        assert set(ports) == {"80/tcp", "81/tcp", "90/tcp", "53/udp"}
        for name, bindings in ports.items():
            port, proto = name.split("/")
            host_port = int(bindings[0]["HostPort"])
            assert 32768 <= host_port <= 60999
            with serving(chosen, proto, int(port)):
                assert call(host.outside, proto, HOST, host_port).seen == OUTSIDE
    finally:
        host.ctl("rm -f chosen")


# ---- S19: who has a port ---------------------------------------------------------------------------------------


def test_s19_a_port_that_a_process_of_the_host_has_is_refused_and_the_process_named(
    topology: Topology,
) -> None:
    host = topology.host
    for options, proto in (("-p 8085:80", "tcp"), ("-p 8085:80/udp", "udp"), (f"-p {HOST}:8085:80", "tcp")):
        with serving(host, proto, 8085):
            line = host.refused(f"run -d --name late {options} sleep 1")
            assert "8085" in line and "address already in use" in line and "pid" in line
    with serving(host, "tcp", 8085, "::"):
        assert "in use" in host.refused("run -d --name late -p 8085-8086:80-81 sleep 1")
    # What does not clash is fine: another protocol, another address.
    with serving(host, "udp", 8085), serving(host, "tcp", 8085, HOST):
        host.run("fits", f"-p {SECOND}:8085:80")
        host.ctl("rm -f fits")
    assert "late" not in host.ctl("ps -a")


def test_s19_a_port_that_another_container_has_is_refused_and_the_container_named(topology: Topology) -> None:
    for options in (
        "8081:80",
        f"{HOST}:8081:90",
        "127.0.0.1:8081:90",
        "8081:80/udp",
        "8105:1",
        "8050-8090:50-90",
    ):
        line = topology.host.refused(f"run -d --name late -p {options} sleep 1")
        assert '"web"' in line and "already allocated" in line, line
    topology.host.run("fits", "-p 127.0.0.1:8083:80")
    topology.host.ctl("rm -f fits")


def _bind_error(host: Host, kind: int, address: str, port: int, reuse: bool) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with opened(host, kind, family) as server:
        if reuse:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            server.bind((address, port))
        except OSError as error:
            return error.errno or -1
    return 0


def test_s19_a_process_of_the_host_cannot_bind_a_published_port_until_it_is_gone(topology: Topology) -> None:
    host = topology.host
    host.run("brief", "-p 8095:80 -p 8095:80/udp")
    where = [
        (kind, address, reuse)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        for address in ("0.0.0.0", "127.0.0.1", HOST, "::", "::1", f"::ffff:{HOST}")
        for reuse in (False, True)
    ]
    try:
        for kind, address, reuse in where:
            assert _bind_error(host, kind, address, 8095, reuse) == errno.EADDRINUSE, (kind, address)
        assert _bind_error(host, socket.SOCK_STREAM, "0.0.0.0", 8096, False) == 0
    finally:
        host.ctl("rm -f brief")
    for kind, address, reuse in where:
        assert _bind_error(host, kind, address, 8095, reuse) == 0
    with serving(host, "tcp", 8095):
        assert call(host.outside, "tcp", HOST, 8095).seen == OUTSIDE
        assert call(host, "tcp", "127.0.0.1", 8095).seen == "127.0.0.1"


def test_s19_the_hooks_on_sockets_do_not_reach_into_containers(topology: Topology) -> None:
    """A container's port 8081 and its 127.0.0.1 are its own; so are a stranger's namespace's."""
    for place in (topology.web, topology.peer, topology.other, topology.host.outside):
        for proto in ("tcp", "udp"):
            with serving(place, proto, 8081):
                answer = call(place, proto, "127.0.0.1", 8081)
                assert answer.seen == "127.0.0.1"
                assert (answer.peer, answer.peer_port) == ("127.0.0.1", 8081)
            assert fails(place, proto, "127.0.0.1", 8081) == errno.ECONNREFUSED


def test_s19_a_container_in_host_mode_is_a_process_of_the_host(topology: Topology) -> None:
    host = topology.host
    bare = start_container(host, "bare", "--network host")
    try:
        assert _bind_error(host, socket.SOCK_STREAM, "0.0.0.0", 8081, False) == errno.EADDRINUSE
        with serving(topology.web, "tcp", 80):
            assert call(bare, "tcp", "127.0.0.1", 8081).seen == topology.web.gateway
    finally:
        host.ctl("rm -f bare")


# ---- S19: what must not be disturbed ---------------------------------------------------------------------------


def test_s19_nobody_listening_in_the_container_is_refused_at_once(topology: Topology) -> None:
    """A reset, or port unreachable, comes back to each client: nobody waits."""
    for place in (topology.host.outside, topology.host, topology.other, topology.peer, topology.web):
        assert fails(place, "tcp", HOST, 8081, PATIENCE) == errno.ECONNREFUSED
        assert fails(place, "udp", HOST, 8081, PATIENCE) == errno.ECONNREFUSED


def test_s19_the_containers_own_address_is_not_reached_from_outside(topology: Topology) -> None:
    """Published is a port of the host, not the way to the container."""
    topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    topology.host.outside.sh(f"ip route add 10.61.0.0/24 via {HOST}")
    try:
        with serving(topology.web, "tcp", 80) as server:
            assert fails(topology.host.outside, "tcp", topology.web.ip, 80)
            assert fails(topology.host.outside, "tcp", topology.web.ip, 8081)
            assert not server.peers
    finally:
        topology.host.outside.sh("ip route del 10.61.0.0/24")
        topology.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")


def _exchange(one: socket.socket, two: socket.socket) -> None:
    for speaker, hearer in ((one, two), (two, one)):
        speaker.sendall(b"hello")
        assert hearer.recv(10) == b"hello"


def _connect(client: socket.socket, listener: socket.socket, target: tuple[str, int]) -> socket.socket:
    client.connect(target)
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE)
    _exchange(client, accepted)
    return accepted


@pytest.mark.parametrize("towards", ["outside", "container"])
def test_s19_a_connection_of_the_host_from_a_port_that_is_published_later_stays_its_own(
    topology: Topology, towards: str
) -> None:
    """And a fresh connection from such a port, which the kernel may choose by itself, works as well."""
    host = topology.host
    place, address = (host.outside, OUTSIDE) if towards == "outside" else (topology.web, topology.web.ip)
    with opened(host) as client, opened(host) as late, opened(place) as listener:
        listener.bind((address, 7402))
        listener.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("0.0.0.0", 8098))
        client.bind(("0.0.0.0", 8097))
        accepted = _connect(client, listener, (address, 7402))
        host.ctl(["port", "add", "peer", "8097-8098:80-81"])
        try:
            _exchange(client, accepted)
            _connect(late, listener, (address, 7402)).close()
        finally:
            accepted.close()
            host.ctl("port rm peer 8097-8098:80-81")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_the_kernel_chooses_no_published_port_for_a_socket_of_the_host(host: Host, proto: str) -> None:
    """The kernel's own choice of a source port passes no hook; the container would get the answers."""
    host.sh("sysctl -qw net.ipv4.ip_local_port_range='40000 40127'")
    host.sh("sysctl -qw net.ipv4.ip_local_reserved_ports=40090,50000")
    web = start_container(host, "web", f"-p 40000-40079:8000-8079/{proto}")
    assert host.sh("sysctl -n net.ipv4.ip_local_reserved_ports") == "40000-40079,40090,50000"
    with serving(host.outside, proto, 7404), serving(web, proto, 7405):
        for _ in range(12):
            assert call(host, proto, OUTSIDE, 7404).seen == HOST
            assert call(host, proto, web.ip, 7405).seen == web.gateway
    host.ctl("rm -f web")
    assert host.sh("sysctl -n net.ipv4.ip_local_reserved_ports") == "40090,50000"
