# SPDX-License-Identifier: Apache-2.0
"""Sockets of the host's own processes, with all that one can set on them: a published port answers them as a server of
the host's does, and each sees the peer that it asked for."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from tests.net.compare import config, host_case
from tests.net.hosts import HOST, Host, ask, echo_server, eventually
from tests.net.wire import KINDS, opened

Hosts = Callable[[str], Host]
Prepare = Callable[[socket.socket], None]

SECOND, HOST6, ANYIP, ANYIP6 = "192.0.2.10", "2001:db8::1", "10.79.0.5", "2001:db8:79::5"
IPV4, IPV6 = ("127.0.0.1", "127.8.8.8", HOST, SECOND, ANYIP), ("::1", HOST6, ANYIP6)
MAPPED = tuple(f"::ffff:{address}" for address in IPV4)
EVERY = (*IPV4, *IPV6, *MAPPED)
PROTOS = ("tcp", "udp", "udp, unconnected")
IP_UNICAST_IF, IPV6_UNICAST_IF, SO_BINDTODEVICE, SO_MARK, IPPROTO_MPTCP = 50, 76, 25, 36, 262

SOURCES_OF_KERNEL = "every process of the host is seen as the gateway, and ::1 is not answered"
DEVICES_OF_KERNEL = "the packets are translated, and leave by the device that the socket is bound to"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A host of each mode, where both protocols are published at port 8081 of every address."""
    made: dict[str, Host] = {}
    with contextlib.ExitStack() as stack:

        def of(mode: str) -> Host:
            if mode not in made:
                host = made[mode] = Host(tmp_path_factory.mktemp("host"), config=config(mode))
                stack.callback(host.close)
                host.sh(f"ip address add {SECOND}/24 dev eth0")
                host.sh(f"ip -6 address add {HOST6}/64 dev eth0 nodad")
                host.sh("ip route add local 10.79.0.0/24 dev lo")
                host.sh("ip -6 route add local 2001:db8:79::/64 dev lo")
                host.ctl("network create --ipv6 six")
                for proto in ("tcp", "udp"):
                    host.run(proto, f"--network six -p 8081:80/{proto}", echo_server(proto, 80, "::"))
                    serves(host, proto, "127.0.0.1")
            return made[mode]

        yield of


def serves(host: Host, proto: str, address: str, port: int = 8081) -> None:
    """Waits until the container's server answers."""
    with eventually() as until:
        until(lambda: host.try_(ask(proto, address, port, 1)).returncode == 0)


class Answer(NamedTuple):
    """Whom the server has for its client, and the client for its server."""

    seen: str
    peer: str
    port: int


