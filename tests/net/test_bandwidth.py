# SPDX-License-Identifier: Apache-2.0
"""Limits of a container's bandwidth, with real transfers: never more than the rate and the burst, whichever way it
goes. (A machine that is busy with other things may have less.)"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import abi
from datapath.model.limits import default_burst
from tests.net.doors import Cni, Refused, Space, spaces_of_a_test
from tests.net.hosts import HOST, Host, eventually

Spaces = Callable[[], Space]
CLEAN = "No problems found.\n"
RECEIVES, SENDS = 10_000_000, 20_000_000  # bits a second
SECONDS = 2
OPTION = "com.datapath."


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """One for all tests of the module: each has to leave nothing."""
    yield shared_host
    assert shared_host.try_ctl("doctor").stdout == CLEAN
    assert limits(shared_host) == []


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    yield from spaces_of_a_test(tmp_path)


def limits(host: Host) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in host.ctl("stats --format json").splitlines()]
    return [row for row in rows if row["Kind"] == "limit"]


def asked(rows: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
    return {(row["Direction"], row["Rate"], row["Burst"]) for row in rows}


def options(**wanted: object) -> str:
    return ",".join(f"driver-opt={OPTION}{name}={value}" for name, value in wanted.items())


def listens(host: Host, name: str, port: int) -> None:
    with eventually() as until:
        until(lambda: f":{port}" in host.in_(name, "ss -Hltn"))


_SERVER = """
import socket, threading
def serve(conn):
    with conn:
        if conn.recv(1) == b"r":  # the client receives
            try:
                while conn.send(bytes(65536)):
                    pass
            except OSError:
                return
        got = 0
        while data := conn.recv(1 << 20):
            got += len(data)
        conn.sendall(b"%d" % got)
with socket.create_server(("::", 5201), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
_CLIENT = """
import socket, sys, time
how, address, seconds = sys.argv[1:]
with socket.create_connection((address, 5201)) as conn:
    conn.sendall(how[:1].encode())
    end, got = time.monotonic() + float(seconds), 0
    conn.settimeout(float(seconds))
    while time.monotonic() < end:
        if how == "receives":
            got += len(conn.recv(1 << 20))
        else:
            conn.send(bytes(65536))
    if how == "sends":
        conn.shutdown(socket.SHUT_WR)
        conn.settimeout(None)
        got = int(conn.recv(100))
    print(got, flush=True)
"""
SERVER = ["python3", "-c", _SERVER]


def transfer(run: Callable[..., str], address: str, how: str) -> tuple[int, float]:
    """Bytes that the receiving program has got, and seconds that it cannot have taken longer than."""
    began = time.monotonic()
    got = int(run(["python3", "-c", _CLIENT, how, address, str(SECONDS)], timeout=120))
    return got, time.monotonic() - began


def test_a_container_receives_and_sends_no_more_than_it_may(host: Host) -> None:
    """From and to a member, the host, and the outside by a published port; all of it goes on meanwhile."""
    host.ctl("network create --ipv6 --subnet 10.81.0.0/24 --subnet fd81::/64 net")
    wanted = options(ingress_rate="10M", egress_rate="20M")
    host.run("limited", ["-p", "5201:5201", "--network", f"name=net,{wanted}"], SERVER)
    host.run("free", "--network net")
    listens(host, "limited", 5201)
    address = host.address("limited", "net")
    address6 = host.inspect("limited")["NetworkSettings"]["Networks"]["net"]["GlobalIPv6Address"]

    def member(command: list[str], timeout: float) -> str:
        return host.in_("free", command, timeout)

    ways: dict[str, tuple[Callable[..., str], str]] = {
        "a member": (member, address),
        "a member, IPv6": (member, address6),
        "the host": (host.sh, address),
        "the host, published": (host.sh, HOST),
        "the outside": (host.outside.sh, HOST),
    }
    for who, (run, where) in ways.items():
        for rate, how in ((RECEIVES, "sends"), (SENDS, "receives")):
            size, seconds = transfer(run, where, how)
            assert size * 8 <= rate * seconds + default_burst(rate), (who, how)
            assert size * 8 >= rate * SECONDS / 4, (who, how)
    found = {row["Direction"]: row for row in limits(host)}
    assert asked(list(found.values())) == {
        ("ingress", RECEIVES, default_burst(RECEIVES)),
        ("egress", SENDS, default_burst(SENDS)),
    }
    assert {(row["Container"], row["Network"]) for row in found.values()} == {("limited", "net")}
    assert all(row["Packets"] > 0 and row["Bytes"] > row["Packets"] for row in found.values())
    # An error or a copy that was not made is counted by the limit alone.
    assert 0 < host.drops()["DROP_BANDWIDTH"] <= sum(row["Packets"] for row in found.values())
    text = host.ctl("stats --format prometheus")
    assert (
        f'limit_bits_per_second{{container="limited",network="net",direction="ingress"}} {RECEIVES}' in text
    )
    for name in ("limited", "free"):
        host.ctl(f"rm -f {name}")
    host.ctl("network rm net")


def test_datagrams_are_counted_with_their_headers(host: Host) -> None:
    """A sender that nothing stops: no more arrives than the burst, and what the rate has added meanwhile."""
    host.ctl("network create --subnet 10.81.0.0/24 net")
    wanted = options(ingress_rate=RECEIVES, ingress_burst=1_000_000)
    host.run("limited", f"--network name=net,{wanted}")
    host.run("free", "--network net")

    def received() -> int:
        return int(host.in_("limited", "cat /sys/class/net/eth0/statistics/rx_packets"))

    send = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "for _ in range(1000): s.sendto(bytes(958), (sys.argv[1], 5201))"
    )
    before, began = received(), time.monotonic()
    host.in_("free", ["python3", "-c", send, host.address("limited", "net")])
    most = RECEIVES * (time.monotonic() - began) + 1_000_000
    (row,) = limits(host)
    got = 1000 - row["Packets"]
    assert 100 <= got <= most / 8000, "1,000 bytes each, with the headers"
    assert row["Bytes"] == 1000 * row["Packets"]
    assert got <= received() - before < got + 20, "and what else there is: neighbours, groups"
    for name in ("limited", "free"):
        host.ctl(f"rm -f {name}")
    host.ctl("network rm net")


