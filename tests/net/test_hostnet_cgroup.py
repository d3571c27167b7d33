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
mount -t tmpfs none /proc/1  # whose root may be the way to the whole
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
    done = host.try_(inside(host, group, "network create n"))
    assert done.returncode == 0 and "see only those processes of the host" in done.stderr
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
    assert "left: processes of the host: the programs are attached to a control group" in done.stderr
    assert host.ctl("reconcile").startswith("repaired: processes of the host: the programs are attached to a")
    assert host.ctl("doctor") == "No problems found."


def test_a_control_group_that_was_asked_for_is_no_problem(host: Host, group: Path) -> None:
    assert host.env is not None
    host.env["DATAPATH_CGROUP"] = str(group)
    host.ctl("network create n")
    assert host.ctl("doctor") == "No problems found."
    host.ctl("down")
    del host.env["DATAPATH_CGROUP"]


def test_the_root_is_preferred_to_a_part_that_is_mounted_before_it(tmp_path: Path, group: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none {group} cgroup2 rw 0 0\nnone {group.parent} cgroup2 rw 0 0\n")
    assert cgroup.mount_point(str(mounts)) == str(group.parent)


def test_a_part_that_has_all_processes_of_the_network_namespace_is_no_problem(
    host: Host, group: Path
) -> None:
    """As in a container with a network of its own, in which datapathctl runs."""
    inner = "ip link set lo up && datapathctl network create n && datapathctl doctor".replace(
        "datapathctl", DATAPATHCTL
    )
    script = [*inside(host, group, "")[:5], "unshare", "--net", "sh", "-c", inner]
    done = host.try_(script)
    assert done.returncode == 0 and "see only" not in done.stderr, (done.stdout, done.stderr)
    host.ctl("down")
