# SPDX-License-Identifier: Apache-2.0
"""Docker's door without a daemon: what its words become, every recorded request, and requests that are none."""

from __future__ import annotations

import json
import random
from http import HTTPStatus
from typing import Any, cast

import pytest

from ctl.docker import daemon, names, protocol
from ctl.docker.driver import Driver
from datapath.errors import ConfigError
from datapath.host import Host
from datapath.kernel.unix_server import Request
from datapath.model.endpoints import Endpoint
from datapath.model.ports import PortMapping
from tests.docker_requests import Recorded, recordings
from tests.unit.planned_engine import PlannedEngine

RECORDINGS = recordings()
NETWORK, ENDPOINT, SECOND = "ab" * 32, "cd" * 32, "ef" * 32
PORT_MAP = "com.docker.network.portmap"


class Door:
    """The driver on a planned host, and how it is asked."""

    def __init__(self) -> None:
        self.engine = PlannedEngine()
        self.said: list[str] = []
        self.changes = 0
        self.driver = Driver(cast(Host, self.engine), self._changed, self.said.append)

    def _changed(self) -> None:
        self.changes += 1

    def raw(self, method: str, body: bytes = b"", verb: str = "POST") -> tuple[HTTPStatus, dict[str, Any]]:
        answer = self.driver.handle(Request(verb, f"/{method}", body))
        found = json.loads(answer.body)
        assert isinstance(found, dict)
        return answer.status, found

    def ask(self, method: str, **fields: Any) -> dict[str, Any]:
        status, reply = self.raw(f"NetworkDriver.{method}", json.dumps(fields).encode())
        assert status == HTTPStatus.OK and "Err" not in reply, reply
        return reply

    def refused(self, method: str, **fields: Any) -> str:
        return str(self.raw(f"NetworkDriver.{method}", json.dumps(fields).encode())[1]["Err"])

    def network(
        self, ident: str = NETWORK, pool: str = "10.5.0.0/16", options: dict[str, Any] | None = None
    ) -> None:
        data = {"AddressSpace": "LocalDefault", "Pool": pool, "Gateway": pool.replace("0.0/", "0.1/")}
        self.ask("CreateNetwork", NetworkID=ident, Options=options or {}, IPv4Data=[data], IPv6Data=[])

    def endpoint(self, ident: str, network: str, address: str, *ports: str, sandbox: str = "one") -> Any:
        options = {PORT_MAP: [entry(port) for port in ports]}
        interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
        both = {"NetworkID": network, "EndpointID": ident, "Options": options}
        self.ask("CreateEndpoint", Interface=interface, **both)
        return self.ask("Join", SandboxKey=f"/run/docker/netns/{sandbox}", **both)

    @property
    def rows(self) -> dict[str, Endpoint]:
        return {endpoint.owner_key: endpoint for endpoint in self.engine.state.endpoints.values()}

    def published(self) -> dict[str, list[str]]:
        return {key: list(map(str, endpoint.ports)) for key, endpoint in self.rows.items() if endpoint.ports}


def entry(text: str) -> dict[str, Any]:
    """8080:80 or 8000-8010:80 or 80, as Docker writes it in a port map."""
    host, _, port = text.rpartition(":")
    first, _, last = host.partition("-")
    numbers = {"HostPort": int(first or 0), "HostPortEnd": int(last or first or 0)}
    return {"Proto": 6, "IP": "", "Port": int(port), "HostIP": "", **numbers}


# ---- recordings ----------------------------------------------------------------------------------------------


