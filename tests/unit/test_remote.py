# SPDX-License-Identifier: Apache-2.0
"""Docker's plugins: what their answers mean, where they are found, and how one command asks them."""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath.drivers.remote import places, words
from datapath.drivers.remote.client import NotImplementedByPlugin, PluginCalls
from datapath.drivers.remote.leases import Leases
from datapath.errors import ConfigError, PluginError
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network, Subnet
from datapath.model.plugins import AllocatedPool, Capability, Joined, Lease, Plugin, PoolRequest, StaticRoute
from datapath.model.ports import PortMapping

# ---- words ---------------------------------------------------------------------------------------------------------

NETWORK = Network(
    "n1",
    "far",
    1,
    "weave",
    "local",
    subnets=(Subnet(ip_network("10.5.0.0/24"), ip_address("10.5.0.1"), aux={"tv": ip_address("10.5.0.9")}),),
    plugin=True,
    generic={"colour": "blue"},
)
ENDPOINT = Endpoint(
    *("e1", "n1", "s1", 2, 0, "eth0", "", "02:42:0a:05:00:02"),
    ipv4=IPv4Interface("10.5.0.2/24"),
)


def test_a_network_is_told_with_its_pools_and_with_what_was_allocated() -> None:
    asked = words.create_network(NETWORK, {"vni": "7"})
    assert asked["Options"][words.GENERIC] == {"colour": "blue", "vni": "7"}
    assert asked["IPv4Data"] == [
        {
            "AddressSpace": "LocalDefault",
            "Pool": "10.5.0.0/24",
            "Gateway": "10.5.0.1/24",
            "AuxAddresses": {"tv": "10.5.0.9/24"},
        }
    ]
    assert asked["IPv6Data"] == []
    assert words.allocate_network(NETWORK)["Options"] == {"colour": "blue"}


