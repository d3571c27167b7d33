# SPDX-License-Identifier: Apache-2.0
"""A trial: what the packet programs make of a frame, found out without a trace.

The same programs are loaded once more, on the maps that say what there is, and with tables of their own for everything
that a packet changes: connections, flows, counters. Nothing is attached and nothing pinned, so all of it goes with the
process, however that ends; and no counter of the host's says that somebody has asked.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from typing import Self

from datapath.dataplane.layout import FIRST, MAPS, OBJECT_FILES, TAILS, TAILS_MAP, TOLD_MAPS
from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, libbpf

# Whose rows say what there is; those of the others come from packets.
SHARED = TOLD_MAPS | {"linklocals"}
# Entries of a trial's own tables: it sees one packet.
_ENTRIES = 1024
_TABLES = frozenset(
    (
        *(
            "pending",
            "conns",
            "confirmed",
            "externals",
            "mappings",
            "contacts",
            "quotas",
            "arrivals",
            "rates",
        ),
        *("fragments", "frag_queue", "frag_sources", "sockets", "callers", "affinities", "loads", "detours"),
        *(
            "service_counts",
            "upstreams",
            "questions",
            "name_counts",
            "flows",
            "flow_queue",
            "edges",
            "limits",
            "admissions",
            "rule_hits",
        ),
    )
)

# What packets that ask for no name may go on in, whatever their network is.
ALWAYS = (TAILS.keys() & FIRST) - {"resolve", "ask", "answered"}


class Trial:
    """A copy of some programs beside those that are at work. A context manager. KernelError and its kinds."""

    def __init__(self, dataplane: Dataplane, programs: Collection[str]) -> None:
        if dataplane.outdated:
            detail = "those that are loaded are of another version: `datapathctl upgrade`"
            raise KernelError("try", "packet programs", detail=detail)
        self._dataplane = dataplane
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._stack = ExitStack()
        try:
            for name, contents in OBJECT_FILES.items():
                if not set(contents).isdisjoint(programs):
                    self._load(name)
            self._fill_tails()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back."""
        self._stack.close()

    def run(self, program: str, frame: bytes, ifindex: int, ingress: int = 0) -> tuple[str, ...]:
        """What a tc program counts of the frame, by name, at the device with that index; `ingress`: that of the device
        from which the host forwards it, 0: it is the host's own."""
        before = self._counted()
        libbpf.test_run(self._programs[program], frame, ifindex=ifindex, ingress_ifindex=ingress)
        after = self._counted()
        return tuple(name for name, packets in after.items() if packets != before[name])

    def _counted(self) -> dict[str, int]:
        return {
            reason.name: sum(one.packets for one in self._counters.get(int(reason), ()))
            for reason in abi.Reason
        }

    def _load(self, name: str) -> None:
        path = abi.OBJECTS / f"{name}.bpf.o"
        known = {one: self._dataplane.map(one).fd for one in SHARED & libbpf.declared_maps(path)}
        programs, maps = libbpf.load_object(
            path,
            pins=None,
            config=self._dataplane.config[0],
            sizes=dict.fromkeys(_TABLES, _ENTRIES),
            reuse=known | self._maps,
        )
        for fd in (*(program.fd for program in programs), *maps.values()):
            self._stack.callback(os.close, fd)
        self._programs |= {program.name: program.fd for program in programs}
        self._maps = {one: fd for one, fd in maps.items() if one not in SHARED} | self._maps
        if "counters" in maps and not hasattr(self, "_counters"):
            self._counters = bpf_maps.Map(os.dup(maps["counters"]), "counters", *MAPS["counters"])
            self._stack.callback(self._counters.close)

    def _fill_tails(self) -> None:
        """What programs of the trial go on in is the trial's, too."""
        if TAILS_MAP in self._maps:
            tails = bpf_maps.RawMap(os.dup(self._maps[TAILS_MAP]), TAILS_MAP, 4, 4)
            self._stack.callback(tails.close)
            for program in TAILS.keys() & self._programs.keys():
                tails.set_raw(
                    bpf_maps.number(abi.Tail[TAILS[program]]), bpf_maps.number(self._programs[program])
                )
