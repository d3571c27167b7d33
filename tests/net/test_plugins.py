# SPDX-License-Identifier: Apache-2.0
"""Networks whose driver is a plugin of Docker's: another process, called by libnetwork's remote protocol (S2, S25)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.net import forked, look
from tests.net.docker_door import Door
from tests.net.hosts import HOST, OUTSIDE, TIMEOUT, Host, ask, echo_server, eventually, loses, reaches
from tests.net.plugins import Plugin, folders, impatient

CREATE = "network create -d weave --subnet 10.5.0.0/24 -o colour=blue"
START = ["CreateEndpoint", "Join", "ProgramExternalConnectivity"]
PORT_MAP = "com.docker.network.portmap"
STOP = ["RevokeExternalConnectivity", "Leave", "DeleteEndpoint"]


@pytest.fixture
def plugin(host: Host) -> Iterator[Plugin]:
    yield Plugin(host)


def healthy(host: Host) -> bool:
    found = host.try_ctl("doctor")
    assert found.returncode == 0, found.stdout + found.stderr
    return True


def test_s25_a_plugin_is_the_driver_of_a_network(host: Host, plugin: Plugin) -> None:
    """Found in Docker's folder, called as dockerd calls it; containers reach each other by what it has made."""
    before = host.sh("ip -o link")
    host.ctl(f"{CREATE} --ipv6 --subnet fd05::/64 --aux-address printer=10.5.0.9 far")
    asked = plugin.asked("CreateNetwork")
    ident = host.network("far")["Id"]
    assert asked == {
        "NetworkID": ident,
        "Options": {
            "com.docker.network.enable_ipv4": True,
            "com.docker.network.enable_ipv6": True,
            "com.docker.network.generic": {"colour": "blue"},
        },
        "IPv4Data": [
            {
                "AddressSpace": "LocalDefault",
                "Pool": "10.5.0.0/24",
                "Gateway": "10.5.0.1/24",
                "AuxAddresses": {"printer": "10.5.0.9/24"},
            }
        ],
        "IPv6Data": [{"AddressSpace": "LocalDefault", "Pool": "fd05::/64", "Gateway": "fd05::1/64"}],
    }
    assert {one["accept"] for one in plugin.requests()} == {"application/vnd.docker.plugins.v1.2+json"}
    plugin.forget()
    host.run("a", "--network far -p 8080:80 --expose 90")
    assert plugin.methods() == START
    asked = plugin.asked("CreateEndpoint")
    ports = {
        PORT_MAP: [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}],
        "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}, {"Proto": 6, "Port": 90}],
    }
    both = {"NetworkID": ident, "EndpointID": asked["EndpointID"]}
    assert asked == {
        **both,
        "Interface": {"Address": "10.5.0.2/24", "AddressIPv6": "fd05::2/64", "MacAddress": ""},
        "Options": ports,
    }
    assert len(asked["EndpointID"]) == 64
    assert plugin.asked("ProgramExternalConnectivity") == {**both, "Options": ports}
    assert plugin.asked("Join") == {
        **both,
        "SandboxKey": f"/proc/{host.process('a')}/ns/net",
        "Options": ports,
    }
    host.run("b", "--network far --ip 10.5.0.77 --mac-address 02:42:aa:bb:cc:dd --network-alias x")
    assert plugin.asked("CreateEndpoint")["Interface"] == {
        "Address": "10.5.0.77/24",
        "AddressIPv6": "fd05::3/64",
        "MacAddress": "02:42:aa:bb:cc:dd",
    }
    for target in ("10.5.0.77", "fd05::3", "10.5.0.1", "fd05::1"):
        assert reaches(lambda command: host.try_in("a", command), target), target
    assert "02:42:aa:bb:cc:dd" in host.in_("b", "ip -o link show eth0")
    assert "default via 10.5.0.1 dev eth0" in host.in_("a", "ip route")
    shown = host.inspect("a")["NetworkSettings"]["Networks"]["far"]
    assert shown["MacAddress"] == f"02:99:{both['EndpointID'][:2]}:{both['EndpointID'][2:4]}:00:01"
    assert shown["MacAddress"] in host.in_("a", "ip -o link show eth0")
    assert (shown["Gateway"], shown["IPv6Gateway"]) == ("10.5.0.1", "fd05::1")
    shown = host.network("far")
    assert (shown["Driver"], shown["Scope"], shown["Options"]) == ("weave", "local", {"colour": "blue"})
    assert healthy(host)
    plugin.forget()
    host.ctl("stop a")
    assert plugin.methods() == STOP
    host.ctl("start a")
    assert reaches(lambda command: host.try_in("a", command), "10.5.0.77") and healthy(host)
    host.ctl("rm -f a b")
    host.ctl("network rm far")
    assert plugin.empty and host.sh("ip -o link") == before and healthy(host)


