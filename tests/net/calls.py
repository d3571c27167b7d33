# SPDX-License-Identifier: Apache-2.0
"""What a command costs, as no busy machine changes it: how many functions of Python it calls."""

from __future__ import annotations

import sys

from tests.net.hosts import Host

# Runs datapathctl, and says how many functions of Python it has called.
COUNTED = """
import sys
from ctl.cli.main import main
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.argv[0] = "datapathctl"
sys.setprofile(count)
try:
    main()
finally:
    sys.setprofile(None)
    print(calls, file=sys.stderr)
"""


def calls(host: Host, command: str) -> int:
    """Functions of Python that the command calls."""
    done = host.try_([sys.executable, "-c", COUNTED, *command.split()])
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])
