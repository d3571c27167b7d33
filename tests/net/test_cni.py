# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin, as container runtimes call it, with real packets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.net import faults, forked
from tests.net.doors import CNI_PATH, Cni, Killed, Refused, Space, executable, found, spaces_of_a_test
from tests.net.hosts import HOST, OUTSIDE, Host, ask, reaches
from tests.net.names import both, dig_by, looked_up_by

STRIDE = 1 if os.environ.get("DATAPATH_LONG") else 11
CLEAN = "No problems found.\n"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
Spaces = Callable[[], Space]


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    yield from spaces_of_a_test(tmp_path)


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """One for all tests of the module: each has to leave nothing."""
    shared_host.preloaded = True
    yield shared_host
    assert doctor(shared_host) == CLEAN
    assert "cni" not in shared_host.ctl("network ls") + shared_host.ctl("ps")


def doctor(host: Host) -> str:
    return host.try_ctl("doctor").stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_is_put_onto_the_network_and_taken_off_it(
    host: Host, spaces: Spaces, version: str
) -> None:
    """ADD, CHECK, DEL twice, with the answers of each version of the specification."""
    cni, space = Cni(host, {"subnet": "10.71.0.0/24"}, version), spaces()
    result = cni.add("pod1", space.path)
    assert result["cniVersion"] == version
    assert result["ips"][0]["address"] == "10.71.0.2/24" and result["ips"][0]["gateway"] == "10.71.0.1"
    assert result["ips"][0].get("version") == (None if version >= "1.0.0" else "4")
    inside = result["interfaces"][result["ips"][0]["interface"]]
    assert inside["name"] == "eth0" and inside["sandbox"] == space.path
    assert inside["mac"] in space.sh("ip link show eth0")
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.71.0.1"}]
    assert reaches(space.try_, OUTSIDE) and reaches(host.try_, "10.71.0.2")
    if version != "0.3.1":
        cni.check("pod1", space.path)
    with pytest.raises(Refused, match="exists already"):
        cni.add("pod1", space.path)
    cni.delete("pod1", space.path)
    assert "eth0" not in space.sh("ip -o link")
    cni.delete("pod1")


K8S = (
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={0};K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID={0}"
)


def test_published_ports_answer_from_everywhere_and_go_with_the_container(host: Host, spaces: Spaces) -> None:
    """As containerd's CRI asks, with capitals. A port that the host has itself is refused."""
    cni, space, other = Cni(host, {"subnet": "10.71.0.0/24"}, "1.1.0"), spaces(), spaces()
    ports = [
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 8081, "ContainerPort": 80, "Protocol": "TCP", "HostIP": "127.0.0.1"},
        {"HostPort": 0, "ContainerPort": 99, "Protocol": "tcp"},
    ]
    cni.add("p1", space.path, args=K8S.format("p1"), portMappings=ports)
    space.serve(80)
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
    for number in (8080, 8081):
        assert host.sh(ask("tcp", "127.0.0.1", number)).split()[0] == "10.71.0.1"
    assert host.outside.try_(ask("tcp", HOST, 8081)).returncode != 0
    assert "default/p1" in host.ctl("ps --format {{.Names}}")
    rows = {line.split()[3] for line in host.ctl("port ls").splitlines()[1:]}
    assert rows == {"8080", "8081"}
    assert host.ctl("port default/p1").splitlines()[0] == "80/tcp -> 0.0.0.0:8080"
    assert host.ctl("ct ls --container default/p1 --format {{.Source}}").count(OUTSIDE) == 1
    with pytest.raises(Refused, match=r'port is already allocated \(by container "default/p1"\)'):
        cni.add("p2", other.path, args=K8S.format("p2"), portMappings=ports[:1])
    with bound(host, 8090), pytest.raises(Refused, match="address already in use"):
        cni.add(
            "p2", other.path, args=K8S.format("p2"), portMappings=[{"hostPort": 8090, "containerPort": 1}]
        )
    assert "eth0" not in other.sh("ip -o link")
    cni.delete("p1", space.path)
    assert host.outside.try_(ask("tcp", HOST, 8080)).returncode != 0


