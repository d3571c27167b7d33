# SPDX-License-Identifier: Apache-2.0
"""The plugin for netavark, as podman calls it, with real packets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net import look
from tests.net.doors import Netavark, Refused, Space, executable, spaces_of_a_test
from tests.net.hosts import HOST, OUTSIDE, Host, ask, reaches
from tests.net.names import Upstreams, both, dig_by, looked_up_by

CLEAN = "No problems found.\n"
Spaces = Callable[[], Space]


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    yield from spaces_of_a_test(tmp_path)


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """One for all tests of the module: each has to leave nothing."""
    shared_host.preloaded = True
    yield shared_host
    assert shared_host.try_ctl("doctor").stdout == CLEAN
    assert "podman" not in shared_host.ctl("network ls") + shared_host.ctl("ps")


@pytest.fixture
def podman(host: Host) -> Iterator[Netavark]:
    made = Netavark(host)
    yield made
    for name in list(made.networks):
        made.remove(name)


def port(host_port: int, inside: int, proto: str = "tcp", count: int = 1, ip: str = "") -> dict[str, object]:
    return {
        "host_ip": ip,
        "host_port": host_port,
        "container_port": inside,
        "protocol": proto,
        "range": count,
    }


def test_a_container_has_its_address_its_ports_and_its_way_out(
    host: Host, podman: Netavark, spaces: Spaces
) -> None:
    """Although podman listens on the ports itself, before it asks; teardown leaves nothing, twice."""
    assert podman.call("info")["api_version"]
    network = podman.create("web")
    subnet, gateway = network["subnets"][0]["subnet"], network["subnets"][0]["gateway"]
    address = gateway.removesuffix(".1") + ".77"
    assert network["ipam_options"] == {"driver": "host-local"}
    assert "web" not in host.ctl("network ls"), "podman says nothing when a network goes: there is none yet"
    space = spaces()
    held = hold(host, 8080)
    ports = [port(8080, 80), port(9000, 9000, count=4)]
    request = podman.request(
        *("c1", "web", "net7", address), port_mappings=ports, static_mac="02:42:aa:bb:cc:dd", aliases=["api"]
    )
    status = podman.call("setup", space.path, request=request)
    assert status["interfaces"] == {
        "net7": {
            "mac_address": "02:42:aa:bb:cc:dd",
            "subnets": [{"ipnet": f"{address}/{subnet.partition('/')[2]}", "gateway": gateway}],
        }
    }
    assert podman.call("setup", space.path, request=request) == status
    space.serve(80)
    space.serve(9003)
    assert reaches(space.try_, OUTSIDE) and reaches(host.try_, address)
    for client, at, number in (
        (host.outside, HOST, 8080),
        (host.outside, HOST, 9003),
        (host, "127.0.0.1", 8080),
    ):
        assert client.sh(ask("tcp", at, number)).split()[0] in (OUTSIDE, gateway)
    assert "c1" in host.ctl("ps --format {{.Names}}") and "8080->80" in host.ctl("ps --format {{.Ports}}")
    assert host.try_ctl("doctor").stdout == CLEAN
    held.kill()
    held.wait()
    for _ in range(2):
        assert podman.call("teardown", space.path, request=request) is None
    assert "net7" not in space.sh("ip -o link")


def hold(host: Host, number: int) -> subprocess.Popen[str]:
    """As podman does: a socket listens, and takes nothing."""
    code = (
        f"import socket, time; s = socket.create_server(('', {number})); print(flush=True); time.sleep(3600)"
    )
    process = host.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    process.stdout.close()
    return process


def test_ports_follow_the_default_route_from_network_to_network(
    host: Host, podman: Netavark, spaces: Spaces
) -> None:
    """They come with the setup of every network; each teardown leaves them where the way out is."""
    for name, third in (("a", 72), ("b", 73)):
        podman.create(name, subnets=[{"subnet": f"10.{third}.0.0/24"}])
    space = spaces()
    one, two = (
        podman.request("c", name, f"eth{i}", f"10.{72 + i}.0.9", port_mappings=[port(8080, 80)])
        for i, name in enumerate("ab")
    )
    space.serve(80)
    for verb, request in (
        ("setup", two),
        ("setup", one),
        ("teardown", one),
        ("setup", one),
        ("teardown", two),
    ):
        podman.call(verb, space.path, request=request)
        assert host.outside.sh(ask("tcp", HOST, 8080)).split()[0] == OUTSIDE, (
            verb,
            request["network"]["name"],
        )
        assert host.ctl("ps --format {{.Ports}}").count("8080") == 1
    assert host.try_ctl("doctor").stdout == CLEAN
    podman.call("teardown", space.path, request=one)


def test_s17_containers_find_each_other_by_every_name_that_podman_knows(
    host: Host, podman: Netavark, spaces: Spaces
) -> None:
    """By the container's name, the short id and aliases, which podman lists, each with the network's name and podman's
    own domain behind it too, from the next question on after setup until teardown; at an address of its own for each
    network, whoever has published the port. One of two networks has no names."""
    podman.create("shop", ipv6_enabled=True, subnets=[{"subnet": "10.90.0.0/24"}, {"subnet": "fd90::/64"}])
    podman.create("mute", subnets=[{"subnet": "10.91.0.0/24"}], dns_enabled=False)
    one, two = spaces(), spaces()
    published, aliases = [port(53, 53, "udp"), port(53, 53)], ["0123456789ab", "Api"]
    web = podman.request(
        *("web", "shop", "eth0", "10.90.0.7", "fd90::7"), aliases=aliases, port_mappings=published
    )
    status = podman.call("setup", one.path, request=web)
    assert (status["dns_server_ips"], status["dns_search_domains"]) == (["10.90.0.1"], ["dns.podman"])
    asker = podman.request("asker", "shop", "eth0", "10.90.0.8", "fd90::8")
    podman.call("setup", two.path, request=asker)
    silent = podman.request("web", "mute", "eth1", "10.91.0.7")
    mute = podman.call("setup", one.path, request=silent)
    assert (mute["dns_server_ips"], mute["dns_search_domains"]) == ([], [])
    asks = two.asks(["10.90.0.1"], ["dns.podman"])
    asked = [
        f"{name}{more}" for name in ("web", "0123456789ab", "api") for more in ("", ".shop", ".dns.podman")
    ]
    replies = dig_by(asks, *(f"{name} {kind}" for name in asked for kind in ("A", "AAAA")))
    assert [reply.data for reply in replies] == [["10.90.0.7"], ["fd90::7"]] * len(asked)
    back, none = dig_by(asks, "-x 10.90.0.7", "-x fd90::99")
    assert back.data == ["web.shop."] and none.status == "NXDOMAIN"
    for name in ("web", "WEB.shop", "api.dns.podman"):
        assert looked_up_by(asks, name) == both("10.90.0.7", "fd90::7")
    assert one.try_("dig +short +tries=1 @fd90::1 asker").stdout == "10.90.0.8\n"
    shown = [json.loads(line) for line in host.ctl("names ls --format json").splitlines()]
    assert {row["Network"] for row in shown} == {"shop"}, "the other network has no names"
    said = json.loads(host.ctl("names resolve asker API A --format json"))
    assert (said["Data"], said["Source"]) == ("10.90.0.7", "network shop")
    two.sh("ip route delete 127.0.0.11 table local")
    assert "get no answer" in host.try_ctl("doctor").stdout
    host.ctl("reconcile")
    assert host.try_ctl("doctor").stdout == CLEAN
    assert looked_up_by(two.asks(["127.0.0.11"]), "web") == both("10.90.0.7", "fd90::7")
    for request, space in ((web, one), (silent, one)):
        podman.call("teardown", space.path, request=request)
    shown = [json.loads(line) for line in host.ctl("names ls --format json").splitlines()]
    assert {row["Data"] for row in shown} == {"10.90.0.8", "fd90::8", "asker.shop"}
    podman.call("teardown", two.path, request=asker)
    assert not host.ctl("names ls --format json")


def test_s17_other_names_are_asked_of_the_networks_own_servers(
    host: Host, podman: Netavark, spaces: Spaces, tmp_path: Path
) -> None:
    """`network create --dns`, which `network update` may change while containers are there; on an internal network
    other names do not exist. A server of the host's at all of its addresses is in nobody's way, and not asked."""
    own = Upstreams(host, tmp_path / "own", "0.0.0.0=203.0.113.66")
    server = Upstreams(host.outside, tmp_path / "asked", f"{OUTSIDE}=203.0.113.9")
    podman.create("own", subnets=[{"subnet": "10.92.0.0/24"}], network_dns_servers=[OUTSIDE])
    podman.create("inner", subnets=[{"subnet": "10.93.0.0/24"}], internal=True)
    one, two, inside = spaces(), spaces(), spaces()
    first = podman.request("first", "own", "eth0", "10.92.0.2")
    # Changed meanwhile: a container keeps the servers of its own setup.
    second = podman.request("second", "own", "eth0", "10.92.0.3", network_dns_servers=["192.0.2.77"])
    internal = podman.request("inside", "inner", "eth0", "10.93.0.2")
    for request, space in ((first, one), (second, two), (internal, inside)):
        status = podman.call("setup", space.path, request=request)
        gateway = request["network"]["subnets"][0]["gateway"]
        assert status["dns_server_ips"] == [gateway]
    assert looked_up_by(one.asks(["10.92.0.1"]), "some.example.org") == both("203.0.113.9")
    assert server.whom("some.example.org")
    for way in ("+notcp", "+tcp"):
        ours, reply = dig_by(inside.try_, "inside", "some.example.org", options=f"@10.93.0.1 {way}")
        assert (ours.data, reply.status) == (["10.93.0.2"], "NXDOMAIN")
    assert not own.asked()
    assert dig_by(two.try_, "@127.0.0.11 first")[0].data == ["10.92.0.2"]
    row = json.loads(host.ctl("names resolve first other.example.org A --format json"))
    assert row["Source"] == f"upstream {OUTSIDE}"
    for request, space in ((first, one), (second, two), (internal, inside)):
        podman.call("teardown", space.path, request=request)
    for upstream in (server, own):
        os.killpg(upstream.process.pid, signal.SIGKILL)
        upstream.process.wait()


def test_subnets_are_chosen_beside_podmans_others_and_overlaps_refused(host: Host, podman: Netavark) -> None:
    """podman checks neither for a network of a plugin's. What cannot be is refused when it is created."""
    chosen = [podman.create(f"n{i}", ipv6_enabled=bool(i)) for i in range(2)]
    assert [len(one["subnets"]) for one in chosen] == [1, 2]
    assert len({one["subnets"][0]["subnet"] for one in chosen}) == 2
    host.ctl("network create --subnet 10.74.0.0/24 ours")
    other = chosen[0]["subnets"][0]["subnet"]
    for said, more in (
        ("overlaps 10.74.0.0/24 of network ours", {"subnets": [{"subnet": "10.74.0.0/16"}]}),
        ("of podman's network n0", {"subnets": [{"subnet": other}]}),
        ("an address or route of this host", {"subnets": [{"subnet": "192.0.2.0/25"}]}),
        ('IPAM driver "none" is not possible', {"ipam_options": {"driver": "none"}}),
        ('option "mine" of driver datapath is unknown', {"options": {"mine": "x"}}),
        (
            "all routes lead to the gateway",
            {"routes": [{"destination": "10.9.0.0/16", "gateway": "10.81.0.9"}]},
        ),
        ("not a domain", {"options": {"com.datapath.domain": "a b"}}),
        ("invalid subnet", {"subnets": [{"subnet": "10.75.0.9/33"}]}),
        ("subnet is missing", {"subnets": ["10.75.0.0/24"]}),
        ("network with name ours already exists", {"called": "ours"}),
    ):
        with pytest.raises(Refused, match=said):
            podman.create(str(more.pop("called", "new")), **more)
    host.ctl("network rm ours")


