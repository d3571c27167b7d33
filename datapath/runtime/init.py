# SPDX-License-Identifier: Apache-2.0
"""Sets up the container's main process, from inside: namespaces, host name, mounts, then exec of the program.

Runs in a fresh child of the shim, alone in its process. Each function leaves in `step` what it is about, so
that an OSError can be told as (operation, subject, errno). Mount points are looked up only inside the new
root, where a symbolic link cannot lead out of it.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found, unused-ignore]  # without its enums: 3 ms less
import errno
import fcntl
import os
import stat
import sys
import termios

from datapath.kernel import syscalls
from datapath.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    MS_STRICTATIME,
)

TYPE_CHECKING = False  # importing typing takes longer than all that is done here
if TYPE_CHECKING:
    from typing import Any, NoReturn

Step = list[str]

_CGROUPS = "/sys/fs/cgroup"
_PLAIN = MS_NOSUID | MS_NODEV | MS_NOEXEC
_FILES = (("hosts", "/etc/hosts"), ("resolv_conf", "/etc/resolv.conf"), ("hostname_file", "/etc/hostname"))
_PTS = "newinstance,ptmxmode=0666,mode=0620,gid=5"
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


def unshare(spec: Any, step: Step) -> None:
    """Leaves the host's mount, UTS and (unless it is to be used) network namespace."""
    step[:] = "create", "namespaces"
    kind = spec["netns"]
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWUTS | (CLONE_NEWNET if kind == "new" else 0))
    if kind not in ("new", "host"):
        step[:] = "join", f"network namespace {kind}"
        fd = os.open(kind, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, CLONE_NEWNET)
        os.close(fd)


def set_hostname(spec: Any, step: Step) -> None:
    """Sets the host and domain name of the UTS namespace, where the spec has them."""
    step[:] = "set", "host name"
    if spec["hostname"]:
        syscalls.sethostname(spec["hostname"])
    if spec["domainname"]:
        syscalls.setdomainname(spec["domainname"])


def setup_mounts(spec: Any, step: Step) -> None:
    """Changes the root, if the spec has one, and mounts what the container has of its own: /sys, and over
    /etc/hosts, /etc/resolv.conf and /etc/hostname its files."""
    step[:] = "detach", "mounts from the host's"
    syscalls.mount("", "/", flags=MS_SLAVE | MS_REC)
    if spec["netns"] != "host":
        _leave_bpffs()
    files = []
    for key, target in _FILES:
        if spec[key]:
            step[:] = "open", spec[key]
            files.append((syscalls.open_tree(spec[key]), target))
    step[:] = "open", _CGROUPS
    below_sys = _mounts_below("/sys") if spec["netns"] == "host" else [_CGROUPS]
    kept = [(syscalls.open_tree(path, recursive=True), path) for path in below_sys if os.path.isdir(path)]
    sys.path.clear()  # a module imported from here on would be the container's file
    if spec["rootfs"]:
        _change_root(spec["rootfs"], step)
    _mount("sysfs", "/sys", "sysfs", _PLAIN, "", step)  # shows the devices of the namespace that mounts it
    for fd, path in kept:
        step[:] = "mount", path
        if os.path.isdir(path):
            syscalls.move_mount(fd, path)
    for fd, target in files:
        _mount_over(fd, target, bool(spec["rootfs"]), step)