@contextmanager
def bound(host: Host, number: int) -> Iterator[None]:
    """A process of the host listens at the port."""
    code = (
        f"import socket, time; s = socket.create_server(('', {number})); print(flush=True); time.sleep(3600)"
    )
    process = host.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    process.stdout.close()
    yield
    process.kill()
    process.wait()


def test_podman_may_listen_on_a_port_that_was_published_for_it(host: Host, spaces: Spaces) -> None:
    """podman 4 binds the port after ADD, and names a pod but no namespace. Others are kept from it."""
    cni, space = Cni(host, {"subnet": "10.71.0.0/24"}), spaces()
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    for args, held in (("IgnoreUnknown=1;K8S_POD_NAME=c1", True), (K8S.format("c1"), False)):
        cni.add("c1", space.path, args=args, portMappings=ports)
        code = "import socket; socket.create_server(('', 8080))"
        assert (host.try_([sys.executable, "-c", code]).returncode == 0) == held
        cni.delete("c1", space.path)


def test_wishes_come_in_three_places(host: Host, spaces: Spaces) -> None:
    """Capabilities, CNI_ARGS as podman has them, and args.cni; and dns is handed on."""
    cni, space = Cni(host, {"subnet": "10.71.0.0/24", "gateway": "10.71.0.9", "mtu": 1400}, "1.1.0"), spaces()
    dns = {"Servers": ["10.96.0.10"], "Searches": ["a.b"], "Options": None}
    result = cni.add(
        "c",
        space.path,
        "net7",
        ips=["10.71.0.50/24"],
        mac="02:42:aa:00:00:01",
        aliases={"net": ["db"]},
        dns=dns,
    )
    assert result["ips"][0]["address"] == "10.71.0.50/24" and result["ips"][0]["gateway"] == "10.71.0.9"
    assert "02:42:aa:00:00:01" in space.sh("ip link show net7") and "mtu 1400" in space.sh(
        "ip link show net7"
    )
    assert result["interfaces"][2]["mtu"] == 1400
    assert result["dns"] == {"nameservers": ["10.96.0.10"], "search": ["a.b"]}
    cni.delete("c", space.path, "net7")
    result = cni.add("c", space.path, args="IP=10.71.0.51;MAC=02:42:aa:00:00:02")
    assert result["ips"][0]["address"] == "10.71.0.51/24" and result["interfaces"][2]["mac"].endswith(":02")
    cni.delete("c", space.path)
    cni.config["args"] = {"cni": {"ips": ["10.71.0.52"]}}
    assert cni.add("c", space.path)["ips"][0]["address"] == "10.71.0.52/24"
    cni.delete("c", space.path)


def test_s17_pods_and_containers_find_each_other_by_name(host: Host, spaces: Spaces) -> None:
    """By the pod's name, alone and with its namespace, by the container's id where nothing is said of a pod, and by
    aliases, each with the network's name and its domain besides; from ADD to DEL."""
    options = {"com.datapath.domain": "dns.podman"}
    cni = Cni(host, {"name": "pods", "subnet": "10.71.0.0/24", "options": options})
    web, box, asker = spaces(), spaces(), spaces()
    cni.add("c1", web.path, args=K8S.format("web"), aliases={"pods": ["api"], "others": ["no"]})
    cni.add("default-box", box.path)
    cni.add("c" * 64, asker.path)
    asks = asker.asks(["127.0.0.11"], ["dns.podman"])
    for name, address in (
        ("web", "2"),
        ("web.default", "2"),
        ("api", "2"),
        ("default-box", "3"),
        ("c" * 12, "4"),
    ):
        asked = [f"{name}{more}" for more in ("", ".pods", ".dns.podman")]
        assert [reply.data for reply in dig_by(asks, *asked)] == [[f"10.71.0.{address}"]] * 3, name
        assert looked_up_by(asks, name) == both(f"10.71.0.{address}")
    assert dig_by(asks, "-x 10.71.0.2")[0].data == ["web.pods."]
    row = json.loads(host.ctl(["names", "resolve", "default/web", "api", "A", "--format", "json"]))
    assert (row["Data"], row["Source"]) == ("10.71.0.2", "network pods")
    cni.delete("c1", web.path)
    shown = {json.loads(line)["Data"] for line in host.ctl("names ls pods --format json").splitlines()}
    assert shown == {"10.71.0.3", "10.71.0.4", "default-box.pods", f"{'c' * 12}.pods"}
    cni.delete("default-box", box.path)
    cni.delete("c" * 64, asker.path)


