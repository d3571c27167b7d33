# SPDX-License-Identifier: Apache-2.0
"""S1 to S3: sandboxes, networks and endpoints; drivers; the three networks that are always there."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

import pytest

from tests.net import look
from tests.net.hosts import FAR, OUTSIDE, Host, echo_server, eventually, loses, reaches
from tests.net.names import LOCAL, Upstreams, dig


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """Two networks; `both` is on each, `one` and `two` on one."""
    host = shared_host
    host.ctl("network create --subnet 10.1.0.0/24 left")
    host.ctl("network create --subnet 10.2.0.0/24 right")
    host.run("one", f"--network left --dns {OUTSIDE}", echo_server("tcp", 80))
    host.run("two", f"--network right --dns {FAR} --dns-search two.test", echo_server("tcp", 80))
    host.run("both", "--network left --network right")
    return host


# ---- S1 -------------------------------------------------------------------------------


def test_s1_a_sandbox_has_devices_addresses_routes_and_sockets_of_its_own(prepared: Host) -> None:
    pids = [prepared.process(name) for name in ("one", "two", "both")]
    assert len({look.namespace_of(pid) for pid in [*pids, prepared.pid, os.getpid()]}) == 5
    one = look.devices(lambda command: prepared.in_("one", command))
    assert sorted(one) == ["eth0", "lo"]
    assert look.addresses(one["eth0"]) == ["10.1.0.2/24"]
    routes = prepared.in_("one", "ip route").splitlines()
    assert [route.split(" proto")[0].strip() for route in routes] == [
        "default via 10.1.0.1 dev eth0",
        "10.1.0.0/24 dev eth0",
    ]
    for name in ("one", "two"):  # both listen at port 80, and neither is in the other's way or the host's
        assert "0.0.0.0:80" in prepared.in_(name, "ss -Htln")
    assert ":80 " not in prepared.sh("ss -Htln")


def test_s1_a_sandbox_has_dns_settings_of_its_own(prepared: Host, tmp_path: Path) -> None:
    """Each asks the resolver at the same address, which asks the servers that the sandbox was given."""
    servers = Upstreams(
        prepared.outside, tmp_path / "asked", f"{OUTSIDE}=203.0.113.71", f"{FAR}=203.0.113.72"
    )
    for name, server, answer in (("one", OUTSIDE, "203.0.113.71"), ("two", FAR, "203.0.113.72")):
        lines = prepared.in_(name, "cat /etc/resolv.conf").splitlines()
        assert [line for line in lines if line.startswith("nameserver")] == [f"nameserver {LOCAL}"]
        assert ("search two.test" in lines) == (name == "two")
        assert dig(prepared, name, f"{name}.example.org")[0].data == [answer]
        assert servers.whom(f"{name}.example.org") == [server]
    assert "10.1.0.2\t" in prepared.in_("one", "cat /etc/hosts")
    assert prepared.in_("one", "hostname") == prepared.inspect("one")["Id"][:12]


def test_s1_a_network_is_a_set_of_endpoints_that_may_talk(prepared: Host) -> None:
    assert sorted(c["Name"] for c in prepared.network("left")["Containers"].values()) == ["both", "one"]
    assert reaches(lambda ping: prepared.try_in("one", ping), prepared.address("both", "left"))
    assert reaches(lambda ping: prepared.try_in("both", ping), prepared.address("one", "left"))
    assert loses(lambda ping: prepared.try_in("one", ping), prepared.address("two", "right"))


def test_s1_a_sandbox_may_have_many_endpoints_each_with_a_device(prepared: Host) -> None:
    both = look.devices(lambda command: prepared.in_("both", command))
    assert sorted(both) == ["eth0", "eth1", "lo"]
    assert look.addresses(both["eth0"]) == ["10.1.0.3/24"]
    assert look.addresses(both["eth1"]) == ["10.2.0.3/24"]
    for name, network in (("one", "left"), ("two", "right")):
        assert reaches(lambda ping: prepared.try_in("both", ping), prepared.address(name, network))
    networks = prepared.inspect("both")["NetworkSettings"]["Networks"]
    assert len({networks[name]["EndpointID"] for name in ("left", "right")}) == 2


def test_s1_an_endpoint_belongs_to_one_network_and_one_sandbox(prepared: Host) -> None:
    container = prepared.inspect("both")
    for name in ("left", "right"):
        settings = container["NetworkSettings"]["Networks"][name]
        member = prepared.network(name)["Containers"][container["Id"]]
        assert settings["NetworkID"] == prepared.network(name)["Id"]
        assert settings["EndpointID"] == member["EndpointID"]
    assert "already exists in network left" in prepared.refused("network connect left both")


# ---- S2 -------------------------------------------------------------------------------


def test_s2_bridge_is_the_default_driver(prepared: Host) -> None:
    prepared.ctl("network create --driver bridge --subnet 10.3.0.0/24 named")
    assert prepared.network("left")["Driver"] == prepared.network("named")["Driver"] == "bridge"


def test_s2_host_and_null_are_drivers_of_one_network_each(prepared: Host) -> None:
    for driver in ("host", "null"):
        said = prepared.refused(f"network create --driver {driver} another")
        assert said == f'datapathctl: only one instance of "{driver}" network is allowed'


DRIVERS = "there is bridge, overlay, macvlan, ipvlan; host and null are made once"


def test_s2_an_unknown_driver_is_refused_by_name(prepared: Host) -> None:
    said = prepared.refused("network create --driver bogus later")
    there = f"{DRIVERS}; and no plugin of that name in "
    assert said.startswith(f'datapathctl: network driver "bogus" does not exist: {there}')


# ---- S3 -------------------------------------------------------------------------------


def test_s3_after_start_up_there_are_three_networks(host: Host) -> None:
    lines = host.ctl("network ls").splitlines()
    assert re.fullmatch(
        r"NETWORK ID     NAME     DRIVER   SCOPE", re.sub(r"NAME +", "NAME     ", _gaps(lines[0]))
    )
    rows = [line.split() for line in lines[1:]]
    assert [row[1:] for row in rows] == [
        ["bridge", "bridge", "local"],
        ["host", "host", "local"],
        ["none", "null", "local"],
    ]
    assert all(re.fullmatch("[0-9a-f]{12}", row[0]) for row in rows)
    listed = [json.loads(line) for line in host.ctl("network ls --format json").splitlines()]
    assert [(row["ID"], row["Name"], row["Driver"], row["Scope"]) for row in listed] == [
        tuple(r) for r in rows
    ]
    assert host.ctl("network ls -q").split() == [row[0] for row in rows]
    assert [len(ident) for ident in host.ctl("network ls -q --no-trunc").split()] == [64, 64, 64]


def _gaps(line: str) -> str:
    return re.sub(r"DRIVER +", "DRIVER   ", line)


@pytest.mark.parametrize("name", ["bridge", "host", "none"])
def test_s3_a_predefined_network_cannot_be_removed(prepared: Host, name: str) -> None:
    said = prepared.refused(f"network rm {name}")
    assert said == f"datapathctl: {name} is a pre-defined network and cannot be removed"


def test_s3_a_predefined_network_cannot_be_removed_by_its_id_or_by_force(prepared: Host) -> None:
    ident = prepared.ctl("network ls -q --filter name=none")
    assert "pre-defined network and cannot be removed" in prepared.refused(f"network rm {ident}")
    assert "pre-defined network and cannot be removed" in prepared.refused("network rm -f host")


@pytest.mark.parametrize("name", ["bridge", "host", "none", "default"])
def test_s3_a_predefined_network_cannot_be_created_again(prepared: Host, name: str) -> None:
    said = prepared.refused(f"network create {name}")
    assert said == f"datapathctl: operation is not permitted on predefined {name} network"


def test_s3_prune_keeps_the_predefined_networks(host: Host) -> None:
    host.ctl("network create gone")
    assert host.ctl("network prune -f") == "Deleted Networks:\ngone"
    assert host.ctl("network prune -f") == ""
    assert host.ctl("network ls --format {{.Name}}").split() == ["bridge", "host", "none"]


def test_s3_nothing_is_made_on_the_host_before_a_network_is_used(host: Host) -> None:
    host.ctl("network ls")
    host.ctl("ps -a")
    assert sorted(look.devices(host.sh)) == ["eth0", "lo"]
    host.run("web")
    assert "dp0" in look.devices(host.sh)


def test_s1_two_sandboxes_may_listen_at_the_same_port_and_answer_for_themselves(prepared: Host) -> None:
    def connects(address: str) -> bool:
        return prepared.try_in("both", f"nc -z -w 1 {address} 80").returncode == 0

    with eventually() as until:
        for name, network in (("one", "left"), ("two", "right")):
            address = prepared.address(name, network)
            until(partial(connects, address))
