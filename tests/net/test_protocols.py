# SPDX-License-Identifier: Apache-2.0
"""S22, as far as IPv4 through published ports, hairpin and masquerading goes: ordinary protocols survive."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datapath.kernel.netns import enter
from tests.bpf import packets as pk
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, Host, eventually, reaches
from tests.net.wire import (
    Container,
    Place,
    call,
    counters,
    device_mac,
    opened,
    rises,
    serving,
    start_container,
    taps,
)


class Topology(NamedTuple):
    host: Host
    web: Container  # publishes 8081:80 (both protocols) and 5201:5201
    client: Container


@pytest.fixture(scope="module")
def topology(shared_host: Host) -> Iterator[Topology]:
    host = shared_host
    web = start_container(host, "web", "-p 8081:80 -p 8081:80/udp -p 5201:5201 -p 5201:5201/udp")
    yield Topology(host, web, start_container(host, "client"))
    host.ctl("rm -f web client")


class Way(NamedTuple):
    """How a client reaches a server: through a published port, or out by masquerading."""

    client: Place
    server: Place
    address: str
    port: int
    listen: int
    name: str = ""


WAYS = ("published", "masquerade", "hairpin", "own host", "direct")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, topology: Topology) -> Way:
    host = topology.host
    return {
        "published": Way(host.outside, topology.web, HOST, 8081, 80),
        "masquerade": Way(topology.client, host.outside, OUTSIDE, 8081, 8081),
        "hairpin": Way(topology.web, topology.web, HOST, 8081, 80),
        "own host": Way(host, topology.web, "127.0.0.1", 8081, 80),
        "direct": Way(topology.client, topology.web, topology.web.ip, 80, 80),
    }[request.param]._replace(name=request.param)


def connected(way: Way) -> tuple[socket.socket, socket.socket]:
    """Client's and server's end of a TCP connection."""
    with opened(way.server) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", way.listen))
        listener.listen()
        client = opened(way.client)
        client.connect((way.address, way.port))
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(PATIENCE)
    return client, server


def test_s22_one_side_may_close_its_half_and_hear_on(way: Way) -> None:
    client, server = connected(way)
    with client, server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(100) == b"question" and server.recv(100) == b""
        for number in range(5):
            server.sendall(b"answer %d" % number)
            assert client.recv(100) == b"answer %d" % number
            time.sleep(0.02)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""


def test_s22_urgent_data_arrives_as_such(way: Way) -> None:
    client, server = connected(way)
    with client, server:
        client.send(b"ordinary")
        client.send(b"!", socket.MSG_OOB)
        client.send(b"more")
        assert server.recv(100) == b"ordinary"
        with eventually() as until:
            until(lambda: _urgent(server) == b"!")
        assert server.recv(100) == b"more"


def _urgent(end: socket.socket) -> bytes:
    try:
        return end.recv(1, socket.MSG_OOB)
    except OSError:
        return b""


def test_s22_a_reset_is_heard_on_the_other_side(way: Way) -> None:
    client, server = connected(way)
    with client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_s22_a_client_may_use_its_port_again_at_once(way: Way) -> None:
    """After both sides have closed, and after a reset: each is a new connection to the server."""
    port = 5110 + WAYS.index(way.name)  # the hairpin's and the host's own are the same to the server
    with serving(way.server, "tcp", way.listen) as server:
        for number in range(6):
            with opened(way.client) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.bind(("0.0.0.0", port))
                client.connect((way.address, way.port))
                assert client.recv(100)
                if not number % 2:
                    assert client.recv(100) == b""
        assert len(server.peers) == 6


def test_s22_a_simultaneous_open_through_masquerading_connects(topology: Topology) -> None:
    """Both ends send SYN before either hears the other's (RFC 9293, 3.5)."""
    outside = topology.host.outside
    with opened(topology.client) as a, opened(outside) as b:
        a.bind(("0.0.0.0", 5101))
        b.bind((OUTSIDE, 5102))
        # The container's SYN is lost at its end: it only makes the hole that the other's comes in through.
        outside.sh("nft add table ip lost")
        try:
            outside.sh("nft add chain ip lost input { type filter hook input priority 0 ; }")
            outside.sh("nft add rule ip lost input tcp dport 5102 drop")
            thread = threading.Thread(target=_connect, args=(a, (OUTSIDE, 5102)))
            thread.start()
            with eventually() as until:
                until(lambda: "5102" in topology.client.sh("ss -Htn state syn-sent"))
        finally:
            outside.sh("nft delete table ip lost")
        _connect(b, (HOST, 5101))
        thread.join()
        a.sendall(b"from a")
        b.sendall(b"from b")
        assert (a.recv(10), b.recv(10)) == (b"from b", b"from a")


