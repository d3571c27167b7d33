# SPDX-License-Identifier: Apache-2.0
"""S26: services, one name and one address in front of several containers of a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.net.hosts import Host

NET = "--network shop"


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    shared_host.ctl("network create --ipv6 --subnet 10.71.0.0/24 --subnet fd71::/64 shop")
    yield shared_host
    shared_host.ctl("network rm shop")


@pytest.fixture(autouse=True)
def clean(prepared: Host) -> Iterator[None]:
    """Each test leaves nothing, and nothing that doctor finds: before and after all of it is gone."""
    yield
    assert prepared.ctl("doctor") == "No problems found."
    if services := prepared.ctl("service ls -q").split():
        prepared.ctl(["service", "rm", *services])
    assert prepared.ctl("doctor") == "No problems found."
    if names := prepared.ctl("ps -aq").split():
        prepared.ctl(["rm", "-f", *names])
    assert prepared.ctl("doctor") == "No problems found."


def backends(host: Host, name: str = "web") -> dict[str, Any]:
    rows = [json.loads(line) for line in host.ctl(f"service ps {name} --format json").splitlines()]
    return {row["Container"]: row for row in rows}


def vip(host: Host, name: str = "web") -> str:
    return str(json.loads(host.ctl(f"service inspect {name}"))[0]["Endpoint"]["VirtualIPs"][0]["Addr"])


def resolved(host: Host, container: str, name: str) -> list[str]:
    """The IPv4 addresses that the container is answered."""
    done = host.try_ctl(f"names resolve {container} {name} A --format json")
    return sorted(json.loads(done.stdout)["Data"].split(",")) if done.returncode == 0 else []


def test_s26_a_service_has_an_address_a_name_and_the_containers_that_join_it(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} -p 8080:80 web")
    assert vip(prepared) == "10.71.0.2"
    prepared.run("w1", f"{NET} --service web")
    prepared.run("w2", f"{NET} --service web,weight=3")
    prepared.run("other", NET)
    assert {name: row["Weight"] for name, row in backends(prepared).items()} == {"w1": 1, "w2": 3}
    assert resolved(prepared, "other", "web") == ["10.71.0.2"]
    both = sorted(prepared.address(name, "shop") for name in ("w1", "w2"))
    assert resolved(prepared, "other", "tasks.web") == both
    shown = json.loads(prepared.ctl("network inspect -v shop"))[0]["Services"]["web"]
    assert (shown["VIP"], shown["Ports"]) == ("10.71.0.2", ["Target: 80, Publish: 8080"])
    assert [task["Name"] for task in shown["Tasks"]] == ["w1", "w2"]
    prepared.ctl("rm -f w1")
    assert list(backends(prepared)) == ["w2"]
    assert resolved(prepared, "other", "tasks.web") == [prepared.address("w2", "shop")]


def test_s26_containers_with_its_labels_are_behind_a_service(prepared: Host) -> None:
    prepared.run("a1", f"{NET} --label app=api --label tier=1")
    prepared.run("a2", f"{NET} --label app=api")
    prepared.ctl(f"service create {NET} --selector app=api --selector tier=1 api")
    prepared.run("a3", f"{NET} --label app=api --label tier=1")
    assert list(backends(prepared, "api")) == ["a1", "a3"]


def test_s26_a_service_without_an_address_is_the_names_of_its_containers(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} --endpoint-mode dnsrr db")
    prepared.run("d1", f"{NET} --service db")
    prepared.run("d2", f"{NET} --service db")
    both = sorted(prepared.address(name, "shop") for name in ("d1", "d2"))
    assert resolved(prepared, "d1", "db") == resolved(prepared, "d1", "tasks.db") == both
    prepared.ctl("stop -t 0 d1")
    assert resolved(prepared, "d2", "db") == [prepared.address("d2", "shop")]
    prepared.ctl("start d1")
    assert list(backends(prepared, "db")) == ["d1", "d2"]


def test_s26_a_drained_container_is_behind_a_service_until_it_ends(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} web")
    for name in ("w1", "w2"):
        prepared.run(name, f"{NET} --service web")
    prepared.ctl("service drain web w1")
    assert {name: row["State"] for name, row in backends(prepared).items()} == {"w1": "draining", "w2": "up"}
    assert prepared.ctl("service ls --format {{.Backends}}") == "1/2"
    assert prepared.ctl("doctor") == "No problems found."
    prepared.ctl("service undrain web w1")
    assert backends(prepared)["w1"]["State"] == "up"
    prepared.ctl("service drain web w1")
    prepared.ctl("stop -t 0 w1")
    prepared.ctl("start w1")
    assert backends(prepared)["w1"]["State"] == "up"


def test_s26_ports_are_published_and_taken_back(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} -p 8080:80 -p 8443:443 web")
    prepared.ctl(
        "service update --publish-add 9000-9003:9000-9003/udp --publish-rm 8443:443 --label-add a=b web"
    )
    found = json.loads(prepared.ctl("service inspect web"))[0]
    ports = {(p["Protocol"], p["PublishedPort"], p["TargetPort"]) for p in found["Endpoint"]["Ports"]}
    assert ports == {("tcp", 8080, 80), *(("udp", port, port) for port in range(9000, 9004))}
    assert found["Spec"]["Labels"] == {"a": "b"}
    assert prepared.ctl("doctor") == "No problems found."
    assert 'service "web"' in prepared.refused(f"run -d {NET} -p 8080:80 sleep 9")
    prepared.run("t", f"{NET} -p 8443:443")  # it is free again
