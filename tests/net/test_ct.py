# SPDX-License-Identifier: Apache-2.0
"""ct ls, flush and stats; the quotas of containers; and how long all of it takes with many connections."""

from __future__ import annotations

import json
import math
import re
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from tests.net.hosts import DATAPATHCTL, HOST, OUTSIDE, PATIENCE, SLOWNESS, Host, eventually
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import KINDS, QUIET, Container, call, counters, opened, rises, serving, start_container

Maker = Callable[..., Host]


@dataclass
class Topology:
    host: Host
    web: Container
    app: Container

    def ls(self, words: str = "") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.host.ctl(f"ct ls {words} --format json").splitlines()]

    def flush(self, words: str = "") -> int:
        return int(self.host.ctl(f"ct flush {words}"))

    def usage(self, name: str) -> tuple[int, int]:
        """(connections, openings) of a container."""
        for line in self.host.ctl("ct stats --format json").splitlines():
            row = json.loads(line)
            if row.get("Container") == name:
                return row["Connections"], row["Openings"]
        return 0, 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        plug_ipv6(host)
        host.ctl("network create --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 net")
        yield Topology(
            host,
            start_container(host, "web", "--network net -p 8081:80 -p 8081:80/udp"),
            start_container(host, "app", "--network net"),
        )


@pytest.fixture
def topology(shared: Topology) -> Topology:
    """Without connections."""
    shared.flush()
    return shared


@contextmanager
def talking(
    client: Any, server: Any, asked: str, port: int, at: int, source: str = "", sport: int = 0
) -> Iterator[int]:
    """A TCP connection that both sides have used; its client port."""
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with opened(server, family=family) as listening, opened(client, family=family) as ours:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", at))
        listening.listen()
        if source:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind((source, sport))
        if sport:  # nothing of it is to be in the way of the next one, who has the same
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.connect((asked, port))
        with listening.accept()[0] as theirs:
            ours.sendall(b"a")
            assert theirs.recv(1) == b"a"
            theirs.sendall(b"b")
            assert ours.recv(1) == b"b"
            yield int(ours.getsockname()[1])


def test_a_published_ports_connection_is_one_row(topology: Topology) -> None:
    began = time.monotonic()
    with talking(topology.host.outside, topology.web, HOST, 8081, 80) as port:
        (row,) = topology.ls()
    passed = math.ceil(time.monotonic() - began)  # seconds: more than none where the machine is busy
    assert 0 <= row.pop("Idle") <= passed
    assert all(row.pop(name) > 0 for name in ("Packets", "Bytes", "ReplyPackets", "ReplyBytes"))
    assert 24 * 3600 - passed <= row.pop("Expires") <= 24 * 3600
    assert row == {
        "Protocol": "tcp",
        "Source": f"{OUTSIDE}:{port}",
        "Destination": f"{HOST}:8081",
        "NatSource": f"{OUTSIDE}:{port}",
        "NatDestination": f"{topology.web.ip}:80",
        "State": "established",
        "Containers": "web",
        "Confirmed": True,
    }


def test_a_masqueraded_connection_is_one_row(topology: Topology) -> None:
    with talking(topology.app, topology.host.outside, OUTSIDE6, 7000, 7000) as port:
        (row,) = topology.ls()
    assert (row["Source"], row["Destination"]) == (f"[{topology.app.ip6}]:{port}", f"[{OUTSIDE6}]:7000")
    assert row["NatSource"].startswith(f"[{HOST6}]:")
    assert (row["NatDestination"], row["Containers"]) == (f"[{OUTSIDE6}]:7000", "app")


def test_a_table(topology: Topology) -> None:
    with talking(topology.app, topology.web, HOST, 8081, 80):
        head, line = topology.host.ctl("ct ls").splitlines()
    assert head.split("  ")[0] == "PROTO"
    assert re.search(r"  \d+s +(1d|23h59m) +app,web$", line)


def test_states(topology: Topology) -> None:
    def states() -> list[str]:
        return [row["State"] for row in topology.ls("--proto tcp")]

    with opened(topology.app) as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.connect(("192.0.2.99", 7000))  # nobody has that address
        assert states() == ["new"]
        assert topology.usage("app") == (0, 1)
    topology.flush()
    with talking(topology.app, topology.host.outside, OUTSIDE, 7000, 7000):
        assert states() == ["established"]
    with serving(topology.host.outside, "tcp", 7000):
        call(topology.app, "tcp", OUTSIDE, 7000)
    assert "closed" in states()
    (row, *_) = topology.ls("--state closed")
    assert 0 < row["Expires"] <= 10