def check(request: Recorded, status: HTTPStatus, reply: dict[str, Any], door: Door) -> None:
    """The answer is one that dockerd can read, whatever came before."""
    assert "internal error" not in reply.get("Err", "")
    if request.method.startswith("IpamDriver."):
        assert status == HTTPStatus.NOT_FOUND and "has no method" in reply["Err"]
        return
    assert status == HTTPStatus.OK
    if "Err" in reply:
        assert reply.keys() == {"Err"} and reply["Err"] and "\n" not in reply["Err"]
        return
    fields = request.fields or {}
    match request.method.rpartition(".")[2]:
        case "Activate":
            assert reply == {"Implements": ["NetworkDriver"]}
        case "GetCapabilities":
            assert reply["Scope"] == "local"
        case "CreateEndpoint":
            given = bool(fields["Interface"]["MacAddress"])
            assert reply["Interface"].keys() == (set() if given else {"MacAddress"})
        case "Join":
            name = reply["InterfaceName"]
            assert 0 < len(name["SrcName"]) <= 15 and name["DstPrefix"] == "eth"
            network = door.engine.state.networks[fields["NetworkID"]]
            # Without one Docker would make a bridge behind our back.
            assert bool(reply["Gateway"] or reply["GatewayIPv6"]) is not network.internal
        case "EndpointOperInfo":
            assert reply == {"Value": {}}
        case "GwAllocCheck":
            assert reply == {"SkipIPv4": False, "SkipIPv6": False}
        case _:
            assert reply == {}


@pytest.mark.parametrize("order", ["as it came", "backwards", "shuffled"])
@pytest.mark.parametrize("title", RECORDINGS)
def test_every_recorded_request_gets_an_answer_in_any_order_twice(title: str, order: str) -> None:
    door, requests = Door(), list(RECORDINGS[title])
    if order == "backwards":
        requests.reverse()
    elif order == "shuffled":
        random.Random(15).shuffle(requests)
    for _ in range(2):
        for request in requests:
            check(request, *door.raw(request.method, request.body), door)
    networks = {n.id for n in door.engine.state.networks.values() if n.owner == "docker"}
    assert {e.network_id for e in door.engine.state.endpoints.values()} <= networks
    assert not any("internal error" in line for line in door.said)


# What Docker asked for that is refused: the options and subnets that were chosen to be so, and ports of endpoints that
# were never programmed.
REFUSED = (
    "option ",
    "endpoint option ",
    "Docker has allotted no",
    "Pool overlaps",
    "has joined no sandbox",
    "not found",
    "protocol sctp is not available",
    "has no IPv6 address that leads outside",
)


@pytest.mark.parametrize("title", RECORDINGS)
def test_as_it_came_nothing_is_refused_that_was_not_meant_to_be(title: str) -> None:
    door = Door()
    for request in RECORDINGS[title]:
        status, reply = door.raw(request.method, request.body)
        error = reply.get("Err", "")
        if status == HTTPStatus.OK and error:
            assert any(words in error for words in REFUSED) or "already allocated" in error, (request, error)


# ---- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "specs"),
    [
        ([], []),
        (["8080:80"], ["8080:80/tcp"]),
        (["8080:80", "8080:80"], ["8080:80/tcp"]),
        (["9002:9002", "9000:9000", "9001:9001"], ["9000-9002:9000-9002/tcp"]),
        (["9000:80", "9001:81", "9003:83"], ["9000-9001:80-81/tcp", "9003:83/tcp"]),
        (["9000:80", "9001:80"], ["9000:80/tcp", "9001:80/tcp"]),
        (["9001:80", "9000:81"], ["9000:81/tcp", "9001:80/tcp"]),
        ([":70"], ["70/tcp"]),
        ([":90", ":91", ":92"], ["90-92/tcp"]),
        (["8000-8010:80"], ["8000-8010:80/tcp"]),
        (["8000-8010:80", "8000-8010:81"], ["8000-8010:80/tcp", "8000-8010:81/tcp"]),
    ],
)
def test_a_port_map_becomes_as_few_mappings_as_possible(entries: list[str], specs: list[str]) -> None:
    options = {PORT_MAP: [entry(text) for text in entries]}
    found = protocol.port_specs(options)
    assert found is not None and sorted(found) == sorted(specs)
    parsed = [PortMapping.parse(spec) for spec in found]
    wanted = {(e["HostPort"], e["HostPortEnd"], e["Port"]) for e in options[PORT_MAP]}
    single = {
        (m.host_port + i, m.host_port_last or m.host_port + i, m.container_port + i)
        if m.host_port
        else (0, 0, m.container_port + i)
        for m in parsed
        for i in range(m.count)
    }
    assert single == wanted


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"HostIP": "127.0.0.1"}, "127.0.0.1:8080:80/tcp"),
        ({"HostIP": "::1"}, "[::1]:8080:80/tcp"),
        ({"HostIP": "0.0.0.0"}, "0.0.0.0:8080:80/tcp"),
        ({"Proto": 17}, "8080:80/udp"),
        ({"HostPort": 0, "HostPortEnd": 0, "HostIP": "127.0.0.1"}, "127.0.0.1::80/tcp"),
        ({"HostPortEnd": 0}, "8080:80/tcp"),
        ({"IP": "10.5.0.2", "Unknown": [1]}, "8080:80/tcp"),
    ],
)
def test_an_entry_of_a_port_map(fields: dict[str, Any], spec: str) -> None:
    assert protocol.port_specs({PORT_MAP: [entry("8080:80") | fields]}) == (spec,)