def test_a_namespace_that_is_gone_is_torn_down_all_the_same(
    host: Host, podman: Netavark, spaces: Spaces
) -> None:
    podman.create("gone", subnets=[{"subnet": "10.76.0.0/24"}])
    space, again = spaces(), spaces()
    request = podman.request("c", "gone", "eth0", "10.76.0.5", port_mappings=[port(8080, 80)])
    podman.call("setup", space.path, request=request)
    space.delete()
    # As after a crash of podman: no teardown, another namespace, the same address and port.
    other = podman.request("d", "gone", "eth0", "10.76.0.5", port_mappings=[port(8080, 80)])
    podman.call("setup", again.path, request=other)
    assert reaches(again.try_, OUTSIDE)
    podman.call("teardown", space.path, request=request)
    assert reaches(again.try_, OUTSIDE)
    podman.call("teardown", again.path, request=podman.request("d", "gone", "eth0", "10.76.0.5"))


def test_a_network_of_somebody_elses_name_is_not_taken(host: Host, podman: Netavark, spaces: Spaces) -> None:
    podman.create("shop", subnets=[{"subnet": "10.77.0.0/24"}])
    host.ctl("network create --subnet 10.78.0.0/24 shop")
    before = look.database(host)
    request = podman.request("c", "shop", "eth0", "10.77.0.5")
    with pytest.raises(Refused, match="network shop exists already, and belongs to datapath"):
        podman.call("setup", spaces().path, request=request)
    podman.call("teardown", "/run/netns/none", request=request)
    assert look.database(host) == before
    host.ctl("network rm shop")