def test_s17_the_resolver_is_in_the_result_where_names_are_asked_for(host: Host, spaces: Spaces) -> None:
    """The configuration declares `aliases`; what it, or the runtime, has as `dns` goes before. Kubernetes' pods have
    their cluster's."""
    space, subnet = spaces(), {"subnet": "10.71.0.0/24"}
    declared = {"capabilities": {"aliases": True, "dns": True}, **subnet}
    domain = {"options": {"com.datapath.domain": "dns.podman"}}
    own = {"nameservers": ["10.96.0.10"], "search": ["a.b"]}
    cases: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
        (subnet, {}, {}),
        (subnet, {"aliases": {"net": ["db"]}}, {"nameservers": ["127.0.0.11"]}),
        (declared, {}, {"nameservers": ["10.71.0.1"]}),
        (declared | domain, {}, {"nameservers": ["10.71.0.1"], "search": ["dns.podman"]}),
        (declared | {"options": {"com.datapath.names": "false"}}, {}, {}),
        (declared | domain | {"dns": own}, {}, own),
        (declared | domain, {"dns": {"Servers": ["10.96.0.10"], "Searches": ["a.b"]}}, own),
    )
    for config, wishes, dns in cases:
        cni = Cni(host, config)
        assert cni.add("c", space.path, **wishes)["dns"] == dns, (config, wishes)
        cni.delete("c", space.path)


