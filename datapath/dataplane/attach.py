# SPDX-License-Identifier: Apache-2.0
"""Attaching the packet programs: to devices by tcx, as filters of clsact, and by XDP; to a control group's sockets."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection
from pathlib import Path

from datapath.dataplane.layout import (
    CONN_GC,
    HOOK_OF_KIND,
    HOOKS,
    SOCKET_HOOKS,
    XDP_HOOK,
    Direction,
    Setup,
)
from datapath.dataplane.loading import Loading
from datapath.dataplane.pins import listed
from datapath.errors import KernelError, NotSupportedError
from datapath.kernel import abi, bpf_links, bpffs, cgroup, devices, libbpf

HOOK_OF = {int(abi.DeviceKind[kind]): name for kind, name in HOOK_OF_KIND.items()}
_TCX = {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}
_CLSACT: dict[Direction, int] = {"ingress": bpf_links.BPF_TC_INGRESS, "egress": bpf_links.BPF_TC_EGRESS}
# By both numbers our filters are told from others' at the same device.
_CLSACT_PRIORITY, _CLSACT_HANDLE = 0x0D47, 0x0D47
_DETACH_PATIENCE = 2.0  # seconds


def filter_place(ifindex: int, direction: Direction) -> tuple[int, int, int, int]:
    """Where our filter of that direction is at a device: arguments of libbpf's functions for clsact."""
    return ifindex, _CLSACT[direction], _CLSACT_HANDLE, _CLSACT_PRIORITY