def test_the_executable_answers_whatever_it_is_given(host: Host, tmp_path: Path, spaces: Spaces) -> None:
    """One JSON object with the error, exit code 1, no traceback, and nothing changed."""
    podman = Netavark(host, executable(tmp_path / "bin", "ctl.netavark.main", host))
    assert podman.call("info")["version"]
    podman.create("real", subnets=[{"subnet": "10.79.0.0/24"}])
    space = spaces()
    request = podman.request("c", "real", "eth0", "10.79.0.5")
    podman.call("setup", space.path, request=request)  # the first network notes what names were made from
    podman.call("teardown", space.path, request=request)
    before = look.database(host)
    for argv, given, said in (
        (["setup", space.path], b"{", "no JSON"),
        (["setup", space.path], b"[" * 100_000, "no JSON"),
        (["setup", space.path], [], "no JSON object"),
        (["setup"], request, "unknown command"),
        (["nonsense"], request, "unknown command"),
        ([], request, "a command is missing"),
        (["setup", space.path], {}, "network is missing"),
        (["setup", "/etc/hosts"], request, "no network namespace"),
        (["setup", space.path], {**request, "port_mappings": [{"host_port": "x"}]}, "no number"),
        (["setup", space.path], podman.request("c", "real", "a/b", "10.79.0.5"), "not a device name"),
        (
            ["setup", space.path],
            {**request, "network": {**request["network"], "subnets": None}},
            "no addresses",
        ),
        (
            ["setup", space.path],
            {**request, "network": {**request["network"], "network_dns_servers": ["x.test"]}},
            "IP address for dns",
        ),
        (["teardown", space.path], {}, "container_id is missing"),
    ):
        with pytest.raises(Refused) as refused:
            podman.call(*argv, request=given)
        assert refused.value.error.keys() == {"error"} and said in json.dumps(refused.value.error)
    assert look.database(host) == before
    podman.call("setup", space.path, request=request)
    podman.call("teardown", space.path, request=request)
