# SPDX-License-Identifier: Apache-2.0
"""The packages for another architecture at work, in a machine of that: what `make deb` and `make wheel` put into dist/.

python -m tests.vm.packaged 6.12 arm64
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.packages.built import debs_of, machine_of, wheel_of
from tests.vm import archive, foreign, lab, machine, outcome
from tests.vm.outcome import Kind, LabError, WrongCallError

LASTS = 1200.0  # seconds at most
PAGE = "What the container serves.\n"
# From the wheel, no script is installed; with its folder only, it has no other datapath to import.
LAUNCHER = """#!/usr/bin/python3 -I
import sys
sys.path.insert(0, {!r})
from datapath.ctl.main import main
main()
"""


def main(kernel: str, architecture: str) -> int:
    """0 if both did what they should; else the exit code that the lab has for it."""
    try:
        lab.check()
        if architecture not in archive.ARCHITECTURES[1:]:
            raise WrongCallError("give ARCH=arm64; this architecture's packages: `make test-packages`")
        found = lab.find(lab.Target(kernel, architecture))
        made = foreign.Foreign(lab.CACHE, lab.TREE)
        with lab.results_of(f"packaged-{kernel}-{architecture}") as results, made.prepared():
            deb, wheel = debs_of(architecture)["datapath"], wheel_of(foreign.MACHINE)
            packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True)
            (results / "deb.tar").write_bytes(packed.stdout)
            (results / "wheel.zip").write_bytes(wheel.read_bytes())
            guest = ("python3", "-m", "tests.vm.packaged", "--in", "/results")
            ended = machine.run(
                made.command(found, results, guest, machine.CPUS, machine.MEMORY), results, LASTS
            )
            code = 0 if (results / "exit").exists() else None
        told = outcome.classify(code, ended.console, outcome.Counts(passed=2), ended.seconds, ended.timed_out)
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return int(error.kind.value if isinstance(error, LabError) else Kind.UNPREPARED.value)
    print(f"lab: packages in {kernel}, {architecture}: {told.line}")
    return int(told.kind.value)


def sh(script: str) -> str:
    print(f"+ {script}", flush=True)
    return subprocess.run(
        ["sh", "-ec", script], cwd="/", check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def use(program: str) -> None:
    """A network with a server and a client, a published port, and nothing left."""
    print(sh(f"{program} version"), flush=True)
    sh(f"{program} network create shop")
    sh(f"{program} run -d --name web --network shop -p 8080:80 busybox httpd -f -p 80 -h /srv")
    address = sh(f"{program} inspect -f '{{{{.NetworkSettings.Networks.shop.IPAddress}}}}' web").strip()
    fetch = "curl -sS --retry 9 --retry-connrefused"
    assert sh(f"{fetch} http://127.0.0.1:8080/page") == PAGE
    assert sh(f"{program} run --rm --network shop {fetch} http://{address}/page") == PAGE
    assert sh(f"{program} doctor") == "No problems found.\n"
    sh(f"{program} rm -f web; {program} network rm shop; {program} down")
    assert sh("find /sys/fs/bpf -mindepth 1; ip -o link | grep -v ' lo:' || true") == ""


def inside(results: Path) -> None:
    """In the machine. AssertionError, subprocess.CalledProcessError."""
    place = Path("/srv/page")
    place.parent.mkdir(exist_ok=True)
    place.write_text(PAGE)
    sh(f"tar -C / --keep-directory-symlink -xf {results}/deb.tar")
    assert (
        machine_of(Path("/usr/lib/datapath/datapath/kernel/_libbpf.abi3.so").read_bytes()) == foreign.MACHINE
    )
    use("/usr/bin/datapathctl")
    place = Path("/opt/wheel")
    with zipfile.ZipFile(results / "wheel.zip") as archive:
        archive.extractall(place)
    program = place / "datapathctl"
    program.write_text(LAUNCHER.format(str(place)))
    program.chmod(0o755)
    use(str(program))
    (results / "exit").touch()
    os.sync()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        inside(Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        sys.exit(main(*sys.argv[1:]))
    else:
        sys.exit("python -m tests.vm.packaged KERNEL ARCHITECTURE")
