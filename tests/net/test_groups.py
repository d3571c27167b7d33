# SPDX-License-Identifier: Apache-2.0
"""Which control group a container is in: a detached one outlives its caller's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.kernel import cgroup
from tests.net.hosts import DATAPATHCTL, Host, eventually
from tests.net.test_doctor import doctor

ROOT = Path(cgroup.mount_point())


def group(pid: int | str) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Path]:
    """A control group as systemd makes one for a unit."""
    path = ROOT / f"datapath-test-{os.getpid()}"
    path.mkdir()
    yield path
    with eventually() as until:
        until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def within(unit: Path, host: Host, command: str) -> str:
    return host.sh(["sh", "-c", f"echo 0 > {unit}/cgroup.procs; exec {DATAPATHCTL} {command}"])


def end(unit: Path) -> None:
    """As systemd ends a unit: everything that is in its group."""
    for pid in (unit / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_a_detached_container_outlives_the_control_group_of_its_caller(host: Host, unit: Path) -> None:
    ident = within(unit, host, "run -d --name web sleep 3600")
    pid = host.process("web")
    assert group(pid).endswith(f"/datapath/{ident}")
    assert group(parent(pid)).endswith("/datapath")
    assert (unit / "cgroup.procs").read_text() == ""
    end(unit)
    assert host.in_("web", "echo here") == "here"
    host.ctl("stop -t 0 web")
    with eventually() as until:
        until(lambda: not (ROOT / "datapath" / ident).exists())
    within(unit, host, "start web")
    assert group(host.process("web")).endswith(f"/datapath/{ident}")
    assert doctor(host) == []
    host.ctl("down")
    assert not (ROOT / "datapath" / ident).exists()


def test_a_container_in_the_foreground_is_its_callers(host: Host, unit: Path) -> None:
    command = ["sh", "-c", f"echo 0 > {unit}/cgroup.procs; exec {DATAPATHCTL} run --name web sleep 3600"]
    caller = host.start(command)
    with eventually() as until:
        until(lambda: host.ctl("ps -q"))
    assert group(host.process("web")) == group(parent(host.process("web"))) == f"/{unit.name}"
    caller.terminate()
    caller.wait()
    host.ctl("rm -f web")


def test_where_no_group_can_be_made_the_container_runs_in_its_callers(host: Host, unit: Path) -> None:
    assert host.env is not None
    (unit / "cgroup.max.descendants").write_text("0")
    host.env["DATAPATH_CGROUP"] = str(unit)
    host.run("web")
    assert group(host.process("web")) == group("self")
    assert doctor(host) == []
    host.ctl("down")
    assert [path.name for path in unit.iterdir() if path.is_dir()] == []
