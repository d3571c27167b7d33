# SPDX-License-Identifier: Apache-2.0
"""S26 under load: backends are drained, come and go, and nobody's connection to another one fails."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net.hosts import HOST, PATIENCE, Host, eventually
from tests.net.services import asked, failed, keeper, serve
from tests.net.test_real_programs import nginx

NET = "--network shop"
VIP = "10.71.0.9"
ROUNDS = 167 if os.environ.get("DATAPATH_LONG") else 10  # of six changes
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    shared_host.preloaded = True
    shared_host.ctl("network create --subnet 10.71.0.0/24 shop")
    shared_host.ctl("network create --subnet 10.72.0.0/24 waiting")
    yield shared_host


@pytest.fixture
def host(prepared: Host) -> Iterator[Host]:
    prepared.ctl(f"service create {NET} -p 8080:80 --vip {VIP} web")
    prepared.run("client", NET)
    yield prepared
    assert prepared.ctl("doctor") == "No problems found."
    prepared.ctl("service rm web")
    prepared.ctl(["rm", "-f", *prepared.ctl("ps -aq").split()])
    assert prepared.ctl("doctor") == "No problems found."


def in_client(host: Host) -> Start:
    enter = ["nsenter", f"--net=/proc/{host.process('client')}/ns/net"]
    return lambda argv, **more: host.start([*enter, *argv], **more)


def keeping(start: Start, address: str, port: int) -> subprocess.Popen[str]:
    """Keeps twenty connections, to every backend that is up."""
    process = start(keeper(address, port, 20), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and set(process.stdout.readline().split()) == {"w1", "w2"}
    return process


def test_s26_no_connection_to_a_living_backend_fails_whatever_changes(host: Host) -> None:
    """Connections that are kept, and new ones without pause, of a member and of outside, while a backend joins that
    listens already, is drained and leaves, another one is drained and is back, and how one is chosen changes."""
    for name in ("w1", "w2"):
        serve(host, name, f"{NET} --service web", "shop")
    serve(host, "w3", "--network waiting", "waiting")
    join = "network connect --driver-opt com.datapath.service=web shop w3"
    algorithms = itertools.cycle(("random", "least-conn", "maglev"))
    found: list[Counter[str]] = []
    keepers = [keeping(in_client(host), VIP, 80), keeping(host.outside.start, HOST, 8080)]
    with (
        asked(in_client(host), VIP, 80) as of_member,
        asked(host.outside.start, HOST, 8080) as of_outside,
    ):
        found += [of_member, of_outside]
        for _ in range(ROUNDS):
            for change in (
                join,
                "service drain web w3",
                "network disconnect shop w3",
                "service drain web w1",
            ):
                host.ctl(change)
            host.ctl("service undrain web w1")
            host.ctl(f"service update --algorithm {next(algorithms)} web")
    assert [failed(process) for process in keepers] == [[], []]
    for answers in found:
        assert set(answers) == {"w1", "w2", "w3"} and sum(answers.values()) > 10 * ROUNDS


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_s26_wrk_hears_no_error_while_backends_are_drained(
    host: Host, tmp_path: Path, connection: str
) -> None:
    """A hundred connections that are kept, or one a request; each backend is drained in turn, and is back."""
    for number in (1, 2, 3):
        host.run(f"n{number}", f"{NET} --service web", nginx(tmp_path / str(number), 80))
    for number in (1, 2, 3):
        listens(host, host.address(f"n{number}", "shop"))
    wrk = ["wrk", "-t1", "-c100", "-d3600", "--timeout", "60", "-H", f"Connection: {connection}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [
        in_client(host)([*wrk, f"http://{VIP}/short"], **pipes),
        host.outside.start([*wrk, f"http://{HOST}:8080/short"], **pipes),
    ]
    for number in (1, 2, 3):
        if connection == "close":
            wait_for_more(host, *(f"n{n}" for n in (1, 2, 3)))
        host.ctl(f"service drain web n{number}")
        before = counts(host)[f"n{number}"]
        if connection == "close":
            wait_for_more(host, *(f"n{n}" for n in (1, 2, 3) if n != number))
        assert counts(host)[f"n{number}"] == before
        host.ctl(f"service undrain web n{number}")
    for process in running:
        process.send_signal(2)
        said = process.communicate(timeout=PATIENCE)[0]
        assert "Socket errors" not in said and "Non-2xx" not in said, said
        requests = re.search(r"([0-9]+) requests in", said)
        assert requests and int(requests[1]) > 1000, (said, host.drops(), host.ctl("service ps web"))


def counts(host: Host) -> dict[str, int]:
    """How many connections each backend was given."""
    rows = host.ctl(["service", "ps", "web", "--format", "{{.Container}} {{.Opened}}"]).splitlines()
    return {name: int(opened) for name, opened in map(str.split, rows)}


def wait_for_more(host: Host, *names: str) -> None:
    """Until each of these was given another connection."""
    before = counts(host)
    with eventually() as until:
        until(lambda: all(counts(host)[name] > before[name] for name in names))


def listens(host: Host, address: str) -> None:
    with eventually() as until:
        until(lambda: host.try_(f"curl -sf http://{address}/short").returncode == 0)
