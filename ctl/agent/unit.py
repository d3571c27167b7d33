# SPDX-License-Identifier: Apache-2.0
"""The agent's unit file for systemd: what is installed where. Packages ask here, too."""

from __future__ import annotations

import os
from pathlib import Path

from datapath.config.settings import Settings
from datapath.errors import StateError

NAME = "datapathctl-agent.service"
FOLDER = Path("/etc/systemd/system")
_START = "ExecStart=datapathctl agent"


def files(program: str, settings: Settings) -> dict[Path, str]:
    """The text of every file by its place. `program`: the path of datapathctl."""
    text = (Path(__file__).parent / NAME).read_text()
    assert text.count(_START) == 1
    lines = [f"Environment={_word(f'{name}={value}')}" for name, value in settings.environment().items()]
    lines.append(f"ExecStart={_word(program)} agent")
    return {FOLDER / NAME: text.replace(_START, "\n".join(lines))}


def install(root: Path, program: str, settings: Settings) -> list[Path]:
    """Writes them below `root`; where they are. StateError: one cannot be written."""
    written = []
    for place, text in files(program, settings).items():
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


def uninstall(root: Path) -> list[Path]:
    """Removes them again; those that were there. StateError."""
    removed = []
    for place in files("", Settings()):
        path = _below(root, place)
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"cannot remove {path}: {os.strerror(error.errno or 0)}") from error
        removed.append(path)
    return removed


def _below(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


def _word(text: str) -> str:
    """As systemd.service(5) reads it: specifiers and variables are none."""
    text = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return '"' + text.replace('"', '\\"') + '"' if not text or set(text) & set(" \t'\";") else text