def test_icmp_and_udp(topology: Topology) -> None:
    topology.app.sh(f"ping -n -q -c 1 -W 60 {OUTSIDE}")
    topology.app.sh(f"ping -6 -n -q -c 1 -W 60 {OUTSIDE6}")
    with serving(topology.host.outside, "udp", 7000):
        call(topology.app, "udp", OUTSIDE, 7000)
    assert sorted(row["Protocol"] for row in topology.ls()) == ["icmp", "icmpv6", "udp"]
    assert len(topology.ls("--proto icmpv6")) == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {"in", "out", "six", "between"}),
        ("--container web", {"in", "between"}),
        ("--container app", {"out", "six", "between"}),
        ("--proto tcp", {"in", "out", "six", "between"}),
        ("--proto udp", set()),
        (f"--src {OUTSIDE}", {"in"}),
        ("--src 10.8.0.0/24", {"out", "between"}),
        ("--src fd08::/16", {"six"}),
        ("--src ::/0", {"six"}),
        ("--src 0.0.0.0/0", {"in", "out", "between"}),
        (f"--dst {HOST}", {"in", "between"}),
        ("--dst 10.8.0.2", {"in", "between"}),
        (f"--dst {OUTSIDE} --container app", {"out"}),
        ("--state established", {"in", "out", "six", "between"}),
        ("--state closing", set()),
    ],
)
def test_filters(topology: Topology, words: str, found: set[str]) -> None:
    with (
        talking(topology.host.outside, topology.web, HOST, 8081, 80) as a,
        talking(topology.app, topology.host.outside, OUTSIDE, 7000, 7000) as b,
        talking(topology.app, topology.host.outside, OUTSIDE6, 7001, 7001) as c,
    ):
        names = {str(a): "in", str(b): "out", str(c): "six"}
        # The one listening socket of port 80 is taken: another port of the same server.
        topology.host.ctl("port add web 8082:81")
        try:
            with talking(topology.app, topology.web, HOST, 8082, 81) as d:
                names[str(d)] = "between"
                assert {names[row["Source"].rpartition(":")[2]] for row in topology.ls(words)} == found
                assert topology.flush(words) == len(found)
                assert topology.ls(words) == []
                assert len(topology.ls()) == 4 - len(found)
        finally:
            topology.host.ctl("port rm web 8082:81")


def test_flush_takes_both_halves_and_the_account(topology: Topology) -> None:
    with (
        talking(topology.app, topology.host.outside, OUTSIDE, 7000, 7000),
        talking(topology.app, topology.host.outside, OUTSIDE, 7001, 7001),
    ):
        assert topology.usage("app")[0] == 2
        assert topology.flush(f"--dst {OUTSIDE}") == 2
        assert topology.usage("app") == (0, 0)
        found = Dataplane.find(topology.host.bpffs / "datapath")
        assert found is not None
        with found:
            assert (found.conns.count(), found.pending.count()) == (0, 0)


def test_a_flushed_conversation_goes_on_as_a_new_one(topology: Topology) -> None:
    with serving(topology.host.outside, "udp", 7000), opened(topology.app, KINDS["udp"]) as client:
        client.connect((OUTSIDE, 7000))
        for _ in range(2):
            client.send(b"?")
            assert client.recv(100)
            assert topology.flush() == 1


def test_stats(topology: Topology) -> None:
    with talking(topology.app, topology.host.outside, OUTSIDE, 7000, 7000):
        rows = [json.loads(line) for line in topology.host.ctl("ct stats --format json").splitlines()]
        text = topology.host.ctl("ct stats")
    assert {"Kind": "state", "Table": "conns", "State": "established", "Connections": 1} in rows
    tables = {row["Map"]: (row["Used"], row["Max"]) for row in rows if "Map" in row}
    assert tables["conns"] == (2, 2 * 262144)
    assert any(row.get("Counter") == "DROP_CONN_TABLE" for row in rows)
    (app,) = [row for row in rows if row.get("Container") == "app"]
    assert app == {
        "Kind": "container",
        "Container": "app",
        "Connections": 1,
        "MaxConnections": 131072,
        "Openings": 0,
        "MaxOpenings": 16384,
    }
    assert re.search(r"app +1/131072 +0/16384", text)
    assert "TABLE" in text and "CONTAINER" in text


def test_a_removed_endpoint_takes_its_connections_and_gives_them_back_to_its_peers(
    topology: Topology,
) -> None:
    gone = start_container(topology.host, "gone", "--network net -p 8083-8084:80-81")
    with talking(topology.app, gone, HOST, 8083, 80), talking(topology.host.outside, gone, HOST, 8084, 81):
        assert topology.usage("app")[0] == 1
        assert topology.usage("gone")[0] == 1
        topology.host.ctl("rm -f gone")
        assert topology.ls() == []
        with eventually() as until:  # by the conntrack GC
            until(lambda: topology.usage("app")[0] == 0)
    found = Dataplane.find(topology.host.bpffs / "datapath")
    assert found is not None
    with found:
        assert len(found.quotas) <= 2


def test_who_has_the_address_next_has_a_connection_of_its_own(topology: Topology) -> None:
    """With the same ports at both ends, at once: what a killed server has left is not continued, or in the way."""
    outside, ports = topology.host.outside, set()
    for _ in range(2):
        server = start_container(topology.host, "same", "--network net --ip 10.8.0.77 -p 8085:80")
        with talking(outside, server, HOST, 8085, 80, OUTSIDE, 40077) as port:
            ports.add(port)
            (row,) = topology.ls("--container same")
            assert row["State"] == "established"
            topology.host.ctl("rm -f same")
        assert topology.ls() == []
    assert ports == {40077}


