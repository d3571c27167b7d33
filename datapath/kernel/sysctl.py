# SPDX-License-Identifier: Apache-2.0
"""Kernel settings below /proc/sys, of the calling thread's namespace. On the host only ever those of single devices."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from datapath.errors import KernelError
from datapath.kernel import log

PORT_RANGE = "net/ipv4/ip_local_port_range"
RESERVED_PORTS = "net/ipv4/ip_local_reserved_ports"


def route_localnet(ifname: str) -> str:
    """The setting of a device by which packets from and to 127.0.0.0/8 may pass there."""
    return f"net/ipv4/conf/{ifname}/route_localnet"


def write(path: str, value: int | str) -> None:
    """Set e.g. `net/ipv4/conf/dp0/forwarding` (device names may hold dots, so the separator is a slash)."""
    try:
        with log.operation("write sysctl", path, value):
            fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"{value}\n".encode())  # nothing at all would change nothing
            finally:
                os.close(fd)
    except OSError as error:
        raise KernelError("write", f"/proc/sys/{path}", error.errno or 0) from error


def read(path: str) -> str:
    try:
        with open(f"/proc/sys/{path}") as file:
            return file.read().strip()
    except OSError as error:
        raise KernelError("read", f"/proc/sys/{path}", error.errno or 0) from error


def ephemeral_ports() -> tuple[int, int]:
    """The first and the last port that the kernel gives to sockets that ask for none, in the caller's namespace
    (net.ipv4.ip_local_port_range, inclusive). KernelError: the setting cannot be read."""
    first, last = read(PORT_RANGE).split()
    return int(first), int(last)


def read_existing(paths: Iterable[str]) -> dict[str, str]:
    """The values of those settings that exist, by path."""
    found = {}
    for path in paths:
        try:
            with open(f"/proc/sys/{path}") as file:
                found[path] = file.read().strip()
        except OSError:
            continue
    return found


def write_if_present(path: str, value: int | str) -> None:
    """The same for a setting that a kernel without the feature (IPv6) simply does not have."""
    if exists(path):
        write(path, value)


def exists(path: str) -> bool:
    return os.path.exists(f"/proc/sys/{path}")


def matching(pattern: str) -> list[str]:
    """The settings that match a pattern, where * stands for one part."""
    return [path.removeprefix("/proc/sys/") for path in glob.glob(f"/proc/sys/{pattern}")]
