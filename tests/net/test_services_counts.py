# SPDX-License-Identifier: Apache-2.0
"""S26: packets and bytes of services' backends, and of connections, are exactly those that passed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any, NamedTuple

import pytest

from tests.net.hosts import HOST, PATIENCE, Host, eventually
from tests.net.services import client, serve

NET = "--network shop"
MEGABYTE = 1_000_000
ETHERNET, SYN, SEGMENT = 14, 60, 52  # bytes of headers: IPv4 and TCP, with the options that Linux sends

# Takes all that each connection brings, and answers as much of its own.
SINK = f"""
import socketserver
class Sink(socketserver.StreamRequestHandler):
    def handle(self):
        while self.request.recv(65536):
            pass
        self.request.sendall(bytes({MEGABYTE}))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("", 80), Sink).serve_forever()
"""

# So many connections, one after the other: each sends as much, and reads the answer to its end.
SENDER = f"""
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 80)) as client:
        client.sendall(bytes({MEGABYTE}))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
print("done", flush=True)
"""

# Asks once a line of its input, by one connection, which it keeps.
TALKER = """
import socket, sys
client = socket.create_connection((sys.argv[1], 80))
reader = client.makefile("rb")
reader.readline()
for line in sys.stdin:
    client.sendall(line.encode())
    sys.stdout.write(reader.readline().decode())
    sys.stdout.flush()
"""


class Passed(NamedTuple):
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int

    def since(self, before: Passed) -> Passed:
        return Passed(*(now - then for now, then in zip(self, before, strict=True)))


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    shared_host.ctl("network create --subnet 10.72.0.0/24 shop")
    shared_host.ctl("network create --ipv6 --subnet 10.73.0.0/24 --subnet fd73::/64 both")
    yield shared_host
    shared_host.ctl("network rm shop both")


@pytest.fixture(autouse=True)
def clean(prepared: Host) -> Iterator[None]:
    yield
    if services := prepared.ctl("service ls -q").split():
        prepared.ctl(["service", "rm", *services])
    if names := prepared.ctl("ps -aq").split():
        prepared.ctl(["rm", "-f", *names])
    assert prepared.ctl("doctor") == "No problems found."


def vips(host: Host) -> list[str]:
    return [one["Addr"] for one in json.loads(host.ctl("service inspect web"))[0]["Endpoint"]["VirtualIPs"]]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def passed(row: dict[str, Any]) -> Passed:
    return Passed(row["PacketsIn"], row["BytesIn"], row["PacketsOut"], row["BytesOut"])


def of_backend(host: Host, name: str) -> Passed:
    (row,) = (r for r in lines(host.ctl("service ps web --format json")) if r["Container"] == name)
    return passed(row)


def of_service(host: Host) -> Passed:
    rows = lines(host.ctl("stats --format json"))
    (row,) = (r for r in rows if r["Kind"] == "service" and r["Service"] == "web" and not r["Backend"])
    return passed(row)


def of_device(host: Host, name: str) -> Passed:
    """What the container's device has received and sent, less Ethernet headers."""
    (shown,) = json.loads(host.in_(name, "ip -s -j link show eth0"))
    both = shown["stats64"]["rx"], shown["stats64"]["tx"]
    return Passed(*(n for d in both for n in (d["packets"], d["bytes"] - ETHERNET * d["packets"])))


def counted_in(host: Host, name: str) -> None:
    """From now on the container's packet filter counts what passes at port 80, by IP's lengths."""
    for family in ("ip", "ip6"):
        rules = "".join(
            f"add rule {family} seen {hook} meta l4proto {{ tcp, udp }} th {port} 80 counter\n"
            for hook, port in (("input", "dport"), ("output", "sport"))
        )
        chains = "".join(
            f"add chain {family} seen {hook} {{ type filter hook {hook} priority 0; }}\n"
            for hook in ("input", "output")
        )
        host.in_(name, ["bash", "-c", f"nft -f - <<'EOF'\nadd table {family} seen\n{chains}{rules}EOF"])


def by_filter(host: Host, name: str) -> Passed:
    found = {"input": [0, 0], "output": [0, 0]}
    for family in ("ip", "ip6"):
        shown = json.loads(host.in_(name, f"nft -j list table {family} seen"))["nftables"]
        for rule in (one["rule"] for one in shown if "rule" in one):
            for part in rule["expr"]:
                if "counter" in part:
                    found[rule["chain"]][0] += part["counter"]["packets"]
                    found[rule["chain"]][1] += part["counter"]["bytes"]
    return Passed(*found["input"], *found["output"])


def knows(host: Host, one: str, other: str) -> None:
    """It never asks for the other's MAC address."""
    (link,) = json.loads(host.in_(other, "ip -j link show eth0"))
    address = host.address(other, "shop")
    host.in_(one, f"ip neighbour replace {address} lladdr {link['address']} dev eth0 nud permanent")


