# SPDX-License-Identifier: Apache-2.0
"""S26 on networks of several hosts: one service, backends and an ingress on every host."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from time import monotonic
from typing import Any

import pytest

from datapath.cluster import keys
from tests.net.agents import Agent
from tests.net.cluster import NETWORK6, OUTSIDE, Cluster, Member, agents, remove, whole
from tests.net.hosts import SLOWNESS, TIMEOUT, Host, eventually, ordinary, reaches
from tests.net.services import Run, Start, by_one_port, failed, heard, keeper, keeping, names, serve, server

NET = "10.77.0.0/16"
OUTSIDE6 = f"{NETWORK6}:fe"
OWN = 18000  # the first of a hundred ports that one test alone asks from

# From each of so many ports in turn, from the first on: prints which backend answered each, and what address it saw.
TUPLES = """
import json, socket, struct, sys
proto, source, address, port, count, first = *sys.argv[1:4], *map(int, sys.argv[4:])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
heard = []
for number in range(first, first + count):
    with socket.socket(family, kind) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_STREAM:  # no TIME_WAIT: the same port is used again at once
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(60)
        try:
            client.bind((source, number))
            client.connect((address, port))
            if proto == "udp":
                client.send(b"?")
            heard.append(client.recv(100).decode().strip())
        except OSError as error:
            heard.append(f"{type(error).__name__} -")
print(json.dumps(heard))
"""


# One connection a request, until its input ends; prints how many there were, and how many failed.
ASKER = """
import select, socket, sys
address, port = sys.argv[1], int(sys.argv[2])
asked = failed = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    asked += 1
    try:
        with socket.create_connection((address, port), 60) as client:
            failed += not client.recv(100)
    except OSError:
        failed += 1
print(asked, failed)
"""


@pytest.fixture(scope="module")
def at_work(cluster: Cluster) -> Iterator[list[Agent]]:
    """The hosts' agents; a test may put others in their places."""
    with agents(cluster.hosts) as each:
        yield each
        for one in each:
            one.close()


@pytest.fixture(scope="module")
def running(cluster: Cluster, at_work: list[Agent]) -> Cluster:
    cluster[0].ctl(f"network create -d overlay --ipv6 --subnet {NET} --subnet fd77::/64 ov")
    cluster[1].run("there", "--network ov")
    return cluster


@pytest.fixture
def empty(running: Cluster) -> Iterator[Cluster]:
    """Without services. The test leaves nothing: not in the store, and on no host."""
    yield running
    clear(running)


@pytest.fixture(scope="module")
def shop(running: Cluster) -> Iterator[Cluster]:
    """With a service that has a backend on the first host and two on the second, for all tests behind."""
    running[0].ctl("service create --network ov -p 8090:80 -p 8090:80/udp web")
    serve(running[0], "w1", "--network ov --service web", "ov")
    serve(running[1], "w2", "--network ov --service web", "ov")
    serve(running[1], "w3", "--network ov --service web", "ov")
    for host in running:
        knows(host, w1="up", w2="up", w3="up")
    yield running
    clear(running)


def clear(running: Cluster) -> None:
    """Takes services and containers away; nothing is left of them anywhere."""
    for host in running:
        if services := host.ctl("service ls -q").split():
            host.try_ctl(["service", "rm", *services])
        if containers := [name for name in host.ctl("ps -a --format {{.Names}}").split() if name != "there"]:
            host.ctl(["rm", "-f", *containers])
    whole(running)
    assert left(running) == []


def left(cluster: Cluster) -> list[str]:
    """Keys about services."""
    with cluster.etcd.client() as store:
        entries = store.list(keys.SERVICES, keys.SERVICE_NAMES, keys.INGRESS, keys.ENDPOINTS).entries
    return [k for k, one in entries.items() if not k.startswith(keys.ENDPOINTS) or "peer" not in one.value]


def backends(host: Member, name: str = "web") -> dict[str, Any]:
    rows = [json.loads(line) for line in host.ctl(f"service ps {name} --format json").splitlines()]
    return {row["Container"]: row for row in rows}


def vips(host: Member, name: str = "web") -> list[str]:
    found = json.loads(host.ctl(f"service inspect {name}"))[0]["Endpoint"]["VirtualIPs"]
    return [one["Addr"] for one in found]


def knows(host: Member, **states: str) -> None:
    """Waits until the host has these backends of the service, each in its state."""
    with eventually() as until:
        until(lambda: {name: row["State"] for name, row in ps(host).items()} == states)


