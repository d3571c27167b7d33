# SPDX-License-Identifier: Apache-2.0
"""A pretend machine of one of Debian's releases: a root file system, and namespaces for all that a machine has one of.

The root is made once, by mmdebstrap, and never written to: each machine has an overlay in memory. Packages that a
machine fetches are kept beside it, for the next one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / ".lab/roots"
SUITES = ("bookworm", "trixie")
INSIDE = "man-db,bash-completion,systemd-sysv,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"
PATIENCE = 600.0  # seconds: packages are fetched

# The network of whoever started the tests, which soon are in one of their own: packages come from there.
NETWORK = os.open("/proc/self/ns/net", os.O_RDONLY)

MACHINE = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/lock
mount --bind "$3" var/cache/apt/archives
cp /etc/resolv.conf etc/resolv.conf
echo 127.0.0.1 localhost machine >etc/hosts  # Debian's installer writes it
pivot_root . mnt
umount -l /mnt
hostname machine
echo ready
trap : CHLD
while :; do sleep 86400 & wait $!; done
"""


class Unfetched(Exception):
    """Debian's archive cannot be asked, so there is no root."""


def root(suite: str) -> Path:
    """The folder with the root file system of a release. Unfetched."""
    found = CACHE / suite
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as new:
            made = Path(new) / "root"
            done = subprocess.run(
                [
                    *("nsenter", f"--net=/proc/{os.getpid()}/fd/{NETWORK}", "mmdebstrap", "--variant=apt"),
                    *(f"--include={INSIDE}", *proxies(), suite, str(made)),
                ],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            if done.returncode:
                raise Unfetched(done.stderr[-2000:])
            made.rename(found)
    return found


def proxies() -> Iterator[str]:
    """What apt on this machine is told about its way to the archive."""
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if line.startswith(("Acquire::http::Proxy ", "Acquire::https::Proxy ")):
            yield f"--aptopt={line}"


class Machine:
    """It is there until `close`. `suite`: Debian's release."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        archives = CACHE / f"{suite}-archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp())
        self._start(MACHINE, str(root(suite)), str(self._folder), str(archives))

    def _start(self, script: str, *words: str) -> None:
        spaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        self._holder = subprocess.Popen(
            ["unshare", *spaces, "bash", "-c", script, "machine", *words], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == "ready\n"
        self.pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())
        self.sh("ip link set lo up", of_host=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self._folder)

    def argv(self, script: str, *, of_host: bool = False, fetches: bool = False) -> list[str]:
        net = f"--net=/proc/{os.getpid()}/fd/{NETWORK}" if fetches else f"--net=/proc/{self.pid}/ns/net"
        if of_host:  # a program of the machine that tests, in the network of this one
            return ["nsenter", net, "sh", "-ec", script]
        environment = (
            "env",
            "-i",
            f"PATH={PATH}",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        )
        spaces = ("-t", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--root", "--wd", net)
        return ["nsenter", *spaces, *environment, "bash", "-ec", script]

    def try_(
        self, script: str, *, of_host: bool = False, fetches: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """A script's end, whatever it is. `fetches`: it may ask Debian's archive."""
        return subprocess.run(
            self.argv(script, of_host=of_host, fetches=fetches),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def sh(self, script: str, *, of_host: bool = False, fetches: bool = False) -> str:
        """What it prints; it has to succeed."""
        done = self.try_(script, of_host=of_host, fetches=fetches)
        assert done.returncode == 0, f"{script}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def apt(self, words: str, *, fetches: bool = True) -> str:
        """Scripts of packages run in the machine's own network only if nothing has to be fetched."""
        return self.sh(f"apt-get -qq -o APT::Keep-Downloaded-Packages=true -y {words}", fetches=fetches)

    def put(self, path: Path, target: str) -> None:
        """A file or folder of the machine that tests, there."""
        to = f"/proc/{self.pid}/root{target}"
        if path.is_dir():
            shutil.copytree(path, to)
        else:
            shutil.copy(path, to)

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self.pid}/root{inside}")

    @contextmanager
    def outside(self) -> Iterator[str]:
        """A machine at the other end of eth0: the path of its network namespace."""
        peer = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 86400"], stdout=subprocess.PIPE
        )
        assert peer.stdout is not None
        peer.stdout.readline()
        try:
            self.sh(
                f"ip link add eth0 type veth peer name eth0 netns {peer.pid}\n"
                f"ip addr add {HOST}/24 dev eth0; ip link set eth0 up; ip route add default via {OUTSIDE}\n"
                f"nsenter --net=/proc/{peer.pid}/ns/net sh -ec "
                f"'ip addr add {OUTSIDE}/24 dev eth0; ip link set eth0 up; ip link set lo up'",
                of_host=True,
            )
            yield f"/proc/{peer.pid}/ns/net"
        finally:
            peer.kill()
            peer.wait()
