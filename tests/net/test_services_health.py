# SPDX-License-Identifier: Apache-2.0
"""S26: health of services' backends, which the agent checks; and connections of drained ones. Servers are real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from datapath.engine.backends import moment
from datapath.store.sole import AGENT, HEALTH
from tests.net import forked
from tests.net.agents import Agent, agent
from tests.net.hosts import HOST, Host, eventually
from tests.net.services import failed, heard, keeper, keeping, names, serve
from tests.net.test_agent import allowed
from tests.net.test_services import NET, kept, vip

LONG = bool(os.environ.get("DATAPATH_LONG"))
QUICK = "--health-interval 50ms --health-timeout 5s --health-retries 2"

# Listens while the file is there; answers with its name, and then whatever comes.
SWITCHED = """
import os, socket, sys, threading, time
name, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def answer(client):
    client.sendall(name.encode() + b" x\\n")
    while part := client.recv(1000):
        client.sendall(part)
server = None
def accept(server):
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(client,), daemon=True).start()
while True:
    if os.path.exists(path) and server is None:
        server = socket.create_server(("", port), reuse_port=True)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    elif server is not None and not os.path.exists(path):
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        server = None
    time.sleep(0.01)
"""

# The agent, which grows when it is told to; and is not there again before the file is.
GROWING = """
import os, runpy, signal, sys, time
file = sys.argv[1]
kept = []
signal.signal(signal.SIGUSR1, lambda *_: kept.append(b"x" * (64 << 20)))
while "DATAPATH_AGENT_SHRUNK" in os.environ and not os.path.exists(file):
    time.sleep(0.01)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# What a hostile backend does on its port 90.
HOSTILE = {
    "silent": "s.listen()\nwhile True: c.append(s.accept())",
    "dripping": "s.listen()\nwhile True:\n k=s.accept()[0]; c.append(k); k.send(b'H')",
    "flooding": "s.listen()\nwhile True:\n k=s.accept()[0]\n try:\n  while True: "
    "k.send(b'HTTP/1.1 200 x\\r\\nA: '+b'a'*65000)\n except OSError: pass",
    "garbled": "s.listen()\nwhile True:\n k=s.accept()[0]; k.send(b'\\0\\xff\\r\\n\\r\\n'); k.close()",
    "closing": "s.listen()\nwhile True: s.accept()[0].close()",
}
TALK = "import socket\nc=[]\ns=socket.socket()\ns.setsockopt(1,2,1)\ns.bind(('',90))\n"


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Iterator[Host]:
    shared_host.ctl("network create --subnet 10.71.0.0/24 shop")
    yield shared_host
    shared_host.ctl("network rm shop")


@pytest.fixture(scope="module")
def agents(prepared: Host) -> Iterator[list[Agent]]:
    """The host's agent, if one is at work: tests share it."""
    found: list[Agent] = []
    yield found
    for one in found:
        one.close()


@pytest.fixture
def watched(prepared: Host, agents: list[Agent]) -> Agent:
    """An agent is at work, with what its unit leaves it; the test does not end it."""
    if not agents:
        agents.append(Agent(prepared, "setpriv", f"--bounding-set={allowed()}", "--no-new-privs"))
    return agents[0]


@pytest.fixture
def alone(agents: list[Agent]) -> None:
    """None is."""
    while agents:
        agents.pop().close()


@pytest.fixture(autouse=True)
def clean(prepared: Host) -> Iterator[None]:
    yield
    if services := prepared.ctl("service ls -q").split():
        prepared.ctl(["service", "rm", *services])
    if left := prepared.ctl("ps -aq").split():
        prepared.ctl(["rm", "-f", *left])
    assert prepared.ctl("doctor") == "No problems found."


def states(host: Host, name: str = "web") -> dict[str, str]:
    rows = (
        line.split()
        for line in host.ctl(["service", "ps", name, "--format", "{{.Container}} {{.State}}"]).splitlines()
    )
    return dict(rows)


def become(host: Host, wanted: dict[str, str], name: str = "web") -> None:
    """Waits until backends have these states."""
    with eventually() as until:
        until(lambda: wanted.items() <= states(host, name).items())


def asked(host: Host, count: int = 30) -> Counter[str]:
    """Who answers the client."""
    return names(heard(lambda argv: host.try_in("client", argv), "tcp", vip(host), 80, count))


