# SPDX-License-Identifier: Apache-2.0
"""Without root, or without what the kernel must offer: one line that says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.net import look
from tests.net.hosts import DATAPATHCTL, Host

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
COMMANDS = {
    "run": ["run", "true"],
    "create": ["network", "create", "x"],
    "rm": ["network", "rm", "net1"],
    "prune": ["network", "prune", "-f"],
    "connect": ["network", "connect", "net1", "web"],
    "exec": ["exec", "web", "true"],
    "stop": ["stop", "web"],
    "remove": ["rm", "-f", "web"],
    "port": ["port", "add", "web", "8082:80"],
    "stats": ["stats"],
    "trace": ["trace", "drops"],
    "down": ["down"],
    "ls": ["network", "ls"],
    "inspect": ["inspect", "web"],
    "ps": ["ps"],
    "logs": ["logs", "web"],
}


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    look.settled(shared_host)
    shared_host.ctl("network create --subnet 10.5.0.0/24 net1")
    shared_host.run("web", "-p 8081:80")
    return shared_host


def refused(host: Host, prefix: list[str], command: list[str]) -> tuple[str, int]:
    """The one line, and the exit code."""
    before = look.database(host), look.devices(host.sh), look.pins(host)
    done = host.try_([*prefix, DATAPATHCTL, *command])
    lines = done.stderr.splitlines()
    assert done.returncode not in (0, 70), done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("datapathctl: "), done.stderr
    assert (look.database(host), look.devices(host.sh), look.pins(host)) == before
    return lines[0].removeprefix("datapathctl: "), done.returncode


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_that_it_needs_root(prepared: Host, name: str) -> None:
    said, code = refused(prepared, NOBODY, COMMANDS[name])
    assert "needs root" in said or "as root" in said
    assert code == (125 if name in ("run", "exec") else 13)


def test_help_version_and_completion_need_no_root(prepared: Host) -> None:
    for command in ("--help", "network create --help", "version", "completion bash"):
        done = prepared.try_([*NOBODY, DATAPATHCTL, *command.split()])
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_root_of_a_user_namespace_is_not_enough_and_is_told_so(prepared: Host) -> None:
    """It may even make devices, but it may not load programs: that is found out before anything is made."""
    folder = prepared.folder / "userns"
    folder.mkdir()
    script = f"mount -t tmpfs tmpfs {folder} && exec env DATAPATH_STATE_DIR={folder}/state " + " ".join(
        [f"DATAPATH_RUN_DIR={folder}/run", f"DATAPATH_BPFFS={folder}/bpf", DATAPATHCTL, "run true"]
    )
    done = prepared.try_(["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script])
    lines = done.stderr.splitlines()
    assert done.returncode == 125, done.stderr
    assert len(lines) == 1, done.stderr
    assert "mount bpffs" in lines[0]
    assert "Operation not permitted" in lines[0]


@pytest.mark.parametrize("capability", ["sys_admin", "net_admin"])
def test_root_without_a_capability_is_told_what_it_may_not_do(prepared: Host, capability: str) -> None:
    folder = prepared.folder / capability
    prefix = [
        "unshare",
        "--net",
        "setpriv",
        f"--bounding-set=-{capability}",
        f"--inh-caps=-{capability}",
        "env",
    ]
    prefix += [f"DATAPATH_STATE_DIR={folder}/state", f"DATAPATH_BPFFS={folder}/bpf"]
    said, code = refused(prepared, prefix, ["run", "true"])
    assert code == 125
    assert said == f"needs CAP_{capability.upper()}, which this root does not have"


def test_a_machine_without_bpffs_is_told_what_the_kernel_lacks(prepared: Host, tmp_path: Path) -> None:
    said, code = _with_file_covered(prepared, "/proc/filesystems", "nodev\tproc\n\text4\n", tmp_path)
    assert "BPF" in said
    assert code == 12


def test_a_machine_without_cgroup2_is_told_how_to_mount_it(prepared: Host, tmp_path: Path) -> None:
    """The cgroup2 mount goes away in a mount namespace of its own."""
    script = (
        'while mount=$(awk \'$3 == "cgroup2" {print $2; exit}\' /proc/self/mounts); [ -n "$mount" ]; '
        'do umount -l "$mount" || exit 99; done; exec "$@"'
    )
    said, code = refused(
        prepared,
        ["unshare", "--mount", "sh", "-c", script, "sh"],
        ["network", "create", "--subnet", "10.6.0.0/24", "x"],
    )
    assert "cgroup2" in said
    assert code == 12


def _with_file_covered(host: Host, path: str, text: str, folder: Path) -> tuple[str, int]:
    cover = folder / "cover"
    cover.write_text(text)
    script = f'mount --bind {cover} {path} && exec "$@"'
    return refused(
        host,
        ["unshare", "--mount", "sh", "-c", script, "sh"],
        ["network", "create", "--subnet", "10.6.0.0/24", "x"],
    )


def test_a_broken_packet_program_is_reported_and_nothing_is_made(prepared: Host, tmp_path: Path) -> None:
    """As on a kernel that cannot run it: the object is there, and the kernel refuses it."""
    from datapath.kernel import abi

    cover = tmp_path / "broken.bpf.o"
    cover.write_bytes((abi.OBJECTS / "from_host.bpf.o").read_bytes()[:2000])
    script = f'mount --bind {cover} {abi.OBJECTS}/from_host.bpf.o && exec "$@"'
    bpffs = prepared.folder / "bpf" / "other"
    env = ["env", f"DATAPATH_STATE_DIR={tmp_path}/state", f"DATAPATH_BPFFS={bpffs}"]
    done = prepared.try_(
        ["unshare", "--mount", "sh", "-c", script, "sh", *env, DATAPATHCTL, "network", "create", "x"]
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (10, 1), done.stderr
    assert "from_host" in lines[0]
    assert not [
        name for name in look.devices(prepared.sh) if name.startswith("dpx") and name not in ("dpx1", "dpx2")
    ]
