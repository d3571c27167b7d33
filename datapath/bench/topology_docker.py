# SPDX-License-Identifier: Apache-2.0
"""The topologies of a real Docker daemon: with networks of its own, and its userland proxies as they are by default, or
with networks of this datapath's driver."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from datapath.bench.docker import PLUGINS, Docker
from datapath.bench.docker_driver import Driver
from datapath.bench.host import CLIENT_SETTINGS, STREAM_SETTINGS, Host
from datapath.bench.model import DOCKER_DATAPATH, SuiteOptions
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

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        self.mode = mode
        self._folder = options.folder / mode
        self._dockerd, self._program = options.dockerd, options.program
        self._driver: Driver | None = None
        self._stack = ExitStack()
        self._ports = 1
        self._networks = 1
        self._containers = 2

    def __enter__(self) -> DockerTopology:
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(self._folder))
            self.docker = Docker(self.host, self._dockerd)
            stack.callback(self.docker.close)
            if self.mode == DOCKER_DATAPATH:
                self._driver = self._serve()
                stack.callback(self._down)
                stack.callback(self._driver.close)
            for name in (NETWORK, OTHER):
                self._network(name)
            self._run(CLIENT)
            self._run(SERVER, (f"{PORT}/tcp", f"{PORT}/udp"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _serve(self) -> Driver:
        settings = self.host.settings()
        settings.config_path.write_text("{}")
        return Driver(
            self.docker.folder / PLUGINS / "datapath.sock",
            self._program,
            self.host.inside.path,
            lambda: self.docker.pid,
            settings.environment(),
            self._folder / "driver.log",
        )

    def _down(self) -> None:
        from datapath.host import Host as DatapathHost
        from datapath.kernel import netns

        with netns.enter(self.host.inside.path):
            DatapathHost.open(self.host.settings()).down(force=True)

    def _network(self, name: str) -> None:
        driver = "bridge" if self._driver is None else "datapath"
        self.docker.api.ask("POST", "/networks/create", {"Name": name, "Driver": driver})

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
            self._network(f"net{self._networks}")
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
        without, with_ports = self.start_remove(0), self.start_remove(count)
        return tuple(max(0.0, b - a) for a, b in zip(without, with_ports, strict=True))

    def start_remove(self, count: int, asleep: bool = False) -> tuple[float, ...]:
        ports = [f"{port}/tcp" for port in range(FIRST_OPENED, FIRST_OPENED + count)]
        if asleep and self._driver:
            self._driver.sleep()
        return timed(
            lambda: self.docker.run("another", NETWORK, ports), lambda: self.docker.remove("another")
        )

    def start_remove_many(self, count: int) -> tuple[float, ...]:
        """Each by a connection of its own."""
        with ThreadPoolExecutor(count) as pool:

            def all_of(work: Callable[[int], None]) -> None:
                for _ in pool.map(work, range(count)):
                    pass

            run, remove = self.docker.run, self.docker.remove
            return timed(
                lambda: all_of(lambda i: run(f"many{i}", NETWORK)),
                lambda: all_of(lambda i: remove(f"many{i}")),
            )

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
