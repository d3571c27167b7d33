# SPDX-License-Identifier: Apache-2.0
"""What the packet programs cost, as the kernel measures it where it is told to."""

from __future__ import annotations

import os
from pathlib import Path

from datapath.dataplane.layout import OBJECT_FILES
from datapath.dataplane.pins import listed
from datapath.kernel import libbpf
from datapath.kernel.bpffs import get_pinned


def runs(bpffs: Path) -> dict[str, tuple[int, int]]:
    """Program -> how often it ran since it was loaded, and the nanoseconds that took, of those that are at work. The
    kernel counts while somebody wants it (`sysctl kernel.bpf_stats_enabled=1`, or an open `libbpf.enable_stats`);
    empty: it never did. KernelError and its kinds."""
    pinned = listed(bpffs / "programs")
    found = {}
    for name in sorted({program for programs in OBJECT_FILES.values() for program in programs} & pinned):
        fd = get_pinned(bpffs / "programs" / name)
        if fd is None:
            continue
        try:
            counted = libbpf.program_runs(fd)
        finally:
            os.close(fd)
        if counted[0]:
            found[name] = counted
    return found
