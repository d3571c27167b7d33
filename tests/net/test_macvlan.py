# SPDX-License-Identifier: Apache-2.0
"""macvlan networks: addresses on the network of one of the host's devices (S24)."""

from __future__ import annotations

import pytest

from datapath.kernel import features
from tests.net import look
from tests.net.hosts import DATAPATHCTL, HOST, OUTSIDE, TIMEOUT, Host, eventually, loses, reaches
from tests.net.lan import HOST6, LAN, OUTSIDE6, healthy, make_lower, needs_vlan, six, within

pytestmark = pytest.mark.skipif(not features.has_kind("macvlan"), reason="this kernel has no macvlan")


@pytest.fixture
def host(emptied: Host) -> Host:
    """The module's: a network needs a parent that no other network has, and each test gives its own back."""
    return emptied


def test_s24_containers_have_addresses_on_the_network_of_the_parent(lan: Host) -> None:
    """With MAC addresses of their own; the host and they do not reach each other, as with Docker."""
    before = lan.sh("ip -o link")
    lan.ctl(f"network create -d macvlan {LAN} --ip-range 192.0.2.128/25 -o parent=eth0 lan")
    lan.run("a", "--network lan --ip 192.0.2.200 --mac-address 02:42:aa:bb:cc:dd")
    lan.run("b", "--network lan")
    assert lan.address("b", "lan") == "192.0.2.128"
    for version, far, near in ((4, OUTSIDE, "192.0.2.200"), (6, OUTSIDE6, "")):
        near = near or six(lan, "a")
        assert reaches(within(lan, "a"), far), version
        assert reaches(within(lan, "b"), near), version
        assert reaches(lan.outside.try_, near), version
        assert loses(lan.try_, near), version
        assert loses(within(lan, "a"), HOST if version == 4 else HOST6)
    assert "02:42:aa:bb:cc:dd" in lan.outside.sh("ip neighbour show 192.0.2.200")
    assert "default via 192.0.2.2" in lan.in_("a", "ip route")
    shown = lan.network("lan")
    assert [one["AuxiliaryAddresses"] for one in shown["IPAM"]["Config"]] == [
        {"host": HOST},
        {"host": HOST6},
    ]
    assert shown["Driver"] == "macvlan" and shown["Scope"] == "local"
    assert shown["Options"] == {"parent": "eth0"}
    assert healthy(lan)
    lan.ctl("rm -f a b")
    lan.ctl("network rm lan")
    assert lan.sh("ip -o link") == before and healthy(lan)


def test_s24_a_container_is_removed_and_one_with_its_address_starts_at_once(lan: Host) -> None:
    """With its MAC address, though the kernel takes the first one's device away with its namespace, in its own time."""
    lan.ctl(f"network create -d macvlan {LAN} -o parent=eth0 lan")
    options = "--network lan --ip 192.0.2.200 --mac-address 02:42:aa:bb:cc:dd"
    lan.run("a", options)
    with look.holding(lan.process("a")):
        lan.ctl("rm -f a")
        starting = lan.start(f"{DATAPATHCTL} run -d --name a {options} sleep 3600")
        with eventually() as until:
            until(lambda: starting.poll() is not None or hears_of_devices(lan))
    assert starting.wait(TIMEOUT) == 0
    assert reaches(within(lan, "a"), OUTSIDE) and healthy(lan)


def hears_of_devices(host: Host) -> bool:
    """Somebody on the host is told what becomes of its devices: of rtnetlink's sockets one is in a group."""
    rows = (line.split() for line in host.sh("cat /proc/net/netlink").splitlines()[1:])
    return any(protocol == "0" and int(groups, 16) for _, protocol, _, groups, *_ in rows)


def test_s24_ports_are_passed_over_and_said_to_be(lan: Host) -> None:
    """Two may ask for the same one: each is reached at its own address."""
    lan.ctl(f"network create -d macvlan {LAN} -o parent=eth0 lan")
    for name in ("a", "b"):
        done = lan.try_ctl(f"run -d --name {name} --network lan -p 80:80 sleep 3600")
        assert done.returncode == 0
        assert "Published ports are discarded: on network lan it is reached at its own address" in done.stderr
    assert lan.ctl("port a") == ""
    said = lan.refused("port add a 81:80")
    assert said.endswith("on network lan it is reached at its own address")
    lan.ctl("network create other")
    lan.ctl("network connect other a")
    assert healthy(lan)
    lan.ctl("network disconnect lan a")
    assert "eth0" not in lan.in_("a", "ip -o link") and healthy(lan)
    lan.ctl("network connect lan a")
    assert reaches(within(lan, "a"), OUTSIDE) and healthy(lan)


