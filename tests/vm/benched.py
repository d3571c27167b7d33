# SPDX-License-Identifier: Apache-2.0
"""The benchmark in a machine with another kernel, for what the running one lacks: IPVS. Where processors are emulated,
only the ratios between the modes say anything, which take turns in the same machine.

    python -m tests.vm.benched [--timeout SECONDS] KERNEL [OPTION OF bench run…]

The report is in the folder of the results. The exit code is that of the lab; 1: something was not measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.vm import lab, machine, outcome
from tests.vm.outcome import Counts, Kind, LabError, Outcome

LASTS = 7200.0  # seconds at most
# What an emulated machine measures in a quarter of an hour: connections by a service of three containers.
REDUCED = (
    *("--suite", "services", "--modes", "ebpf,iptables,ipvs"),
    *(
        "--filter",
        "tcp_connect container-service services=1",
        "--seconds",
        "2",
        "--rounds",
        "12",
        "--budget",
        "30",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Boots the kernel, measures, and takes the machine away again."""
    parser = argparse.ArgumentParser(
        prog="benched", description="Run the benchmark in a machine with another kernel."
    )
    parser.add_argument("--timeout", type=lab.seconds, default=LASTS, metavar="SECONDS")
    parser.add_argument("kernel")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of `datapathctl bench run`, but --out")
    asked = parser.parse_args(argv)
    os.chdir(lab.TREE)
    lab.heed_signals()
    try:
        lab.check()
        told = measured(asked.kernel, asked.options or REDUCED, asked.timeout)
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return int(error.kind.value if isinstance(error, LabError) else Kind.UNPREPARED.value)
    except KeyboardInterrupt:
        print("lab: interrupted; the machine is gone", file=sys.stderr)
        return Kind.INTERRUPTED.value
    print(f"lab: benchmark in {asked.kernel}: {told.line}")
    return int(told.kind.value)


def measured(name: str, options: Sequence[str], timeout: float) -> Outcome:
    """What became of the machine. The options are those of `bench run`, but --out. LabError, OSError."""
    kernel = lab.find(lab.Target(name))
    with lab.results_of(f"bench-{name}") as results:
        kvm = machine.has_kvm(kernel)
        print(f"lab: booting {kernel.image.name}, {'KVM' if kvm else 'software emulation'}", flush=True)
        cached = str(lab.TREE / "tests/vm/cached.sh")
        guest = [cached, sys.executable, "-m", "tests.vm.benched", "--in", str(results), *options]
        argv = [*machine.command(kernel, results, kvm), "--", shlex.join(guest)]
        ended = machine.run(argv, results, timeout)
        said = results / "exit"
        text = said.read_text().strip() if said.exists() else ""
    code = int(text) if text.isdecimal() else None
    told = outcome.classify(
        None if code is None else 0, ended.console, Counts(passed=1), ended.seconds, ended.timed_out
    )
    if told.kind is not Kind.PASSED:
        return told
    if code:
        return Outcome(Kind.FAILED, f"bench run ended with {code}: see {results / 'pytest.log'}")
    return Outcome(Kind.PASSED, f"measured in {ended.seconds:.0f} s: {results / 'report.html'}")


def inside(results: Path, options: Sequence[str]) -> int:
    """In the machine; the exit code of the benchmark is written last."""
    command = [sys.executable, "-m", "ctl.main", "bench", "run", *options, "--out", str(results)]
    code = subprocess.run(command, check=False).returncode
    (results / "exit").write_text(f"{code}\n")
    os.sync()
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        sys.exit(inside(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