def test_a_port_map_of_many_ports_is_one_mapping_and_none_is_none() -> None:
    every = [entry(f"{port}:{port}") for port in range(1, 9001)]
    random.Random(1).shuffle(every)
    assert protocol.port_specs({PORT_MAP: every}) == ("1-9000:1-9000/tcp",)
    assert protocol.port_specs({}) is None and protocol.port_specs({PORT_MAP: None}) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({PORT_MAP: {}}, "must be a list of objects"),
        ({PORT_MAP: [1]}, "must be a list of objects"),
        ({PORT_MAP: [entry("8080:80") | {"Proto": 99}]}, "protocol"),
        ({PORT_MAP: [entry("8080:80") | {"Proto": "tcp"}]}, "protocol"),
        ({PORT_MAP: [entry("8080:80") | {"Port": 0}]}, "has no number"),
        ({PORT_MAP: [entry("8080:80") | {"HostPort": 65536}]}, "HostPort must be a port"),
        ({PORT_MAP: [entry("8080:80") | {"HostPort": True}]}, "HostPort must be a port"),
        ({PORT_MAP: [entry("8080:80") | {"HostPortEnd": 8079}]}, "8080-8079"),
        ({PORT_MAP: [entry("8080:80") | {"HostIP": "../x"}]}, "invalid IP address"),
        ({PORT_MAP: [entry("8080:80") | {"HostIP": 7}]}, "HostIP must be a string"),
    ],
)
def test_a_port_map_that_is_none_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        protocol.port_specs(options)


