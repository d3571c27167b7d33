# SPDX-License-Identifier: Apache-2.0
"""S25 and S30: what goes wrong around Docker's driver. Requests as dockerd sends them, without that daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datapath.config.settings import Settings
from datapath.errors import DatapathError
from datapath.host import Host as Library
from datapath.model.state import State
from tests.docker_requests import recordings
from tests.net import faults, forked, look
from tests.net.docker_door import (
    Door,
    Refused,
    Words,
    at_once,
    create_network,
    ident,
    moved,
    starting,
    stopping,
)
from tests.net.doors import Space, spaces_of_a_test
from tests.net.hosts import HOST, OUTSIDE, TIMEOUT, Host, ask, eventually, pinging, reaches, sent_and_lost
from tests.net.test_cycles import host_has
from tests.net.test_down import different
from tests.unit.test_docker import Door as Planned
from tests.unit.test_docker_hostile import OTHERS, places, put

MOST = 40 << 10  # kB that the driver may have, whatever it did


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


def doctor(host: Host) -> str:
    return host.try_ctl("doctor").stdout


def library(host: Host) -> Library:
    """For looking, which needs not be inside."""
    return Library.open(Settings.from_env(host.env or {}))


# ---- the process ---------------------------------------------------------------------------------------------


def test_s25_the_driver_is_small_whatever_it_did(host: Host) -> None:
    """Also if it was the first that needed the packet programs, as after a restart of the machine; and while it loads
    them."""
    with contextlib.closing(Door(host)) as door:
        door.ask(create_network(1))
        for number in range(2, 12):
            door.ask(*starting(1, number, f"10.5.0.{number}/16", f"{8000 + number}:80"))
        assert door.memory() < MOST and door.memory("VmHWM") < MOST + (4 << 10)
    for name in host.sh("ip -br link").split():
        if name.startswith("dp-"):
            host.try_(f"ip link delete {name.partition('@')[0]}")
    shutil.rmtree(host.bpffs / "datapath")
    with contextlib.closing(Door(host)) as door:
        door.ask(*starting(1, 20, "10.5.0.20/16", "8020:80"))
        assert (host.bpffs / "datapath").exists()
        assert door.memory() < MOST and door.memory("VmHWM") < MOST + (4 << 10)
        for _ in range(3):
            door.ask(create_network(2, "10.6.0.0/16", **{"com.docker.network.x": ["x" * 100] * 100_000}))
        for number in (*range(2, 12), 20):
            door.ask(*stopping(1, number))
        assert door.memory() < MOST


# ---- faults in a request ---------------------------------------------------------------------------------------

LONG = bool(os.environ.get("DATAPATH_LONG"))
SHARE = {"kill": 0.06, "error": 0.03}  # of the steps of a request, where not all are tried
LIFE = (
    *("CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity"),
    *("RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "DeleteNetwork"),
)
# What dockerd asks once one of them has failed; it takes no notice of those that take away.
AFTER: dict[str, tuple[str, ...]] = {
    "CreateNetwork": (),
    "CreateEndpoint": LIFE[7:],
    "Join": LIFE[6:],
    "ProgramExternalConnectivity": LIFE[5:],
}
ADDRESS = "10.55.0.2/24"
_numbers = itertools.count(16)


def life() -> list[Words]:
    """A network and a container on it, from their beginning to their end; each time others, but for subnet, address
    and port."""
    network, endpoint = next(_numbers), next(_numbers)
    made = [create_network(network, "10.55.0.0/24"), *starting(network, endpoint, ADDRESS, "8055:80")]
    gone = [*stopping(network, endpoint), ("DeleteNetwork", {"NetworkID": made[0][1]["NetworkID"]})]
    return [*made, *gone]


def network_of(words: list[Words]) -> int:
    """The number of the network of a life."""
    return int(words[0][1]["NetworkID"][:12], 16)


def answered(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Faults can be put into what is forked; once, if another has said so already."""
    if faults.install in forked.in_child:
        yield
        return
    forked.in_child.append(faults.install)
    try:
        yield
    finally:
        forked.in_child.remove(faults.install)


