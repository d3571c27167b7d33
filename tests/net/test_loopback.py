# SPDX-License-Identifier: Apache-2.0
"""Published ports for what the host sends past the socket hooks: over its loopback device."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from datapath.kernel import features
from tests.net.hosts import Host, ask, echo_server, eventually, loses, reaches
from tests.net.test_host_sockets import TALK, _ask

ADDRESSES = ["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1"]

# Sends one datagram or segment by hand, past every hook, from a port to 8081, and prints from where to where the
# first answer goes: addresses and ports as they are in its headers.
BY_HAND = """
import socket, struct, sys
kind, address, own = sys.argv[1:]
proto = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}[kind]
six = ":" in address
raw = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, proto)
raw.settimeout(60)
if kind == "udp":
    body = struct.pack("!HHHH", int(own), 8081, 9, 0) + b"?"
else:
    body = struct.pack("!HHIIBBHHH", int(own), 8081, 1, 0, 0x50, 2, 1000, 0, 0)
at = 6 if kind == "udp" else 16
packed = socket.inet_pton(raw.family, address)
if six:
    raw.setsockopt(socket.IPPROTO_IPV6, 7, at)  # IPV6_CHECKSUM
else:
    sums = packed * 2 + struct.pack("!HH", proto, len(body)) + body + b"\\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(sums) // 2}H", sums))
    total = (total & 0xffff) + (total >> 16)
    total = ~((total & 0xffff) + (total >> 16)) & 0xffff
    body = body[:at] + struct.pack("!H", total) + body[at + 2:]
raw.sendto(body, (address, 0))
while True:
    got, (source, *_) = raw.recvfrom(2000)
    target = address
    if not six:
        source, target = socket.inet_ntoa(got[12:16]), socket.inet_ntoa(got[16:20])
        got = got[(got[0] & 15) * 4:]
    sport, dport = struct.unpack("!HH", got[:4])
    if sport == 8081 and got[8:] != b"?":
        said = got[8:].decode().strip() if kind == "udp" else got[13]
        print(source, sport, target, dport, said)
        break
"""


def by_hand(kind: str, address: str, port: int = 4001) -> list[str]:
    return [sys.executable, "-c", BY_HAND, kind, address, str(port)]


@pytest.fixture(scope="module")
def web(shared_host: Host) -> Iterator[Host]:
    """A container that echoes TCP and UDP on port 80, published at port 8081 of every address of both families."""
    host = shared_host
    host.sh("ip -6 address add 2001:db8::1/64 dev eth0 nodad")
    host.ctl("network create --ipv6 six")
    for kind in ("tcp", "udp"):
        host.run(kind, f"--network six -p 8081:80/{kind}", echo_server(kind, 80, "::"))
    with eventually() as until:
        until(lambda: all(host.try_(ask(k, "127.0.0.1", 8081, 1)).returncode == 0 for k in ("tcp", "udp")))
    yield host


def seen(host: Host, address: str) -> str:
    """The address that the server is to see (S19): its client's own, but for loopback the gateway's."""
    if address not in ("127.0.0.1", "::1"):
        return address
    subnets: list[str] = [entry["Gateway"] for entry in host.network("six")["IPAM"]["Config"]]
    return next(gateway for gateway in subnets if (":" in gateway) == (":" in address))


@pytest.mark.parametrize("address", ADDRESSES)
def test_s19_a_datagram_from_a_raw_socket_is_answered_from_where_it_was_sent_to(
    web: Host, address: str
) -> None:
    source, sport, target, dport, server_saw = web.sh(by_hand("udp", address)).split()
    assert (source, sport, target, dport) == (address, "8081", address, "4001")
    assert server_saw.removeprefix("::ffff:") == seen(web, address)


@pytest.mark.parametrize("port", [8081, 8083])
def test_s19_an_answer_to_a_published_port_is_no_question(web: Host, port: int) -> None:
    """Its tuple could be that of a packet that the host sends to the published port."""
    if port == 8083:
        web.ctl("port add udp 8083:81/udp")
    found = web.sh(by_hand("udp", "192.0.2.1", port)).split()
    assert found == ["192.0.2.1", "8081", "192.0.2.1", str(port), "::ffff:192.0.2.1"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_s19_a_syn_from_a_raw_socket_is_answered_from_where_it_was_sent_to(web: Host, address: str) -> None:
    assert web.sh(by_hand("tcp", address)).split() == [address, "8081", address, "4001", str(0x12)]


# Connects to port 8082, sends `size` bytes, and prints how many came back, and both ends' addresses.
BULK = """
import socket, sys, threading
address, size = sys.argv[1], int(sys.argv[2])
client = socket.create_connection((address, 8082), timeout=60)
ends = client.getsockname()[0], *client.getpeername()[:2]
threading.Thread(target=lambda: (client.sendall(b"x" * size), client.shutdown(socket.SHUT_WR))).start()
got = 0
while data := client.recv(1 << 16):
    got += len(data)
