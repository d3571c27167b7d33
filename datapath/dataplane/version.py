# SPDX-License-Identifier: Apache-2.0
"""The version of the pinned packet programs, and whether this version can read their maps.

A bpffs holds nothing but pins, so the version is the name of one: ``programs/version-OBJECTS-LAYOUT``. It is removed
with the programs that it is about, and costs a command one listing of a folder and one small file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from datapath.dataplane import former
from datapath.dataplane.layout import MAPS
from datapath.errors import KernelError
from datapath.kernel import abi
from datapath.model.digests import sha256

_PREFIX = "version-"
# What may differ between versions: settings are read by the same load that wrote them, and reasons are only appended.
_OWN = re.compile(r"(struct config|enum reason) \{.*?\};", re.S)


class Version(NamedTuple):
    """Digests: of the object files, and of how abi.h lays out what lies in maps."""

    objects: str
    layout: str

    @property
    def mark(self) -> str:
        return f"{_PREFIX}{self.objects}-{self.layout}"


def is_mark(name: str) -> bool:
    return name.startswith(_PREFIX)


def digest() -> str:
    """The digest of this version's object files, which the build has written. It is read once a process."""
    return _digest_in(abi.OBJECTS)


@functools.cache
def _digest_in(folder: Path) -> str:
    return (folder / "digest").read_text().strip()


def installed() -> Version:
    """The version of this installation."""
    return Version(digest(), layout_of((abi.OBJECTS / "abi.h").read_text()))


def layout_of(text: str) -> str:
    """The digest of the layout of an abi.h."""
    return sha256(layout_text(text).encode()).hex()[:16]


def layout_text(text: str) -> str:
    """The part of abi.h that lays out maps, without comments, and with single blanks."""
    return " ".join(_OWN.sub("", re.sub(r"/\*.*?\*/", "", text, flags=re.S)).split())


def marked(names: Iterable[str]) -> Version | None:
    """The version that the mark among these pins names; None: there is no mark. Of two, while one replaces the other,
    the one that is not this version's."""
    found = [Version(*name.removeprefix(_PREFIX).split("-")) for name in names if is_mark(name)]
    return min(found, key=lambda version: (version.objects == digest(), version), default=None)


def carried_mark(layout: str) -> str:
    """The pin beside the maps that says: those of that layout are complete, each below its name after `_NEXT`."""
    return f"{NEXT_MAP}{layout}"


NEXT = "next"  # the folder where the programs of an upgrade wait
# Maps that take the place of others when an upgrade is finished are pinned beside these, with this before their names.
NEXT_MAP = "next-"
_carrying: set[Path] = set()  # where this process is making them: nobody else may use them yet


@contextlib.contextmanager
def carrying(bpffs: Path) -> Iterator[None]:
    """For the time of the block this process uses the maps that it is making."""
    _carrying.add(bpffs)
    try:
        yield
    finally:
        _carrying.discard(bpffs)


def is_carried(bpffs: Path) -> bool:
    """Beside the pinned maps there are those of this version that take their place, and all that is left to do for
    that can be done by anybody."""
    if bpffs in _carrying:
        return True
    mark = installed().mark
    return (bpffs / NEXT / mark).exists() and (bpffs / "maps" / carried_mark(installed().layout)).exists()


def understood(bpffs: Path) -> bool:
    """Whether the pinned maps, if there are any, can be used as this version's."""
    found = _pinned(bpffs)
    if found is None or found.objects == digest() or found.layout == installed().layout:
        return True
    structs = former_structs(found.layout)
    return (structs is not None and not former.changed(structs, _structs())) or is_carried(bpffs)


def to_carry(bpffs: Path) -> frozenset[str]:
    """The maps that `upgrade` has to make anew, and to carry the rows over: their layout is an earlier one."""
    found = _pinned(bpffs)
    structs = None if found is None or found.objects == digest() else former_structs(found.layout)
    if structs is None or understood(bpffs):
        return frozenset()
    return former.changed(structs, _structs())


def conversions(bpffs: Path, name: str) -> tuple[former.Conversion, former.Conversion]:
    """How keys and values of a map are carried over, whose layout is an earlier one. KernelError: they cannot be."""
    found = _pinned(bpffs)
    before = former_structs(found.layout) if found else None
    assert before is not None, name
    try:
        return tuple(  # type: ignore[return-value]
            former.conversion(before, _structs(), struct) if struct else former.Conversion(4, 4, ((0, 0, 4),))
            for struct in MAPS[name]
        )
    except former.Refused as error:
        raise KernelError("carry over", f"map {name}", detail=f"{error}: use `datapathctl down`") from None


def former_conn(bpffs: Path) -> former.Struct:
    """How the version whose programs are pinned lays out a connection's row."""
    found = _pinned(bpffs)
    before = former_structs(found.layout) if found else None
    assert before is not None
    return before["conn"]


def _pinned(bpffs: Path) -> Version | None:
    try:
        return marked(os.listdir(bpffs / "programs"))
    except FileNotFoundError:
        return None


def _structs() -> former.Structs:
    return _structs_in(abi.OBJECTS / "abi.h")


@functools.cache
def _structs_in(path: Path) -> former.Structs:
    return former.parse(path.read_text())


def former_structs(layout: str) -> former.Structs | None:
    """Those of the earlier version with that layout, from its abi.h; None: none that is known here."""
    return _former_in(abi.OBJECTS / "former", layout)


@functools.cache
def _former_in(folder: Path, layout: str) -> former.Structs | None:
    found = (path for path in sorted(folder.glob("*")) if layout_of(path.read_text()) == layout)
    return next(map(_structs_in, found), None)


def check(bpffs: Path) -> None:
    """KernelError: the pinned maps have another layout than this version's."""
    if not understood(bpffs) and to_carry(bpffs):
        raise KernelError(
            "use",
            "the packet programs",
            detail="their maps are laid out as in an earlier version: `datapathctl upgrade` carries them over",
        )
    if not understood(bpffs):
        raise KernelError(
            "use",
            "the packet programs",
            detail="their maps are laid out as in another version: use that one, or `datapathctl down`",
        )