def ps(host: Member) -> dict[str, Any]:
    """None, where the service has not been heard of."""
    return backends(host) if "web" in host.ctl("service ls --format {{.Name}}").split() else {}


def tuples(host: Member, proto: str, source: str, address: str, count: int, first: int = 20000) -> list[str]:
    """Who has answered each of so many clients outside, and the address that he saw. `first`: of the clients' ports.
    Over UDP the answer is as of when a connection began, if it lives still: for 30 s, or for 180 s if it lasted."""
    argv = ["python3", "-c", TUPLES, proto, source, address, "8090", str(count), str(first)]
    done = host.outside.try_(argv)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@contextmanager
def held(start: Start, address: str, port: int, count: int) -> Iterator[tuple[Popen[str], list[str]]]:
    """Connections that are kept from there, and which backend each is to."""
    process = start(keeper(address, port, count), stdin=PIPE, stdout=PIPE, text=True)
    with keeping(process) as found:
        yield found


@contextmanager
def asking(start: Start, address: str, port: int) -> Iterator[Callable[[], int]]:
    """Connections that come one after the other; how many have failed, when it is asked."""
    process = start(["python3", "-u", "-c", ASKER, address, str(port)], stdin=PIPE, stdout=PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"

        def ended() -> int:
            asked, lost = map(int, process.communicate("end\n", timeout=TIMEOUT)[0].split())
            assert asked > 0
            return lost

        yield ended
    finally:
        process.kill()
        process.wait()


def resolved(host: Host, container: str, name: str) -> list[str]:
    """The IPv4 addresses that the container is answered."""
    done = host.try_ctl(f"names resolve {container} {name} A --format json")
    return [
        one for line in done.stdout.splitlines() if line for one in json.loads(line)["Data"].split(",") if one
    ]


def addresses(host: Host, container: str) -> list[str]:
    found = host.inspect(container)["NetworkSettings"]["Networks"]["ov"]
    return [found["IPAddress"], found["GlobalIPv6Address"]]


def test_s26_containers_that_run_are_behind_a_service_that_is_created_elsewhere(empty: Cluster) -> None:
    first, second = empty
    serve(second, "w1", "--network ov -l app=web", "ov")
    first.ctl("service create --network ov --selector app=web -p 8090:80 web")
    for host in empty:
        knows(host, w1="up")
    assert names(heard(first.outside.try_, "tcp", first.vtep, 8090, 5)) == {"w1": 5}
    second.ctl("service update --publish-add 8091:80 --publish-rm 8090:80 web")
    with eventually() as until:
        until(lambda: "8091" in first.ctl("service ls"))
    assert names(heard(first.outside.try_, "tcp", first.vtep, 8091, 5)) == {"w1": 5}
    assert heard(first.outside.try_, "tcp", first.vtep, 8090) == {"ConnectionRefusedError": 1}
    second.ctl("service rm web")
    with eventually() as until:
        until(lambda: "web" not in first.ctl("service ls"))
    assert heard(first.outside.try_, "tcp", first.vtep, 8091) == {"ConnectionRefusedError": 1}


BAD = [
    ("--network nope x", "network nope not found"),
    ("--network ov web", "service with name web already exists"),
    ("--network ov -p 8090:80 x", "Bind for 0.0.0.0:8090 failed: port is already allocated"),
    (
        "--network ov -p 192.0.2.2:8093:80 x",
        "cannot publish 192.0.2.2:8093:80/tcp: every host of the cluster does",
    ),
    ("--network ov -p 9000-9099:9000-9099 x", "cannot publish more than 50 ports"),
    ("--network ov --vip 10.78.0.1 x", "no configured subnet or ip-range contain the IP address 10.78.0.1"),
    ("--network ov --vip 10.77.0.1 x", "is the network's gateway|already in use|reserved"),
]


def test_s26_one_that_fails_the_checks_of_its_host_is_no_backend_on_the_others(
    empty: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "works"
    file.touch()
    check = ["--health-cmd", f"test -e {file}", "--health-interval", "50ms", "--health-retries", "2"]
    empty[0].ctl(["service", "create", "--network", "ov", *check, "web"])
    empty[1].run("w1", "--network ov --service web")

    def known(host: Member) -> list[str]:
        return host.ctl("service ps web --format {{.Container}}").split()

    for wanted, state in (["w1"], "up"), ([], "unhealthy"), (["w1"], "up"):
        file.touch() if wanted else file.unlink()
        with eventually() as until:
            until(lambda: known(empty[0]) == wanted)  # noqa: B023 - it is asked at once
        assert empty[1].ctl("service ps web --format {{.State}}") == state


def test_s26_what_cannot_be_is_refused_on_every_host_and_nothing_is_changed(empty: Cluster) -> None:
    first, second = empty
    first.ctl("service create --network ov -p 8090:80 web")
    with eventually() as until:
        until(lambda: "web" in second.ctl("service ls"))
    before = left(empty)
    rows = [*BAD, (f"--network ov --vip {vips(first)[0]} x", 'service "web"')]
    rows.append((f"--network ov --vip {second.address('there', 'ov')} x", "there"))
    for options, words in rows:
        for host in empty:
            done = host.try_ctl(f"service create {options}")
            assert done.returncode and done.stderr.count("\n") == 1, (options, done)
            assert re.search(words, done.stderr), (words, done.stderr)
    assert second.try_ctl("network rm ov").returncode
    done = second.try_ctl("service drain web there")
    assert "container there is no backend of service web" in done.stderr
    assert left(empty) == before


def test_s30_a_host_that_cannot_publish_a_services_port_says_who_has_it(empty: Cluster) -> None:
    """A container, or a process of the host; once it is free `reconcile` publishes it."""
    first, second = empty
    second.run("own", "-p 8095:80")
    process = second.start(server("own", 8096))
    with eventually() as until:
        until(lambda: heard(second.try_, "tcp", "127.0.0.1", 8096, 1, 5)["own ::ffff:127.0.0.1"])
    first.ctl("service create --network ov -p 8095:80 -p 8096:80 web")
    with eventually() as until:
        until(lambda: "web" in second.ctl("service ls --format {{.Name}}").split())
    done = second.try_ctl("doctor --json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["Check"] for one in found} == {"unpublished"}, (done, second.ctl("service inspect web"))
    details = sorted(one["Detail"] for one in found)
    assert details[0] == (
        "host h2 does not publish 8095:80/tcp: Bind for 0.0.0.0:8095 failed: "
        'port is already allocated (by container "own")'
    )
    assert re.fullmatch(
        r"host h2 does not publish 8096:80/tcp: Bind for 0\.0\.0\.0:8096 failed: address already in use "
        r"\(by python3\S* \(pid [0-9]+\)\)",
        details[1],
    )
    assert first.ctl("doctor") == "No problems found."
    assert second.try_ctl("reconcile").returncode == 20
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    second.ctl("rm -f own")
    second.ctl("reconcile")
    assert second.ctl("doctor") == "No problems found."
    serve(first, "w1", "--network ov --service web", "ov")

    def answered(port: int) -> bool:
        return "w1" in names(heard(second.outside.try_, "tcp", second.vtep, port, 1, 5))

    with eventually() as until:
        until(lambda: answered(8095) and answered(8096))


def test_s26_of_two_services_that_are_created_at_once_one_is(empty: Cluster) -> None:
    """By name, and by published port; the other one leaves nothing."""
    for options in ("-p 8090:80 web", "-p 8091:80 web"), ("-p 8090:80 web", "-p 8090:80 other"):
        with ThreadPoolExecutor(2) as pool:
            done = list(
                pool.map(
                    lambda pair: pair[0].try_ctl(f"service create --network ov {pair[1]}"),
                    zip(empty, options, strict=True),
                )
            )
        assert [bool(one.returncode) for one in done].count(True) == 1, done
        loser = next(one for one in done if one.returncode)
        assert re.search("already exists|already allocated", loser.stderr), loser
        with eventually() as until:
            until(lambda: all(len(host.ctl("service ls -q").split()) == 1 for host in empty))
        assert len(left(empty)) == 5  # the service, its name, a port, two addresses
        winner = empty[0].ctl("service ls --format {{.Name}}")
        empty[1].ctl(f"service rm {winner}")
        with eventually() as until:
            until(lambda: empty[0].ctl("service ls -q") == "")


def test_s26_a_store_that_was_restored_from_before_a_service_gets_it_back(
    empty: Cluster, tmp_path: Path
) -> None:
    serve(empty[0], "w1", "--network ov -l app=web", "ov")
    empty.etcd.save(tmp_path / "snapshot")
    empty[1].ctl("service create --network ov --selector app=web -p 8090:80 web")
    for host in empty:
        knows(host, w1="up")
    before = left(empty)
    empty.etcd.restore(tmp_path / "snapshot")
    with eventually() as until:
        until(lambda: left(empty) == before)
    for host in empty:
        knows(host, w1="up")


def test_s26_s15_members_that_may_not_talk_are_given_what_their_network_publishes_on_any_host(
    empty: Cluster,
) -> None:
    """The published port is for everybody; the virtual address leads where the backend's own does."""
    first, second = empty
    first.ctl("network create -d overlay --ipv6 -o com.docker.network.bridge.enable_icc=false "
              "--subnet 10.79.0.0/16 --subnet fd79::/64 quiet")  # fmt: skip
    try:
        first.ctl("service create --network quiet -p 8095:80 -p 8095:80/udp still")
        second.run("q1", "--network quiet --service still", server("q1"))
        for host in empty:
            given_what_is_published(host)
    finally:
        for host in empty:
            remove(host, "asks", "q1")
        first.ctl("service rm still")
        first.ctl("network rm quiet")


def test_s26_o18_a_client_is_given_the_same_backend_by_every_host_and_each_its_share(
    shop: Cluster,
) -> None:
    """3,000 connections through each host's ingress; the server sees the client's own address."""
    for proto, version, count in (("tcp", 4, 3000), ("udp", 4, 600), ("tcp", 6, 300), ("udp", 6, 600)):
        source = OUTSIDE if version == 4 else OUTSIDE6
        seen = f"::ffff:{source}" if version == 4 else source
        found = [
            tuples(host, proto, source, host.vtep if version == 4 else host.vtep6, count) for host in shop
        ]
        assert all(one == found[0] for one in found)
        assert {line.split()[1] for line in found[0]} == {seen}
        shares = Counter(line.split()[0] for line in found[0])
        assert shares.keys() == {"w1", "w2", "w3"}
        most, least = (0.37, 0.30) if count == 3000 else (0.45, 0.22)
        assert all(least * count <= share <= most * count for share in shares.values()), shares


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s26_a_client_uses_one_port_by_two_hosts_at_once(shop: Cluster, proto: str, version: int) -> None:
    """Both lead to one container, here and on the other host, and both last; it sees the client's own address."""
    source, seen = (OUTSIDE, f"::ffff:{OUTSIDE}") if version == 4 else (OUTSIDE6, OUTSIDE6)
    asked = [host.vtep if version == 4 else host.vtep6 for host in shop]
    for addresses in (asked, asked[::-1]):
        found = by_one_port(shop[0].outside.try_, proto, source, addresses, 8090)
        assert all(one == other for one, other in found), found
        assert {line.split()[0] for line, _ in found} == {"w1", "w2", "w3"}
        assert {line.split()[1] for line, _ in found} == {seen}


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s26_two_hosts_ask_a_service_from_one_port_at_once(shop: Cluster, proto: str) -> None:
    """In the gateway's name, which both have."""
    vip = vips(shop[0])[0]
    argv = ["python3", "-u", "-c", ASKS_AGAIN, proto, vip, "80", "20"]
    pipes = {"stdin": PIPE, "stdout": PIPE, "text": True}
    with ExitStack() as stack:
        running = [host.start(argv, **pipes) for host in shop]
        for process in running:
            stack.callback(process.wait)
            stack.callback(process.kill)
        heard_by = []
        for process in running:
            assert process.stdout is not None
            heard_by.append(json.loads(process.stdout.readline()))
        assert heard_by[0] == heard_by[1] and {name[:1] for name in heard_by[0]} == {"w"}
        again = [json.loads(process.communicate("go on\n", timeout=TIMEOUT)[0]) for process in running]
        assert again == heard_by


# From so many ports, from 23000 on, a connection each, which lasts; once more by each when it is told to. Who answers.
ASKS_AGAIN = """
import json, socket, sys
proto, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
clients = []
for number in range(count):
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(60)
    client.bind(("", 23000 + number))
    client.connect((address, port))
    clients.append(client)
def ask(first):
    heard = []
    for client in clients:
        if proto == "udp" or not first:
            client.send(b"again\\n")
        heard.append(client.recv(100).decode().split()[0])
    return heard
first = ask(True)
print(json.dumps(first), flush=True)
sys.stdin.readline()
found = ask(False)
print(json.dumps(first if proto == "tcp" and set(found) == {"again"} else found))
for client in clients:
    if proto == "tcp":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    client.close()
"""


def test_s26_members_find_a_service_and_its_backends_on_any_host(shop: Cluster) -> None:
    """By its address, and by names; every host shows who is behind it, and where."""
    first, second = shop
    client = ["nsenter", f"--net=/proc/{second.process('there')}/ns/net"]
    assert [row["Host"] for row in backends(first).values()] == ["h1", "h2", "h2"]
    for proto in ("tcp", "udp"):
        for vip in vips(first):
            found = heard(lambda argv: second.try_([*client, *argv]), proto, vip, 80, 40)
            assert names(found).keys() == {"w1", "w2", "w3"}
            assert {line.split()[1].removeprefix("::ffff:") for line in found} <= set(
                addresses(second, "there")
            )
    where = [first.address("w1", "ov"), *(second.address(name, "ov") for name in ("w2", "w3"))]
    assert resolved(second, "there", "web") == vips(first)[:1]
    assert sorted(resolved(second, "there", "tasks.web")) == sorted(where)
    first.ctl("service create --network ov --endpoint-mode dnsrr --selector app=all all")
    first.ctl("run -d --name w4 --network ov -l app=all sleep 600")
    second.ctl("run -d --name w5 --network ov -l app=all sleep 600")
    with eventually() as until:
        until(lambda: len(resolved(second, "there", "all")) == 2)
    assert sorted(resolved(second, "there", "all")) == sorted(
        [first.address("w4", "ov"), second.address("w5", "ov")]
    )
    shown = json.loads(second.ctl("network inspect -v ov"))[0]["Services"]
    assert [(task["Name"], task["Info"]["Host"]) for task in shown["web"]["Tasks"]] == [
        ("w2", "h2"),
        ("w3", "h2"),
        ("w1", "h1"),
    ]
    first.ctl("service rm all")
    remove(first, "w4")
    remove(second, "w5")


def given_what_is_published(host: Member) -> None:
    """A member on this host, at both of the host's addresses."""
    host.run("asks", "--network quiet")

    def answered(run: Run, proto: str, address: str) -> bool:
        return names(heard(run, proto, address, 8095)) == {"q1": 1}

    for proto in "tcp", "udp":
        for address in host.vtep, host.vtep6:
            with eventually() as until:
                until(partial(answered, host.try_, proto, address))
            assert answered(partial(host.try_in, "asks"), proto, address)


def test_s26_the_host_that_chose_counts_what_passes(shop: Cluster) -> None:
    """Wherever the backend is: no other host counts it once more."""
    first, second = shop
    client = ["nsenter", f"--net=/proc/{second.process('there')}/ns/net"]

    def passed(host: Member) -> dict[str, tuple[int, int]]:
        return {name: (row["PacketsIn"], row["PacketsOut"]) for name, row in backends(host).items()}

    before = passed(first), passed(second)
    for vip in vips(first):
        found = names(heard(lambda argv: second.try_([*client, *argv]), "udp", vip, 80, 30))
        now = passed(second)
        grown = {name: (now[name][0] - had[0], now[name][1] - had[1]) for name, had in before[1].items()}
        assert grown == {name: (found[name], found[name]) for name in grown}
        before = before[0], now
    assert passed(first) == before[0]


def test_s26_without_the_store_and_the_agents_services_go_on(shop: Cluster) -> None:
    """None is created, within 5 s; containers begin of the reserve, and are behind it everywhere once it is back."""
    first, second = shop
    with shop.store_away():
        assert names(heard(first.outside.try_, "tcp", first.vtep, 8090, 60)).keys() == {"w1", "w2", "w3"}
        began = monotonic()
        done = second.try_ctl("service create --network ov other")
        assert monotonic() - began < 5 * SLOWNESS + ordinary(second)
        assert done.returncode and done.stderr.count("\n") == 1 and "cluster store" in done.stderr, done
        serve(second, "w4", "--network ov --service web", "ov")
        assert backends(second)["w4"]["State"] == "up"
        assert "w4" not in backends(first)
    for host in shop:
        knows(host, w1="up", w2="up", w3="up", w4="up")
    remove(second, "w4")


def within(host: Host, container: str) -> Start:
    """Begins processes in the container's network namespace."""
    enter = ["nsenter", f"--net=/proc/{host.process(container)}/ns/net"]
    return lambda argv, **more: host.start([*enter, *argv], **more)


def test_s30_s26_services_go_on_as_every_agent_and_the_store_are_killed(
    shop: Cluster, at_work: list[Agent]
) -> None:
    """Connections that are kept, and new ones, of a client outside, a member, a container of another network and the
    host itself. Agents that are started again hold what a new host would."""
    first, second = shop
    first.ctl("network create --subnet 10.79.0.0/24 beside")
    first.run("client", "--network beside")
    with ExitStack() as stack:
        kept, loads = [], []
        for start, address, port in (
            (first.outside.start, first.vtep, 8090),
            (within(second, "there"), vips(first)[0], 80),
            (within(first, "client"), first.vtep, 8090),
            (first.start, vips(first)[0], 80),
        ):
            process, owners = stack.enter_context(held(start, address, port, 20))
            assert set(owners) == {"w1", "w2", "w3"}
            kept.append(process)
            loads.append(stack.enter_context(asking(start, address, port)))
        for one in at_work:
            one.kill()
        with shop.store_away():
            for host in shop:
                assert names(heard(host.outside.try_, "tcp", host.vtep, 8090, 60)).keys() == set(owners)
        at_work[:] = [Agent(host) for host in shop]
        whole(shop)
        assert [load() for load in loads] == [0] * 4
        assert [failed(process) for process in kept] == [[]] * 4
    assert reaches(lambda command: first.try_(f"{command} -s 4000"), addresses(second, "there")[0])
    remove(first, "client")
    first.ctl("network rm beside")


def test_s26_o19_no_connection_fails_as_a_backend_is_drained_from_another_host(shop: Cluster) -> None:
    """And as one is killed, only its own do; hardly any others change hands."""
    first, second = shop
    before = tuples(first, "udp", OUTSIDE, first.vtep, 1000)
    with (
        held(first.outside.start, first.vtep, 8090, 60) as (process, owners),
        asking(first.outside.start, first.vtep, 8090) as load,
    ):
        assert set(owners) == {"w1", "w2", "w3"}
        first.ctl("service drain web w3")
        for host in shop:
            knows(host, w1="up", w2="up", w3="draining")
        second.ctl("service undrain web w3")
        for host in shop:
            knows(host, w1="up", w2="up", w3="up")
        assert load() == 0
        os.kill(second.process("w3"), signal.SIGKILL)
        for host in shop:
            knows(host, w1="up", w2="up")
        lost = failed(process)
        assert {owners[number] for number in lost} <= {"w3"}
    after = tuples(first, "udp", OUTSIDE, first.vtep, 1000)
    assert "w3" not in {line.split()[0] for line in after}
    stayed = [(a, b) for a, b in zip(before, after, strict=True) if not a.startswith("w3 ")]
    moved = [pair for pair in stayed if pair[0] != pair[1]]
    assert len(moved) <= 0.025 * len(stayed)
    second.ctl("start w3")
    for host in shop:
        knows(host, w1="up", w2="up", w3="up")


def test_s26_a_drained_host_gets_no_new_connections_and_keeps_those_that_it_has(shop: Cluster) -> None:
    """Until the grace period of the service ends these, whichever host they came by; off, it gets new ones again. What
    is on a network of its own goes on."""
    first, second = shop
    second.ctl("network create --subnet 10.79.0.0/24 own")
    second.ctl("service create --network own alone")
    serve(second, "o1", "--network own --service alone", "own")
    with (
        held(first.outside.start, first.vtep, 8090, 60) as (process, owners),
        asking(first.outside.start, first.vtep, 8090) as load,
    ):
        assert set(owners) == {"w1", "w2", "w3"}
        first.ctl("cluster drain-host h2")
        for host in shop:
            knows(host, w1="up", w2="draining", w3="draining")
            assert names(heard(first.outside.try_, "tcp", host.vtep, 8090, 30)).keys() == {"w1"}
        assert backends(second, "alone")["o1"]["State"] == "up"
        assert load() == 0
        assert failed(process) == []
    with held(first.outside.start, first.vtep, 8090, 3) as (process, owners):
        assert set(owners) == {"w1"}
        first.ctl("cluster drain-host --off h2")
        for host in shop:
            knows(host, w1="up", w2="up", w3="up")
        with held(first.outside.start, first.vtep, 8090, 60) as (others, again):
            assert set(again) == {"w1", "w2", "w3"}
            first.ctl("service update --stop-grace-period 200ms web")
            first.ctl("cluster drain-host h2")
            theirs = {backends(first)[name]["Address"].split(",")[0] for name in ("w2", "w3")}
            with eventually() as until:
                until(lambda: not any(address in first.ctl("ct ls") for address in theirs))
            assert {again[number] for number in failed(others)} == {"w2", "w3"}
        assert failed(process) == []
    second.ctl("cluster drain-host --off h2")
    second.ctl("service update --stop-grace-period 0s web")
    for host in shop:
        knows(host, w1="up", w2="up", w3="up")
    second.ctl("rm -f o1")
    second.ctl("service rm alone")
    second.ctl("network rm own")
    whole(shop)


@pytest.fixture(scope="module")
def third(shop: Cluster) -> Iterator[tuple[Member, Agent]]:
    """One more host, of the same cluster by another network."""
    host = shop.add(config={"cluster-store-opts": {"discovery.ttl": "3", "discovery.heartbeat": "1"}})
    with agents([host]) as (agent,):
        host.ctl("network create -d overlay --subnet 10.78.0.0/24 else")
        yield host, agent
    with agents([host]):  # so that it hears of the end
        with eventually() as until:
            until(lambda: host.try_ctl("doctor").returncode == 0)  # it has heard of the others
        clear(shop)
        host.ctl("down")
    shop.hosts.remove(host)  # nobody there hears of what follows
    host.close()


def test_s26_a_host_with_no_part_in_the_network_publishes_the_ports_too(
    shop: Cluster, third: tuple[Member, Agent]
) -> None:
    """And when it dies, connections through the others are unharmed."""
    first, last = shop[0], third[0]
    for host in shop.hosts:
        knows(host, w1="up", w2="up", w3="up")
    with eventually() as until:  # its ports are the last of a service to be there
        until(lambda: first.outside.try_(["bash", "-c", f"</dev/tcp/{last.vtep}/8090"]).returncode == 0)
    for proto in ("tcp", "udp"):  # by two hosts that are not the container's
        found = by_one_port(first.outside.try_, proto, OUTSIDE, [first.vtep, last.vtep], 8090)
        assert all(one == other for one, other in found), found
    for proto, version in (("tcp", 4), ("udp", 4), ("tcp", 6), ("udp", 6)):
        source, seen = (OUTSIDE, f"::ffff:{OUTSIDE}") if version == 4 else (OUTSIDE6, OUTSIDE6)
        asked = [host.vtep if version == 4 else host.vtep6 for host in shop.hosts]
        # From ports of its own: connections from others' may live since there was another set of backends.
        every = [tuples(first, proto, source, address, 100, OWN) for address in asked]
        differ = [found for found in zip(*every, strict=True) if len(set(found)) > 1]
        assert len(every) == 3 and not differ, (proto, version, differ)
        assert {line.split()[1] for line in every[0]} == {seen}
    with held(first.outside.start, first.vtep, 8090, 30) as (process, owners):
        assert set(owners) == {"w1", "w2", "w3"}
        with held(first.outside.start, last.vtep, 8090, 30) as (others, through):
            assert set(through) == {"w1", "w2", "w3"}
            assert failed(others) == []
        with shop.cut_off(last):
            assert names(heard(first.outside.try_, "tcp", first.vtep, 8090, 30)).keys() == set(owners)
            assert failed(process) == []


def test_s26_backends_of_a_host_that_is_dead_go_when_its_lease_does(
    shop: Cluster, third: tuple[Member, Agent]
) -> None:
    """And come back with it; nobody else's connections are touched. An agent that is ended in good order says so."""
    first, (last, agent) = shop[0], third
    serve(last, "w4", "--network ov --service web", "ov")
    for host in shop:
        knows(host, w1="up", w2="up", w3="up", w4="up")
    with shop.cut_off(last):
        for host in shop.hosts[:2]:
            knows(host, w1="up", w2="up", w3="up")
            said = host.try_ctl("doctor").stdout
            assert said.startswith("host h3") and said.count("means:") == 1, said
        assert names(heard(first.outside.try_, "tcp", first.vtep, 8090, 60)).keys() == {"w1", "w2", "w3"}
    for host in shop:
        knows(host, w1="up", w2="up", w3="up", w4="up")
    agent.end()
    with shop.etcd.client() as store, eventually() as until:
        until(lambda: len(store.list(keys.ALIVE).entries) == 2)
    assert backends(first).keys() == {"w1", "w2", "w3", "w4"}
