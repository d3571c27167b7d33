# SPDX-License-Identifier: Apache-2.0
"""Experiments that send packets: a workload on a path, beside so many networks, containers and ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from datapath.bench import stats
from datapath.bench.host import HOST
from datapath.bench.model import (
    ACROSS_HOSTS,
    BY_OTHER_HOST,
    DOCKERS,
    HOST_HOST,
    HOST_SERVICE,
    INGRESS,
    NONE,
    TO_SERVICE,
    Better,
    Experiment,
    Point,
    Sample,
    SuiteOptions,
)
from datapath.bench.place import MissingError, Place, ToolError, end
from datapath.bench.topologies import Loopback, Own, Route, Topology
from datapath.bench.topology_docker import DockerTopology
from datapath.bench.workloads import PROBE, Workload
from datapath.errors import DatapathError

_PATIENCE = 15.0  # seconds that a program may take longer than it was told to measure
_SETTLING = 2.1  # seconds that sockperf sleeps between its first packets and its measurement
_CONFIRMING = 2.1  # seconds after which another packet makes a UDP connection a lasting one for Linux
_REFRESH = 60.0  # seconds: half of what Linux keeps such a one
_GREETED = "Warmup stage"
PATH_WORDS = {
    "container-container": "container ↔ container",
    "outside-published": "outside → published port",
    "container-outside": "container → outside",
    "loopback-published": "127.0.0.1 → published port",
    "hairpin": "container → port published by its neighbour, by the host's address",
    ACROSS_HOSTS: "between containers of two hosts",
    HOST_HOST: "between the hosts themselves",
    TO_SERVICE: "container → service",
    HOST_SERVICE: "host → service",
    INGRESS: "outside → published port of a service",
    BY_OTHER_HOST: "outside → published port of a service, at another host than its container's",
}


def make_topology(mode: str, options: SuiteOptions) -> Topology:
    """The topology of a mode; it is built when it is entered."""
    if mode == NONE:
        return Loopback(options)
    if mode in DOCKERS:
        return DockerTopology(mode, options)
    return Own(mode, options)


class Topologies:
    """The topologies of a suite, each built by `make` when it is first wanted."""

    def __init__(
        self, name: str, options: SuiteOptions, make: Callable[[str, SuiteOptions], Topology] = make_topology
    ) -> None:
        self.options = replace(options, folder=options.folder / name)
        self._make = make
        self._built: dict[str, Topology] = {}
        self._stack = ExitStack()

    def of(self, mode: str) -> Topology:
        if mode not in self._built:
            self._built[mode] = self._stack.enter_context(self._make(mode, self.options))
        return self._built[mode]

    def each(
        self, modes: Sequence[str], prepare: Callable[[str, ExitStack], None], stack: ExitStack
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Prepares one mode after the other; those that are ready, and why others are not. The topology of one that is
        not is gone, and built anew for the next row. Without the mode that the others are compared with there is
        nothing to measure: DatapathError."""
        lost: dict[str, str] = {}
        for mode in modes:
            try:
                with ExitStack() as own:
                    prepare(mode, own)
                    stack.push(own.pop_all())
            except MissingError:
                raise
            except DatapathError as error:
                if topology := self._built.pop(mode, None):
                    topology.__exit__()
                if mode == stats.subject(modes):
                    raise
                lost[mode] = str(error)
        return tuple(mode for mode in modes if mode not in lost), lost

    def close(self) -> None:
        self._built.clear()
        self._stack.close()


class Held:
    """A client that has greeted its server and is stopped while it waits for its measurement to begin, so that the
    wait is over when its turn comes."""

    def __init__(self, place: Place, argv: list[str], log: Path) -> None:
        self._argv, self._log = argv, log
        log.write_bytes(b"")
        self._began = time.monotonic()
        self._process = place.start(argv, log)
        while _GREETED not in log.read_text():
            if self._process.poll() is not None or time.monotonic() > self._began + _PATIENCE:
                end(self._process)
                raise ToolError(argv, log.read_text())
            time.sleep(0.01)
        self._ready = time.monotonic() + _SETTLING
        time.sleep(0.05)
        os.kill(self._process.pid, signal.SIGSTOP)

    def finish(self, seconds: float) -> str:
        """Lets it measure; what it says."""
        time.sleep(max(0.0, self._ready - time.monotonic()))
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            code = self._process.wait(seconds + _PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise ToolError(self._argv, "it does not end") from error
        finally:
            self.close()
        said = self._log.read_text()
        if code != 0:
            raise ToolError(self._argv, said)
        return said

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)
        end(self._process)


