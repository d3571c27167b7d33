# SPDX-License-Identifier: Apache-2.0
"""Topologies: where the same programs run in each mode. One host each, with two containers, and a machine outside.

Each topology has one measured port, for TCP and UDP, at which whatever server is measured listens. It is published
under the same number, as the last of all published ports.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from datapath.bench.host import CLIENT_SETTINGS, HOST, OUTSIDE, STREAM_SETTINGS, Host
from datapath.bench.model import EBPF, NONE, SuiteOptions
from datapath.bench.place import Namespace, Place

if TYPE_CHECKING:
    from datapath.host import Host as DatapathHost
    from datapath.model.networks import NetworkRequest
    from datapath.runtime.containers import Containers

PORT = 30000  # below the ephemeral ports; ranges end with it
LOOPBACK = "127.0.0.1"
SERVER, CLIENT, NETWORK, OTHER = "server", "client", "bench", "other"
FIRST_OPENED = 10001  # of a range that is published and taken back
OPT_MODE = "com.datapath.mode"


@dataclass(frozen=True, slots=True)
class Route:
    """A path through a topology: where the two programs run, and what the client asks for. `others`: where the server
    runs as well."""

    server: Place
    client: Place
    address: str
    port: int = PORT
    others: tuple[Place, ...] = ()


class Topology(Protocol):
    """One mode. A context manager: entering builds it, leaving takes all of it away."""

    mode: str

    def __enter__(self) -> Topology: ...

    def __exit__(self, *exc: object) -> None: ...

    def route(self, path: str) -> Route: ...

    def publish(self, count: int) -> None:
        """Makes it so many published TCP ports, the measured one the last of them."""

    def populate(self, networks: int, containers: int) -> None:
        """Makes it so many networks and containers, those that are measured included."""

    def attach_detach(self) -> tuple[float, ...]:
        """Seconds that it takes to connect the client to the network OTHER, and to disconnect it."""

    def open_close(self, count: int) -> tuple[float, ...]:
        """Seconds that it takes to publish a range of so many ports, and to take it back."""

    def start_remove(self, count: int, asleep: bool = False) -> tuple[float, ...]:
        """Seconds that it takes to start a container with a range of so many published ports, and to remove it.
        `asleep`: what is only started when it is needed does not run at the beginning."""

    def start_remove_many(self, count: int) -> tuple[float, ...]:
        """Seconds that it takes to start so many containers at once, and to remove them at once."""

    def restart(self) -> float:
        """Seconds that it takes to take everything down and have it all again."""

    def outside(self) -> Place:
        """The machine outside."""


def measured_core() -> int:
    """The core that both programs are pinned to: the last one that we may use."""
    return max(os.sched_getaffinity(0))


class PathsOnly:
    """What a topology has of `Topology` whose paths are measured, and no work of the control plane."""

    def publish(self, count: int) -> None:
        pass

    def populate(self, networks: int, containers: int) -> None:
        pass

    def attach_detach(self) -> tuple[float, ...]:
        raise NotImplementedError

    def open_close(self, count: int) -> tuple[float, ...]:
        raise NotImplementedError

    def start_remove(self, count: int, asleep: bool = False) -> tuple[float, ...]:
        raise NotImplementedError

    def start_remove_many(self, count: int) -> tuple[float, ...]:
        raise NotImplementedError

    def restart(self) -> float:
        raise NotImplementedError


class Loopback(PathsOnly):
    """The limit: the same programs over loopback, without any container. Every path is the same one."""

    mode = NONE

    def __init__(self, options: SuiteOptions) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Loopback:
        self._namespace = Namespace()
        self._stack.callback(self._namespace.close)
        place = Place(self._namespace.path, core=measured_core())
        place.write(CLIENT_SETTINGS | STREAM_SETTINGS)
        self._route = Route(place, place, LOOPBACK)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def route(self, path: str) -> Route:
        return self._route

    def outside(self) -> Place:
        return self._route.client


def routes(host: Host, server: Place, client: Place, address: str) -> dict[str, Route]:
    """The paths of a topology with containers; `address` is the server's on the network of both."""
    core = measured_core()
    inside = Place(host.inside.path, str(host.group), core)
    outside = Place(host.outside.path, core=core)
    return {
        "container-container": Route(server, client, address),
        "outside-published": Route(server, outside, HOST),
        "container-outside": Route(outside, client, OUTSIDE),
        "loopback-published": Route(server, inside, LOOPBACK),
        "hairpin": Route(server, client, HOST),
    }


