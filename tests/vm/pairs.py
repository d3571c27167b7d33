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
from datapath.model.networks import NETKIT, OPT_DEVICE, PAIRS, VETH
from tests.net.hosts import FAR, TIMEOUT, Host, Namespace
from tests.net.wire import Container, start_container
from tests.vm import lab, machine, outcome
from tests.vm.outcome import Kind, LabError

ROUNDS, SECONDS, PORT = 3, 1, 7000
LASTS = 3600.0  # seconds at most
COUNTING = "-accel tcg,thread=single,tb-size=512 -icount shift=0"


def main(kernel: str) -> int:
    """0 if the machine measured everything; else the exit code that the lab has for it."""
    try:
        lab.check()
        found = lab.find(lab.Target(kernel))
        with lab.results_of("pairs") as results:
            words = [str(lab.TREE / "tests/vm/cached.sh"), "env", f"TEST_SLOWNESS={lab.SLOWNESS}"]
            guest = shlex.join([*words, sys.executable, "-m", "tests.vm.pairs", "--in", str(results)])
            os.environ["QEMU"] = COUNTING
            argv = [*machine.command(found, results, False, ("--cpus", "1")), "--", guest]
            ended = machine.run(argv, results, LASTS)
            code = 0 if (results / "exit").exists() else None
        told = outcome.classify(code, ended.console, outcome.Counts(passed=1), ended.seconds, ended.timed_out)
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return int(error.kind.value if isinstance(error, LabError) else Kind.UNPREPARED.value)
    if told.kind is not Kind.PASSED:
        print(f"lab: {told.line}", file=sys.stderr)
    return int(told.kind.value)


def measure() -> None:
    """In the machine."""
    with tempfile.TemporaryDirectory(prefix="lab-") as folder, closing(Host(Path(folder))) as host:
        ends = {}
        for kind in PAIRS:
            host.ctl(f"network create -o {OPT_DEVICE}={kind} {kind}")
            ends[kind] = [start_container(host, f"{kind}-{n}", f"--network {kind}") for n in range(2)]
        for work in (TCP_RR, TCP_CONNECT):
            for way in ("to a member", "to the outside"):
                _compare(work, way, host, ends)


def _compare(work: Workload, way: str, host: Host, ends: dict[str, list[Container]]) -> None:
    ratios = []
    for turn in range(ROUNDS):
        figures = {}
        for kind in PAIRS if turn % 2 else PAIRS[::-1]:
            client, server = ends[kind]
            target: Container | Namespace = server if way == "to a member" else host.outside
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
def _serving(work: Workload, place: Container | Namespace) -> Iterator[None]:
    argv = ["nsenter", f"--net={place.path}", *work.server(PORT, Path("/tmp"))]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        time.sleep(1)
        try:
            yield
        finally:
            server.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        measure()
        (Path(sys.argv[2]) / "exit").touch()
    elif len(sys.argv) == 2:
        sys.exit(main(sys.argv[1]))
    else:
        sys.exit("python -m tests.vm.pairs KERNEL")