def test_an_endpoint_is_told_with_a_mac_address_that_was_chosen_and_not_with_another() -> None:
    asked = words.create_endpoint(NETWORK, ENDPOINT)
    assert asked["Interface"] == {"Address": "10.5.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    chosen = words.create_endpoint(NETWORK, replace(ENDPOINT, static_mac=True))
    assert chosen["Interface"]["MacAddress"] == ENDPOINT.mac
    assert chosen["Options"]["com.docker.network.endpoint.macaddress"] == "AkIKBQAC"


def test_each_port_of_a_range_is_a_binding_and_exposed() -> None:
    found = words.port_options(
        replace(ENDPOINT, ports=(PortMapping.parse("127.0.0.1:8080-8081:80-81/udp"),), exposed=((90, "tcp"),))
    )
    (first, second) = found["com.docker.network.portmap"]
    assert first == {
        "Proto": 17,
        "IP": "",
        "Port": 80,
        "HostIP": "127.0.0.1",
        "HostPort": 8080,
        "HostPortEnd": 8080,
    }
    assert (second["Port"], second["HostPort"]) == (81, 8081)
    exposed = [(one["Proto"], one["Port"]) for one in found["com.docker.network.endpoint.exposedports"]]
    assert exposed == [(6, 90), (17, 80), (17, 81)]


Meaning = Callable[[Any], Any]
CREATED: Meaning = lambda answer: words.created(answer, ENDPOINT)  # noqa: E731
POOL4: Meaning = lambda answer: words.allocated_pool(answer, False)  # noqa: E731


@pytest.mark.parametrize(
    ("parse", "answer", "meaning"),
    [
        (words.implements, {"Implements": ["NetworkDriver"]}, ["NetworkDriver"]),
        (words.capability, {"Scope": "global", "GwAllocChecker": True}, Capability("global", True)),
        (POOL4, {"PoolID": "p", "Pool": "10.9.0.0/16"}, AllocatedPool("p", ip_network("10.9.0.0/16"))),
        (
            POOL4,
            {"PoolID": "p", "Pool": "10.9.0.0/16", "Data": {"com.docker.network.gateway": "10.9.0.1/16"}},
            AllocatedPool("p", ip_network("10.9.0.0/16"), ip_interface("10.9.0.1/16")),
        ),
        # Go writes an IPv4 address in 16 bytes as IPv6 has it.
        (
            POOL4,
            {"PoolID": "p", "Pool": "::ffff:10.9.0.0/112"},
            AllocatedPool("p", ip_network("10.9.0.0/16")),
        ),
        (words.allocated_address, {"Address": "10.9.0.7/16"}, ip_interface("10.9.0.7/16")),
        (CREATED, {}, ENDPOINT),
        (CREATED, {"Interface": None}, ENDPOINT),
        (
            CREATED,
            {"Interface": {"MacAddress": "02:42:00:00:00:07"}},
            replace(ENDPOINT, mac="02:42:00:00:00:07", static_mac=True),
        ),
        (words.joined, {}, (Joined(), "")),
        (
            words.joined,
            {
                "InterfaceName": {"SrcName": "v1", "DstPrefix": "eth"},
                "Gateway": "10.5.0.1",
                "StaticRoutes": [
                    {"Destination": "10.7.0.0/16", "RouteType": 0, "NextHop": "10.5.0.3"},
                    {"Destination": "10.8.0.0/16", "RouteType": 1, "NextHop": "10.5.0.3"},
                ],
                "DisableGatewayService": True,
            },
            (
                Joined(
                    "v1",
                    ip_address("10.5.0.1"),  # type: ignore[arg-type]
                    None,
                    (
                        StaticRoute(ip_network("10.7.0.0/16"), ip_address("10.5.0.3")),
                        StaticRoute(ip_network("10.8.0.0/16")),
                    ),
                    False,
                ),
                "eth",
            ),
        ),
        (words.skipped, {"SkipIPv4": True}, (True, False)),
        (words.allocated_options, {"Options": {"vni": "7"}}, {"vni": "7"}),
        (words.allocated_options, {}, {}),
    ],
)
def test_what_an_answer_means(parse: Meaning, answer: Any, meaning: Any) -> None:
    assert parse(answer) == meaning


@pytest.mark.parametrize(
    ("parse", "answer", "said"),
    [
        (words.implements, {"Implements": "NetworkDriver"}, "list of strings"),
        (words.implements, {"Implements": [7]}, "list of strings"),
        (words.capability, {}, "expecting 'local' or 'global'"),
        (words.capability, {"Scope": "local", "ConnectivityScope": "far"}, 'got "far" as ConnectivityScope'),
        (POOL4, {"Pool": "10.9.0.0/16"}, "PoolID is missing"),
        (POOL4, {"PoolID": "p" * 1001, "Pool": "10.9.0.0/16"}, "too long"),
        (POOL4, {"PoolID": "p"}, "Pool is missing"),
        (POOL4, {"PoolID": "p", "Pool": "fd00::/64"}, "no IPv4 address"),
        (POOL4, {"PoolID": "p", "Pool": "0.0.0.0/0"}, "no IPv4 address"),
        (POOL4, {"PoolID": "p", "Pool": 7}, "must be a string"),
        (
            POOL4,
            {"PoolID": "p", "Pool": "10.9.0.0/16", "Data": {"com.docker.network.gateway": "10.8.0.1/16"}},
            "not in the pool",
        ),
        (words.allocated_address, {}, "no address returned"),
        (CREATED, {"Interface": {"Address": "10.5.0.3/24"}}, "driver modified interface address"),
        (CREATED, {"Interface": {"MacAddress": "x"}}, "not a valid mac address"),
        (CREATED, {"Interface": []}, "must be an object"),
        (words.joined, {"InterfaceName": {"SrcName": ".."}}, "no device that could be moved"),
        (words.joined, {"InterfaceName": {"SrcName": "x" * 16}}, "no device that could be moved"),
        (words.joined, {"InterfaceName": {"DstPrefix": "0"}}, "beginning of a device name"),
        (words.joined, {"Gateway": "0.0.0.0"}, "unable to parse Gateway"),
        (words.joined, {"StaticRoutes": [{}] * 1001}, "1000 are possible"),
        (
            words.joined,
            {"StaticRoutes": [{"Destination": "10.7.0.0/16", "RouteType": True}]},
            "must be 0 or 1",
        ),
        (
            words.joined,
            {"StaticRoutes": [{"Destination": "10.7.0.0/16", "NextHop": "fd00::1"}]},
            "of another IP version",
        ),
        (words.joined, {"DisableGatewayService": "yes"}, "DisableGatewayService must be"),
        (words.allocated_options, {"Options": {"vni": 7}}, "vni must be a string"),
    ],
)
def test_an_answer_that_means_nothing_says_what_is_wrong_in_a_line(
    parse: Meaning, answer: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(answer)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ---- places --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "run", tmp_path / "etc", tmp_path / "nowhere"]
    for folder in found[:2]:
        folder.mkdir()
    return found


def listen(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


def test_a_socket_in_any_folder_comes_before_a_specification(folders: list[Path]) -> None:
    (folders[0] / "weave.spec").write_text("tcp://127.0.0.1:1\n")
    assert places.find(folders, "weave") == Plugin("weave", "tcp://127.0.0.1:1")
    path = listen(folders[1] / "weave.sock")
    assert places.find(folders, "weave") == Plugin("weave", f"unix://{path}")
    (folders[0] / "flannel").mkdir()
    path = listen(folders[0] / "flannel" / "flannel.sock")
    assert places.find(folders, "flannel") == Plugin("flannel", f"unix://{path}")
    assert places.names(folders) == ["flannel", "weave"]


def test_what_is_no_socket_or_file_is_no_plugin(folders: list[Path]) -> None:
    (folders[0] / "a.sock").touch()
    (folders[0] / "b.spec").mkdir()
    (folders[0] / "c").mkdir()
    os.symlink("nowhere", folders[0] / "d.sock")
    for name in ("a", "b", "c", "d", "e"):
        assert places.find(folders, name) is None


@pytest.mark.parametrize("name", ["", ".", "..", "../run/weave", "weave\n", "weave/net:latest", "x" * 200])
def test_what_cannot_be_a_files_name_is_no_plugins(folders: list[Path], name: str) -> None:
    listen(folders[0] / "weave.sock")
    assert places.find(folders, name) is None


def test_a_specification_in_json_has_an_address_and_files_of_tls_whatever_case_its_names_are_in(
    folders: list[Path],
) -> None:
    tls = {"CAFile": "/ca", "certfile": "/c", "KeyFile": "/k"}
    path = folders[1] / "far.json"
    path.write_text(json.dumps({"Name": "x", "addr": "https://h:1", "TLSConfig": tls}))
    assert places.find(folders, "far") == Plugin("far", "https://h:1", "/ca", "/c", "/k", verify=True)
    path.write_text(json.dumps({"Addr": "https://h:1", "TLSConfig": {**tls, "InsecureSkipVerify": True}}))
    assert places.find(folders, "far") == Plugin("far", "https://h:1", "/ca", "/c", "/k")
    path.write_text(json.dumps({"Addr": "tcp://h:1", "TLSConfig": None}))
    assert places.find(folders, "far") == Plugin("far", "tcp://h:1")


@pytest.mark.parametrize(
    ("ending", "text", "said"),
    [
        ("spec", b"", "has no address such as"),
        ("spec", b"tcp://h:1\ntcp://h:2", "has no address such as"),
        ("spec", b"\xff", "cannot be read"),
        ("json", b"[]", "no specification in JSON"),
        ("json", b"[" * 20000, "no specification in JSON"),
        ("json", b"{}", "needs an Addr"),
        ("json", b'{"Addr": "tcp://h:1", "TLSConfig": {"CAFile": 7}}', "needs an Addr, and paths"),
        ("json", b'{"Addr": "tcp://h:1", "TLSConfig": 7}', "no specification in JSON"),
        ("json", b'{"Addr": "h:1"}', "has no address such as"),
    ],
)
def test_a_specification_that_cannot_be_one_is_said_to_be_none(
    folders: list[Path], ending: str, text: bytes, said: str
) -> None:
    (folders[0] / f"bad.{ending}").write_bytes(text)
    with pytest.raises(PluginError) as caught:
        places.find(folders, "bad")
    assert str(caught.value).startswith("plugin bad: ") and said in str(caught.value)


# ---- client --------------------------------------------------------------------------------------------------------

Reply = tuple[int, bytes]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A plugin that answers each method as the test says, and notes what it was asked."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.replies: dict[str, Reply] = {
            "Plugin.Activate": (200, b'{"Implements": ["NetworkDriver", "IpamDriver"]}')
        }
        self.asked: list[tuple[str, bytes]] = []
        super().__init__(str(path), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        return super().get_request()[0], ("plugin", 0)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        method = self.path.removeprefix("/")
        server.asked.append((method, self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = server.replies.get(method, (404, b"no such method"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(folders: list[Path]) -> Iterator[Server]:
    with Server(folders[0] / "weave.sock") as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def calls(folders: list[Path], server: Server) -> PluginCalls:
    return PluginCalls(folders, 5)


def test_a_plugin_is_activated_once_a_command(calls: PluginCalls, server: Server) -> None:
    server.replies["NetworkDriver.Leave"] = 200, b"null"
    for _ in range(2):
        assert calls.call("weave", "NetworkDriver", "Leave", {"NetworkID": "n"}) == {}
    assert server.asked == [
        ("Plugin.Activate", b""),
        *[("NetworkDriver.Leave", b'{"NetworkID": "n"}\n')] * 2,
    ]
    assert calls.has("weave") and not calls.has("wave")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, b'{"Err": "no  room\\n left"}'), "Leave: remote: no room left"),
        ((200, b'{"Error": "as IPAM has it"}'), "Leave: remote: as IPAM has it"),
        ((200, b'{"Err": 7}'), "its answer to Leave is wrong: Err must be a string"),
        ((500, b'{"Err": "broken"}'), "Leave: broken"),
        ((500, b"\x1b[31m"), "Leave: "),
        ((503, b" "), "Leave: HTTP status 503"),
        ((200, b"[]"), "its answer is no object of JSON: []"),
        ((200, b"x" * 1000), "x" * 400 + "…"),
        ((200, b"[" * 100000), "its answer is no object of JSON"),
        ((200, b"x" * (2 << 20)), "more than 1048576 bytes"),
    ],
)
def test_what_a_plugin_refuses_or_answers_wrongly_is_a_line_and_not_asked_for_again(
    calls: PluginCalls, server: Server, reply: Reply, said: str
) -> None:
    server.replies["NetworkDriver.Leave"] = reply
    with pytest.raises(PluginError) as caught:
        calls.call("weave", "NetworkDriver", "Leave", {})
    line = str(caught.value)
    assert line.startswith("plugin weave: ") and said in line and line.isprintable() and len(line) < 600
    assert not isinstance(caught.value, NotImplementedByPlugin)
    assert [method for method, _ in server.asked].count("NetworkDriver.Leave") == 1


def test_a_method_that_a_plugin_has_not_is_told_from_one_that_fails(
    calls: PluginCalls, server: Server
) -> None:
    with pytest.raises(NotImplementedByPlugin, match="AllocateNetwork: no such method"):
        calls.call("weave", "NetworkDriver", "AllocateNetwork", {})
    assert not calls.ipam_driver("weave").needs_mac  # of before there were capabilities


def test_a_plugin_of_another_kind_is_not_asked(calls: PluginCalls, server: Server) -> None:
    server.replies["Plugin.Activate"] = 200, b'{"Implements": ["VolumeDriver"]}'
    with pytest.raises(PluginError, match="it is no IpamDriver"):
        calls.call("weave", "IpamDriver", "RequestPool", {})
    assert len(server.asked) == 1 and calls.activate("weave") == ["VolumeDriver"]


def test_a_plugin_that_does_not_answer_is_asked_in_vain_once_a_command(folders: list[Path]) -> None:
    listen(folders[0] / "weave.sock")
    for calls in (PluginCalls(folders, 0.5), PluginCalls(folders, 60, patient=False)):
        for name, said in (
            ("weave", "does not answer at unix://"),
            ("wave", "does not answer: it is not in "),
        ):
            for _ in range(2):
                with pytest.raises(PluginError, match=said):
                    calls.call(name, "NetworkDriver", "Leave", {})


def test_a_request_is_repeated_until_the_plugin_is_there(folders: list[Path]) -> None:
    """After a second, as in Docker."""
    calls = PluginCalls(folders, 60)
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(calls.activate("weave")))
    thread.start()
    with Server(folders[0] / "weave.sock") as made:
        serving = threading.Thread(target=made.serve_forever, args=(0.01,))
        serving.start()
        thread.join()
        made.shutdown()
        serving.join()
    assert found == [["NetworkDriver", "IpamDriver"]]


class Noting(Leases):
    """Notes as the test does."""

    def __init__(self, add: Callable[[Lease], object]) -> None:
        super().__init__()
        self._add = add

    def add(self, lease: Lease) -> None:
        self._add(lease)


def test_what_an_ipam_plugin_gives_is_noted_before_it_is_understood(
    calls: PluginCalls, server: Server
) -> None:
    """So that it goes back, even if nothing can be made of it."""
    server.replies["IpamDriver.RequestPool"] = 200, b'{"PoolID": "p", "Pool": "nonsense"}'
    noted: list[Lease] = []
    calls.leases = Noting(noted.append)
    with pytest.raises(PluginError, match="its answer to RequestPool is wrong"):
        calls.pool("weave", PoolRequest("here", "", "", {}, False))
    assert noted == [Lease("weave", "p")]
    server.replies["IpamDriver.ReleasePool"] = 200, b"{}"
    calls.release(noted[0])
    assert server.asked[-1] == ("IpamDriver.ReleasePool", b'{"PoolID": "p"}\n')


def test_what_cannot_be_noted_goes_back_at_once(calls: PluginCalls, server: Server) -> None:
    def full(lease: Lease) -> None:
        raise OSError("no space left")

    calls.leases = Noting(full)
    server.replies["IpamDriver.RequestAddress"] = 200, b'{"Address": "10.9.0.7/16"}'
    server.replies["IpamDriver.ReleaseAddress"] = 200, b"{}"
    with pytest.raises(OSError, match="no space left"):
        calls.address("weave", "p", "", {})
    method, body = server.asked[-1]
    assert (method, json.loads(body)) == (
        "IpamDriver.ReleaseAddress",
        {"PoolID": "p", "Address": "10.9.0.7"},
    )