class Own:
    """A mode of this product's own: its library builds the networks."""

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        self.mode = mode
        self._folder = options.folder / mode
        self._stack = ExitStack()
        self._ports = 0
        self._networks = 1
        self._containers = 2

    def __enter__(self) -> Own:
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(self._folder))
            stack.callback(self.down)
            self.build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @cached_property
    def engine(self) -> DatapathHost:
        """One for all commands, as a program that gives many would have it. They have to be given inside the host's
        namespace."""
        from datapath.host import Host as DatapathHost

        return DatapathHost.open(self.host.settings())

    @cached_property
    def containers(self) -> Containers:
        """The containers on it."""
        from datapath.runtime.containers import Containers

        return Containers(self.engine)

    def build(self) -> None:
        """The network, both containers and the measured port."""
        from datapath.kernel import netns
        from datapath.model.containers import RunRequest
        from datapath.model.endpoints import EndpointRequest

        with netns.enter(self.host.inside.path):
            for name in (NETWORK, OTHER):
                self.engine.networks.create(self._network(name))
            for name in (SERVER, CLIENT):
                on = (EndpointRequest(NETWORK),)
                self.containers.run(RunRequest(("sleep", "infinity"), name=name, networks=on, detach=True))
            self.containers.port_add(SERVER, f"{PORT}:{PORT}/udp")
            found = {name: self.containers.inspect(name) for name in (SERVER, CLIENT)}
        self._ports = 0
        self.publish(1)
        places = {name: self._place(found[name]["State"]["Pid"]) for name in found}
        places[CLIENT].write(CLIENT_SETTINGS)
        for place in places.values():
            place.write(STREAM_SETTINGS)
        address = found[SERVER]["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        self._routes = routes(self.host, places[SERVER], places[CLIENT], address)

    def _place(self, pid: int) -> Place:
        return Place(f"/proc/{pid}/ns/net", str(self.host.group), measured_core())

    def down(self) -> None:
        from datapath.kernel import netns

        with netns.enter(self.host.inside.path):
            self.engine.down()

    def route(self, path: str) -> Route:
        return self._routes[path]

    def publish(self, count: int) -> None:
        from datapath.kernel import netns

        if count == self._ports:
            return
        with netns.enter(self.host.inside.path):
            if self._ports:
                self.containers.port_remove(SERVER, port_range(self._ports))
            self.containers.port_add(SERVER, port_range(count))
        self._ports = count

    def populate(self, networks: int, containers: int) -> None:
        """Containers that are added join the measured network; networks that are added stay empty."""
        from datapath.kernel import netns
        from datapath.model.containers import RunRequest
        from datapath.model.endpoints import EndpointRequest

        with netns.enter(self.host.inside.path):
            while self._networks < networks:
                self.engine.networks.create(self._network(f"net{self._networks}"))
                self._networks += 1
            while self._networks > networks:
                self._networks -= 1
                self.engine.networks.remove(f"net{self._networks}")
            on = (EndpointRequest(NETWORK),)
            while self._containers < containers:
                name = f"c{self._containers}"
                self.containers.run(RunRequest(("sleep", "infinity"), name=name, networks=on, detach=True))
                self._containers += 1
            while self._containers > containers:
                self._containers -= 1
                self.containers.remove(f"c{self._containers}", force=True)

    def attach_detach(self) -> tuple[float, ...]:
        from datapath.kernel import netns
        from datapath.model.endpoints import EndpointRequest

        with netns.enter(self.host.inside.path):
            request = EndpointRequest(OTHER)
            return timed(
                lambda: self.containers.connect(CLIENT, request),
                lambda: self.containers.disconnect(OTHER, CLIENT),
            )

    def open_close(self, count: int) -> tuple[float, ...]:
        from datapath.kernel import netns

        ports = f"{FIRST_OPENED}-{FIRST_OPENED + count - 1}" if count > 1 else f"{FIRST_OPENED}"
        with netns.enter(self.host.inside.path):
            return timed(
                lambda: self.containers.port_add(SERVER, f"{ports}:{ports}/tcp"),
                lambda: self.containers.port_remove(SERVER, f"{ports}:{ports}/tcp"),
            )

    def start_remove(self, count: int, asleep: bool = False) -> tuple[float, ...]:
        from datapath.kernel import netns
        from datapath.model.containers import RunRequest
        from datapath.model.endpoints import EndpointRequest

        ports = f"{FIRST_OPENED}-{FIRST_OPENED + count - 1}" if count > 1 else f"{FIRST_OPENED}"
        request = RunRequest(
            ("sleep", "infinity"),
            name="another",
            networks=(EndpointRequest(NETWORK),),
            publish=(f"{ports}:{ports}/tcp",) if count else (),
            detach=True,
        )
        with netns.enter(self.host.inside.path):
            return timed(
                lambda: self.containers.run(request), lambda: self.containers.remove("another", force=True)
            )

    def start_remove_many(self, count: int) -> tuple[float, ...]:
        raise NotImplementedError

    def restart(self) -> float:
        self.populate(1, 2)
        return sum(timed(self.down, self.build))

    def outside(self) -> Place:
        return Place(self.host.outside.path)

    def _network(self, name: str) -> NetworkRequest:
        from datapath.model.networks import NetworkRequest

        return NetworkRequest(name, options=() if self.mode == EBPF else (f"{OPT_MODE}={self.mode}",))


def timed(*steps: Callable[[], object]) -> tuple[float, ...]:
    """Seconds that each step took."""
    found = []
    for step in steps:
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return tuple(found)


def port_range(count: int) -> str:
    """`count` ports that end with the measured one, as `port add` takes them."""
    ports = str(PORT) if count == 1 else f"{PORT - count + 1}-{PORT}"
    return f"{ports}:{ports}/tcp"