def test_s25_a_container_joins_and_leaves_while_it_runs(host: Host, plugin: Plugin) -> None:
    """Its ports are where its default route is, and the plugin is told."""
    host.ctl("network create mine")
    host.ctl(f"{CREATE} far")
    host.run("a", "--network mine -p 8080:80")
    host.run("b", "--network far")
    plugin.forget()
    host.ctl("network connect --gw-priority 5 --driver-opt size=big far a")
    assert plugin.methods() == START
    assert plugin.asked("CreateEndpoint")["Options"]["size"] == "big"
    assert [one["HostPort"] for one in plugin.asked("ProgramExternalConnectivity")["Options"][PORT_MAP]] == [
        8080
    ]
    assert "dev eth1" in host.in_("a", "ip route show default")
    assert reaches(lambda command: host.try_in("a", command), host.address("b", "far"))
    plugin.forget()
    host.ctl("port add a 8081:81")
    assert plugin.methods() == ["RevokeExternalConnectivity", "ProgramExternalConnectivity"]
    assert len(plugin.asked("ProgramExternalConnectivity")["Options"][PORT_MAP]) == 2
    assert healthy(host)
    plugin.forget()
    host.ctl("network disconnect far a")
    assert plugin.methods() == STOP
    assert "dev eth0" in host.in_("a", "ip route show default")
    assert "eth1" not in host.in_("a", "ip -o link")
    assert healthy(host)


def test_s25_an_ipam_plugin_gives_out_the_addresses(host: Host, plugin: Plugin) -> None:
    """For a network of a plugin's, and for one of ours; what is refused goes back."""
    host.ctl("network create -d weave --ipam-driver weave --ipam-opt zone=1 far")
    assert plugin.asked("RequestPool") == {
        "AddressSpace": "here",
        "Pool": "",
        "SubPool": "",
        "Options": {"zone": "1"},
        "V6": False,
    }
    assert plugin.asked("RequestAddress") == {
        "PoolID": "10.99.0.0/24",
        "Address": "",
        "Options": {"RequestAddressType": "com.docker.network.gateway"},
    }
    shown = host.network("far")["IPAM"]
    assert shown == {
        "Driver": "weave",
        "Options": {"zone": "1"},
        "Config": [{"Subnet": "10.99.0.0/24", "Gateway": "10.99.0.1"}],
    }
    host.ctl("network create --ipam-driver weave --ipv6 --subnet 10.98.0.0/24 --gateway 10.98.0.9 ours")
    host.run("a", "--network far")
    assert plugin.asked("RequestAddress")["Options"] == {"com.docker.network.endpoint.name": "a"}
    host.ctl("network connect --ip 10.98.0.50 ours a")
    host.run("b", "--network ours")
    assert (host.address("a", "far"), host.address("a", "ours")) == ("10.99.0.2", "10.98.0.50")
    assert reaches(lambda command: host.try_in("b", command), "10.98.0.50") and healthy(host)

    kept = plugin.state["pools"]
    said = host.refused("run -d --network ours --ip 10.98.0.50 sleep 3600")
    assert said == "datapathctl: plugin weave: RequestAddress: remote: address 10.98.0.50 is taken"
    host.refused("run -d --network ours --mac-address 02:42:0a:62:00:09 --network-alias no:name sleep 3600")
    host.refused("run -d --network far --rootfs /nowhere sleep 3600")
    assert plugin.state["pools"] == kept

    host.ctl("network disconnect ours a")
    host.ctl("rm -f a b")
    assert {pool: len(used) for pool, used in plugin.state["pools"].items()} == {
        "10.99.0.0/24": 1,
        "10.98.0.0/24": 1,
        "fd99:1::/64": 1,
    }
    host.ctl("network rm far ours")
    assert plugin.empty and healthy(host)


