# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin's protocol: what it refuses and with which code, what it makes of real requests, what it imports."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.cni import bandwidth, config, main, version
from ctl.cni.protocol import VERSIONS, Call, CniError
from datapath.config.settings import Settings
from datapath.errors import DatapathError
from datapath.model.attachments import AttachmentRequest

ROOT = Path(__file__).parents[2]
# What containerd 1.6 and 2.1 (CRI) and podman 4.3 sent, recorded; ids are shortened.
REQUESTS = [json.loads(line) for line in (ROOT / "tests/unit/data/cni.jsonl").read_text().splitlines()]
ENVIRON = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/none",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/usr/lib/cni",
}
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "datapath"}


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str], raw: bytes
) -> tuple[int, Any]:
    """Exit code and what is printed, decoded."""
    for name in ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    code = main.run()
    said = capsys.readouterr().out
    return code, json.loads(said) if said else None


@pytest.mark.parametrize(
    ("code", "said", "environ", "change"),
    [
        (1, "incompatible CNI version '0.2.0'", {}, {"cniVersion": "0.2.0"}),
        (1, "incompatible CNI version '0.1.0'", {}, {"cniVersion": None}),
        (1, "incompatible CNI version 7", {}, {"cniVersion": 7}),
        (1, "config version 0.3.1 does not allow CHECK", {"CNI_COMMAND": "CHECK"}, {"cniVersion": "0.3.1"}),
        (1, "config version 1.0.0 does not allow GC", {"CNI_COMMAND": "GC"}, {"cniVersion": "1.0.0"}),
        (1, "config version 1.0.0 does not allow STATUS", {"CNI_COMMAND": "STATUS"}, {"cniVersion": "1.0.0"}),
        (2, 'colour: "blue" is not supported', {}, {"colour": "blue"}),
        (2, "isGateway: false is not supported: datapath has no Linux bridge", {}, {"isGateway": False}),
        (2, "vlan: 7 is not supported", {}, {"vlan": 7}),
        (2, "runtimeConfig.deviceid:", {}, {"runtimeConfig": {"deviceID": "0000:00"}}),
        (2, "runtimeConfig.ipranges:", {}, {"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/16"}]]}}),
        (
            2,
            "portIsolation: true is not supported: datapath has no Linux bridge",
            {},
            {"portIsolation": True},
        ),
        (2, "vlanTrunk: [{", {}, {"vlanTrunk": [{"id": 7}]}),
        (4, "unknown CNI_COMMAND: ADDD", {"CNI_COMMAND": "ADDD"}, {}),
        (4, "unknown CNI_COMMAND: it is empty", {"CNI_COMMAND": ""}, {}),
        (4, "missing: CNI_CONTAINERID, CNI_NETNS", {"CNI_CONTAINERID": "", "CNI_NETNS": ""}, {}),
        (4, 'invalid CNI_CONTAINERID: "../x"', {"CNI_CONTAINERID": "../x"}, {}),
        (4, 'invalid CNI_IFNAME: "eth0/1"', {"CNI_IFNAME": "eth0/1"}, {}),
        (4, 'invalid CNI_IFNAME: ".."', {"CNI_IFNAME": ".."}, {}),
        (4, 'invalid CNI_IFNAME: "abcdefghijklmnop"', {"CNI_IFNAME": "abcdefghijklmnop"}, {}),
        (4, "invalid CNI_NETNS: /run/netns/none is no network namespace", {}, {}),
        (4, "is the host's own network namespace", {"CNI_NETNS": "/proc/self/ns/net"}, {}),
        (4, 'invalid CNI_ARGS: "x" is no KEY=VALUE', {"CNI_ARGS": "IgnoreUnknown=1;x"}, {}),
        (7, 'invalid network name "../x"', {}, {"name": "../x"}),
        (7, "invalid network name null", {}, {"name": None}),
        (7, 'mtu: "big" is no int', {}, {"mtu": "big"}),
        (7, "mtu: true is no int", {}, {"mtu": True}),
        (
            7,
            "network: that network is there already, so subnet",
            {},
            {"network": "a", "subnet": "10.1.0.0/16"},
        ),
        (7, "runtimeConfig: [] is no object", {"CNI_COMMAND": "ADD"}, {"runtimeConfig": [1]}),
        (7, "prevResult is missing", {"CNI_COMMAND": "CHECK"}, {}),
        (
            50,
            "IPAM plugin nosuch is not in CNI_PATH",
            {"CNI_COMMAND": "STATUS"},
            {"ipam": {"type": "nosuch"}},
        ),
        (50, "ipam: {} names no plugin", {"CNI_COMMAND": "STATUS"}, {"ipam": {}}),
    ],
)
def test_what_cannot_be_is_refused_with_the_code_of_the_specification(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    said: str,
    environ: dict[str, str],
    change: dict[str, Any],
) -> None:
    asked = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    raw = json.dumps(asked).encode()
    exit_code, error = answer(monkeypatch, capsys, {"CNI_COMMAND": "ADD", **ENVIRON, **environ}, raw)
    said = said.replace("[] is", "[1] is")
    assert (exit_code, error["code"]) == (1, code) and said in error["msg"], error
    assert error["cniVersion"] in VERSIONS and error.keys() <= {"cniVersion", "code", "msg", "details"}