print(got, *ends)
"""
ROW = "{{.Source}} {{.Destination}} {{.NatSource}} {{.State}} {{.Containers}}"
BULK_SERVER = """
import socket
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, peer = server.accept()
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.close()
"""


@pytest.fixture(scope="module")
def unhooked(web: Host) -> Iterator[Host]:
    """The same with a server for streams at port 8082, and no program that sees connect(): who connects comes by
    the loopback device. The next command that changes something attaches it again."""
    web.run("bulk", "--network six -p 8082:80", ["python3", "-c", BULK_SERVER])
    with eventually() as until:
        until(lambda: web.try_([sys.executable, "-c", BULK, "127.0.0.1", "1"]).returncode == 0)
    for name in ("host_connect4", "host_connect6"):
        (web.bpffs / "datapath" / "links" / name).unlink()
    yield web


@pytest.mark.parametrize("address", ADDRESSES)
def test_s19_a_stream_passes_by_the_loopback_device(unhooked: Host, address: str) -> None:
    size = 3 << 20
    said = unhooked.sh([sys.executable, "-c", BULK, address, str(size)])
    assert said.split() == [str(size), address, address, "8082"]
    rows = unhooked.ctl(["ct", "ls", "--container", "bulk", "--src", address, "--format", ROW]).splitlines()
    shown = f"[{address}]:8082" if ":" in address else f"{address}:8082"
    (row,) = (row.split() for row in rows if f" {shown} " in row)
    assert row[0].startswith(shown.removesuffix("8082")) and row[3:] == ["closed", "bulk"]
    assert seen(unhooked, address) in row[2]


# A VXLAN device that sends by the network even what is for this host: iproute2 has a word for it since 6.5. An older
# kernel passes over what it does not know, so it is asked what it has understood.
VXLAN = """
from pyroute2.netlink.rtnl.ifinfmsg.plugins.vxlan import vxlan
vxlan.nla_map += (("IFLA_VXLAN_VNIFILTER", "uint8"), ("IFLA_VXLAN_LOCALBYPASS", "uint8"))
from pyroute2 import IPRoute
with IPRoute() as route:
    route.link("add", ifname="vx0", kind="vxlan", vxlan_id=7, vxlan_port=4790, vxlan_learning=0, vxlan_localbypass=0)
    (made,) = route.link("get", ifname="vx0")
