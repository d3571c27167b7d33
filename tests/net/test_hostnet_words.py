# SPDX-License-Identifier: Apache-2.0
"""Docker's words that change how a container's network is: settings of the kernel, small subnets."""

from __future__ import annotations

import pytest

from tests.net.compare import host_case, options
from tests.net.hosts import Host, ask, echo_server, eventually, reaches

MARTIANS = "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"


def setting(host: Host, name: str, path: str) -> str:
    return host.in_(name, ["sh", "-c", f"cat /proc/sys/net/{path}"])


def test_run_sets_what_is_the_containers_own(host: Host) -> None:
    before = host.sh("cat /proc/sys/net/ipv4/tcp_keepalive_time")
    host.run("a", "--sysctl net.ipv4.tcp_keepalive_time=77 --sysctl net.ipv4.conf.all.log_martians=1")
    assert setting(host, "a", "ipv4/tcp_keepalive_time") == "77"
    assert setting(host, "a", "ipv4/conf/all/log_martians") == "1"
    assert host.inspect("a")["HostConfig"]["Sysctls"] == {
        "net.ipv4.tcp_keepalive_time": "77",
        "net.ipv4.conf.all.log_martians": "1",
    }
    host.run("b", "--network none --sysctl net.ipv4.ip_forward=1")
    assert setting(host, "b", "ipv4/ip_forward") == "1"
    host.run("c")
    assert host.inspect("c")["HostConfig"]["Sysctls"] is None
    assert host.sh("cat /proc/sys/net/ipv4/tcp_keepalive_time") == before, "the host's stays as it was"


def test_a_device_gets_its_own_settings_before_it_is_up_and_again_when_it_is_made_anew(host: Host) -> None:
    host.ctl("network create red")
    host.run("a", "--sysctl net.ipv4.conf.eth0.log_martians=1")
    host.ctl(["network", "connect", "--driver-opt", MARTIANS, "red", "a"])
    host.run("b", f"--network name=red,driver-opt={MARTIANS}")
    assert setting(host, "a", "ipv4/conf/eth0/log_martians") == "1"
    assert setting(host, "a", "ipv4/conf/eth1/log_martians") == "1"
    assert setting(host, "b", "ipv4/conf/eth0/log_martians") == "1"
    assert setting(host, "b", "ipv4/conf/all/log_martians") == "0"
    options = host.inspect("a")["NetworkSettings"]["Networks"]
    assert options["red"]["DriverOpts"] == dict([MARTIANS.split("=", 1)])
    assert options["bridge"]["DriverOpts"] == dict([MARTIANS.split("=", 1)])
    host.in_("a", "ip link del eth1")
    host.ctl("reconcile")
    assert setting(host, "a", "ipv4/conf/eth1/log_martians") == "1"
    several = f'"driver-opt={MARTIANS},net.ipv4.conf.IFNAME.arp_announce=2"'
    host.run("c", ["--network", f"name=red,{several}"])
    assert setting(host, "c", "ipv4/conf/eth0/arp_announce") == "2"
    assert setting(host, "c", "ipv4/conf/eth0/log_martians") == "1"


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    shared_host.ctl("network create red")
    shared_host.run("web")
    return shared_host


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--sysctl kernel.shmmax=1", 'sysctl "kernel.shmmax=1" is not allowed'),
        ("--sysctl vm.swappiness=1", "is not allowed"),
        ("--sysctl net.ipv4.ip_forward", "is not allowed"),
        ("--sysctl net.ipv4.ip_forward=", "invalid value for sysctl net.ipv4.ip_forward"),
        ("--sysctl net/ipv4/ip_forward=1", "is not allowed"),
        ("--sysctl net.../../kernel.x=1", "is not allowed"),
        ("--sysctl net.ipv4.nosuch=1", "/proc/sys/net/ipv4/nosuch: No such file"),
        ("--sysctl net.ipv4.ip_forward=maybe", "Invalid argument"),
        ("--sysctl net.ipv4.conf.eth1.log_martians=1", "unable to determine network endpoint for sysctl"),
        ("--network none --sysctl net.ipv4.conf.eth0.log_martians=1", "unable to determine network endpoint"),
        ("--network host --sysctl net.ipv4.ip_forward=1", "not allowed in host network namespace"),
        (
            "--network container:web --sysctl net.ipv4.ip_forward=1",
            "sysctl and the container type network mode",
        ),
        ("--network name=red,driver-opt=com.docker.network.endpoint.sysctls=x", "expected NAME=VALUE"),
        (
            "--network name=red,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.eth0.x=1",
            "expected net.X.Y.IFNAME.Z",
        ),
        (
            "--network name=red,driver-opt=com.docker.network.endpoint.sysctls=kernel.x.y.IFNAME.z=1",
            "expected net.X.Y.IFNAME.Z",
        ),
        (
            "--network name=red,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.nosuch=1",
            "No such file",
        ),
    ],
)
def test_what_cannot_be_set_is_one_line_and_leaves_nothing(prepared: Host, command: str, says: str) -> None:
    said = prepared.refused(f"run -d --name x {command} sleep 60")
    assert says in said
    assert prepared.ctl("ps -a --format {{.Names}}") == "web"
    assert prepared.ctl("doctor") == "No problems found."


