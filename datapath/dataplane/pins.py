# SPDX-License-Identifier: Apache-2.0
"""The pins of the packet programs of one host, all below one folder of a bpffs:

    maps/NAME  programs/NAME  links/HOOK-IFINDEX  links/NAME (socket hooks)  next/NAME  maps/next-NAME (see upgrade)

A pin keeps its object alive without any process. A bpffs holds nothing but pins, so what has to be remembered beside
them are pins too, of which only the name matters: the version mark (see version), clsact-IFINDEX, other-xdp-IFINDEX.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from datapath.dataplane import version
from datapath.dataplane.layout import EPOCH_MAPS, MAPS
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, bpffs

_FOLDERS = (version.NEXT, "links", "programs", "maps")
_SYSTEM_BPFFS = Path("/sys/fs/bpf")
_NOT_PINNED = "it is not pinned: run the command again to load it; of another version: `datapathctl upgrade`"


class Pins:
    """Opens maps and programs by name when they are first used; close() closes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fds: dict[str, int] = {}
        self._maps: dict[str, bpf_maps.Map] = {}

    def close(self) -> None:
        """Closes what was opened; the pins stay."""
        for fd in self._fds.values():
            os.close(fd)
        for m in self._maps.values():
            m.close()
        self._fds.clear()
        self._maps.clear()
        self.__dict__.pop("_next_to_maps", None)

    def map(self, name: str) -> bpf_maps.Map:
        """A map of MAPS. Programs of another version that do without it get one that only this process has: what is
        written there nobody reads. KernelError: it is not pinned, or its layout is another version's."""
        if name not in self._maps:
            fd = self._open("maps", name)
            if fd is None and not self.outdated:
                raise KernelError("open map", name, detail=_NOT_PINNED)
            if fd is None:
                fd = bpf_maps.unread(name, *MAPS[name])
            self._maps[name] = bpf_maps.Map(fd, name, *MAPS[name])
            if name in EPOCH_MAPS:
                watch(self._maps[name], self.map("epoch"))
        return self._maps[name]

    def program(self, name: str) -> int:
        """The fd of a program, which stays the owner's. KernelError: it is not pinned."""
        if name not in self._fds:
            fd = self._open("programs", name)
            if fd is None:
                raise KernelError("open program", name, detail=_NOT_PINNED)
            self._fds[name] = fd
        return self._fds[name]

    def _open(self, folder: str, name: str) -> int | None:
        """Opens a pin; None: there is none."""
        fd = None
        if folder == "maps" and self._next_to_maps:
            fd = bpffs.get_pinned(f"{self.root}/maps/{version.NEXT_MAP}{name}")
        if fd is None:
            fd = bpffs.get_pinned(f"{self.root}/{folder}/{name}")
        return fd

    @cached_property
    def _next_to_maps(self) -> bool:
        """An upgrade was begun for which rows were carried over: there are maps that take the place of others."""
        return any(
            name.startswith(version.NEXT_MAP) for name in listed(self.root / "maps")
        ) and version.is_carried(self.root)

    @property
    def outdated(self) -> bool:
        """The programs are of another version, older or newer."""
        found = version.marked(listed(self.root / "programs"))
        return found is not None and found.objects != version.digest()

    def is_there(self) -> bool:
        """At least a part: the folder of the pins exists."""
        return self.root.is_dir()

    def places(self) -> set[int]:
        """The indexes of devices that pins are about."""
        found = listed(self.root / "links") | listed(self.root / "programs")
        numbers = (name.rpartition("-")[2] for name in found if not version.is_mark(name))
        return {int(number) for number in numbers if number.isdecimal()}

    def mount(self) -> None:
        """Mounts a bpffs where there is none: the system's if the folder is in that, else one on the folder."""
        if _SYSTEM_BPFFS in self.root.parents:
            if not bpffs.is_bpffs(_SYSTEM_BPFFS):
                bpffs.mount(_SYSTEM_BPFFS)
            return
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        if not bpffs.is_bpffs(existing):
            self.root.mkdir(parents=True, exist_ok=True)
            bpffs.mount(self.root)

    def unpin(self) -> None:
        """Removes every pin: links first, so that nothing runs without its maps' pins. Idempotent."""
        for folder in _FOLDERS:
            path = self.root / folder
            if path.is_dir():
                for entry in path.iterdir():
                    bpffs.unpin(entry)
                path.rmdir()

    def remove(self) -> None:
        """Removes every pin, which detaches what is attached by links, and the bpffs if it is one of its own.
        Idempotent. Devices with clsact filters must be gone or detached before."""
        self.close()
        self.unpin()
        if os.path.ismount(self.root):
            bpffs.unmount(self.root)
        with suppress(FileNotFoundError):
            self.root.rmdir()


def watch(m: bpf_maps.Map, epoch: bpf_maps.Map) -> None:
    """From now on each change of its rows begins an epoch, if the map is one of EPOCH_MAPS: what programs remember of
    rows counts no more."""
    if m.name in EPOCH_MAPS:
        m.changed = lambda: epoch.set(0, abi.epoch(time.monotonic_ns()))


def listed(folder: Path) -> set[str]:
    """The names of the pins in a folder; none if it does not exist."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
