# SPDX-License-Identifier: Apache-2.0
"""What is seen of a host at one moment, as programs get it: in one piece, as metrics, and in `top`."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from prometheus_client import parser as text_format
from prometheus_client.openmetrics import parser as openmetrics

from datapath.config.settings import Settings
from datapath.engine.engine import Engine
from datapath.kernel import libbpf
from datapath.kernel.netns import enter
from datapath.telemetry import rates, snapshot
from tests.bpf.packets import checksum, mac_bytes
from tests.net.hosts import DATAPATHCTL, PATIENCE, Host
from tests.net.wire import Container, opened, start_container

Keep = Callable[..., Any]
CONNECTIONS, PORT, REFUSED = 5, 5432, 7
POLICY = "policies: {db: {for: db, in: {allow: ['app:5432']}}}"


class Shop:
    """On a network with flows `app` has connected to `db`, and `cron` has tried to, whom the policy refuses."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl("network create --subnet 10.8.0.0/24 -o com.datapath.flows=true shop")
        host.ctl("network create --subnet 10.9.0.0/24 plain")
        self.app, self.db = (self.start(name) for name in ("app", "db"))
        self.cron = self.start("cron", "--label role=batch --network plain")
        (host.folder / "db.yaml").write_text(POLICY)
        host.ctl(f"policy apply -f {host.folder / 'db.yaml'}")
        for _ in range(CONNECTIONS):
            connect(self)
        for _ in range(REFUSED):
            refuse(self.cron, self.db)

    def start(self, name: str, options: str = "") -> Container:
        return start_container(self.host, name, f"--network shop {options}")

    def snapshot(self, **options: Any) -> snapshot.Snapshot:
        settings = Settings.from_env(self.host.env or {})
        with enter(self.host.path):
            return snapshot.take(Engine(settings), **options)


def connect(shop: Shop) -> None:
    """`app` to `db`, and both close it."""
    with opened(shop.db) as listening, opened(shop.app) as one:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((shop.db.ip, PORT))
        listening.listen()
        one.connect((shop.db.ip, PORT))
        with listening.accept()[0] as other:
            one.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        assert one.recv(1) == b""


def refuse(client: Container, server: Container, port: int = PORT) -> None:
    """It is told so at once, with ICMP: the program has counted one packet."""
    with opened(client) as one, pytest.raises(OSError):
        one.connect((server.on("shop")["IPAddress"], port))


def _shop(make: Callable[..., Host]) -> Shop:
    return Shop(make())


@pytest.fixture
def shop(keep: Keep) -> Shop:
    found: Shop = keep(_shop)
    return found


def test_a_snapshot_has_members_networks_totals_and_what_each_policy_has_decided(shop: Shop) -> None:
    found = shop.snapshot(policies=True, live=100)
    assert [(one.name, sorted(one.networks)) for one in found.members] == [
        ("app", ["shop"]),
        ("cron", ["plain", "shop"]),
        ("db", ["shop"]),
    ]
    assert found.members[1].labels == {"role": "batch"} and found.members[1].owner == "datapath"
    watched = {one.name: (one.subnets, one.watched) for one in found.networks}
    assert watched["shop"] == (("10.8.0.0/24",), True) and watched["plain"] == (("10.9.0.0/24",), False)
    tcp = {(line.source, line.verdict, line.reason): line for line in found.totals if line.protocol == "tcp"}
    assert tcp["app", "allowed", ""].connections == CONNECTIONS
    assert tcp["cron", "refused", "DROP_IN"].sent_packets == REFUSED
    assert sum(line.connections for line in found.live if line.source == "app") == CONNECTIONS
    ((glance, openings, refused),) = found.policies
    assert (glance.name, openings, refused) == ("db", CONNECTIONS, REFUSED)
    assert found.stats.counters["DROP_IN"][0] == REFUSED


def test_a_snapshot_of_one_network_has_what_is_about_it_alone_and_becomes_json(shop: Shop) -> None:
    found = (json.dumps(snapshot.as_json(shop.snapshot(network=name, live=9))) for name in ("", "plain"))
    whole, part = map(json.loads, found)
    assert {line["source"] for line in whole["totals"]} >= {"app", "cron"} and whole["live"]
    assert whole["counters"] == part["counters"] and whole["fill"]["edges"][0] >= 1
    assert [one["name"] for one in part["members"]] == ["cron"] and part["totals"] == part["live"] == []
    assert part["members"][0]["networks"] == {"plain": [shop.cron.on("plain")["IPAddress"]]}


# ---- as metrics --------------------------------------------------------------------------------------


def parsed(shop: Shop, words: str = "") -> dict[str, dict[tuple[str, ...], float]]:
    """Sample -> the values of its labels, by their names -> value, as the library itself reads the text."""
    return read(
        shop.host.ctl(f"metrics {words}") + "\n", openmetrics if "--openmetrics" in words else text_format
    )


def read(said: str, format_: Any = text_format) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in format_.text_string_to_metric_families(said):
        assert family.documentation
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            of = tuple(value for _, value in sorted(sample.labels.items()))
            assert of not in values, f"{sample.name} of {of} is there twice"
            values[of] = sample.value
    return found


