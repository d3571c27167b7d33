# SPDX-License-Identifier: Apache-2.0
"""S26 by other doors: containers of CNI runtimes and podman are behind services. Docker's are in test_docker.py."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.net.doors import Cni, Netavark, Refused, Space, spaces_of_a_test
from tests.net.hosts import Host, eventually
from tests.net.services import heard, names, server

OPTION = "com.datapath.service"
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
OF_OURS = {"com.datapath.network": "shop"}


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    shared_host.preloaded = True
    shared_host.ctl("network create --subnet 10.71.0.0/24 shop")
    shared_host.ctl("network create --subnet 10.72.0.0/24 other")
    yield shared_host
    shared_host.ctl("network rm shop other")


@pytest.fixture
def host(prepared: Host) -> Iterator[Host]:
    """With a service `web`, at port 80, that is published and has a selector."""
    prepared.ctl("service create --network shop -p 8080:80 --vip 10.71.0.9 --selector app=web web")
    yield prepared
    assert prepared.ctl("doctor") == "No problems found."
    prepared.ctl("service rm web")
    prepared.run("t", "--network shop")
    prepared.ctl("rm -f t")
    assert prepared.ctl("doctor") == "No problems found."
    assert prepared.ctl("ps -q") == ""


def backends(host: Host) -> dict[str, int]:
    """Names and weights."""
    rows = [json.loads(line) for line in host.ctl("service ps web --format json").splitlines()]
    return {row["Container"]: row["Weight"] for row in rows}


def serving(stack: ExitStack, space: Space, name: str) -> None:
    process = subprocess.Popen(["nsenter", f"--net={space.path}", *server(name)])
    stack.callback(process.wait)
    stack.callback(process.kill)


def shared(host: Host, *servers: str) -> bool:
    """Both ways in lead to each of them, and to nobody else, once they listen."""
    for place, address, port in ((host.try_, "10.71.0.9", 80), (host.outside.try_, "192.0.2.1", 8080)):

        def all_answer(place: Any = place, address: str = address, port: int = port) -> bool:
            found: Counter[str] = names(heard(place, "tcp", address, port, 30))
            return set(found) == set(servers)

        with eventually() as until:
            until(all_answer)
    return True


def test_s26_pods_are_behind_a_service_by_their_labels_or_as_they_say(
    host: Host, spaces: Callable[[], Space]
) -> None:
    cni = Cni(host, {"network": "shop"})
    labels = {"args": {"cni": {"labels": [{"key": "app", "value": "web"}, {"key": "tier", "value": "1"}]}}}
    labelled, annotated, plain = spaces(), spaces(), spaces()
    with ExitStack() as stack:
        serving(stack, labelled, "labelled")
        serving(stack, annotated, "annotated")
        cni.call("ADD", "labelled", labelled.path, more=labels)
        wishes: dict[str, Any] = {ANNOTATIONS: {OPTION: "web,weight=2", "other": "x"}}
        cni.add("annotated", annotated.path, **wishes)
        cni.add("plain", plain.path)
        assert backends(host) == {"labelled": 1, "annotated": 2}
        assert shared(host, "labelled", "annotated")
        assert host.ctl("names resolve plain tasks.web A --format {{.Data}}").count("10.71.0.") == 2
        host.ctl("service drain web labelled")
        assert shared(host, "annotated")
        host.ctl("service undrain web labelled")
        cni.delete("annotated", annotated.path)
        assert backends(host) == {"labelled": 1} and shared(host, "labelled")
        assert host.ctl("service inspect web --format {{.Backends}}").count("labelled") == 1
    labelled.delete()  # and nobody says DEL
    host.run("t", "--network shop")
    host.ctl("rm -f t")
    assert backends(host) == {}
    cni.delete("labelled")
    cni.delete("plain", plain.path)


def test_s26_each_container_of_a_configuration_is_behind_its_service(
    host: Host, spaces: Callable[[], Space]
) -> None:
    cni = Cni(host, {"network": "shop", "service": "web"})
    cni.add("one", (one := spaces()).path)
    cni.call("ADD", "two", (two := spaces()).path, more={"args": {"cni": {"service": "web,weight=9"}}})
    assert backends(host) == {"one": 1, "two": 9}
    for name, place in (("one", one), ("two", two)):
        cni.delete(name, place.path)
    assert backends(host) == {}


def test_s26_podmans_containers_are_behind_a_service_of_their_network(
    host: Host, spaces: Callable[[], Space]
) -> None:
    podman = Netavark(host)
    podman.create("front", options={**OF_OURS, OPTION: "web"}, ipam_options={"driver": "none"})
    one, two = spaces(), spaces()
    with ExitStack() as stack:
        serving(stack, one, "one")
        serving(stack, two, "two")
        requests = {name: podman.request(name, "front", "eth0") for name in ("one", "two")}
        requests["two"]["network_options"]["options"] = {OPTION: "web,weight=2"}
        for name, place in (("one", one), ("two", two)):
            podman.call("setup", place.path, request=requests[name])
        assert backends(host) == {"one": 1, "two": 2} and shared(host, "one", "two")
        podman.call("teardown", two.path, request=requests["two"])
        assert backends(host) == {"one": 1} and shared(host, "one")
    podman.call("teardown", one.path, request=requests["one"])
    assert backends(host) == {}
    podman.remove("front")


@pytest.mark.parametrize(
    ("network", "said", "service"),
    [
        ("shop", "no such service: nobody", "nobody"),
        ("other", "that is on network shop", "web"),
        ("shop", "invalid weight", "web,weight=0"),
        ("shop", "specified multiple times", "web;web"),
    ],
)
def test_s32_a_service_that_cannot_be_joined_is_refused_by_every_door(
    host: Host, spaces: Callable[[], Space], network: str, said: str, service: str
) -> None:
    space = spaces()
    with pytest.raises(Refused, match=said):
        Cni(host, {"network": network, "service": service}).add("pod", space.path)
    podman = Netavark(host)
    options = {"com.datapath.network": network, OPTION: service}
    podman.create("front", options=options, ipam_options={"driver": "none"})
    with pytest.raises(Refused, match=said):
        podman.call("setup", space.path, request=podman.request("c", "front", "eth0"))
    podman.remove("front")
    long = f'run -d --network "name={network},\\"driver-opt={OPTION}={service}\\"" sleep 9'
    assert said in host.refused(long)
    assert host.ctl("ps -aq") == "" and "eth0" not in space.sh("ip -br link")


def test_s26_a_network_of_a_runtime_stays_while_it_has_a_service(
    host: Host, spaces: Callable[[], Space]
) -> None:
    cni, space = Cni(host, {"subnet": "10.73.0.0/24"}), spaces()
    cni.add("pod", space.path)
    host.ctl("service create --network net --selector app=web api")
    cni.delete("pod", space.path)
    assert host.ctl("service ls --format {{.Name}}").split() == ["api", "web"]
    cni.add("pod", space.path)
    host.ctl("service rm api")
    cni.delete("pod", space.path)
    assert "net" not in host.ctl("network ls --format {{.Name}}").split()
