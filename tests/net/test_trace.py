# SPDX-License-Identifier: Apache-2.0
"""Live tracing: what is measured, whose it is, and what is said where it cannot be."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel import netns
from datapath.telemetry.latency import Device, LatencyTrace
from tests.net.hosts import DATAPATHCTL, PATIENCE, Host, Namespace, eventually

# Sends so many UDP datagrams of 100 bytes to a port.
SEND = """
import socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(count):
    try:
        client.sendto(bytes(100), (address, port))
    except ConnectionError:
        pass
"""


def send(address: str, port: int, count: int) -> list[str]:
    return ["python3", "-c", SEND, address, str(port), str(count)]


# Receives for good, and answers nothing.
RECEIVE = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
server.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    server.recv(65535)
"""


def receiver(port: int) -> list[str]:
    return ["python3", "-u", "-c", RECEIVE, str(port)]


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    """Two containers that reach each other, and one of another network."""
    shared_host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 net1")
    shared_host.ctl("network create --ipv6 --subnet 10.6.0.0/24 --subnet fd00:6::/64 net2")
    shared_host.run("asker", "--network net1", receiver(9))
    shared_host.run("server", "--network net1 -p 8053:9/udp", receiver(9))
    shared_host.run("apart", "--network net2")
    with eventually() as until:
        until(lambda: "ready" in shared_host.ctl("logs asker") and "ready" in shared_host.ctl("logs server"))
    yield shared_host