def test_limits_are_of_an_endpoint_and_go_with_it(host: Host) -> None:
    """Those of `run`, of `network connect`, and after a start again."""
    for number in (1, 2):
        host.ctl(f"network create --subnet 10.8{number}.0.0/24 net{number}")
    host.run("web", f"--network name=net1,{options(egress_rate='1.5m', egress_burst='64Ki')}")
    host.ctl(f"network connect --driver-opt {OPTION}ingress_rate=2Gi net2 web")
    settings = host.inspect("web")["NetworkSettings"]["Networks"]
    assert settings["net1"]["DriverOpts"] == {
        f"{OPTION}egress_rate": "1500000",
        f"{OPTION}egress_burst": "65536",
    }
    both = {("egress", 1_500_000, 65536), ("ingress", 2 * 2**30, default_burst(2 * 2**30))}
    assert asked(limits(host)) == both
    host.ctl("network disconnect net2 web")
    assert asked(limits(host)) == {("egress", 1_500_000, 65536)}
    host.ctl("stop web")
    assert limits(host) == []
    host.ctl("start web")
    assert asked(limits(host)) == {("egress", 1_500_000, 65536)}
    host.ctl("rm -f web")
    for number in (1, 2):
        host.ctl(f"network rm net{number}")


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"ingress_rate": "fast"}, "500k"),
        ({"ingress_rate": "0"}, "500k"),
        ({"egress_rate": "-1"}, "500k"),
        ({"egress_rate": "2000G"}, "500k"),
        ({"egress_burst": "1M"}, "needs option com.datapath.egress_rate"),
        ({"rate": "1M"}, "com.datapath.ingress_rate"),
    ],
)
def test_a_limit_that_is_none_is_refused(host: Host, wanted: dict[str, str], word: str) -> None:
    assert word in host.refused(f"run --name web --network name=bridge,{options(**wanted)} true")


def test_where_there_are_no_packet_programs_there_is_no_limit(host: Host) -> None:
    host.ctl("network create -o com.datapath.mode=nftables linux")
    line = host.refused(f"run --name web --network name=linux,{options(egress_rate='1M')} true")
    assert "com.datapath.egress_rate" in line and "linux" in line
    host.ctl("network rm linux")


def test_what_becomes_of_the_rows_is_found_and_mended(host: Host) -> None:
    host.ctl("network create net")
    host.run("web", f"--network name=net,{options(ingress_rate='1M', egress_rate='2M')}")
    rows = sorted(limits(host), key=lambda row: row["Rate"])
    from datapath.dataplane.programs import Dataplane

    with Dataplane(host.bpffs / "datapath") as dataplane:
        first, second = dict(dataplane.limits.read_all())
        known = dataplane.limits[first]
        del dataplane.limits[first]
        dataplane.limits[second] = dataplane.limits[second]._replace(rate=1)
        dataplane.limits[abi.limit_key(4_000_000, 1)] = known
        found = host.try_ctl("doctor")
        assert found.returncode != 0
        for word in ("there is no row", "the row says", "a row that nobody needs"):
            assert word in found.stdout, found.stdout
        host.ctl("reconcile")
        assert host.try_ctl("doctor").stdout == CLEAN
        assert sorted(limits(host), key=lambda row: row["Rate"]) == rows
        dataplane.limits[first] = dataplane.limits[first]._replace(packets=7, bytes=70)
    assert host.try_ctl("doctor").stdout == CLEAN, "what the programs count is theirs"
    host.ctl("upgrade")
    assert {row["Packets"] for row in limits(host)} == {0, 7}
    host.ctl("rm -f web")
    host.ctl("network rm net")


BOTH: dict[str, tuple[dict[str, int], set[tuple[str, int, int]]]] = {
    "cnitool's": (
        {
            "ingressRate": 4_000_000,
            "ingressBurst": 3_000_000,
            "egressRate": 8_000_000,
            "egressBurst": 800_000,
        },
        {("ingress", 4_000_000, 3_000_000), ("egress", 8_000_000, 800_000)},
    ),
    "containerd's": (
        {
            "IngressRate": 10**7,
            "IngressBurst": 2**32 - 1,
            "EgressRate": 5 * 10**6,
            "EgressBurst": 2**32 - 1,
        },
        {
            ("ingress", 10**7, default_burst(10**7)),
            ("egress", 5 * 10**6, default_burst(5 * 10**6)),
        },
    ),
}


@pytest.mark.parametrize("name", BOTH)
def test_a_pod_has_the_bandwidth_that_its_runtime_wishes(host: Host, spaces: Spaces, name: str) -> None:
    given, wanted = BOTH[name]
    cni, space = Cni(host, {"subnet": "10.71.0.0/24"}, "1.0.0"), spaces()
    cni.add("pod1", space.path, bandwidth=given)
    assert asked(limits(host)) == wanted
    cni.check("pod1", space.path)
    cni.delete("pod1", space.path)
    with pytest.raises(Refused, match="egressRate") as refused:
        cni.add("pod1", space.path, bandwidth={"egressBurst": 5})
    assert refused.value.error["code"] == 7
