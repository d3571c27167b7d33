# SPDX-License-Identifier: Apache-2.0
"""ipvlan networks: addresses on the network of one of the host's devices, with its MAC address (S24)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from datapath.dataplane.programs import Dataplane
from tests.conftest import SLOWNESS
from tests.net.hosts import HOST, OUTSIDE, Host, eventually, loses, reaches, words
from tests.net.lan import LAN, OUTSIDE6, healthy, make_lower, needs_vlan, six, within
from tests.net.names import Upstreams, dig

LINKLOCAL = "ip -6 -o address show dev eth0 scope link"


@pytest.fixture
def host(emptied: Host) -> Host:
    """The module's: a network needs a parent that no other network has, and each test gives its own back."""
    return emptied


def first_ping(host: Host, address: str) -> float:
    """How long it takes who does not know yet who has the address, ms."""
    host.outside.sh("ip neighbour flush dev eth0")
    return float(re.findall(r"time=([\d.]+) ms", host.outside.sh(f"ping -c 1 -W 5 {address}"))[0])


def test_s24_members_are_on_the_parents_link_with_its_mac_address(lan: Host) -> None:
    """O17. By both IP versions: the LAN, the host and other members reach them at once, and they those."""
    before = lan.sh("ip -o link"), lan.sh("ip route"), lan.sh("ip -6 route")
    lan.ctl(f"network create -d ipvlan {LAN} --ip-range 192.0.2.128/25 -o parent=eth0 lan")
    lan.run("a", "--network lan --ip 192.0.2.200")
    lan.run("b", "--network lan")
    assert lan.address("b", "lan") == "192.0.2.128"
    uplink = lan.sh("ip -o link show eth0").split("link/ether ")[1].split()[0]
    for near, far, own in (("192.0.2.200", OUTSIDE, HOST), (six(lan, "a"), OUTSIDE6, "2001:db8::1")):
        with eventually() as until:  # another process may come between one ping and its answer
            until(lambda address=near: first_ping(lan, address) < 5 * SLOWNESS)  # type: ignore[misc]
        assert f"lladdr {uplink}" in lan.outside.sh(f"ip neighbour show {near}")
        assert reaches(lan.try_, near), near
        assert reaches(within(lan, "b"), near)
        assert reaches(within(lan, "a"), far)
        assert reaches(within(lan, "a"), own)
    router = lan.outside.sh("ip -o link show eth0").split("link/ether ")[1].split()[0]
    assert f"lladdr {router}" in lan.in_("a", f"ip neighbour show {OUTSIDE}")
    assert "default via 192.0.2.2" in lan.in_("a", "ip route")
    shown = lan.network("lan")
    assert (
        shown["Driver"] == "ipvlan" and shown["Scope"] == "local" and shown["Options"] == {"parent": "eth0"}
    )
    assert healthy(lan)
    lan.ctl("rm -f a b")
    lan.ctl("network rm lan")
    assert (lan.sh("ip -o link"), lan.sh("ip route"), lan.sh("ip -6 route")) == before and healthy(lan)


def test_s17_members_have_names_and_ask_the_hosts_resolvers(lan: Host) -> None:
    """Also those of a network without IPv6, where no next hop is one of the host's addresses."""
    lan.ctl("network create -d ipvlan --subnet 192.0.2.0/24 --gateway 192.0.2.2 -o parent=eth0 lan")
    lan.run("web", "--network lan")
    lan.run("a", "--network lan")
    assert "127.0.0.11" in lan.in_("a", "cat /etc/resolv.conf")
    assert reaches(within(lan, "a"), "web")
    assert reaches(within(lan, "a"), "web.lan")
    assert healthy(lan)


def test_s17_name_servers_on_the_link_and_among_members_are_asked(lan: Host, tmp_path: Path) -> None:
    """Both have an address of the network's subnet. The host asks, by its own address there."""
    lan.ctl("network create -d ipvlan --subnet 192.0.2.0/24 --gateway 192.0.2.2 -o parent=eth0 lan")
    lan.run("pi", "--network lan --ip 192.0.2.201")
    within = words(f"nsenter --net=/proc/{lan.process('pi')}/ns/net")
    router = Upstreams(lan.outside, tmp_path / "router", f"{OUTSIDE}=203.0.113.70")
    member = Upstreams(lan, tmp_path / "member", "192.0.2.201=203.0.113.71", within=within)
    for name, server, answer, asked in (
        ("a", OUTSIDE, "203.0.113.70", router),
        ("b", "192.0.2.201", "203.0.113.71", member),
    ):
        lan.run(name, f"--network lan --dns {server}")
        assert dig(lan, name, "elsewhere.test A", "pi A", options="@127.0.0.11")[0].data == [answer]
        assert asked.asked("elsewhere.test")[0].peer == HOST
    for one in (router, member):
        one.process.kill()
        one.process.wait()