# What may be where something else belongs.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, "", "x", "1"),
    *(
        [],
        [1],
        ["x"],
        [None],
        [[]],
        [{}],
        {},
        {"x": 1},
        {"cni": 1},
        {"cni": {"ips": 1}},
        {"net": 1},
        {"net": "a"},
    ),
)


def every_odd_request() -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Changes of the configuration, and what an IPAM plugin has answered."""
    for key in config._OWN.keys() | config._OF_BRIDGE.keys() | config._GENERAL - {"cniVersion"}:
        yield from (({key: value}, None) for value in ODD)
    ports = [{"hostPort": v, "containerPort": w} for v in ODD for w in (v, 80)]
    ports += [{"hostPort": 80, "containerPort": 80, name: v} for v in ODD for name in ("protocol", "hostIP")]
    for key in config._WISHES | config._OF_IPAM | config._IGNORED:
        yield from (({"runtimeConfig": {key: value}}, None) for value in (*ODD, *([port] for port in ports)))
    address = {"address": "10.1.1.1/24"}
    for value in ODD:
        for name in ("ips", "routes", "dns"):
            yield {"ipam": {"type": "x"}}, {name: value}
            yield {"ipam": {"type": "x"}}, {"ips": [address], name: value}
        yield {"ipam": {"type": "x"}}, {"ips": [{"address": value, "gateway": value}]}
        yield {"ipam": {"type": "x"}}, {"ips": [{**address, "gateway": value}], "routes": [{"dst": value}]}


def test_a_value_of_another_kind_is_refused_or_understood_and_never_a_crash() -> None:
    for change, given in every_odd_request():
        asked = Call({"CNI_COMMAND": "ADD", **ENVIRON}, json.dumps({**CONFIG, **change}).encode())
        try:
            asked.check()
            config.check(asked)
            config.attachment(asked, given)
            config.dns(asked, given, "10.1.1.1", "")
        except (CniError, DatapathError):
            continue
        except Exception as error:
            raise AssertionError(f"{change}, {given}: {error!r}") from error


@pytest.mark.parametrize(
    ("routes", "refused"),
    [
        ([{"dst": "0.0.0.0/0"}], ""),
        ([{"dst": "10.0.0.0/8", "gw": "10.88.0.1", "scope": 0, "table": 254, "mtu": 0, "priority": 0}], ""),
        ([{"dst": "10.0.0.0/8", "gw": "10.88.0.9"}], "all routes lead to the network's gateway"),
        ([{"dst": "0.0.0.0/0", "priority": 100}], 'ipam.routes: {"dst": "0.0.0.0/0", "priority": 100}'),
        ([{"dst": "0.0.0.0/0", "mtu": 1400}], "there are dst and gw"),
        ([{"dst": "0.0.0.0/0", "advmss": 1400}], "there are dst and gw"),
        ([{"dst": "0.0.0.0/0", "table": 7}], "there are dst and gw"),
        ([{"dst": "10.88.0.0/16", "scope": 253}], "there are dst and gw"),
    ],
)
def test_routes_of_an_ipam_plugin_are_served_or_refused(routes: list[dict[str, Any]], refused: str) -> None:
    asked = Call(
        {"CNI_COMMAND": "ADD", **ENVIRON}, json.dumps({**CONFIG, "ipam": {"type": "host-local"}}).encode()
    )
    asked.check()
    given = {"ips": [{"address": "10.88.0.7/16", "gateway": "10.88.0.1"}], "routes": routes}
    try:
        config.attachment(asked, given)
    except CniError as error:
        assert error.code == 2 and refused and refused in error.message, error.message
    else:
        assert not refused


@pytest.mark.parametrize("given", [["a", "b"], {"net": ["a", "b"]}])
def test_aliases_come_as_a_list_or_by_network(given: object) -> None:
    """The conventions have a list; podman names networks."""
    raw = json.dumps({**CONFIG, "runtimeConfig": {"aliases": given}}).encode()
    asked = Call({"CNI_COMMAND": "ADD", **ENVIRON}, raw)
    asked.check()
    assert config.attachment(asked, None).endpoint.aliases == ("a", "b")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": ' + b'"x' * 9]
)
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_what_is_no_json_object_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, raw: bytes
) -> None:
    code, error = answer(monkeypatch, capsys, {"CNI_COMMAND": verb, **ENVIRON}, raw)
    assert (code, error["code"]) == (1, 6)


@pytest.mark.parametrize("raw", [b"", *(json.dumps({"cniVersion": v}).encode() for v in VERSIONS)])
def test_version_says_which_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    code, said = answer(monkeypatch, capsys, {"CNI_COMMAND": "VERSION", "CNI_NETNS": "dummy"}, raw)
    asked = json.loads(raw)["cniVersion"] if raw else VERSIONS[-1]
    assert (code, said) == (0, {"cniVersion": asked, "supportedVersions": list(VERSIONS)})


def title(request: dict[str, Any]) -> str:
    return f"{request['client']}, {request['env']['CNI_CONTAINERID']}, {request['env']['CNI_IFNAME']}"


def call(request: dict[str, Any]) -> Call:
    """The recorded request, read and checked."""
    made = Call(request["env"], json.dumps(request["stdin"]).encode())
    made.check()
    return made


@pytest.mark.parametrize("request_", [r for r in REQUESTS if r["env"]["CNI_COMMAND"] == "ADD"], ids=title)
def test_every_recorded_request_for_a_container_is_understood(request_: dict[str, Any]) -> None:
    """Keys in either case, wishes of both clients."""
    asked, sent = call(request_), request_["stdin"]
    wishes = sent.get("runtimeConfig", {})
    config.check(asked)
    made = config.attachment(asked, {"ips": [{"address": "10.88.0.7/16", "gateway": "10.88.0.1"}]})
    assert isinstance(made, AttachmentRequest) and made.network is not None
    assert made.key == f"{sent['name']}/{asked.container}/{asked.ifname}"
    assert (made.path, made.shared) == (asked.netns, "K8S_POD_NAMESPACE" not in request_["env"]["CNI_ARGS"])
    assert made.network.subnets == ("10.88.0.0/16",) and made.network.gateways == ("10.88.0.1",)
    wanted = [one for one in wishes.get("portMappings", ()) if (one.get("hostPort") or one.get("HostPort"))]
    assert len(made.ports) == len(wanted)
    for text, one in zip(made.ports, wanted, strict=True):
        port = {key.lower(): value for key, value in one.items()}
        address = f"{port['hostip']}:" if port.get("hostip") else ""
        assert text == f"{address}{port['hostport']}:{port['containerport']}/{port['protocol']}"
    assert made.endpoint.aliases == tuple(wishes.get("aliases", {}).get(sent["name"], ()))
    assert made.endpoint.mac == dict(w.split("=") for w in asked.environ["CNI_ARGS"].split(";")).get(
        "MAC", ""
    )
    limits = [option for option in made.endpoint.driver_options if "_rate" in option or "_burst" in option]
    assert limits == (
        ["com.datapath.ingress_rate=10000000", "com.datapath.egress_rate=5000000"]
        if "bandwidth" in wishes
        else []
    )


def behind(**change: Any) -> AttachmentRequest:
    """What a call behind another plugin asks for. `prevResult`: that one's result."""
    previous = {"ips": [{"address": "10.9.0.7/24"}, {"address": "fd09::7/64"}]}
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    given = {**CONFIG, **ports, "prevResult": previous, **change}
    asked = Call({"CNI_COMMAND": "ADD", **ENVIRON, "CNI_ARGS": "IP=10.9.0.7"}, json.dumps(given).encode())
    asked.check()
    config.check(asked)
    return config.beside(asked, given["prevResult"])


