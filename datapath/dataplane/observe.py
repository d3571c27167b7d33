# SPDX-License-Identifier: Apache-2.0
"""Looks at a host for `doctor`: changes nothing, loads nothing, and copes with what is there in part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datapath.dataplane import convert, version
from datapath.dataplane.programs import (
    CLSACT_HANDLE,
    CLSACT_PRIORITY,
    HOOKS,
    MAPS,
    NEXT,
    OBJECT_FILES,
    SOCKET_HOOKS,
    Dataplane,
    is_bpffs,
)
from datapath.errors import KernelError
from datapath.kernel import facts, libbpf, netns
from datapath.kernel.rtnetlink import Rtnetlink
from datapath.model.observed import Programs, Stack

# The maps that say who is where and what is published; the others belong to the programs.
_TOLD = (
    *("networks", "devices", "endpoints", "members", "ports", "reserved", "addresses", "acls"),
    *("links", "quotas"),
)


def stack(where: netns.Netns) -> Stack:
    """Devices, addresses and default routes of a namespace. KernelError, also if it is gone."""
    with netns.enter(where), facts.translated("open", "rtnetlink socket"):
        opened = Rtnetlink()
    with opened as route:
        devices = facts.devices(route)
        names = {device.ifindex: device.name for device in devices}
        addresses: dict[str, set[facts.Interface]] = {}
        for held in facts.addresses(route):
            addresses.setdefault(names.get(held.ifindex, ""), set()).add(held.interface)
        gateways = facts.gateways(route)
    return Stack(
        {device.name: device for device in devices},
        {name: frozenset(found) for name, found in addresses.items()},
        frozenset((names.get(index, ""), gateway) for index, gateway in gateways),
    )


def sysctls(paths: Iterable[str]) -> dict[str, str]:
    """The values of those that exist, in the caller's namespace."""
    found = {}
    for path in paths:
        try:
            found[path] = Path("/proc/sys", path).read_text().strip()
        except OSError:
            continue
    return found


def busy(lock: Path) -> bool:
    """Somebody holds the lock on this file. Asked of the kernel's list, so that nobody has to wait for us."""
    try:
        with lock.open("rb") as file:
            major, minor = _file_system(file.fileno())
            wanted = f"{major:02x}:{minor:02x}:{os.fstat(file.fileno()).st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and wanted in line.split() for line in lines)


def _file_system(fd: int) -> tuple[int, int]:
    """The device number of the file system, as /proc/locks has it. st_dev may be another: btrfs has one for each
    subvolume, overlayfs one for each layer."""
    told = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    mount = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, device, *_ = line.split()
        if number == mount:
            major, _, minor = device.partition(":")
            return int(major), int(minor)
    status = os.fstat(fd)  # of a mount that is not in sight
    return os.major(status.st_dev), os.minor(status.st_dev)


# ---- the packet programs ---------------------------------------------------------------------


def programs(bpffs: Path, indexes: Iterable[int]) -> Programs:
    """What is pinned below the folder, and where it runs. `indexes`: devices to look for clsact filters at."""
    existing = next(path for path in (bpffs, *bpffs.parents) if path.exists())
    if not is_bpffs(existing):
        return Programs(missing=("maps", "programs"))
    pinned = {folder: _names(bpffs / folder) for folder in ("maps", "programs", "links")}
    wanted = [f"programs/{name}" for names in OBJECT_FILES.values() for name in names]
    missing = [pin for pin in (*wanted, *(f"maps/{name}" for name in MAPS)) if not (bpffs / pin).exists()]
    broken: dict[str, str] = {}
    outdated = Dataplane(bpffs).outdated
    if version.marked(pinned["programs"]) is None:
        missing.append("programs/version")
    maps: dict[str, Any] = {}
    flood_rate = 0
    try:
        version.check(bpffs)
        maps, flood_rate = _maps(bpffs, pinned["maps"] - ({"config"} if outdated else set()), broken)
    except KernelError as error:
        broken["programs"] = str(error)
    own = {name: {number} for name, number in _program_ids(bpffs / "programs", broken).items()}
    for name, number in _program_ids(bpffs / NEXT, broken).items():
        own.setdefault(name, set()).add(number)  # in the middle of an upgrade
    attached, sockets, foreign = _links(bpffs, pinned["links"], own, broken)
    return Programs(
        mounted=True,
        pinned=pinned,
        missing=() if outdated else tuple(missing),
        outdated=outdated,
        upgrading=(bpffs / NEXT).exists(),
        maps=maps,
        attached=frozenset(attached | _filters(own, indexes)),
        sockets=frozenset(sockets),
        foreign=frozenset(foreign),
        broken=broken,
        flood_rate=flood_rate,
    )


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _maps(bpffs: Path, names: frozenset[str], broken: dict[str, str]) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    flood_rate = 0
    with Dataplane(bpffs) as dataplane:
        for name in (*_TOLD, "config"):
            if name not in names and version.MAPS_BEFORE.get(name) not in names:
                continue
            try:
                opened = getattr(dataplane, name)
                if name == "config":
                    flood_rate = opened[0].flood_rate
                elif name == "networks":
                    found[name] = {(index,): convert.network_value(opened[index]) for index in opened.used()}
                elif name == "devices":
                    found[name] = {key: convert.device_value(value) for key, value in opened.read_all()}
                else:
                    found[name] = dict(opened.read_all())
            except KernelError as error:
                broken[f"maps/{name}"] = str(error)
    return found, flood_rate


def _program_ids(folder: Path, broken: dict[str, str]) -> dict[str, int]:
    found = {}
    for name in _names(folder) - {"config", "moving"}:
        with _pin(folder / name, broken) as fd:
            if fd is not None:
                found[name] = libbpf.program_id(fd)
    return found


def _links(
    bpffs: Path, names: frozenset[str], own: Mapping[str, set[int]], broken: dict[str, str]
) -> tuple[set[tuple[str, int]], set[str], set[str]]:
    """Attachments to devices; socket hooks; pins with another's program."""
    attached: set[tuple[str, int]] = set()
    sockets: set[str] = set()
    foreign: set[str] = set()
    for name in names:
        hook, _, number = name.rpartition("-")
        programs = own.get(name if name in SOCKET_HOOKS else hook, set())
        with _pin(bpffs / "links" / name, broken) as fd:
            if fd is None:
                continue
            runs, target = libbpf.link_info(fd)
        if runs not in programs:
            foreign.add(name)
        elif name in SOCKET_HOOKS:
            sockets.update([name] if target else [])
        elif number.isdigit() and target == int(number):
            attached.add((hook, target))
    return attached, sockets, foreign


def _filters(own: Mapping[str, set[int]], indexes: Iterable[int]) -> set[tuple[str, int]]:
    found = set()
    for index in indexes:
        for hook, points in HOOKS.items():
            running = libbpf.clsact_program(index, points.clsact, CLSACT_HANDLE, CLSACT_PRIORITY)
            if running and running in own.get(hook, ()):
                found.add((hook, index))
    return found


@contextlib.contextmanager
def _pin(path: Path, broken: dict[str, str]) -> Iterator[int | None]:
    """An fd of a pin; None if it cannot be had, which is then noted in `broken`."""
    try:
        fd = libbpf.get_pinned(path)
    except KernelError as error:
        broken[f"{path.parent.name}/{path.name}"] = str(error)
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