def test_s24_tcp_and_large_packets_pass_both_ways(lan: Host) -> None:
    """With offloads on and in pieces: nothing of a packet is looked at but for whom it is."""
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 lan")
    lan.run("a", "--network lan")
    for near, far in ((lan.address("a", "lan"), OUTSIDE), (six(lan, "a"), OUTSIDE6)):
        assert lan.outside.try_(f"ping -c 1 -W 60 -s 4000 {near}").returncode == 0
        assert lan.try_in("a", f"ping -c 1 -W 60 -s 4000 {far}").returncode == 0


def test_s14_broadcast_and_multicast_reach_members_and_the_link(lan: Host) -> None:
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 lan")
    lan.run("a", "--network lan")
    lan.run("b", "--network lan")
    for name in ("a", "b"):
        lan.in_(name, "sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")
    answered = lan.outside.try_("ping -b -c 3 -i 0.2 -W 1 192.0.2.255").stdout
    heard = lan.try_in("a", "ping -c 3 -i 0.2 -W 1 ff02::1%eth0").stdout
    assert all(f"from {lan.address(name, 'lan')}" in answered for name in ("a", "b"))
    others = (lan.in_("b", LINKLOCAL), lan.outside.sh(LINKLOCAL))
    assert all(f"from {shown.split('inet6 ')[1].split('/')[0]}" in heard for shown in others)


def test_s15_members_may_not_talk_where_that_is_not_asked_for(lan: Host) -> None:
    """icc=false, and Docker's flag private: each still reaches the LAN and the host."""
    for name, option in (
        ("one", "-o com.docker.network.bridge.enable_icc=false"),
        ("two", "-o ipvlan_flag=private"),
    ):
        lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 {option} {name}")
        lan.run(f"{name}-a", f"--network {name}")
        lan.run(f"{name}-b", f"--network {name}")
        reach = lan.address(f"{name}-b", name)
        assert loses(within(lan, f"{name}-a"), reach)
        for far in (OUTSIDE, HOST, OUTSIDE6):
            assert reaches(within(lan, f"{name}-a"), far), (name, far)
        assert healthy(lan)
        lan.ctl(f"rm -f {name}-a {name}-b")
        lan.ctl(f"network rm {name}")


def test_s24_flag_vepa_leaves_members_to_a_switch_that_sends_frames_back(lan: Host) -> None:
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 -o ipvlan_flag=vepa lan")
    lan.run("a", "--network lan")
    lan.run("b", "--network lan")
    assert reaches(within(lan, "a"), OUTSIDE)
    assert reaches(lan.outside.try_, lan.address("b", "lan"))
    assert loses(within(lan, "a"), lan.address("b", "lan"))
    assert healthy(lan)


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_s24_in_mode_l3_members_are_routed(lan: Host, mode: str) -> None:
    """Their subnet is none of the LAN's: its machines have a route to it by the host, and nobody is asked by ARP."""
    lan.ctl(
        "network create -d ipvlan --subnet 10.99.0.0/24 --ipv6 --subnet 2001:db8:9::/64 "
        f"-o parent=eth0 -o ipvlan_mode={mode} far"
    )
    lan.run("a", "--network far")
    lan.run("b", "--network far")
    assert re.search(r"^default dev eth0 .*scope link", lan.in_("a", "ip route"), re.M)
    assert "default dev eth0" in lan.in_("a", "ip -6 route")
    lan.outside.sh(f"ip route replace 10.99.0.0/24 via {HOST}")
    lan.outside.sh("ip -6 route replace 2001:db8:9::/64 via 2001:db8::1")
    for near, other, far, own in (
        (lan.address("a", "far"), lan.address("b", "far"), OUTSIDE, HOST),
        (six(lan, "a", "far"), six(lan, "b", "far"), OUTSIDE6, "2001:db8::1"),
    ):
        assert reaches(lan.outside.try_, near), near
        for target in (other, far, own):
            assert reaches(within(lan, "a"), target), target
        assert reaches(lan.try_, near), near
    assert healthy(lan)
    lan.ctl("network disconnect far a")
    lan.ctl("network connect far a")
    assert reaches(within(lan, "a"), OUTSIDE) and healthy(lan)