@host_case(21, "A /127 network has room for a gateway and one container (RFC 6164)")
def test_a_127_has_room_for_a_gateway_and_a_container(host: Host, mode: str) -> None:
    host.ctl(f"network create {options(mode)} --no-ipv4 --ipv6 --subnet fd00:7::/127 small")
    host.run("a", "--network small -p 8081:80", echo_server("tcp", 80, "::"))
    assert host.inspect("a")["NetworkSettings"]["Networks"]["small"]["GlobalIPv6Address"] == "fd00:7::1"
    assert reaches(lambda command: host.try_in("a", command), "fd00:7::")
    with eventually() as until:
        until(lambda: host.try_(ask("tcp", "fd00:7::1", 80)).returncode == 0)
    assert "no available IP addresses in fd00:7::/127" in host.refused("run -d --network small true")


def test_a_single_address_is_no_subnet(host: Host) -> None:
    for subnet in ("fd00:7::/128", "10.9.0.0/32"):
        assert "it has no room for a gateway and a container" in host.refused(
            f"network create --ipv6 --subnet {subnet} x"
        )
    host.ctl("network create --ipv6 --subnet fd00:8::/126 x")
    host.run("a", "--network x")
    assert reaches(lambda command: host.try_in("a", command), "fd00:8::1")


@pytest.mark.parametrize("address", ["169.254.7.7", "fe80::7"])
@host_case(21, "Members reach each other at link-local addresses given with --link-local-ip")
def test_a_link_local_address_that_was_asked_for_is_the_members_own(
    host: Host, mode: str, address: str
) -> None:
    other = {"169.254.7.7": "169.254.7.8", "fe80::7": "fe80::8"}[address]
    host.ctl(f"network create {options(mode)} --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 red")
    host.run("a", f"--network red --link-local-ip {address}", echo_server("tcp", 80))
    host.run("b", f"--network name=red,link-local-ip={other}")
    zone = "%eth0" if ":" in address else ""
    assert reaches(lambda command: host.try_in("b", command), f"{address}{zone}")
    assert reaches(lambda command: host.try_in("a", command), f"{other}{zone}")
    if not zone:
        with eventually() as until:
            until(lambda: host.try_in("b", ask("tcp", address, 80)).returncode == 0)
        assert host.in_("b", ask("tcp", address, 80)).split()[0] == other
    settings = host.inspect("a")["NetworkSettings"]["Networks"]["red"]
    assert settings["IPAMConfig"] == {"LinkLocalIPs": [address]}
    assert host.ctl("doctor") == "No problems found."
    host.in_("a", f"ip address del {address}/{16 if not zone else 64} dev eth0")
    assert "has lost the address" in host.try_ctl("doctor").stdout
    host.ctl("reconcile")
    assert reaches(lambda command: host.try_in("b", command), f"{address}{zone}")


def test_connect_gives_link_local_addresses_and_nobody_else_has_them(host: Host) -> None:
    host.ctl("network create --ipv6 --subnet 10.5.0.0/24 --subnet fd00:5::/64 red")
    host.run("a")
    host.ctl("network connect --link-local-ip 169.254.7.7 --link-local-ip fe80::7 red a")
    host.run("b", "--network red")
    host.in_("b", "ip address add 169.254.7.9/16 dev eth0")
    host.in_("b", "ip address add fe80::9/64 dev eth0 nodad")
    before = host.drops().get("DROP_SPOOFED_ARP", 0)
    assert fails(host, "ping -c 1 -W 1 -I 169.254.7.9 169.254.7.7"), "not its own"
    assert host.drops()["DROP_SPOOFED_ARP"] > before
    assert fails(host, "ping -c 1 -W 1 -I fe80::9 fe80::7%eth0")
    # From its own one a member does not get out.
    host.in_("a", "ip route add 203.0.113.0/24 via 10.5.0.1 dev eth1 src 169.254.7.7")
    assert host.try_in("a", "ping -c 1 -W 1 -I 169.254.7.7 203.0.113.5").returncode
    assert host.drops()["DROP_BAD_ADDR"] > 0
    for command, says in (
        ("run --network red --link-local-ip 169.254.7.7 true", 'belongs to container "a"'),
        ("run --network red --link-local-ip 10.5.0.9 true", "is not of 169.254.0.0/16 or fe80::/64"),
        ("run --network red --link-local-ip 169.254.255.255 true", "is not of 169.254.0.0/16"),
        ("run --network red --link-local-ip x true", "invalid link-local IP address"),
        ("run --network none --link-local-ip 169.254.7.8 true", "link-local IP addresses and the none"),
        ("run --link-local-ip fe80::8 true", "network bridge has no IPv6"),
        ("network connect --link-local-ip fe80::7 bridge b", "network bridge has no IPv6"),
    ):
        assert says in host.refused(command), command
    host.ctl("network disconnect red a")
    host.run("c", "--network red --link-local-ip 169.254.7.7 --link-local-ip fe80::7")
    assert host.ctl("doctor") == "No problems found."


def fails(host: Host, command: str) -> bool:
    return host.try_in("b", command).returncode != 0
