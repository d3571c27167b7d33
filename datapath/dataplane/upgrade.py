# SPDX-License-Identifier: Apache-2.0
"""Replaces the packet programs while packets pass.

First the new programs are loaded with the pinned maps, and pinned below ``next``; a mark says when these are complete.
Until then nothing has changed. After that only the pins are needed: the next command can finish the upgrade, and
repeats all of its second part; one of another version can if it has the same names of maps and programs. Old and new
programs share the maps, so they work side by side; all but those whose layout has changed (see carry).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import get_args

from datapath.dataplane import carry, connections, timer, version
from datapath.dataplane.attach import filter_place
from datapath.dataplane.layout import CONN_GC, OBJECT_FILES, VERSION_MAPS, Direction
from datapath.dataplane.pins import listed
from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_links, bpf_maps, bpffs, libbpf

_MOVING = "moving"  # a pin that is about to be renamed to its place


def pending(bpffs: Path) -> bool:
    """An upgrade was begun and not finished."""
    return (bpffs / version.NEXT).exists()


def prepare(dataplane: Dataplane, fill: Callable[[], None]) -> int:
    """Loads those of this version's programs that are in use, and pins them below ``next``; `fill` writes the rows of
    maps that the version before did not have, or laid out otherwise. What `finish` has to know of it. KernelError: it
    failed, and nothing has changed."""
    root = dataplane.root
    folder, maps = root / version.NEXT, root / "maps"
    _clear(folder)
    carry.drop(root)
    before = set(os.listdir(maps))
    anew, began = version.to_carry(root) & before, 0
    if not anew:
        version.check(root)
    carry.check(root, anew)
    try:
        folder.mkdir(mode=0o700)
        used = listed(root / "programs") if "networks" in anew else dataplane.in_use()
        with dataplane.beside(folder, anew):
            dataplane.load(used)
            dataplane.close()  # of maps that are there only now it may have opened a stand-in
            carry.copy_policies(root, anew)
            with version.carrying(root) if anew else nullcontext():
                fill()
        if anew:
            dataplane.close()
            began = carry.begin(root, anew)
        _repeat_marks(root, bool(anew))
        return began
    except BaseException:
        dataplane.close()
        _clear(folder)
        carry.drop(root)
        if "gc_timers" in anew:
            timer.start(dataplane.program(CONN_GC))
        for name in set(os.listdir(maps)) - before:
            bpffs.unpin(maps / name)
        raise


def _repeat_marks(root: Path, one_way: bool) -> None:
    """Pins marks with the new programs: the old marks would keep the old programs alive. The version mark is last.
    `one_way`: only this version can finish; one before, which would try, is kept from it by a mark that it sees."""
    folder = root / version.NEXT
    others = {name for name in os.listdir(root / "programs") if "-" in name and not version.is_mark(name)}
    with _Opened(folder, {CONN_GC}) as fds:
        if one_way:
            bpffs.pin(fds[CONN_GC], root / "programs" / version.installed().mark)
        for name in (*sorted(others), version.installed().mark):
            bpffs.pin(fds[CONN_GC], folder / name)


class _Opened:
    """The programs below a folder, by name, as fds for as long as the context."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self._folder, self._names, self._stack = folder, names, ExitStack()

    def __enter__(self) -> Mapping[str, int]:
        fds: dict[str, int] = {}
        for name in sorted(self._names):
            fd = bpffs.get_pinned(self._folder / name)
            if fd is not None:
                self._stack.callback(os.close, fd)
                fds[name] = fd
        return fds

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def finish(dataplane: Dataplane, began: int = 0) -> bool:
    """Replaces the old programs by those below ``next``; False: these were incomplete, and have been removed. `began`:
    what `prepare` has said, if that was this process."""
    root = dataplane.root
    folder = root / version.NEXT
    names = set(os.listdir(folder)) - {_MOVING}
    mark = next((name for name in names if version.is_mark(name)), None)
    if mark is None:
        carry.drop(root)
        _drop_maps(root)
        _drop_unused(root)
        _clear(folder)
        return False
    with _Opened(folder, names) as fds:
        _update_links(root, fds)
        _replace_filters(dataplane, fds)
        if version.is_carried(root):
            dataplane.close()
            if carry.settle(root, began):
                connections.recount(dataplane)
        timer.start(fds[CONN_GC], int(abi.GcOrder.GC_TAKE_OVER))
        for name, fd in fds.items():
            if name != mark:
                _replace_pin(fd, folder, root / ("maps" if name in VERSION_MAPS else "programs") / name)
        _replace_pin(fds[mark], folder, root / "programs" / mark)
    for name in set(os.listdir(root / "programs")) - names:
        bpffs.unpin(root / "programs" / name)
    dataplane.close()  # what it has opened are the old ones
    dataplane.attach_sockets()
    bpffs.unpin(folder / mark)
    _drop_maps(root)  # before the folder goes: it says that something is left to do
    _clear(folder)
    return True


