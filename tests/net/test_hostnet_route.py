# SPDX-License-Identifier: Apache-2.0
"""Containers' packets by the host's routes: sizes, rules, addresses that change while connections live, IPsec."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from tests.net.compare import config, host_case, options
from tests.net.hosts import FAR, HOST, OUTSIDE, Host, Namespace, ask, echo_server, eventually

MakeHost = Callable[..., Host]
Keep = Callable[..., Host]
HOST6, OUTSIDE6 = "2001:db8:77::1", "2001:db8:77::2"
UP1, OTHER_SIDE = "10.78.0.1", "10.78.0.2"  # the second uplink
RENEWED = "192.0.2.77"

# Answers each datagram with its length, a checksum of it, and the peer's address; `-` in place of a packet is no reason
# to stop.
MEASURING = """
import socket, sys, zlib
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IP, 10, 5)
server.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(65535)
    server.sendto(f"{len(data)} {zlib.crc32(data)} {peer[0]}".encode(), peer)
"""
# Sends so many bytes that need not stay whole (IP_MTU_DISCOVER = IP_PMTUDISC_OMIT), says whether they arrived as sent.
SENDING = """
import os, socket, sys, zlib
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.IPPROTO_IP, 10, 5)
client.settimeout(float(sys.argv[4]))
client.connect((address, port))
data = os.urandom(size)
client.send(data)
length, checksum, peer = client.recv(100).decode().split()
assert (int(length), int(checksum)) == (size, zlib.crc32(data)), length
print(peer)
"""
# Sends a megabyte, waits until it was read, and says how large its segments are (tcpi_snd_mss).
STREAMING = """
import socket, struct, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)
client.sendall(bytes(1 << 20))
client.shutdown(socket.SHUT_WR)
assert client.recv(10) == b"read"
print(struct.unpack_from("=I", client.getsockopt(socket.IPPROTO_TCP, 11, 104), 16)[0])
"""
SINK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.socket(family, socket.SOCK_STREAM)
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen(8)
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"read")
    connection.close()
"""
# A flow for each number given on standard input: asks "who am I" over the same sockets again.
FLOWS = """
import collections, json, socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
flows = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
for flow in flows:
    flow.settimeout(60)
    flow.connect((address, port))
for line in sys.stdin:
    seen = collections.Counter()
    for flow in flows:
        flow.send(b"?")
        seen[flow.recv(100).decode().strip()] += 1
    print(json.dumps(seen), flush=True)
"""
# Connects from a given port, with a given TOS; says what the server sees.
FROM = """
import socket, sys
proto, address, port, own, tos = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
client.settimeout(60)
client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
client.bind(("0.0.0.0", own))
client.connect((address, port))
proto == "tcp" or client.send(b"?")
print(client.recv(100).decode().strip())
"""


def script(text: str, *arguments: object) -> list[str]:
    return ["python3", "-u", "-c", text, *map(str, arguments)]


def serve(place: Namespace, command: list[str]) -> None:
    """Starts a server, and waits until it listens."""
    server = place.start(command, stdout=-1)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"


def serve_in(host: Host, name: str, command: list[str]) -> None:
    serve(host, ["nsenter", "-t", str(host.process(name)), "--net", *command])


@pytest.fixture
def second(make_host: MakeHost) -> Iterator[Callable[[str], tuple[Host, Namespace]]]:
    """Makes a host with two uplinks: `FAR` is behind each, the default route leads over the first. Table 200 leads over
    the second."""
    made: list[Namespace] = []

    def make(mode: str) -> tuple[Host, Namespace]:
        host, other = make_host(config=config(mode)), Namespace()
        made.append(other)
        host.sh(f"ip link add up1 type veth peer name eth0 netns {other.pid}")
        host.sh(f"ip address add {UP1}/24 dev up1")
        host.sh("ip link set up1 up")
        other.sh(f"ip address add {OTHER_SIDE}/24 dev eth0")
        other.sh(f"ip address add {FAR}/32 dev lo")
        other.sh("ip link set eth0 up")
        host.sh(f"ip route add default via {OTHER_SIDE} table 200")
        for device in ("all", "eth0", "up1"):
            host.sh(f"sysctl -qw net.ipv4.conf.{device}.rp_filter=0")
        return host, other

    yield make
    for namespace in made:
        namespace.close()


# ---- sizes -------------------------------------------------------------------------------------------------------


