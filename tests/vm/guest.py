# SPDX-License-Identifier: Apache-2.0
"""What a lab machine runs: says what its kernel is like, then runs the tests. Results are files in a folder that
this machine shares; `exit` is written last.

    python -m tests.vm.guest RESULTS PYTEST-ARGUMENT…

The running kernel is looked at in the same way, without a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from datapath.errors import DatapathError, NotSupportedError
from datapath.kernel import features
from tests.vm import verified

HANGS = 120  # seconds after which the console is told what a test is doing
TOO_OLD = "tests/vm/too_old.py"


def facts() -> dict[str, Any]:
    """The kernel's release, what it has of what is optional, and the programs' figures, or why there are none."""
    found: dict[str, Any] = {
        "release": os.uname().release,
        "refused": "",
        "programs": {},
    }
    try:
        found |= {"tcx": features.has_tcx(), "netkit": features.has_netkit()}
        found["programs"] = verified.measure()
    except NotSupportedError as error:
        found["refused"] = str(error)
    except (DatapathError, OSError) as error:  # the tests will say more
        found["failed"] = str(error)
    return found


def main(results: Path, arguments: list[str]) -> int:
    if not Path(
        "/dev/net/tun"
    ).exists():  # no udev made it, which would have the module loaded when it is opened
        subprocess.run(["modprobe", "tun"], check=False)
    found = facts()
    (results / "facts.json").write_text(json.dumps(found, indent=2) + "\n")
    if found["refused"]:
        arguments = [TOO_OLD, "-rP"]
    code = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            # In the order of the arguments, and not those files first that have many tests: they may be quick ones.
            *("-n", str(os.cpu_count()), "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "10"),
            "-vv",  # when the kernel dies, it is to be seen in which test
            *("-o", f"faulthandler_timeout={HANGS}"),
            *(f"--junitxml={results / 'junit.xml'}", *arguments),
        ],
        check=False,
    ).returncode
    (results / "exit").write_text(f"{code}\n")
    os.sync()
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
