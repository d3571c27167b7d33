# SPDX-License-Identifier: Apache-2.0
"""S4 to S8: the four modes of a container's network, and what `inspect` says of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.net import look
from tests.net.hosts import FAR, HOST, OUTSIDE, SLOWNESS, Failed, Host, ask, echo_server, eventually, reaches

MakeHost = Callable[..., Host]


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """The default network with two containers: `web` answers at 80, and publishes it at 8081."""
    look.settled(shared_host)
    shared_host.run("web", "-p 8081:80 --expose 90 --label tier=front", echo_server("tcp", 80))
    shared_host.run("app")
    return shared_host


def inside(host: Host, name: str) -> Callable[[str], str]:
    return lambda command: host.in_(name, command)


def until_answered(host: Host, port: int) -> None:
    """The server behind a published port is up."""
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, port)).returncode == 0)


# ---- S4: bridge -----------------------------------------------------------------------


def test_s4_the_container_gets_the_next_free_address_and_a_mac_made_from_it(prepared: Host) -> None:
    for name, last in (("web", 2), ("app", 3)):
        eth0 = look.devices(inside(prepared, name))["eth0"]
        assert look.addresses(eth0) == [f"172.17.0.{last}/16"]
        assert eth0["address"] == f"02:42:ac:11:00:0{last}"
        assert eth0["operstate"] == "UP"


def test_s4_a_freed_address_is_given_again(host: Host) -> None:
    for name in ("a", "b", "c"):
        host.run(name)
    host.ctl("rm -f b")
    host.run("d")
    assert host.address("d") == "172.17.0.3"
    host.run("e")
    assert host.address("e") == "172.17.0.5"


def test_s4_the_container_has_a_default_route_and_its_loopback(prepared: Host) -> None:
    assert look.default_routes(inside(prepared, "web")) == [("172.17.0.1", "eth0")]
    assert look.addresses(look.devices(inside(prepared, "web"))["lo"]) == ["127.0.0.1/8"]
    assert reaches(lambda ping: prepared.try_in("web", ping), "127.0.0.1")


def test_s4_ip_addr_on_the_host_shows_the_gateway_device_and_a_veth_for_each_endpoint(prepared: Host) -> None:
    devices = look.devices(prepared.sh)
    assert look.addresses(devices["dp0"]) == ["172.17.0.1/16"]
    for name in ("web", "app"):
        endpoint = prepared.inspect(name)["NetworkSettings"]["EndpointID"]
        host_end = devices[f"veth{endpoint[:7]}"]
        eth0 = look.devices(inside(prepared, name))["eth0"]
        assert (host_end["link_index"], eth0["link_index"]) == (eth0["ifindex"], host_end["ifindex"])
        assert host_end["operstate"] == "UP"
        assert host_end["linkinfo"]["info_kind"] == "veth"
    assert len([name for name in devices if name.startswith("veth")]) == 2


def test_s4_containers_and_host_reach_each_other_by_address(prepared: Host) -> None:
    web, app = prepared.address("web"), prepared.address("app")
    assert reaches(lambda ping: prepared.try_in("app", ping), web)
    assert reaches(lambda ping: prepared.try_in("web", ping), app)
    assert reaches(prepared.try_, web)
    assert reaches(lambda ping: prepared.try_in("web", ping), "172.17.0.1")
    assert reaches(lambda ping: prepared.try_in("web", ping), HOST)
    assert reaches(lambda ping: prepared.try_in("web", ping), FAR)


def test_s4_the_mtu_is_that_of_the_hosts_default_route(make_host: MakeHost) -> None:
    host = make_host()
    host.sh("ip link set eth0 mtu 1400")
    host.run("web")
    assert look.devices(inside(host, "web"))["eth0"]["mtu"] == 1400
    assert look.devices(host.sh)["dp0"]["mtu"] == 1400
    assert reaches(lambda ping: host.try_in("web", f"{ping} -s 1372 -M do"), "172.17.0.1")
    host.ctl("down")
    host.sh(f"ip route replace default via {OUTSIDE} mtu 1300")
    host.run("web")
    assert look.devices(inside(host, "web"))["eth0"]["mtu"] == 1300
    host.ctl("down")
    host.sh("ip route del default")
    host.run("web")
    assert look.devices(inside(host, "web"))["eth0"]["mtu"] == 1500


def test_s4_there_is_no_linux_bridge_and_no_packet_filter_rule_at_any_moment(host: Host) -> None:
    """A watcher looks all the time while every kind of command runs."""
    monitor = host.start("ip monitor link", stdout=-1)
    looks: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            looks.append(
                host.sh("nft list ruleset") + host.sh("iptables-save") + host.sh("ip link show type bridge")
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        host.ctl("network create -o com.docker.network.bridge.enable_icc=false shop")
        host.run("web", "--network shop -p 8081:80", echo_server("tcp", 80))
        host.run("app")
        host.ctl("port add app 8082:80")
        host.ctl("network connect bridge web")
        until_answered(host, 8081)
        host.in_("app", f"ping -n -c 1 -W 60 {FAR}")
        host.ctl("network disconnect bridge web")
        host.ctl("rm -f web app")
        host.ctl("network rm shop")
        host.ctl("down")
    finally:
        done.set()
        watcher.join()
        monitor.terminate()
    assert len(looks) > 20 / SLOWNESS
    assert set(looks) == {""}
    assert monitor.stdout is not None
    seen = monitor.stdout.read()
    assert "dp0" in seen  # it did watch
    assert "bridge" not in re.sub("dp-[0-9a-f]+", "", seen)


@pytest.mark.parametrize(
    ("spoiler", "subnet"),
    [
        ("ip address add 172.17.5.9/24 dev eth0", "172.18.0.0/16"),
        (f"ip route add 172.17.128.0/17 via {OUTSIDE}", "172.18.0.0/16"),
        (f"ip route add 172.16.0.0/12 via {OUTSIDE}", "192.168.0.0/20"),
    ],
)
def test_s4_a_default_pool_that_overlaps_the_hosts_address_or_route_is_passed_over(
    make_host: MakeHost, spoiler: str, subnet: str
) -> None:
    host = make_host()
    host.sh(spoiler)
    host.run("web")
    config = host.network("bridge")["IPAM"]["Config"][0]
    assert config["Subnet"] == subnet
    assert look.addresses(look.devices(host.sh)["dp0"]) == [f"{config['Gateway']}/{subnet.split('/')[1]}"]
    assert reaches(lambda ping: host.try_in("web", ping), config["Gateway"])
    assert reaches(lambda ping: host.try_in("web", ping), FAR)


def test_s4_the_daemons_configuration_shapes_the_default_network(make_host: MakeHost) -> None:
    host = make_host(config={"bip": "10.9.0.5/24", "fixed-cidr": "10.9.0.64/26", "mtu": 1280})
    host.run("web")
    assert look.addresses(look.devices(host.sh)["dp0"]) == ["10.9.0.5/24"]
    eth0 = look.devices(inside(host, "web"))["eth0"]
    assert (look.addresses(eth0), eth0["mtu"]) == (["10.9.0.64/24"], 1280)
    assert look.default_routes(inside(host, "web")) == [("10.9.0.5", "eth0")]
    assert reaches(lambda ping: host.try_in("web", ping), FAR)


# ---- S5: inspect ----------------------------------------------------------------------

KEYS = (
    *(
        "Name",
        "Id",
        "Created",
        "Scope",
        "Driver",
        "EnableIPv4",
        "EnableIPv6",
        "IPAM",
        "Internal",
        "Attachable",
    ),
    *("Ingress", "ConfigFrom", "ConfigOnly", "Containers", "Options", "Labels"),
)


def test_s5_network_inspect_has_dockers_keys_in_dockers_order(prepared: Host) -> None:
    network = prepared.network("bridge")
    assert tuple(network) == KEYS
    assert tuple(network["IPAM"]) == ("Driver", "Options", "Config")
    assert network["IPAM"]["Config"] == [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    web = prepared.inspect("web")
    assert network["Containers"][web["Id"]] == {
        "Name": "web",
        "EndpointID": web["NetworkSettings"]["EndpointID"],
        "MacAddress": "02:42:ac:11:00:02",
        "IPv4Address": "172.17.0.2/16",
        "IPv6Address": "",
    }
    assert tuple(network["Containers"][web["Id"]]) == (
        *("Name", "EndpointID", "MacAddress", "IPv4Address", "IPv6Address"),
    )
    assert network["Options"] == {
        "com.docker.network.bridge.default_bridge": "true",
        "com.docker.network.bridge.enable_icc": "true",
        "com.docker.network.bridge.enable_ip_masquerade": "true",
        "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
        "com.docker.network.bridge.name": "dp0",
        "com.docker.network.driver.mtu": "1500",
    }
    assert re.fullmatch(r"[0-9a-f]{64}", network["Id"])
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", network["Created"])


def test_s5_network_inspect_of_several_prints_one_array_and_says_what_is_missing(prepared: Host) -> None:
    done = prepared.try_ctl("network inspect host nosuch none")
    assert [network["Name"] for network in json.loads(done.stdout)] == ["host", "none"]
    assert done.stderr == "datapathctl: network nosuch not found\n"
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}} {{.Driver}}", "bridge bridge"),
        ("{{(index .IPAM.Config 0).Subnet}}", "172.17.0.0/16"),
        ("{{range .IPAM.Config}}{{.Gateway}}{{end}}", "172.17.0.1"),
        ("{{json .EnableIPv6}}", "false"),
        ('{{index .Options "com.docker.network.driver.mtu"}}', "1500"),
        ("{{len .Containers}}", "2"),
        ("{{range .Containers}}{{.Name}}={{.IPv4Address}};{{end}}", None),
    ],
)
def test_s5_a_template_picks_from_network_inspect(prepared: Host, template: str, text: str | None) -> None:
    said = prepared.ctl(["network", "inspect", "-f", template, "bridge"])
    if text is None:
        assert sorted(said.strip(";").split(";")) == ["app=172.17.0.3/16", "web=172.17.0.2/16"]
    else:
        assert said == text


def test_s5_format_json_is_the_same_on_one_line(prepared: Host) -> None:
    said = prepared.ctl("network inspect --format json bridge")
    assert "\n" not in said
    assert json.loads(said) == json.loads(prepared.ctl("network inspect bridge"))


def test_s5_inspect_of_a_container_shows_its_network_settings(prepared: Host) -> None:
    settings = prepared.inspect("web")["NetworkSettings"]
    assert settings["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8081"}], "90/tcp": None}
    bridge = settings["Networks"]["bridge"]
    assert (bridge["Gateway"], bridge["IPAddress"], bridge["IPPrefixLen"]) == ("172.17.0.1", "172.17.0.2", 16)
    where = (
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}} {{.State.Status}} {{.Config.Labels.tier}}"
    )
    assert prepared.ctl(["inspect", "-f", where, "web"]) == "172.17.0.2 running front"


# ---- S6: host -------------------------------------------------------------------------


def test_s6_a_host_container_sees_the_hosts_own_devices_and_nothing_is_made(prepared: Host) -> None:
    before = look.devices(prepared.sh)
    prepared.run("open", "--network host", echo_server("tcp", 7070))
    assert look.devices(prepared.sh) == before
    pid = prepared.process("open")
    assert look.namespace_of(pid) == look.namespace_of(prepared.pid)
    assert look.devices(inside(prepared, "open")) == before
    assert "dp0" in prepared.in_("open", "ls /sys/class/net")
    with eventually() as until:  # its port is the host's own
        until(lambda: prepared.outside.try_(ask("tcp", HOST, 7070)).returncode == 0)
    assert [c["Name"] for c in prepared.network("host")["Containers"].values()] == ["open"]
    assert prepared.in_("open", "hostname") == prepared.sh("hostname")
    prepared.ctl("rm -f open")
    assert look.devices(prepared.sh) == before


def test_s6_a_published_port_is_discarded_with_dockers_warning(prepared: Host) -> None:
    done = prepared.try_ctl("run --rm --network host -p 9999:80 true")
    assert (done.returncode, done.stderr) == (
        0,
        "WARNING: Published ports are discarded when using host network mode\n",
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "--ip 10.0.0.9",
            "conflicting options: a user specified IP address and the host network mode "
            "(user specified IP address is supported on user defined networks only)",
        ),
        ("--mac-address 02:42:00:00:00:09", "conflicting options: mac-address and the network mode"),
        (
            "--network-alias x",
            "network-scoped alias is supported only for containers in user defined networks",
        ),
        (
            "--link web",
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior",
        ),
        (
            "--network bridge",
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
        ),
    ],
)
def test_s6_what_needs_an_endpoint_is_refused_with_host(prepared: Host, options: str, reason: str) -> None:
    assert prepared.refused(f"run --network host {options} true") == f"datapathctl: {reason}"


def test_s6_a_host_container_cannot_join_or_leave_networks(prepared: Host) -> None:
    prepared.run("fixed", "--network host")
    assert prepared.refused("network connect bridge fixed") == (
        "datapathctl: container sharing network namespace with another container or host "
        "cannot be connected to any other network"
    )
    assert prepared.refused("network disconnect host fixed") == (
        "datapathctl: container cannot be disconnected from host network or connected to host network"
    )
    assert prepared.refused("network connect host app") == (
        "datapathctl: cannot connect container to host network - container must be created in host network mode"
    )
    assert "host network mode" in prepared.refused("port add fixed 8088:80")
    prepared.ctl("rm -f fixed")


# ---- S7: container --------------------------------------------------------------------


def test_s7_a_sharer_has_the_others_stack_and_they_talk_over_loopback(prepared: Host) -> None:
    prepared.run("sharer", "--network container:web", echo_server("tcp", 81))
    pids = [prepared.process(name) for name in ("web", "sharer")]
    assert len({look.namespace_of(pid) for pid in pids}) == 1
    assert look.devices(inside(prepared, "sharer")) == look.devices(inside(prepared, "web"))
    with eventually() as until:
        until(lambda: prepared.try_in("web", ask("tcp", "127.0.0.1", 81)).returncode == 0)
    assert prepared.in_("sharer", ask("tcp", "127.0.0.1", 80)) == "127.0.0.1 127.0.0.1 80"
    for file in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
        assert prepared.try_in("sharer", f"cat {file}").stdout == prepared.try_in("web", f"cat {file}").stdout
    assert prepared.in_("sharer", "hostname") == prepared.in_("web", "hostname")
    prepared.ctl("rm -f sharer")
    assert prepared.outside.sh(ask("tcp", HOST, 8081)) == f"{OUTSIDE} {HOST} 8081"  # web has all it had


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-p 80:80", "conflicting options: port publishing and the container type network mode"),
        ("-P", "conflicting options: port publishing and the container type network mode"),
        ("--expose 80", "conflicting options: port exposing and the container type network mode"),
        (
            "--ip 172.17.0.9",
            "conflicting options: a user specified IP address and the container type network mode "
            "(user specified IP address is supported on user defined networks only)",
        ),
        (
            "--link app",
            "conflicting options: container type network can't be used with links. "
            "This would result in undefined behavior",
        ),
        ("--dns 192.0.2.53", "conflicting options: dns and the network mode"),
        ("--hostname other", "conflicting options: hostname and the network mode"),
        ("--add-host a:10.0.0.1", "conflicting options: custom host-to-IP mapping and the network mode"),
        ("--mac-address 02:42:00:00:00:09", "conflicting options: mac-address and the network mode"),
        (
            "--network-alias x",
            "network-scoped alias is supported only for containers in user defined networks",
        ),
    ],
)
def test_s7_what_belongs_to_the_others_stack_is_refused_with_the_reason(
    prepared: Host, options: str, reason: str
) -> None:
    assert prepared.refused(f"run --network container:web {options} true") == f"datapathctl: {reason}"


def test_s7_only_a_running_container_can_be_shared(prepared: Host) -> None:
    assert prepared.refused("run --network container:nosuch true") == "datapathctl: No such container: nosuch"
    prepared.ctl("run --name ended true")
    said = prepared.refused("run --network container:ended true")
    assert said.startswith("datapathctl: cannot join network of a non running container: ended (")
    assert prepared.refused("run --network container: true") == (
        "datapathctl: invalid container format container:<name|id>"
    )
    prepared.run("sharer", "--network container:web")
    assert prepared.refused("network connect host sharer").endswith(
        "cannot be connected to any other network"
    )
    assert prepared.refused("port add sharer 8085:85") == (
        "datapathctl: conflicting options: port publishing and the container type network mode"
    )
    prepared.ctl("rm -f sharer ended")


def test_s7_a_stopped_owner_leaves_the_stack_to_its_sharer(prepared: Host) -> None:
    """Traffic to a port that the owner published goes on, also when the owner is removed."""
    prepared.run("owner", "-p 8090:90")
    prepared.run("server", "--network container:owner", echo_server("tcp", 90))
    address = prepared.address("owner")
    until_answered(prepared, 8090)
    conversation = prepared.outside.start(["nc", HOST, "8090"])
    prepared.ctl("stop -t 0 owner")
    assert prepared.outside.sh(ask("tcp", HOST, 8090)) == f"{OUTSIDE} {HOST} 8090"
    assert prepared.in_("app", ask("tcp", address, 90)) == f"{prepared.address('app')} {address} 90"
    assert reaches(lambda ping: prepared.try_in("server", ping), FAR)
    assert "8090" in prepared.refused("run -p 8090:90 true")  # the port is still taken
    prepared.run("late")  # and so is the address
    assert prepared.address("late") != address
    prepared.run("third", "--network container:server")  # a sharer can be shared in turn
    assert look.addresses(look.devices(inside(prepared, "third"))["eth0"]) == [f"{address}/16"]
    prepared.ctl("rm owner")
    assert prepared.outside.sh(ask("tcp", HOST, 8090)) == f"{OUTSIDE} {HOST} 8090"
    conversation.kill()

    with look.holding(prepared.process("server")) as namespace:
        prepared.ctl("rm -f server third late")
        with eventually() as until:  # a child of a process that was killed ends a moment after it
            until(lambda: look.members_of(namespace) == set())
    with pytest.raises(Failed):
        prepared.outside.sh(ask("tcp", HOST, 8090))
    prepared.run("next", "-p 8090:90")  # everything of it is free again
    assert prepared.address("next") == address
    prepared.ctl("rm -f next")


def test_s7_an_owner_that_exits_by_itself_leaves_the_stack_to_its_sharer(
    prepared: Host, tmp_path: Path
) -> None:
    prepared.run("brief", "-p 8091:91", ["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"])
    prepared.run("server", "--network container:brief", echo_server("tcp", 91))
    (tmp_path / "go").touch()
    with eventually() as until:
        until(lambda: prepared.inspect("brief")["State"]["Status"] == "exited")
    until_answered(prepared, 8091)
    prepared.ctl("rm -f brief server")


# ---- S8: none -------------------------------------------------------------------------


def test_s8_a_container_without_a_network_has_only_loopback_and_nothing_leaves(prepared: Host) -> None:
    before = look.devices(prepared.sh)
    prepared.run("alone", "--network none")
    assert look.devices(prepared.sh) == before
    devices = look.devices(inside(prepared, "alone"))
    assert list(devices) == ["lo"]
    assert reaches(lambda ping: prepared.try_in("alone", ping), "127.0.0.1")
    for address in (prepared.address("web"), "172.17.0.1", HOST, FAR):
        done = prepared.try_in("alone", f"ping -n -c 1 -W 1 {address}")
        assert "Network is unreachable" in done.stderr
    assert prepared.in_("alone", "ip route show table all").replace("local", "").count("dev lo") > 0
    assert look.default_routes(inside(prepared, "alone")) == []
    assert prepared.in_("alone", "hostname") == prepared.inspect("alone")["Id"][:12]
    prepared.ctl("rm -f alone")


def test_s8_networks_and_addresses_are_refused_with_none(prepared: Host) -> None:
    prepared.run("alone", "--network none")
    assert prepared.refused("network connect bridge alone") == (
        "datapathctl: container cannot be connected to multiple networks with one of the networks "
        "in private (none) mode"
    )
    assert "none network mode" in prepared.refused("run --network none --ip 10.0.0.9 true")
    assert prepared.refused("run --network none --network bridge true") == (
        "datapathctl: conflicting options: cannot attach both user-defined and non-user-defined network-modes"
    )
    done = prepared.try_ctl("run --rm --network none -p 80:80 true")
    assert done.stderr == "WARNING: Published ports are discarded when using none network mode\n"
    prepared.ctl("rm -f alone")