def slightly_narrower(make: MakeHost, mode: str) -> Host:
    """With an uplink of 1490 bytes, and a container that believes in 1500."""
    host = make()
    for place, address in ((host, HOST6), (host.outside, OUTSIDE6)):
        place.sh(f"ip address add {address}/64 dev eth0 nodad")
    pools = "--subnet 10.5.0.0/24 --ipv6 --subnet fd05::/64"
    host.ctl(f"network create {options(mode)} {pools} -o com.docker.network.driver.mtu=1500 net")
    host.sh("ip link set eth0 mtu 1490")
    host.run("client", "--network net")
    return host


@pytest.mark.parametrize("version", [4, 6])
@host_case(2, "An uplink of 1490 bytes: TCP's options count, and segments fit it after one ICMP error")
def test_segments_fit_a_slightly_narrower_uplink(keep: Keep, version: int, mode: str) -> None:
    host = keep(slightly_narrower, mode)
    address = OUTSIDE if version == 4 else OUTSIDE6
    serve(host.outside, script(SINK, address, 90))
    overhead = (20 if version == 4 else 40) + 32  # IP, and TCP with time stamps
    assert int(host.in_("client", script(STREAMING, address, 90))) == 1490 - overhead


def narrow_way(make: MakeHost, mode: str) -> Host:
    """With a way out of 1400 bytes, which nobody has learned of, and a server there."""
    host = make(config=config(mode))
    host.run("client")
    for place in (host, host.outside):
        place.sh("ip link set eth0 mtu 1400")
    serve(host.outside, script(MEASURING, 90))
    return host


@pytest.mark.parametrize("size", [1372, 1373, 1460, 1473, 4000, 20000, 65000])
@host_case(3, "A way out of 1400 bytes: UDP that may be fragmented arrives, whatever its size")
def test_what_may_be_fragmented_is(keep: Keep, size: int, mode: str) -> None:
    host = keep(narrow_way, mode)
    for _ in range(3):
        assert host.in_("client", script(SENDING, OUTSIDE, 90, size, 60)) == HOST
    assert host.in_("client", f"ping -n -q -c 1 -M dont -s {size - 28} {OUTSIDE}")


def narrow_network(make: MakeHost, mode: str) -> Host:
    """With a network of 1300 bytes, a published server in it, and one outside."""
    host = make()
    host.ctl(f"network create {options(mode)} -o com.docker.network.driver.mtu=1300 net")
    host.run("server", "--network net -p 8090:90/udp", script(MEASURING, 90))
    host.run("client", "--network net")
    with eventually() as until:
        until(lambda: host.outside.try_(script(SENDING, HOST, 8090, 10, 1)).returncode == 0)
    serve(host.outside, script(MEASURING, 90))
    return host


@pytest.mark.parametrize("size", [1460, 4000])
@host_case(3, "A container behind 1300 bytes: UDP that may be fragmented arrives at its published port")
def test_what_may_be_fragmented_arrives_in_a_narrow_network(keep: Keep, size: int, mode: str) -> None:
    host = keep(narrow_network, mode)
    assert host.outside.sh(script(SENDING, HOST, 8090, size, 60)) == OUTSIDE
    assert host.in_("client", script(SENDING, OUTSIDE, 90, size, 60)) == HOST


# ---- rules -------------------------------------------------------------------------------------------------------

Second = Callable[[str], tuple[Host, Namespace]]


def via(host: Host, proto: str, port: int, own: int = 0, tos: int = 0) -> str:
    """The address with which a container's connection arrives."""
    return host.in_("client", script(FROM, proto, FAR, port, own, tos))


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@host_case(7, "Rules about protocol and port: `ip rule ipproto tcp dport 9000`")
def test_rules_about_ports_are_obeyed(second: Second, proto: str, mode: str) -> None:
    host, other = second(mode)
    host.run("client")
    host.sh(f"ip rule add ipproto {proto} dport 9000 lookup 200")
    for place in (host.outside, other):
        for port in (9000, 9001):
            serve(place, echo_server(proto, port, FAR))
    assert via(host, proto, 9000) == UP1
    assert via(host, proto, 9001) == HOST


@host_case(7, "Rules about the type of service: `ip rule tos 0x10`")
def test_rules_about_the_type_of_service_are_obeyed(second: Second, mode: str) -> None:
    host, other = second(mode)
    host.run("client")
    host.sh("ip rule add tos 0x10 lookup 200")
    for place in (host.outside, other):
        serve(place, echo_server("udp", 9000, FAR))
    assert via(host, "udp", 9000, tos=0x10) == UP1
    assert via(host, "udp", 9000) == HOST