def test_both_families_and_a_network_that_is_there_already(host: Host, spaces: Spaces) -> None:
    """A network of datapath's own is joined, and stays; without a subnet one is chosen."""
    host.ctl("network create --ipv6 --subnet 10.72.0.0/24 --subnet fd72::/64 shop")
    cni, space = Cni(host, {"network": "shop"}), spaces()
    result = cni.add("c", space.path)
    assert [one["address"] for one in result["ips"]] == ["10.72.0.2/24", "fd72::2/64"]
    assert [one["dst"] for one in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert reaches(host.try_, "fd72::2")
    cni.delete("c", space.path)
    assert host.ctl("network rm shop") == "shop"
    cni = Cni(host, {})
    assert cni.add("c", space.path)["ips"][0]["address"].endswith(".2/16")
    cni.delete("c", space.path)


def test_a_network_beside_another_plugins_leaves_its_default_route(host: Host, spaces: Spaces) -> None:
    """As Multus has it, whichever of them comes first: ports are published all the same."""
    cni = Cni(host, {"subnet": "10.71.0.0/24", "options": {"com.datapath.beside": "true"}})
    space = spaces()
    space.sh("ip link add eth0 type veth peer name other")
    space.sh("ip address add 10.99.0.2/24 dev eth0")
    for device in ("eth0", "other"):
        space.sh(f"ip link set {device} up")
    space.sh("ip route add default via 10.99.0.1")
    before = space.sh("ip route show default")
    result = cni.add("c", space.path, "net1", portMappings=[{"hostPort": 8080, "containerPort": 80}])
    assert result["ips"][0]["address"] == "10.71.0.2/24" and result["routes"] == []
    space.serve(80)
    assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == "10.71.0.1"
    cni.check("c", space.path, "net1")
    host.ctl("reconcile")
    assert space.sh("ip route show default") == before and doctor(host) == CLEAN
    cni.delete("c", space.path, "net1")
    assert space.sh("ip route show default") == before


def test_ports_are_where_the_default_route_is(host: Host, spaces: Spaces) -> None:
    """podman asks for the ports at every network of a container. Each network's DEL leaves the others."""
    one, two = (
        Cni(host, {"name": name, "subnet": f"10.7{i}.0.0/24"}) for i, name in enumerate("ab", start=1)
    )
    space = spaces()
    ports = [{"hostPort": 8080, "containerPort": 80}]
    space.serve(80)
    two.add("c", space.path, "eth1", portMappings=ports)
    one.add("c", space.path, "eth0", portMappings=ports)
    for leaves, ifname in ((one, "eth0"), (two, "eth1")):
        assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE
        assert host.ctl("ps --format {{.Ports}}").count("8080") == 1
        leaves.delete("c", space.path, ifname)


needs_plugins = pytest.mark.skipif(not found("host-local"), reason="needs containernetworking-plugins")


@needs_plugins
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_addresses_of_another_plugin(host: Host, spaces: Spaces, tmp_path: Path, version: str) -> None:
    """host-local and static allot; what fails afterwards gives the address back, and DEL does, as often as it comes."""
    reserved = tmp_path / "ipam/net"
    ranges = {
        "ranges": [[{"subnet": "10.73.0.0/24", "rangeStart": "10.73.0.100"}], [{"subnet": "fd73::/64"}]]
    }
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "ipam"),
        "routes": [{"dst": "0.0.0.0/0"}],
        **ranges,
    }
    cni, space, other = Cni(host, {"ipam": ipam}, version), spaces(), spaces()
    result = cni.add("c", space.path)
    assert [one["address"] for one in result["ips"]] == ["10.73.0.100/24", "fd73::2/64"]
    assert reaches(space.try_, OUTSIDE)
    cni.check("c", space.path)

    def addresses() -> set[str]:
        return (
            {path.name for path in reserved.iterdir()} - {"lock"} - {p.name for p in reserved.glob("last*")}
        )

    assert addresses() == {"10.73.0.100", "fd73::2"}
    other.sh("ip link add eth0 type veth peer name other")
    with pytest.raises(Refused, match="File exists"):
        cni.add("d", other.path)
    assert addresses() == {"10.73.0.100", "fd73::2"}
    for _ in range(2):
        cni.delete("c")
    assert addresses() == set()
    cni.config["ipam"] = {
        "type": "static",
        "addresses": [{"address": "10.74.0.7/24", "gateway": "10.74.0.1"}],
    }
    assert cni.add("c", space.path)["ips"][0]["address"] == "10.74.0.7/24"
    cni.delete("c", space.path)


@needs_plugins
def test_a_plugin_for_addresses_is_named_and_called_by_the_rules(host: Host, spaces: Spaces) -> None:
    cni, space = Cni(host, {}), spaces()
    for ipam, said in (
        ({"type": "../../bin/sh"}, "7: ipam: .* names no plugin"),
        ({}, "7: ipam: .* names no plugin"),
        ({"type": "nosuch"}, "4: IPAM plugin nosuch is not in CNI_PATH"),
        ({"type": "dhcp"}, "2: ipam.type: .dhcp. is not supported: a network is routed"),
        ({"type": "static"}, "7: the IPAM plugin has given no address"),
        ({"type": "host-local", "ranges": [[{"subnet": "x"}]]}, "IPAM plugin host-local: "),
    ):
        cni.config["ipam"] = ipam
        with pytest.raises(Refused, match=said):
            cni.add("c", space.path)


