# SPDX-License-Identifier: Apache-2.0
"""The agent, what of it needs no events: its unit file, what it says, the lock that it holds, its loop."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from ctl.agent import changes, loop
from datapath.errors import InUseError
from datapath.model.host import Device, DeviceAddress, HostNetwork
from datapath.store import locking
from datapath.store.sole import Sole, discard

UNIT = Path("etc/systemd/system/datapathctl-agent.service")


# ---- what it says --------------------------------------------------------------------------------------------


def network(*addresses: str, name: str = "eth0", **more: object) -> HostNetwork:
    device = Device(2, name, "", "02:00:00:00:00:01", 1500, True)
    held = tuple(DeviceAddress(2, 0, 0, ip_interface(address)) for address in addresses)
    return replace(HostNetwork({2: name}, {2: device}, held), **more)  # type: ignore[arg-type]


def test_a_change_is_a_line_and_many_are_one() -> None:
    before = network("192.0.2.1/24")
    assert list(changes.between(None, before)) == ["following the host: uplinks eth0"]
    assert list(changes.between(before, before)) == []
    assert list(changes.between(before, network("192.0.2.2/24"))) == [
        "address 192.0.2.2: new",
        "address 192.0.2.1: gone",
    ]
    assert list(changes.between(before, network())) == ["address 192.0.2.1: gone", "uplink eth0: gone"]
    assert list(changes.between(before, network("192.0.2.1/24", ephemeral=(1024, 65535)))) == [
        "port range: 1024-65535"
    ]
    many = network(*(f"10.0.0.{number}/24" for number in range(100)), "192.0.2.1/24")
    assert list(changes.between(before, many)) == ["address: 100 new"]
    beside = replace(before, other_nat=True)
    assert list(changes.between(before, beside)) == ["the packet filter masquerades, too"]
    assert list(changes.between(beside, before)) == ["the packet filter does not masquerade any more"]
    # Those of our own devices, and link-local ones, are nothing to tell.
    ours = network("172.17.0.1/16", name="docker0", ours=frozenset({"docker0"}))
    assert list(changes.between(replace(ours, addresses=()), ours)) == []
    assert list(changes.between(before, network("192.0.2.1/24", "fe80::1/64"))) == []


# ---- the lock ---------------------------------------------------------------------------------------------


def test_one_holds_the_lock_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state" / "agent"
    with Sole(path, "another agent") as first:
        with pytest.raises(InUseError, match="another agent is at work already"), Sole(path, "another agent"):
            pass
        discard(path)  # somebody holds it
        assert first.held
    assert not path.parent.exists()


def test_a_lock_whose_file_was_taken_away_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "agent"
    with Sole(path, "another agent") as first:
        shutil.rmtree(path.parent)
        assert not first.held
        first.take()
        assert first.held and path.exists()
        path.unlink()
        with Sole(path, "another agent"), pytest.raises(InUseError):
            first.take()


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("")
    discard(tmp_path / "agent")
    discard(tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


# Holds the lock, becomes another program, which may have it, and has; what a process that it starts gets of it.
HANDS_ON = """
import os, subprocess, sys
from pathlib import Path
from datapath.store.sole import Sole
sole = Sole(Path(sys.argv[1]), "another agent")
if len(sys.argv) == 2:
    sole.take()
    sole.hand_on()
    os.execv(sys.executable, [*sys.orig_argv, "again"])
print("again", flush=True)
sys.stdin.readline()
sole.inherit()
count = "import os, sys; print(os.path.samefile('/proc/self/fd/' + sys.argv[1], sys.argv[2]))"
argv = [sys.executable, "-c", count, str(sole._fd), sys.argv[1]]
started = subprocess.run(argv, close_fds=False, capture_output=True)
print(sole.held, started.returncode, "DATAPATH_LOCK_AGENT" in os.environ, flush=True)
sys.stdin.readline()
sole.release()
"""


def test_a_lock_is_held_on_as_its_process_becomes_another_program(tmp_path: Path) -> None:
    path = tmp_path / "state" / "agent"
    argv = [sys.executable, "-c", HANDS_ON, str(path)]
    with Popen(argv, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "again\n"
        assert locking.held(path)
        with pytest.raises(InUseError, match="another agent is at work already"), Sole(path, "another agent"):
            pass
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True 1 False\n"
        with pytest.raises(InUseError), Sole(path, "another agent"):
            pass
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == 0
    assert not path.parent.exists()


@pytest.mark.parametrize("text", ["", "x", "-1", "99999", "0"])
def test_what_is_no_descriptor_of_the_locks_file_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("DATAPATH_LOCK_AGENT", text)
    sole = Sole(tmp_path / "agent", "another agent")
    sole.inherit()
    assert not sole.held and not (tmp_path / "agent").exists()
    with sole:
        assert sole.held


# ---- the loop ---------------------------------------------------------------------------------------------


class Toy:
    """A job that does its part three times, when it is due and when somebody wrote; then the process is told to end."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.done: list[str] = []

    def wakes(self, now: float) -> Sequence[int]:
        return (self.reading,)

    def due(self) -> float:
        return 0.0 if len(self.done) == 1 else loop.NEVER

    def work(self, now: float) -> None:
        self.done.append("worked")
        if len(self.done) == 2:
            os.write(self.writing, b"x")
        elif len(self.done) == 3:
            os.read(self.reading, 1)
            os.kill(os.getpid(), 15)


def test_a_job_does_its_part_when_it_is_due_and_when_it_is_woken() -> None:
    said: list[str] = []
    toy = Toy()
    began = time.monotonic()
    loop.run((toy,), said.append)
    os.close(toy.reading)
    os.close(toy.writing)
    assert (len(toy.done), said) == (3, ["ended"])
    assert time.monotonic() - began < 60
