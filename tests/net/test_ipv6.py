# SPDX-License-Identifier: Apache-2.0
"""IPv6: networks of both families and of IPv6 alone, published ports, masquerading, and what goes wrong on the
way. The host forwards nothing: only its gateway devices do."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.net.hosts import FAR, PATIENCE, Host, Namespace, eventually
from tests.net.wire import Container, call, fails, serving, start_container

HOST6, OUTSIDE6 = "2001:db8:1::1", "2001:db8:1::2"
ROUTER6, BEYOND6 = "2001:db8:f::1", "2001:db8:f::5"
SMALL_MTU = 1300  # of the link behind the next router

Maker = Callable[..., Host]


def plug_ipv6(host: Host) -> None:
    """The uplink and what is outside speak IPv6 too."""
    host.sh(f"ip -6 address add {HOST6}/64 dev eth0 nodad")
    host.outside.sh(f"ip -6 address add {OUTSIDE6}/64 dev eth0 nodad")
    host.sh(f"ip -6 route add default via {OUTSIDE6}")


@dataclass
class Topology:
    """`beyond`: a machine one router further, behind a link that takes less. Networks: `a` and `b` have both
    families, `six` only IPv6, the default one only IPv4."""

    host: Host
    beyond: Namespace
    web: Container
    other: Container
    foreign: Container
    six: Container
    four: Container


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"))
        stack.callback(host.close)
        beyond = Namespace()
        stack.callback(beyond.close)
        plug_ipv6(host)
        host.outside.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
        host.outside.sh(f"ip link add eth1 mtu {SMALL_MTU} type veth peer name eth0 netns {beyond.pid}")
        host.outside.sh(f"ip -6 address add {ROUTER6}/64 dev eth1 nodad")
        host.outside.sh("ip link set eth1 up")
        beyond.sh(f"ip -6 address add {BEYOND6}/64 dev eth0 nodad")
        beyond.sh(f"ip link set eth0 mtu {SMALL_MTU} up")
        beyond.sh(f"ip -6 route add default via {ROUTER6}")
        host.ctl("network create --ipv6 a")
        host.ctl("network create --ipv6 --subnet 2001:db8:b::/64 --subnet 10.9.0.0/24 b")
        host.ctl("network create --ipv4=false --ipv6 --subnet fd66::/64 six")
        ports = "-p 8081:80 -p 8081:80/udp -p [::1]:8082:80 -p 8084-8086:84-86"
        yield Topology(
            host,
            beyond,
            web=start_container(host, "web", f"--network a {ports} -p [{HOST6}]:8083:80"),
            other=start_container(host, "other", "--network a"),
            foreign=start_container(host, "foreign", "--network b"),
            six=start_container(host, "six", "--network six -p 8091:80"),
            four=start_container(host, "four", "-p 8095:80"),
        )


BOTH = pytest.mark.parametrize("proto", ["tcp", "udp"])


# ---- what is there ---------------------------------------------------------------------------------


def test_a_network_without_a_prefix_gets_a_unique_local_one(topology: Topology) -> None:
    four, six = topology.host.network("a")["IPAM"]["Config"]
    assert re.fullmatch(r"fd[0-9a-f]{2}:[0-9a-f:]+::/64", six["Subnet"])
    assert six["Gateway"] == six["Subnet"].replace("::/64", "::1")
    assert ":" not in four["Subnet"]
    assert topology.web.ip6 == six["Subnet"].replace("::/64", "::2")
    shown = topology.web.sh("ip -6 -j route show default")
    assert json.loads(shown)[0]["gateway"] == six["Gateway"]


def test_the_host_forwards_only_by_its_gateway_devices(topology: Topology) -> None:
    def forwarding(device: str) -> str:
        return topology.host.sh(f"cat /proc/sys/net/ipv6/conf/{device}/forwarding")

    device = next(n for n in topology.host.sh("ls /proc/sys/net/ipv6/conf").split() if n.startswith("dp-"))
    assert [forwarding(name) for name in ("all", "default", "eth0", device)] == ["0", "0", "0", "1"]


def test_ps_port_ls_and_inspect_show_both_families_as_docker_does(topology: Topology) -> None:
    host = topology.host
    shown = dict(
        line.split(" ", 1) for line in host.ctl(["ps", "--format", "{{.Names}} {{.Ports}}"]).splitlines()
    )
    assert "0.0.0.0:8081->80/tcp, [::]:8081->80/tcp" in shown["web"]
    assert "[::1]:8082->80/tcp" in shown["web"]
    assert "0.0.0.0:8084-8086->84-86/tcp, [::]:8084-8086->84-86/tcp" in shown["web"]
    assert shown["six"].startswith("[::]:8091->80/tcp")
    assert shown["four"].startswith("0.0.0.0:8095->80/tcp")
    rows = [json.loads(line) for line in host.ctl("port ls web --format json").splitlines()]
    assert [(r["Number"], r["HostIp"]) for r in rows if r["HostPort"] == 8081 and r["Protocol"] == "tcp"] == [
        (1, "all")
    ]
    ports = host.inspect("web")["NetworkSettings"]["Ports"]
    assert {"HostIp": "::", "HostPort": "8081"} in ports["80/tcp"]
    assert {"HostIp": "::1", "HostPort": "8082"} in ports["80/tcp"]


def test_members_of_a_network_find_each_other(topology: Topology) -> None:
    topology.other.sh(f"ping -6 -n -q -c 2 -l 2 -i 60 -W 60 {topology.web.ip6}")
    topology.other.sh(
        f"ping -6 -n -q -c 1 -W 60 {topology.host.network('a')['IPAM']['Config'][1]['Gateway']}"
    )
    topology.host.sh(f"ping -6 -n -q -c 1 -W 60 {topology.web.ip6}")
    topology.host.sh(f"ping -6 -n -q -c 1 -W 60 {topology.six.ip6}")


def test_networks_are_apart(topology: Topology) -> None:
    for target in (topology.web, topology.six):
        assert topology.foreign.try_(f"ping -6 -n -q -c 1 -W 0.3 {target.ip6}").returncode != 0


def test_an_address_that_somebody_has_is_found_to_be_a_duplicate(topology: Topology) -> None:
    topology.other.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=1")
    try:
        for taken in (topology.web.ip6, topology.host.network("a")["IPAM"]["Config"][1]["Gateway"]):
            topology.other.sh(f"ip -6 address add {taken}/64 dev eth0")
            with eventually() as until:
                until(lambda: "tentative" not in topology.other.sh("ip -6 address show dev eth0 -dadfailed"))
            assert taken in topology.other.sh("ip -6 address show dev eth0 dadfailed")
            topology.other.sh(f"ip -6 address del {taken}/64 dev eth0")
        free = topology.web.ip6.removesuffix("2") + "77"
        topology.other.sh(f"ip -6 address add {free}/64 dev eth0")
        with eventually() as until:
            until(lambda: "tentative" not in topology.other.sh("ip -6 address show dev eth0"))
        assert free not in topology.other.sh("ip -6 address show dev eth0 dadfailed")
        topology.other.sh(f"ip -6 address del {free}/64 dev eth0")
    finally:
        topology.other.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")


# ---- published ports ---------------------------------------------------------------------------------


@BOTH
def test_from_outside_the_server_sees_the_clients_own_address(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80, "::"):
        for place, address in ((topology.host.outside, OUTSIDE6), (topology.beyond, BEYOND6)):
            answer = call(place, proto, HOST6, 8081)
            assert (answer.seen, answer.peer, answer.peer_port) == (address, HOST6, 8081)


@BOTH
@pytest.mark.parametrize("address", ["::1", HOST6, "gateway"])
def test_from_the_host_by_each_of_its_addresses(topology: Topology, proto: str, address: str) -> None:
    gateway = topology.host.network("a")["IPAM"]["Config"][1]["Gateway"]
    asked = gateway if address == "gateway" else address
    with serving(topology.web, proto, 80, "::"):
        answer = call(topology.host, proto, asked, 8081)
    assert answer.seen in (gateway, asked)
    assert answer.seen != "::1"
    assert (answer.peer, answer.peer_port) == (asked, 8081)


def test_a_port_at_loopback_is_the_hosts_alone(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80, "::"):
        assert call(topology.host, "tcp", "::1", 8082).peer == "::1"
        for place in (topology.host.outside, topology.other, topology.foreign):
            assert fails(place, "tcp", HOST6, 8082)
        assert fails(topology.host, "tcp", HOST6, 8082)
        assert fails(topology.host, "tcp", "127.0.0.1", 8082)


def test_a_port_at_one_address_answers_there_only(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80, "::"):
        assert call(topology.host.outside, "tcp", HOST6, 8083).peer == HOST6
        assert fails(topology.host, "tcp", "::1", 8083)
        assert fails(topology.host.outside, "tcp", "192.0.2.1", 8083)


@BOTH
def test_from_containers_of_the_same_and_of_another_network(topology: Topology, proto: str) -> None:
    gateway = topology.host.network("a")["IPAM"]["Config"][1]["Gateway"]
    with serving(topology.web, proto, 80, "::"):
        assert call(topology.other, proto, HOST6, 8081).seen == gateway
        answer = call(topology.foreign, proto, HOST6, 8081)
        assert (answer.seen, answer.peer) == (topology.foreign.ip6, HOST6)
        assert call(topology.other, proto, gateway, 8081).peer == gateway


@BOTH
def test_hairpin(topology: Topology, proto: str) -> None:
    with serving(topology.web, proto, 80, "::"):
        answer = call(topology.web, proto, HOST6, 8081)
        assert answer.seen == topology.host.network("a")["IPAM"]["Config"][1]["Gateway"]


def test_a_range(topology: Topology) -> None:
    with serving(topology.web, "tcp", 86, "::"):
        assert call(topology.host.outside, "tcp", HOST6, 8086).peer_port == 8086


def test_both_families_at_once(topology: Topology) -> None:
    with serving(topology.web, "tcp", 80, "::"):
        assert call(topology.host.outside, "tcp", "192.0.2.1", 8081).seen == "::ffff:192.0.2.2"
        assert call(topology.host.outside, "tcp", HOST6, 8081).seen == OUTSIDE6


def test_an_ipv6_client_of_the_host_reaches_a_container_that_has_only_ipv4(topology: Topology) -> None:
    with serving(topology.four, "tcp", 80):
        assert call(topology.host, "tcp", "::1", 8095).peer == "::1"
        assert call(topology.host, "tcp", HOST6, 8095).peer == HOST6
        assert fails(topology.host.outside, "tcp", HOST6, 8095) == errno.ECONNREFUSED


def test_a_published_port_cannot_be_bound(topology: Topology) -> None:
    for address in ("::", "::1", HOST6):
        done = topology.host.try_(["python3", "-c", BIND, address, "8081"])
        assert "Address already in use" in done.stderr, address


BIND = """
import socket, sys
socket.socket(socket.AF_INET6).bind((sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-p [::1]:8099:80", "cannot publish [::1]:8099:80/tcp: the container has no IPv6 address"),
        ("--network six -p 127.0.0.1:8099:80", "the container has no IPv4 address that leads outside"),
        ("--network a -p [2001:db8::99]:8099:80", "2001:db8::99 is no address of this host"),
        (f"--network a -p [{HOST6}]:8081:80", f"Bind for [{HOST6}]:8081 failed: port is already allocated"),
        ("--network a -p [::]:8091:80", 'port is already allocated (by container "six")'),
        ("--network a -p 8099:80/sctp", "protocol sctp is not available yet"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_line(topology: Topology, options: str, says: str) -> None:
    assert says in topology.host.refused(f"run -d --name no {options} sleep 3600")


# ---- egress -------------------------------------------------------------------------------------------


@BOTH
def test_masquerading(topology: Topology, proto: str) -> None:
    for place, address in ((topology.host.outside, OUTSIDE6), (topology.beyond, BEYOND6)):
        with serving(place, proto, 7000, "::"):
            for sender in (topology.web, topology.foreign, topology.six):
                answer = call(sender, proto, address, 7000)
                assert (answer.seen, answer.peer) == (HOST6, address)


def test_ping(topology: Topology) -> None:
    for sender in (topology.web, topology.six):
        for address in (OUTSIDE6, BEYOND6, HOST6):
            sender.sh(f"ping -6 -n -q -c 3 -l 3 -i 60 -W 60 {address}")


@pytest.mark.parametrize("how", ["", "-I", "-T -p 7000"], ids=["udp", "icmp", "tcp"])
def test_traceroute(topology: Topology, how: str) -> None:
    with serving(topology.beyond, "tcp", 7000, "::"):
        text = topology.web.sh(f"traceroute -6 -n -q 1 -w 20,0,0 -m 6 {how} {BEYOND6}")
    hops = [line.split()[1] for line in text.splitlines()[1:]]
    gateway = topology.host.network("a")["IPAM"]["Config"][1]["Gateway"]
    assert hops == [gateway, OUTSIDE6, BEYOND6], text


def test_nobody_listening_outside_is_told_to_the_right_socket(topology: Topology) -> None:
    assert fails(topology.web, "udp", OUTSIDE6, 7999, PATIENCE) == errno.ECONNREFUSED
    assert fails(topology.web, "tcp", OUTSIDE6, 7999, PATIENCE) == errno.ECONNREFUSED
    assert fails(topology.host.outside, "udp", HOST6, 8081, PATIENCE) == errno.ECONNREFUSED


def test_a_packet_that_is_too_big_further_on_is_reported_to_its_sender(topology: Topology) -> None:
    done = topology.web.try_(f"ping -6 -n -c 2 -i 0.2 -W 60 -M do -s 1400 {BEYOND6}")
    assert f"mtu={SMALL_MTU}" in (done.stdout + done.stderr).replace(": mtu = ", "mtu="), done.stdout
    topology.web.sh(f"ping -6 -n -q -c 1 -W 60 -M do -s {SMALL_MTU - 48} {BEYOND6}")


TAKE = """
import hashlib, socket, sys
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6)
print("ready", flush=True)
client, _ = server.accept()
print(hashlib.sha256(b"".join(iter(lambda: client.recv(65536), b""))).hexdigest(), flush=True)
"""
GIVE = """
import hashlib, os, socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
data = os.urandom(4 << 20)
client.sendall(data)
client.shutdown(socket.SHUT_WR)
client.recv(1)
print(hashlib.sha256(data).hexdigest())
"""


@pytest.mark.parametrize("direction", ["masqueraded", "published"])
def test_a_transfer_finds_the_ways_mtu(topology: Topology, direction: str) -> None:
    """Data goes towards the small link: by masquerade, and as the answers of a published port's server."""
    if direction == "masqueraded":
        server = topology.beyond.start(["python3", "-c", TAKE, "7001"], stdout=-1)
        assert server.stdout is not None
        server.stdout.readline()
        sent = topology.web.sh(["python3", "-c", GIVE, BEYOND6, "7001"])
        assert server.stdout.readline().strip() == sent
        return
    with serving(topology.web, "tcp", 80, "::"):
        assert call(topology.beyond, "tcp", HOST6, 8081).seen == BEYOND6
    shown = SERVE_BIG.format(size=4 << 20)
    process = topology.host.start(
        ["nsenter", "-t", str(topology.web.pid), "--net", "python3", "-c", shown], stdout=-1
    )
    assert process.stdout is not None
    process.stdout.readline()
    got = topology.beyond.sh(["python3", "-c", FETCH, HOST6, "8081"])
    assert got == str(4 << 20)


SERVE_BIG = """
import socket
server = socket.create_server(("::", 80), family=socket.AF_INET6)
print("ready", flush=True)
client, _ = server.accept()
client.sendall(bytes({size}))
client.close()
"""
FETCH = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)
print(sum(len(data) for data in iter(lambda: client.recv(65536), b"")))
"""


# ---- IPv6 alone --------------------------------------------------------------------------------------------


def test_an_ipv6_only_network(topology: Topology) -> None:
    found = topology.host.network("six")
    assert (found["EnableIPv4"], found["EnableIPv6"]) == (False, True)
    settings = topology.six.on("six")
    assert (settings["IPAddress"], settings["GlobalIPv6Address"], settings["IPv6Gateway"]) == (
        "",
        "fd66::2",
        "fd66::1",
    )
    assert topology.six.sh("ip -4 -o address show scope global") == ""
    with serving(topology.six, "tcp", 80, "::"):
        assert call(topology.host.outside, "tcp", HOST6, 8091).seen == OUTSIDE6
        assert call(topology.host, "tcp", "::1", 8091).seen == "fd66::1"
        assert fails(topology.host.outside, "tcp", "192.0.2.1", 8091)


# ---- two networks, one family each ---------------------------------------------------------------------------


def test_ports_follow_the_default_route_of_each_family(topology: Topology) -> None:
    host = topology.host
    both = start_container(host, "both", "--network bridge -p 8101:80")
    try:
        with serving(both, "tcp", 80, "::"):
            assert call(host.outside, "tcp", "192.0.2.1", 8101).seen == "::ffff:192.0.2.2"
            assert fails(host.outside, "tcp", HOST6, 8101)
            host.ctl("network connect six both")
            assert call(host.outside, "tcp", "192.0.2.1", 8101).seen == "::ffff:192.0.2.2"
            assert call(host.outside, "tcp", HOST6, 8101).seen == OUTSIDE6
            assert "[::]:8101->80/tcp" in host.ctl(["ps", "--format", "{{.Names}} {{.Ports}}"])
            host.ctl("port add both 8102:80")
            assert call(host.outside, "tcp", HOST6, 8102).seen == OUTSIDE6
            host.ctl("port rm both 8102:80")
            assert fails(host.outside, "tcp", HOST6, 8102)
            assert fails(host.outside, "tcp", "192.0.2.1", 8102)
            host.ctl("network disconnect bridge both")
            assert fails(host.outside, "tcp", "192.0.2.1", 8101)
            assert call(host.outside, "tcp", HOST6, 8101).seen == OUTSIDE6
            host.ctl("network connect bridge both")
            assert call(host.outside, "tcp", "192.0.2.1", 8101).seen == "::ffff:192.0.2.2"
    finally:
        host.ctl("rm -f both")
    assert fails(host.outside, "tcp", HOST6, 8101)


# ---- the default network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gateway", "first"),
    [
        ({"fixed-cidr-v6": "2001:db8:d::/64"}, "2001:db8:d::1", "2001:db8:d::2"),
        ({"bip6": "2001:db8:d::9/64"}, "2001:db8:d::9", "2001:db8:d::1"),
        (
            {"bip6": "2001:db8:d::1/64", "fixed-cidr-v6": "2001:db8:d::8000/113"},
            "2001:db8:d::1",
            "2001:db8:d::8000",
        ),
        ({}, "fd", "fd"),
    ],
    ids=["fixed-cidr-v6", "bip6", "both", "pool"],
)
def test_the_default_network_with_ipv6(
    make_host: Maker, config: dict[str, Any], gateway: str, first: str
) -> None:
    host = make_host(config={"ipv6": True, **config})
    plug_ipv6(host)
    web = start_container(host, "web", "-p 8081:80")
    settings = web.on("bridge")
    assert settings["IPv6Gateway"].startswith(gateway)
    assert settings["GlobalIPv6Address"].startswith(first)
    web.sh(f"ping -6 -n -q -c 1 -W 60 {OUTSIDE6}")
    web.sh(f"ping -n -q -c 1 -W 60 {FAR}")
    with serving(web, "tcp", 80, "::"):
        assert call(host.outside, "tcp", HOST6, 8081).seen == OUTSIDE6


def test_the_programs_attached_as_filters(make_host: Maker) -> None:
    host = make_host(attach="clsact", config={"ipv6": True})
    plug_ipv6(host)
    web = start_container(host, "web", "-p 8081:80/udp")
    web.sh(f"ping -6 -n -q -c 1 -W 60 {OUTSIDE6}")
    with serving(web, "udp", 80, "::"):
        assert call(host.outside, "udp", HOST6, 8081).seen == OUTSIDE6
        assert call(host, "udp", "::1", 8081).peer == "::1"


def test_down_takes_all_of_it_away(tmp_path: Path) -> None:
    from tests.net.look import everything

    with ExitStack() as stack:
        host = Host(tmp_path)
        stack.callback(host.close)
        plug_ipv6(host)
        host.sh("ip -6 address flush dev eth0 scope link")
        host.sh("ip -6 address add fe80::1/64 dev eth0 nodad")
        before = everything(host)
        host.ctl("network create --ipv6 a")
        host.run("web", "--network a -p 8081:80,allow=2001:db8::/32")
        host.ctl("down")
        after = everything(host)
        assert {k: v for k, v in after.items() if v != before[k]} == {}
