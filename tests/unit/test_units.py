# SPDX-License-Identifier: Apache-2.0
"""The units that commands install for systemd, and take away again."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ctl import units
from ctl.cli import main
from ctl.units import AGENT, DOCKER, Set
from datapath.config.settings import Settings

SETS = pytest.mark.parametrize("what", units.ALL, ids=lambda one: one.folder)


def places(root: Path, what: Set) -> list[Path]:
    return [root / units.FOLDER.relative_to("/") / name for name in what.names]


def lines(root: Path, what: Set, name: str) -> list[str]:
    """Values of the service."""
    text = next(path for path in places(root, what) if path.suffix == ".service").read_text()
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


@SETS
def test_unit_files_are_installed_and_taken_away(
    what: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DATAPATH_")]:
        monkeypatch.delenv(name)
    options = ["--root", str(tmp_path), "--program", "/usr/bin/datapathctl"]
    expected, there = "".join(f"{path}\n" for path in places(tmp_path, what)), places(tmp_path, what)
    for _ in range(2):  # the second replaces what the first wrote
        assert main.run([what.folder, "install", *options]) == 0
        assert capsys.readouterr() == (expected, "")
    assert lines(tmp_path, what, "ExecStart") == [f"/usr/bin/datapathctl {what.command}"]
    assert lines(tmp_path, what, "Environment") == []
    assert {path.stat().st_mode & 0o777 for path in there} == {0o644}
    assert sorted(there[0].parent.iterdir()) == sorted(there)
    assert main.run([what.folder, "uninstall", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == expected
    assert not list(there[0].parent.iterdir())
    assert main.run([what.folder, "uninstall", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


@SETS
def test_the_directories_of_the_installation_are_in_the_service(what: Set, tmp_path: Path) -> None:
    settings = replace(
        Settings(), state_dir=Path('/srv/my "state" 100%'), attach="clsact", cgroup=Path("/cg")
    )
    units.install(tmp_path, units.files(what, "/opt/data path/datapathctl", settings))
    assert lines(tmp_path, what, "Environment") == [
        r'"DATAPATH_STATE_DIR=/srv/my \"state\" 100%%"',
        "DATAPATH_CGROUP=/cg",
        "DATAPATH_ATTACH=clsact",
    ]
    assert lines(tmp_path, what, "ExecStart") == [f'"/opt/data path/datapathctl" {what.command}']


@SETS
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_unit_files(what: Set, tmp_path: Path) -> None:
    units.install(tmp_path, units.files(what, "/bin/true", replace(Settings(), bpffs=Path("/srv/b p f"))))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, places(tmp_path, what))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@SETS
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "/nowhere/at/all"], "--root must be a directory that is there, not"),
        (["--root", ""], "is empty"),
        (["--program", "bin/datapathctl"], "--program must be an absolute path, not"),
    ],
)
def test_a_wrong_place_is_refused(
    what: Set, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([what.folder, "install", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_the_service_manager_is_told_of_dockers_driver_and_without_one_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A systemctl that writes down what it is called with; the root of the file system is another."""
    calls = tmp_path / "calls"
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(units, "FOLDER", tmp_path / "units")
    there = False
    monkeypatch.setattr(units, "manager", lambda root: there)
    assert main.run(["docker", "install"]) == 0
    assert "docker serve --socket /run/docker/plugins/datapath.sock" in capsys.readouterr().err
    assert not calls.exists()
    there = True
    assert main.run(["docker", "install"]) == 0 and main.run(["docker", "uninstall"]) == 0
    assert calls.read_text().splitlines() == [
        "daemon-reload",
        "enable --now --quiet datapath-docker.socket",
        "disable --now --quiet datapath-docker.socket",
        "stop --quiet datapath-docker.service",
        "daemon-reload",
    ]
    fake.write_text("#!/bin/sh\necho 'Failed to reload: no bus' >&2; exit 1\n")
    capsys.readouterr()
    assert main.run(["docker", "install"]) != 0
    assert "systemctl daemon-reload: Failed to reload: no bus" in capsys.readouterr().err


def test_the_socket_is_where_docker_looks_and_roots_alone() -> None:
    from ctl.docker.protocol import SOCKET

    text = units.files(DOCKER, "/bin/true", Settings())[units.FOLDER / DOCKER.names[0]]
    assert f"ListenStream={SOCKET}\n" in text and "SocketMode=0600\n" in text
    assert AGENT.names[0] not in text
