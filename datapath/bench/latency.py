# SPDX-License-Identifier: Apache-2.0
"""How long packets take from one container to another, of each mode: why round trips differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.bench.model import NONE, Histogram
from datapath.bench.traffic import Topologies, traffic
from datapath.bench.workloads import TCP_RR
from datapath.errors import DatapathError

_PATH = "container-container"
_IFNAME = "eth0"


def histograms(topologies: Topologies, modes: Sequence[str]) -> Iterator[Histogram]:
    """Measured beside the other figures, as counting costs each packet more than a microsecond. None without what
    tracing needs (`datapathctl trace latency` says what that is)."""
    from datapath.telemetry.latency import Device, LatencyTrace

    for mode in modes:
        if mode == NONE:
            continue
        with traffic(topologies, (mode,), TCP_RR, _PATH) as row:
            route = topologies.of(mode).route(_PATH)
            devices = [
                Device(label, place.netns, _IFNAME)
                for label, place in (("server", route.server), ("client", route.client))
            ]
            try:
                with LatencyTrace(devices) as trace:
                    row.sample(mode)
                    counts = trace.counts()
            except DatapathError:
                return
        yield Histogram("A packet from container to container, transmit to receive", mode, counts)