assert made.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_VXLAN_LOCALBYPASS") == 0
"""


def test_s19_a_tunnel_of_the_kernel_reaches_its_other_end_in_a_container(host: Host) -> None:
    """A VXLAN device sends without any call that a socket hook could see."""
    if host.try_([sys.executable, "-c", VXLAN]).returncode:
        pytest.skip(
            "this kernel's VXLAN devices hand what is for the host over by themselves (nolocalbypass: 6.5)"
        )
    host.run("end", "-p 4789:4789/udp")
    host.in_("end", "ip link add vx0 type vxlan id 7 nolearning dstport 4789")
    for run, own, peer, port in (
        (host.sh, "10.77.0.1", "127.0.0.1", 4789),
        (functools.partial(host.in_, "end"), "10.77.0.2", "192.0.2.1", 4790),
    ):
        run(f"ip address add {own}/24 dev vx0")
        run("ip link set vx0 up mtu 1400")
        run(f"bridge fdb append 00:00:00:00:00:00 dev vx0 dst {peer} port {port}")
    with eventually() as until:
        until(lambda: not loses(host.try_, "10.77.0.2"))
    host.sh("bridge fdb delete 00:00:00:00:00:00 dev vx0 dst 127.0.0.1 port 4789")
    assert loses(host.try_, "10.77.0.2")
    host.sh("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.1 port 4789")
    assert reaches(host.try_, "10.77.0.2", 3)
    # In one piece, whatever the container's MTU is: in between is nothing but memory.
    host.sh("ip link set vx0 mtu 9000")
    assert reaches(lambda ping: host.try_(f"{ping} -s 8000"), "10.77.0.2", 2)


def test_s19_sockets_that_were_connected_before_anything_was_loaded_reach_the_container(host: Host) -> None:
    talkers = [
        host.start(
            [sys.executable, "-u", "-c", TALK, "udp", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for address in ("192.0.2.1", "127.0.0.1")
    ]
    for talker in talkers:
        assert "refused" in _ask(talker)
    host.run("web", "-p 8081:80/udp", echo_server("udp", 80))
    with eventually() as until:
        until(lambda: all("heard" in _ask(talker) for talker in talkers))
    host.ctl("port rm web 8081:80/udp")
    host.ctl("port add web 8081:81/udp")
    assert host.ctl("ct flush --container web --proto udp") == "2"  # they would go on, as from outside
    # The container's own "port unreachable", about a packet that the socket has never sent.
    for talker in talkers:
        assert "refused" in _ask(talker) and "refused" in _ask(talker)


def test_s19_sockets_of_the_host_that_talk_to_each_other_never_notice(host: Host) -> None:
    server = host.start(echo_server("udp", 9000, "127.0.0.1"), stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline()
    talk = TALK.replace("8081", "9000")
    argv = [sys.executable, "-u", "-c", talk, "udp", "127.0.0.1"]
    talker = host.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert "heard b'127.0.0.1" in _ask(talker)
    host.run("web", "-p 192.0.2.1:9000:80/udp -p 8081:81/udp")
    assert "heard b'127.0.0.1" in _ask(talker)
    assert host.sh(ask("udp", "127.0.0.1", 9000)).split() == ["127.0.0.1", "127.0.0.1", "9000"]
    assert not host.ctl(["ct", "ls", "--format", ROW])
    host.ctl("down")
    assert "heard b'127.0.0.1" in _ask(talker)


def test_s19_a_source_of_the_host_that_may_not_connect_is_refused_at_once(host: Host) -> None:
    host.run("web", "-p 8081:80,deny=192.0.2.1 -p 8081:80/udp,deny=127.0.0.1", echo_server("tcp", 80))
    assert "refused" in host.try_(ask("tcp", "192.0.2.1", 8081)).stderr
    assert "refused" in host.sh([sys.executable, "-c", TALK, "udp", "127.0.0.1"], input="go\n")
    with eventually() as until:
        until(lambda: host.try_(ask("tcp", "127.0.0.1", 8081)).returncode == 0)


def settings(host: Host) -> str:
    return host.sh("sysctl -a --pattern ^net.*lo[.]") + host.sh("sysctl -a --pattern ^net.ipv4.conf.all")


@pytest.mark.parametrize("attach", ["auto", "clsact"])
def test_s31_the_loopback_device_is_looked_at_only_while_it_may_have_something_for_containers(
    make_host: Callable[..., Host], attach: str
) -> None:
    """What arrives there may be for a published port, or what a name server of the host's own has answered."""
    host = make_host(attach=attach)
    host.sh("tc qdisc add dev lo clsact")
    host.sh("tc filter add dev lo ingress prio 9000 protocol ip u32 match u32 0 0 classid 1:1")
    others, before = host.sh("tc filter show dev lo ingress"), settings(host)

    def attached() -> bool:
        if attach == "clsact" or not features.has_tcx():
            return "from_loopback" in host.sh("tc filter show dev lo ingress")
        return (host.bpffs / "datapath" / "links" / "from_loopback-1").exists()

    host.ctl("network create shop")
    assert not attached()
    host.run("web", "--dns 127.0.0.1", echo_server("udp", 80))
    assert attached()
    host.ctl("port add web 8081:80/udp")
    with eventually() as until:
        until(lambda: host.try_(ask("udp", "127.0.0.1", 8081, 1)).returncode == 0)
    assert host.sh(by_hand("udp", "127.0.0.1")).split()[:2] == ["127.0.0.1", "8081"]
    assert settings(host) == before
    host.ctl("rm -f web")
    assert not attached()
    host.run("web", "--dns 127.0.0.1")
    assert attached()
    host.ctl("down")
    assert not attached() and settings(host) == before
    assert host.sh("tc filter show dev lo ingress") == others
