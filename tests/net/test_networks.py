# SPDX-License-Identifier: Apache-2.0
"""S9 to S12: what networks can be made like, what is refused, and how containers join and leave them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv6Network, ip_address
from typing import Any

import pytest

from tests.net import look
from tests.net.hosts import (
    DATAPATHCTL,
    FAR,
    HOST,
    OUTSIDE,
    Host,
    ask,
    echo_server,
    eventually,
    loses,
    reaches,
)

MakeHost = Callable[..., Host]


def inside(host: Host, name: str) -> Callable[[str], str]:
    return lambda command: host.in_(name, command)


def pings(host: Host, name: str, address: str) -> bool:
    return reaches(lambda ping: host.try_in(name, ping), address)


def gets_no_answer(host: Host, name: str, address: str) -> bool:
    return loses(lambda ping: host.try_in(name, ping), address)


def ipam(host: Host, network: str) -> list[dict[str, Any]]:
    config: list[dict[str, Any]] = host.network(network)["IPAM"]["Config"]
    return config


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """`br1` is S9's network, with one container."""
    look.settled(shared_host)
    shared_host.ctl(
        "network create --driver bridge --subnet 10.0.0.0/16 --gateway 10.0.0.1 "
        "--opt com.docker.network.bridge.name=docker1 br1"
    )
    shared_host.run("first", "--network br1", echo_server("tcp", 80))
    return shared_host


# ---- S9 -------------------------------------------------------------------------------


def test_s9_the_gateway_device_has_the_chosen_name_and_address(prepared: Host) -> None:
    assert look.addresses(look.devices(prepared.sh)["docker1"]) == ["10.0.0.1/16"]
    eth0 = look.devices(inside(prepared, "first"))["eth0"]
    assert (look.addresses(eth0), eth0["address"]) == (["10.0.0.2/16"], "02:42:0a:00:00:02")
    assert look.default_routes(inside(prepared, "first")) == [("10.0.0.1", "eth0")]
    assert ipam(prepared, "br1") == [{"Subnet": "10.0.0.0/16", "Gateway": "10.0.0.1"}]
    assert prepared.network("br1")["Options"] == {"com.docker.network.bridge.name": "docker1"}


def test_s9_the_network_works_and_its_device_counts_the_hosts_packets(prepared: Host) -> None:
    assert reaches(prepared.try_, "10.0.0.2", count=3)
    assert pings(prepared, "first", FAR)
    with eventually() as until:
        until(lambda: prepared.try_(ask("tcp", "10.0.0.2", 80)).returncode == 0)
    assert prepared.sh(ask("tcp", "10.0.0.2", 80)) == "10.0.0.1 10.0.0.2 80"
    assert "docker1" in prepared.sh("ip route get 10.0.0.2")


# ---- S10: options, each with its effect -------------------------------------------------


def test_s10_create_without_options_takes_the_next_free_pool(host: Host) -> None:
    host.ctl("network create one")
    host.sh("ip address add 172.19.7.7/24 dev eth0")
    host.ctl("network create two")
    host.ctl("network create --subnet 172.21.0.0/16 mine")
    host.ctl("network create three")
    # 172.17 is kept for the default network, which has not been used yet.
    found = [ipam(host, name)[0]["Subnet"] for name in ("one", "two", "three")]
    assert found == ["172.18.0.0/16", "172.20.0.0/16", "172.22.0.0/16"]
    host.ctl("network rm one")
    host.ctl("network create four")
    assert ipam(host, "four")[0] == {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}


def test_s10_create_takes_its_pools_from_the_daemons_configuration(make_host: MakeHost) -> None:
    host = make_host(config={"default-address-pools": [{"base": "10.99.0.0/23", "size": 24}]})
    host.run("web")
    host.ctl("network create one")
    assert ipam(host, "bridge")[0]["Subnet"] == "10.99.0.0/24"
    assert ipam(host, "one")[0]["Subnet"] == "10.99.1.0/24"
    assert host.refused("network create two").startswith(
        "datapathctl: could not find an available, non-overlapping IPv4 address pool among the defaults"
    )


