# SPDX-License-Identifier: Apache-2.0
"""The packet programs of one host and their maps: opening, telling, counting.

Everything is pinned (see pins) and works without any process. Each step may be the last of a killed process: opening
again completes what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datapath.dataplane import timer, version
from datapath.dataplane.attach import Attachments
from datapath.dataplane.convert import to_abi
from datapath.dataplane.host_entries import host_entry, xfrm_entries
from datapath.dataplane.layout import (
    CONN_GC,
    DEFAULT_SETUP,
    FIRST,
    MAPS,
    OBJECT_FILES,
    TAILS_MAP,
    XDP_HOOK,
    Setup,
)
from datapath.dataplane.pins import listed
from datapath.dataplane.policies import Policies
from datapath.errors import KernelError
from datapath.kernel import abi, bpf_maps, libbpf, observe
from datapath.kernel.bpffs import get_pinned, pin
from datapath.model.host import HostNetwork


class Dataplane(Attachments):
    """The packet programs of one host, and their maps: `dataplane.ports` is the map `ports`. A context manager.

    `attach_mode` and `group`: see Attachments. `setup`: what the programs are loaded with, if they have to be.
    """

    def __init__(
        self,
        bpffs: Path,
        attach_mode: str = "auto",
        setup: Setup = DEFAULT_SETUP,
        group: Path | None = None,
    ) -> None:
        super().__init__(bpffs, attach_mode, group, setup)

    # ---- life ----------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        bpffs: Path,
        attach_mode: str = "auto",
        setup: Setup = DEFAULT_SETUP,
        group: Path | None = None,
    ) -> Dataplane:
        """The programs of this host, loaded and pinned if they are not. Raises KernelError and its kinds.

        Loaded are those that every network needs (FIRST). If a pin of these or of a map is missing, all are loaded
        afresh: programs without one of their maps' pins cannot be told anything any more. Those of another version are
        used as they are, if their maps have this version's layout.
        """
        self = cls(bpffs, attach_mode, setup, group)
        try:
            if not self.is_complete(bpffs):
                self.mount()
                self.unpin()
                for folder in ("maps", "programs"):
                    (bpffs / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
                self.load()
                self.tell_host(observe.host())
                mark = version.installed().mark  # the last: without it nothing counts as loaded
                pin(self.program(CONN_GC), bpffs / "programs" / mark)
            version.check(bpffs)
            (bpffs / "links").mkdir(exist_ok=True, mode=0o700)
            self.attach_sockets()
            if not version.is_carried(bpffs):  # else its timer is about to be another
                timer.start(self.program(CONN_GC))
        except BaseException:
            self.close()
            raise
        return self

    @staticmethod
    def is_complete(bpffs: Path) -> bool:
        """Every map is pinned, and all programs that are loaded first. Of another version only its mark is looked
        for."""
        pinned = listed(bpffs / "programs")
        found = version.marked(pinned)
        if found is None or found.objects != version.digest():
            return found is not None
        programs = {program for name in FIRST for program in OBJECT_FILES[name]}
        return programs <= pinned and MAPS.keys() | {TAILS_MAP} <= listed(bpffs / "maps")

    @classmethod
    def find(cls, bpffs: Path, attach_mode: str = "auto") -> Dataplane | None:
        """The pinned programs, to look at; None: none were loaded. KernelError: their maps have another layout."""
        if not (bpffs / "maps" / "counters").exists():
            return None
        version.check(bpffs)
        return cls(bpffs, attach_mode)

    def __enter__(self) -> Dataplane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def setup(self) -> Setup:
        """What the programs were loaded with, of the settings and sizes that the constructor was given."""
        config = self.config[0]
        return Setup(
            {name: getattr(config, name) for name in self._setup.config},
            {name: self.map(name).max_entries for name in self._setup.sizes},
        )

    def tell_host(self, network: HostNetwork) -> None:
        """Writes what the host is like into the maps `host` and `xfrm_policies`, as far as they say something else.
        Nothing is written for programs of a version that has no such map."""
        if not self.has("host"):
            return
        stale = self._tell_policies(network) if self.has("xfrm_policies") else set()
        wanted = to_abi(host_entry(network)[1])
        if self.host[0] != wanted:
            self.host[0] = wanted
        # What is closed is so before anything else is opened.
        if stale:
            self.xfrm_policies.delete_many(stale)

    def _tell_policies(self, network: HostNetwork) -> set[Any]:
        """Writes the rows; the keys of those that nobody needs any more."""
        wanted = {to_abi(key): to_abi(value) for key, value in xfrm_entries(network.xfrm).items()}
        present = dict(self.xfrm_policies.read_all())
        changed = {key: value for key, value in wanted.items() if present.get(key) != value}
        if changed:
            self.xfrm_policies.update_many(changed)
        return present.keys() - wanted.keys()

    def has(self, name: str) -> bool:
        """The map is there: programs of a version before have not all of them."""
        return os.path.exists(f"{self.root}/maps/{name}")

    # ---- maps ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> bpf_maps.Map:
        """Each map of MAPS under its own name, opened when it is first used."""
        if name not in MAPS:
            raise AttributeError(name)
        return self.map(name)

    @property
    def policies(self) -> Policies:
        """Who may talk to whom, as the programs look it up."""
        return Policies(self.map)

    def counters_sum(self) -> dict[str, tuple[int, int]]:
        """Reason -> (packets, bytes) over all CPUs."""
        sums = {}
        for reason in abi.Reason:
            copies = self.counters.get(int(reason), ())  # programs that are older have fewer
            sums[reason.name] = (sum(c.packets for c in copies), sum(c.bytes for c in copies))
        return sums

    def fill(self, maps: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
        """Map -> (entries, how many it can have), of these maps, or else of all that can run full."""
        pinned = listed(self.root / "maps")
        wanted = tuple(maps) or [name for name, (key, _) in MAPS.items() if key and name in pinned]
        return {name: (self.map(name).count(), self.map(name).max_entries) for name in wanted}

    @property
    def limits_floods(self) -> bool:
        """The programs limit floods, which needs XDP. If another version's settings cannot be read: XDP is attached."""
        try:
            return bool(self.config[0].flood_rate)
        except KernelError:
            return any(name.startswith(XDP_HOOK) for name in listed(self.root / "links"))

    def events(self, handler: Callable[[Any], None]) -> int:
        """Hands every waiting sampled drop (abi.event) to the handler."""
        fd = get_pinned(self.root / "maps" / "events")
        if fd is None:
            return 0
        try:
            return libbpf.consume_events(fd, handler)
        finally:
            os.close(fd)
