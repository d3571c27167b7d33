# SPDX-License-Identifier: Apache-2.0
"""The host is looked at from inside a cgroup namespace, as in toolbox, LXC and nspawn: not all of its processes are
below the control group that can be seen from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.kernel import cgroup
from tests.net.hosts import DATAPATHCTL, Host

# In a control group, a cgroup namespace of its own, and a mount of the hierarchy as it is from there.
INSIDE = """
echo $$ > "$1/cgroup.procs"
shift
exec unshare --cgroup --mount sh -c '
while mount=$(awk "\\$3 == \\"cgroup2\\" {print \\$2; exit}" /proc/self/mounts); [ -n "$mount" ]; do
    place=$mount; umount -l "$mount"
done
mount -t cgroup2 none "$place"
exec "$@"' sh "$@"
"""


@pytest.fixture
def group() -> Iterator[Path]:
    place = Path(cgroup.mount_point()) / f"datapath-test-{os.getpid()}"
    place.mkdir()
    yield place
    place.rmdir()


def inside(host: Host, group: Path, command: str) -> list[str]:
    return ["sh", "-c", INSIDE, "sh", str(group), DATAPATHCTL, *command.split()]


def test_programs_that_not_all_processes_of_the_host_meet_are_named(host: Host, group: Path) -> None:
    """By doctor, wherever it looks from; reconcile repairs it from where it can."""
    host.sh(inside(host, group, "network create n"))
    for command in ([DATAPATHCTL, "doctor", "--json"], inside(host, group, "doctor --json")):
        done = host.try_(command)
        assert done.returncode == 20
        (found,) = (json.loads(line) for line in done.stdout.splitlines())
        assert found["Check"] == "cgroup"
        assert found["Detail"] == (
            f"the programs are attached to a control group below the root (id {group.stat().st_ino})"
        )
    done = host.try_(inside(host, group, "reconcile"))
    assert done.returncode == 20
    assert done.stderr.startswith("left: processes of the host: the programs are attached to a control group")
    assert host.ctl("reconcile").startswith("repaired: processes of the host: the programs are attached to a")
    assert host.ctl("doctor") == "No problems found."


def test_a_control_group_that_was_asked_for_is_no_problem(host: Host, group: Path) -> None:
    assert host.env is not None
    host.env["DATAPATH_CGROUP"] = str(group)
    host.ctl("network create n")
    assert host.ctl("doctor") == "No problems found."
    host.ctl("down")
    del host.env["DATAPATH_CGROUP"]
