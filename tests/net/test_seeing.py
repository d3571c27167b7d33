# SPDX-License-Identifier: Apache-2.0
"""`datapathctl flows`: who talks to whom, exactly, whether anybody looks or not (SEE.md, V1 to V6)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from tests.net.calls import calls
from tests.net.hosts import DATAPATHCTL, HOST, OUTSIDE, TIMEOUT, Host
from tests.net.lan import HOST6, on_both_sides
from tests.net.wire import Container, Place, call, opened, serving, start_container

Maker = Callable[..., Host]
NETWORK = "network create --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 -o com.datapath.flows=true"
HEADERS = {4: 20 + 32, 6: 40 + 32}  # of a TCP segment with a time stamp
BOTH = pytest.mark.parametrize("family", [4, 6])
MEGABYTE = 1 << 20
COUNTED = ("Connections", "SentPackets", "Sent", "ReceivedPackets", "Received")


class Shop:
    """Two containers on a network with flows, and nothing counted."""

    def __init__(self, host: Host, options: str = "") -> None:
        self.host = host
        host.ctl(f"{NETWORK} {options} shop")
        self.app, self.db = (self.start(name) for name in ("app", "db"))

    def start(self, name: str, options: str = "") -> Container:
        return start_container(self.host, name, f"--network shop {options}")

    def flows(self, words: str = "") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.host.ctl(f"flows {words} --format json").splitlines()]

    def total(self, words: str) -> tuple[int, ...]:
        """Connections, packets and bytes sent, and received, of the one line that there is."""
        (line,) = self.flows(f"--totals {words}")
        return tuple(line[name] for name in COUNTED)

    def sums(self, words: str) -> tuple[int, ...]:
        """The same of all lines together."""
        lines = self.flows(f"--totals {words}")
        return tuple(sum(line[name] for line in lines) for name in COUNTED)


@pytest.fixture
def shop(emptied: Host) -> Shop:
    return Shop(emptied)


def address(container: Container, family: int) -> str:
    return container.ip if family == 4 else container.ip6


def sent(container: Container) -> tuple[int, int]:
    """Packets and bytes that its device has sent, as its kernel counts them."""
    packets, length = (
        int(container.sh(f"cat /sys/class/net/eth0/statistics/tx_{what}")) for what in ("packets", "bytes")
    )
    return packets, length


def grown(new: tuple[int, int], old: tuple[int, int]) -> tuple[int, int]:
    return new[0] - old[0], new[1] - old[1]


def introduce(*containers: Container) -> None:
    """They know each other's MACs for good: nobody asks in between."""
    for one in containers:
        for other in containers:
            for known in (other.ip, other.ip6) if other is not one else ():
                one.sh(f"ip neigh replace {known} lladdr {other.mac} dev eth0 nud permanent")


def stream(
    client: Place, server: Container, at: str, port: int, size: int, *, asked: tuple[str, int] | None = None
) -> None:
    """A connection on which the client sends so many bytes; both sides close it. `asked`: what it connects to, if not
    to the server's own address."""
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    with opened(server, family=family) as listening, opened(client, family=family) as ours:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((at, port))
        listening.listen()
        ours.connect(asked or (at, port))
        with listening.accept()[0] as theirs:

            def send() -> None:
                ours.sendall(bytes(size))
                ours.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            left = size
            while data := theirs.recv(1 << 20):
                left -= len(data)
            sender.join()
            assert left == 0
        assert ours.recv(1) == b""


def undisturbed(
    shop: Shop, words: str, act: Callable[[], object]
) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, int]]:
    """What an act has added to the total, and to what `app` and `db` have sent. Again where their kernels have said
    something of their own meanwhile: to which groups they listen, which is in no line."""

    def asides() -> list[str]:
        return [one.sh("nstat -asz Icmp6OutMsgs") for one in (shop.app, shop.db)]

    counted: tuple[int, ...] = (0,) * 5
    while True:
        said, before = asides(), (sent(shop.app), sent(shop.db))
        act()
        ours, theirs = map(grown, (sent(shop.app), sent(shop.db)), before)
        quiet, start = asides() == said, counted
        counted = shop.sums(f"--from app --to db {words}")
        if quiet:
            return tuple(now - was for now, was in zip(counted, start, strict=True)), ours, theirs