def test_a_container_has_a_limit_and_the_others_have_theirs(make_host: Maker) -> None:
    limits = {"max-connections-per-container": 3, "max-openings-per-container": 4}
    host = make_host(config={"datapath": limits})
    greedy, modest = start_container(host, "greedy"), start_container(host, "modest")
    with ExitStack() as stack:
        listening = stack.enter_context(opened(host.outside))
        listening.bind(("0.0.0.0", 7000))
        listening.listen()

        def connect(place: Container, seconds: float = PATIENCE) -> bool:
            client = stack.enter_context(opened(place))
            client.settimeout(seconds)
            try:
                client.connect((OUTSIDE, 7000))
                peer = stack.enter_context(listening.accept()[0])
                client.sendall(b"x")
                return peer.recv(1) == b"x"
            except OSError:
                return False

        assert [connect(greedy) for _ in range(3)] == [True] * 3
        before = counters(host)
        assert not connect(greedy, QUIET)
        assert rises(before, counters(host)).keys() == {"DROP_LIMIT"}
        assert connect(modest)
        assert host.ctl("ct flush --container greedy") == "3"
        assert connect(greedy)


MANY = 100_000


def test_a_hundred_thousand_connections_are_listed_and_forgotten_at_once(make_host: Maker) -> None:
    host = make_host()
    host.run("web", "-p 8081:80")
    host.run("app")
    numbers = [endpoint_number(host, name) for name in ("web", "app")]
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        fill(found, numbers[0], numbers[1])
        assert found.conns.count() == 2 * MANY
        began = spent()
        lines = host.sh([DATAPATHCTL, "ct", "ls", "--format", "json"]).count("\n") + 1
        everything = spent() - began
        assert (lines, everything < 10 * SLOWNESS) == (MANY, True), everything
        began = spent()
        assert len(host.ctl("ct ls --src 10.1.0.0/24 --format json").splitlines()) == 256
        some = spent() - began
        host.ctl("ct stats")
        counted = spent() - began - some
        began = spent()
        host.ctl("rm -f app")
        removed = spent() - began
        print(f"ls {everything:.2f} s, filtered {some:.2f} s, stats {counted:.2f} s, rm {removed:.2f} s")
        assert max(some, counted, removed) < 3 * SLOWNESS
        assert host.ctl("ct ls --state established --format json").count("\n") + 1 == MANY // 2  # the other's
        assert int(host.ctl("ct flush --container web")) == MANY // 2
        assert host.ctl("ct ls --format json") == ""
        # What is left of the one that is gone would be the GC's, had packets made it.
        assert found.conns.count() == MANY


def spent() -> float:
    """Seconds of processor time of the commands that have ended: those of the clock depend on the neighbours."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def endpoint_number(host: Host, name: str) -> int:
    import sqlite3

    ident = host.inspect(name)["NetworkSettings"]["Networks"]["bridge"]["EndpointID"]
    with sqlite3.connect(host.folder / "state" / "datapath.db") as opened_:
        return int(opened_.execute("SELECT number FROM endpoints WHERE id = ?", (ident,)).fetchone()[0])


def fill(found: Dataplane, web: int, app: int) -> None:
    """Half of the connections go to `web`'s published port, half come from `app`."""
    for number in (web, app):  # whose quotas say that they never had one
        found.quotas[abi.quota_key(number)] = abi.quota(since=time.monotonic_ns())
    flag, state = abi.ConnFlag, int(abi.ConnState.CONN_ESTABLISHED)
    original = int(flag.CONN_ORIGINAL | flag.CONN_CONFIRMED)
    now = time.monotonic_ns()
    rows: dict[Any, Any] = {}
    host, server, client = IPv4Address(HOST), IPv4Address("172.17.0.2"), IPv4Address("172.17.0.3")
    for i in range(MANY):
        far = IPv4Address("10.1.0.0") + i % (MANY // 2)
        if i < MANY // 2:
            key = abi.tuple_(far, host, 40000, 8081, 6)
            other = abi.tuple_(server, far, 80, 40000, 6)
            forth = abi.conn(other=other, last_seen=now, to_network=1, to_endpoint=web)
            back = abi.conn(other=key, last_seen=now, from_endpoint=web)
        else:
            key = abi.tuple_(client, far, 40000, 443, 6)
            other = abi.tuple_(far, host, 443, 1024 + i % 20000, 6)
            forth = abi.conn(other=other, last_seen=now, from_endpoint=app)
            back = abi.conn(other=key, last_seen=now, to_network=1, to_endpoint=app)
        rows[key] = forth._replace(flags=original, state=state)
        rows[other] = back._replace(flags=int(flag.CONN_CONFIRMED), state=state)
    found.conns.update_many(rows)