@pytest.mark.parametrize("words", ["", "--openmetrics"])
def test_v8_metrics_are_what_was_sent_in_both_formats_and_nobody_need_run(shop: Shop, words: str) -> None:
    found = parsed(shop, words)
    key = (
        "db",
        "shop",
        str(PORT),
        "tcp",
        "app",
    )  # by the names: destination, network, port, protocol, source
    assert found["datapath_edge_connections_total"][key] == CONNECTIONS
    (line,) = [one for one in shop.snapshot().totals if (one.source, one.port) == ("app", PORT)]
    for what in ("packets", "bytes"):
        values = found[f"datapath_edge_{what}_total"]
        ways = [values["db", way, *key[1:]] for way in ("sent", "received")]
        assert ways == [getattr(line, f"{way}_{what}") for way in ("sent", "received")]
    assert found["datapath_refused_packets_total"]["db", "shop", "tcp", "DROP_IN", "cron"] == REFUSED
    assert found["datapath_packets_total"]["DROP_IN",] == REFUSED
    assert found["datapath_policy_openings_total"]["db", "1"] == CONNECTIONS
    assert found["datapath_policy_refused_total"]["enforce", "db", "0"] == REFUSED
    assert found["datapath_network_members"] == {
        ("true", "shop"): 3,
        ("false", "plain"): 1,
        ("false", "bridge"): 0,
    }
    assert found["datapath_series_folded"] == {("allowed",): 0, ("refused",): 0}
    assert found["datapath_agent_running"] == {(): 0} and found["datapath_unplaced_packets_total"] == {(): 0}


def test_metrics_have_the_series_of_stats_under_the_same_names(shop: Shop) -> None:
    ours = parsed(shop)
    said = shop.host.ctl("stats --format prometheus") + "\n"
    theirs = [sample for one in text_format.text_string_to_metric_families(said) for sample in one.samples]
    assert len(theirs) > 50
    for sample in theirs:
        of = tuple(value for _, value in sorted(sample.labels.items()))
        assert ours[sample.name][of] == sample.value, sample