@dataclass(slots=True)
class Traffic:
    """A row: `workload` on the path of `point`, in topologies with so many ports published, networks, containers, and
    other connections in the tables."""

    topologies: Topologies
    workload: Workload
    point: Point
    modes: tuple[str, ...]
    title: str
    ports: int = 1
    networks: int = 1
    containers: int = 2
    flows: int = 0
    unit: str = field(init=False)
    better: Better = field(init=False)
    warm: bool = field(init=False)
    lost: dict[str, str] = field(default_factory=dict)
    _refreshed: dict[str, float] = field(default_factory=dict)
    _routes: dict[str, Route] = field(default_factory=dict)
    _held: dict[str, Held] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.unit, self.better = self.workload.unit, self.workload.better
        self.warm = self.workload.held

    def __enter__(self) -> Experiment:
        for program in self.workload.programs:
            if shutil.which(program) is None:
                raise MissingError(program)
        with ExitStack() as stack:
            self.modes, self.lost = self.topologies.each(self.modes, self._prepare, stack)
            for mode, opened in tuple(self._refreshed.items()):
                time.sleep(max(0.0, opened + _CONFIRMING - time.monotonic()))
                self._open_flows(mode)
            stack.callback(self._release)  # before the servers: who closes first keeps the port for a while
            if self.workload.held:  # they wait together, and not one after the other
                for mode in self.modes:
                    self._held[mode] = self._hold(mode)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _prepare(self, mode: str, stack: ExitStack) -> None:
        """Has the topology as it should be, and its server running until the stack is left."""
        topology = self.topologies.of(mode)
        topology.populate(self.networks, self.containers)
        topology.publish(self.ports)
        route = self._routes[mode] = topology.route(self.point.path)
        own = self._folder(mode)
        own.mkdir(parents=True, exist_ok=True)
        server = self.workload.server(route.port, own)
        for place in (route.server, *route.others):
            stack.enter_context(place.serving(server, route.port, own / "server.log", self.workload.udp))
        if self.flows and mode != NONE:
            echo = [PROBE, "echo", str(route.port)]
            stack.enter_context(route.server.serving(echo, route.port, own / "echo.log", udp=True))
            self._open_flows(mode)

    def _folder(self, mode: str) -> Path:
        return self.topologies.options.folder / f"{mode}-{self.workload.name}"

    def _release(self) -> None:
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _open_flows(self, mode: str) -> None:
        """Opens connections that stay in the tables, or keeps them there."""
        argv = [PROBE, "flows", HOST, str(self._routes[mode].port), str(self.flows)]
        said = json.loads(self.topologies.of(mode).outside().run(argv, _PATIENCE + self.flows / 1000))
        if said["answered"] < 0.99 * self.flows:
            raise DatapathError(f"{mode}: {said['answered']} of {self.flows} connections were answered")
        self._refreshed[mode] = time.monotonic()

    def sample(self, mode: str) -> Sample:
        if mode in self._refreshed and time.monotonic() > self._refreshed[mode] + _REFRESH:
            self._open_flows(mode)
        route, seconds = self._routes[mode], self.topologies.options.seconds
        if not self.workload.held:
            argv = self.workload.client(route.address, route.port, seconds)
            return self.workload.parse(route.client.run(argv, seconds + _PATIENCE))
        held = self._held.pop(mode, None) or self._hold(mode)
        said = held.finish(seconds)
        self._held[mode] = self._hold(mode)
        return self.workload.parse(said)

    def _hold(self, mode: str) -> Held:
        route = self._routes[mode]
        argv = self.workload.client(route.address, route.port, self.topologies.options.seconds)
        return Held(route.client, argv, self._folder(mode) / "client.log")


def traffic(topologies: Topologies, modes: tuple[str, ...], workload: Workload, path: str) -> Traffic:
    """The plain row of a workload on a path."""
    return Traffic(
        topologies, workload, Point(workload.name, path), modes, f"{workload.title}, {PATH_WORDS[path]}"
    )
