# SPDX-License-Identifier: Apache-2.0
"""What `make deb`, `make wheel` and `make sdist` have put into dist/, by architecture."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.packages.roots import TREE

DIST = TREE / "dist"
ARCHITECTURE = subprocess.run(
    ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
).stdout.strip()


def debs_of(architecture: str) -> dict[str, Path]:
    """By package."""
    return {path.name.partition("_")[0]: path for path in DIST.glob(f"*_{architecture}.deb")}


def wheel_of(machine: str) -> Path:
    """`machine`: as `uname -m` says it."""
    (found,) = DIST.glob(f"datapathctl-*_{machine}.whl")
    return found


def sdist() -> Path:
    (found,) = DIST.glob("datapathctl-*.tar.gz")
    return found


# <elf.h>: e_machine, the two bytes at 18
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def machine_of(content: bytes) -> str | None:
    """Of a program or library: the machine that runs it, as `uname -m` says it. Another file: None."""
    return ELF_MACHINES.get(int.from_bytes(content[18:20], "little")) if content[:4] == b"\x7fELF" else None