def _leave_bpffs() -> None:
    """Unmounts the host's bpffs: a container does not need its pins, and where mounts are private its copy of the
    mount would keep programs attached that the host has detached."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file if " - bpf " in line]
    for point in points:
        try:  # noqa: SIM105 - importing contextlib takes longer
            syscalls.umount(point, syscalls.MNT_DETACH)
        except OSError:
            pass  # another mount lies over it


def _mounts_below(place: str) -> list[str]:
    """The mount points below a path that are not themselves below another one."""
    found: list[str] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = sorted({line.split(" ")[4] for line in file})
    for point in points:
        if point.startswith(place + "/") and not any(point.startswith(other + "/") for other in found):
            found.append(point)
    return found


def _change_root(directory: str, step: Step) -> None:
    step[:] = "change root to", directory
    syscalls.mount(directory, directory, flags=MS_BIND | MS_REC)
    os.chdir(directory)
    syscalls.pivot_root(".", ".")  # the old root now lies on top of the new one
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    _mount("proc", "/proc", "proc", _PLAIN, "", step)
    _mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=64k", step)
    step[:] = "populate", "/dev"
    os.umask(0)
    for name, major, minor in _NODES:
        os.mknod(f"/dev/{name}", 0o20666, os.makedev(major, minor))
    os.umask(0o022)
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
    _mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, _PTS, step)
    _mount("tmpfs", "/dev/shm", "tmpfs", _PLAIN, "mode=1777", step)


def _mount(source: str, target: str, kind: str, flags: int, data: str, step: Step) -> None:
    step[:] = "mount", target
    os.makedirs(target, exist_ok=True)
    syscalls.mount(source, target, kind, flags, data)


def _mount_over(fd: int, target: str, create: bool, step: Step) -> None:
    """Mounts the file over the target. It is only made in a root of the container's own, never in the host's: where
    that has none (/etc/hostname is missing on many), the container has none either."""
    step[:] = "mount over", target
    place = os.path.realpath(target)
    if not os.path.exists(place):
        if not create:
            os.close(fd)
            return
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    syscalls.move_mount(fd, place)
    os.close(fd)


def set_user(spec: Any, stdio: tuple[int, int, int], step: Step) -> None:
    """Becomes the spec's user, USER[:GROUP], as the container's own /etc/passwd and /etc/group have it. The standard
    fds become the user's too, as with runc, so that /dev/stdout can be opened."""
    name, _, group = spec["user"].partition(":")
    row = _row("/etc/passwd", name, 7)
    if row is None and not name.isdigit():
        step[:] = "find", f"user {name}"
        raise OSError(errno.ENOENT, "")
    uid, gid, home = (int(row[2]), int(row[3]), row[5]) if row else (int(name), 0, "/")
    groups = [] if group else _groups(row[0] if row else name)
    if group:
        found = _row("/etc/group", group, 4)
        if found is None and not group.isdigit():
            step[:] = "find", f"group {group}"
            raise OSError(errno.ENOENT, "")
        gid = int(found[2]) if found else int(group)
    step[:] = "become", f"user {spec['user']}"
    for fd in stdio:
        if not stat.S_ISCHR(os.fstat(fd).st_mode) or spec["tty"]:
            os.fchown(fd, uid, -1)
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    spec["env"].setdefault("HOME", home or "/")


def _row(path: str, name: str, fields: int) -> list[str] | None:
    """The row of a file such as /etc/passwd with that name, or else that number."""
    rows = [row for row in _rows(path) if len(row) == fields]
    named = [row for row in rows if row[0] == name] or [row for row in rows if row[2] == name]
    return named[0] if named and named[0][2].isdigit() else None


def _groups(user: str) -> list[int]:
    """The further groups of a user."""
    rows = [row for row in _rows("/etc/group") if len(row) == 4 and row[2].isdigit()]
    return [int(row[2]) for row in rows if user in row[3].split(",")]


def _rows(path: str) -> list[list[str]]:
    """Not by the C library: it would load what the container's /etc/nsswitch.conf names."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []


def exec_program(spec: Any, stdio: tuple[int, int, int], step: Step) -> NoReturn:
    """Executes the program, with clean signals and only the standard fds (the others are close-on-exec)."""
    step[:] = "connect", "standard input and output"
    for number, fd in enumerate(stdio):
        if fd == number:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, number)
    if spec["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o022)
    if spec["user"]:
        set_user(spec, (0, 1, 2), step)
    step[:] = "change to", spec["workdir"]
    os.chdir(spec["workdir"])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)
    step[:] = "run", spec["argv"][0]
    _execvpe(spec["argv"], spec["env"])


def _execvpe(argv: list[str], env: dict[str, str]) -> NoReturn:
    """As os.execvpe, which however imports a module on its way, and that would be the container's file."""
    if "/" in argv[0]:
        os.execve(argv[0], argv, env)
    reason: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(f"{directory or '.'}/{argv[0]}", argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            reason = error
    raise reason
