# SPDX-License-Identifier: Apache-2.0
"""The agent, what of it needs no events: its unit file, what it says, the lock that it holds, its loop."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest

from ctl.agent import changes, loop, unit
from ctl.cli import main
from datapath.config.settings import Settings
from datapath.errors import InUseError
from datapath.model.host import Device, DeviceAddress, HostNetwork
from datapath.store.sole import Sole, discard

UNIT = Path("etc/systemd/system/datapathctl-agent.service")


def lines(root: Path, name: str) -> list[str]:
    found = (root / UNIT).read_text().splitlines()
    return [line.partition("=")[2] for line in found if line.startswith(f"{name}=")]


def test_the_unit_file_is_installed_and_taken_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DATAPATH_")]:
        monkeypatch.delenv(name)
    options = ["--root", str(tmp_path), "--program", "/usr/bin/datapathctl"]
    for _ in range(2):  # the second replaces what the first wrote
        assert main.run(["agent", "install", *options]) == 0
        assert capsys.readouterr().out == f"{tmp_path / UNIT}\n"
    assert lines(tmp_path, "ExecStart") == ["/usr/bin/datapathctl agent"]
    assert lines(tmp_path, "Environment") == []
    assert (tmp_path / UNIT).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / UNIT).parent.iterdir()] == [UNIT.name]
    assert main.run(["agent", "uninstall", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / UNIT}\n"
    assert not (tmp_path / UNIT).exists()
    assert main.run(["agent", "uninstall", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_the_directories_of_the_installation_are_in_the_unit_file(tmp_path: Path) -> None:
    settings = replace(
        Settings(), state_dir=Path('/srv/my "state" 100%'), attach="clsact", cgroup=Path("/cg")
    )
    unit.install(tmp_path, "/opt/data path/datapathctl", settings)
    assert lines(tmp_path, "Environment") == [
        r'"DATAPATH_STATE_DIR=/srv/my \"state\" 100%%"',
        "DATAPATH_CGROUP=/cg",
        "DATAPATH_ATTACH=clsact",
    ]
    assert lines(tmp_path, "ExecStart") == ['"/opt/data path/datapathctl" agent']


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_unit_file(tmp_path: Path) -> None:
    unit.install(tmp_path, "/bin/true", replace(Settings(), bpffs=Path("/srv/b p f")))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "/nowhere/at/all"], "--root must be a directory that is there, not"),
        (["--root", ""], "is empty"),
        (["--program", "bin/datapathctl"], "--program must be an absolute path, not"),
    ],
)
def test_a_wrong_place_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["agent", "install", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


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