def _connect(client: socket.socket, target: tuple[str, int]) -> None:
    client.settimeout(PATIENCE)
    client.connect(target)


def test_s22_udp_with_checksum_zero_stays_so_and_arrives(topology: Topology) -> None:
    """Zero means that there is none (RFC 768): a translation must not invent one that is wrong."""
    host = topology.host
    with taps((host.outside, "eth0"), topology.web, topology.client) as (outside, web, client):
        text = b"no checksum"
        packet = pk.ipv4(OUTSIDE, HOST, pk.udp(5103, 8081, text, summed=False))
        outside.send(
            pk.ethernet(device_mac(host, "eth0"), device_mac(host.outside, "eth0"), pk.ETH_IPV4, packet)
        )
        (frame,) = [f for f in web.wait_for(lambda f: text in f) if text in f]
        assert frame[34 + 6 : 34 + 8] == b"\0\0"
        packet = pk.ipv4(topology.client.ip, OUTSIDE, pk.udp(5104, 7600, text, summed=False))
        client.send(pk.ethernet(device_mac(host, "dp0"), topology.client.mac, pk.ETH_IPV4, packet))
        sent = [f for f in outside.wait_for(lambda f: text in f and f[23] == pk.UDP) if f[23] == pk.UDP]
        (frame,) = [f for f in sent if text in f]
        assert frame[34 + 6 : 34 + 8] == b"\0\0"
    with opened(topology.web, socket.SOCK_DGRAM) as server, opened(host.outside, socket.SOCK_DGRAM) as asker:
        server.bind(("0.0.0.0", 80))
        asker.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        asker.sendto(text, (HOST, 8081))
        data, peer = server.recvfrom(100)
        server.setsockopt(socket.SOL_SOCKET, 11, 1)
        server.sendto(data, peer)
        assert asker.recv(100) == text


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1471, 1472])
def test_s22_udp_of_every_size_up_to_the_mtu_arrives_whole(way: Way, size: int) -> None:
    text = bytes(range(256)) * 6
    with opened(way.server, socket.SOCK_DGRAM) as server, opened(way.client, socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", way.listen))
        client.connect((way.address, way.port))
        client.send(text[:size])
        data, peer = server.recvfrom(2000)
        server.sendto(data[::-1], peer)
        assert client.recv(2000) == text[:size][::-1]


def test_s22_fragments_between_members_and_with_the_host_arrive(topology: Topology) -> None:
    for address, place in ((topology.web.ip, topology.client), (topology.web.ip, topology.host)):
        assert reaches(lambda c, p=place: p.try_(f"{c} -s 20000"), address)  # type: ignore[misc]
        with opened(topology.web, socket.SOCK_DGRAM) as server, opened(place, socket.SOCK_DGRAM) as client:
            server.bind(("0.0.0.0", 7601))
            client.connect((address, 7601))
            client.send(bytes(60000))
            assert len(server.recv(65535)) == 60000


@pytest.mark.parametrize("which", ["published", "masquerade"])
def test_s22_fragments_arrive_through_translation(topology: Topology, which: str) -> None:
    published = which == "published"
    client_at, server_at = (
        (topology.host.outside, topology.web) if published else (topology.client, topology.host.outside)
    )
    with opened(server_at, socket.SOCK_DGRAM) as server, opened(client_at, socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 80))
        client.connect((HOST, 8081) if published else (OUTSIDE, 80))
        client.send(bytes(5000))
        assert len(server.recv(65535)) == 5000


def test_s22_many_short_connections_both_ways_without_one_failing(topology: Topology) -> None:
    """2,000 HTTP requests, a connection each, through a published port, and 2,000 out by masquerading."""
    for way in (
        Way(topology.host.outside, topology.web, HOST, 8081, 80),
        Way(topology.client, topology.host.outside, OUTSIDE, 7602, 7602),
    ):
        before = counters(topology.host)
        with serving(way.server, "tcp", way.listen) as server:
            failed: list[BaseException] = []

            def many(way: Way = way, failed: list[BaseException] = failed) -> None:
                try:
                    for _ in range(1000):
                        call(way.client, "tcp", way.address, way.port)
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=many) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed and len(server.peers) == 2000
        assert rises(before, counters(topology.host)) == {}


