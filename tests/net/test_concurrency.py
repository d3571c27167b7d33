# SPDX-License-Identifier: Apache-2.0
"""S30: many commands at once. DATAPATH_LONG=1: sixteen processes for a minute."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.net import forked, look, serial
from tests.net.agents import agent
from tests.net.hosts import SLOWNESS, Host, eventually, reaches
from tests.net.serial import Done
from tests.net.test_faults import unknown

LONG = bool(os.environ.get("DATAPATH_LONG"))
PROCESSES, SECONDS, CELLS = (16, 60, 4) if LONG else (6, 1, 1)
PATIENCE = 90 * SLOWNESS  # more than the lock's own
SEED = 31

# In a cell's own words: see `real`. How often, relative to each other.
COMMANDS = {
    "run -d --name {c} --network base sleep 3600": ("run", 3),
    "run -d --name {c} --network base --network n sleep 3600": ("run --network", 3),
    "rm -f {c}": ("rm", 3),
    "network create n": ("network create", 3),
    "network rm n": ("network rm", 2),
    "network connect n {c}": ("connect", 3),
    "network disconnect n {c}": ("disconnect", 2),
    "port add {c} 80:80": ("port add", 3),
    "port rm {c} 80:80": ("port rm", 2),
    "ps --format {{{{.Names}}}}": ("ps", 3),
    "network ls --format {{{{.Name}}}}": ("network ls", 3),
    "network inspect n": ("network inspect", 3),
}
READERS = {"ps", "network ls", "network inspect"}


def real(words: list[str], cell: int) -> list[str]:
    """Names and port of a cell as they are on the host."""
    names = {"a": f"a{cell}", "b": f"b{cell}", "n": f"n{cell}", "80:80": f"80{cell:02}:80"}
    return [names.get(word, word) for word in words]


def unreal(text: str, cell: int) -> str:
    for name in "abn":
        text = text.replace(f"{name}{cell}", name)
    return text.replace(f"80{cell:02}", "80")


def members(text: str) -> str:
    """The names of the containers in what `network inspect` said."""
    return " ".join(found["Name"] for found in json.loads(text)[0]["Containers"].values())


def work(host: Host, number: int, until: float, log: Path) -> None:
    randomness = random.Random(f"{SEED} {number}")
    weights = [weight for _, weight in COMMANDS.values()]
    with log.open("w") as file:
        while time.monotonic() < until:
            cell, name = randomness.randrange(CELLS), randomness.choice("ab")
            command = randomness.choices([*COMMANDS], weights)[0]
            words = command.format(c=name).split()
            began = time.monotonic()
            done = host.try_ctl(real(words, cell), PATIENCE)
            ended = time.monotonic()
            said = done.stdout if done.returncode == 0 else done.stderr
            if COMMANDS[command][0] == "network inspect" and done.returncode == 0:
                said = members(said)
            about = name if "{c}" in command else ""
            row = (cell, began, ended, COMMANDS[command][0], about, done.returncode, said.strip())
            print(json.dumps(row), file=file)


def at_once(host: Host, folder: Path) -> list[tuple[int, Done]]:
    """What each of the processes has seen: (cell, command)."""
    host.try_ctl("ps")  # it is loaded before it is forked
    until = time.monotonic() + SECONDS
    children = {}
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(host, number, until, folder / f"{number}")
                code = 0
            finally:
                os._exit(code)
        children[pid] = number
    for pid in children:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"process {children[pid]}"
    rows: list[Any] = [
        json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()
    ]
    return [(cell, Done(*rest)._replace(said=unreal(rest[-1], cell))) for cell, *rest in rows]


def histories(rows: list[tuple[int, Done]]) -> list[list[Done]]:
    """By cell. `ps` looks at whether a process lives, so that each container has a moment of its own."""
    found: list[list[Done]] = [[] for _ in range(CELLS)]
    for cell, done in rows:
        if done.verb == "ps":
            found[cell] += [done._replace(name=name) for name in "ab"]
        else:
            found[cell].append(done)
    return found


def last(host: Host, cell: int) -> list[Done]:
    """What there is in the end."""
    now = time.monotonic()
    found = []
    for command in ("ps --format {{.Names}}", "network ls --format {{.Name}}", "network inspect n"):
        done = host.try_ctl(real(command.split(), cell))
        said = done.stdout if done.returncode == 0 else done.stderr
        verb = "network inspect" if "inspect" in command else command.partition(" --")[0]
        if verb == "network inspect" and done.returncode == 0:
            said = members(said)
        found.append(Done(now, now, verb, "", done.returncode, unreal(said.strip(), cell)))
    return found


CREATED = Done(0, 1, "network create", "", 0, "1")
RUN = Done(0, 1, "run", "a", 0, "1")
IMPOSSIBLE = {
    "made twice": [CREATED, CREATED],
    "lost": [CREATED, Done(2, 3, "network ls", "", 0, "bridge")],
    "there before it was made": [
        Done(0, 1, "network ls", "", 0, "n"),
        Done(2, 3, "network create", "", 0, "1"),
    ],
    "removed under a member": [
        Done(0, 1, "network create", "", 0, "1"),
        Done(2, 3, "run --network", "a", 0, "1"),
        Done(4, 5, "network rm", "", 0, "n"),
    ],
    "one port for two": [
        *(Done(0, 1, "run", name, 0, "1") for name in "ab"),
        *(Done(2, 3, "port add", name, 0, "80:80/tcp") for name in "ab"),
    ],
    "there after it was removed": [RUN, Done(2, 3, "rm", "a", 0, "a"), Done(4, 5, "ps", "a", 0, "a")],
    "refused for nothing": [RUN, Done(2, 3, "connect", "a", 3, "datapathctl: No such container: a")],
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_order_explains_is_found(what: str) -> None:
    history = IMPOSSIBLE[what]
    assert serial.explained(history) is not None
    # At the same time almost everything is possible; what is not is so in any order.
    together = serial.explained([done._replace(began=0, ended=9) for done in history])
    assert (together is not None) == (what in ("made twice", "removed under a member", "one port for two"))


@contextlib.contextmanager
def followed(host: Host) -> Iterator[None]:
    """An agent that has something to do all the time: an address comes and goes."""
    stop = host.folder / "stop"
    change = "ip address add 192.0.2.7/24 dev eth0; ip address del 192.0.2.7/24 dev eth0"
    with agent(host) as one:
        churn = host.start(["sh", "-c", f"while ! [ -e {stop} ]; do {change}; sleep 0.02; done"])
        try:
            yield
        finally:
            stop.touch()
            churn.wait()
        assert one.process.poll() is None
        assert not [line for line in one.said if ": new" not in line and ": gone" not in line][1:], one.said


@pytest.mark.parametrize("beside", ["nothing", "an agent"])
def test_s30_commands_at_once_say_and_do_what_some_order_of_them_would(
    host: Host, tmp_path: Path, beside: str
) -> None:
    host.ctl("network create base")
    host.run("bystander")
    folder = tmp_path / "logs"
    folder.mkdir()
    with followed(host) if beside == "an agent" else contextlib.nullcontext():
        rows = at_once(host, folder)
    for cell in range(CELLS):
        rows += [(cell, done) for done in last(host, cell)]
    for cell, history in enumerate(histories(rows)):
        wrong = serial.explained(history)
        assert wrong is None, f"cell {cell}: {wrong}, among\n" + "\n".join(
            str(done) for done in sorted(history) if wrong.began < done.ended and done.began < wrong.ended
        )
    assert len(rows) > PROCESSES
    report(rows)
    host.ctl("_exited nobody 0")
    assert host.try_ctl("doctor").stdout == "No problems found.\n"
    assert host.ctl("reconcile") == ""
    assert not unknown(host)
    assert reaches(host.try_, host.address("bystander"))


def report(rows: list[tuple[int, Done]]) -> None:
    """For `pytest -s`."""
    for title, readers in (("readers", True), ("writers", False)):
        times = sorted(done.ended - done.began for _, done in rows if (done.verb in READERS) == readers)
        refused = sum(done.code != 0 for _, done in rows if (done.verb in READERS) == readers)
        print(
            f"\n{title}: {len(times)} ({refused} refused), median {times[len(times) // 2]:.2f} s, "
            f"longest {times[-1]:.2f} s"
        )
    print(Counter(f"{done.verb}: {'done' if done.code == 0 else 'refused'}" for _, done in rows))


# ---- a writer that stands still ---------------------------------------------------------------------------


def stop_with_the_lock() -> None:
    """In the forked child: it stops while it holds the lock, with rows of what is about to be."""
    from datapath.engine import endpoints

    real = endpoints.attach

    def join(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return real(*arguments)

    endpoints.attach = join  # type: ignore[assignment]


class Standing:
    """A command that has the lock, and was stopped; `go_on` lets it, in the end it is killed if it has not."""

    def __init__(self, host: Host, command: str) -> None:
        forked.in_child.append(stop_with_the_lock)
        try:
            self.caller = in_background(host, command)
        finally:
            forked.in_child.remove(stop_with_the_lock)
        children = Path(f"/proc/{self.caller}/task/{self.caller}/children")
        with eventually() as until:
            until(lambda: children.read_text().split() and state_of(int(children.read_text())) == "T")
        self.pid = int(children.read_text())

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.caller, 0)


def in_background(host: Host, command: str) -> int:
    """A process that gives the command, and ends with its exit code."""
    caller = os.fork()
    if caller == 0:
        code = 99
        try:
            code = host.try_ctl(command, PATIENCE).returncode
        finally:
            os._exit(code)
    return caller


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


LOOKING = ("ps -a", "network ls", "inspect web", "port ls", "ct ls", "exec web true")


def test_s30_who_only_looks_does_not_wait_for_a_writer_that_was_stopped(host: Host) -> None:
    host.run("web", "-p 8081:80")
    with contextlib.closing(Standing(host, "run -d --name late sleep 3600")):
        for command in LOOKING:
            times = []
            for _ in range(20):  # the quickest: the machine may be slow, the writer stands still throughout
                began = time.monotonic()
                assert host.try_ctl(command).returncode == 0, command
                times.append(time.monotonic() - began)
                if times[-1] < 1:
                    break
            assert min(times) < SLOWNESS, f"{command}: {times}"
    assert host.ctl("network create x")


def waits_for_the_lock(host: Host) -> bool:
    inode = (host.folder / "state" / "lock").stat().st_ino
    return any(
        "->" in line and line.split()[-3].endswith(f":{inode}")
        for line in Path("/proc/locks").read_text().splitlines()
    )


@pytest.mark.parametrize("command", ["rm -f t", "stop -t 0 t", "down"])
def test_s30_a_container_that_is_ended_while_it_is_being_started_does_not_run_on(
    host: Host, command: str
) -> None:
    """The end is asked for when there is a row and no process yet, and its turn comes when there is one."""
    host.run("other")
    with contextlib.closing(Standing(host, "run -d --name t sleep 3600")) as run:
        pid = host.process("t")
        ending = in_background(host, command)
        with eventually() as until:
            until(lambda: waits_for_the_lock(host))
        run.go_on()
        assert os.waitstatus_to_exitcode(os.waitpid(ending, 0)[1]) == 0
    assert not look.alive(pid)
    if command != "down":
        assert host.ctl("ps --format {{.Names}}") == "other"


def test_commands_can_be_forked_while_another_thread_of_the_tests_reads_the_rows(host: Host) -> None:
    """A lock of SQLite's that this thread holds then would be held in the command for good."""
    host.run("web")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            host.process("web")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert {host.try_ctl("ps -q").returncode for _ in range(12)} == {0}
    finally:
        done.set()
        reader.join()