def exchange(
    host: Host,
    proto: str,
    address: str,
    port: int = 8081,
    prepare: Prepare = lambda _: None,
    message: Sequence[tuple[int, int, bytes]] = (),
    kind: int = 0,
) -> Answer:
    """Asks with a socket that was prepared; a datagram goes with these control data. OSError: nobody answers."""
    name, _, unconnected = proto.partition(", ")
    with opened(host, KINDS[name], socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as client:
        prepare(client)
        if not unconnected:
            client.connect((address, port))
            assert client.getpeername()[:2] == (address, port)
        if name == "udp":
            client.sendmsg([b"?"], message, 0, *([(address, port)] if unconnected else []))
        data, source = client.recvfrom(100)
        peer = client.getpeername() if name == "tcp" else source
    return Answer(data.decode().strip().removeprefix("::ffff:"), peer[0], peer[1])


def bound(source: str) -> Prepare:
    return lambda client: client.bind((source, 0))


def sources(address: str) -> tuple[str, ...]:
    """What a socket of the same kind can be bound to; to an IPv6 prefix only with a setting."""
    found = next(found for found in (IPV4, IPV6, MAPPED) if address in found)
    return tuple(one for one in found if one != ANYIP6)


def expected(host: Host, source: str, asked: str, port: int = 8081) -> Answer:
    """Who comes from loopback is seen as the gateway."""
    seen = source.removeprefix("::ffff:")
    if ip_address(seen).is_loopback:
        gateways = [entry["Gateway"] for entry in host.network("six")["IPAM"]["Config"]]
        seen = next(one for one in gateways if (":" in one) == (":" in seen))
    return Answer(seen, asked, port)


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("address", EVERY)
@host_case(
    5, "A process whose socket is bound to an address reaches a published port", iptables=SOURCES_OF_KERNEL
)
def test_s19_a_socket_that_is_bound_to_an_address(hosts: Hosts, address: str, proto: str, mode: str) -> None:
    host = hosts(mode)
    for source in sources(address):
        found = exchange(host, proto, address, prepare=bound(source))
        assert found == expected(host, source, address)


# By an IPv4 address of another device than loopback only what is connected: decision 30.
DEVICES = [
    *(("lo", proto, address) for proto in PROTOS for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")),
    *(("eth0", proto, address) for proto in PROTOS[:2] for address in (HOST, SECOND, f"::ffff:{HOST}")),
    *(("eth0", proto, HOST6) for proto in PROTOS),
]


@pytest.mark.parametrize(("device", "proto", "address"), DEVICES)
@host_case(
    5, "A process whose socket is bound to a device reaches a published port", iptables=DEVICES_OF_KERNEL
)
def test_s19_a_socket_that_is_bound_to_a_device(
    hosts: Hosts, device: str, proto: str, address: str, mode: str
) -> None:
    def prepare(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())

    assert exchange(hosts(mode), proto, address, prepare=prepare)[1:] == (address, 8081)


@host_case(5, "curl --interface reaches a published port", iptables=DEVICES_OF_KERNEL)
def test_s19_curl_by_an_interface_or_an_address(hosts: Hosts, mode: str) -> None:
    host = hosts(mode)
    host.run(
        "http", "--network six -p 8084:80", "python3 -m http.server 80 --bind :: --directory /proc/self/task"
    )
    with eventually() as until:
        until(lambda: host.try_(f"curl -s -m 1 http://{HOST}:8084").returncode == 0)
    for interface, address in (
        *(("eth0", HOST), ("eth0", f"[{HOST6}]"), ("lo", "127.0.0.1"), (f"host!{HOST}", "127.0.0.1")),
        *((f"host!{SECOND}", HOST), ("lo", "[::1]"), (f"host!{HOST6}", f"[{HOST6}]")),
    ):
        url = f"http://{address}:8084"
        assert "Directory listing" in host.sh(["curl", "-sS", "--interface", interface, url])


@pytest.mark.parametrize("address", EVERY)
@host_case(5, "A datagram that names its own source reaches a published port", iptables=SOURCES_OF_KERNEL)
def test_s19_a_message_with_a_source_of_its_own(hosts: Hosts, address: str, mode: str) -> None:
    """IP_PKTINFO, IPV6_PKTINFO. A connected socket hears only what comes to the source that it has already."""
    host = hosts(mode)
    cases = [("udp, unconnected", source) for source in sources(address)]
    if address.removeprefix("::ffff:") in ("127.0.0.1", HOST, "::1", HOST6):
        cases.append(("udp", address))
    for proto, source in cases:
        if ":" in address:
            data = socket.inet_pton(socket.AF_INET6, source) + struct.pack("i", 0)
            message = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)
        else:
            message = (socket.IPPROTO_IP, 8, struct.pack("i", 0) + socket.inet_aton(source) + bytes(4))
        assert exchange(host, proto, address, message=[message]) == expected(host, source, address)


@pytest.mark.parametrize("proto", PROTOS[1:])
@host_case(
    5, "A datagram of a socket with a device of its own reaches a published port", iptables=SOURCES_OF_KERNEL
)
def test_s19_a_datagram_whose_device_an_option_says(hosts: Hosts, proto: str, mode: str) -> None:
    """IP_UNICAST_IF, IPV6_UNICAST_IF."""

    def prepare(client: socket.socket) -> None:
        six = client.family == socket.AF_INET6
        option = (socket.IPPROTO_IPV6, IPV6_UNICAST_IF) if six else (socket.IPPROTO_IP, IP_UNICAST_IF)
        client.setsockopt(*option, struct.pack("!I", 1))

    for address in ("::1", "127.0.0.1", ANYIP, ANYIP6, "::ffff:127.0.0.1"):
        assert exchange(hosts(mode), proto, address, prepare=prepare)[1:] == (address, 8081)


USER = """
import os, runpy, sys
os.setresuid(4000, 4000, 4000)
sys.argv = sys.argv[1:]
exec(sys.argv[0])
"""


@host_case(
    5,
    "Rules by mark or by user do not keep the host's own processes from a port published at loopback",
    iptables="a translated packet is routed by these rules",
)
def test_s19_rules_of_policy_routing_for_the_hosts_own_sockets(
    make_host: Callable[..., Host], mode: str
) -> None:
    host = make_host(config=config(mode))
    host.sh("ip route add unreachable default table 7")
    for what in ("fwmark 7", "uidrange 4000-4000"):
        host.sh(f"ip rule add {what} lookup 7")
    host.run("web", "-p 8081:80", echo_server("tcp", 80))
    serves(host, "tcp", "127.0.0.1")
    for address in ("127.0.0.1", HOST):
        found = exchange(
            host, "tcp", address, prepare=lambda client: client.setsockopt(socket.SOL_SOCKET, SO_MARK, 7)
        )
        assert found[1:] == (address, 8081)
        _, _, script, *words = ask("tcp", address, 8081)
        done = host.sh([sys.executable, "-c", USER, script, *words])
        assert done.split()[1:] == [address, "8081"]


# ---- whose address it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", PROTOS)
@host_case(4, "An address that the host has just got: a published port answers its own processes at once")
def test_s19_a_new_address_of_the_host(make_host: Callable[..., Host], proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    name = proto.split(",")[0]
    host.run("web", f"-p 8081:80/{name}", echo_server(name, 80))
    serves(host, name, HOST)
    host.sh("ip address add 198.51.100.7/32 dev eth0")
    assert exchange(host, proto, "198.51.100.7")[1:] == ("198.51.100.7", 8081)


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("publish", ["", "192.0.2.9:"])
@host_case(4, "An address that has moved to another machine: the host's own processes reach that one")
def test_s19_an_address_that_moved_away(
    make_host: Callable[..., Host], publish: str, proto: str, mode: str
) -> None:
    host = make_host(config=config(mode))
    host.sh("sysctl -qw net.ipv4.ip_nonlocal_bind=1")
    host.sh("ip address add 192.0.2.9/32 dev eth0")
    name = proto.split(",")[0]
    host.run("web", f"-p {publish}8081:80/{name}", echo_server(name, 80))
    serves(host, name, "192.0.2.9")
    host.sh("ip address delete 192.0.2.9/32 dev eth0")
    host.outside.sh("ip address add 192.0.2.9/32 dev eth0")
    server = host.outside.start(echo_server(name, 8081, "192.0.2.9"), stdout=-1)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    assert exchange(host, proto, "192.0.2.9") == (HOST, "192.0.2.9", 8081)


# ---- peers -------------------------------------------------------------------------------------------------


@host_case(
    19,
    "One socket that asks one container by two published ports, and directly, keeps the peers apart",
    iptables=SOURCES_OF_KERNEL,
)
def test_s19_a_datagram_socket_with_several_published_peers(hosts: Hosts, mode: str) -> None:
    for address in ("::1", "127.0.0.1", HOST, "::ffff:127.0.0.1"):
        ask_by_several_ports(hosts, address, mode)


def ask_by_several_ports(hosts: Hosts, address: str, mode: str) -> None:
    host = hosts(mode)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    host.ctl("port add udp 8082:80/udp")
    networks = host.inspect("udp")["NetworkSettings"]["Networks"]["six"]
    direct = networks["IPAddress"] if family == socket.AF_INET else networks["GlobalIPv6Address"]
    if address.startswith("::ffff:"):
        direct = f"::ffff:{networks['IPAddress']}"
    asked = [(address, 8081), (address, 8082), (direct, 80), (address, 8081), (direct, 80), (address, 8082)]
    try:
        with opened(host, socket.SOCK_DGRAM, family) as client:
            for peer in asked:
                client.sendto(b"?", peer)
                assert client.recvfrom(100)[1][:2] == peer
            for peer in asked:
                client.sendto(b"?", peer)
            found = [client.recvfrom(100)[1][:2] for _ in asked]
            assert sorted(found) == sorted(asked)
    finally:
        host.ctl("port rm udp 8082:80/udp")


@host_case(19, "A stream socket that is used again shows the peer that it has")
def test_s19_a_stream_socket_that_goes_to_the_container_itself_after_the_published_port(
    hosts: Hosts, mode: str
) -> None:
    host = hosts(mode)
    direct = host.inspect("tcp")["NetworkSettings"]["Networks"]["six"]["IPAddress"]
    with opened(host) as client:
        for peer in (("127.0.0.1", 8081), (direct, 80)):
            client.connect(peer)
            assert client.getpeername() == peer
            assert client.recv(100)
            disconnect(client)


def disconnect(client: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python has no word for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), bytes(16), 16) == 0, errno.errorcode[ctypes.get_errno()]


MPTCP_SERVER = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("::", 80))
server.listen()
while True:
    connection, peer = server.accept()
    connection.sendall((peer[0] + "\\n").encode())
    connection.close()