def test_s25_a_driver_that_no_plugin_offers_is_one_line_at_once(host: Host) -> None:
    place = folders(host)
    before = host.ctl("network ls --format {{.Name}}")
    started = time.monotonic()
    for words in ("-d nobody", "-d remote", "-d ../weave", "-d x/y:latest", "--ipam-driver nobody"):
        said = host.refused(f"network create {words} n")
        name = words.split()[1]
        assert f'"{name}" does not exist' in said and f"no plugin of that name in {place}" in said, said
    assert time.monotonic() - started < 5 * 5
    assert host.ctl("network ls --format {{.Name}}") == before


WRONG: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "Err": ({"CreateNetwork": {"answer": {"Err": "no more\nrooms"}}}, "CreateNetwork: remote: no more rooms"),
    "status": ({"CreateNetwork": {"status": 500, "text": "boom"}}, "CreateNetwork: boom"),
    "no JSON": (
        {"CreateNetwork": {"text": "<html>"}},
        "CreateNetwork: its answer is no object of JSON: <html>",
    ),
    "no HTTP": ({"CreateNetwork": {"raw": "SSH-2.0-x\r\n"}}, "CreateNetwork: its answer is no HTTP"),
    "a list": ({"CreateNetwork": {"text": "[1]"}}, "its answer is no object of JSON"),
    "deep": ({"CreateNetwork": {"text": "[" * 100000}}, "its answer is no object of JSON"),
    "huge": ({"CreateNetwork": {"huge": 2 << 20}}, "CreateNetwork: its answer has more than 1048576 bytes"),
    "hangs": ({"CreateNetwork": {"hang": 60}}, "does not answer at unix:///"),
    "drips": ({"CreateNetwork": {"drip": 60}}, "no answer within 1 s"),
    "no driver": ({"Activate": {"answer": {"Implements": ["VolumeDriver"]}}}, "it is no NetworkDriver"),
    "no list": (
        {"Activate": {"answer": {"Implements": "NetworkDriver"}}},
        "Implements must be a list of strings",
    ),
    "scope": (
        {"GetCapabilities": {"answer": {"Scope": "far"}}},
        "expecting 'local' or 'global', got \"far\"",
    ),
    "missing": ({"CreateNetwork": {"status": 404, "text": " "}}, "CreateNetwork: HTTP status 404"),
}


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Plugin:
    impatient(shared_host)
    return Plugin(shared_host)


@pytest.mark.parametrize("case", WRONG)
def test_s25_what_a_plugin_answers_wrongly_is_one_line_and_changes_nothing(
    prepared: Plugin, case: str
) -> None:
    faults, words = WRONG[case]
    prepared.fail(**faults)
    try:
        said = prepared.host.refused(f"{CREATE} bad").removeprefix("datapathctl: ")
        assert words in said and "weave" in said
    finally:
        prepared.fail()
    assert "bad" not in prepared.host.ctl("network ls") and healthy(prepared.host)


JOINS: dict[str, tuple[dict[str, Any], str]] = {
    "missing device": (
        {"InterfaceName": {"SrcName": "nowhere", "DstPrefix": "eth"}},
        "names device nowhere, which is not there",
    ),
    "loopback": ({"InterfaceName": {"SrcName": "lo", "DstPrefix": "eth"}}, 'SrcName "lo" is no device'),
    "a path": ({"InterfaceName": {"SrcName": "a/b", "DstPrefix": "eth"}}, 'SrcName "a/b" is no device'),
    "prefix": ({"InterfaceName": {"SrcName": "x", "DstPrefix": "../"}}, 'DstPrefix "../" is not'),
    "ours": (
        {"InterfaceName": {"SrcName": "dp0", "DstPrefix": "eth"}},
        "names device dp0, which is not its own",
    ),
    "gateway": ({"Gateway": "10.5.0"}, 'invalid Gateway: "10.5.0"'),
    "family": ({"Gateway": "fd05::1"}, 'unable to parse Gateway "fd05::1"'),
    "route": (
        {"StaticRoutes": [{"Destination": "10.9.0.0/16", "RouteType": 0}]},
        "the route to 10.9.0.0/16 has no NextHop",
    ),
    "type": ({"StaticRoutes": [{"Destination": "10.9.0.0/16", "RouteType": 7}]}, "must be 0 or 1"),
    "number": ({"Gateway": 7}, 'Gateway must be a string, not "7"'),
}