@BOTH
@pytest.mark.parametrize("gso", ["on", "off"])
def test_v1_ten_connections_are_counted_to_the_byte_as_the_devices_do(
    shop: Shop, family: int, gso: str
) -> None:
    """A large packet of TCP counts as what it is cut into: each segment has headers of its own."""
    app, db, at = shop.app, shop.db, address(shop.db, family)
    for one in (app, db):
        one.sh(f"ethtool -K eth0 tso {gso} gso {gso}")
    introduce(app, db)

    def streams() -> None:
        for _ in range(10):
            stream(app, db, at, 5432, MEGABYTE)

    (connections, packets, length, back, back_length), ours, theirs = undisturbed(
        shop, "--port 5432", streams
    )
    assert connections == 10
    more = packets - ours[0]  # segments that the device has not seen as such
    assert length == ours[1] - 14 * ours[0] + more * HEADERS[family]
    assert (back, back_length) == (theirs[0], theirs[1] - 14 * theirs[0])
    assert more > 0 if gso == "on" else more == 0


@BOTH
def test_v2_a_hundred_refused_connections_are_one_line_with_the_reason(emptied: Host, family: int) -> None:
    shop = Shop(emptied, "-o com.docker.network.bridge.enable_icc=false")
    introduce(shop.app, shop.db)
    for _ in range(100):
        with opened(shop.app, family=socket.AF_INET6 if family == 6 else socket.AF_INET) as one:
            one.setblocking(False)
            assert one.connect_ex((address(shop.db, family), 5432))
    (line,) = shop.flows("--verdict refused --protocol tcp")
    assert (line["From"], line["To"], line["Reason"]) == ("app", "db:5432", "DROP_ICC")
    assert line["Connections"] == line["SentPackets"] >= 100  # some are sent again meanwhile
    assert not shop.flows("--verdict allowed --protocol tcp")


# So many connections through a table of so many rows. DATAPATH_LONG=1: as many as SEE.md has, V3.
MANY = [(640, 64), *([(200_000, 1024)] if os.environ.get("DATAPATH_LONG") else [])]
# At each of eight ports, so that there are more pairs of ports than connections.
ANSWER = """
import select, socket
poll = select.epoll()
listening = [socket.create_server(("", port), backlog=4096) for port in range(81, 89)]
by_number = {one.fileno(): one for one in listening}
for one in listening:
    poll.register(one, select.EPOLLIN)
print("ready", flush=True)
while True:
    for number, _ in poll.poll():
        by_number[number].accept()[0].close()
"""
ASK = """
import socket, sys
for i in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 81 + i % 8)) as one:
        assert not one.recv(1)
"""


