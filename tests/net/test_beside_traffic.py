# SPDX-License-Identifier: Apache-2.0
"""S30: commands of all kinds, killed ones too, beside traffic that never notices. DATAPATH_LONG=1 only; what an
upgrade does to traffic is in test_upgrade.py in any case, one damage after another in test_doctor.py."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net import forked
from tests.net.hosts import FAR, HOST, PATIENCE, Host, Namespace, pinging, sent_and_lost
from tests.net.test_doctor import gateway, veth
from tests.net.test_real_programs import nginx
from tests.net.test_upgrade import Version, as_version, built, use_objects
from tests.net.wire import Container, start_container

pytestmark = pytest.mark.skipif(not os.environ.get("DATAPATH_LONG"), reason="minutes: DATAPATH_LONG=1")

ROUNDS, KILLS, UPGRADES, DAMAGES = 10, 100, 10, 20
SEED = 30

# A request every 5 ms on each connection, so that there is time for others; --timeout: late is not lost.
WRK = "wrk -t1 -c8 -d3600s --timeout 60s -s {pace} http://{address}:8080/short"
PACE = "function delay() return 5 end\n"


class Topology:
    def __init__(self, host: Host, folder: Path) -> None:
        host.ctl("network create --subnet 10.8.0.0/24 net")
        self.host = host
        self.web: Container = start_container(
            host, "web", "--network net -p 8080:80", nginx(folder / "web", 80)
        )
        start_container(host, "iperf", "--network net -p 5201:5201", ["iperf3", "-s"])
        host.ctl("network create --subnet 10.9.0.0/24 others")
        self.pace = folder / "pace.lua"
        self.pace.write_text(PACE)


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory, shared_host: Host) -> Iterator[Topology]:
    forked.in_child.append(use_objects)
    yield Topology(shared_host, tmp_path_factory.mktemp("servers"))
    forked.in_child.remove(use_objects)


@pytest.fixture
def traffic(topology: Topology) -> Iterator[None]:
    """Echo requests from the host and to the outside, a TCP stream and requests by connections that stay, from
    outside through published ports. All of it comes through."""
    host, outside = topology.host, topology.host.outside
    inside = ["nsenter", "-t", str(topology.web.pid), "--net"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pings = [pinging(host, topology.web.ip, 71), pinging(host, FAR, 72, within=inside)]
    wrk = outside.start(WRK.format(pace=topology.pace, address=HOST), **pipes)
    iperf = outside.start(f"iperf3 -c {HOST} -t 3600 -b 50M -i 1 --forceflush", **pipes)
    resets, began = aborted(host, outside, topology.web), time.monotonic()
    time.sleep(1)
    yield
    seconds = time.monotonic() - began
    iperf.send_signal(signal.SIGINT)
    wrk.send_signal(signal.SIGINT)
    streamed = "".join(iperf.communicate(timeout=PATIENCE))
    requested = "".join(wrk.communicate(timeout=PATIENCE))
    echoes = [sent_and_lost(process) for process in pings]

    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", requested)
    assert errors is None and "Non-2xx" not in requested, requested
    requests = int(re.findall(r"(\d+) requests in", requested)[0])
    assert requests > 100 * seconds / 10
    intervals = [float(rate) for rate in re.findall(r"sec +[\d.]+ \w?Bytes +([\d.]+) \w?bits/sec", streamed)]
    assert len(intervals) > seconds * 0.8 and "interrupt" in streamed, streamed
    assert "error" not in streamed.replace("iperf3: interrupt", ""), streamed
    assert all(rate > 0 for rate in intervals[:-2]), streamed
    assert all(sent > 100 * seconds and lost == 0 for sent, lost in echoes), echoes
    assert aborted(host, outside, topology.web) == resets
    print(
        f"\n{seconds:.0f} s; echo requests: {echoes[0][0]} and {echoes[1][0]}, none lost; "
        f"{requests} requests, no error; {len(intervals)} s of stream"
    )


def aborted(*places: Namespace | Container) -> list[int]:
    """Connections that were reset, at each place."""
    rows = [place.sh("grep ^Tcp: /proc/thread-self/net/snmp").splitlines() for place in places]
    return [int(dict(zip(*(row.split() for row in pair), strict=True))["EstabResets"]) for pair in rows]


def unrelated(number: int) -> list[str]:
    """Ten commands about containers and networks that the traffic has nothing to do with."""
    name, port = f"t{number}", 9000 + number
    return [
        f"network create --ipv6 --subnet 10.10.0.0/24 --subnet fd00:10::/64 more{number}",
        f"run -d --name {name} --network others -p {port}:80,deny=198.51.100.9 sleep 3600",
        f"network connect more{number} {name}",
        f"port add {name} 4{port}:81",
        f"run -d --name {name}x --network net -p {port + 500}:80 sleep 3600",
        f"port rm {name} 4{port}:81",
        f"network disconnect others {name}",
        f"rm -f {name}x",
        f"rm -f {name}",
        f"network rm more{number}",
    ]


def whole(host: Host) -> None:
    done = host.try_ctl("doctor")
    assert done.returncode == 0, done.stdout


def test_s30_a_hundred_commands_about_others_disturb_nobody(topology: Topology, traffic: None) -> None:
    for number in range(ROUNDS):
        for command in unrelated(number):
            topology.host.ctl(command)
    whole(topology.host)


def test_s30_commands_that_are_killed_at_random_disturb_nobody(topology: Topology, traffic: None) -> None:
    randomness, host = random.Random(SEED), topology.host
    killed = 0
    for number in itertools.count():
        for command in unrelated(number % 100):
            began = time.monotonic()
            try:
                host.try_ctl(command, timeout=randomness.uniform(0.005, 0.4))
            except subprocess.TimeoutExpired:
                killed += 1
                time.sleep(0.01)
                said = host.try_ctl("_exited nobody 0")
                assert said.returncode == 0, (
                    f"{command}, killed after {time.monotonic() - began:.3f} s: {said}"
                )
                whole(host)
        for name in (f"t{number % 100}", f"t{number % 100}x"):
            host.ctl(f"rm -f {name}")
        host.try_ctl(f"network rm more{number % 100}")
        if killed >= KILLS:
            break
    print(f"\n{killed} of {10 * number + 10} commands were killed")
    whole(host)
    assert host.ctl("reconcile") == ""


@pytest.fixture
def other(tmp_path: Path) -> Version:
    return built(tmp_path / "other", "conn_gc", conn_gc=("(SECOND / 10)", "(SECOND / 5)"))


def test_s30_ten_upgrades_and_downgrades_disturb_nobody(
    topology: Topology, other: Version, traffic: None
) -> None:
    try:
        for _ in range(UPGRADES):
            for version in (other, None):
                as_version(topology.host, version)
                assert "replaced" in topology.host.ctl("upgrade")
    finally:
        as_version(topology.host, None)
    whole(topology.host)


def test_s30_repairing_the_others_disturbs_nobody(topology: Topology, traffic: None) -> None:
    host = topology.host
    host.run("victim", "--network others -p 9900:80,deny=198.51.100.9")
    damages: list[Callable[[], object]] = [
        lambda: host.sh(f"ip link del {veth(host, 'victim', 'others')}"),
        lambda: host.in_("victim", "ip address flush dev eth0"),
        lambda: host.sh(f"ip link set {gateway(host, 'others')} down"),
        lambda: host.sh(f"ip address flush dev {gateway(host, 'others')}"),
        lambda: host.sh(f"tc filter del dev {veth(host, 'victim', 'others')} ingress"),
    ]
    for damage in itertools.islice(itertools.cycle(damages), DAMAGES):
        if host.try_ctl("reconcile").returncode == 0:  # with nothing to repair
            damage()
        assert "repaired: " in host.ctl("reconcile")
        whole(host)
    host.ctl("rm -f victim")
