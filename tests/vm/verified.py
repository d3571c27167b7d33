# SPDX-License-Identifier: Apache-2.0
"""How hard the verifier has to think about each program, kernel by kernel: what was recorded, and what it is now.

    .venv/bin/python -m tests.vm.verified    # record the running kernel's figures (root)

Those of the other kernels: `make lab KERNEL=6.12 RECORD=1`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from datapath.dataplane.layout import DEFAULT_SETUP, OBJECT_FILES
from datapath.kernel import abi, libbpf

RECORD = Path(__file__).with_name("verified.json")
RECORDING = "LAB_RECORD"  # in the environment: what is being recorded is compared with nothing
LIMIT = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS: with more the kernel refuses a program
GROWTH = 1.2
# Limits are on: a switch that is off spares the verifier what is behind it.
CONFIG = {
    **DEFAULT_SETUP.config,
    "sample": 64,
    "max_conns": 1000,
    "max_openings": 1000,
    "flood_rate": 1000,
    "flood_burst": 1000,
}


def series(release: str) -> str:
    """6.12 for 6.12.117+deb13-amd64."""
    return ".".join(release.split(".")[:2])


def measure() -> dict[str, int]:
    """Program -> instructions that the verifier looked at, on this kernel. Every program is loaded."""
    found = {}
    for name in OBJECT_FILES:
        programs, maps = libbpf.load_object(
            abi.OBJECTS / f"{name}.bpf.o", pins=None, config=abi.config(**CONFIG)
        )
        for program in programs:
            found[program.name] = libbpf.verified_insns(program.fd)
        for fd in (*(program.fd for program in programs), *maps.values()):
            os.close(fd)
    return found


def recorded(release: str) -> dict[str, int]:
    """The figures of that series of kernels; nothing if it was never recorded, or is being recorded."""
    if os.environ.get(RECORDING):
        return {}
    figures: dict[str, dict[str, int]] = json.loads(RECORD.read_text())
    return figures.get(series(release), {})


def allowed(figure: int | None) -> int:
    """How many instructions a program may cost of which this was recorded. Half of what the kernel allows is too
    much everywhere: the next kernel may count otherwise."""
    return LIMIT // 2 if figure is None else min(LIMIT // 2, int(figure * GROWTH))


def record(release: str, figures: Mapping[str, int]) -> None:
    everything = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    everything[series(release)] = dict(sorted(figures.items()))
    ordered = dict(sorted(everything.items(), key=lambda item: [int(n) for n in item[0].split(".")]))
    written = RECORD.with_suffix(".new")
    written.write_text(json.dumps(ordered, indent=2) + "\n")
    written.replace(RECORD)


if __name__ == "__main__":
    record(os.uname().release, measure())