def switched(host: Host, name: str, file: Path, options: str = "") -> None:
    """A backend whose server listens while the file is there."""
    host.run(name, f"{NET} --service web {options}", ["python3", "-u", "-c", SWITCHED, name, "80", str(file)])


def marks(tmp_path: Path, *names_: str) -> list[Path]:
    files = [tmp_path / name for name in names_]
    for file in files:
        file.touch()
    return files


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("test", ["--health-tcp 80", "--health-cmd", "--health-http"])
def test_s26_a_backend_that_fails_its_checks_gets_no_connection_until_it_passes_one(
    prepared: Host, tmp_path: Path, test: str
) -> None:
    """By a connection; by a command; by nginx, which answers 200 or 404. No connection fails once the state is told."""
    w1, w2 = marks(tmp_path, "w1", "w2")
    option: list[str] = test.split()
    if test == "--health-cmd":
        option = [test, f"test -e {tmp_path}/$(cat /etc/hostname)"]
    elif test == "--health-http":
        option = [test, ":81/alive"]
    prepared.ctl(["service", "create", *NET.split(), *option, *QUICK.split(), "web"])
    for name, file in (("w1", w1), ("w2", w2)):
        if test == "--health-tcp 80":
            switched(prepared, name, file)
        else:
            prepared.run(name, f"{NET} --service web --hostname {name}", ["sh", "-c", nginx(tmp_path, name)])
    prepared.run("client", NET)
    become(prepared, {"w1": "up", "w2": "up"})
    assert set(asked(prepared)) == {"w1", "w2"}
    turn(tmp_path, w1, test, on=False)
    become(prepared, {"w1": "unhealthy", "w2": "up"})
    assert asked(prepared, 60) == {"w2": 60}
    assert REASONS[test] in inspected(prepared, "w1")["Reason"]
    assert prepared.ctl("doctor") == "No problems found."
    turn(tmp_path, w1, test, on=True)
    become(prepared, {"w1": "up"})
    assert set(asked(prepared)) == {"w1", "w2"}


@pytest.mark.usefixtures("watched")
def test_s26_under_load_no_connection_fails_once_a_backend_is_told_to_be_unhealthy(
    prepared: Host, tmp_path: Path
) -> None:
    """Its server goes on and is slow: connections that are open go on too."""
    (w1,) = marks(tmp_path, "w1")
    prepared.ctl(
        [
            "service",
            "create",
            *NET.split(),
            "--health-cmd",
            f"test -e {w1} || test $(hostname) != w1",
            *QUICK.split(),
            "web",
        ]
    )
    for name in ("w1", "w2"):
        serve(prepared, name, f"{NET} --service web --hostname {name}", "shop")
    prepared.run("client", NET)
    become(prepared, {"w1": "up", "w2": "up"})
    address = vip(prepared)
    with ThreadPoolExecutor(1) as pool, kept(prepared, "client", keeper(address, 80, 20)) as (process, where):
        assert set(where) == {"w1", "w2"}
        load = pool.submit(asked, prepared, 600)
        w1.unlink()
        become(prepared, {"w1": "unhealthy"})
        assert asked(prepared, 200) == {"w2": 200}
        assert sum(load.result().values()) == sum(load.result()[name] for name in ("w1", "w2")) == 600
        assert failed(process) == []


@pytest.mark.usefixtures("watched")
def test_s26_one_that_starts_gets_nothing_until_its_first_success_and_clients_are_refused_at_once(
    prepared: Host, tmp_path: Path
) -> None:
    file = tmp_path / "w1"
    prepared.ctl(f"service create {NET} --health-tcp 80 --health-start-period 1h web")
    assert prepared.ctl("doctor") == "No problems found."  # the agent has heard of it
    prepared.run("client", NET)
    switched(prepared, "w1", file)
    with eventually() as until:
        until(lambda: inspected(prepared, "w1").get("Reason") == "connect to port 80: Connection refused")
    before = prepared.drops().get("DROP_NO_BACKEND", 0)
    assert states(prepared) == {"w1": "starting"}
    assert prepared.ctl("service ls --format {{.Backends}}") == "0/1"
    assert asked(prepared, 3) == {"ConnectionRefusedError": 3}
    assert prepared.drops()["DROP_NO_BACKEND"] >= before + 3
    assert prepared.ctl("doctor") == "No problems found."
    file.touch()
    become(prepared, {"w1": "up"})
    assert asked(prepared, 3) == {"w1": 3}