def test_behind_another_plugin_the_ports_alone_are_asked_for() -> None:
    """On a network beside, of the IP versions that the container has; addresses are the other plugin's."""
    made = behind()
    assert made.network is not None and (made.network.ipv4, made.network.ipv6) == (True, True)
    assert made.ports == ("8080:80/tcp",) and not made.endpoint.ip
    assert {"com.datapath.beside=true", "com.docker.network.bridge.enable_icc=false"} <= {
        *made.network.options
    }
    six = behind(prevResult={"ips": [{"address": "fd09::7/64"}]}).network
    assert six is not None and (six.ipv4, six.ipv6) == (False, True)
    chosen = behind(subnet="10.71.0.0/24", icc=True).network
    assert chosen is not None and chosen.subnets == ("10.71.0.0/24",)
    assert "com.docker.network.bridge.enable_icc=true" in chosen.options
    for change, said in (
        ({"ipam": {"type": "host-local"}}, "ipam: the container is on another plugin's network"),
        ({"network": "shop"}, "network: the container is on another plugin's network"),
        ({"internal": True}, "internal: the container is on another plugin's network"),
        ({"prevResult": {}}, "prevResult has no addresses"),
        ({"prevResult": {"ips": [{"address": "x"}]}}, '"x" is no IP address'),
    ):
        with pytest.raises(CniError, match=re.escape(said)) as caught:
            behind(**change)
        assert caught.value.code == 7


