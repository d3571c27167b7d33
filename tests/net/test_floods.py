# SPDX-License-Identifier: Apache-2.0
"""Floods, full tables and removed endpoints: what is established stays, what is new still works, and nobody
starves the others. DATAPATH_LONG=1: 100,000 connections under a million packets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, Host, eventually
from tests.net.wire import (
    Answer,
    Container,
    Place,
    call,
    carrying,
    counters,
    device_mac,
    opened,
    rises,
    serving,
    start_container,
    taps,
)
from tests.softirqs import settle

Maker = Callable[..., Host]

LONG = os.environ.get("DATAPATH_LONG") == "1"
CONNECTIONS = 100_000 if LONG else 5_000
FLOOD = 1_000_000 if LONG else 100_000
PER_PROCESS = 12_500  # connections: each has a file, of 20,000
CONNECTIONS_PROGRAM = Path(__file__).parent / "many_connections.py"
SOURCES = [OUTSIDE, *(f"192.0.2.{number}" for number in range(11, 15))]


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that floods."""
    program = tmp_path_factory.mktemp("flood") / "flood"
    source = Path(__file__).parent / "flood.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return program


@dataclass
class Flood:
    """From a place, through its eth0, to the host: everything is dropped or answered there."""

    program: Path
    place: Any
    mac: str  # of the next hop

    def argv(
        self, kind: str, ports: tuple[int, int], count: int, source: str = "random", to: str = HOST
    ) -> list[str]:
        numbers = [str(n) for n in (*ports, count)]
        return [str(self.program), "eth0", self.mac, kind, source, to, *numbers]

    def __call__(self, *what: Any, **more: Any) -> None:
        self.place.sh(self.argv(*what, **more))

    @contextmanager
    def going_on(self, *what: Any, **more: Any) -> Iterator[None]:
        argv = ["nsenter", f"--net={self.place.path}", *self.argv(*what, **more)]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            yield
            assert process.poll() is None, "the flood was too short"
        finally:
            process.kill()
            process.wait()


def from_outside(program: Path, host: Host) -> Flood:
    return Flood(program, host.outside, device_mac(host, "eth0"))


def from_container(program: Path, host: Host, sender: Container) -> Flood:
    device = host.sh(f"ip -o -4 address show to {sender.gateway}").split()[1]
    return Flood(program, sender, device_mac(host, device))