def test_options_of_networks_and_endpoints_are_taken_and_dockers_own_passed_over() -> None:
    door = Door()
    generic = {"com.docker.network.driver.mtu": "1400", "com.datapath.allow": "10.0.0.0/8"}
    door.network(
        options={
            "com.docker.network.generic": generic,
            "com.docker.network.internal": False,
            "com.docker.network.enable_ipv4": True,
        }
    )
    network = door.engine.state.networks[NETWORK]
    assert (network.name, network.owner, network.mtu) == (NETWORK[:12], "docker", 1400)
    options = {"com.docker.network.endpoint.dnsservers": ["9.9.9.9"], "com.docker.network.new": {"x": 1}}
    asked = {
        "NetworkID": NETWORK,
        "EndpointID": ENDPOINT,
        "Interface": {"Address": "10.5.0.77/16", "MacAddress": "02:42:aa:bb:cc:dd"},
    }
    assert door.ask("CreateEndpoint", **asked, Options=options | {"com.datapath.deny": "10.1.0.0/16"}) == {
        "Interface": {}
    }
    assert door.rows[ENDPOINT].mac == "02:42:aa:bb:cc:dd" and str(door.rows[ENDPOINT].ipv4) == "10.5.0.77/16"
    assert door.rows[ENDPOINT].driver_options == {"com.datapath.deny": "10.1.0.0/16"}
    asked["EndpointID"] = SECOND
    assert 'option "k" is not available' in door.refused("CreateEndpoint", **asked, Options={"k": "v"})
    assert SECOND not in door.rows


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"NetworkID": "../../x"}, "NetworkID must be 64 hex digits"),
        ({"NetworkID": None}, "NetworkID must be 64 hex digits"),
        ({"NetworkID": 7}, "NetworkID must be a string"),
        ({"NetworkID": "AB" * 32}, "NetworkID must be 64 hex digits"),
        ({"IPv4Data": []}, "Docker has allotted no IPv4 subnet"),
        ({"IPv4Data": [{"Pool": "0.0.0.0/0"}]}, "Docker has allotted no IPv4 subnet"),
        ({"IPv4Data": [{"Pool": "x"}]}, "invalid subnet"),
        ({"IPv4Data": [{"Pool": "10.5.0.0/16", "Gateway": "10.9.0.1/16"}]}, "no matching subnet"),
        ({"IPv4Data": "x"}, "IPv4Data must be a list of objects"),
        ({"IPv4Data": [{"Pool": "192.0.2.0/25"}]}, "an address or route of this host"),
        ({"Options": {"com.docker.network.generic": {"colour": "blue"}}}, 'option "colour"'),
        ({"Options": {"com.docker.network.generic": {"com.datapath.mode": 1}}}, "must be a string"),
        ({"Options": {"com.docker.network.generic": []}}, "must be an object"),
        ({"Options": {"com.docker.network.internal": "yes"}}, "must be true or false"),
        ({"Options": {"com.docker.network.enable_ipv6": True}}, "Docker has allotted no IPv6 subnet"),
        ({"Options": 1}, "Options must be an object"),
    ],
)
def test_a_network_that_cannot_be_is_refused_and_nothing_is_made(changes: dict[str, Any], says: str) -> None:
    door = Door()
    fields = {"NetworkID": NETWORK, "Options": {}, "IPv4Data": [{"Pool": "10.5.0.0/16"}]}
    assert says in door.refused("CreateNetwork", **(fields | changes))
    assert NETWORK not in door.engine.state.networks and door.changes == 0


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN,}', b"x" * (1 << 20)]
)
def test_a_body_that_is_no_object_is_refused_in_a_line(body: bytes) -> None:
    status, reply = Door().raw("NetworkDriver.Join", body)
    assert (
        status == HTTPStatus.BAD_REQUEST
        and reply["Err"].startswith("the request is no")
        and len(reply["Err"]) < 300
    )


def test_unknown_methods_are_not_found_and_a_get_is_not_allowed() -> None:
    door = Door()
    for name in ("NetworkDriver.Nothing", "IpamDriver.RequestPool", "", "../../etc/passwd", "x" * 5000):
        status, reply = door.raw(name)
        assert status == HTTPStatus.NOT_FOUND and "has no method" in reply["Err"] and len(reply["Err"]) < 200
    assert door.raw("Plugin.Activate", verb="GET")[0] == HTTPStatus.METHOD_NOT_ALLOWED


@pytest.mark.parametrize("key", ["../../etc", "", "relative", "/run/docker/../../x", "/run/\0"])
def test_a_sandbox_at_no_path_is_refused(key: str) -> None:
    door = Door()
    door.network()
    asked = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    door.ask("CreateEndpoint", **asked, Interface={"Address": "10.5.0.2/16"})
    assert "invalid network namespace" in door.refused("Join", **asked, SandboxKey=key)
    assert not door.rows[ENDPOINT].handed_over


# ---- what Docker does not send, and what it sends again --------------------------------------------------------


def test_ports_are_published_where_docker_says_and_nowhere_else() -> None:
    door = Door()
    door.network()
    door.network(SECOND, "10.6.0.0/16")
    one, two = "1" * 64, "2" * 64
    for ident, network, address in ((one, NETWORK, "10.5.0.2/16"), (two, SECOND, "10.6.0.2/16")):
        reply = door.endpoint(ident, network, address, "8080:80")
        assert reply["Gateway"] == address.replace(".2/16", ".1")
    assert door.published() == {}
    for ident in (one, two, one):
        door.ask("ProgramExternalConnectivity", NetworkID=NETWORK, EndpointID=ident, Options={})
        assert door.published() == {ident: ["8080:80/tcp"]}
    door.ask("RevokeExternalConnectivity", NetworkID=NETWORK, EndpointID=one)
    assert door.published() == {}
    door.ask("DeleteEndpoint", NetworkID=NETWORK, EndpointID=one)
    door.ask("Leave", NetworkID=SECOND, EndpointID=two)
    door.ask("DeleteNetwork", NetworkID=SECOND)
    assert door.rows == {} and not door.engine.state.sandboxes


