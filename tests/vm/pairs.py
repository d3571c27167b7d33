# SPDX-License-Identifier: Apache-2.0
"""How much netkit devices gain or cost beside veth: round trips and connections by both, in turns, in a lab machine.

    python -m tests.vm.pairs 6.12

The machine has one processor, emulated, and its clock counts instructions (QEMU's icount): so the ratios are of
instructions. They are the same each time, however busy this machine is; of caches and memory they know nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from datapath.bench.workloads import TCP_CONNECT, TCP_RR, Workload
from datapath.model import NETKIT, OPT_DEVICE, PAIRS, VETH
from tests.net.lab import FAR, TIMEOUT, Host, Namespace
from tests.net.wire import Box, box
from tests.vm import lab, machine

ROUNDS, SECONDS, PORT = 2, 1, 7000
LASTS = 3600.0  # seconds at most
COUNTING = "-accel tcg,thread=single,tb-size=512 -icount shift=0"


def main(kernel: str) -> int:
    found = lab.find(kernel)
    results = lab.CACHE.resolve() / "results" / "pairs"
    results.mkdir(parents=True, exist_ok=True)
    guest = shlex.join([str(lab.TREE / "tests/vm/cached.sh"), "env", "TEST_SLOWNESS=10", sys.executable])
    os.environ["QEMU"] = COUNTING
    argv = [*machine.command(found, results, False, ("--cpus", "1")), "--", f"{guest} -m tests.vm.pairs"]
    return int(machine.run(argv, results / "console.log", LASTS).timed_out)


def measure() -> None:
    """In the machine."""
    with tempfile.TemporaryDirectory(prefix="lab-") as folder, closing(Host(Path(folder))) as host:
        ends = {}
        for kind in PAIRS:
            host.ctl(f"network create -o {OPT_DEVICE}={kind} {kind}")
            ends[kind] = [box(host, f"{kind}-{n}", f"--network {kind}") for n in range(2)]
        for work in (TCP_RR, TCP_CONNECT):
            for way in ("to a member", "to the outside"):
                _compare(work, way, host, ends)


def _compare(work: Workload, way: str, host: Host, ends: dict[str, list[Box]]) -> None:
    ratios = []
    for turn in range(ROUNDS):
        figures = {}
        for kind in PAIRS if turn % 2 else PAIRS[::-1]:
            client, server = ends[kind]
            target: Box | Namespace = server if way == "to a member" else host.outside
            with _serving(work, target):
                argv = work.client(server.ip if target is server else FAR, PORT, SECONDS)
                figures[kind] = work.parse(client.sh(argv, TIMEOUT)).value
        ratios.append(figures[NETKIT] / figures[VETH])
    listed = " ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    print(
        f"{work.title}, {way}: netkit / veth {median(ratios):.3f}, of {listed} ({work.better} is better)",
        flush=True,
    )


@contextmanager
def _serving(work: Workload, place: Box | Namespace) -> Iterator[None]:
    argv = ["nsenter", f"--net={place.path}", *work.server(PORT, Path("/tmp"))]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        time.sleep(1)
        try:
            yield
        finally:
            server.kill()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main(sys.argv[1]))
    measure()