def scan(client: Container, server: Container, ports: range) -> None:
    """A datagram to each of these ports, in frames of our own: the kernel would be asked for each."""
    ends = (ip_address(one.on("shop")["IPAddress"]).packed for one in (client, server))
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0x4000, 64, 17, 0, *ends)
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    macs = [mac_bytes(one.on("shop")["MacAddress"]) for one in (server, client)]
    head = b"".join((*macs, b"\x08\x00", ip))
    with opened(client, socket.SOCK_RAW, socket.AF_PACKET) as one:
        one.bind(("eth0", 0x0800))
        for port in ports:
            one.send(head + struct.pack("!HHHH", 40000, port, 8, 0))


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print("#", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measured(shop: Shop) -> tuple[dict[str, dict[tuple[str, ...], float]], int]:
    """The same by a process of its own, and the kB of memory that it has taken at the most: the child of a small one,
    as what it is forked from counts."""
    said = shop.host.sh([sys.executable, "-c", MEASURED, DATAPATHCTL, "metrics"])
    return read(said + "\n"), int(said.rpartition("# ")[2])


def test_v8_who_scans_all_ports_gets_its_share_of_series_and_others_keep_theirs(shop: Shop) -> None:
    for name in ("scan", "target", "quiet"):
        start_container(shop.host, name, "--network shop")
    hostile, target, quiet = (Container(shop.host, name) for name in ("scan", "target", "quiet"))
    scan(hostile, target, range(1, 10_000))
    first, memory = measured(shop)
    assert memory < 80 * 1024
    scan(hostile, target, range(10_000, 65_536))
    scan(hostile, shop.db, range(1, 3000))  # whom the policy protects
    scan(quiet, target, range(53, 54))
    found = parsed(shop)
    assert sum(map(len, found.values())) <= 5000
    sent = {of[2:]: value for of, value in found["datapath_edge_packets_total"].items() if of[1] == "sent"}
    of_scan = {of: value for of, value in sent.items() if of[-1] == "scan"}
    assert len(of_scan) < 100 and of_scan["shop", "other", "udp", "scan"] > 10_000
    unplaced = found["datapath_unplaced_packets_total"][()]
    assert sum(of_scan.values()) + unplaced >= 65_534 and found["datapath_series_folded"]["allowed",] > 10_000
    assert sent["shop", "53", "udp", "quiet"] == 1
    assert found["datapath_refused_packets_total"]["db", "shop", "udp", "DROP_IN", "scan"] == 2999
    for name, values in first.items():
        for of, value in values.items() if name.endswith("_total") else ():
            assert found[name][of] >= value, f"{name} of {of} counts less than before"


def test_a_file_of_metrics_is_replaced_in_one_step_and_others_may_read_it(shop: Shop) -> None:
    folder = shop.host.folder / "collected"
    folder.mkdir()
    path = folder / "datapath.prom"
    with path.open("w+") as before:
        before.write("before\n")
        before.flush()
        assert shop.host.ctl(f"metrics --output {path}") == ""
        before.seek(0)
        assert before.read() == "before\n"
    assert read(path.read_text())["datapath_programs_loaded"] == {(): 1}
    assert path.stat().st_mode & 0o777 == 0o644 and os.listdir(folder) == [path.name]
    refused = shop.host.refused(f"metrics --output {folder}/nowhere/datapath.prom")
    assert refused.endswith(f"cannot write {folder}/nowhere/datapath.prom: No such file or directory")


def test_programs_that_are_timed_say_what_they_cost(shop: Shop) -> None:
    timing = libbpf.enable_stats()
    try:
        refuse(shop.cron, shop.db)
    finally:
        os.close(timing)
    found = parsed(shop)
    assert found["datapath_program_runs_total"]["from_container",] >= 1
    assert 0 < found["datapath_program_seconds_total"]["from_container",] < 1


# ---- top ---------------------------------------------------------------------------------------------


def rates_of(shop: Shop, act: Callable[[], None]) -> rates.Rates:
    """What has happened between a look before it and one behind it."""
    engine = Engine(Settings.from_env(shop.host.env or {}))
    with enter(shop.host.path):
        before = rates.look(engine)
        act()
        return rates.between(before, rates.look(engine))


def test_v15_rates_are_what_was_sent_between_two_looks(shop: Shop) -> None:
    before = shop.snapshot().totals

    def act() -> None:
        for _ in range(3):
            connect(shop)
        for _ in range(2):
            refuse(shop.cron, shop.db)

    found = rates_of(shop, act)
    app, cron, db = (
        next(one for one in found.containers if one.name == name) for name in ("app", "cron", "db")
    )
    assert [round(one.connections * found.seconds) for one in (app, cron, db)] == [3, 0, 3]
    assert [round(one.refused * found.seconds) for one in (app, cron, db)] == [0, 2, 2]
    assert (app.sent, app.received, app.packets) == (db.received, db.sent, db.packets)
    (had,), (line,) = (
        [one for one in lines if (one.source, one.port) == ("app", PORT)]
        for lines in (before, shop.snapshot().totals)
    )
    assert round(app.sent * found.seconds) == line.sent_bytes - had.sent_bytes > 0
    (refused,) = [one for one in found.refused if one.packets]
    assert (refused.head.source, refused.head.reason) == ("cron", "DROP_IN")
    assert round(found.dropped["DROP_IN"] * found.seconds) == 2 and found.own > 0


def columns(said: str, number: int) -> list[list[str]]:
    """So many of each line."""
    return [line.split()[:number] for line in said.splitlines()]


def test_v15_top_prints_tables_where_there_is_no_terminal(shop: Shop) -> None:
    said = shop.host.ctl("top --once -d 0.01 --network shop")
    first, *containers = said.split("\n\n")[0].splitlines()
    assert "of a processor" in first and "packets/s" in first
    assert containers[0].split()[0] == "CONTAINER" and {"app", "db"} <= {
        line.split()[0] for line in containers
    }
    # Of what can be without end no more than the first lines are printed.
    assert ["app", f"db:{PORT}", "tcp"] in columns(shop.host.ctl("top --once -d 0.01 --filter app"), 3)
    refused = shop.host.ctl("top --once -d 0.01 --filter cron")
    assert ["cron", f"db:{PORT}", "tcp", "DROP_IN"] in columns(refused, 4) and "app" not in refused
    unwatched = json.loads(shop.host.ctl("top --once -d 0.01 --network plain --json"))
    assert (unwatched["Container"], unwatched["Packets"]) == ("cron", None)
    assert shop.host.refused("top --once --network nothing").endswith("network nothing not found")
    assert shop.host.refused("top --once -n 2").endswith("--once is -n 1: give one of both")


def test_v15_top_goes_on_until_it_is_interrupted(shop: Shop) -> None:
    top = shop.host.start([DATAPATHCTL, "top", "-d", "0.05", "--json"], stdout=subprocess.PIPE)
    assert top.stdout is not None
    top.stdout.readline()  # it has looked twice
    refuse(shop.cron, shop.db)
    for line in top.stdout:
        row = json.loads(line)
        if row["Kind"] == "refused" and row["From"] == "cron" and row["Packets"] > 0:
            break
    top.send_signal(signal.SIGINT)
    top.stdout.read()
    assert top.wait(PATIENCE) == 0


def test_v15_top_draws_on_a_terminal_and_ends_at_q(shop: Shop) -> None:
    typed = f"stty cols 80 rows 24; {DATAPATHCTL} top -d 0.05"
    env = {**(shop.host.env or {}), "TERM": "xterm-256color", "HOME": str(shop.host.folder)}
    top = subprocess.Popen(
        shop.host.within(["script", "-qec", typed, "/dev/null"]),
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert top.stdin is not None and top.stdout is not None
    shown = b""
    while b"CONTAINER" not in shown or b"app" not in shown:
        piece = os.read(top.stdout.fileno(), 65536)
        assert piece, shown
        shown += piece
    top.stdin.write(b"q")
    top.stdin.flush()
    top.stdout.read()
    assert top.wait(PATIENCE) == 0