class Tracer:
    """`datapathctl trace …`, from the moment that it traces."""

    def __init__(self, host: Host, command: str) -> None:
        self._process = host.start(
            [DATAPATHCTL, "trace", *command.split(), "--format=json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        assert self._process.stderr.readline() == "Tracing. Ctrl-C ends it.\n"

    def line(self) -> Any:
        """The next that it prints."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def stop(self) -> list[Any]:
        """Ctrl-C; what it prints."""
        self._process.send_signal(signal.SIGINT)
        out, said = self._process.communicate(timeout=PATIENCE)
        assert (self._process.returncode, said) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


def packets(lines: list[Any]) -> dict[tuple[str, str], int]:
    """By sender and receiver; that every one was counted in a plausible bucket is checked, too."""
    for line in lines:
        assert sum(line["Counts"]) == line["Packets"]
        assert not any(line["Counts"][:8]), "less than 256 ns is no way from container to container"
    return {(line["From"], line["To"]): line["Packets"] for line in lines}


# ---- latency --------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["4", "6"])
def test_every_datagram_between_two_containers_is_counted_once(prepared: Host, network: str) -> None:
    address = (
        prepared.address("server", "net1")
        if network == "4"
        else prepared.inspect("server")["NetworkSettings"]["Networks"]["net1"]["GlobalIPv6Address"]
    )
    tracer = Tracer(prepared, "latency asker server")
    prepared.in_("asker", send(address, 9, 300))
    counted = packets(tracer.stop())
    assert 300 <= counted["asker", "server"] <= 302  # neighbour solicitations
    assert counted.get(("server", "asker"), 0) <= 2


def test_with_one_name_it_is_that_container_and_the_others(prepared: Host) -> None:
    """What goes between others, to the host, and out, is not counted; nor what a packet's memory is used for next."""
    tracer = Tracer(prepared, "latency server")
    prepared.in_("asker", send(prepared.address("server", "net1"), 9, 50))
    prepared.in_("apart", send(prepared.address("server", "net1"), 9, 50))  # isolated
    prepared.in_("server", send("10.5.0.1", 9, 50))
    prepared.in_("server", send("203.0.113.5", 9, 50))
    prepared.outside.sh(send("192.0.2.1", 8053, 50))
    prepared.sh(send(prepared.address("server", "net1"), 9, 50))
    counted = packets(tracer.stop())
    assert 50 <= counted.pop(("asker", "server")) < 55
    assert sum(counted.values()) < 10  # neighbour solicitations


def test_a_published_port_of_the_sender_itself_is_a_way_too(prepared: Host) -> None:
    tracer = Tracer(prepared, "latency")
    prepared.in_("server", send("192.0.2.1", 8053, 40))
    prepared.in_("apart", send("192.0.2.1", 8053, 40))
    assert 80 <= packets(tracer.stop())["", ""] < 85


def test_follow_prints_what_came_since_it_last_did(prepared: Host) -> None:
    address = prepared.address("server", "net1")
    tracer = Tracer(prepared, "latency asker server --follow")
    prepared.in_("asker", send(address, 9, 20))
    first = tracer.line()  # long before Ctrl-C
    prepared.in_("asker", send(address, 9, 10))
    rest = tracer.stop()
    assert first["Packets"] > 0
    assert first["Packets"] + sum(line["Packets"] for line in rest) == 30


def test_a_time_that_has_passed_ends_it(prepared: Host) -> None:
    done = prepared.try_ctl("trace latency --seconds 0.1")
    assert (done.returncode, done.stdout) == (0, "No packet went from container to container.\n")


class Bridged:
    """Two namespaces, 10.7.0.1 and .2, at the Linux bridge of a third, 10.7.0.254."""

    def __init__(self, stack: ExitStack) -> None:
        self.switch, *self.ends = (Namespace() for _ in range(3))
        for namespace in (self.switch, *self.ends):
            stack.callback(namespace.close)
            # It would send packets of its own, at moments of its own.
            namespace.sh(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"])
        self.switch.sh("ip link add br0 address 02:00:00:00:00:fe type bridge")  # whatever ports it gets
        self.switch.sh("ip address add 10.7.0.254/24 dev br0")
        self.switch.sh("ip link set br0 up")
        for number, end in enumerate(self.ends, 1):
            self.switch.sh(f"ip link add port{number} type veth peer name eth0 netns {end.pid}")
            self.switch.sh(f"ip link set port{number} master br0 up")
            end.sh(f"ip address add 10.7.0.{number}/24 dev eth0")
            end.sh("ip link set eth0 up")
        self.devices = [Device(label, end.path, "eth0") for label, end in zip("cs", self.ends, strict=True)]


@pytest.fixture
def bridged() -> Iterator[Bridged]:
    with ExitStack() as stack:
        yield Bridged(stack)


def test_the_way_over_a_linux_bridge_is_measured_likewise(bridged: Bridged) -> None:
    """What a comparison needs: the same two points, whatever lies between them."""
    client, server = bridged.ends
    server.start(receiver(9))
    client.sh("ping -q -c 1 10.7.0.2")
    with LatencyTrace(bridged.devices) as trace:
        client.sh(send("10.7.0.2", 9, 300))
        assert sum(trace.pairs()["c", "s"]) == 300
        client.sh("ping -q -f -c 100 10.7.0.2")
        assert sum(trace.pairs()["c", "s"]) == 400
        assert sum(trace.pairs()["s", "c"]) == 100
        assert sum(trace.counts()) == 500


def test_a_packet_in_the_memory_of_an_earlier_one_is_not_taken_for_it(bridged: Bridged) -> None:
    """Every packet of one container ends in the host, and every one to the other comes from there, or from a device."""
    client, server = bridged.ends
    server.sh("ping -q -c 1 10.7.0.254")
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the allocator's lists are per CPU
        sink = stack.enter_context(socket_in(bridged.switch, socket.SOCK_DGRAM, ("10.7.0.254", 9)))
        listener = stack.enter_context(socket_in(bridged.switch, socket.SOCK_STREAM, ("10.7.0.254", 9)))
        listener.listen()
        sender = stack.enter_context(socket_in(client, socket.SOCK_DGRAM))
        stream = stack.enter_context(socket_in(client, socket.SOCK_STREAM))
        stream.connect(("10.7.0.254", 9))
        accepted = stack.enter_context(listener.accept()[0])
        accepted.settimeout(PATIENCE)
        host = stack.enter_context(socket_in(bridged.switch, socket.SOCK_DGRAM))
        tap = stack.enter_context(tap_at(bridged.switch))
        frame = frame_to(server)
        with LatencyTrace(bridged.devices) as trace:
            for _ in range(200):
                sender.sendto(b"x" * 10, ("10.7.0.254", 9))
                sink.recv(100)
                tap.write(frame)
                sender.sendto(b"x" * 10, ("10.7.0.254", 9))
                sink.recv(100)
                host.sendto(b"x" * 10, ("10.7.0.2", 9))
                accepted.send(b"x" * 10)
                stream.recv(100)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # an empty packet, now
                tap.write(frame)
            assert trace.pairs() == {}


def socket_in(namespace: Namespace, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
    with netns.enter(namespace.path):
        made = socket.socket(socket.AF_INET, kind)
        made.settimeout(PATIENCE)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address:
        made.bind(address)
    return made


def tap_at(switch: Namespace) -> io.FileIO:
    """A port of the bridge whose frames are what is written to the file."""
    with netns.enter(switch.path):
        file = io.FileIO("/dev/net/tun", "r+")
        # TUNSETIFF; IFF_TAP | IFF_NO_PI | IFF_NAPI | IFF_NAPI_FRAGS: it takes its memory as network cards do.
        fcntl.ioctl(file, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x0002 | 0x1000 | 0x0010 | 0x0020))
    switch.sh("ip link set tap0 master br0 up")
    return file


def frame_to(server: Namespace) -> bytes:
    """A UDP datagram to port 9, without a checksum."""
    mac = bytes.fromhex(json.loads(server.sh("ip -j link show eth0"))[0]["address"].replace(":", ""))
    link = mac + bytes.fromhex("020000000001") + b"\x08\x00"
    return (
        link
        + bytes.fromhex("4500001c 00000000 4011665f 0a070063 0a070002".replace(" ", ""))
        + struct.pack("!4H", 9, 9, 8, 0)
    )


# ---- drops ----------------------------------------------------------------------------


def test_drops_name_the_container_the_reason_and_the_place(prepared: Host) -> None:
    """Datagrams to no socket, and some to another network."""
    tracer = Tracer(prepared, "drops")
    prepared.in_("asker", send(prepared.address("server", "net1"), 7777, 20))  # nobody listens
    prepared.in_("apart", send(prepared.address("server", "net1"), 9, 30))
    lines = tracer.stop()
    kernel = {(r["Container"], r["Device"], r["Reason"]): r for r in lines if "Reason" in r}
    unheard = kernel["server", "eth0", "NO_SOCKET"]
    assert unheard["Packets"] == 20
    assert "udp" in unheard["Location"]
    assert kernel["apart", host_end(prepared, "apart"), "TC_INGRESS"]["Packets"] == 30
    ours = {r["Counter"]: r for r in lines if "Counter" in r}
    assert ours["DROP_ISOLATED"] == {
        "Kind": "counter",
        "Counter": "DROP_ISOLATED",
        "Packets": 30,
        "Bytes": 30 * (100 + 8 + 20 + 14),
    }


def test_what_the_packet_programs_drop_is_shown_with_who_sent_it_and_where_to(prepared: Host) -> None:
    """Each packet of each reason, at tc and at XDP, of both families; none that came before."""
    server = prepared.inspect("server")["NetworkSettings"]["Networks"]["net1"]
    prepared.in_("apart", send(server["IPAddress"], 9, 5))
    prepared.ctl("port add server 8054:9/udp,deny=192.0.2.2/32")
    tracer = Tracer(prepared, "drops")
    prepared.in_("apart", send(server["IPAddress"], 9, 30))
    prepared.in_("apart", send(server["GlobalIPv6Address"], 9, 20))
    prepared.in_("apart", ["sh", "-c", f"! ping -q -c 1 -W 0.2 {server['IPAddress']}"])
    prepared.outside.sh(send("192.0.2.1", 8054, 10))
    prepared.outside.sh(send("192.0.2.1", 8053, 10))  # nobody drops them
    lines = tracer.stop()
    prepared.ctl("port rm server 8054:9/udp,deny=192.0.2.2/32")
    device = host_end(prepared, "apart")
    apart = prepared.inspect("apart")["NetworkSettings"]["Networks"]["net2"]
    found = {
        (r["Reason"], r["Protocol"], r["Source"], r["Destination"]): (
            r["Container"],
            r["Device"],
            r["Packets"],
        )
        for r in lines
        if r["Kind"] == "program"
    }
    v4, v6 = ("udp", apart["IPAddress"], f"{server['IPAddress']}:9"), ("udp", apart["GlobalIPv6Address"])
    assert found["DROP_ISOLATED", *v4] == ("apart", device, 30)
    assert found["DROP_ISOLATED", *v6, f"[{server['GlobalIPv6Address']}]:9"] == ("apart", device, 20)
    assert found["DROP_ISOLATED", "icmp", apart["IPAddress"], server["IPAddress"]] == ("apart", device, 1)
    assert found["DROP_DENIED", "udp", "192.0.2.2", "192.0.2.1:8054"] == ("", "eth0", 10)
    counted = {r["Counter"]: r["Packets"] for r in lines if r["Kind"] == "counter"}
    assert counted["DROP_DENIED"] == 10 and counted["DROP_ISOLATED"] == 51
    assert not [key for key in found if key[3] == "192.0.2.1:8053"]


def host_end(host: Host, name: str) -> str:
    """The host's end of a container's device."""
    index = host.in_(name, "cat /sys/class/net/eth0/iflink")
    return str(
        next(link["ifname"] for link in json.loads(host.sh("ip -j link")) if link["ifindex"] == int(index))
    )


# ---- where it cannot be ------------------------------------------------------------------


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode not in (0, 70)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("command", ["latency", "drops"])
def test_without_bcc_one_line_says_what_to_install(prepared: Host, tmp_path: Path, command: str) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    said = one_line(
        prepared.try_(["env", f"PYTHONPATH={tmp_path}", DATAPATHCTL, "trace", command, "--seconds", "1"])
    )
    assert "apt-get install python3-bpfcc" in said


def hiding(prepared: Host, folders: list[str]) -> subprocess.CompletedProcess[str]:
    """`trace latency` where these folders are empty."""
    hidden = [f"mount -t tmpfs none {folder}" for folder in folders]
    command = f"exec env BCC_KERNEL_SOURCE=/nowhere {DATAPATHCTL} trace latency --seconds 0.1"
    return prepared.try_(["unshare", "--mount", "sh", "-ec", "\n".join([*hidden, command])])


def test_neither_headers_nor_tracefs_are_needed(prepared: Host) -> None:
    """Wherever bcc would look for headers there are none."""
    folders = ["/usr/src", "/sys/kernel/tracing", "/sys/kernel/debug"]
    done = hiding(prepared, [*folders, *(["/lib/modules"] if Path("/lib/modules").exists() else [])])
    assert done.returncode == 0, done.stderr


def test_a_kernel_without_btf_is_told_so_in_one_line(prepared: Host) -> None:
    done = hiding(prepared, ["/sys/kernel/btf"])
    assert "this kernel does not have BTF" in one_line(done)
    assert done.returncode == 12


def test_containers_that_cannot_be_traced_are_refused(prepared: Host) -> None:
    prepared.run("bare", "--network none")
    prepared.ctl("run --name over --network net1 true")
    assert prepared.refused("trace latency nobody") == "datapathctl: No such container: nobody"
    assert (
        prepared.refused("trace latency bare")
        == "datapathctl: container bare has no network device of its own"
    )
    assert prepared.refused("trace latency over") == "datapathctl: container over is not running"
    assert "--seconds" in prepared.refused("trace latency --seconds -1")