# Allots one address, and writes down what it was asked. `failing` beside it names verbs that it cannot do.
IPAM = """#!/bin/sh
cat >/dev/null
echo "$CNI_COMMAND" >>{0}/asked
if grep -qsx "$CNI_COMMAND" {0}/failing; then echo '{{"code": 11, "msg": "not now"}}'; exit 1; fi
[ "$CNI_COMMAND" != ADD ] || echo '{{"ips": [{{"address": "10.77.0.7/24"}}]}}'
"""


def test_a_plugin_for_addresses_hears_of_every_end(host: Host, spaces: Spaces, tmp_path: Path) -> None:
    """It is asked to give back what it could not give, and whatever becomes of the rest; its failure is told."""
    program, failing = tmp_path / "one", tmp_path / "failing"
    program.write_text(IPAM.format(tmp_path))
    program.chmod(0o755)
    cni, space = Cni(host, {"ipam": {"type": "one"}}, "1.1.0"), spaces()
    cni.path = str(tmp_path)

    def asked() -> list[str]:
        verbs = (tmp_path / "asked").read_text().split()
        (tmp_path / "asked").unlink()
        return verbs

    failing.write_text("ADD\n")
    with pytest.raises(Refused, match="11: IPAM plugin one: not now"):
        cni.add("c", space.path)
    assert asked() == ["ADD", "DEL"]
    failing.write_text("DEL\nGC\nSTATUS\nCHECK\n")
    cni.add("c", space.path)
    for verb, code in (("CHECK", 11), ("STATUS", 50), ("GC", 11), ("DEL", 11)):
        container = "c" if verb in ("CHECK", "DEL") else ""
        more = {"prevResult": cni.results["c", "eth0"]} if verb == "CHECK" else {}
        with pytest.raises(Refused, match=f"{code}: IPAM plugin one: not now"):
            cni.call(verb, container, space.path, more=more)
    assert asked() == ["ADD", "CHECK", "STATUS", "GC", "DEL"]
    failing.unlink()
    cni.add("c", space.path)
    for verb in ("DEL", "GC"):
        with pytest.raises(Refused), failing_at(host, 1):
            cni.call(verb, "c", space.path)
        assert asked()[-1] == verb
    cni.delete("c", space.path)


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ({"subnet": "10.71.0.0/29"}, 5),
        ({"subnet": "10.71.0.0/24", "ipRange": "10.71.0.128/30"}, 3),
        ({"subnets": [{"subnet": "10.71.0.0/24"}, {"subnet": "fd71::/126"}]}, 2),
    ],
    ids=["subnet", "range", "IPv6"],
)
def test_status_sees_that_no_address_is_left(
    host: Host, spaces: Spaces, config: dict[str, Any], room: int
) -> None:
    """And that there is one again; a network that is not there yet has room."""
    cni = Cni(host, config, "1.1.0")
    assert cni.call("STATUS") is None
    for number in range(room):
        assert cni.call("STATUS") is None
        cni.add(f"c{number}", spaces().path)
    with pytest.raises(Refused, match=r"^50: no available IP addresses in "):
        cni.call("STATUS")
    with pytest.raises(Refused, match=r"^7: no available IP addresses in "):
        cni.add("more", spaces().path)
    for number in range(room):
        cni.delete(f"c{number}")
        assert cni.call("STATUS") is None


def test_what_cannot_be_collected_keeps_nothing_else_there(host: Host, spaces: Spaces) -> None:
    cni = Cni(host, {"subnet": "10.71.0.0/24"}, "1.1.0")
    for number in range(3):
        cni.add(f"c{number}", spaces().path)
    cni.results.clear()
    with pytest.raises(Refused, match="network net could not be cleaned up completely"), failing_at(host, 12):
        cni.collect()
    assert len(host.ctl("ps -q").split()) == 1
    cni.collect()


@contextmanager
def failing_at(host: Host, step: int) -> Iterator[None]:
    """That step of a command fails, as a kernel without memory and a full disk have it."""
    assert host.env is not None
    host.env[faults.VARIABLE] = f"error@{step}"
    forked.in_child.append(faults.install)
    try:
        yield
    finally:
        forked.in_child.remove(faults.install)
        del host.env[faults.VARIABLE]