def test_s24_without_a_parent_members_reach_each_other_and_nobody_else(host: Host) -> None:
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 --internal alone")
    host.run("a", "--network alone")
    host.run("b", "--network alone")
    assert reaches(within(host, "a"), host.address("b", "alone"))
    assert "default" not in host.in_("a", "ip route")
    assert loses(host.try_, host.address("a", "alone"))
    assert healthy(host)
    host.sh(f"ip link delete dm-{host.network('alone')['Id'][:12]}")
    found = host.try_ctl("doctor").stdout
    assert "network alone: its parent device" in found and "is gone" in found
    host.ctl("reconcile")
    assert healthy(host) and reaches(within(host, "a"), host.address("b", "alone"))
    host.ctl("rm -f a b")
    host.ctl("network rm alone")
    assert " dm-" not in host.sh("ip -o link")


@needs_vlan
def test_s24_a_vlan_is_made_for_its_network_and_goes_with_it(host: Host) -> None:
    host.outside.sh("ip link add link eth0 name eth0.10 type vlan id 10")
    host.outside.sh("ip address add 10.78.0.1/24 dev eth0.10")
    host.outside.sh("ip link set eth0.10 up")
    host.ctl("network create -d macvlan --subnet 10.78.0.0/24 --gateway 10.78.0.1 -o parent=eth0.10 tagged")
    assert "id 10 " in host.sh("ip -d link show eth0.10")
    host.run("a", "--network tagged")
    assert reaches(within(host, "a"), "10.78.0.1") and healthy(host)
    host.ctl("rm -f a")
    host.ctl("network rm tagged")
    assert host.try_("ip link show eth0.10").returncode != 0
    host.sh("ip link add link eth0 name eth0.11 type vlan id 11")
    host.ctl("network create -d macvlan --subnet 10.79.0.0/24 -o parent=eth0.11 given")
    host.ctl("network rm given")
    host.sh("ip link show eth0.11")  # it was there before


def test_s24_the_host_reaches_members_where_that_is_asked_for(lan: Host) -> None:
    """By both IP versions, both ways, and what is taken away is found and put back."""
    before = lan.sh("ip -o link"), lan.sh("ip route"), lan.sh("ip -6 route")
    lan.ctl(f"network create -d macvlan {LAN} -o parent=eth0 -o com.datapath.host_access=true lan")
    lan.run("a", "--network lan")
    far6 = six(lan, "a")
    for address in (lan.address("a", "lan"), far6):
        assert reaches(lan.try_, address), address
    for address in (HOST, HOST6, OUTSIDE):
        assert reaches(within(lan, "a"), address), address
    assert healthy(lan)

    device = f"dp-{lan.network('lan')['Id'][:12]}"
    lan.sh(f"ip route delete {lan.address('a', 'lan')} dev {device}")
    assert f"the host has no route to {lan.address('a', 'lan')} by {device}" in lan.try_ctl("doctor").stdout
    assert lan.try_ctl("doctor --format {{.Check}}").stdout.split() == ["host-route"]
    lan.ctl("reconcile")
    assert healthy(lan) and reaches(lan.try_, lan.address("a", "lan"))
    lan.sh(f"ip link set {device} down")
    assert f"device {device} is down" in lan.try_ctl("doctor").stdout
    lan.ctl("reconcile")
    assert healthy(lan) and reaches(lan.try_, lan.address("a", "lan"))
    lan.sh(f"ip link delete {device}")
    lan.ctl("network create more")  # any command that changes something builds it again
    assert healthy(lan) and reaches(lan.try_, far6)

    lan.ctl("rm -f a")
    assert lan.sh(f"ip route show dev {device}") == ""
    lan.ctl("network rm lan more")
    assert (lan.sh("ip -o link"), lan.sh("ip route"), lan.sh("ip -6 route")) == before


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_s24_modes_are_the_kernels(lan: Host, mode: str) -> None:
    """Members reach each other only in mode bridge: in vepa a switch would have to send frames back."""
    lan.ctl(f"network create -d macvlan {LAN} -o parent=eth0 -o macvlan_mode={mode} lan")
    lan.run("a", "--network lan")
    lan.run("b", "--network lan")
    assert reaches(within(lan, "a"), OUTSIDE)
    reached = reaches if mode == "bridge" else loses
    assert reached(within(lan, "a"), lan.address("b", "lan"))
    assert f"macvlan mode {mode} " in lan.in_("a", "ip -d link show eth0") and healthy(lan)


def test_s15_members_may_not_talk_where_that_is_not_asked_for(lan: Host) -> None:
    """Nor do they hear each other's broadcasts; each still reaches the LAN."""
    lan.ctl(
        f"network create -d macvlan {LAN} -o parent=eth0 -o com.docker.network.bridge.enable_icc=false lan"
    )
    lan.run("a", "--network lan")
    lan.run("b", "--network lan")
    assert reaches(within(lan, "a"), OUTSIDE)
    assert loses(within(lan, "a"), lan.address("b", "lan"))
    assert lan.in_("b", "ip neighbour show " + lan.address("a", "lan")) == ""
    assert "macvlan mode private " in lan.in_("a", "ip -d link show eth0") and healthy(lan)


