# SPDX-License-Identifier: Apache-2.0
"""Experiments of the suite `services`: connections to one of several servers, among so many services, and while its
servers change."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from datapath.bench.model import (
    BY_OTHER_HOST,
    DSR,
    EBPF,
    HOST_SERVICE,
    INGRESS,
    NONE,
    TO_SERVICE,
    Point,
    Sample,
)
from datapath.bench.place import ToolError, end
from datapath.bench.topology_services import SERVERS, ServiceTopology
from datapath.bench.traffic import PATH_WORDS, Topologies, Traffic, traffic
from datapath.bench.workloads import TCP_CONNECT, TCP_INSIST, TCP_RR, Workload

COUNTS = (10, 1000)  # of services, besides one
MANY_BACKENDS = 1000
_PAUSE = 0.05  # seconds between two changes
_PATIENCE = 15.0  # seconds that a program may take longer than it was told to measure

Modes = tuple[str, ...]


@dataclass(slots=True)
class Served(Traffic):
    """A row with so many services, of which one is asked, and backends of each."""

    services: int = 1
    backends: int = SERVERS

    def _prepare(self, mode: str, stack: ExitStack) -> None:
        topology = self.topologies.of(mode)
        assert isinstance(topology, ServiceTopology)
        topology.serve(self.services, self.backends)
        Traffic._prepare(self, mode, stack)
        if not self.workload.held:
            route = self._routes[mode]
            self._routes[mode] = replace(route, address=topology.asked(self.point.path))


@dataclass(slots=True)
class Changing(Served):
    """One of the backends comes and goes while the row is measured. Connections that failed are counted."""

    def sample(self, mode: str) -> Sample:
        topology = self.topologies.of(mode)
        assert isinstance(topology, ServiceTopology)
        route, seconds = self._routes[mode], self.topologies.options.seconds
        argv = self.workload.client(route.address, route.port, seconds)
        log = self._folder(mode) / "client.log"
        log.write_bytes(b"")
        process, changes = route.client.start(argv, log), 0
        deadline = time.monotonic() + seconds + _PATIENCE
        try:
            while process.poll() is None and time.monotonic() < deadline:
                topology.change(leaves=changes % 2 == 0)
                changes += 1
                _wait(process)
        finally:
            end(process)
            if changes % 2:
                topology.change(leaves=False)
        if process.returncode:
            raise ToolError(argv, log.read_text())
        found = self.workload.parse(log.read_text())
        return Sample(found.value, {**found.details, "changes": changes})


def _wait(process: subprocess.Popen[str]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PAUSE)


def served(topologies: Topologies, modes: Modes, workload: Workload, path: str, services: int = 1) -> Served:
    """The plain row: so many services with a backend in each of the three containers."""
    several = "the last of so many services" if path == TO_SERVICE else "one service"
    title = f"{workload.title}, {PATH_WORDS[path]}, {several} of three servers"
    parameters = {"services": services} if path == TO_SERVICE else {}
    return Served(
        topologies, workload, Point(workload.name, path, parameters), modes, title, services=services
    )


def services(topologies: Topologies, modes: Modes) -> Iterator[Traffic]:
    """Those of one service first, and 1,000 services last: they take long to build."""
    some = tuple(mode for mode in modes if mode in (EBPF, NONE))
    across = tuple(mode for mode in modes if mode in (EBPF, DSR, NONE))
    modes = tuple(mode for mode in modes if mode != DSR)
    for workload in (TCP_CONNECT, TCP_RR):
        yield served(topologies, modes, workload, TO_SERVICE, 1)
    yield Changing(
        topologies,
        TCP_INSIST,
        Point(TCP_INSIST.name, TO_SERVICE),
        tuple(mode for mode in modes if mode != NONE),
        f"{TCP_INSIST.title}, {PATH_WORDS[TO_SERVICE]}, one of three servers coming and going",
    )
    for path, which in ((INGRESS, modes), (HOST_SERVICE, some)):
        for workload in (TCP_CONNECT, TCP_RR):
            yield served(topologies, which, workload, path)
    for workload in (TCP_RR, TCP_CONNECT):
        yield traffic(topologies, across, workload, BY_OTHER_HOST)
    yield Served(
        topologies,
        TCP_CONNECT,
        Point(TCP_CONNECT.name, TO_SERVICE, {"backends": MANY_BACKENDS}),
        modes,
        f"{TCP_CONNECT.title}, {PATH_WORDS[TO_SERVICE]}, of so many backends",
        backends=MANY_BACKENDS,
    )
    for count in COUNTS:
        yield served(topologies, modes, TCP_CONNECT, TO_SERVICE, count)