def test_what_the_runtime_has_forgotten_is_collected(host: Host, spaces: Spaces) -> None:
    """GC, of one network only; and a namespace that is gone is nothing that could fail."""
    cni = Cni(host, {"subnet": "10.71.0.0/24"}, "1.1.0")
    other = Cni(host, {"name": "other", "subnet": "10.72.0.0/24"}, "1.1.0")
    there = [spaces() for _ in range(3)]
    for number, space in enumerate(there):
        cni.add(f"c{number}", space.path)
    other.add("o", there[0].path, "eth1")
    there[1].delete()
    cni.results.pop(("c1", "eth0"))
    lost = cni.results.pop(("c2", "eth0"))
    cni.collect()
    assert json.loads(host.ctl("network inspect net"))[0]["Name"] == "net"
    assert "eth0" not in there[2].sh("ip -o link") and "eth0" in there[0].sh("ip -o link")
    with pytest.raises(Refused, match="3: attachment net/c2/eth0 is not in"):
        cni.call("CHECK", "c2", there[2].path, more={"prevResult": lost})
    cni.results.clear()
    cni.collect()
    assert "eth1" in there[0].sh("ip -o link")
    there[0].delete()
    other.delete("o", "", "eth1")


def test_a_check_finds_what_has_changed(host: Host, spaces: Spaces) -> None:
    cni, space = Cni(host, {"subnet": "10.71.0.0/24"}), spaces()
    cni.add("c", space.path)
    space.sh("ip link set eth0 down")
    with pytest.raises(Refused, match="101: attachment net/c/eth0: device eth0 is down"):
        cni.check("c", space.path)
    host.ctl("reconcile")
    cni.check("c", space.path)
    with pytest.raises(Refused, match="3: "):
        cni.check("c", spaces().path)
    with pytest.raises(Refused, match="prevResult says otherwise"):
        cni.call("CHECK", "c", space.path, more={"prevResult": {"ips": [{"address": "10.71.0.9/24"}]}})
    cni.delete("c", space.path)


