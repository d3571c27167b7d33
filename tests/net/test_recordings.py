# SPDX-License-Identifier: Apache-2.0
"""What real clients sent, sent to the plugins again: in any order, each twice, with real namespaces."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.net.doors import CNI_PATH, Space, found, plugin, spaces_of_a_test
from tests.net.hosts import TREE, Host

CLEAN = "No problems found.\n"


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


def requests(name: str) -> list[dict[str, Any]]:
    """In an order of chance that is the same in every run, each twice."""
    lines = (TREE / "tests/unit/data" / f"{name}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines] * 2
    random.Random(15).shuffle(found)
    return found


class Names:
    """For each recorded path of a namespace one that is there."""

    def __init__(self, spaces: Callable[[], Space]) -> None:
        self._spaces = spaces
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        if not path.startswith("/"):
            return path
        if path not in self._known:
            self._known[path] = self._spaces().path
        return self._known[path]


@pytest.mark.skipif(not found("host-local"), reason="needs containernetworking-plugins")
def test_every_request_of_containerd_and_podman_4_gets_a_well_formed_answer(
    host: Host, spaces: Callable[[], Space], tmp_path: Path
) -> None:
    """A result, nothing, or an error with a code; and what is there at the end can all be taken away."""
    host.preloaded = True
    name, added, refused = Names(spaces), 0, 0
    networks: dict[str, dict[str, Any]] = {}
    for request in requests("cni"):
        environ, sent = {**request["env"], "CNI_PATH": CNI_PATH}, request["stdin"]
        environ["CNI_NETNS"] = name(environ["CNI_NETNS"])
        verb = environ["CNI_COMMAND"]
        if verb != "VERSION":
            sent["ipam"]["dataDir"] = str(tmp_path / "ipam")
            networks[sent["name"]] = sent
        code, said = plugin(host, "ctl.cni.main", [], environ, json.dumps(sent).encode())
        answer: Any = json.loads(said) if said else None
        if code:
            assert answer.keys() <= {"cniVersion", "code", "msg", "details"}, answer
            assert isinstance(answer["code"], int) and answer["msg"], answer
            refused += 1
        elif verb == "ADD":
            assert answer["ips"] and answer["interfaces"][-1]["sandbox"] == environ["CNI_NETNS"]
            added += 1
        else:
            assert (answer is not None) == (verb == "VERSION"), answer
    assert added > 5 and refused > 5
    assert host.try_ctl("doctor").stdout == CLEAN
    for sent in networks.values():
        config = {
            key: value for key, value in sent.items() if key not in ("runtimeConfig", "prevResult", "ipam")
        }
        raw = json.dumps({**config, "cniVersion": "1.1.0"}).encode()
        assert plugin(host, "ctl.cni.main", [], {"CNI_COMMAND": "GC"}, raw) == (0, "")
    assert "cni" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN


def test_every_request_of_podman_5_gets_a_well_formed_answer(host: Host, spaces: Callable[[], Space]) -> None:
    host.preloaded = True
    name, done, refused = Names(spaces), 0, 0
    last: dict[str, dict[str, Any]] = {}
    environ = {"CONTAINERS_CONF": "/nonexistent"}
    for request in requests("netavark"):
        argv, sent = [request["argv"][0], *map(name, request["argv"][1:])], request["stdin"]
        if argv[0] != "create":
            sent["network"]["options"] = None  # one that is refused
            last[f"{sent['container_id']} {sent['network']['name']}"] = sent
        code, said = plugin(host, "ctl.netavark.main", argv, environ, json.dumps(sent).encode())
        answer: Any = json.loads(said) if said else None
        if code:
            assert answer.keys() == {"error"} and answer["error"], answer
            refused += 1
        elif argv[0] == "setup":
            (interface,) = answer["interfaces"].values()
            assert interface["mac_address"] and interface["subnets"], answer
            named = sent["network"]["dns_enabled"]
            gateways = [one["gateway"] for one in sent["network"]["subnets"]]
            assert answer["dns_server_ips"] == (gateways[:1] if named else [])
            assert answer["dns_search_domains"] == (["dns.podman"] if named else [])
            done += 1
        elif argv[0] == "create":
            assert answer["subnets"] and answer["ipam_options"] == {"driver": "host-local"}
        else:
            assert answer is None
    assert done > 5 and refused > 5
    assert host.try_ctl("doctor").stdout == CLEAN
    for sent in last.values():
        raw = json.dumps(sent).encode()
        assert plugin(host, "ctl.netavark.main", ["teardown", "/none"], environ, raw) == (0, "")
    assert "podman" not in host.ctl("ps") + host.ctl("network ls")
    assert host.try_ctl("doctor").stdout == CLEAN