@pytest.mark.parametrize("connections, rows", MANY)
def test_v3_short_connections_through_a_small_table_are_all_counted_while_nobody_looks(
    make_host: Maker, connections: int, rows: int
) -> None:
    """Many times as many as there are rows; their bytes are those of the devices."""
    shop = Shop(make_host(config={"datapath": {"max-flows": rows, "timeouts": {"closing": 1}}}))
    introduce(shop.app, shop.db)
    shop.app.sh("sysctl -q -w net.ipv4.ip_local_port_range='1024 65535'")
    inside = ["nsenter", "-t", str(shop.db.pid), "--net", "python3", "-c", ANSWER]
    server = shop.host.start(inside, stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    ask = ["python3", "-c", ASK, shop.db.ip, str(connections)]
    counted, ours, theirs = undisturbed(
        shop, "--protocol tcp", lambda: shop.app.sh(ask, timeout=TIMEOUT * 30)
    )
    assert counted[0] == connections
    assert counted[1:3] == (ours[0], ours[1] - 14 * ours[0])
    assert counted[3:] == (theirs[0], theirs[1] - 14 * theirs[0])


@BOTH
def test_v4_each_kind_is_one_line_of_who_has_begun_it(shop: Shop, family: int) -> None:
    app, db, host = shop.app, shop.db, shop.host
    at = address(db, family)
    with serving(db, "udp", 53, at), serving(db, "tcp", 80, at):
        call(app, "udp", at, 53)
        call(host, "tcp", at, 80)
    app.sh(f"ping -c 3 -i 0.2 {at}")
    app.sh(f"ping -c 2 -i 0.2 -s 4000 {at}")  # in fragments, which have no identifier
    lines = {(line["From"], line["To"], line["Protocol"]): line for line in shop.flows("--totals")}
    icmp = "icmp" if family == 4 else "icmpv6"
    found = {key: line for key, line in lines.items() if key[2] != "icmpv6" or "host" not in key}
    assert set(found) == {
        ("app", "db:53", "udp"),
        ("host", "db:80", "tcp"),
        ("app", "db", icmp),
    }
    assert all(line["Verdict"] == "allowed" for line in lines.values())
    assert (found["app", "db:53", "udp"]["Connections"], found["host", "db:80", "tcp"]["Connections"]) == (
        1,
        1,
    )
    pings = found["app", "db", icmp]
    assert pings["SentPackets"] == pings["ReceivedPackets"] == 3 + 2 * 3
    assert pings["Sent"] == pings["Received"]
    assert [line["To"] for line in shop.flows("--between db app --protocol udp")] == ["db:53"]
    assert not shop.flows("--between db app --port 54") and not shop.flows("--to app --protocol udp")


def test_v6_an_old_line_keeps_its_name_when_its_address_is_anothers(shop: Shop) -> None:
    at = shop.db.ip
    with serving(shop.db, "tcp", 80):
        call(shop.app, "tcp", at, 80)
    old = shop.total("--to db")
    shop.host.ctl("rename db old-db")
    assert [line["To"] for line in shop.flows("--port 80")] == ["old-db:80"]
    shop.host.ctl("rm -f old-db")
    new = shop.start("new", f"--ip {at}")
    with serving(new, "tcp", 80):
        call(shop.app, "tcp", at, 80)
        call(shop.app, "tcp", at, 80)
    assert shop.total("--to old-db") == old
    assert shop.total("--to new")[0] == 2


def test_totals_go_with_their_network(shop: Shop) -> None:
    with serving(shop.db, "tcp", 80):
        call(shop.app, "tcp", shop.db.ip, 80)
    shop.host.ctl("rm -f app db")
    assert shop.total("--to db")[0] == 1
    shop.host.ctl("network rm shop")
    shop.host.ctl("network create -o com.datapath.flows=true again")
    assert shop.flows() == []
    shop.host.ctl("doctor")


def test_rows_of_a_network_that_is_gone_are_found_and_taken_away(shop: Shop) -> None:
    """A packet that was at work while its network went may have left one: the next network could get its number."""
    with serving(shop.db, "tcp", 80):
        call(shop.app, "tcp", shop.db.ip, 80)
    before = shop.total("--from app")
    with Dataplane.find(shop.host.bpffs / "datapath") as found:  # type: ignore[union-attr]
        found.edges[abi.edge_id(4000, 1, 2, 0, 80, 6)] = abi.edge(1, 1, 60)
        found.flows[abi.flow_id(IPv4Address("10.8.0.1"), IPv4Address("10.8.0.2"), 1, 2, 6, 4000)] = abi.flow()
        done = shop.host.try_ctl("doctor")
        said = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
        assert (done.returncode, said) == (
            20,
            [f"map {name}, 4000: there is a row that nobody needs: 1" for name in ("flows", "edges")],
        )
        shop.host.ctl("reconcile")
        assert {key.network for rows in (found.flows, found.edges) for key in rows} == {
            next(iter(found.networks.used()))
        }
    assert shop.total("--from app") == before
    assert shop.host.ctl("doctor") == "No problems found."


def test_a_network_without_flows_counts_nothing_and_flows_says_so(emptied: Host) -> None:
    host = emptied
    host.ctl("network create plain")
    app, db = (start_container(host, name, "--network plain") for name in ("app", "db"))
    with serving(db, "tcp", 80):
        call(app, "tcp", db.ip, 80)
    done = host.try_ctl("flows")
    assert (done.returncode, done.stderr) == (0, "no network has the option com.datapath.flows=true\n")
    columns = done.stdout.split()
    assert columns == ["AGE", "FROM", "TO", "PROTO", "VERDICT", "CONNS", "SENT", "RECEIVED", "STATE", "BY"]


def quiet(shop: Shop, words: str = "") -> dict[tuple[str, str, str], tuple[int, int, int]]:
    """(from, to, protocol) -> connections, packets sent, and received, of all totals but those of neighbours."""
    return {
        (line["From"], line["To"], line["Protocol"]): (
            line["Connections"],
            line["SentPackets"],
            line["ReceivedPackets"],
        )
        for line in shop.flows(f"--totals {words}")
        if line["Verdict"] == "allowed" and line["Protocol"] != "icmpv6"
    }


def test_v4_what_is_translated_is_one_line_each_of_who_has_begun_it(shop: Shop) -> None:
    """A service of the same network, a published port asked from everywhere, and the way out: each is counted once."""
    shop.host.ctl("service create --network shop --vip 10.8.0.99 front")
    web = shop.start("web", "--service front -p 8080:80")
    with serving(web, "tcp", 80), serving(shop.host.outside, "udp", 53):
        call(shop.app, "tcp", "10.8.0.99", 80)
        for place in (shop.app, shop.host.outside, shop.host):
            call(place, "tcp", HOST, 8080)
        call(shop.host, "tcp", "127.0.0.1", 8080)
        call(shop.app, "udp", OUTSIDE, 53)
        shop.app.sh(f"ping -c 3 -i 0.2 {OUTSIDE}")
    found = quiet(shop)
    assert {key: counted[0] for key, counted in found.items()} == {
        ("app", "web:80", "tcp"): 2,
        ("outside", "web:80", "tcp"): 1,
        ("host", "web:80", "tcp"): 2,
        ("app", "outside:53", "udp"): 1,
        ("app", "outside", "icmp"): 1,
    }
    assert found["app", "outside", "icmp"] == (1, 3, 3)
    assert found["app", "outside:53", "udp"] == (1, 1, 1)
    # Lines are of what goes on and of what has ended: together they are the totals.
    lines = shop.flows("--verdict allowed --from app --protocol tcp")
    assert sum(line["Connections"] for line in lines) == 2
    assert {line["Published"] for line in lines if line["State"]} == {":8080", "front:80"}
    shop.host.ctl("rm -f web")
    shop.host.ctl("service rm front")


def test_a_line_of_a_published_port_says_who_asks_and_what_was_asked(shop: Shop) -> None:
    web, outside = shop.start("web", "-p 8080:80"), shop.host.outside
    with opened(web) as listening, opened(outside) as ours:
        listening.bind((web.ip, 80))
        listening.listen()
        ours.connect((HOST, 8080))
        with listening.accept()[0]:
            (line,) = shop.flows("--to web --last 1")
            address, port = ours.getsockname()
            assert (line["From"], line["To"]) == (f"{address}:{port}", "web:80 (:8080)")
            assert (line["Source"], line["State"], line["Connections"]) == ("outside", "established", 1)
            assert (line["SentPackets"], line["ReceivedPackets"]) == (2, 1)
            assert len(shop.flows("--to web")) == 1
            shop.host.ctl("ct flush --container web")
            (line,) = shop.flows("--to web")
            assert (line["From"], line["State"], line["SentPackets"]) == ("outside", "", 2)


def heard(container: Container, family: int) -> tuple[int, ...]:
    """IP packets and bytes that its kernel has got, and sent; and what it has said of its own."""
    six = "6" if family == 6 else ""
    names = [
        f"Ip{six}InReceives",
        f"Ip{six or 'Ext'}InOctets",
        f"Ip{six}OutRequests",
        f"Ip{six or 'Ext'}OutOctets",
    ]
    said = container.sh(f"nstat -asz {' '.join(names)} Icmp6OutMsgs Icmp6InMsgs")
    counts = dict(line.split()[:2] for line in said.splitlines() if not line.startswith("#"))
    aside = int(counts["Icmp6OutMsgs"]) + int(counts["Icmp6InMsgs"]) if six else 0
    return (*(int(counts[name]) for name in names), aside)


@BOTH
def test_v1_what_passes_by_a_published_port_is_counted_to_the_byte(shop: Shop, family: int) -> None:
    """Whether its connections go on, have ended, or were forgotten."""
    web, outside = shop.start("web", "-p 8080:80"), shop.host.outside
    for place in (web, outside):
        place.sh("ethtool -K eth0 tso off gso off gro off")
    on_both_sides(shop.host)
    at, counted = HOST if family == 4 else HOST6, tuple[int, ...]((0,) * 5)
    while True:
        start, before = counted, heard(web, family)
        for _ in range(10):
            stream(outside, web, address(web, family), 80, MEGABYTE // 10, asked=(at, 8080))
        *grew, aside = (now - was for now, was in zip(heard(web, family), before, strict=True))
        counted = shop.total("--from outside --to web --port 80")
        if not aside:
            break
    assert tuple(now - was for now, was in zip(counted, start, strict=True)) == (10, *grew)
    shop.host.ctl("ct flush")
    assert shop.total("--from outside --to web --port 80") == counted
    outside.sh("ethtool -K eth0 tso on gso on gro on")


def test_a_line_that_goes_on_says_by_which_port_and_in_which_state(shop: Shop) -> None:
    with opened(shop.db) as listening, opened(shop.app) as ours:
        listening.bind((shop.db.ip, 80))
        listening.listen()
        ours.connect((shop.db.ip, 80))
        with listening.accept()[0]:
            (line,) = shop.flows("--protocol tcp --since 1m --last 1")
            port = ours.getsockname()[1]
            assert (line["From"], line["To"]) == (f"app:{port}", "db:80")
            assert (line["State"], line["Connections"]) == ("established", 1)
            assert (line["SourceAddress"], line["DestinationAddress"]) == (shop.app.ip, shop.db.ip)
            assert not shop.flows("--protocol tcp --reason DROP_ICC")


def test_lines_are_chosen_by_labels_and_by_what_they_are_not(shop: Shop) -> None:
    shop.start("cron", "--label role=batch --label tier=back")
    cron = Container(shop.host, "cron")
    with serving(shop.db, "tcp", 80), serving(shop.db, "udp", 53):
        for client in (shop.app, cron):
            call(client, "tcp", shop.db.ip, 80)
        call(shop.app, "udp", shop.db.ip, 53)

    def found(words: str) -> set[tuple[str, str]]:
        return {
            (line["From"], line["To"])
            for line in shop.flows(f"--totals {words}")
            if line["Protocol"] != "icmpv6"
        }

    assert found("--label role=batch") == found("--label role --label tier=back") == {("cron", "db:80")}
    assert found("--label role=web") == found("--label role --label none") == set()
    assert found("--not --label role") == {("app", "db:80"), ("app", "db:53")}
    assert found("--not --protocol tcp --network shop") == {("app", "db:53")}
    assert shop.host.refused("flows --not --network shop") == (
        "datapathctl: --not needs an option that says what not: --port, --to, --label or another"
    )


def test_v7_who_follows_gets_all_that_is_added_though_it_was_stopped_for_a_while(shop: Shop) -> None:
    """SEE.md, V7: nothing is lost, as it is the totals that are looked at; nobody keeps anything for it."""
    follower = shop.host.start([DATAPATHCTL, "flows", "-f", "--protocol", "tcp"], stdout=subprocess.PIPE)
    assert follower.stdout is not None
    assert follower.stdout.readline().split()[:6] == ["TIME", "FROM", "TO", "PROTO", "VERDICT", "CONNS"]
    got = list[int]()

    def until_there_are(number: int) -> None:
        while sum(got) < number:
            _, source, to, _, verdict, connections, *_ = follower.stdout.readline().split()  # type: ignore[union-attr]
            assert (source, to, verdict) == ("app", "db:80", "allowed")
            got.append(int(connections))

    with serving(shop.db, "tcp", 80):
        call(shop.app, "tcp", shop.db.ip, 80)
        until_there_are(1)
        follower.send_signal(signal.SIGSTOP)
        for _ in range(20):
            call(shop.app, "tcp", shop.db.ip, 80)
        follower.send_signal(signal.SIGCONT)
        until_there_are(21)
    follower.kill()
    follower.wait()
    assert sum(got) == shop.total("--to db --port 80")[0] == 21
    assert (
        shop.host.refused("flows -f --totals")
        == "datapathctl: --follow excludes --last, --since and --totals"
    )


def fill(found: Dataplane, port: int, rows: int) -> None:
    """Writes rows of the only network that no timer knows of."""
    network = next(iter(found.networks.used()))
    half, now = abi.layout("flow_half").type, time.monotonic_ns()
    row = abi.flow(half(1, 60, now, now, 1, 2, 0, 1, 1, 0), half(1, 60, now, now, 2, 1, 0, 0, 0, 0))
    addresses = (IPv4Address(0x0A080000 + i) for i in range(rows))
    found.flows.update_many(
        {abi.flow_id(one, IPv4Address("10.8.0.1"), 1024, port, 6, network): row for one in addresses}
    )


def test_v3_what_ends_while_it_is_listed_is_in_one_line(make_host: Maker) -> None:
    """Of a table so large that the timer which ends rows comes in between, again and again, until all have ended."""
    shop = Shop(make_host(config={"datapath": {"timeouts": {"closing": 1}}}))
    with Dataplane.find(shop.host.bpffs / "datapath") as found:  # type: ignore[union-attr]
        fill(found, 81, 30000)
    with serving(shop.db, "tcp", 80):
        for _ in range(600):
            call(shop.app, "tcp", shop.db.ip, 80)
    going_on = True
    while going_on:
        lines = shop.flows("--from app --to db --port 80")
        assert sum(line["Connections"] for line in lines) == 600
        going_on = any(line["State"] for line in lines)


def test_v3_rows_that_end_at_each_look_are_counted_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine so busy that the timer which ends rows comes between any two looks at the tables."""
    most = 300
    with Dataplane.find(shop.host.bpffs / "datapath") as found:  # type: ignore[union-attr]
        fill(found, 80, most)
        edge = abi.edge_id(next(iter(found.networks.used())), 1, 2, 0, 80, 6, 0)

    def ends(dataplane: Any) -> set[bytes]:
        """Some rows become a part of their total; the keys of those that are left."""
        keys = list(dataplane.flows)
        gone, left = keys[:7], keys[7:]
        sums = dataplane.edges.get(edge) or abi.edge()
        more = [7 * one for one in (1, 1, 60, 1, 60)]
        now = time.monotonic_ns()
        dataplane.edges[edge] = abi.edge(*(a + b for a, b in zip(sums[:5], more, strict=True)), now, now)
        dataplane.flows.delete_many(gone)
        return {abi.layout("flow_id").pack(key) for key in left}

    monkeypatch.setattr("datapath.telemetry.flow_tables.row_keys", ends)
    for words in ("--port 80", "--totals --port 80"):
        lines = shop.flows(words)
        assert tuple(sum(line[name] for line in lines) for name in COUNTED) == tuple(
            most * one for one in (1, 1, 60, 1, 60)
        )


def test_rows_that_are_not_shown_cost_no_calls(shop: Shop) -> None:
    """SEE.md, section 7: 65,536 rows are listed in half a second. docs/performance.md has the time; that no function of
    Python is called for a row no busy machine changes."""
    commands = ("--port 80 --last 10", "--totals", "--from host", "--since 1h --last 10 --protocol tcp")
    with Dataplane.find(shop.host.bpffs / "datapath") as found:  # type: ignore[union-attr]
        fill(found, 80, 64)
        few = [calls(shop.host, f"flows {words}") for words in commands]
        fill(found, 80, 65536 - len(found.flows))
        assert len(found.flows) > 60000
    assert len(shop.flows("--port 80 --last 10")) == 10
    many = [calls(shop.host, f"flows {words}") for words in commands]
    assert all(more - less < 1000 for more, less in zip(many, few, strict=True)), (few, many)
