# SPDX-License-Identifier: Apache-2.0
"""The suite's last assertion: it finds what a run left, and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.net import look
from tests.net.hosts import TREE

# A run of one test, which executes a script.
INNER = """
import subprocess
from pathlib import Path
from tests import leftovers
from tests.net.hosts import Host

def test_it(tmp_path: Path) -> None:
    leftovers.PATIENCE = {patience}
    {code}
"""
KEPT = f"sleep 3611.{os.getpid()}"  # told from another suite's
# In a folder; goes on when it is there. What stands before it is how.
BACKGROUND = (
    f"setsid sh -c 'touch begun; exec {KEPT}' > /dev/null 2>&1 & "
    "until [ -e begun ]; do sleep 0.02; done; rm begun;"
)


class Outcome:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.text = done.returncode, done.stdout + done.stderr
        lines = self.text.partition(" left behind ")[2].splitlines()
        self.left = {kind: text for kind, colon, text in (line.partition(": ") for line in lines) if colon}


def inner(folder: Path, code: str, before: str = "", patience: float = 0.0) -> Outcome:
    (folder / "test_inner.py").write_text(INNER.format(code=code, patience=patience))
    command = f"{before} exec {sys.executable} -m pytest -p tests.conftest -p no:cacheprovider"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return Outcome(
        subprocess.run(
            ["sh", "-c", f"{command} --rootdir {folder} --basetemp {folder}/inner {folder}/test_inner.py"],
            env=environ | {"PYTHONPATH": str(TREE)},
            capture_output=True,
            text=True,
        )
    )


def shell(script: str) -> str:
    return f"subprocess.run(['sh', '-ec', {script!r}], check=True, cwd=tmp_path)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For a run: what it leaves is taken away, in any case."""
    yield tmp_path
    for pid in left_in(tmp_path):
        os.kill(pid, signal.SIGKILL)


def left_in(folder: Path) -> set[int]:
    """Told by other means than those under test: their mounts name the folder, or they are what it kept."""
    found = set()
    below = "/".join(folder.parts[-3:])  # the file system that it is in may begin further down
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            mounted = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            continue
        if f"{below}/inner" in mounted or command.strip() == KEPT:
            found.add(pid)
    return found


def test_a_run_that_leaves_nothing_passes(folder: Path) -> None:
    outcome = inner(folder, "host = Host(tmp_path); host.run('a'); host.close()", patience=60.0)
    assert (outcome.code, outcome.left) == (0, {}), outcome.text


@pytest.mark.parametrize(
    ("kind", "script", "shown"),
    [
        ("processes", BACKGROUND, KEPT),
        ("processes", f"env -i {BACKGROUND}", KEPT),
        ("processes", f"env -i unshare --mount {BACKGROUND}", KEPT),
        ("network namespaces", f"env -i unshare --net {BACKGROUND}", "net:["),
        ("mounts", "mount -t tmpfs none /mnt", "/mnt"),
        ("mounts", "mount -t bpf none /sys/fs", "/sys/fs"),
        ("devices", "ip link add left0 type veth peer name left1", "left0, left1"),
    ],
    ids=["process", "empty environment", "mounts of its own", "namespace", "mount", "bpffs", "device"],
)
def test_what_a_run_leaves_is_found(folder: Path, kind: str, script: str, shown: str) -> None:
    outcome = inner(folder, shell(script))
    assert outcome.code == pytest.ExitCode.TESTS_FAILED and "1 passed" in outcome.text, outcome.text
    assert shown in outcome.left[kind], outcome.text
    assert "network namespaces" in outcome.left if kind.startswith("network") else len(outcome.left) == 1


def test_a_namespace_that_the_run_itself_holds_is_found(folder: Path) -> None:
    code = "from tests.bpf.fixtures import _new_namespace; _new_namespace()"
    assert list(inner(folder, code).left) == ["network namespaces"]


@pytest.mark.parametrize("rootfs", [False, True])
def test_a_container_that_is_left_is_found(folder: Path, rootfs: bool) -> None:
    """Its shim starts with no environment, its process has mounts of its own; with a rootfs hardly any others."""
    options = ""
    if rootfs:
        (folder / "root/bin").mkdir(parents=True)
        subprocess.run(["cp", "/bin/busybox", folder / "root/bin/sleep"], check=True)
        options = f"--rootfs {folder}/root"
    outcome = inner(folder, f"host = Host(tmp_path); host.run('a', {options!r}, 'sleep 3612')")
    left = outcome.left
    assert re.search(r"\d sleep 3612(,|$)", left["processes"]) and "import shim" in left["processes"], left
    assert "/bpf" in left["mounts"] and left["network namespaces"].count("net:[") == 3


def test_what_strangers_make_meanwhile_is_not_the_runs(folder: Path) -> None:
    """Here this test, with a run's mark of its own, is the stranger."""
    place = folder / "mounted"
    place.mkdir()
    outside = f"nsenter -t {os.getpid()} --net --mount --wd={folder} env {leftovers.VARIABLE}=stranger"
    script = (
        f"mount -t tmpfs none {place}; ip link add stranger0 type veth peer name stranger1; "
        f"{BACKGROUND} unshare --net {BACKGROUND} unshare --mount {BACKGROUND}"
    )
    try:
        outcome = inner(folder, shell(f"{outside} sh -ec {shlex.quote(script)}"))
        assert (outcome.code, outcome.left) == (0, {}), outcome.text
        made = set(look.devices(lambda c: subprocess.check_output(c.split(), text=True)))
        assert {"stranger0", "stranger1"} <= made and os.path.ismount(place)
        assert len(left_in(folder)) == 3
    finally:
        subprocess.run(["ip", "link", "delete", "stranger0"], check=False)
        subprocess.run(["umount", str(place)], check=False)


def test_devices_that_a_tunnels_module_brings_are_not_the_runs(folder: Path) -> None:
    made = "ip link show gre0 || ip link add gre0 type veth peer name tunl0"
    outcome = inner(folder, shell(made))
    assert (outcome.code, outcome.left) == (0, {}), outcome.text


def test_where_interrupts_are_ignored_children_do_not_inherit_that(folder: Path) -> None:
    """As in the background of a shell."""
    code = "subprocess.run(['grep', '^SigIgn:', '/proc/self/status'], stdout=Path('ignored').open('w'))"
    outcome = inner(folder, f"import os; os.chdir(tmp_path); {code}", before="trap '' INT;")
    assert outcome.code == 0, outcome.text
    ignored = int(next(folder.glob("inner/*/ignored")).read_text().split()[1], 16)
    assert not ignored & 1 << (signal.SIGINT - 1)
