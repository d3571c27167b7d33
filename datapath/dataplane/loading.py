# SPDX-License-Identifier: Apache-2.0
"""Loading the packet programs: some with the first network, each of the others when something first needs it
(docs/decisions/0056). Then the verifier looks at it, which takes most of a load's time.

A program that others go on in is in its place in the map `tails` before it is pinned, and is pinned before a row is
written by which a packet could get there. So nobody who finds the pin, or the row, has to ask for the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datapath.dataplane import version
from datapath.dataplane.layout import (
    CONN_GC,
    FIRST,
    LATER_MAPS,
    OBJECT_FILES,
    TAILS,
    TAILS_MAP,
    TAILS_OF,
    VERSION_MAPS,
    Setup,
    tails_of,
)
from datapath.dataplane.pins import Pins, listed
from datapath.errors import NotSupportedError
from datapath.kernel import abi, bpf_maps, libbpf, netns
from datapath.kernel.bpffs import get_pinned, pin

_SAMPLE = 64  # of as many drops, one is reported


class Loading(Pins):
    """The pinned programs, and more of them when they are needed. `setup`: what they are loaded with, but for what
    those that are pinned already say."""

    def __init__(self, root: Path, setup: Setup) -> None:
        super().__init__(root)
        self._setup = setup
        self._programs, self._own = root / "programs", root / "maps"
        self._anew: Collection[str] | None = None

    @contextlib.contextmanager
    def beside(self, folder: Path, anew: Collection[str]) -> Iterator[None]:
        """For the time of the block programs are loaded that are to take the place of the pinned ones: they are pinned
        in that folder, and so are the maps that are theirs alone. `anew`: the maps that are not shared either, but made
        to take the place of those that are pinned."""
        self._programs = self._own = folder
        self._anew = anew
        try:
            yield
        finally:
            self._programs, self._own = self.root / "programs", self.root / "maps"
            self._anew = None

    def load(self, programs: Collection[str] = ()) -> None:
        """Loads what there is from the first network on, and these programs. KernelError and its kinds."""
        others = [name for name, contents in OBJECT_FILES.items() if not set(contents).isdisjoint(programs)]
        for name in dict.fromkeys((*FIRST, *others)):
            self._load(name)
        for name in LATER_MAPS.keys() - programs:
            self._load(name, maps_only=True)

    def need(self, *programs: str) -> None:
        """Loads those of the programs that are not pinned, of those that have an object file of their own. Of another
        version's none is: it may do the same otherwise, and this version's do not go with its programs. KernelError
        and its kinds."""
        missing = [name for name in programs if not self._is_pinned(name)]
        if missing and self._loads:
            for name in missing:
                self._load(name)

    def lacks(self, *programs: str) -> bool:
        """Not all of the programs are pinned, and those that are not cannot be loaded: the others are of another
        version."""
        return not (self._loads or all(map(self._is_pinned, programs)))

    def tell_network(self, number: int, row: Any) -> None:
        """Writes the row of a network (abi.network), once the programs are there that its packets go on in. KernelError
        and its kinds; NotSupportedError: those that are loaded are of another version, and have not loaded them."""
        needed = tails_of(flags_of(row))
        self.need(*sorted(needed))
        if self.lacks(*needed) and self.lacks(*needed - tails_of(flags_of(self.map("networks")[number]))):
            raise NotSupportedError(
                "this network needs packet programs that are not loaded, and those that are loaded are of another "
                "version: use `datapathctl upgrade`"
            )
        self.map("networks")[number] = row

    def in_use(self) -> set[str]:
        """The programs that are pinned, and those that packets of networks go on in, as their rows say."""
        networks = self.map("networks")
        return listed(self.root / "programs").union(
            *(tails_of(flags_of(networks[one])) for one in networks.used())
        )

    def fill_tail(self, program: str) -> None:
        """Writes a program into its place among those that others go on in; it is loaded if it is not pinned."""
        self.need(program)
        self._fill_tail(program, self.program(program))

    @property
    def _loads(self) -> bool:
        """Programs can be added to those that are pinned."""
        return self._anew is not None or not self.outdated

    def _is_pinned(self, program: str) -> bool:
        return os.path.exists(f"{self._programs}/{program}")

    def _load(self, name: str, *, maps_only: bool = False) -> None:
        """Loads one object file with the pinned maps; pins its programs, and the maps that are this version's alone.

        What is there from the first network on the GC's program holds: a map that no program uses or holds is none of
        the version that is loaded (see `upgrade`).
        """
        programs, maps = libbpf.load_object(
            abi.OBJECTS / f"{name}.bpf.o",
            pins=self.root / "maps",
            config=self._config(),
            sizes=self._sizes(),
            elsewhere={one: f"{version.NEXT_MAP}{one}" for one in self._anew or ()}
            | {one: str(self._own / one) for one in VERSION_MAPS},
            maps_only=maps_only,
        )
        try:
            if not (self._own / "config").exists():
                pin(maps["config"], self._own / "config")
            for program in programs:
                if program.name in TAILS:
                    self._fill_tail(program.name, program.fd)
                if not self._is_pinned(program.name):
                    pin(program.fd, self._programs / program.name)
            if name in FIRST or maps_only:
                self._hold(maps)
        finally:
            for fd in (*(program.fd for program in programs), *maps.values()):
                os.close(fd)

    def _hold(self, maps: Mapping[str, int]) -> None:
        """Lets the GC's program hold the maps with these fds, by name."""
        holder = get_pinned(self._programs / CONN_GC)
        if holder is not None:
            try:
                for fd in maps.values():
                    libbpf.hold_map(holder, fd)
            finally:
                os.close(holder)

    def _fill_tail(self, program: str, fd: int) -> None:
        with bpf_maps.opened(self._own / TAILS_MAP) as tails:
            tails.set_raw(bpf_maps.number(abi.Tail[TAILS[program]]), bpf_maps.number(fd))

    def _config(self) -> Any:
        """What programs are loaded with: that of those that were loaded before, since settings apply to all."""
        if not (self._own / "config").exists():
            return abi.config(netns_cookie=netns.cookie(), sample=_SAMPLE, **self._setup.config)
        with bpf_maps.opened(self._own / "config") as config:
            return abi.layout("config").unpack(config.lookup_raw(bpf_maps.number(0)) or b"")

    def _sizes(self) -> dict[str, int]:
        """How many entries maps get. A pinned map keeps its size: a load that was cut short goes on as it began."""
        sizes = dict(self._setup.sizes)
        if "conns" in sizes:
            sizes["confirmed"] = sizes["conns"] // 2  # each connection is in the queue of the GC once
        if "flows" in sizes:
            sizes["flow_queue"] = sizes["flows"]  # and so is each flow in its own
        for name in listed(self.root / "maps"):
            fd = get_pinned(self.root / "maps" / name)
            if fd is not None:
                sizes[name] = int(bpf_maps.map_info(fd, name).max_entries)
                os.close(fd)
        return sizes


def flags_of(row: Any) -> set[str]:
    """Those of a network's row (abi.network) that matter here, by name."""
    return {flag for flag in TAILS_OF if row.flags & int(abi.NetworkFlag[flag])}