def test_s24_a_passthru_parent_is_for_one_container_with_its_mac_address(host: Host) -> None:
    make_lower(host)
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 -o parent=lower -o macvlan_mode=passthru one")
    host.run("a", "--network one")
    mac = host.in_("a", "ip -o link show eth0")
    assert host.sh("ip -o link show lower").split("link/ether ")[1].split()[0] in mac
    assert host.inspect("a")["NetworkSettings"]["Networks"]["one"]["MacAddress"] in mac
    said = host.refused("run -d --network one sleep 3600")
    assert said == "datapathctl: network one has the mode passthru: device lower is for one container"
    assert healthy(host)
    host.ctl("rm -f a")
    host.run("b", "--network one")
    assert healthy(host)


REFUSED = {
    "parent=lo": "loopback interface is not a valid macvlan parent link",
    "parent=nope": "invalid subinterface vlan name nope, example formatting is eth0.10",
    "parent=eth0.10.20": "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received "
    "eth0.10.20",
    "parent=eth0.x": "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)",
    "parent=eth0.4095": "vlan id must be between 1-4094, received: 4095",
    "parent=eth9.10": "-o parent=eth9.10: there is no device eth9 on this host",
    "parent=": "option parent: a device has a name of 1 to 15 characters",
    "macvlan_mode=foo": "requested macvlan mode 'foo' is not valid, 'bridge' mode is the macvlan driver default",
    "com.datapath.host_access=maybe": 'invalid value "maybe" for option com.datapath.host_access',
    "com.docker.network.bridge.name=x": 'option "com.docker.network.bridge.name" of driver macvlan is not available',
}


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """For what is refused, and so changes nothing."""
    return shared_host


@pytest.mark.parametrize("option", REFUSED)
def test_s24_what_cannot_be_is_refused_in_dockers_words_and_changes_nothing(
    prepared: Host, option: str
) -> None:
    said = prepared.refused(f"network create -d macvlan --subnet 10.77.0.0/24 -o {option} bad")
    assert REFUSED[option] in said and "\n" not in said
    assert "bad" not in prepared.ctl("network ls")


def test_s24_a_parent_has_one_network(host: Host) -> None:
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 -o parent=eth0 one")
    said = host.refused("network create -d macvlan --subnet 10.78.0.0/24 -o parent=eth0 two")
    assert said == "datapathctl: network one is already using parent interface eth0"
    said = host.refused(
        "network create -d macvlan --subnet 10.78.0.0/24 -o macvlan_mode=vepa -o com.datapath.host_access=true two"
    )
    assert said == "datapathctl: com.datapath.host_access=true needs macvlan_mode=bridge, not vepa"
    icc = "com.docker.network.bridge.enable_icc"
    said = host.refused(
        f"network create -d macvlan --subnet 10.78.0.0/24 -o macvlan_mode=vepa -o {icc}=false two"
    )
    assert said == f"datapathctl: {icc}=false needs macvlan_mode=bridge or private, not vepa"
    said = host.refused(
        f"network create -d macvlan --subnet 10.78.0.0/24 -o com.datapath.host_access=true -o {icc}=false two"
    )
    assert (
        said == f"datapathctl: com.datapath.host_access=true needs {icc}=true: the host is a member like any"
    )


def test_s30_a_macvlan_network_whose_parent_went_is_said_to_be_broken(host: Host) -> None:
    """It cannot be repaired until the device is back; then it is."""
    make_lower(host)
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 -o parent=lower lan")
    host.run("a", "--network lan")
    host.run("b", "--network lan")
    host.sh("ip link set lower down")
    assert "network lan: its parent device lower is down" in host.try_ctl("doctor").stdout
    assert host.try_ctl("doctor --format {{.Check}}").stdout.split() == ["parent"]
    host.sh("ip link delete lower")
    found = host.try_ctl("doctor").stdout
    assert "network lan: its parent device lower is gone" in found
    assert host.try_ctl("reconcile").returncode != 0
    make_lower(host)
    host.ctl("reconcile")
    assert healthy(host)
    assert reaches(within(host, "a"), host.address("b", "lan"))


def test_s30_down_takes_macvlan_networks_away_too(host: Host) -> None:
    before = host.sh("ip -o link")
    host.ctl(
        "network create -d macvlan --subnet 10.77.0.0/24 -o parent=eth0 -o com.datapath.host_access=true lan"
    )
    host.ctl("network create -d macvlan --subnet 10.78.0.0/24 alone")
    host.run("a", "--network lan")
    host.run("b", "--network alone")
    host.ctl("down")
    assert host.sh("ip -o link") == before
