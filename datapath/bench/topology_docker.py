# SPDX-License-Identifier: Apache-2.0
"""The topology of a real Docker daemon, with its userland proxies as they are by default."""

from __future__ import annotations

from contextlib import ExitStack

from datapath.bench.docker import Docker
from datapath.bench.host import CLIENT_SETTINGS, STREAM_SETTINGS, Host
from datapath.bench.model import DOCKER, SuiteOptions
from datapath.bench.place import Place
from datapath.bench.topologies import (
    CLIENT,
    FIRST_OPENED,
    NETWORK,
    OTHER,
    PORT,
    SERVER,
    Route,
    measured_core,
    routes,
    timed,
)

MOST_PORTS = 100  # a process and several calls of iptables each: 1,000 took more than a minute
MOST_CONTAINERS = 20
MOST_NETWORKS = 20  # its address pools have 31
FILLER = "filler"


class DockerTopology:
    """Ports cannot be published for a container that runs: see `publish`."""

    mode = DOCKER

    def __init__(self, options: SuiteOptions) -> None:
        self._folder = options.folder / DOCKER
        self._dockerd = options.dockerd
        self._stack = ExitStack()
        self._ports = 1
        self._networks = 1
        self._containers = 2

    def __enter__(self) -> DockerTopology:
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(self._folder))
            self.docker = Docker(self.host, self._dockerd)
            stack.callback(self.docker.close)
            for name in (NETWORK, OTHER):
                self.docker.api.ask("POST", "/networks/create", {"Name": name})
            self._run(CLIENT)
            self._run(SERVER, (f"{PORT}/tcp", f"{PORT}/udp"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _run(self, name: str, ports: tuple[str, ...] = ()) -> None:
        self.docker.run(name, NETWORK, ports)
        self._place(name).write(STREAM_SETTINGS | (CLIENT_SETTINGS if name == CLIENT else {}))
        self.docker.pin_proxies(measured_core())

    def _place(self, name: str) -> Place:
        return Place(self.docker.netns(name), str(self.host.group), measured_core())

    def route(self, path: str) -> Route:
        found = self.docker.api.ask("GET", f"/containers/{SERVER}/json")
        address = found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        return routes(self.host, self._place(SERVER), self._place(CLIENT), address)[path]

    def publish(self, count: int) -> None:
        """Another container publishes all but the measured port, and before it: rules are appended."""
        if count == self._ports:
            return
        self.docker.remove(SERVER)
        if self._ports > 1:
            self.docker.remove(FILLER)
        if count > 1:
            self.docker.run(FILLER, NETWORK, [f"{port}/tcp" for port in range(PORT - count + 1, PORT)])
        self._run(SERVER, (f"{PORT}/tcp", f"{PORT}/udp"))
        self._ports = count

    def populate(self, networks: int, containers: int) -> None:
        while self._networks < networks:
            self.docker.api.ask("POST", "/networks/create", {"Name": f"net{self._networks}"})
            self._networks += 1
        while self._networks > networks:
            self._networks -= 1
            self.docker.api.ask("DELETE", f"/networks/net{self._networks}")
        while self._containers < containers:
            self.docker.run(f"c{self._containers}", NETWORK)
            self._containers += 1
        while self._containers > containers:
            self._containers -= 1
            self.docker.remove(f"c{self._containers}")

    def attach_detach(self) -> tuple[float, ...]:
        ask = self.docker.api.ask
        return timed(
            lambda: ask("POST", f"/networks/{OTHER}/connect", {"Container": CLIENT}),
            lambda: ask("POST", f"/networks/{OTHER}/disconnect", {"Container": CLIENT}),
        )

    def open_close(self, count: int) -> tuple[float, ...]:
        """Ports belong to a container from its start: what it takes more to start and remove one with them."""
        ports = [f"{port}/tcp" for port in range(FIRST_OPENED, FIRST_OPENED + count)]
        run, remove = self.docker.run, self.docker.remove
        without = timed(lambda: run("without", NETWORK), lambda: remove("without"))
        with_ports = timed(lambda: run("with", NETWORK, ports), lambda: remove("with"))
        return tuple(max(0.0, b - a) for a, b in zip(without, with_ports, strict=True))

    def restart(self) -> float:
        """The daemon is killed and started, and so are the containers: none outlives it by default."""
        self.populate(1, 2)
        self.publish(1)

        def start(name: str) -> None:
            self.docker.api.ask("POST", f"/containers/{name}/start")

        daemon = timed(self.docker.close, self.docker.start)
        return sum((*daemon, *timed(lambda: start(CLIENT), lambda: start(SERVER))))

    def outside(self) -> Place:
        return Place(self.host.outside.path)