@pytest.fixture(scope="module")
def beside(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which another container of Docker's runs; it answers every ping."""
    host = look.settled(shared_host)
    forked.in_child.append(faults.install)
    space = Space(tmp_path_factory.mktemp("spaces"))
    others = create_network(1), *starting(1, 2, "10.5.0.2/16", "8081:80", path=space.path)
    _, _, joined, _ = answered(at_once(host, others))
    moved(host, space, joined, "10.5.0.2/16")
    space.serve(80)
    answered(at_once(host, life()))
    bystander = pinging(host, "10.5.0.2", 72, 0.02)
    yield host
    sent, lost = sent_and_lost(bystander)
    assert sent > 0 and lost == 0
    assert host.outside.sh(ask("tcp", HOST, 8081)).split()[0] == OUTSIDE
    forked.in_child.remove(faults.install)
    answered(at_once(host, [*stopping(1, 2), ("DeleteNetwork", {"NetworkID": others[0][1]["NetworkID"]})]))
    space.delete()


@pytest.mark.parametrize("kind", ["kill", "error"])
@pytest.mark.parametrize("method", LIFE)
def test_s30_a_fault_in_a_request_of_dockers_leaves_nothing_half_done(
    beside: Host, method: str, kind: str
) -> None:
    """At any of its steps. What Docker asks next, and then for another network and container with the same subnet,
    address and port, is done; in the end nothing is there that was not before."""
    place, before = LIFE.index(method), host_has(beside)
    steps = tried(beside, place, "count@0")
    chosen = list(range(1, steps + 1))
    if not LONG:
        chosen = random.Random(f"30 {method} {kind}").sample(chosen, max(1, round(steps * SHARE[kind])))
    problems = []
    for number in chosen:
        try:
            tried(beside, place, f"{kind}@{number}")
            found = changes(before, beside)
            assert not found, found
        except AssertionError as error:
            problems.append(f"{kind} at step {number} of {steps} ({faults.last().step}): {error}"[:2000])
            before = host_has(beside)
    assert not problems, "\n".join(problems)


def changes(before: dict[str, Any], host: Host) -> dict[str, list[str]]:
    """What the host has and had not, or had and has not, but for the files of the database that SQLite makes as it
    likes."""
    found = {}
    for name, (was, now) in different(before, host_has(host)).items():
        texts = set(map(str, was)) ^ set(map(str, now))
        found[name] = sorted(
            text for text in texts if not text.endswith(("datapath.db-shm", "datapath.db-wal"))
        )
    return {name: texts for name, texts in found.items() if texts}


def tried(host: Host, place: int, fault: str) -> int:
    """How many steps the request at that place of a life has."""
    words = life()
    if words[:place]:
        assert not any("Err" in reply for reply in answered(at_once(host, words[:place])))
    done = at_once(host, [words[place]], fault)
    steps = faults.last().steps
    failed = done.returncode != 0
    if not failed:
        (reply,) = answered(done)
        failed = "Err" in reply
        assert "\n" not in reply.get("Err", "") and "internal error" not in reply.get("Err", ""), reply
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
    method = LIFE[place]
    left = (
        [one for one in words if one[0] in AFTER[method]]
        if failed and method in AFTER
        else words[place + 1 :]
    )
    if left[:-1]:
        answered(at_once(host, left[:-1]))
    if left:  # the next container, on the same network and with the same address
        network, endpoint = network_of(words), next(_numbers)
        following = [*starting(network, endpoint, ADDRESS, "8055:80"), *stopping(network, endpoint), left[-1]]
        replies = answered(at_once(host, following))
        assert not any("Err" in reply for reply in replies), replies
    again = life()
    for part in (again[:4], again[4:]):
        replies = answered(at_once(host, part))
        assert not any("Err" in reply for reply in replies), replies
        assert doctor(host) == "No problems found.\n", doctor(host)
    return steps


@pytest.mark.parametrize("method", ["Join", "Leave", "DeleteEndpoint"])
def test_s30_killed_while_a_container_of_dockers_joins_or_leaves_a_service(beside: Host, method: str) -> None:
    """At any step it is behind the service while it is there, and nothing of it is left afterwards."""
    beside.ctl(f"service create --network {ident(1)[:12]} svc")
    try:
        steps = behind(beside, method, "count@0")
        chosen = list(range(1, steps + 1))
        if not LONG:
            chosen = random.Random(f"26 {method}").sample(chosen, max(2, round(steps * SHARE["kill"])))
        for number in chosen:
            behind(beside, method, f"kill@{number}")
    finally:
        beside.ctl("service rm svc")


def behind(host: Host, method: str, fault: str) -> int:
    """How many steps the request has, of a container that is behind the service."""
    endpoint = next(_numbers)
    words = [*starting(1, endpoint, "10.5.0.7/16"), *stopping(1, endpoint)]
    words[0][1]["Options"]["com.datapath.service"] = "svc"
    place = [one[0] for one in words].index(method)
    assert not any("Err" in reply for reply in answered(at_once(host, words[:place])))
    done = at_once(host, [words[place]], fault)
    steps, step = faults.last().steps, faults.last().step
    left = words[place + 1 :]
    if method == "Join" and done.returncode:
        left = words[-1:]  # Docker was not answered
    elif method == "Join":
        assert len(host.ctl("service ps svc --format {{.Container}}").split()) == 1
    if left:
        answered(at_once(host, left))
    found = host.ctl("service ps svc --format {{.Container}}"), doctor(host)
    # What Docker takes away it takes away once: the next container with the address has to have it.
    following = next(_numbers)
    again = [*starting(1, following, "10.5.0.7/16"), *stopping(1, following)]
    assert not any("Err" in reply for reply in answered(at_once(host, again))), (fault, step)
    assert done.returncode or found == ("", "No problems found.\n"), (fault, step, found)
    found = host.ctl("service ps svc --format {{.Container}}"), doctor(host)
    assert found == ("", "No problems found.\n"), (fault, step, found)
    return steps


# ---- requests that Docker would not send -----------------------------------------------------------------------

HALF = b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{"
SPOKEN = (
    (b"\0\1\2\r\n\r\n", 400),
    (b"POST /NetworkDriver.Nothing HTTP/1.1\r\n\r\n", 404),
    (b"GET /NetworkDriver.Join HTTP/1.1\r\n\r\n", 405),
    (b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 2\r\n\r\n{]", 400),
    (b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n" + b"x" * (1 << 20), 400),
    (b"POST /NetworkDriver.Join HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n", 413),
    (b"POST /NetworkDriver.Join HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
    (b"POST /NetworkDriver.Join HTTP/1.1\r\n" + b"X: y\r\n" * 20000, 431),
)


def test_s25_whatever_is_said_to_the_driver_it_answers_once_and_goes_on(host: Host) -> None:
    """A thousand connections are idle meanwhile, and a hundred have said half of something."""
    with contextlib.closing(Door(host)) as door, contextlib.ExitStack() as stack:
        found = door.path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
        listeners = host.sh("ss -ltnup")
        door.ask(create_network(1))

        def connect(said: bytes = b"") -> socket.socket:
            opened = stack.enter_context(socket.socket(socket.AF_UNIX))
            opened.settimeout(TIMEOUT)
            opened.connect(str(door.path))
            opened.sendall(said)
            return opened

        waiting = [connect() for _ in range(1000)] + [connect(HALF) for _ in range(100)]
        for said, status in SPOKEN:
            opened = stack.enter_context(socket.socket(socket.AF_UNIX))
            opened.settimeout(TIMEOUT)
            opened.connect(str(door.path))
            with contextlib.suppress(BrokenPipeError):  # it has heard enough
                opened.sendall(said)
            assert opened.recv(1 << 16).startswith(b"HTTP/1.1 %d " % status), (status, said[:80])
        door.ask(*starting(1, 2, "10.5.0.2/16", "8080:80"))
        assert door.memory() < MOST
        waiting[0].sendall(b"POST /Plugin.Activate HTTP/1.1\r\n\r\n")
        assert b"NetworkDriver" in waiting[0].recv(1 << 16)
        door.ask(*stopping(1, 2))
        assert host.sh("ss -ltnup") == listeners
    assert doctor(host) == "No problems found.\n"
    assert "Traceback" not in (host.folder / "driver.log").read_text()


def test_s25_wrong_values_are_refused_by_the_real_host_too(host: Host) -> None:
    """Of each kind of request, each value is another one, of those that chance chooses."""
    look.settled(host)
    chance = random.Random(25)
    words = [create_network(1), *starting(1, 2, "10.5.0.2/16", "8080:80"), *stopping(1, 2)]
    last = "DeleteNetwork", {"NetworkID": ident(1)}
    with contextlib.closing(Door(host)) as door:
        for method, fields in (*words, last):
            for place in places(fields):
                for other in chance.sample(OTHERS, 4):
                    try:
                        door.ask((method, put(fields, place, other)))
                    except Refused as error:
                        assert str(error).isprintable() and "internal error" not in str(error), error
                    except DatapathError as error:  # it is no object
                        assert not place and "the request is no" in str(error)
            door.ask((method, fields))
            assert doctor(host) == "No problems found.\n", method
        for network in ("0" * 64, ident(1)):
            door.ask(("DeleteNetwork", {"NetworkID": network}))
    assert host.ctl("network ls --format {{.Name}}").split() == ["bridge", "host", "none"]
    assert json.loads(host.ctl("ps -a --format json") or "[]") == []
    assert "Traceback" not in (host.folder / "driver.log").read_text()
    host.ctl("down")
    assert not any(Path(host.folder / "state").glob("*"))


def test_s25_recorded_requests_of_all_versions_in_any_order_leave_a_whole_host(host: Host) -> None:
    """At a real host; as many as there is time for."""
    pool = [
        request
        for requests in recordings().values()
        for request in requests
        if request.method.startswith("NetworkDriver") and "EndpointOperInfo" not in request.method
    ]
    random.Random(25).shuffle(pool)
    words = [
        (request.method.partition(".")[2], request.fields or {})
        for request in pool[: len(pool) if LONG else 150]
    ]
    replies = answered(at_once(host, words))
    assert not any("internal error" in reply.get("Err", "") for reply in replies)
    assert doctor(host) == "No problems found.\n"
    networks = {fields["NetworkID"] for _, fields in words if "NetworkID" in fields}
    answered(at_once(host, [("DeleteNetwork", {"NetworkID": network}) for network in networks]))
    host.ctl("down")
    assert not any(Path(host.folder / "state").glob("*"))


def test_s25_ports_that_are_refused_close_none_that_are_open(host: Host) -> None:
    """Of a container on two networks, whose way out is to be the other one; one of its ports another container has."""
    here, there = "/run/docker/netns/here", "/run/docker/netns/there"
    answered(at_once(host, [create_network(1), create_network(2, "10.6.0.0/16")]))
    answered(at_once(host, starting(1, 3, "10.5.0.2/16", "8080:80", path=here)))
    answered(at_once(host, starting(1, 4, "10.5.0.3/16", "8081:80", path=there)))
    before = host.ctl("port ls")
    *_, reply = answered(at_once(host, starting(2, 5, "10.6.0.2/16", "8080:80", "8081:81", path=here)))
    assert "8081" in reply["Err"] and "already allocated" in reply["Err"]
    assert host.ctl("port ls") == before and doctor(host) == "No problems found.\n"
    *_, reply = answered(at_once(host, starting(2, 5, "10.6.0.2/16", "8080:80", path=here)))
    assert reply == {} and host.ctl("port ls").count("8080") == 1 and doctor(host) == "No problems found.\n"
    for ports in (
        ("8080:80", "8082:82"),
        ("8082:82", "8083:83"),
        ("8083:83",),
    ):  # some that it has, and others
        (reply,) = answered(at_once(host, starting(2, 5, "10.6.0.2/16", *ports)[2:]))
        assert reply == {} and doctor(host) == "No problems found.\n", ports


def test_s25_the_mac_of_a_container_that_runs_is_no_other_ones(
    host: Host, spaces: Callable[[], Space]
) -> None:
    """Docker does not look whether somebody has it. Once nobody is in the namespace, it is free."""
    space = spaces()
    first = starting(1, 2, "10.5.0.2/16", path=space.path)
    second = starting(1, 3, "10.5.0.3/16")
    for words in (first, second):
        words[0][1]["Interface"]["MacAddress"] = "02:42:aa:bb:cc:dd"
    _, _, joined, _ = answered(at_once(host, [create_network(1), *first]))
    moved(host, space, joined, "10.5.0.2/16")
    space.serve(80)
    (reply,) = answered(at_once(host, second[:1]))
    assert "02:42:aa:bb:cc:dd is already used by sandbox" in reply["Err"]
    assert reaches(host.try_, "10.5.0.2") and doctor(host) == "No problems found.\n"
    space.end()
    assert answered(at_once(host, second)) and doctor(host) == "No problems found.\n"
    keys = [endpoint.owner_key for endpoint in library(host).endpoints.all()]
    assert keys == [ident(3)]


# ---- tables that are full ----------------------------------------------------------------------------------------


def test_s25_a_full_table_is_one_clear_error_and_nothing_is_half_made(make_host: Callable[..., Host]) -> None:
    """As many endpoints, and as many ports, as there may be, and one more."""
    host = make_host(config={"datapath": {"max-endpoints": 64, "max-ports": 64}})
    answered(at_once(host, [create_network(1), *starting(1, 2, "10.5.0.2/16", "8002:80")]))
    with eventually() as until:  # the kernel notices by and by that nobody is at the other end
        until(lambda: "LOWERLAYERDOWN" in host.sh("ip link"))
    before = host_has(host)
    many = [f"{port}:{port}" for port in range(9000, 9100)]
    replies = answered(at_once(host, starting(1, 3, "10.5.0.3/16", *many)))
    assert [reply.get("Err", "") for reply in replies[:2]] == ["", ""]
    assert "it is full (64 entries)" in replies[2]["Err"] and doctor(host) == "No problems found.\n"
    answered(at_once(host, stopping(1, 3)[1:]))
    assert not changes(before, host)

    created = [starting(1, number, f"10.5.0.{number}/16")[0] for number in range(3, 71)]
    errors = [reply.get("Err", "") for reply in answered(at_once(host, created))]
    full = errors.index(next(filter(None, errors)))
    assert 50 < full < 64 and all("it is full (64 entries)" in error for error in errors[full:]), errors[
        full:
    ]
    assert doctor(host) == "No problems found.\n"
    gone = [(method, fields) for number in range(3, 71) for method, fields in stopping(1, number)[2:]]
    answered(at_once(host, gone))
    assert not changes(before, host)
    assert not any(
        "Err" in reply for reply in answered(at_once(host, starting(1, 90, "10.5.0.90/16", "8090:80")))
    )
    assert doctor(host) == "No problems found.\n"


# ---- several at once, and none -------------------------------------------------------------------------------------


def test_s25_two_daemons_at_once_have_what_they_asked_for(host: Host) -> None:
    """Each with a network of its own, four containers at a time; of a port that both want one has it."""
    look.settled(host)

    def daemon(number: int) -> list[str]:
        network, refused = number, []
        door.ask(create_network(network, f"10.{50 + number}.0.0/16"))

        def container(slot: int) -> None:
            for turn in range(3):
                endpoint = 1000 * number + 100 * slot + turn
                port = 8000 + (slot if turn else 0)
                try:
                    door.ask(*starting(network, endpoint, f"10.{50 + number}.0.{slot}/16", f"{port}:80"))
                except Refused as error:
                    refused.append(str(error))
                if turn < 2:
                    door.ask(*stopping(network, endpoint))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(container, range(2, 6)))
        return refused

    with contextlib.closing(Door(host)) as door:
        with ThreadPoolExecutor(2) as pool:
            refused = [text for texts in pool.map(daemon, (1, 2)) for text in texts]
        assert refused and all("already allocated" in text for text in refused), refused
        assert doctor(host) == "No problems found.\n"
        published = [json.loads(line)["HostPort"] for line in host.ctl("port ls --json").splitlines()]
        assert sorted(published) == [8002, 8003, 8004, 8005]
        for number in (1, 2):
            door.ask(("DeleteNetwork", {"NetworkID": ident(number)}))
    host.ctl("down")
    assert not any(Path(host.folder / "state").glob("*"))


def test_s25_nothing_runs_and_nothing_listens_once_docker_asks_nothing(host: Host) -> None:
    """Connections that it keeps open, and one on which it has begun to say something, keep nothing alive."""
    look.settled(host)
    before = host.sh("ss -xltnup"), look.members_of(look.namespace_of(host.pid))
    with contextlib.closing(Door(host, "--idle", "2s")) as door, contextlib.ExitStack() as stack:
        door.ask(create_network(1), *starting(1, 2, "10.5.0.2/16", "8080:80"))
        for said in (b"", HALF, b"POST /Plugin.Activate HTTP/1.1\r\n\r\n"):
            opened = stack.enter_context(socket.socket(socket.AF_UNIX))
            opened.connect(str(door.path))
            opened.sendall(said)
        assert door.process.wait(TIMEOUT) == 0
    assert not door.path.exists()
    assert (host.sh("ss -xltnup"), look.members_of(look.namespace_of(host.pid))) == before
    assert doctor(host) == "No problems found.\n"


# ---- the reference ---------------------------------------------------------------------------------------------------

POOLS = ("10.51.0.0/16", "10.52.0.0/16", "10.52.128.0/17")


def by_chance(chance: random.Random) -> Words:
    """Any request, about one of a few networks, endpoints, addresses, ports and sandboxes."""
    network, endpoint = chance.randrange(1, 5), chance.randrange(10, 16)
    address = f"{POOLS[network % 3].split('.')[0]}.{POOLS[network % 3].split('.')[1]}.128.{chance.randrange(2, 5)}/16"
    ports = [f"{port}:{port}" for port in chance.sample((8080, 8081, 8082), chance.randrange(3))]
    path = f"/run/docker/netns/{chance.randrange(3)}"
    words = [
        create_network(network, POOLS[network % 3]),
        *starting(network, endpoint, address, *ports, path=path) * 3,
        *stopping(network, endpoint),
        ("DeleteNetwork", {"NetworkID": ident(network)}),
    ]
    return chance.choice(words)


def view(state: State) -> dict[str, object]:
    """What a state says of Docker's networks and endpoints, without what is of this host alone."""
    mine = {network.id: network for network in state.networks.values() if network.owner == "docker"}
    return {
        **{ident: [str(subnet.prefix) for subnet in network.subnets] for ident, network in mine.items()},
        **{
            endpoint.owner_key: (
                *(
                    endpoint.network_id,
                    str(endpoint.ipv4),
                    endpoint.mac,
                    endpoint.handed_over,
                    endpoint.gateway4,
                ),
                *(state.sandboxes[endpoint.sandbox_id].key, sorted(map(str, endpoint.ports))),
            )
            for endpoint in state.endpoints.values()
        },
        "sandboxes": len(state.sandboxes),
    }


def masked(reply: dict[str, Any]) -> str:
    """Its error, without ids, some of which are of chance."""
    return re.sub(r"\b[0-9a-f]{12}\b", "ID", reply.get("Err", ""))


def test_s25_whatever_is_asked_in_whatever_order_the_host_is_as_the_plans_say(host: Host) -> None:
    """A walk of chance, at the real host and at one that carries out nothing but the plans. Some requests are killed at
    one of their steps, and asked again."""
    chance, planned = random.Random(26), Planned()
    refused = 0
    with counting():
        for turn in range(60 if LONG else 12):
            words = [by_chance(chance) for _ in range(20)]
            replies = answered(at_once(host, words[:-2]))
            for last in words[-2:]:
                at_once(host, [last], f"kill@{chance.randrange(1, 25)}")
                replies += answered(at_once(host, [last]))
            for (method, fields), reply in zip(words, replies, strict=True):
                expected = planned.raw(f"NetworkDriver.{method}", json.dumps(fields).encode())[1]
                assert masked(reply) == masked(expected), (method, fields)
                refused += "Err" in reply
            assert view(library(host).snapshot()) == view(planned.engine.state), turn
            assert doctor(host) == "No problems found.\n", turn
    assert 20 < refused < 200 or LONG