@host_case(
    7,
    "A multipath route by ports (fib_multipath_hash_policy=1): as `ip route get` says",
    iptables="for packets from containers of the same host the kernel takes the sending socket's hash",
)
def test_a_multipath_route_is_taken_as_ip_route_get_says(second: Second, mode: str) -> None:
    host, other = second(mode)
    host.run("client")
    host.sh("sysctl -qw net.ipv4.fib_multipath_hash_policy=1")
    host.sh(f"ip route replace default nexthop via {OUTSIDE} dev eth0 nexthop via {OTHER_SIDE} dev up1")
    for place in (host.outside, other):
        serve(place, echo_server("tcp", 9000))
    gateway = host.network(host.usual)["IPAM"]["Config"][0]["Gateway"]
    device = re.search(
        r"dev (\S+)", host.sh(f"ip -o route show table local {gateway}").replace("local", "", 1)
    )
    assert device
    source, seen = host.address("client"), set()
    for own in range(41000, 41024):
        told = host.sh(f"ip route get {FAR} from {source} iif {device[1]} ipproto tcp sport {own} dport 9000")
        expected = UP1 if "dev up1" in told else HOST
        assert via(host, "tcp", 9000, own) == expected, own
        seen.add(expected)
    assert seen == {UP1, HOST}


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@host_case(
    7,
    "Two providers: answers of a published port leave by the one that was asked (`ip rule from`)",
    iptables="Docker's rules route answers with the container's address",
)
def test_answers_leave_by_the_uplink_that_was_asked(second: Second, proto: str, mode: str) -> None:
    host, other = second(mode)
    host.sh(f"ip rule add from {UP1} lookup 200")
    host.run("web", f"-p 8080:80/{proto}", echo_server(proto, 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask(proto, HOST, 8080, 1)).returncode == 0)
    # The far address is behind both; the main table leads to it by the first.
    other.sh(f"ip route add {UP1} dev eth0 src {FAR}")
    assert other.sh(ask(proto, UP1, 8080, 10)).split()[0] == FAR


# ---- routes that lead nowhere -------------------------------------------------------------------------------------

