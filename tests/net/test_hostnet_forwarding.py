# SPDX-License-Identifier: Apache-2.0
"""Containers that speak for others: routers, a VPN's end, DHCP servers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.net.compare import config, host_case, options
from tests.net.hosts import OUTSIDE, Host, Namespace, ask, echo_server, eventually, reaches

MakeHost = Callable[..., Host]
FORWARDING = "driver-opt=com.datapath.forwarding=true"


def at(host: Host, name: str, command: str) -> str:
    """A command of the machine's in the container's network: its kernel parameters and routes."""
    return host.sh(["nsenter", f"--net=/proc/{host.process(name)}/ns/net", *shlex.split(command)])


def succeeds(host: Host, name: str, command: list[str]) -> bool:
    return host.try_in(name, command).returncode == 0


def forwards(host: Host, name: str) -> None:
    at(host, name, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")


@pytest.fixture
def remote() -> Iterator[Namespace]:
    """A machine somewhere else."""
    made = Namespace()
    yield made
    made.close()


@host_case(
    16,
    "A container that may forward is a router between two networks",
    iptables="what it forwards meets Docker's rules again where the kernel filters bridged packets",
)
def test_a_router_between_networks(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    for name, number in (("red", 1), ("blue", 2)):
        subnets = f"--subnet 10.8{number}.0.0/24 --ipv6 --subnet fd8{number}::/64"
        host.ctl(f"network create {options(mode)} {subnets} {name}")
    host.run("router", f"--network name=red,{FORWARDING}")
    host.ctl("network connect --driver-opt com.datapath.forwarding=true blue router")
    forwards(host, "router")
    host.run("a", "--network red")
    host.run("b", "--network blue", echo_server("tcp", 80, "::"))
    settings = host.inspect("router")["NetworkSettings"]["Networks"]
    assert {settings[name]["DriverOpts"]["com.datapath.forwarding"] for name in ("red", "blue")} == {"true"}
    for here, there, name in ((1, 2, "a"), (2, 1, "b")):
        network = ("red", "blue")[here - 1]
        at(host, name, f"ip route add 10.8{there}.0.0/24 via {settings[network]['IPAddress']}")
        at(host, name, f"ip route add fd8{there}::/64 via {settings[network]['GlobalIPv6Address']}")
    own = host.inspect("a")["NetworkSettings"]["Networks"]["red"]
    server = host.inspect("b")["NetworkSettings"]["Networks"]["blue"]
    for key in ("IPAddress", "GlobalIPv6Address"):
        asking = ask("tcp", server[key], 80, 1)
        with eventually() as until:
            until(partial(succeeds, host, "a", asking))
        assert host.in_("a", ask("tcp", server[key], 80)).split()[0].removeprefix("::ffff:") == own[key]
        assert reaches(lambda command: host.try_in("a", command), server[key])
    if mode == "ebpf":
        host.ctl("doctor")


@host_case(16, "The host routes a prefix to a container that may forward: both sides begin, members too")
def test_a_vpn_container(make_host: MakeHost, remote: Namespace, mode: str) -> None:
    """What is behind it is a namespace of its own; the tunnel in between is of no consequence."""
    host = make_host(config=config(mode))
    host.ctl(
        f"network create {options(mode)} --subnet 10.81.0.0/24 -o com.docker.network.bridge.name=vpn0 net"
    )
    host.run("vpn", f"--network name=net,ip=10.81.0.9,{FORWARDING}")
    forwards(host, "vpn")
    at(host, "vpn", f"ip link add tunnel type veth peer name tunnel netns {remote.pid}")
    at(host, "vpn", "ip address add 10.99.0.1/24 dev tunnel")
    at(host, "vpn", "ip link set tunnel up")
    remote.sh("ip address add 10.99.0.5/24 dev tunnel")
    remote.sh("ip link set tunnel up")
    remote.sh("ip route add default via 10.99.0.1")
    host.sh("ip route add 10.99.0.0/24 via 10.81.0.9 dev vpn0")
    host.run("peer", "--network net", echo_server("tcp", 80))
    server = remote.start(echo_server("tcp", 70), stdout=-1)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    # The host, and a member by way of the host.
    assert host.sh(ask("tcp", "10.99.0.5", 70)).split()[0] == "10.81.0.1"
    assert host.in_("peer", ask("tcp", "10.99.0.5", 70)).split()[0] == host.address("peer", "net")
    # What is behind it: the host, a member, the outside.
    assert remote.sh(ask("tcp", host.address("peer", "net"), 80)).split()[0] == "10.99.0.5"
    assert reaches(remote.try_, "10.81.0.1")
    if mode == "ebpf":  # with Docker's rules only the subnet's own addresses are masqueraded
        assert reaches(remote.try_, OUTSIDE)
        assert "10.99.0.5" in host.ctl("ct ls")
        traced = remote.sh(f"traceroute -n -q 1 -w 5 {OUTSIDE}")
        assert "10.81.0.1" in traced and OUTSIDE in traced.splitlines()[-1]
        # What the host does not route to it, it does not speak for beyond its network.
        remote.sh("ip address add 10.98.0.5/32 dev lo")
        before = host.drops().get("DROP_SPOOFED_ADDR", 0)
        assert remote.try_(f"ping -c 1 -W 1 -I 10.98.0.5 {OUTSIDE}").returncode
        assert host.drops()["DROP_SPOOFED_ADDR"] > before
        host.ctl("doctor")


@host_case(
    16,
    "Without the option a container speaks for itself alone",
    iptables="a bridge asks for no source address",
)
def test_without_the_option_nobody_speaks_for_others(make_host: MakeHost, mode: str) -> None:
    host = make_host(config=config(mode))
    host.ctl(f"network create {options(mode)} --subnet 10.81.0.0/24 net")
    host.run("one", "--network net")
    host.run("two", "--network net")
    at(host, "one", "ip address add 10.99.0.1/32 dev lo")
    at(host, "two", f"ip route add 10.99.0.0/24 via {host.address('one', 'net')}")
    assert host.try_in("two", "ping -c 1 -W 2 10.99.0.1").returncode
    assert host.try_in("one", f"ping -c 1 -W 2 -I 10.99.0.1 {host.address('two', 'net')}").returncode


@host_case(
    16, "A container gets its address by DHCP from another: the question comes from 0.0.0.0, to everybody"
)
def test_dhcp_between_containers(make_host: MakeHost, tmp_path: Path, mode: str) -> None:
    host = make_host(config=config(mode))
    host.ctl(f"network create {options(mode)} --subnet 10.81.0.0/24 net")
    host.run("client", "--network name=net,ip=10.81.0.77,mac-address=02:00:00:00:00:77")
    leases = tmp_path / "leases"
    command = (
        "dnsmasq --keep-in-foreground --port=0 --no-resolv --no-hosts --conf-file=/dev/null --user=root --no-ping "
        f"--dhcp-leasefile={leases} --dhcp-range=10.81.0.50,10.81.0.90,255.255.255.0,1h --pid-file= "
        "--dhcp-host=02:00:00:00:00:77,10.81.0.77"
    )
    host.run("server", "--network net", command)
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "got $ip"\nexit 0\n')
    script.chmod(0o755)
    with eventually() as until:
        got = until(
            lambda: host.try_in("client", f"busybox udhcpc -i eth0 -f -n -q -t 3 -T 2 -s {script}").stdout
        )
    assert "got 10.81.0.77" in got


@pytest.mark.parametrize("value", ["maybe", "", "2"])
def test_a_bad_value_is_refused(make_host: MakeHost, value: str) -> None:
    host = make_host()
    host.ctl("network create net")
    host.run("one", "--network net")
    before = host.ctl(["ps", "--format", "{{.Names}}"])
    line = host.refused(f"run --name two --network name=net,driver-opt=com.datapath.forwarding={value} true")
    assert "com.datapath.forwarding" in line and "expected true or false" in line
    host.ctl("network create other")
    line = host.refused(f"network connect --driver-opt com.datapath.forwarding={value} other one")
    assert "com.datapath.forwarding" in line and "expected true or false" in line
    assert host.ctl(["ps", "--format", "{{.Names}}"]) == before