def test_s24_without_a_parent_members_reach_each_other_and_nobody_else(host: Host) -> None:
    host.ctl("network create -d ipvlan --subnet 10.77.0.0/24 alone")
    host.run("a", "--network alone")
    host.run("b", "--network alone")
    assert reaches(within(host, "a"), "b")
    assert "default" not in host.in_("a", "ip route")
    assert loses(host.try_, host.address("a", "alone")) and healthy(host)
    host.ctl("rm -f a b")
    host.ctl("network rm alone")
    assert " dp-" not in host.sh("ip -o link")


@needs_vlan
def test_s24_a_vlan_is_made_for_its_network_and_goes_with_it(host: Host) -> None:
    host.outside.sh("ip link add link eth0 name eth0.10 type vlan id 10")
    host.outside.sh("ip address add 10.78.0.1/24 dev eth0.10")
    host.outside.sh("ip link set eth0.10 up")
    host.ctl("network create -d ipvlan --subnet 10.78.0.0/24 --gateway 10.78.0.1 -o parent=eth0.10 tagged")
    assert "id 10 " in host.sh("ip -d link show eth0.10")
    host.run("a", "--network tagged")
    assert reaches(within(host, "a"), "10.78.0.1") and healthy(host)
    host.sh("ip link set eth0.10 down")
    assert "device eth0.10 is down" in host.try_ctl("doctor").stdout
    host.ctl("reconcile")
    assert healthy(host)
    host.ctl("rm -f a")
    host.ctl("network rm tagged")
    assert host.try_("ip link show eth0.10").returncode != 0


def test_s24_ports_are_passed_over_and_said_to_be(lan: Host) -> None:
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 lan")
    done = lan.try_ctl("run -d --name a --network lan -p 80:80 sleep 3600")
    assert done.returncode == 0
    assert "Published ports are discarded: on network lan it is reached at its own address" in done.stderr
    assert lan.ctl("port a") == ""
    assert lan.refused("port add a 81:80").endswith("on network lan it is reached at its own address")


REFUSED = {
    "parent=lo": "loopback interface is not a valid ipvlan parent link",
    "parent=nope": "invalid subinterface vlan name nope, example formatting is eth0.10",
    "parent=eth0.10.20": "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received "
    "eth0.10.20",
    "parent=eth0.x": "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)",
    "parent=eth0.4095": "vlan id must be between 1-4094, received: 4095",
    "parent=eth9.10": "-o parent=eth9.10: there is no device eth9 on this host",
    "parent=": "option parent: a device has a name of 1 to 15 characters",
    "ipvlan_mode=foo": "requested ipvlan mode 'foo' is not valid, 'l2' mode is the ipvlan driver default",
    "ipvlan_flag=foo": "requested ipvlan flag 'foo' is not valid, 'bridge' is the ipvlan driver default",
    "macvlan_mode=bridge": 'option "macvlan_mode" of driver ipvlan is unknown: there are ipvlan_mode, ipvlan_flag',
    "com.docker.network.bridge.name=x": 'option "com.docker.network.bridge.name" of driver ipvlan is not available',
}


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """For what is refused, and so changes nothing."""
    return shared_host


@pytest.mark.parametrize("option", REFUSED)
def test_s24_what_cannot_be_is_refused_in_dockers_words_and_changes_nothing(
    prepared: Host, option: str
) -> None:
    said = prepared.refused(f"network create -d ipvlan --subnet 10.77.0.0/24 -o {option} bad")
    assert REFUSED[option] in said and "\n" not in said
    assert "bad" not in prepared.ctl("network ls")