def test_s10_create_prints_the_id_that_inspect_knows(prepared: Host) -> None:
    ident = prepared.ctl("network create --subnet 10.10.0.0/24 named")
    assert prepared.network(ident[:12])["Id"] == prepared.network("named")["Id"] == ident


def test_s10_ip_range_limits_where_addresses_come_from(prepared: Host) -> None:
    prepared.ctl("network create --subnet 10.11.0.0/24 --ip-range 10.11.0.128/30 ranged")
    for number, name in enumerate(("r1", "r2", "r3"), start=129):
        prepared.run(name, "--network ranged")
        assert prepared.address(name, "ranged") == f"10.11.0.{number}"
    # The gateway takes the range's first address, as Docker's does; then the range is used up.
    assert ipam(prepared, "ranged")[0]["Gateway"] == "10.11.0.128"
    assert prepared.refused("run --network ranged true") == (
        "datapathctl: no available IP addresses in 10.11.0.128/30: "
        "remove a container or choose a larger subnet"
    )
    prepared.run("static", "--network ranged --ip 10.11.0.9")  # what the user names may be outside of it
    assert pings(prepared, "r1", "10.11.0.9")


def test_s10_an_auxiliary_address_is_given_to_nobody(prepared: Host) -> None:
    prepared.ctl(
        "network create --subnet 10.12.0.0/24 --aux-address router=10.12.0.2 --aux-address b=10.12.0.4 aux"
    )
    prepared.run("x1", "--network aux")
    prepared.run("x2", "--network aux")
    assert [prepared.address(name, "aux") for name in ("x1", "x2")] == ["10.12.0.3", "10.12.0.5"]
    assert ipam(prepared, "aux")[0]["AuxiliaryAddresses"] == {"router": "10.12.0.2", "b": "10.12.0.4"}
    assert prepared.refused("run --network aux --ip 10.12.0.2 true") == (
        'datapathctl: Address already in use: 10.12.0.2 is the auxiliary address "router"'
    )


def test_s10_an_internal_network_has_no_egress(prepared: Host) -> None:
    prepared.ctl("network create --internal --subnet 10.13.0.0/24 inner")
    prepared.run("i1", "--network inner")
    prepared.run("i2", "--network inner")
    assert prepared.network("inner")["Internal"] is True
    assert look.default_routes(inside(prepared, "i1")) == []
    assert pings(prepared, "i1", prepared.address("i2", "inner"))
    assert pings(prepared, "i1", "10.13.0.1")
    assert reaches(prepared.try_, prepared.address("i1", "inner"))
    pid = prepared.process("i1")
    prepared.sh(f"nsenter -t {pid} --net ip route add default via 10.13.0.1")
    assert gets_no_answer(prepared, "i1", FAR)  # also for one that makes itself a route


def test_s10_ipv6_gives_each_container_a_second_address(prepared: Host) -> None:
    prepared.ctl("network create --ipv6 --subnet 10.14.0.0/24 --subnet fd00:14::/64 --gateway fd00:14::1 six")
    prepared.run("s1", "--network six")
    prepared.run("s2", "--network six")
    assert prepared.network("six")["EnableIPv6"] is True
    eth0 = look.devices(inside(prepared, "s1"))["eth0"]
    assert look.addresses(eth0, "inet6") == ["fd00:14::2/64"]
    assert look.default_routes(inside(prepared, "s1"), 6) == [("fd00:14::1", "eth0")]
    assert "fd00:14::1/64" in look.addresses(look.devices(prepared.sh)[_device(prepared, "six")], "inet6")
    for address in ("fd00:14::3", "fd00:14::1"):
        assert pings(prepared, "s1", address)
    assert reaches(prepared.try_, "fd00:14::2")
    # A network without it speaks none.
    assert look.devices(inside(prepared, "first"))["eth0"]["addr_info"][1:] == []