"""


def needs_mptcp() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error}")


@pytest.mark.parametrize("server", ["mptcp", "tcp"])
@host_case(19, "An MPTCP socket of the host reaches a published port", iptables=SOURCES_OF_KERNEL)
def test_s19_mptcp(hosts: Hosts, server: str, mode: str) -> None:
    """With a server that speaks it, and with one that does not."""
    needs_mptcp()
    host, port = hosts(mode), 8081
    if server == "mptcp" and "mptcp" not in host.ctl("ps --format {{.Names}}").split():
        host.run("mptcp", "--network six -p 8083:80", ["python3", "-c", MPTCP_SERVER])
        serves(host, "tcp", HOST, 8083)
    if server == "mptcp":
        port = 8083
    for address in (HOST, HOST6, "127.0.0.1", "::1", f"::ffff:{HOST}"):
        found = exchange(host, "tcp", address, port, kind=IPPROTO_MPTCP)
        assert found == expected(host, address, address, port)


# ---- bind() ------------------------------------------------------------------------------------------------

# What is published, as one socket of the host's would hold it: an address, None: every one of both families. Then what
# is bound, and whether it clashes.
V6ONLY = "only "  # before an address: with IPV6_V6ONLY
BINDS = {
    None: {"0.0.0.0": True, "127.0.0.1": True, HOST: True, "::": True, f"{V6ONLY}::": True, "::1": True},
    "0.0.0.0": {"0.0.0.0": True, HOST: True, "::": True, f"{V6ONLY}::": False, "::1": False, HOST6: False},
    HOST: {
        "0.0.0.0": True,
        HOST: True,
        SECOND: False,
        "127.0.0.1": False,
        "::": True,
        f"{V6ONLY}::": False,
        f"::ffff:{HOST}": True,
        f"::ffff:{SECOND}": False,
        "::ffff:0.0.0.0": True,
        HOST6: False,
    },
    HOST6: {"0.0.0.0": False, "::": True, f"{V6ONLY}::": True, HOST6: True, "::1": False, HOST: False},
    "::": {
        "0.0.0.0": False,
        "::": True,
        f"{V6ONLY}::": True,
        HOST6: True,
        "::1": True,
        f"::ffff:{HOST}": False,
    },
}


@pytest.mark.parametrize("proto", PROTOS[:2])
@pytest.mark.parametrize("published", BINDS, ids=str)
@host_case(
    19,
    "A process can bind to the number of a published port where the kernel would let it beside another socket",
    iptables="nothing keeps a process from a published port",
)
def test_s19_bind_is_refused_where_it_clashes_only(
    hosts: Hosts, published: str | None, proto: str, mode: str
) -> None:
    host = hosts(mode)
    where = "" if published is None else f"[{published}]:" if ":" in published else f"{published}:"
    host.ctl(f"port add tcp {where}8090:80/{proto}")
    try:
        for address, clash in BINDS[published].items():
            for reuse in (0, 1):
                assert binds(host, proto, address, reuse) == (not clash), (address, reuse)
    finally:
        host.ctl(f"port rm tcp {where}8090:80/{proto}")
    for address in BINDS[published]:
        assert binds(host, proto, address, 0), address


def binds(host: Host, proto: str, address: str, reuse: int) -> bool:
    plain = address.removeprefix(V6ONLY)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with opened(host, KINDS[proto], family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(plain != address))
        try:
            server.bind((plain, 8090))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            return False
    return True


@host_case(
    19,
    "A group's datagrams can be received on the number of a published port",
    iptables="",
)
def test_s19_a_group_is_no_published_address(hosts: Hosts, mode: str) -> None:
    host = hosts(mode)
    host.ctl("port add udp 5353:80/udp")
    try:
        for group in ("224.0.0.251", "ff02::fb"):
            with opened(host, socket.SOCK_DGRAM, socket.AF_INET6 if ":" in group else socket.AF_INET) as one:
                one.bind((group, 5353, 0, 2) if ":" in group else (group, 5353))
    finally:
        host.ctl("port rm udp 5353:80/udp")


@host_case(
    19,
    "A server of the host's at an IPv6 address has what is asked there, though its number is published by IPv4",
)
def test_s19_a_server_of_the_hosts_beside_a_port_published_by_ipv4(hosts: Hosts, mode: str) -> None:
    host = hosts(mode)
    host.ctl("port add tcp 0.0.0.0:8091:80")
    try:
        own = host.start(["python3", "-c", V6_SERVER], stdout=-1)
        assert own.stdout is not None and own.stdout.readline() == "ready\n"
        with socket_to(host, ("::1", 8091)) as client:
            assert client.recv(10) == b"own"
        assert exchange(host, "tcp", HOST, 8091)[1:] == (HOST, 8091)
    finally:
        host.ctl("port rm tcp 0.0.0.0:8091:80")


V6_SERVER = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
server.bind(("::", 8091))
server.listen()
print("ready", flush=True)
connection, _ = server.accept()
connection.sendall(b"own")
"""


def socket_to(host: Host, peer: tuple[str, int]) -> socket.socket:
    client = opened(host, socket.SOCK_STREAM, socket.AF_INET6 if ":" in peer[0] else socket.AF_INET)
    client.connect(peer)
    return client