@pytest.mark.usefixtures("watched")
def test_s26_connections_live_on_when_all_backends_are_unhealthy(prepared: Host, tmp_path: Path) -> None:
    (alive,) = marks(tmp_path, "alive")
    prepared.ctl(
        ["service", "create", *NET.split(), "--health-cmd", f"test -e {alive}", *QUICK.split(), "web"]
    )
    serve(prepared, "w1", f"{NET} --service web", "shop")
    prepared.run("client", NET)
    become(prepared, {"w1": "up"})
    with kept(prepared, "client", keeper(vip(prepared), 80, 5)) as (process, _):
        alive.unlink()
        become(prepared, {"w1": "unhealthy"})
        assert asked(prepared, 3) == {"ConnectionRefusedError": 3}
        prepared.ctl("service update --no-healthcheck web")
        assert states(prepared) == {"w1": "up"} and asked(prepared, 3) == {"w1": 3}
        assert failed(process) == []


@pytest.mark.usefixtures("watched")
def test_s26_hostile_backends_cost_nobody_but_themselves(prepared: Host, tmp_path: Path) -> None:
    """They never answer, or without end; close, or send what is no HTTP; commands hang, flood, and leave processes."""
    (good,) = marks(tmp_path, "good")
    quick = [*QUICK.split(), "--health-timeout", "2s"]
    commands = {
        "hanging": "trap '' TERM; while :; do sleep 9; done",
        "loud": "yes",
        "forking": "for n in 1 2 3 4 5; do sleep 1000 & done; exit 1",
        "missing": "exec /no/such/program",
    }
    choose = "".join(f"{name}) {text};; " for name, text in commands.items())
    prepared.ctl(
        [
            "service",
            "create",
            *NET.split(),
            "--health-cmd",
            f"case $(hostname) in {choose} esac",
            *quick,
            "cmd",
        ]
    )
    prepared.ctl(
        ["service", "create", *NET.split(), "--health-cmd", f"test -e {good}", *QUICK.split(), "fine"]
    )
    for name, text in HOSTILE.items():
        prepared.run(name, f"{NET} --label app=web", ["python3", "-c", TALK + text])
    for name in commands:
        prepared.run(name, f"{NET} --service cmd --hostname {name} --user nobody")
    prepared.run(
        "redirects",
        f"{NET} --label app=web",
        [
            "python3",
            "-c",
            TALK
            + HOSTILE["closing"].replace(
                "s.accept()[0].close()",
                "k=s.accept()[0]; k.send(b'HTTP/1.0 302 x\\r\\nLocation: /\\r\\n\\r\\n'); k.close()",
            ),
        ],
    )
    prepared.run("one", f"{NET} --service fine")
    for name in (*HOSTILE, "redirects"):
        with eventually() as until:
            until(partial(listening, prepared, name))
    prepared.ctl(f"service create {NET} --selector app=web --health-http :90/ {' '.join(quick)} web")
    become(prepared, dict.fromkeys(HOSTILE, "unhealthy") | {"redirects": "up"})
    become(prepared, dict.fromkeys(commands, "unhealthy"), "cmd")
    become(prepared, {"one": "up"}, "fine")
    good.unlink()
    become(prepared, {"one": "unhealthy"}, "fine")
    good.touch()
    become(prepared, {"one": "up"}, "fine")
    said = {name: inspected(prepared, name)["Reason"] for name in HOSTILE}
    said |= {name: inspected(prepared, name, "cmd")["Reason"] for name in commands}
    for name, text in SAID.items():
        assert text in said[name], said


def listening(host: Host, name: str) -> bool:
    """The container's server is there."""
    return ":90 " in host.in_(name, "ss -Hltn")


SAID = {
    "silent": "no success within 2 s",
    "dripping": "no success within 2 s",
    "flooding": "the head of the answer has more than 16384 bytes",
    "garbled": "the answer is no HTTP",
    "closing": "GET:",
    "hanging": "no success within 2 s",
    "loud": "",  # too much, or, on a slow machine, too late
    "forking": "exit code 1",
    "missing": "exit code 127",
}


# ---- without the agent ---------------------------------------------------------------------------------------------