def _device(host: Host, network: str) -> str:
    found = host.network(network)
    return str(found["Options"].get("com.docker.network.bridge.name", f"dp-{found['Id'][:12]}"))


def test_s10_ipv6_without_a_subnet_gets_one_that_is_unique_to_the_installation(prepared: Host) -> None:
    prepared.ctl("network create --ipv6 --subnet 10.15.0.0/24 ula")
    subnets = [IPv6Network(c["Subnet"]) for c in ipam(prepared, "ula") if ":" in c["Subnet"]]
    assert len(subnets) == 1
    assert subnets[0].subnet_of(IPv6Network("fd00::/8"))
    assert subnets[0].prefixlen == 64


def test_s10_labels_are_kept_and_listed_by(prepared: Host) -> None:
    prepared.ctl("network create --subnet 10.16.0.0/24 --label tier=front --label bare labelled")
    assert prepared.network("labelled")["Labels"] == {"tier": "front", "bare": ""}
    listed = [
        prepared.ctl(f"network ls -q --filter label={label}").split()
        for label in ("tier", "tier=front", "tier=back")
    ]
    ident = prepared.network("labelled")["Id"][:12]
    assert listed == [[ident], [ident], []]


def test_s10_the_mtu_option_sets_every_device_and_large_packets_are_cut(prepared: Host) -> None:
    prepared.ctl("network create --subnet 10.17.0.0/24 -o com.docker.network.driver.mtu=1200 small")
    prepared.run("m1", "--network small")
    prepared.run("m2", "--network small")
    assert look.devices(inside(prepared, "m1"))["eth0"]["mtu"] == 1200
    assert look.devices(prepared.sh)[_device(prepared, "small")]["mtu"] == 1200
    assert pings(prepared, "m1", "10.17.0.3 -M do -s 1172")
    assert "message too long" in prepared.try_in("m1", "ping -c 1 -W 60 -M do -s 1173 10.17.0.3").stderr
    assert pings(prepared, "m1", "10.17.0.3 -M dont -s 3000")


def test_s10_enable_icc_false_keeps_the_members_apart(prepared: Host) -> None:
    prepared.ctl("network create --subnet 10.18.0.0/24 -o com.docker.network.bridge.enable_icc=false apart")
    prepared.run("a1", "--network apart")
    prepared.run("a2", "--network apart")
    assert gets_no_answer(prepared, "a1", "10.18.0.3")
    assert pings(prepared, "a1", "10.18.0.1")
    assert pings(prepared, "a1", FAR)
    assert reaches(prepared.try_, "10.18.0.2")


def test_s10_enable_ip_masquerade_false_sends_packets_with_the_containers_address(prepared: Host) -> None:
    option = "com.docker.network.bridge.enable_ip_masquerade=false"
    prepared.ctl(f"network create --subnet 10.19.0.0/24 -o {option} routed")
    prepared.run("plain", "--network routed")
    assert gets_no_answer(prepared, "plain", FAR)  # the outside has no way back
    prepared.outside.sh(f"ip route add 10.19.0.0/24 via {HOST}")
    server = prepared.outside.start(echo_server("tcp", 6060))
    with eventually() as until:
        until(lambda: prepared.try_in("plain", ask("tcp", OUTSIDE, 6060)).returncode == 0)
    assert prepared.in_("plain", ask("tcp", OUTSIDE, 6060)).split()[0] == "10.19.0.2"
    assert prepared.in_("first", ask("tcp", OUTSIDE, 6060)).split()[0] == HOST  # elsewhere as always
    server.terminate()