def test_other_recorded_requests_are_read() -> None:
    others = [r for r in REQUESTS if r["env"]["CNI_COMMAND"] in ("DEL", "CHECK", "GC", "STATUS")]
    assert {r["env"]["CNI_COMMAND"] for r in others} == {"DEL", "CHECK", "GC", "STATUS"}
    for request in others:
        asked = call(request)
        assert config.key(asked).startswith(f"{request['stdin']['name']}/")
        config.check(asked)


def test_status_looks_where_the_library_keeps_its_state() -> None:
    assert str(Settings().state_dir) == version.STATE_DIR


@pytest.mark.parametrize("verb", ["VERSION", "STATUS"])
def test_what_is_asked_again_and_again_imports_nothing_heavy(verb: str) -> None:
    """Python's own start is most of its time: no module of the library, and few of others."""
    code = (
        "import sys; before = {*sys.modules}; sys.path.insert(0, sys.argv[1]); from ctl.cni import main; "
        "code = main.run(); print(*({*sys.modules} - before), file=sys.stderr); sys.exit(code)"
    )
    argv = [sys.executable, "-I", "-c", code, str(ROOT)]
    environ = {"CNI_COMMAND": verb}
    done = subprocess.run(argv, input=json.dumps(CONFIG), env=environ, capture_output=True, text=True)
    imported = {*done.stderr.split()}
    assert {
        name for name in imported if name.partition(".")[0] in ("datapath", "click", "cffi", "pyroute2")
    } == set()
    assert not imported & {
        "dataclasses",
        "inspect",
        "typing",
        "sqlite3",
        "ipaddress",
        "subprocess",
        "logging",
    }
    assert len(imported) < 40, sorted(imported)


LIMITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "in the specification's spelling": (
        {"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 3000, "egressBurst": 4000},
        ["ingress_rate=1000", "ingress_burst=2000", "egress_rate=3000", "egress_burst=4000"],
    ),
    "in containerd's, without a choice of burst": (
        {"IngressRate": 10**7, "IngressBurst": 2**32 - 1, "EgressRate": 0, "EgressBurst": 0},
        ["ingress_rate=10000000"],
    ),
    "without a burst": ({"EgressRate": 10**6}, ["egress_rate=1000000"]),
    "more than any device has": ({"ingressRate": 10**15}, ["ingress_rate=1000000000000"]),
    "none": ({}, []),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("place", ["runtimeConfig", "the configuration itself"])
def test_a_limit_of_bandwidth_is_an_option_of_the_endpoint(name: str, place: str) -> None:
    given, wanted = LIMITS[name]
    if place == "runtimeConfig":
        asked = Call(
            {"CNI_COMMAND": "ADD", **ENVIRON},
            json.dumps({**CONFIG, "egressRate": 5, "runtimeConfig": {"Bandwidth": given}}).encode(),
        )
        wanted = wanted or ["egress_rate=5"]
    else:
        keys = {name.lower(): name for name in bandwidth.KEYS}
        named = {keys[name.lower()]: value for name, value in given.items()}
        asked = Call({"CNI_COMMAND": "ADD", **ENVIRON}, json.dumps({**CONFIG, **named}).encode())
    asked.check()
    config.check(asked)
    _, *options = config.attachment(asked, None).endpoint.driver_options
    assert options == [f"com.datapath.{one}" for one in wanted]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"ingressBurst": 1}, "ingressRate"),
        ({"egressRate": 1, "egressBurst": 2**35}, "4 GiB"),
        ({"egressRate": -1}, "egressRate"),
        ({"ingressRate": "10M"}, "ingressRate"),
        ({"ingressRate": True}, "ingressRate"),
        ({"ingress": 1}, "ingress"),
        ([1], "object"),
    ],
)
def test_a_limit_of_bandwidth_that_is_none_is_refused(given: Any, word: str) -> None:
    asked = Call(
        {"CNI_COMMAND": "ADD", **ENVIRON},
        json.dumps({**CONFIG, "runtimeConfig": {"bandwidth": given}}).encode(),
    )
    asked.check()
    config.check(asked)
    with pytest.raises(CniError, match=word) as refused:
        config.attachment(asked, None)
    assert refused.value.code == 7


def test_behind_another_plugin_there_is_no_limit_of_bandwidth() -> None:
    for more in ({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}, {"egressRate": 1}):
        asked = Call({"CNI_COMMAND": "ADD", **ENVIRON}, json.dumps({**CONFIG, **more}).encode())
        asked.check()
        with pytest.raises(CniError, match="bandwidth") as refused:
            config.refuse_limits(asked)
        assert refused.value.code == 2


def blocks() -> list[dict[str, Any]]:
    """The configurations that the pages show, each as the plugin gets it."""
    found = []
    for name in ("kubernetes.md", "podman.md"):
        for text in re.findall(
            r"^```json\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL
        ):
            given = json.loads(text)
            shared = {key: given[key] for key in ("cniVersion", "name")}
            found += [{**shared, **plugin} for plugin in given.get("plugins", [given])]
    return [given for given in found if given["type"] == "datapath"]


def test_the_configurations_that_the_pages_show_are_understood() -> None:
    assert len(blocks()) == 5
    for given in blocks():
        asked = Call({"CNI_COMMAND": "ADD", **ENVIRON}, json.dumps(given).encode())
        asked.check()
        config.check(asked)
        ipam = {"ips": [{"address": "10.85.0.2/16"}]} if "ipam" in given else None
        assert (config.attachment(asked, ipam).network is None) == ("network" in given)


def test_the_page_names_every_key_capability_and_version() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    words = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.findall(r"[\w.]+", code)}
    assert config._OWN.keys() | config._OF_BRIDGE.keys() <= words
    assert {word.lower() for word in words} >= config._WISHES
    assert all(version in page for version in VERSIONS)