@pytest.mark.parametrize("case", JOINS)
def test_s25_an_answer_to_join_that_cannot_be_carried_out_is_taken_back(prepared: Plugin, case: str) -> None:
    host, (answer, words) = prepared.host, JOINS[case]
    if host.try_ctl("network inspect tried").returncode != 0:
        host.run("plain")  # so that dp0 is there
        host.ctl(f"{CREATE} tried")
    prepared.forget()
    prepared.fail(Join={"answer": answer})
    try:
        assert words in host.refused("run -d --name bad --network tried sleep 3600")
    finally:
        prepared.fail()
    assert prepared.methods() == [*START[:2], *STOP[1:]]
    assert prepared.state["endpoints"] == {} and "bad" not in host.ctl("ps -a") and healthy(host)


def test_s25_a_plugin_of_scope_global_is_asked_what_a_swarm_would_ask_and_told_of_this_host(
    prepared: Plugin,
) -> None:
    """Methods that it has not are no obstacle, as in Docker. What it allots reaches CreateNetwork."""
    host, wide = prepared.host, {"GetCapabilities": {"answer": {"Scope": "global"}}}
    host.try_ctl("network rm tried")  # whose subnet it is to have
    prepared.forget()
    prepared.fail(**wide, AllocateNetwork={"answer": {"Options": {"vni": "7"}}}, DiscoverNew={"answer": {}})
    try:
        host.ctl(f"{CREATE} wide")
        assert prepared.methods() == ["AllocateNetwork", "DiscoverNew", "CreateNetwork"]
        told = prepared.asked("DiscoverNew")
        data = {"Address": HOST, "BindAddress": HOST, "Self": True}
        assert told == {"DiscoveryType": 1, "DiscoveryData": data}
        given, asked = prepared.asked("AllocateNetwork"), prepared.asked("CreateNetwork")
        assert given["Options"] == {"colour": "blue"}
        assert asked["Options"]["com.docker.network.generic"] == {"colour": "blue", "vni": "7"}
        assert given["IPv4Data"] == asked["IPv4Data"]
        assert asked["IPv4Data"][0]["AddressSpace"] == "GlobalDefault"
        assert host.network("wide")["Scope"] == "global"
        host.run("far", "--network wide")
        assert reaches(lambda command: host.try_in("far", command), "10.5.0.1") and healthy(host)
        host.ctl("rm -f far")
        prepared.fail(**wide)
        for command in ("network rm wide", f"{CREATE} wide", "network rm wide"):
            done = host.try_ctl(command)
            assert (done.returncode, done.stderr) == (0, "")
        assert prepared.methods()[-2:] == ["DeleteNetwork", "FreeNetwork"]
        prepared.fail(**wide, AllocateNetwork={"answer": {"Err": "no more room"}})
        assert host.refused(f"{CREATE} wide").endswith("plugin weave: AllocateNetwork: remote: no more room")
    finally:
        prepared.fail()
    assert "wide" not in host.ctl("network ls --format {{.Name}}").split() and healthy(host)