def test_s10_host_binding_ipv4_says_where_ports_are_published(prepared: Host) -> None:
    prepared.sh("ip address add 192.0.2.9/24 dev eth0")
    option = "com.docker.network.bridge.host_binding_ipv4=192.0.2.9"
    prepared.ctl(f"network create --subnet 10.20.0.0/24 -o {option} bound")
    prepared.run("b1", "--network bound -p 8085:80", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: prepared.outside.try_(ask("tcp", "192.0.2.9", 8085)).returncode == 0)
    assert prepared.outside.try_(ask("tcp", HOST, 8085)).returncode != 0
    assert prepared.inspect("b1")["NetworkSettings"]["Ports"] == {
        "80/tcp": [{"HostIp": "192.0.2.9", "HostPort": "8085"}]
    }
    prepared.ctl("rm -f b1")


def test_s10_container_iface_prefix_names_the_containers_device(prepared: Host) -> None:
    option = "com.docker.network.container_iface_prefix=net"
    prepared.ctl(f"network create --subnet 10.21.0.0/24 -o {option} prefixed")
    prepared.run("p1", "--network prefixed")
    assert sorted(look.devices(inside(prepared, "p1"))) == ["lo", "net0"]
    prepared.ctl("network connect br1 p1")
    assert sorted(look.devices(inside(prepared, "p1"))) == ["eth0", "lo", "net0"]
    assert pings(prepared, "p1", "10.0.0.2")