class Connections:
    """Established connections, held by processes of their own."""

    def __init__(self, place: Place, address: str, ports: list[int], each: int, sources: list[str]) -> None:
        base = ["nsenter", f"--net={place.path}", sys.executable, str(CONNECTIONS_PROGRAM), "hold", address]
        self.processes = [
            subprocess.Popen(
                [*base, str(port), str(each), *sources],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for port in ports
        ]
        self.size = self._numbers()

    def _numbers(self) -> int:
        return sum(int(process.stdout.readline()) for process in self.processes if process.stdout)

    def lost(self) -> int:
        """How many do not bring a byte there and back any more."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write("\n")
        return self._numbers()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def serve(port: int, count: int = 1) -> list[str]:
    return [sys.executable, str(CONNECTIONS_PROGRAM), "serve", str(port), str(count)]


def ready(place: Place, address: str, port: int) -> None:
    with eventually() as until:
        until(lambda: echoes(place, address, port))


def echoes(place: Place, address: str, port: int, seconds: float = PATIENCE) -> bool:
    """A new connection brings a byte there and back."""
    try:
        with opened(place) as client:
            client.settimeout(seconds)
            client.connect((address, port))
            client.sendall(b"!")
            return client.recv(1) == b"!"
    except OSError:
        return False


# ---- many connections ------------------------------------------------------------------------------------


@dataclass
class Topology:
    """`web` has the incoming connections, by ports 9000 to 9000 + `processes` - 1, and publishes 8081 and UDP
    8082, where nobody listens, and 8083, where somebody answers everything."""

    host: Host
    web: Container
    app: Container
    incoming: Connections  # from outside
    going: Connections  # from `app` to outside: masqueraded
    flood: Flood


@pytest.fixture(scope="module")
def topology(flood: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    processes = -(-CONNECTIONS // PER_PROCESS)
    last = 9000 + processes - 1
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        for source in SOURCES[1:]:
            host.outside.sh(f"ip address add {source}/24 dev eth0")
        ports = f"-p 9000-{last}:9000-{last} -p 8081:81 -p 8082:82/udp -p 8083:83/udp"
        web = start_container(host, "web", ports, serve(9000, processes))
        app = start_container(host, "app")
        stack.enter_context(serving(web, "udp", 83))
        host.outside.start(serve(7000))
        ready(host, web.ip, last)
        ready(host, OUTSIDE, 7000)
        began = time.monotonic()
        incoming = Connections(
            host.outside, HOST, list(range(9000, last + 1)), CONNECTIONS // processes, SOURCES
        )
        stack.callback(incoming.close)
        going = Connections(app, OUTSIDE, [7000], 1000, [])
        stack.callback(going.close)
        print(f"{incoming.size} connections in {time.monotonic() - began:.1f} s")
        assert (incoming.size, going.size) == (CONNECTIONS, 1000)
        assert (incoming.lost(), going.lost()) == (0, 0)
        yield Topology(host, web, app, incoming, going, from_outside(flood, host))


@pytest.mark.parametrize(
    ("kind", "ports"),
    [
        ("syn", (9000, 9000)),  # the incoming connections' own listening socket
        ("syn", (8081, 8081)),
        ("udp", (8082, 8082)),
        ("udp", (8083, 8083)),
        ("syn", (1, 65535)),
        ("udp", (1, 65535)),
    ],
    ids=["syn to the connections", "syn", "udp", "answered udp", "syn to all ports", "udp to all ports"],
)
def test_established_connections_survive_a_flood(
    topology: Topology, kind: str, ports: tuple[int, int]
) -> None:
    """From random addresses. The connections are idle meanwhile: one that speaks is new in every table."""
    before, began = counters(topology.host), time.monotonic()
    topology.flood(kind, ports, FLOOD)
    took, after = time.monotonic() - began, counters(topology.host)
    seen = sum(after[name] - before[name] for name in after) - after["UNCONFIRMED"] + before["UNCONFIRMED"]
    assert seen >= FLOOD * 0.9, "the flood did not arrive"
    lost = topology.incoming.lost(), topology.going.lost()
    print(f"{FLOOD} packets in {took:.1f} s, of {CONNECTIONS} connections lost {lost[0]}, of 1000 {lost[1]}")
    assert lost == (0, 0)
    assert echoes(topology.host.outside, HOST, 9000)
    assert echoes(topology.app, OUTSIDE, 7000)


def test_new_connections_work_during_a_flood(topology: Topology) -> None:
    """In both directions; to the very socket that is flooded."""
    before = counters(topology.host)
    with topology.flood.going_on("syn", (9000, 9000), 1 << 40), eventually() as until:
        until(lambda: sum(counters(topology.host).values()) > sum(before.values()) + 1000)
        for _ in range(20):
            assert echoes(topology.host.outside, HOST, 9000)
            assert echoes(topology.app, OUTSIDE, 7000)
    assert (topology.incoming.lost(), topology.going.lost()) == (0, 0)


def test_a_container_that_opens_without_end_disturbs_no_other(topology: Topology, flood: Path) -> None:
    greedy = start_container(topology.host, "greedy")
    try:
        sender = from_container(flood, topology.host, greedy)
        for kind in ("udp", "syn"):
            before = counters(topology.host)
            with (
                sender.going_on(kind, (20000, 40000), 1 << 40, source=greedy.ip, to=OUTSIDE),
                eventually() as until,
            ):
                until(lambda b=before: "DROP_LIMIT" in rises(b, counters(topology.host)))  # type: ignore[misc]
                for _ in range(20):
                    assert echoes(topology.app, OUTSIDE, 7000)
                    assert echoes(topology.host.outside, HOST, 9000)
        assert (topology.incoming.lost(), topology.going.lost()) == (0, 0)
    finally:
        topology.host.ctl("rm -f greedy")


# ---- limits ----------------------------------------------------------------------------------------------


def test_a_container_with_all_its_connections_leaves_the_others_theirs(make_host: Maker) -> None:
    """Connections of it that are answered, not only openings: as many as it may have, and more."""
    host = make_host(config={"datapath": {"max-connections": 1000, "max-connections-per-container": 400}})
    greedy, modest = start_container(host, "greedy"), start_container(host, "modest")
    host.outside.start(serve(7000))
    ready(host, OUTSIDE, 7000)
    with ExitStack() as stack:
        first = Connections(modest, OUTSIDE, [7000], 300, [])
        stack.callback(first.close)
        before = counters(host)
        hog = Connections(greedy, OUTSIDE, [7000], 400, [])
        stack.callback(hog.close)
        assert (hog.size, hog.lost()) == (400, 0)
        assert not echoes(greedy, OUTSIDE, 7000, 0.5)
        assert rises(before, counters(host)).keys() == {"DROP_LIMIT"}
        second = Connections(modest, OUTSIDE, [7000], 50, [])
        stack.callback(second.close)
        assert (first.lost(), second.lost(), hog.lost()) == (0, 0, 0)


def test_with_a_full_table_new_connections_work_and_established_ones_stay(make_host: Maker) -> None:
    host = make_host(
        config={"datapath": {"max-connections": 200, "max-pending": 2000, "timeouts": {"closing": 1}}}
    )
    web, app = start_container(host, "web", "-p 9000:9000", serve(9000)), start_container(host, "app")
    host.outside.start(serve(7000))
    ready(host, web.ip, 9000)
    ready(host, OUTSIDE, 7000)
    with ExitStack() as stack:
        first = Connections(host.outside, HOST, [9000], 195, [])
        stack.callback(first.close)
        more = Connections(host.outside, HOST, [9000], 300, [])
        stack.callback(more.close)
        going = Connections(app, OUTSIDE, [7000], 300, [])
        stack.callback(going.close)
        assert (first.size, more.size, going.size) == (195, 300, 300)
        assert counters(host)["UNCONFIRMED"] > 0
        for _ in range(20):
            assert echoes(host.outside, HOST, 9000)
            assert echoes(app, OUTSIDE, 7000)
        assert (first.lost(), more.lost(), going.lost()) == (0, 0, 0)
        more.close()
        going.close()
        first.close()
    with eventually() as until:  # the closing time-out, and there is room again
        until(lambda: all(row["Confirmed"] is False for row in json_rows(host)))
    before = counters(host)["UNCONFIRMED"]
    assert echoes(host.outside, HOST, 9000)
    assert counters(host)["UNCONFIRMED"] == before


def json_rows(host: Host, words: str = "") -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.ctl(f"ct ls {words} --format json").splitlines()]


def test_with_no_room_for_openings_new_connections_work(make_host: Maker, flood: Path) -> None:
    """`pending` is full of what was answered and cannot be confirmed: a new pair must not push itself out."""
    tuning = {"max-connections-per-container": 1000, "max-pending": 2000}
    host = make_host(config={"datapath": tuning})
    web = start_container(host, "web", "-p 9000:9000 -p 8083:83/udp", serve(9000))
    ready(host, web.ip, 9000)
    with serving(web, "udp", 83), ExitStack() as stack:
        before = counters(host)
        from_outside(flood, host)("udp", (8083, 8083), 50_000)
        after = counters(host)
        assert after["UNCONFIRMED"] > before["UNCONFIRMED"]
        assert after["NOT_OURS"] - before["NOT_OURS"] < 15, "the host's stack would refuse them"
        incoming = Connections(host.outside, HOST, [9000], 1000, [])
        stack.callback(incoming.close)
        assert (incoming.size, incoming.lost()) == (1000, 0)


@pytest.mark.parametrize(
    "flags", [pk.SYN | pk.ACK, pk.RST, pk.RST | pk.ACK], ids=["syn-ack", "rst", "rst-ack"]
)
def test_answers_that_nobody_asked_for_open_nothing(make_host: Maker, flags: int) -> None:
    """As when a server repeats its answers to a flood, whose openings are forgotten: they would count as its own
    openings, and leave from a port that nobody has spoken to."""
    host = make_host()
    web = start_container(host, "web")
    gateway = from_container(Path(), host, web).mac
    packet = pk.ipv4(web.ip, OUTSIDE, pk.tcp(80, 40000, flags))
    frame = pk.ethernet(gateway, web.mac, pk.ETH_IPV4, packet)
    with taps(web, host.outside) as (sender, receiver):
        before = counters(host)
        sender.send(frame)
        settle()
        assert rises(before, counters(host)) == {"DROP_NO_CONN": 1}
        assert [f for f in receiver.frames() if f[12:14] == b"\x08\x00"] == []
    assert json_rows(host) == []


def answered(place: Place) -> Answer:
    """Over UDP, asked as a resolver asks: the flood fills the device's ring, before there is any program."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            return call(place, "udp", HOST, 9000, seconds=2)
    return call(place, "udp", HOST, 9000, seconds=2)


@pytest.mark.parametrize("kind", ["syn", "udp"])
def test_xdp_stops_one_source_that_floods_and_no_other(make_host: Maker, flood: Path, kind: str) -> None:
    host = make_host(config={"datapath": {"flood-limit": {"rate": 100, "burst": 200}}})
    web = start_container(host, "web", "-p 9000:9000 -p 9000:9000/udp", serve(9000))
    assert '"xdp"' in host.sh("ip -j link show eth0")
    ready(host, web.ip, 9000)
    host.outside.sh("ip address add 192.0.2.66/24 dev eth0")
    host.outside.sh("ethtool -K eth0 tx off")  # XDP sees what a wire would carry
    sender = from_outside(flood, host)
    with ExitStack() as stack:
        stack.enter_context(serving(web, "udp", 9000))
        held = Connections(host.outside, HOST, [9000], 50, ["192.0.2.66"])
        stack.callback(held.close)
        before = counters(host)
        sender(kind, (9000, 9000), 20_000, source="192.0.2.66")
        dropped = rises(before, counters(host))
        assert dropped.keys() == {"DROP_FLOOD"}
        assert dropped["DROP_FLOOD"] > 15_000
        assert held.lost() == 0, "what the flooding source had established goes on"
        before = counters(host)
        with sender.going_on(kind, (9000, 9000), 1 << 40, source="192.0.2.66"):
            for _ in range(20):
                assert echoes(host.outside, HOST, 9000)
                assert answered(host.outside).seen == OUTSIDE
        assert {name for name in rises(before, counters(host)) if name.startswith("DROP_")} == {"DROP_FLOOD"}


# ---- endpoints that are gone -----------------------------------------------------------------------------


def test_the_next_holder_of_an_address_gets_none_of_the_packets_of_the_one_before(make_host: Maker) -> None:
    """Of TCP and UDP, of published ports and masquerading, while both ends go on sending."""
    host = make_host()
    host.ctl("network create --subnet 10.9.0.0/24 net")
    options = "--network net --ip 10.9.0.9"
    start_container(host, "old", f"{options} -p 9000:9000 -p 9001:9001/udp", serve(9000))
    old = Container(host, "old")
    host.outside.start(serve(7000))
    ready(host, old.ip, 9000)
    ready(host, OUTSIDE, 7000)
    with ExitStack() as stack:
        incoming = [stack.enter_context(opened(host.outside)) for _ in range(50)]
        for client in incoming:
            client.connect((HOST, 9000))
        going = Connections(old, OUTSIDE, [7000], 50, [])
        stack.callback(going.close)
        away = stack.enter_context(opened(host.outside, socket.SOCK_DGRAM))
        away.bind((OUTSIDE, 7001))
        with opened(old, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"?", (OUTSIDE, 7001))
            back = away.recvfrom(10)[1]
            away.sendto(b"!", back)
            assert asking.recv(10) == b"!"
        asked = stack.enter_context(opened(host.outside, socket.SOCK_DGRAM))
        with serving(old, "udp", 9001):
            asked.sendto(b"?", (HOST, 9001))
            assert asked.recv(100)
        assert len(json_rows(host)) >= 102
        host.ctl("rm -f old")
        assert json_rows(host) == []
        new = start_container(host, "new", options)
        assert (new.ip, new.mac) == (old.ip, old.mac)
        with taps(new) as (tap,):
            for client in incoming:
                with contextlib.suppress(OSError):  # told of the end
                    client.sendall(b"for the old one")
            asked.sendto(b"for the old one", (HOST, 9001))
            away.sendto(b"for the old one", back)
            time.sleep(1)  # servers and clients repeat what was not acknowledged
            strangers = [frame for frame in tap.frames() if frame[12:14] == b"\x08\x00"]
        assert carrying(strangers, pk.packed(OUTSIDE)) == []
        assert echoes(new, OUTSIDE, 7000)