def test_s25_who_gets_no_gateway_of_a_plugin_has_a_way_out_by_another_network_only(prepared: Plugin) -> None:
    """Docker would join it to docker_gwbridge, unless the plugin says DisableGatewayService; here neither does."""
    host = prepared.host
    host.try_ctl("network rm tried")
    host.ctl(f"{CREATE} alone")
    host.sh("ip link add given type veth peer name giver")
    try:
        prepared.fail(Join={"answer": {"InterfaceName": {"SrcName": "given", "DstPrefix": "eth"}}})
        host.run("far", "--network alone")
        assert sorted(look.devices(partial(host.in_, "far"))) == ["eth0", "lo"]
        assert "default" not in host.in_("far", "ip route") and healthy(host)
        host.ctl("network connect bridge far")
        assert reaches(lambda command: host.try_in("far", command), OUTSIDE) and healthy(host)
        host.ctl("network disconnect bridge far")
        assert "default" not in host.in_("far", "ip route")
    finally:
        prepared.fail()
        host.try_ctl("rm -f far")
        host.try_("ip link delete given")  # if it has not gone with the container's namespace
    host.ctl("network rm alone")


def test_s25_what_join_says_is_carried_out(host: Host, plugin: Plugin) -> None:
    """Names, routes on link and by next hops, a way out or none."""
    host.ctl(f"{CREATE} far")
    routes = [
        {"Destination": "10.7.0.0/16", "RouteType": 0, "NextHop": "169.254.1.1"},
        {"Destination": "169.254.1.1/32", "RouteType": 1, "NextHop": ""},
    ]
    # A device of the test's own, which is what the plugin answers.
    host.sh("ip link add given type veth peer name giver")
    plugin.fail(
        CreateEndpoint={"answer": {"Interface": {"MacAddress": "02:42:00:00:00:07"}}},
        Join={
            "answer": {
                "InterfaceName": {"SrcName": "given", "DstPrefix": "wv"},
                "StaticRoutes": routes,
                "DisableGatewayService": True,
            }
        },
    )
    plugin.forget()
    host.run("a", "--network far")
    assert "02:42:00:00:00:07" in host.in_("a", "ip -o link show wv0")
    found = host.in_("a", "ip route")
    assert "10.7.0.0/16 via 169.254.1.1 dev wv0" in found and "169.254.1.1 dev wv0" in found
    assert "default" not in found and healthy(host)
    assert plugin.methods()[:2] == START[:2] and plugin.methods()[-1] != START[2]
    host.ctl("network create mine")
    host.ctl("network connect mine a")  # whose gateway is one
    assert "default via" in host.in_("a", "ip route") and healthy(host)
    host.ctl("network disconnect far a")
    assert "given" in host.sh("ip -o link") and "wv0" not in host.in_("a", "ip -o link")
    assert healthy(host)


def test_s25_addresses_may_be_the_plugins_to_give(host: Host, plugin: Plugin) -> None:
    """With --ipam-driver null, as those that ask a DHCP server."""
    said = host.refused("network create -d weave --ipam-driver null --subnet 10.5.0.0/24 far")
    assert "null ipam driver does not handle specific address pool requests" in said
    host.ctl("network create -d weave --ipam-driver null far")
    assert plugin.asked("CreateNetwork")["IPv4Data"] == [{"AddressSpace": "null", "Pool": "0.0.0.0/0"}]
    host.sh("ip link add given type veth peer name giver")
    plugin.fail(
        CreateEndpoint={
            "answer": {"Interface": {"Address": "10.6.0.7/24", "MacAddress": "02:42:00:00:00:07"}}
        },
        Join={"answer": {"InterfaceName": {"SrcName": "given", "DstPrefix": "eth"}, "Gateway": "10.6.0.1"}},
    )
    host.run("a", "--network far")
    assert host.address("a", "far") == "10.6.0.7"
    assert "default via 10.6.0.1" in host.in_("a", "ip route")
    assert plugin.methods()[-1] == "ProgramExternalConnectivity" and healthy(host)
    plugin.fail(CreateEndpoint={"answer": {"Interface": {"Address": "10.6.0.8/24"}}})
    host.ctl("rm -f a")
    plugin.fail()
    host.ctl(f"{CREATE} other")
    plugin.fail(CreateEndpoint={"answer": {"Interface": {"Address": "10.5.0.8/24"}}})
    said = host.refused("run -d --network other sleep 3600")
    assert "driver modified interface address: endpoint interface IP present (10.5.0.2/24)" in said