def test_s22_every_connection_is_confirmed(topology: Topology) -> None:
    """Only a confirmed connection is safe from a flood of half-open ones."""
    before = counters(topology.host)
    with serving(topology.web, "tcp", 80):
        for _ in range(3000):
            call(topology.host.outside, "tcp", HOST, 8081)
    assert rises(before, counters(topology.host)) == {}


HTTP = """
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("which", ["published", "masquerade"])
def test_s22_curl_fetches_200_mb_unharmed(topology: Topology, which: str, tmp_path: Path) -> None:
    published = which == "published"
    block = hashlib.sha256(b"seed").digest() * 32768
    whole = hashlib.sha256()
    with (tmp_path / "big").open("wb") as file:
        for number in range(200):
            part = number.to_bytes(4, "big") + block[4 : 1 << 20]
            file.write(part)
            whole.update(part)
    server = topology.web if published else topology.host.outside
    port = 80 if published else 7603
    argv = [sys.executable, "-c", HTTP, str(port)]
    process = topology.host.outside.start(["nsenter", f"--net={server.path}", *argv], cwd=tmp_path)
    try:
        client = topology.host.outside if published else topology.client
        url = f"http://{HOST}:8081/big" if published else f"http://{OUTSIDE}:{port}/big"
        fetch = f"curl -sS --retry 20 --retry-delay 0 --retry-connrefused --max-time 100 {url} | sha256sum"
        assert client.sh(["sh", "-c", fetch]).split()[0] == whole.hexdigest()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("which", ["published", "masquerade"])
@pytest.mark.parametrize("more", ["", "-R", "-u -b 50M"], ids=["up", "down", "udp"])
def test_s22_iperf3_runs_in_every_direction(topology: Topology, which: str, more: str) -> None:
    published = which == "published"
    server, client = (
        (topology.web, topology.host.outside) if published else (topology.host.outside, topology.client)
    )
    process = topology.host.outside.start(["nsenter", f"--net={server.path}", "iperf3", "-s", "-1"])
    try:
        with eventually() as until:
            until(
                lambda: (
                    ":5201" in topology.host.outside.sh(["nsenter", f"--net={server.path}", "ss", "-Htln"])
                )
            )
        address = HOST if published else OUTSIDE
        before = _without_room(server)
        report = json.loads(client.sh(f"iperf3 -J -t 1 -c {address} {more}"))
        if "-u" in more:
            assert report["end"]["sum"]["packets"] > 100
            assert report["end"]["sum"]["lost_packets"] <= _without_room(server) - before
        else:
            assert report["end"]["sum_received"]["bytes"] > 1_000_000
            assert report["end"]["sum_sent"]["bytes"] >= report["end"]["sum_received"]["bytes"]
    finally:
        process.kill()
        process.wait()


def _without_room(place: Place) -> int:
    """Datagrams that arrived, and whose receiver was not quick enough."""
    with enter(place.path):
        names, numbers = (
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line[:4] == "Udp:"
        )
    return int(numbers[names.index("RcvbufErrors")])


def test_s22_a_connection_that_is_long_idle_goes_on(way: Way) -> None:
    """Seconds only; what time-outs do to it is for a clock that is not the wall's."""
    client, server = connected(way)
    with client, server:
        client.sendall(b"before")
        assert server.recv(10) == b"before"
        time.sleep(1)
        server.sendall(b"after")
        assert client.recv(10) == b"after"


def test_s22_segments_keep_their_sizes_under_offload(topology: Topology) -> None:
    """Large sends cross the container's and the host's device as one packet, and leave none of it behind:
    checksums are right where nothing offloads them."""
    outside = topology.host.outside
    outside.sh("ethtool -K eth0 tx off rx off gro off gso off tso off")
    topology.host.sh("ethtool -K eth0 tx off gso off tso off gro off")
    try:
        for client_at, server_at, address, port, listen in (
            (outside, topology.web, HOST, 8081, 80),
            (topology.client, outside, OUTSIDE, 7604, 7604),
        ):
            client, server = connected(Way(client_at, server_at, address, port, listen))
            text = bytes(range(256)) * 4000
            for one, two in ((client, server), (server, client)):
                sender = threading.Thread(target=one.sendall, args=(text,))
                sender.start()
                got = b""
                while len(got) < len(text):
                    got += two.recv(1 << 20)
                sender.join()
                assert got == text
            client.close()
            server.close()
    finally:
        outside.sh("ethtool -K eth0 tx on rx on gro on gso on tso on")
        topology.host.sh("ethtool -K eth0 tx on gso on tso on gro on")