REFUSED_CREATIONS = [
    ("--subnet 10.0.5.0/24 x", "overlaps 10.0.0.0/16 of network br1"),
    ("--subnet 10.0.0.0/8 x", "overlaps 10.0.0.0/16 of network br1"),
    ("--subnet 172.17.0.0/24 x", "overlaps 172.17.0.0/16 of network bridge"),
    ("--subnet 192.0.2.128/25 x", "overlaps 192.0.2.0/24, an address or route of this host"),
    ("--subnet 10.60.0.0/24 --gateway 10.61.0.1 x", "no matching subnet for gateway 10.61.0.1"),
    ("--subnet 10.60.0.0/24 --gateway 10.60.0.255 x", "it is the broadcast address of 10.60.0.0/24"),
    ("--gateway 10.60.0.1 x", "every ip-range or gateway must have a corresponding subnet"),
    ("--subnet 10.60.0.0/24 --ip-range 10.61.0.0/25 x", "no matching subnet for range 10.61.0.0/25"),
    ("--subnet 10.60.0.0/24 --ip-range 10.60.0.0/16 x", "CIDR block is bigger than its parent subnet"),
    ("--subnet 10.60.0.0/24 --aux-address r=10.61.0.2 x", "no matching subnet for aux-address"),
    ("--subnet 10.60.0.0/24 --subnet 10.62.0.0/24 x", "takes one IPv4 subnet for each network"),
    ("--subnet 10.60.0.1/24 x", "it should be 10.60.0.0/24"),
    ("--subnet 10.60.0.0/33 x", "invalid CIDR block notation"),
    ("--subnet 10.60.0.0 x", "invalid CIDR block notation"),
    ("--subnet 10.60.0.0/32 x", "has no room for a gateway and a container"),
    ("--subnet 127.0.0.0/24 x", "no container can have an address of 127.0.0.0/8"),
    ("--subnet fd00:60::/64 x", "needs IPv6: add --ipv6"),
    ("br1", "network with name br1 already exists"),
    ("-d bogus x", 'network driver "bogus" does not exist'),
    ("-o bogus=1 x", 'option "bogus" of driver bridge is unknown'),
    ("-o com.docker.network.bridge.gateway_mode_ipv4=routed x", "is not available yet"),
    ("-o com.docker.network.driver.mtu=67 x", "expected 68 to 65535 bytes"),
    ("-o com.docker.network.bridge.enable_icc=maybe x", "expected true or false"),
    ("-o com.docker.network.bridge.name=docker1 x", "device name docker1 is already used by network br1"),
    ("-o com.docker.network.bridge.name=eth0 x", "device name eth0 is already used on this host"),
    ("--scope global x", "bridge networks are local"),
    ("--ipam-driver dhcp x", 'IPAM driver "dhcp" does not exist'),
    ("--ipv4=false x", "IPv4 or IPv6 must be enabled"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED_CREATIONS)
def test_s10_what_cannot_be_is_refused_before_anything_is_changed(
    prepared: Host, words: str, reason: str
) -> None:
    if "of network bridge" in reason and ipam(prepared, "bridge") == []:
        prepared.run("default")
    before = look.database(prepared), look.devices(prepared.sh)
    said = prepared.refused(f"network create {words}")
    assert reason in said
    assert (look.database(prepared), look.devices(prepared.sh)) == before


# ---- S11 ------------------------------------------------------------------------------


def test_s11_rm_refuses_a_network_with_active_endpoints_and_names_them(prepared: Host) -> None:
    endpoint = prepared.inspect("first")["NetworkSettings"]["Networks"]["br1"]["EndpointID"][:12]
    said = prepared.refused("network rm br1")
    assert said.startswith(
        "datapathctl: error while removing network: network br1 has active endpoints "
        f'(name:"first" id:"{endpoint}"'
    )
    assert reaches(prepared.try_, "10.0.0.2")


def test_s11_rm_takes_the_device_away_and_forgets_the_name(prepared: Host) -> None:
    option = "com.docker.network.bridge.name=brief0"
    prepared.ctl(f"network create --subnet 10.31.0.0/24 -o {option} brief")
    assert "brief0" in look.devices(prepared.sh)
    before = len(look.devices(prepared.sh))
    assert prepared.ctl("network rm brief") == "brief"
    assert "brief0" not in look.devices(prepared.sh)
    assert len(look.devices(prepared.sh)) == before - 2
    assert prepared.refused("network rm brief") == "datapathctl: network brief not found"
    assert prepared.ctl("network rm -f brief") == ""


def test_s11_rm_of_several_goes_through_all_of_them(prepared: Host) -> None:
    prepared.ctl("network create --subnet 10.32.0.0/24 g1")
    prepared.ctl("network create --subnet 10.33.0.0/24 g2")
    done = prepared.try_ctl("network rm g1 br1 g2")
    assert done.stdout.split() == ["g1", "g2"]
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 5


def test_s11_prune_removes_every_unused_network_and_keeps_the_others(host: Host) -> None:
    host.ctl("network create --label keep used")
    for name, label in (("a", "stage=test"), ("b", "stage=prod"), ("c", "keep")):
        host.ctl(f"network create --label {label} {name}")
    host.run("web", "--network used")
    assert host.refused("network prune -f --filter bogus=1").startswith("datapathctl: invalid filter")
    assert host.ctl("network prune -f --filter until=1h") == ""
    assert host.ctl("network prune -f --filter label=stage=test") == "Deleted Networks:\na"
    assert host.ctl("network prune -f --filter label!=keep") == "Deleted Networks:\nb"
    said = "datapathctl: network prune: nobody can be asked here: -f does not ask"
    assert host.refused("network prune") == said
    assert "c" in host.ctl("network ls --format {{.Name}}").split()
    assert host.sh([DATAPATHCTL, "network", "prune"], input="y\n").endswith("Deleted Networks:\nc")
    assert host.ctl("network ls --format {{.Name}}").split() == ["bridge", "host", "none", "used"]
    assert reaches(host.try_, host.address("web", "used"))


def test_s11_connect_gives_a_running_container_a_second_device_and_disconnect_takes_it(
    prepared: Host,
) -> None:
    prepared.ctl("network create --subnet 10.34.0.0/24 extra")
    prepared.run("lone", "--network extra")
    prepared.run("mover", "--network br1")
    assert gets_no_answer(prepared, "mover", "10.34.0.2")
    before = look.devices(inside(prepared, "mover"))

    prepared.ctl("network connect extra mover")

    devices = look.devices(inside(prepared, "mover"))
    assert look.addresses(devices["eth1"]) == ["10.34.0.3/24"]
    assert pings(prepared, "mover", "10.34.0.2")
    assert pings(prepared, "mover", "10.0.0.2")
    assert pings(prepared, "mover", FAR)
    assert "10.34.0.3" in prepared.in_("mover", "cat /etc/hosts")
    assert sorted(c["Name"] for c in prepared.network("extra")["Containers"].values()) == ["lone", "mover"]

    prepared.ctl("network disconnect extra mover")

    assert look.devices(inside(prepared, "mover")) == before
    assert gets_no_answer(prepared, "mover", "10.34.0.2")
    assert pings(prepared, "mover", "10.0.0.2")
    assert "10.34.0.3" not in prepared.in_("mover", "cat /etc/hosts")
    assert prepared.refused("network disconnect extra mover") == (
        "datapathctl: container mover is not connected to network extra"
    )
    prepared.ctl("rm -f mover lone")


def test_s11_a_published_port_follows_the_containers_egress(prepared: Host) -> None:
    """The default route, and with it the ports, goes to the network whose name comes first."""
    prepared.ctl("network create --subnet 10.35.0.0/24 zz")
    prepared.run("shift", "--network zz -p 8086:80", echo_server("tcp", 80))
    way = inside(prepared, "shift")
    with eventually() as until:
        until(lambda: prepared.outside.try_(ask("tcp", HOST, 8086)).returncode == 0)
    assert look.default_routes(way) == [("10.35.0.1", "eth0")]

    prepared.ctl("network connect br1 shift")
    assert look.default_routes(way) == [("10.0.0.1", "eth1")]
    assert prepared.outside.sh(ask("tcp", HOST, 8086)) == f"{OUTSIDE} {HOST} 8086"
    assert prepared.in_("first", ask("tcp", HOST, 8086)).split()[1:] == [HOST, "8086"]

    prepared.ctl("network disconnect br1 shift")
    assert look.default_routes(way) == [("10.35.0.1", "eth0")]
    assert prepared.outside.sh(ask("tcp", HOST, 8086)) == f"{OUTSIDE} {HOST} 8086"

    prepared.ctl("network connect --gw-priority -1 br1 shift")
    assert look.default_routes(way) == [("10.35.0.1", "eth0")]
    assert prepared.outside.sh(ask("tcp", HOST, 8086)) == f"{OUTSIDE} {HOST} 8086"
    prepared.ctl("rm -f shift")


def test_s11_the_last_network_can_be_left_and_another_joined(prepared: Host) -> None:
    prepared.run("nomad", "--network br1 -p 8087:80", echo_server("tcp", 80))
    prepared.ctl("network disconnect br1 nomad")
    assert list(look.devices(inside(prepared, "nomad"))) == ["lo"]
    assert prepared.outside.try_(ask("tcp", HOST, 8087)).returncode != 0
    prepared.ctl("network connect br1 nomad")
    assert pings(prepared, "nomad", "10.0.0.2")
    with eventually() as until:
        until(lambda: prepared.outside.try_(ask("tcp", HOST, 8087)).returncode == 0)
    prepared.ctl("rm -f nomad")


def test_s11_connect_takes_addresses_names_and_devices(prepared: Host) -> None:
    prepared.ctl("network create --ipv6 --subnet 10.36.0.0/24 --subnet fd00:36::/64 wide")
    prepared.run("guest", "--network br1")
    prepared.ctl(
        "network connect --ip 10.36.0.77 --ip6 fd00:36::77 --mac-address 02:00:00:00:00:77 --alias g "
        "--driver-opt com.docker.network.endpoint.ifname=wan7 wide guest"
    )
    device = look.devices(inside(prepared, "guest"))["wan7"]
    assert look.addresses(device) == ["10.36.0.77/24"]
    assert look.addresses(device, "inet6") == ["fd00:36::77/64"]
    assert device["address"] == "02:00:00:00:00:77"
    settings = prepared.inspect("guest")["NetworkSettings"]["Networks"]["wide"]
    assert settings["Aliases"] == ["g"]
    assert settings["IPAMConfig"] == {"IPv4Address": "10.36.0.77", "IPv6Address": "fd00:36::77"}
    assert reaches(prepared.try_, "10.36.0.77")
    assert reaches(prepared.try_, "fd00:36::77")
    prepared.ctl("network disconnect -f wide guest")
    assert sorted(look.devices(inside(prepared, "guest"))) == ["eth0", "lo"]
    prepared.ctl("rm -f guest")


def test_s11_connect_and_disconnect_are_refused_where_they_make_no_sense(prepared: Host) -> None:
    prepared.ctl("run --name over true")
    assert prepared.refused("network connect br1 over") == "datapathctl: container over is not running"
    assert prepared.refused("network connect br1 nosuch") == "datapathctl: No such container: nosuch"
    assert prepared.refused("network connect nosuch first") == "datapathctl: network nosuch not found"
    assert prepared.refused("network connect br1 first").endswith("already exists in network br1")
    assert prepared.refused("network disconnect br1 over").endswith("is not connected to network br1")
    assert prepared.refused("network disconnect -f br1 over").endswith("is not connected to network br1")
    prepared.ctl("rm over")


# ---- S12 ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["", "--network bridge"])
@pytest.mark.parametrize("address", ["--ip 172.17.0.9", "--ip6 fd00::9"])
def test_s12_a_static_address_on_the_default_network_is_refused(
    prepared: Host, network: str, address: str
) -> None:
    assert prepared.refused(f"run {network} {address} true") == (
        "datapathctl: user specified IP address is supported on user defined networks only"
    )


def test_s12_a_static_address_on_a_user_defined_network_is_honoured(prepared: Host) -> None:
    prepared.run("fixed", "--network br1 --ip 10.0.200.9")
    assert look.addresses(look.devices(inside(prepared, "fixed"))["eth0"]) == ["10.0.200.9/16"]
    assert pings(prepared, "first", "10.0.200.9")
    assert prepared.inspect("fixed")["NetworkSettings"]["Networks"]["br1"]["IPAMConfig"] == {
        "IPv4Address": "10.0.200.9"
    }
    assert prepared.refused("run --network br1 --ip 10.0.200.9 true") == (
        'datapathctl: Address already in use: 10.0.200.9 belongs to container "fixed"'
    )
    prepared.ctl("rm -f fixed")
    prepared.run("heir", "--network br1 --ip 10.0.200.9")  # free again, and nobody remembers the old one
    assert pings(prepared, "first", "10.0.200.9")
    prepared.ctl("rm -f heir")


REFUSED_ADDRESSES = [
    ("10.1.0.9", "no configured subnet or ip-range contain the IP address 10.1.0.9"),
    ("10.0.0.1", "Address already in use: 10.0.0.1 is the network's gateway"),
    ("10.0.0.0", "Address already in use: 10.0.0.0 is the network address of 10.0.0.0/16"),
    ("10.0.255.255", "Address already in use: 10.0.255.255 is the broadcast address of 10.0.0.0/16"),
    ("10.0.0.2", 'Address already in use: 10.0.0.2 belongs to container "first"'),
    ("0.0.0.0", 'invalid IPv4 address: "0.0.0.0"'),
    ("10.0.0.300", 'invalid IPv4 address: "10.0.0.300"'),
    ("10.0.0.9/16", 'invalid IPv4 address: "10.0.0.9/16"'),
    ("fd00::9", 'invalid IPv4 address: "fd00::9"'),
]


@pytest.mark.parametrize(("address", "reason"), REFUSED_ADDRESSES)
def test_s12_an_address_that_cannot_be_is_refused(prepared: Host, address: str, reason: str) -> None:
    assert prepared.refused(f"run --network br1 --ip {address} true") == f"datapathctl: {reason}"


def test_s12_a_static_address_needs_a_subnet_that_the_user_chose(prepared: Host) -> None:
    prepared.ctl("network create chosen")
    subnet = ipam(prepared, "chosen")[0]["Subnet"]
    address = ip_address(subnet.split("/")[0]) + 9
    assert prepared.refused(f"run --network chosen --ip {address} true") == (
        "datapathctl: user specified IP address is supported only when connecting to networks "
        "with user configured subnets: chosen has none (create it with --subnet)"
    )


def test_s12_a_static_ipv6_address_is_honoured_or_refused_alike(prepared: Host) -> None:
    prepared.ctl("network create --ipv6 --subnet 10.41.0.0/24 --subnet fd00:41::/64 both")
    prepared.run("v6", "--network both --ip6 fd00:41::99")
    assert look.addresses(look.devices(inside(prepared, "v6"))["eth0"], "inet6") == ["fd00:41::99/64"]
    assert reaches(prepared.try_, "fd00:41::99")
    for address, reason in (
        ("fd00:41::99", 'Address already in use: fd00:41::99 belongs to container "v6"'),
        ("fd00:41::1", "Address already in use: fd00:41::1 is the network's gateway"),
        ("fd00:42::1", "no configured subnet or ip-range contain the IP address fd00:42::1"),
        ("10.41.0.9", 'invalid IPv6 address: "10.41.0.9"'),
    ):
        assert prepared.refused(f"run --network both --ip6 {address} true") == f"datapathctl: {reason}"
    assert "network br1 has no IPv6" in prepared.refused("run --network br1 --ip6 fd00:41::98 true")
    prepared.ctl("rm -f v6")


def test_s12_a_static_mac_address_is_honoured_or_refused(prepared: Host) -> None:
    prepared.run("mac", "--network br1 --mac-address 02-AB-00-00-00-01")
    assert look.devices(inside(prepared, "mac"))["eth0"]["address"] == "02:ab:00:00:00:01"
    assert pings(prepared, "first", prepared.address("mac", "br1"))
    assert pings(prepared, "mac", FAR)
    for mac, reason in (
        ("02:ab:00:00:00:01", 'mac address 02:ab:00:00:00:01 is already used by container "mac"'),
        (
            "02:42:0a:00:00:01",
            "mac address 02:42:0a:00:00:01 is that of the network's gateway: choose another",
        ),
        ("01:00:5e:00:00:01", "mac address 01:00:5e:00:00:01 is not a unicast address"),
        ("ff:ff:ff:ff:ff:ff", "mac address ff:ff:ff:ff:ff:ff is not a unicast address"),
        ("02:ab:00:00:00", '"02:ab:00:00:00" is not a valid mac address'),
    ):
        assert prepared.refused(f"run --network br1 --mac-address {mac} true").startswith(
            f"datapathctl: {reason}"
        )
    prepared.run("default_mac", "--mac-address 02:ab:00:00:00:02")  # Docker takes one on the default network
    assert look.devices(inside(prepared, "default_mac"))["eth0"]["address"] == "02:ab:00:00:00:02"
    prepared.ctl("rm -f mac default_mac")


def test_s12_the_long_form_of_network_takes_the_same(prepared: Host) -> None:
    prepared.run("long", "--network name=br1,ip=10.0.7.7,mac-address=02:ab:00:00:00:07,alias=l1,alias=l2")
    device = look.devices(inside(prepared, "long"))["eth0"]
    assert (look.addresses(device), device["address"]) == (["10.0.7.7/16"], "02:ab:00:00:00:07")
    assert json.loads(
        prepared.ctl(["inspect", "-f", "{{json .NetworkSettings.Networks.br1.Aliases}}", "long"])
    ) == [
        "l1",
        "l2",
    ]
    prepared.ctl("rm -f long")


def test_debug_logs_what_was_done_on_the_kernel(host: Host) -> None:
    """On stderr, so that what is printed stays usable."""
    done = host.try_ctl("--debug network create shop")
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
    lines = done.stderr.splitlines()
    assert lines and all(re.match(r"\d\d:\d\d:\d\d\.\d{3} datapath\.\w+: .* ms", line) for line in lines)