def _update_links(root: Path, fds: Mapping[str, int]) -> None:
    """Gives each link its new program, and removes links of hooks that the new version does not have."""
    for name in os.listdir(root / "links"):
        program = fds.get(name, fds.get(name.rpartition("-")[0]))
        if program is None:
            bpffs.unpin(root / "links" / name)
            continue
        link = bpffs.get_pinned(root / "links" / name)
        if link is not None:
            try:
                bpf_links.update_link(link, program)  # False: its device is gone, and it will be
            finally:
                os.close(link)


def _replace_filters(dataplane: Dataplane, fds: Mapping[str, int]) -> None:
    """Replaces filters, found by the programs that they run: either version may have hooks that this one lacks."""
    folder = dataplane.root / "programs"
    with _Opened(folder, set(os.listdir(folder))) as pinned:
        names = {libbpf.program_id(fd): name for name, fd in pinned.items() if "-" not in name}
    for key, _ in dataplane.devices.read_all():
        for direction in get_args(Direction):
            place = filter_place(key.ifindex, direction)
            name = names.get(bpf_links.clsact_program(*place), "")
            if name in fds:
                try:
                    bpf_links.attach_clsact(fds[name], *place)
                except KernelError:
                    if bpf_links.clsact_program(*place):  # else its device has just gone
                        raise
            elif name:
                bpf_links.detach_clsact(*place)


def _drop_maps(root: Path) -> None:
    """Removes pins of maps that only the old version had, if this is the new version, which knows its own maps."""
    found = version.marked(os.listdir(root / "programs"))
    if found is None or found.objects != version.digest():
        return
    own = {"config"}.union(*(libbpf.declared_maps(abi.OBJECTS / f"{name}.bpf.o") for name in OBJECT_FILES))
    for name in set(os.listdir(root / "maps")) - own:
        bpffs.unpin(root / "maps" / name)


def _drop_unused(root: Path) -> None:
    """Removes pins of maps that no program uses or holds: of an upgrade that came to nothing, whose version had more
    of them."""
    used: set[int] = set()
    with _Opened(root / "programs", set(os.listdir(root / "programs"))) as programs:
        for fd in programs.values():
            used |= libbpf.program_maps(fd)
    with _Opened(root / "maps", set(os.listdir(root / "maps"))) as maps:
        for name, fd in maps.items():
            if bpf_maps.map_info(fd, name).id not in used:
                bpffs.unpin(root / "maps" / name)


def _replace_pin(fd: int, folder: Path, path: Path) -> None:
    """Replaces a pin by another program's, atomically."""
    bpffs.unpin(folder / _MOVING)
    bpffs.pin(fd, folder / _MOVING)
    os.replace(folder / _MOVING, path)


def _clear(folder: Path) -> None:
    """Removes the pins below ``next``, the version mark first: without it they count as incomplete."""
    if not folder.is_dir():
        return
    for name in sorted(os.listdir(folder), key=lambda name: not version.is_mark(name)):
        bpffs.unpin(folder / name)
    folder.rmdir()
