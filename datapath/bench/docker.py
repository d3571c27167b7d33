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
# All that dockerd and containerd keep beside the data is below /run, sockets too: it gets one of its own.
_SCRIPT = 'mount -t tmpfs tmpfs /run && exec "$@"'
_CAGE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _SCRIPT, "sh")


class Docker:
    """Running when it is made; `close` ends it with everything that it has started."""

    def __init__(self, host: Host, dockerd: str) -> None:
        if not os.path.exists(_BUSYBOX):
            raise DatapathError(
                f"docker: {_BUSYBOX} is missing, its container runs it (package busybox-static)"
            )
        folder = host.folder
        self._log = folder / "dockerd.log"
        self._argv = (
            *(dockerd, "--data-root", f"{folder}/data", "--host", f"unix://{_SOCKET}"),
            *("--config-file", f"{folder}/none.json", "--storage-driver", "vfs", "--iptables=true"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{host.group.name}"),
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
        self._process = self._place.start([*_CAGE, *self._argv], self._log)
        self.pid = 0
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            self.pid = self.pid or next(iter(_children(self._process.pid)), 0)
            self.api = Api(f"/proc/{self.pid}/root{_SOCKET}")
            try:
                self.api.ask("GET", "/_ping")
                break
            except DatapathError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise ToolError(self._argv, self._log.read_text()) from error
            time.sleep(0.02)

    def close(self) -> None:
        self.api.close()
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
