# SPDX-License-Identifier: Apache-2.0
"""A pretend machine whose first process is systemd. What is on its disk is there again after a power cut."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from tests.packages.roots import CACHE, PATIENCE, Machine, root

# Settings of the whole kernel are not to be written, but for those of the network, which are the machine's own.
BOOT = """
set -e
echo 0 >"$4/cgroup.procs"
mount --make-rprivate /
mkdir -p "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -o bind,ro proc/sys proc/sys
mount --bind /proc/sys/net proc/sys/net
mount -t sysfs -o ro sysfs sys
mount --bind "$(dirname "$4")" sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$3" var/cache/apt/archives
cp /etc/resolv.conf etc/resolv.conf
echo 127.0.0.1 localhost machine >etc/hosts
for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket getty@.service \\
	console-getty.service systemd-modules-load.service systemd-sysctl.service systemd-timesyncd.service \\
	systemd-networkd.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount; do
	ln -sf /dev/null etc/systemd/system/$unit
done
pivot_root . mnt
umount -l /mnt
hostname machine
echo ready
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd >/dev/null 2>&1
"""


def unified() -> Path:
    """Where the control groups of version 2 are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise AssertionError("no cgroup2 is mounted")


class Booted(Machine):
    """It is there until `close`."""

    def __init__(self, suite: str) -> None:
        self._group = unified() / f"machine-{os.getpid()}"
        super().__init__(suite)

    def _start(self, script: str, *words: str) -> None:
        if not self._folder.is_mount():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self._folder], check=True)
        self._group.mkdir()
        archives = CACHE / f"{self.suite}-archives"
        super()._start(BOOT, str(root(self.suite)), str(self._folder), str(archives), str(self._group))
        deadline = time.monotonic() + PATIENCE
        while self.try_("systemctl is-system-running --wait").stdout.strip() != "running":
            assert time.monotonic() < deadline, self.try_("systemctl --failed --no-pager").stdout
            time.sleep(0.1)

    def cut_power_and_start(self) -> None:
        """Nothing is told of it."""
        self._stop()
        self._start("")

    def _stop(self) -> None:
        self._holder.kill()
        self._holder.wait()
        groups = [self._group, *self._group.rglob("*")]
        deadline = time.monotonic() + PATIENCE
        while self._group.exists() and time.monotonic() < deadline:
            for group in sorted((one for one in groups if one.is_dir()), reverse=True):
                with contextlib.suppress(OSError):  # its last process is about to end
                    group.rmdir()

    def close(self) -> None:
        self._stop()
        subprocess.run(["umount", self._folder], check=True)
        self._folder.rmdir()
