# SPDX-License-Identifier: Apache-2.0
"""Unit files for systemd: what is installed where. Packages ask here, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datapath.config.settings import Settings
from datapath.errors import DatapathError, StateError

FOLDER = Path("/etc/systemd/system")
_CTL = Path(__file__).parent


class Set(NamedTuple):
    """Units that are installed together: `names` of files beside the modules in `folder`, and the command that they
    start, after its program."""

    folder: str
    names: tuple[str, ...]
    command: str


AGENT = Set("agent", ("datapathctl-agent.service",), "agent")
DOCKER = Set("docker", ("datapath-docker.socket", "datapath-docker.service"), "docker serve")
ALL = (AGENT, DOCKER)


def files(units: Set, program: str, settings: Settings) -> dict[Path, str]:
    """The text of every file by its place. `program`: the path of datapathctl."""
    start = f"ExecStart=datapathctl {units.command}"
    lines = [f"Environment={_word(f'{name}={value}')}" for name, value in settings.environment().items()]
    lines.append(f"ExecStart={_word(program)} {units.command}")
    return {
        FOLDER / name: (_CTL / units.folder / name).read_text().replace(start, "\n".join(lines))
        for name in units.names
    }


def install(root: Path, wanted: Mapping[Path, str]) -> list[Path]:
    """Writes them below `root`; where they are. StateError: one cannot be written."""
    written = []
    for place, text in wanted.items():
        path = _below(root, place)
        new = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text)
            new.chmod(0o644)
            new.rename(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise StateError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from error
        written.append(path)
    return written


def uninstall(root: Path, units: Set) -> list[Path]:
    """Removes them again; those that were there. StateError."""
    removed = []
    for name in units.names:
        path = _below(root, FOLDER / name)
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"cannot remove {path}: {os.strerror(error.errno or 0)}") from error
        removed.append(path)
    return removed


def manager(root: Path) -> bool:
    """The units below `root` are those of a systemd that runs here."""
    return (
        root == Path("/") and Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None
    )


def tell(*arguments: Iterable[str]) -> None:
    """Calls systemctl with each of these. DatapathError says what it refused."""
    for words in arguments:
        argv = ["systemctl", *words]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DatapathError(f"{' '.join(argv)}: {said[-1]}")


def _below(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


def _word(text: str) -> str:
    """As systemd.service(5) reads it: specifiers and variables are none."""
    text = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return '"' + text.replace('"', '\\"') + '"' if not text or set(text) & set(" \t'\";") else text