LISTENING = """
import select, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.bind((sys.argv[1], 3))
print("ready", flush=True)
wanted = bytes.fromhex(sys.argv[2])
while True:
    if wanted in tap.recv(65535):
        print("seen", flush=True)
"""


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "encap"])
@host_case(8, "A route that leads nowhere, or encapsulates: nothing leaves with the container's own address")
def test_nothing_leaves_as_it_is(make_host: MakeHost, kind: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("client")
    target = "198.51.100.9"
    if kind == "encap":
        host.sh(f"ip -6 address add {HOST6}/64 dev eth0 nodad")
        host.sh(f"ip -6 route add fc00:9::/64 via {OUTSIDE6}")
        done = host.try_(f"ip route add {target} encap seg6 mode encap segs fc00:9::1 dev eth0")
        if done.returncode:
            pytest.skip(f"this kernel has no such routes: {done.stderr}")
    else:
        host.sh(f"ip route add {kind} {target}")
    tap = host.outside.start(
        script(LISTENING, "eth0", ip_address(host.address("client")).packed.hex()), stdout=-1
    )
    assert tap.stdout is not None and tap.stdout.readline() == "ready\n"
    for proto in ("tcp", "udp"):
        assert host.try_in("client", ask(proto, target, 90, 0.5)).returncode
    # What would have been sent has been by now: an answer to something later is there.
    host.in_("client", f"ping -n -q -c 1 {OUTSIDE}")
    tap.kill()
    assert tap.stdout.read() == "", "seen outside with its own address"
    if mode == "ebpf" and kind == "encap":
        assert host.drops()["DROP_ENCAP"] >= 2


# ---- addresses that change ---------------------------------------------------------------------------------------


def flows(host: Host, count: int) -> Callable[[], dict[str, int]]:
    """Flows of the container's to FAR; each call sends over all of them, and says with which addresses they arrived."""
    command = [
        *("nsenter", "-t", str(host.process("client")), "--net"),
        *script(FLOWS, FAR, 5000, count),
    ]
    process = host.start(command, stdin=-1, stdout=-1)

    def send() -> dict[str, int]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        found: dict[str, int] = json.loads(process.stdout.readline())
        return found

    return send


def renew(host: Host) -> None:
    """The uplink gets another address, as by DHCP."""
    host.sh(f"ip address add {RENEWED}/24 dev eth0")
    host.sh(f"ip address delete {HOST}/24 dev eth0")
    host.sh(f"ip address add {RENEWED}/24 dev eth0") if not host.sh(
        f"ip -4 address show to {RENEWED}"
    ) else None
    host.sh(f"ip route replace default via {OUTSIDE}")


@host_case(
    4, "The host's address is renewed: masqueraded flows go on with the new one from their next packet"
)
def test_flows_follow_a_renewed_address(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("client")
    serve(host.outside, echo_server("udp", 5000, FAR))
    send = flows(host, 3)
    assert send() == {HOST: 3}
    renew(host)
    assert send() == {RENEWED: 3}
    assert send() == {RENEWED: 3}


def test_ten_thousand_flows_follow_a_renewed_address(make_host: MakeHost) -> None:
    """With their next packet, all of them, and no process helps."""
    host = make_host()
    host.run("client")
    serve(host.outside, echo_server("udp", 5000, FAR))
    send = flows(host, 10_000)
    assert send() == {HOST: 10_000}
    renew(host)
    assert send() == {RENEWED: 10_000}


@host_case(
    4,
    "The default route fails over to another uplink: masqueraded flows follow with their next packet",
    iptables="the packet that finds the route changed is dropped; the next one follows",
)
def test_flows_follow_the_default_route(second: Second, mode: str) -> None:
    host, other = second(mode)
    host.run("client")
    for place in (host.outside, other):
        serve(place, echo_server("udp", 5000, FAR))
    send = flows(host, 3)
    assert send() == {HOST: 3}
    host.sh(f"ip route replace default via {OTHER_SIDE}")
    assert send() == {UP1: 3}
    host.sh(f"ip route replace default via {OUTSIDE}")
    assert send() == {HOST: 3}


@host_case(
    4,
    "Another address of the same uplink is preferred: flows keep the one that they have",
    iptables="MASQUERADE takes the device's first address, whatever the route says",
)
def test_flows_stay_with_an_address_that_the_host_has_still(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("client")
    serve(host.outside, echo_server("udp", 5000, FAR))
    send = flows(host, 3)
    assert send() == {HOST: 3}
    host.sh(f"ip address add {RENEWED}/24 dev eth0")
    host.sh(f"ip route replace default via {OUTSIDE} src {RENEWED}")
    assert send() == {HOST: 3}
    # New ones get it.
    assert flows(host, 3)() == {RENEWED: 3}


# ---- IPsec ---------------------------------------------------------------------------------------------------------


def tell(host: Host) -> None:
    """The next command that changes something looks at the host again, if no agent does."""
    host.ctl("network create told")
    host.ctl("network rm told")


@pytest.mark.parametrize("direction", ["out", "fwd"])
@host_case(6, "An IPsec policy blocks what is sent to a peer: containers' packets to it do not leave")
def test_a_policy_holds_for_what_containers_send(make_host: MakeHost, direction: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("client")
    for proto in ("tcp", "udp"):
        for address in (OUTSIDE, FAR):
            serve(host.outside, echo_server(proto, 90, address))
    policy = f"src 0.0.0.0/0 dst {OUTSIDE}/32 dir {direction}"
    host.sh(f"ip xfrm policy add {policy} action block")
    tell(host)
    for proto in ("tcp", "udp"):
        assert host.try_in("client", ask(proto, OUTSIDE, 90, 0.5)).returncode
        assert host.in_("client", ask(proto, FAR, 90)).split()[0] == HOST
    if mode == "ebpf":
        assert host.drops()["DROP_XFRM"] >= 2
        told = host.try_ctl("doctor").stdout
        assert "IPsec policies that protect or block" in told and "map" not in told
    host.sh(f"ip xfrm policy delete {policy}")
    tell(host)
    for proto in ("tcp", "udp"):
        assert host.in_("client", ask(proto, OUTSIDE, 90)).split()[0] == HOST


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@host_case(
    6,
    "An IPsec policy blocks what a peer sends to the host: published ports are closed to it",
    iptables="the kernel asks only policies about forwarding, as the packet is another's by then",
)
def test_a_policy_closes_published_ports(make_host: MakeHost, proto: str, mode: str) -> None:
    host = make_host(config=config(mode))
    host.run("web", f"-p 8080:80/{proto}", echo_server(proto, 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask(proto, HOST, 8080, 1)).returncode == 0)
    policy = f"src {OUTSIDE}/32 dst 0.0.0.0/0 dir in"
    host.sh(f"ip xfrm policy add {policy} action block")
    tell(host)
    assert host.outside.try_(ask(proto, HOST, 8080, 0.5)).returncode
    host.outside.sh(f"ip route change 192.0.2.0/24 dev eth0 src {FAR}")
    host.sh(f"ip route replace {FAR} via {OUTSIDE}")
    assert host.outside.sh(ask(proto, HOST, 8080)).split()[0] == FAR
    host.outside.sh(f"ip route change 192.0.2.0/24 dev eth0 src {OUTSIDE}")
    host.sh(f"ip xfrm policy delete {policy}")
    tell(host)
    assert host.outside.sh(ask(proto, HOST, 8080)).split()[0] == OUTSIDE
