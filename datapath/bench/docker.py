# SPDX-License-Identifier: Apache-2.0
"""A Docker daemon of a topology's own: in the topology's network namespace, with its own directories, processes and
mounts, so that it leaves nothing and does not meet another one. Asked by its API, as its client's start would be
measured too."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datapath.bench.host import Host
from datapath.bench.place import Place, ToolError, end, pin
from datapath.errors import DatapathError
from datapath.kernel.unix_http import Api

_START_TIMEOUT = 60.0  # seconds
_END_TIMEOUT = 10.0
_IMAGE = "datapath-bench"
_BUSYBOX = "/bin/busybox"
_SOCKET = "/run/docker.sock"
# All that dockerd and containerd keep beside the data is below /run, sockets too: it gets one of its own. $1 is the
# folder of all that is the daemon's, $2 a root that has the daemon, or nothing; that is not written to.
# Its host's name is that of the host's folder: two that share networks may not have the same.
_SCRIPT = """
set -e
host=${1%/*}
hostname "${host##*/}"
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run
mkdir -p /run/docker/plugins
mount --bind "$1/plugins" /run/docker/plugins
if [ -n "$2" ]; then
    mount -t tmpfs tmpfs "$1/layers"
    mkdir "$1/layers/upper" "$1/layers/work"
    mount -t overlay -o "lowerdir=$2,upperdir=$1/layers/upper,workdir=$1/layers/work" overlay "$1/root"
    mount -t proc proc "$1/root/proc"
    for shared in /sys /dev /run; do mount --rbind $shared "$1/root$shared"; done
    mkdir -p "$1/root$1"
    mount --bind "$1" "$1/root$1"
    cd "$1/root"
    shift 2
    exec chroot . "$@"
fi
shift 2
exec "$@"
"""
_CAGE = (
    "unshare",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    _SCRIPT,
    "sh",
)
PLUGINS = "plugins"  # below the daemon's folder: /run/docker/plugins to it


class Docker:
    """`dockerd`: a program, or a folder with the root of another system that has it. `flags` are more of its options.

    Running when it is made; `close` ends it with everything that it has started.
    """

    def __init__(self, host: Host, dockerd: str, flags: Sequence[str] = ()) -> None:
        if not os.path.exists(_BUSYBOX):
            raise DatapathError(
                f"docker: {_BUSYBOX} is missing, its container runs it (package busybox-static)"
            )
        self.folder = folder = host.folder / "docker"
        for name in (PLUGINS, "layers", "root"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._log = folder / "dockerd.log"
        self._dockerd = dockerd
        root = os.path.abspath(dockerd) if os.path.isdir(dockerd) else ""
        self._argv = (
            *(*_CAGE, str(folder), root, "dockerd" if root else dockerd),
            *("--data-root", f"{folder}/data", "--host", f"unix://{_SOCKET}"),
            *("--config-file", f"{folder}/none.json", "--storage-driver", "vfs", "--iptables=true"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{host.group.name}"),
            *flags,
        )
        (folder / "none.json").write_text("{}")
        self._place = Place(host.inside.path)
        self.start()
        try:
            self.api.ask("POST", f"/images/create?fromSrc=-&repo={_IMAGE}", _image())
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Returns when it answers."""
        self._process = self._place.start(self._argv, self._log)
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            self.api = Api(f"/proc/{self.pid}/root{_SOCKET}")
            try:
                if self.inside("/run/docker", PLUGINS):  # else the machine's own daemon would answer
                    self.api.ask("GET", "/_ping")
                    break
            except DatapathError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise ToolError((self._dockerd,), self._log.read_text())
            time.sleep(0.02)

    def inside(self, path: str, name: str) -> bool:
        """The daemon sees what its folder has under this name below `path`: its mounts are made."""
        try:
            return os.path.samefile(f"/proc/{self.pid}/root{path}/{name}", self.folder / name)
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The daemon's; 0 if it is not there yet."""
        return next(iter(_children(self._process.pid)), 0)

    def close(self) -> None:
        first = _children(self._process.pid)
        end(self._process)
        deadline = time.monotonic() + _END_TIMEOUT  # the kernel ends the others
        while any(os.path.exists(f"/proc/{pid}") for pid in first) and time.monotonic() < deadline:
            time.sleep(0.01)

    def netns(self, container: str) -> str:
        """The path of a container's network namespace. Process ids are the daemon's own."""
        inner = self.api.ask("GET", f"/containers/{container}/json")["State"]["Pid"]
        return f"/proc/{self.pid}/root/proc/{inner}/ns/net"

    def run(self, name: str, network: str, ports: Sequence[str] = (), aliases: Sequence[str] = ()) -> None:
        """Starts a container that sleeps; `ports` like "80/tcp" are published under their own numbers."""
        bindings = {port: [{"HostPort": port.partition("/")[0]}] for port in ports}
        body: dict[str, Any] = {
            "Image": _IMAGE,
            "Cmd": ["/busybox", "sleep", "1000000"],
            "ExposedPorts": {port: {} for port in ports},
            "HostConfig": {"NetworkMode": network, "PortBindings": bindings},
            "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": list(aliases)}}},
        }
        self.api.ask("POST", f"/containers/create?name={name}", body)
        self.api.ask("POST", f"/containers/{name}/start")

    def remove(self, name: str) -> None:
        self.api.ask("DELETE", f"/containers/{name}?force=true")

    def pin(self, core: int) -> None:
        """The daemon itself, which answers questions for names."""
        pin(self.pid, core)

    def pin_proxies(self, core: int) -> None:
        """The processes that stand between the host's own clients and published ports."""
        for pid in _children(self.pid):
            try:
                proxy = Path(f"/proc/{pid}/comm").read_text().strip() == "docker-proxy"
            except OSError:
                continue
            if proxy:
                pin(pid, core)

    def rss(self) -> dict[str, int]:
        """Bytes of memory of each kind of process that it needs: dockerd, containerd, shims, proxies."""
        found: dict[str, int] = {}
        for pid in (self.pid, *_descendants(self.pid)):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
            if name != "busybox":
                found[name] = found.get(name, 0) + pages * os.sysconf("SC_PAGESIZE")
        return found


def installed(dockerd: str) -> bool:
    """The program, or the root that has it, is there."""
    if os.path.isdir(dockerd):
        return any(
            os.path.exists(f"{dockerd}/usr/{folder}/dockerd") for folder in ("sbin", "bin", "local/bin")
        )
    return shutil.which(dockerd) is not None


def _image() -> bytes:
    """A root file system with nothing but a static busybox."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(os.path.realpath(_BUSYBOX), "busybox")
    return buffer.getvalue()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except OSError:
        pass
    return found


def _descendants(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in (child, *_descendants(child))]
