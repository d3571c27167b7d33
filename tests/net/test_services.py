# SPDX-License-Identifier: Apache-2.0
"""S26: services, one name and one address in front of several containers of a network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE, Popen
from typing import Any

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.kernel import abi
from tests.net import look
from tests.net.hosts import HOST, OUTSIDE, Host, eventually
from tests.net.services import failed, heard, keeper, keeping, names, serve

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


def vips(host: Host, name: str = "web") -> list[str]:
    found = json.loads(host.ctl(f"service inspect {name}"))[0]["Endpoint"]["VirtualIPs"]
    return [one["Addr"] for one in found]


@contextlib.contextmanager
def kept(host: Host, container: str, argv: list[str]) -> Iterator[tuple[Popen[str], list[str]]]:
    """Connections that a container keeps, and which backend each is to."""
    enter = ["nsenter", f"--net=/proc/{host.process(container)}/ns/net", *argv]
    process = Popen(enter, stdin=PIPE, stdout=PIPE, text=True)
    with keeping(process) as found:
        yield found


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


def test_s26_a_selector_that_chooses_nobody_is_a_warning_of_one_line(prepared: Host) -> None:
    done = prepared.try_ctl(f"service create {NET} --selector app=nobody api")
    assert done.returncode == 0
    assert done.stderr == (
        "WARNING: no running container on the network has the labels app=nobody: service api has no backend\n"
    )


def test_s26_a_container_is_refused_that_two_services_of_one_port_would_have(prepared: Host) -> None:
    """By its labels, by its name, or as it joins their network; in one line, and nothing is changed."""
    prepared.ctl(f"service create {NET} -p 8080:80 --selector app=web web")
    prepared.ctl(f"service create {NET} -p 8081:80 --selector tier=api api")
    prepared.ctl(f"service create {NET} -p 8082:81 plain")
    both = "--label app=web --label tier=api"
    prepared.ctl("network create --subnet 10.72.0.0/24 waiting")
    prepared.run("u", f"--network waiting {both}")
    prepared.run("t", f"{NET} --service plain --label app=web")
    before = look.database(prepared), prepared.ctl("service ls")
    for command in (
        f"run -d --name x {NET} {both} sleep 3600",
        f"run -d --name x {NET} --service api --label app=web sleep 3600",
        "network connect shop u",
        "service update --publish-add 8083:80 plain",
        f"service create {NET} -p 8083:80 --selector app=web more",
    ):
        said = prepared.refused(command)
        assert re.search(r"container [a-z] cannot be in services .*: both publish its port 80/tcp", said), (
            said
        )
        assert (look.database(prepared), prepared.ctl("service ls")) == before, command
    prepared.ctl("rm -f u")
    prepared.ctl("network rm waiting")


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


# ---- connections ---------------------------------------------------------------------------------------------------


@pytest.fixture
def three(prepared: Host) -> Host:
    """A service with three backends at port 80, published at 8080, and a client on its network."""
    prepared.ctl(f"service create {NET} -p 8080:80 -p 8080:80/udp web")
    for name in ("w1", "w2", "w3"):
        serve(prepared, name, f"{NET} --service web", "shop")
    prepared.run("client", NET)
    return prepared


def test_s26_connections_are_shared_and_backends_see_the_client(three: Host) -> None:
    """From members, from the host, and from outside by a published port."""
    inside, addresses = three.address("client", "shop"), vips(three)
    found = heard(lambda argv: three.try_in("client", argv), "tcp", addresses[0], 80, 600)
    assert {text.split()[1] for text in found} == {f"::ffff:{inside}"}
    assert shares(names(found)) and sum(found.values()) == 600
    for place, address, port, source in (
        (three.try_, addresses[0], 80, "10.71.0.1"),
        (three.outside.try_, HOST, 8080, OUTSIDE),
    ):
        for proto in ("tcp", "udp"):
            found = heard(place, proto, address, port, 60)
            assert {text.split()[1] for text in found} == {f"::ffff:{source}"}, (proto, found)
            assert set(names(found)) == {"w1", "w2", "w3"}
    six = heard(lambda argv: three.try_in("client", argv), "tcp", addresses[1], 80, 30)
    assert set(names(six)) == {"w1", "w2", "w3"}
    assert three.try_in("client", f"ping -c 1 -W 5 {addresses[0]}").returncode == 0
    opened = {name: row["Opened"] for name, row in backends(three).items()}
    assert all(opened.values()) and sum(opened.values()) >= 600


def shares(found: Counter[str], least: float = 0.25, most: float = 0.42) -> bool:
    """Of three backends, as far as six hundred connections tell: 30 to 37 % of three thousand."""
    return all(least < count / sum(found.values()) < most for count in found.values()) and len(found) == 3


def test_s26_a_backend_reaches_itself_by_its_service(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} web")
    serve(prepared, "w1", f"{NET} --service web", "shop")
    found = heard(lambda argv: prepared.try_in("w1", argv), "tcp", vip(prepared), 80, 5)
    assert names(found) == {"w1": 5}


def test_s26_no_connection_fails_while_a_backend_is_drained(three: Host) -> None:
    """Those that are open go on, and new ones go elsewhere."""
    address = vip(three)
    with kept(three, "client", keeper(address, 80, 30)) as (process, where):
        assert set(where) == {"w1", "w2", "w3"}
        three.ctl("service drain web w1")
        found = names(heard(lambda argv: three.try_in("client", argv), "tcp", address, 80, 90))
        assert set(found) == {"w2", "w3"} and sum(found.values()) == 90
        three.ctl("service undrain web w1")
        assert failed(process) == []


def test_s26_of_a_backend_that_is_killed_only_its_own_connections_fail(three: Host) -> None:
    address = vip(three)
    with kept(three, "client", keeper(address, 80, 30)) as (process, where):
        os.kill(three.process("w2"), signal.SIGKILL)
        with eventually() as until:
            until(lambda: "w2" not in backends(three))
        found = names(heard(lambda argv: three.try_in("client", argv), "tcp", address, 80, 60))
        assert set(found) == {"w1", "w3"}
        assert {where[number] for number in failed(process)} <= {"w2"}


def test_s26_without_a_backend_a_client_is_refused_at_once(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} -p 8080:80 web")
    prepared.run("client", NET)
    for place, address, port in (
        (lambda argv: prepared.try_in("client", argv), vip(prepared), 80),
        (prepared.outside.try_, HOST, 8080),
    ):
        assert heard(place, "tcp", address, port, 2) == {"ConnectionRefusedError": 2}
    assert prepared.drops()["DROP_NO_BACKEND"] >= 4


def test_s26_a_client_comes_to_the_same_backend_while_its_affinity_lasts(three: Host) -> None:
    three.ctl("service update --affinity 1h web")
    found = names(heard(lambda argv: three.try_in("client", argv), "tcp", vip(three), 80, 30))
    assert len(found) == 1


# ---- what is wrong, and who comes at once --------------------------------------------------------------------------


def test_s30_rows_of_services_that_are_gone_wrong_or_too_many_are_repaired(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} -p 8080:80 web")
    prepared.run("w1", f"{NET} --service web")
    with Dataplane(prepared.bpffs / "datapath") as dataplane:
        backend, row = next(iter(dataplane.backends.items()))
        slots = next(key for key in dataplane.slots if key.chunk == 5)
        dataplane.backends[backend] = row._replace(weight=9)
        dataplane.backends[abi.backend_key(9999)] = row
        del dataplane.slots[slots]
        service, value = next(iter(dataplane.services.items()))
        dataplane.services[service] = value._replace(seed=7)
        vip_key = next(key for key, one in dataplane.endpoints.items() if not one.ifindex)
        del dataplane.endpoints[vip_key]
    found = prepared.try_ctl("doctor")
    assert found.returncode != 0
    for name in ("backends", "slots", "services", "endpoints"):
        assert f"map {name}," in found.stdout
    prepared.ctl("reconcile")


def test_commands_about_one_service_at_once_leave_what_each_has_done(prepared: Host) -> None:
    prepared.ctl(f"service create {NET} web")
    commands = [f"run -d --name w{number} {NET} --service web sleep 3600" for number in range(4)]
    commands += ["service update --publish-add 8081:81 web", "service update --publish-add 8082:82 web"]
    with ThreadPoolExecutor(len(commands)) as pool:
        assert [done.returncode for done in pool.map(prepared.try_ctl, commands)] == [0] * len(commands)
    assert set(backends(prepared)) == {"w0", "w1", "w2", "w3"}
    assert {port for port in ("8081", "8082") if port in prepared.ctl("service ls")} == {"8081", "8082"}


def test_a_service_for_which_maps_have_no_room_is_refused_and_leaves_nothing(prepared: Host) -> None:
    with Dataplane(prepared.bpffs / "datapath") as dataplane:
        most = dataplane.services.max_entries
        dataplane.services.update_many({abi.service_key(2**29 + n): abi.service() for n in range(most)})
        try:
            said = prepared.refused(f"service create {NET} -p 8080:80 web")
            assert "services: it is full" in said
        finally:
            dataplane.services.delete_many(abi.service_key(2**29 + n) for n in range(most))
    assert not prepared.ctl("service ls -q")


def test_s31_down_takes_services_away(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.ctl("network create --subnet 10.71.0.0/24 shop")
    host.ctl(f"service create {NET} -p 8080:80 web")
    host.run("w1", f"{NET} --service web")
    host.ctl("down")
    assert not host.ctl("service ls -q") and not list((host.bpffs / "datapath").glob("*"))