def test_s25_a_plugin_that_is_away_is_said_to_be_and_is_no_obstacle(host: Host, plugin: Plugin) -> None:
    """Containers end and are removed all the same, as in Docker; a network when that is insisted on."""
    impatient(host)
    host.ctl(f"{CREATE} far")
    host.ctl("network create --ipam-driver weave mine")
    for name in ("a", "b", "c"):
        host.run(name, "--network far")
    host.ctl("network connect mine c")
    plugin.kill()
    found = host.try_ctl("doctor").stdout
    assert (
        "network far: plugin weave does not answer at unix://" in found
        and "network mine: plugin weave" in found
    )
    assert set(host.try_ctl("doctor --format {{.Check}}").stdout.split()) == {"plugin"}
    assert reaches(lambda command: host.try_in("a", command), host.address("b", "far"))
    said = host.refused("run -d --network far sleep 3600")
    assert said.startswith("datapathctl: plugin weave does not answer at unix://")
    done = host.try_ctl("rm -f a b")  # said once, not of each container
    assert done.returncode == 0 and done.stderr.count("network far: plugin weave does not answer") == 1
    host.try_ctl("network disconnect far c")
    assert "plugin weave does not answer" in host.refused("network rm far")
    done = host.try_ctl("network rm -f far")
    assert done.returncode == 0 and "plugin weave does not answer" in done.stderr
    assert "far" not in host.ctl("network ls --format {{.Name}}").split()
    plugin.start()
    assert healthy(host)


def test_s31_down_needs_no_plugin(host: Host, plugin: Plugin) -> None:
    impatient(host)
    host.ctl(f"{CREATE} far")
    host.run("a", "--network far")
    plugin.kill()
    done = host.try_ctl("down")
    assert done.returncode == 0 and "plugin weave does not answer" in done.stderr
    assert not (host.folder / "state" / "datapath.db").exists()


def test_s25_a_request_is_repeated_while_a_plugin_starts_again(host: Host, plugin: Plugin) -> None:
    """As Docker repeats it, with what was in it."""
    host.ctl(f"{CREATE} far")
    plugin.fail(CreateEndpoint={"die before": True, "once": True})

    def again() -> None:
        with eventually() as until:
            until(lambda: plugin.process is not None and plugin.process.poll() is not None)
        plugin.start()

    helper = threading.Thread(target=again)
    helper.start()
    try:
        host.run("a", "--network far")
    finally:
        helper.join()
    assert plugin.methods().count("CreateEndpoint") == 2 and healthy(host)


def test_s25_a_specification_names_another_socket_or_a_port(host: Host) -> None:
    place = folders(host)
    elsewhere = Plugin(host, "there", str(host.folder / "there.sock"))
    (place / "there.spec").write_text(f"unix://{elsewhere.where}\n")
    host.ctl("network create -d there --subnet 10.5.0.0/24 one")
    (place / "port").mkdir()
    (place / "port" / "port.json").write_text(json.dumps({"Name": "x", "Addr": "tcp://127.0.0.1:2377"}))
    Plugin(host, "port", "2377")
    host.ctl("network create -d port --subnet 10.6.0.0/24 two")
    host.run("a", "--network two")
    assert reaches(lambda command: host.try_in("a", command), "10.6.0.1") and healthy(host)
    for text, words in (("nothing", "has no address such as"), ("ftp://x", "expected unix://, tcp://, http")):
        (place / "bad.spec").write_text(text)
        assert words in host.refused("network create -d bad three")
    (place / "bad.spec").unlink()
    (place / "bad.json").write_text("{")
    assert "is no specification in JSON" in host.refused("network create -d bad three")


def test_s30_doctor_and_reconcile_know_what_a_plugin_gave(host: Host, plugin: Plugin) -> None:
    host.ctl(f"{CREATE} far")
    host.run("a", "--network far")
    host.run("b", "--network far")
    host.in_("a", "ip address flush dev eth0")
    host.in_("a", "ip link set eth0 down")
    found = host.try_ctl("doctor").stdout
    assert "has lost the address 10.5.0.2/24" in found and "device eth0 is down" in found
    assert "has lost its IPv4 default route" in found
    host.ctl("reconcile")
    assert healthy(host) and reaches(lambda command: host.try_in("a", command), "10.5.0.3")
    host.in_("a", "ip link delete eth0")
    assert "the container's end eth0 is gone" in host.try_ctl("doctor").stdout
    host.ctl("reconcile")
    assert healthy(host) and reaches(lambda command: host.try_in("a", command), "10.5.0.3")
    assert loses(lambda command: host.try_in("a", command), "10.5.0.200")