class Attachments(Loading):
    """The pinned programs, attached and detached.

    `mode`: "auto" (tcx, else clsact), "tcx" or "clsact". `group`: the control group whose sockets the socket hooks
    are attached to; None: the root. `setup`: see Loading.
    """

    def __init__(self, root: Path, mode: str, group: Path | None, setup: Setup) -> None:
        super().__init__(root, setup)
        self._mode = mode
        self._group = group

    def attach(self, hook: str, ifindex: int) -> None:
        """Attaches a tc program to a device, unless it is attached already; loads it if it is not. KernelError: the
        kernel refuses.

        To a device that is nobody else's a filter is preferred, unless tcx was asked for: the kernel waits for an
        RCU grace period when it makes a tcx link, and again when the device goes, with the lock held that every
        change of a device or address needs. Programs of another version may lack the hook: then nothing is done.
        """
        name = f"{hook}-{ifindex}"
        if self._lacks(hook):
            return
        self.need(hook)
        if self._mode != "clsact":
            if os.path.exists(f"{self.root}/links/{name}"):
                return
            if HOOKS[hook].own and self._mode == "auto" and self._attach_filter(hook, ifindex):
                return
            try:
                self._pin_link(self._attach_tcx(hook, ifindex), name)
                return
            except NotSupportedError:
                if self._mode == "tcx":
                    raise
        if bpf_links.create_clsact(ifindex):  # remembered: a qdisc that was there before has to stay
            bpffs.pin(self.program(hook), self._own_qdisc(ifindex))
        bpf_links.attach_clsact(self.program(hook), *filter_place(ifindex, HOOKS[hook].direction))

    def _attach_tcx(self, hook: str, ifindex: int) -> int:
        """The fd of the link. Waits while the kernel is still detaching one whose pin has just been removed."""
        deadline = time.monotonic() + _DETACH_PATIENCE
        while True:
            try:
                return bpf_links.attach_tcx(self.program(hook), ifindex, _TCX[HOOKS[hook].direction])
            except KernelError as error:
                if error.errno != errno.EEXIST or time.monotonic() > deadline:
                    raise
            time.sleep(0.001)

    def _attach_filter(self, hook: str, ifindex: int) -> bool:
        """Attaches as a filter of clsact; False: the kernel has none."""
        try:
            bpf_links.attach_clsact(self.program(hook), *filter_place(ifindex, HOOKS[hook].direction))
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            return False
        return True

    def _own_qdisc(self, ifindex: int) -> Path:
        """The mark of a clsact qdisc that was made here, and not by others."""
        return self.root / "programs" / f"clsact-{ifindex}"

    def detach(self, hook: str, ifindex: int, *, device_gone: bool = False) -> None:
        """Takes the program off a device, by whichever way it was attached. Idempotent.

        With `device_gone` what is attached by clsact is left to go with the device.
        """
        if not bpffs.unpin(self.root / "links" / f"{hook}-{ifindex}") and not device_gone:
            bpf_links.detach_clsact(*filter_place(ifindex, HOOKS[hook].direction))
            if self._own_qdisc(ifindex).exists():
                if any(bpf_links.clsact_program(*filter_place(ifindex, way)) for way in _CLSACT):
                    return  # another hook of ours is there
                if not devices.has_filters(ifindex):
                    bpf_links.destroy_clsact(ifindex)
        bpffs.unpin(self._own_qdisc(ifindex))

    def replaced(self, hook: str, ifindex: int) -> None:
        """Takes the program of a hook off a device after another hook of that direction was attached there: a filter
        has given up its place to that one's."""
        if self._mode != "clsact":
            bpffs.unpin(self.root / "links" / f"{hook}-{ifindex}")

    def attach_xdp(self, ifindex: int) -> bool:
        """Attaches the XDP program to a device, unless it is attached already; False: the device runs another's."""
        name = f"{XDP_HOOK}-{ifindex}"
        if (self.root / "links" / name).exists():
            return True
        if self._lacks(XDP_HOOK):
            return True
        self.need(XDP_HOOK)
        link = self._attach_xdp(ifindex)
        if link is None:
            return False
        self._pin_link(link, name)
        bpffs.unpin(self._other_xdp(ifindex))
        return True

    def _lacks(self, hook: str) -> bool:
        """The pinned programs are of another version, which does not have this hook."""
        return not os.path.exists(f"{self.root}/programs/{hook}") and self.outdated

    def _attach_xdp(self, ifindex: int) -> int | None:
        """The fd of the link; None: another program is there. Waits for one of ours to go, as `_attach_tcx` does."""
        program, deadline = self.program(XDP_HOOK), time.monotonic() + _DETACH_PATIENCE
        while True:
            try:
                return bpf_links.attach_xdp(program, ifindex)
            except KernelError as error:
                if error.errno not in (errno.EBUSY, errno.EEXIST):
                    raise
            there = bpf_links.xdp_program(ifindex)
            if there not in (0, libbpf.program_id(program)) or time.monotonic() > deadline:
                return None
            time.sleep(0.001)

    def detach_xdp(self, ifindex: int) -> None:
        """Takes the XDP program off a device. Idempotent."""
        bpffs.unpin(self.root / "links" / f"{XDP_HOOK}-{ifindex}")
        bpffs.unpin(self._other_xdp(ifindex))

    def note_other_xdp(self, ifindex: int) -> bool:
        """Remembers that another's XDP program is on the device; False: that was remembered already."""
        if self._other_xdp(ifindex).exists():
            return False
        bpffs.pin(self.program(CONN_GC), self._other_xdp(ifindex))
        return True

    def note_unserved(self, indexes: Collection[int]) -> set[int]:
        """Remembers which uplinks cannot be served, and forgets others; those that were not known to be such."""
        folder, prefix = self.root / "programs", "unserved-"
        known = {int(name.removeprefix(prefix)) for name in listed(folder) if name.startswith(prefix)}
        for index in known - set(indexes):
            bpffs.unpin(folder / f"{prefix}{index}")
        for index in set(indexes) - known:
            bpffs.pin(self.program(CONN_GC), folder / f"{prefix}{index}")
        return set(indexes) - known

    def _other_xdp(self, ifindex: int) -> Path:
        return self.root / "programs" / f"other-xdp-{ifindex}"

    def attach_sockets(self) -> None:
        """Attaches those of the socket hooks that are not attached and whose programs the pinned version has."""
        pinned, programs = listed(self.root / "links"), listed(self.root / "programs")
        missing = [name for name in SOCKET_HOOKS if name not in pinned and name in programs]
        if not missing:
            return
        group = str(self._group or cgroup.mount_point())
        try:
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError("open", f"control group {group}", error.errno or 0) from error
        try:
            for name in missing:
                link = bpf_links.attach_cgroup(self.program(name), fd, SOCKET_HOOKS[name])
                self._pin_link(link, name)
        finally:
            os.close(fd)

    def drop_link(self, name: str) -> None:
        """Removes the pin of a link: the kernel detaches its program."""
        bpffs.unpin(self.root / "links" / name)

    def _pin_link(self, link: int, name: str) -> None:
        """Pins the link and closes its fd. If it cannot be pinned, closing it detaches the program."""
        try:
            bpffs.pin(link, self.root / "links" / name)
        finally:
            os.close(link)