@pytest.mark.parametrize("offload", ["on", "off"])
def test_s26_bytes_of_a_backend_are_those_that_its_device_has_counted(prepared: Host, offload: str) -> None:
    """Of ten connections of a megabyte each way. Large packets count as the segments that they stand for: with those
    off the device counts each by itself, too."""
    prepared.ctl(f"service create {NET} web")
    prepared.run("w1", f"{NET} --service web", [sys.executable, "-u", "-c", SINK])
    prepared.run("client", NET)
    for name in ("w1", "client"):
        prepared.in_(name, f"ethtool -K eth0 tso {offload} gso {offload} gro {offload}")
    knows(prepared, "w1", "client")
    (vip,) = vips(prepared)
    with eventually() as until:
        until(lambda: prepared.try_in("client", ["bash", "-c", f"</dev/tcp/{vip}/80"]).returncode == 0)
        until(lambda: not prepared.in_("w1", "ss -Htn state connected sport = :80"))
    before, device = of_backend(prepared, "w1"), of_device(prepared, "w1")
    done = prepared.in_("client", [sys.executable, "-c", SENDER, vip, "10"], timeout=120)
    assert done == "done"
    with eventually() as until:
        until(lambda: not prepared.in_("w1", "ss -Htn state connected sport = :80"))
    found = of_backend(prepared, "w1").since(before)
    for packets, length in (found[:2], found[2:]):  # on a busy machine something may be sent twice
        assert length >= 10 * (MEGABYTE + SYN) + SEGMENT * (packets - 10)
    assert found.packets_in >= 10 * MEGABYTE / 1448 and found.packets_out >= 10 * MEGABYTE / 1448
    seen = of_device(prepared, "w1").since(device)
    if offload == "off":
        assert found == seen
    else:  # each header that it has not seen is one of a segment
        joined = Passed(found.packets_in - seen.packets_in, 0, found.packets_out - seen.packets_out, 0)
        assert joined.packets_in > 0 and found.bytes_in - seen.bytes_in == SEGMENT * joined.packets_in
        assert joined.packets_out > 0 and found.bytes_out - seen.bytes_out == SEGMENT * joined.packets_out


def test_s26_what_passes_is_counted_whoever_asks_and_by_whatever(prepared: Host) -> None:
    """TCP and UDP, IPv4 and IPv6, a member, a backend that asks itself, the host, and somebody outside by a published
    port: as the packet filter of the backend has counted, and the rows of the connections say."""
    prepared.ctl("service create --network both -p 8080:80 -p 8080:80/udp web")
    serve(prepared, "w1", "--network both --service web", "both")
    prepared.run("client", "--network both")
    counted_in(prepared, "w1")
    prepared.ctl("ct flush")
    before, filtered = of_backend(prepared, "w1"), by_filter(prepared, "w1")
    four, six = vips(prepared)
    for proto in ("tcp", "udp"):
        for address in (four, six):
            for name in ("client", "w1"):
                prepared.in_(name, client(proto, address, 80, 5))
            prepared.sh(client(proto, address, 80, 5))
        prepared.outside.sh(client(proto, HOST, 8080, 5))
    with eventually() as until:
        until(lambda: not prepared.in_("w1", "ss -Htn state connected sport = :80"))
    found = of_backend(prepared, "w1").since(before)
    assert found.packets_in > 200 and found == by_filter(prepared, "w1").since(filtered)
    rows = lines(prepared.ctl("ct ls --container w1 --format json"))
    sums = [sum(row[key] for row in rows) for key in ("Packets", "Bytes", "ReplyPackets", "ReplyBytes")]
    assert sums == list(found)


def test_s26_counts_go_on_when_programs_are_replaced_and_when_a_backend_goes(prepared: Host) -> None:
    """A connection counts on by the new programs, and what a backend has had stays with its service."""
    prepared.ctl(f"service create {NET} web")
    serve(prepared, "w1", f"{NET} --service web", "shop")
    prepared.run("client", NET)
    counted_in(prepared, "w1")
    (vip,) = vips(prepared)
    enter = ["nsenter", "-t", str(prepared.process("client")), "--net"]
    before, filtered = of_backend(prepared, "w1"), by_filter(prepared, "w1")
    talker = prepared.start([*enter, "python3", "-u", "-c", TALKER, vip], stdin=PIPE, stdout=PIPE)
    assert talker.stdin is not None and talker.stdout is not None
    try:
        for timeout in (25, 26, 27):
            for _ in range(20):
                talker.stdin.write("again\n")
                talker.stdin.flush()
                assert talker.stdout.readline() == "again\n"
            prepared.configure({"datapath": {"timeouts": {"icmp": timeout}}})
            assert "replaced" in prepared.ctl("upgrade")
    finally:
        talker.communicate(timeout=PATIENCE)
        prepared.configure({})
        prepared.ctl("upgrade")
    with eventually() as until:
        until(lambda: not prepared.in_("w1", "ss -Htn state connected sport = :80"))
    found = of_backend(prepared, "w1")
    assert found.since(before) == by_filter(prepared, "w1").since(filtered) and found.packets_in > 60
    assert of_service(prepared) == found
    prepared.ctl("rm -f w1")
    assert of_service(prepared) == found
    serve(prepared, "w2", f"{NET} --service web", "shop")
    prepared.in_("client", client("udp", vip, 80, 5))
    more = of_backend(prepared, "w2")
    assert more.packets_in == more.packets_out == 5
    assert of_service(prepared) == Passed(*(a + b for a, b in zip(found, more, strict=True)))
    text = prepared.ctl("stats --format prometheus").splitlines()
    line = f'datapath_service_bytes_total{{service="web",backend="w2",direction="in"}} {more.bytes_in}'
    assert line in text
