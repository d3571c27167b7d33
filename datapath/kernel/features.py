# SPDX-License-Identifier: Apache-2.0
"""The kernel features and capabilities that are required, found out by probing, never by version numbers."""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path

from datapath.errors import KernelError, NotSupportedError, PrivilegeError
from datapath.kernel import cgroup, netns
from datapath.model.devices import NETKIT

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # linux/capability.h; the latter includes CAP_BPF


def _capabilities() -> int:
    """The calling thread's effective ones, as a bit mask."""
    status = Path("/proc/thread-self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)


def require() -> None:
    """Raises PrivilegeError or NotSupportedError naming the first thing that is missing."""
    if os.geteuid() != 0:
        raise PrivilegeError("needs root: run it with sudo")
    held = _capabilities()
    missing = [name for name, number in _CAPABILITIES.items() if not held >> number & 1]
    if missing:
        raise PrivilegeError(f"needs {' and '.join(missing)}, which this root does not have")
    _require_kernel()


@functools.cache  # an answer once is an answer for good; a refusal is not kept
def _require_kernel() -> None:
    if "bpf" not in (line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()):
        raise NotSupportedError("the BPF file system (CONFIG_BPF_SYSCALL)")
    cgroup.mount_point()


def has_tcx() -> bool:
    """tcx links (since Linux 6.6); without them programs are attached as filters of clsact."""
    from datapath.kernel import bpf_links

    return bpf_links.has_tcx()


def has_kind(kind: str) -> bool:
    """Devices of that kind that stand on another, as rtnetlink names it ("macvlan", "vlan"): asked for one on none,
    which a kernel that has the kind refuses for that reason."""
    from datapath.kernel.pyroute import opened, translated

    with netns.new() as probe, opened(probe) as route:
        try:
            with translated("create", f"{kind} device"):
                route.link("add", kind=kind, ifname="probe")
        except KernelError as error:
            return error.errno != errno.EOPNOTSUPP
    return True


def has_netkit() -> bool:
    """netkit devices with chosen MAC addresses (since Linux 6.10), tried in a namespace that goes at once."""
    from datapath.kernel.links import Links

    with netns.new() as probe, Links(probe) as links:
        try:
            links.create_endpoint("probe", "probed", None, "02:00:00:00:00:01", 1500, kind=NETKIT)
        except KernelError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
    return True
