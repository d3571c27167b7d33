# SPDX-License-Identifier: Apache-2.0
"""The version of the pinned packet programs, and whether this version can read their maps.

A bpffs holds nothing but pins, so the version is the name of one: ``programs/version-OBJECTS-LAYOUT``. It is removed
with the programs that it is about, and costs a command one listing of a folder and one small file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datapath.errors import KernelError
from datapath.kernel import abi

_PREFIX = "version-"
# What may differ between versions: settings are read by the same load that wrote them, and reasons are only appended.
_OWN = re.compile(r"(struct config|enum reason) \{.*?\};", re.S)


# Layouts of versions before whose maps are understood: each struct that they have has its size and its fields' places
# still, and what has been added since was padding, which is zero. A test holds that; when it fails the layout has
# changed, and all of these go.
LAYOUTS_BEFORE = frozenset({"665e227342acefc4", "79b2d60c28ff7cfb"})
# What the first of them called its maps and programs.
MAPS_BEFORE = {
    "links": "policies",
    "acls": "sources",
    "quotas": "usages",
    "frag_queue": "held",
    "gc_timers": "sweepers",
}
PROGRAMS_BEFORE = {"conn_gc": "sweep_conns"}


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
    text = layout_text((abi.OBJECTS / "abi.h").read_text())
    return Version(digest(), hashlib.sha256(text.encode()).hexdigest()[:16])


def layout_text(text: str) -> str:
    """The part of abi.h that lays out maps, without comments, and with single blanks."""
    return " ".join(_OWN.sub("", re.sub(r"/\*.*?\*/", "", text, flags=re.S)).split())


def marked(names: Iterable[str]) -> Version | None:
    """The version that the mark among these pins names; None: there is no mark. Of two, while one replaces the other,
    the one that is not this version's."""
    found = [Version(*name.removeprefix(_PREFIX).split("-")) for name in names if is_mark(name)]
    return min(found, key=lambda version: (version.objects == digest(), version), default=None)


def understood(bpffs: Path) -> bool:
    """Whether the pinned maps, if there are any, have the layout that this version has."""
    try:
        found = marked(os.listdir(bpffs / "programs"))
    except FileNotFoundError:
        return True
    return found is None or found.objects == digest() or found.layout in {installed().layout, *LAYOUTS_BEFORE}


def check(bpffs: Path) -> None:
    """KernelError: the pinned maps have another layout than this version's."""
    if not understood(bpffs):
        raise KernelError(
            "use",
            "the packet programs",
            detail="their maps are laid out as in another version: use that one, or `datapathctl down`",
        )