def test_s25_our_own_driver_for_docker_is_a_plugin_too(host: Host) -> None:
    """Another installation on the same host, which forwards by its packet programs: from the outside, too."""
    door = Door(host)
    (folders(host) / "datapath.spec").write_text(f"unix://{door.path}")
    assert host.env is not None
    other = host.folder / "other"
    other.mkdir()
    (other / "daemon.json").write_text("{}")
    env = {
        **host.env,
        "DATAPATH_STATE_DIR": str(other / "state"),
        "DATAPATH_RUN_DIR": str(other / "run"),
        "DATAPATH_BPFFS": str(host.bpffs / "other"),
        "DATAPATH_CONFIG": str(other / "daemon.json"),
    }

    def client(command: str) -> str:
        done = forked.datapathctl(command.split(), host.path, env, TIMEOUT)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inside(name: str) -> list[str]:
        pid = client(f"inspect -f {{{{.State.Pid}}}} {name}")
        return ["nsenter", "-t", pid, "--net"]

    try:
        client("network create -d datapath --ipv6 --subnet 10.5.0.0/24 --subnet fd05::/64 far")
        assert (
            host.network(client("network inspect -f {{.Id}} far"))["IPAM"]["Config"][0]["Gateway"]
            == "10.5.0.1"
        )
        client("run -d --name a --network far -p 8080:80 sleep 3600")
        client("run -d --name b --network far --mac-address 02:42:aa:bb:cc:dd sleep 3600")
        server = host.start([*inside("a"), *echo_server("tcp", 80)], stdout=subprocess.PIPE)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        assert "02:42:aa:bb:cc:dd" in host.sh([*inside("b"), "ip", "-o", "link", "show", "eth0"])
        for target in ("10.5.0.2", "fd05::2", "10.5.0.1", OUTSIDE):
            assert reaches(lambda command: host.try_([*inside("b"), *command.split()]), target), target
        assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
        assert " 8080 " in host.ctl("port ls") and "8080" in client("port a")
        assert "No problems found." in client("doctor") and healthy(host)
        client("rm -f a b")
        assert (
            " 8080 " not in host.ctl("port ls")
            and host.network(client("network ls -q --filter name=far"))["Containers"] == {}
        )
        client("network rm far")
        assert "docker" not in host.ctl("network ls") and healthy(host)
    finally:
        client("down")
        door.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of the plugin's and of ours that it has signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    for name in ("plugin", "ours"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_s25_a_plugin_behind_tls_is_believed_by_its_certificate_and_told_ours(
    host: Host, certificates: Path
) -> None:
    impatient(host, 2)
    place, files = folders(host), {name: str(certificates / name) for name in os.listdir(certificates)}
    Plugin(host, "safe", f"2379:{files['plugin.pem']}:{files['plugin.key']}:{files['ca.pem']}")

    def specify(**tls: object) -> None:
        text = json.dumps({"Addr": "https://127.0.0.1:2379", "TLSConfig": tls})
        (place / "safe.json").write_text(text)

    ours = {"CertFile": files["ours.pem"], "KeyFile": files["ours.key"]}
    specify(CAFile=files["ca.pem"], **ours)
    host.ctl("network create -d safe --subnet 10.5.0.0/24 far")
    specify(**ours)  # without an authority nobody's is asked for, as in Docker
    host.ctl("network rm far")
    specify(CAFile=files["ours.pem"], **ours)
    assert "plugin safe: Activate: TLS: " in host.refused("network create -d safe far")
    specify(CAFile=files["ca.pem"])
    assert "plugin safe" in host.refused("network create -d safe far")
    specify(CAFile="/nowhere", **ours)
    assert "its TLS files cannot be used" in host.refused("network create -d safe far")