def test_an_address_that_docker_gives_out_again_is_the_new_endpoints_and_so_are_its_ports() -> None:
    door = Door()
    door.network()
    for ident, sandbox in ((ENDPOINT, "one"), (SECOND, "two")):
        door.endpoint(ident, NETWORK, "10.5.0.2/16", "8080:80", sandbox=sandbox)
        door.ask("ProgramExternalConnectivity", NetworkID=NETWORK, EndpointID=ident)
        assert door.published() == {ident: ["8080:80/tcp"]} and list(door.rows) == [ident]


def test_a_port_that_another_container_has_is_refused_with_its_name() -> None:
    door = Door()
    door.network()
    door.endpoint(ENDPOINT, NETWORK, "10.5.0.2/16", "8080:80", sandbox="one")
    door.ask("ProgramExternalConnectivity", NetworkID=NETWORK, EndpointID=ENDPOINT)
    door.endpoint(SECOND, NETWORK, "10.5.0.3/16", "8080:80", sandbox="two")
    line = door.refused("ProgramExternalConnectivity", NetworkID=NETWORK, EndpointID=SECOND)
    assert "8080" in line and 'container "one"' in line


def test_what_is_asked_again_is_the_same_and_what_is_not_there_is_no_fault() -> None:
    door = Door()
    for _ in range(2):
        door.network()
    assert "already" in door.refused(
        "CreateNetwork", NetworkID=NETWORK, Options={}, IPv4Data=[{"Pool": "10.9.0.0/16"}]
    )
    assert door.endpoint(ENDPOINT, NETWORK, "10.5.0.2/16") == door.endpoint(ENDPOINT, NETWORK, "10.5.0.2/16")
    for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
        for ident in (SECOND, ENDPOINT, ENDPOINT):
            assert door.ask(method, NetworkID=NETWORK, EndpointID=ident) == {}
    for _ in range(2):
        door.ask("DeleteNetwork", NetworkID=NETWORK)
    assert "not found" in door.refused("ProgramExternalConnectivity", NetworkID=NETWORK, EndpointID=ENDPOINT)


# ---- names ---------------------------------------------------------------------------------------------------


def test_names_and_labels_that_docker_tells_are_shown_and_one_of_our_own_stays() -> None:
    door = Door()
    door.engine.network("mine")
    door.network()
    door.network(SECOND, "10.6.0.0/16")
    door.endpoint(ENDPOINT, NETWORK, "10.5.0.2/16", sandbox="one")
    networks = {NETWORK: "shop", SECOND: "mine", "8" * 64: "y"}
    known = daemon.Known({ENDPOINT: "web", "9" * 64: "x"}, networks, frozenset(), {ENDPOINT: {"app": "web"}})
    state = door.engine.state
    assert [s.label for s in names.named(state, known).sandboxes.values()] == ["web"]
    assert names.of_networks(state, known) == {NETWORK: "shop"}
    assert list(names.labels_of(state, known).values()) == [{"app": "web"}]


@pytest.mark.parametrize(
    ("environment", "paths"),
    [
        ({}, ("/run/docker.sock", "/var/run/docker.sock")),
        ({"DOCKER_HOST": "unix:///x.sock"}, ("/x.sock",)),
        ({"DOCKER_HOST": "tcp://elsewhere:1"}, ("/run/docker.sock", "/var/run/docker.sock")),
    ],
)
def test_the_daemon_is_asked_where_its_client_would(
    environment: dict[str, str], paths: tuple[str, ...]
) -> None:
    assert daemon.sockets(environment) == paths
    assert daemon.ask({"DOCKER_HOST": "unix:///nowhere/at/all"}) is None