def test_ten_at_once(host: Host, spaces: Spaces, tmp_path: Path) -> None:
    """As executables: each gets an address of its own, and the last one takes the network."""
    cni, program = Cni(host, {"subnet": "10.71.0.0/24"}), executable(tmp_path / "bin", "ctl.cni.main", host)
    there = [spaces() for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:

        def call(verb: str) -> list[Any]:
            calls = [
                pool.submit(cni.call, verb, f"c{i}", s.path, program=program) for i, s in enumerate(there)
            ]
            return [call.result() for call in calls]

        added = call("ADD")
        assert len({result["ips"][0]["address"] for result in added}) == 10
        assert all(reaches(space.try_, "10.71.0.1") for space in there)
        assert doctor(host) == CLEAN
        assert call("DEL") == [None] * 10


BEHIND = {"prevResult": {"ips": [{"address": "10.75.0.2/24"}]}}


@pytest.mark.parametrize(("verb", "config"), [("ADD", {}), ("DEL", {}), ("ADD", BEHIND), ("DEL", BEHIND)])
def test_s30_killed_anywhere_it_is_taken_away_and_asked_for_again(
    host: Host, spaces: Spaces, verb: str, config: dict[str, Any]
) -> None:
    """Alone, and behind another plugin."""
    ports = [{"hostPort": 8080, "containerPort": 80}]
    cni, space = Cni(host, {"subnet": "10.71.0.0/24", **config}, portMappings=ports), spaces()

    def attempt(fault: str) -> int:
        assert host.env is not None
        host.env[faults.VARIABLE] = fault
        try:
            cni.call(verb, "c", space.path, more={"runtimeConfig": cni.wishes})
        finally:
            del host.env[faults.VARIABLE]
        return faults.last().steps

    def prepare() -> None:
        cni.delete("c", space.path)
        if verb == "DEL":
            cni.add("c", space.path)

    prepare()
    forked.in_child.append(faults.install)
    try:
        steps = attempt("count@0")
    finally:
        forked.in_child.remove(faults.install)
    assert steps > 10
    for number in range(1, steps + 1, STRIDE):
        prepare()
        forked.in_child.append(faults.install)
        try:
            with suppress(Killed):
                attempt(f"kill@{number}")
        finally:
            forked.in_child.remove(faults.install)
        cni.delete("c", space.path)
        assert doctor(host) == CLEAN, f"killed at step {number} of {steps}"
        assert "10.71.0" not in host.sh("ip -o address") and space.sh("ip -o link").count("\n") == 0
    cni.delete("c", space.path)


@needs_plugins
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_behind_another_plugin_its_result_is_handed_on(host: Host, spaces: Spaces, version: str) -> None:
    """Nothing is done there, so nothing is missing."""
    space = spaces()
    ipam = {"type": "host-local", "dataDir": str(host.folder / "theirs"), "subnet": "10.75.0.0/24"}
    theirs = Cni(host, {"bridge": "br9", "isGateway": True, "ipam": ipam}, version)
    bridge = Path(CNI_PATH, "bridge")
    before = theirs.call("ADD", "t", space.path, more={"type": "bridge"}, program=bridge)
    ours = Cni(host, {"prevResult": before}, version)
    assert ours.add("t", space.path) == before
    ours.check("t", space.path)
    for _ in range(2):
        ours.delete("t", space.path)
    theirs.call("DEL", "t", space.path, more={"type": "bridge", "prevResult": before}, program=bridge)
    host.sh("ip link delete br9")
    host.ctl("reconcile")


@needs_plugins
@pytest.mark.parametrize(("plugin", "version"), [("bridge", "0.4.0"), ("ptp", "1.0.0")])
def test_behind_another_plugin_the_containers_ports_are_published(
    host: Host, spaces: Spaces, plugin: str, version: str
) -> None:
    """By a device beside that plugin's, which keeps addresses and default route; from everywhere, over both
    protocols, behind a firewall that forwards nothing, and from the container itself."""
    space, neighbour, other = spaces(), spaces(), spaces()
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(host.folder / "theirs")}
    ipam |= {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    ipam |= {"ranges": [[{"subnet": "10.75.0.0/24"}], [{"subnet": "fd75::/64"}]]}
    theirs = Cni(host, {"bridge": "br9", "isGateway": True, "ipam": ipam, "type": plugin}, version)

    def of_theirs(verb: str, container: str, netns: str) -> Any:
        return theirs.call(verb, container, netns, program=Path(CNI_PATH, plugin))

    before = of_theirs("ADD", "t", space.path)
    of_theirs("ADD", "n", neighbour.path)
    host.sh("iptables -P FORWARD DROP")
    member = Cni(host, {"name": "ours", "subnet": "10.72.0.0/24"}, version)
    member.add("m", other.path)
    routes, rules = space.sh("ip route show default"), host.sh("iptables -t nat -S")
    ours = Cni(host, {"prevResult": before}, version)
    ports = [
        {"hostPort": 8000 + number, "containerPort": number, "protocol": proto, "hostIP": ""}
        for number in (80, 86)
        for proto in ("tcp", "udp")
    ]
    with pytest.raises(Refused, match="7: ipam: the container is on another plugin's network"):
        ours.call("ADD", "t", space.path, more={"runtimeConfig": {"portMappings": ports}, "ipam": ipam})
    result = ours.add("t", space.path, portMappings=ports)
    assert {**result, "interfaces": result["interfaces"][:-3]} == before
    assert result["interfaces"][-1]["name"] == "dp0" and "dp0" in space.sh("ip -o link")
    assert space.sh("ip route show default") == routes and host.sh("iptables -t nat -S") == rules
    for proto in ("tcp", "udp"):
        space.serve(80, proto)
        space.serve(86, proto, "::")
        for asker in (host.outside, host, neighbour, other, space):
            assert asker.sh(ask(proto, HOST, 8080)).split()[0].startswith("172.")
        assert host.sh(ask(proto, "127.0.0.1", 8080)) and host.sh(ask(proto, "::1", 8086))
    assert host.outside.try_(ask("tcp", HOST, 80)).returncode != 0
    assert "8080" in host.ctl("port ls t") and OUTSIDE in host.ctl("ct ls --container t --format {{.Source}}")
    ours.check("t", space.path)
    host.ctl("reconcile")
    assert doctor(host) == CLEAN and space.sh("ip route show default") == routes
    with pytest.raises(Refused, match="exists already"):
        ours.add("t", space.path, portMappings=ports)
    for _ in range(2):
        ours.delete("t", space.path)
        assert host.outside.try_(ask("tcp", HOST, 8080)).returncode != 0
    assert "dp0" not in space.sh("ip -o link") and space.sh("ip route show default") == routes
    member.delete("m", other.path)
    for container, netns in (("t", space.path), ("n", neighbour.path)):
        of_theirs("DEL", container, netns)
    host.sh("iptables -P FORWARD ACCEPT")
    if plugin == "bridge":
        host.sh("ip link delete br9")
    host.ctl("reconcile")


@needs_plugins
def test_beside_the_bridge_plugin_behind_a_firewall_that_forwards_nothing(host: Host, spaces: Spaces) -> None:
    """`FORWARD DROP`, as firewalld, ufw and dockerd leave it, and bridge, firewall and portmap with rules of their own:
    both kinds of containers work, ours are reached by theirs at published ports, and no rule of theirs changes."""
    ours, one, two = Cni(host, {"subnet": "10.71.0.0/24"}), spaces(), spaces()
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(host.folder / "theirs")}
    ipam |= {"ranges": [[{"subnet": "10.75.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    port = {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}
    bridge = {"name": "theirs", "bridge": "br9", "isGateway": True, "ipMasq": True, "ipam": ipam}
    theirs = Cni(host, {**bridge, "runtimeConfig": {"portMappings": [port]}})

    def chain(verb: str, *types: str) -> None:
        result: dict[str, Any] = theirs.results.get(("t", ""), {})
        for type_ in types:
            more = {"type": type_, **({"prevResult": result} if result else {})}
            said = theirs.call(verb, "t", two.path, more=more, program=Path(CNI_PATH, type_))
            result = said or result
        theirs.results["t", ""] = result

    def rules() -> list[str]:
        found = host.sh("iptables-save") + host.sh("ip -o link show type bridge")
        return [line for line in found.splitlines() if not line.startswith("#")]

    host.sh("iptables -P FORWARD DROP")
    host.sh(
        "iptables -A FORWARD -o br9 -m conntrack --ctstate DNAT -j ACCEPT"
    )  # the plugin `firewall` has none for it
    chain("ADD", "bridge", "firewall", "portmap")
    two.serve(80)
    before = rules()
    assert len(before) > 10 and host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == OUTSIDE
    ours.add("o", one.path, portMappings=[{"hostPort": 8080, "containerPort": 80}])
    one.serve(80)
    for number in (8080, 8081):
        assert host.outside.sh(ask("tcp", HOST, number)).split()[0] == OUTSIDE
    two.sh(ask("tcp", HOST, 8080))
    assert reaches(one.try_, OUTSIDE) and reaches(two.try_, OUTSIDE)
    assert rules() == before
    ours.delete("o", one.path)
    assert rules() == before
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == OUTSIDE
    chain("DEL", "portmap", "firewall", "bridge")
    host.sh("iptables -P FORWARD ACCEPT")
    host.sh("iptables -D FORWARD -o br9 -m conntrack --ctstate DNAT -j ACCEPT")
    host.sh("ip link delete br9")
    host.ctl("reconcile")  # it was a device of the host's, as any other