def sick(host: Host, folder: Path) -> Path:
    """A service with two backends, of which one does not pass its check without the file; and a client."""
    host.ctl(
        [
            "service",
            "create",
            *NET.split(),
            "--health-cmd",
            f"test -e {folder}/w1 || test $(hostname) != w1",
            *QUICK.split(),
            "web",
        ]
    )
    for name in ("w1", "w2"):
        serve(host, name, f"{NET} --service web --hostname {name}", "shop")
    host.run("client", NET)
    return folder / "w1"


@pytest.mark.usefixtures("alone")
def test_s26_without_an_agent_every_backend_is_up_and_doctor_says_so(prepared: Host, tmp_path: Path) -> None:
    """However the agent has ended. One that begins knows what was found before."""
    sick(prepared, tmp_path)
    assert states(prepared) == {"w1": "up", "w2": "up"}
    for end in ("kill", "end", ""):
        with agent(prepared) as one:
            become(prepared, {"w1": "unhealthy", "w2": "up"})
            assert asked(prepared, 20) == {"w2": 20}
            if end == "end":
                one.end()
                assert set(asked(prepared)) == {"w1", "w2"}  # at once
            elif end == "kill":
                one.kill()
                found = prepared.try_ctl("doctor")
                assert "its backends are not checked: no agent is at work on this host" in found.stdout
                prepared.ctl("network create other")
                prepared.ctl("network rm other")
                assert set(asked(prepared)) == {"w1", "w2"}
        if end:
            assert states(prepared) == {"w1": "up", "w2": "up"}
            found = prepared.try_ctl("doctor --format json")
            assert [json.loads(line)["Check"] for line in found.stdout.splitlines()] == ["health-unchecked"]
    prepared.ctl("service update --no-healthcheck web")


@pytest.mark.usefixtures("alone")
def test_s26_what_was_found_holds_while_the_agent_starts_itself_again_for_its_memory(
    prepared: Host, tmp_path: Path
) -> None:
    """Commands that come in between give no backend connections that fails its checks, and no other agent begins."""
    file, (begun,) = sick(prepared, tmp_path), marks(tmp_path, "begun")
    begun.unlink()
    with agent(prepared, sys.executable, "-c", GROWING, str(begun)) as one:
        become(prepared, {"w1": "unhealthy", "w2": "up"})
        os.kill(one.pid, signal.SIGUSR1)
        one.says("MB are in use: starting again")
        assert states(prepared) == {"w1": "unhealthy", "w2": "up"}
        assert inspected(prepared, "w1")["Reason"] == "exit code 1"
        prepared.ctl("network create other")
        prepared.ctl("network rm other")
        assert prepared.ctl("doctor") == "No problems found."
        assert asked(prepared) == {"w2": 30}
        assert prepared.refused("agent").startswith("datapathctl: another agent is at work already")
        begun.touch()
        with eventually() as until:
            until(lambda: sum("following the host" in line for line in one.said) == 2)
        assert states(prepared) == {"w1": "unhealthy", "w2": "up"} and asked(prepared) == {"w2": 30}
        file.touch()
        become(prepared, {"w1": "up", "w2": "up"})
        prepared.ctl("service update --no-healthcheck web")
        assert one.end() == 0
    assert not {AGENT, HEALTH} & set(os.listdir(prepared.folder / "state"))


@pytest.mark.usefixtures("alone")
def test_s26_an_agent_that_is_killed_at_any_moment_leaves_what_the_next_command_mends(
    prepared: Host, tmp_path: Path
) -> None:
    file = sick(prepared, tmp_path)
    prepared.ctl("service update --health-interval 10ms --health-retries 1 web")
    for step in range(12 if LONG else 4):
        with agent(prepared) as one:
            file.touch()
            become(prepared, {"w1": "up"})
            file.unlink()
            if step % 2:
                become(prepared, {"w1": "unhealthy"})
                file.touch()
            time.sleep(step * 0.005)  # any moment
            one.kill()
        prepared.try_ctl("reconcile")
        left = prepared.try_ctl("doctor --format json").stdout.splitlines()
        assert [json.loads(line)["Check"] for line in left] == ["health-unchecked"]
        assert set(asked(prepared)) == {"w1", "w2"}
    prepared.ctl("service update --no-healthcheck web")