def test_s24_a_parent_has_one_network_and_members_have_its_mac_address(host: Host) -> None:
    host.ctl("network create -d ipvlan --subnet 10.77.0.0/24 -o parent=eth0 one")
    for driver in ("ipvlan", "macvlan"):
        said = host.refused(f"network create -d {driver} --subnet 10.78.0.0/24 -o parent=eth0 two")
        assert said == "datapathctl: network one is already using parent interface eth0"
    said = host.refused("run -d --network one --mac-address 02:42:aa:bb:cc:dd sleep 3600")
    assert said == "datapathctl: ipvlan interfaces do not support custom mac address assignment"
    host.run("a", "")
    said = host.refused("network connect --driver-opt com.datapath.forwarding=true one a")
    assert said.endswith("is not available: members of network one have no MAC address of their own")
    host.sh("ip tuntap add dev tun7 mode tun")
    said = host.refused("network create -d ipvlan --subnet 10.79.0.0/24 -o parent=tun7 two")
    assert "ipvlan networks on tun7, whose packets have no Ethernet header" in said


def found(host: Host) -> set[str]:
    """The checks that doctor names."""
    return set(host.try_ctl("doctor --format {{.Check}}").stdout.split())


def test_s30_what_is_taken_from_an_ipvlan_network_is_found_and_put_back(lan: Host) -> None:
    """The host's route, the parent's program, its row, its MAC address: each is one finding that is mended."""
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 lan")
    lan.run("a", "--network lan")
    near, device = lan.address("a", "lan"), f"dp-{lan.network('lan')['Id'][:12]}"

    def mended() -> bool:
        lan.ctl("reconcile")
        return healthy(lan) and reaches(lan.outside.try_, near) and reaches(lan.try_, near)

    lan.sh(f"ip route delete {near} dev {device}")
    assert f"the host has no route to {near} by {device}" in lan.try_ctl("doctor").stdout
    assert found(lan) == {"host-route"} and mended()
    (link,) = (lan.bpffs / "datapath/links").glob("from_parent-*")
    assert not list((lan.bpffs / "datapath/links").glob(f"from_uplink-{link.name.rpartition('-')[2]}"))
    link.unlink()
    assert found(lan) == {"detached"} and mended()
    programs = Dataplane.find(lan.bpffs / "datapath")
    assert programs is not None
    with programs:
        programs.parents.delete_many(list(programs.parents))
    assert found(lan) == {"entry-missing"} and mended()
    lan.sh("ip link set eth0 address 02:00:00:00:00:77")
    assert found(lan) == {"entry-wrong"}
    lan.outside.sh("ip neighbour flush dev eth0")
    assert mended() and "02:00:00:00:00:77" in lan.outside.sh(f"ip neighbour show {near}")
    lan.sh(f"ip link delete {device}")
    lan.ctl("network create more")  # any command that changes something builds it again
    assert healthy(lan) and reaches(lan.outside.try_, near) and reaches(lan.try_, near)
    lan.ctl("network rm -f more")
    lan.ctl("rm -f a")
    lan.ctl("network rm lan")
    assert not list((lan.bpffs / "datapath/links").glob("from_parent-*"))


def test_s30_an_ipvlan_network_whose_parent_went_is_said_to_be_broken(host: Host) -> None:
    """It cannot be repaired until the device is back; then it is. Members reach each other all the while."""
    make_lower(host)
    host.ctl("network create -d ipvlan --subnet 10.77.0.0/24 -o parent=lower lan")
    host.run("a", "--network lan")
    host.run("b", "--network lan")
    host.sh("ip link set lower down")
    assert "network lan: its parent device lower is down" in host.try_ctl("doctor").stdout
    assert found(host) == {"parent"}
    host.sh("ip link delete lower")
    assert "network lan: its parent device lower is gone" in host.try_ctl("doctor").stdout
    assert host.try_ctl("reconcile").returncode != 0
    assert reaches(within(host, "a"), host.address("b", "lan"))
    make_lower(host)
    host.ctl("reconcile")
    assert healthy(host) and reaches(within(host, "a"), host.address("b", "lan"))


def test_s31_down_takes_ipvlan_networks_away_too(lan: Host) -> None:
    lan.ctl("down")  # what the tests before have
    before = lan.sh("ip -o link"), lan.sh("ip route")
    lan.ctl(f"network create -d ipvlan {LAN} -o parent=eth0 lan")
    lan.ctl("network create -d ipvlan --subnet 10.78.0.0/24 alone")
    lan.run("a", "--network lan")
    lan.run("b", "--network alone")
    lan.ctl("down")
    assert (lan.sh("ip -o link"), lan.sh("ip route")) == before
