# SPDX-License-Identifier: Apache-2.0
"""A host for a benchmark: a network namespace with an uplink and a machine at its other end, and directories of
its own. Nothing of the machine's own network is touched."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from datapath.bench.groups import group
from datapath.bench.place import Namespace, Place
from datapath.config.settings import Settings
from datapath.errors import KernelError
from datapath.kernel import syscalls

HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"
CLIENTS = "198.18.0.0/16"  # all of them are addresses of the machine outside

# For the namespace of the client: ports are free again at once, and so few that a connection tracker is not filled.
CLIENT_SETTINGS = {
    "net/ipv4/tcp_max_tw_buckets": "8",
    "net/ipv4/ip_local_port_range": "32768 49151",
}
# bbr, some machines' default, paces what it sends, by timers. A namespace may always choose reno.
STREAM_SETTINGS = {"net/ipv4/tcp_congestion_control": "reno"}


class Host:
    """Use as a context manager. `group`: the control group that its processes are in. `opposite`: another host whose
    machine outside this one is, and the other way round; that is left after this one."""

    def __init__(self, folder: Path, opposite: Host | None = None) -> None:
        self.folder = folder
        self.address = HOST if opposite is None else OUTSIDE
        self._opposite = opposite
        self._name = f"{folder.name}-{os.urandom(4).hex()}"
        self._stack = ExitStack()

    def __enter__(self) -> Host:
        with ExitStack() as stack:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a topology before it, that was given up
            self.folder.mkdir(parents=True)
            self.bpffs = self.folder / "bpf"
            self.bpffs.mkdir()
            _mount_bpffs(self.bpffs)
            stack.callback(syscalls.umount, str(self.bpffs))
            self.group = stack.enter_context(group(self._name))
            if self._opposite is None:
                self.inside = Namespace()
                stack.callback(self.inside.close)
                self.outside = Namespace()
                stack.callback(self.outside.close)
                self._connect()
            else:
                self.inside, self.outside = self._opposite.outside, self._opposite.inside
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _connect(self) -> None:
        self.inside.sh(
            f"ip link add eth0 type veth peer name eth0 netns {self.outside.pid}",
            f"ip address add {HOST}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {OUTSIDE}",
        )
        self.outside.sh(
            f"ip address add {OUTSIDE}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add local {CLIENTS} dev lo",
        )
        for namespace in (self.inside, self.outside):
            Place(namespace.path).write(STREAM_SETTINGS | CLIENT_SETTINGS)

    def settings(self) -> Settings:
        return Settings(
            state_dir=self.folder / "state",
            run_dir=self.folder / "run",
            bpffs=self.bpffs / "datapath",
            config_path=self.folder / "daemon.json",
            cgroup=self.group,
        )


def _mount_bpffs(path: Path) -> None:
    try:
        syscalls.mount("bpf", str(path), "bpf")
    except OSError as error:
        raise KernelError("mount bpffs on", str(path), error.errno or 0) from error