# ---- draining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["watched", "alone"])
def test_s26_connections_of_a_drained_backend_end_with_the_stop_grace_period(
    prepared: Host, who: str, request: pytest.FixtureRequest
) -> None:
    """By the agent; without one by the next command."""
    request.getfixturevalue(who)
    prepared.ctl(f"service create {NET} -p 8080:80 --stop-grace-period 500ms web")
    for name in ("w1", "w2"):
        serve(prepared, name, f"{NET} --service web", "shop")
    prepared.run("client", NET)
    with ExitStack() as stack:
        process, where = stack.enter_context(kept(prepared, "client", keeper(vip(prepared), 80, 20)))
        outside = stack.enter_context(from_outside(prepared))
        drained = {number for number, name in enumerate(where) if name == "w1"}
        assert drained and open_to(prepared, "w1") >= len(drained)
        prepared.ctl("service drain web w1")
        if who == "alone":
            with eventually() as until:
                until(lambda: all(end <= moment() for end in ends(prepared)))
            assert open_to(prepared, "w1")
            prepared.ctl("network create other")
            prepared.ctl("network rm other")
        with eventually() as until:
            until(lambda: not open_to(prepared, "w1"))
        assert ends(prepared) == [0] and open_to(prepared, "w2")
        assert set(failed(process)) == drained
        assert set(failed(outside[0])) == {n for n, name in enumerate(outside[1]) if name == "w1"}
        assert prepared.ctl("doctor") == "No problems found."
        prepared.ctl("service undrain web w1")
        assert set(asked(prepared)) == {"w1", "w2"} and not ends(prepared)


@contextlib.contextmanager
def from_outside(host: Host) -> Iterator[tuple[Popen[str], list[str]]]:
    """Connections by the published port."""
    process = host.outside.start(keeper(HOST, 8080, 10), stdin=PIPE, stdout=PIPE)
    with keeping(process) as found:
        yield found


def open_to(host: Host, name: str) -> int:
    """Connections that the container has by its service's address, and by its published port."""
    found = (host.ctl(f"ct ls --container {name} --dst {place} --format json") for place in (vip(host), HOST))
    return sum(len(lines.splitlines()) for lines in found)


def ends(host: Host) -> list[int]:
    """When connections of drained backends are to be ended."""
    with forked.database(host.folder / "state") as opened:
        (body,) = opened.execute("SELECT body FROM services").fetchone()
    return list(json.loads(body).get("ends", {}).values())


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--health-tcp 80 --no-healthcheck", "--no-healthcheck conflicts with --health-* options"),
        ("--health-tcp 80 --health-interval 1us", "Interval in Healthcheck cannot be less than 1ms"),
        ("--health-http http://x/", 'invalid --health-http "http://x/": expected [:PORT]/PATH, as in'),
        ("--stop-grace-period -1s", "--stop-grace-period cannot be negative"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(prepared: Host, options: str, said: str) -> None:
    assert said in prepared.refused(f"service create {NET} {options} web")
    assert not prepared.ctl("service ls -q")


def inspected(host: Host, container: str, name: str = "web") -> dict[str, Any]:
    """What `service inspect` says of a backend."""
    found = json.loads(host.ctl(f"service inspect {name}"))[0]["Backends"]
    return next(one for one in found if one["Name"] == container)


REASONS = {
    "--health-tcp 80": "connect to port 80: Connection refused",
    "--health-cmd": "exit code 1",
    "--health-http": "GET: 404 Not Found",
}


def nginx(folder: Path, name: str) -> str:
    """A shell's text: nginx, which answers its name at port 80 as a stream, and what there is of files at port 81."""
    root = folder / f"root-{name}"
    root.mkdir()
    (root / "alive").touch()
    conf = folder / f"{name}.conf"
    conf.write_text(
        f"daemon off; user root; pid {folder}/{name}.pid; error_log /dev/null; events {{}}\n"
        f"http {{ access_log off; server {{ listen 81; root {root}; }} }}\n"
    )
    server = f"python3 -u -c '{SWITCHED.replace(chr(39), chr(34))}' {name} 80 {root} &"
    return f"{server} exec nginx -c {conf}"


def turn(folder: Path, file: Path, test: str, on: bool) -> None:
    """What the check looks at is there, or not."""
    if test == "--health-http":
        file = folder / f"root-{file.name}" / "alive"
    file.touch() if on else file.unlink()
