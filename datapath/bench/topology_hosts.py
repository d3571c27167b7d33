# SPDX-License-Identifier: Apache-2.0
"""Topologies of the suite `overlay`: two hosts on one link, and a container on each, joined in each mode's own way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from datapath.bench.docker import Docker
from datapath.bench.host import CLIENT_SETTINGS, HOST, OUTSIDE, STREAM_SETTINGS, Host
from datapath.bench.model import (
    ACROSS_HOSTS,
    DIRECT,
    DOCKER,
    EBPF,
    HOST_HOST,
    MACVLAN,
    NONE,
    ROUTED,
    SuiteOptions,
)
from datapath.bench.place import MissingError, Namespace, Place, ToolError, end
from datapath.bench.topologies import CLIENT, NETWORK, OTHER, SERVER, PathsOnly, Route, measured_core, timed
from datapath.errors import DatapathError

_ETCD, _ETCD_PORT, _PEER_PORT = "etcd", 2379, 2380
_SUBNET, _FIRST, _SECOND = "10.88.0.0/24", "10.88.0.2", "10.88.0.3"
_VNI, _VXLAN_PORT = 42, 4789
_PATIENCE = 60.0  # seconds that a command may take
_LAST_WITH_STORE = (
    22  # major version of the last Docker that takes a cluster store; since then there is swarm only
)


class TwoHosts(PathsOnly):
    """Entering builds two hosts, and what `build` joins them with; leaving takes all of it away. `one` has the server,
    `other` the client."""

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        self.mode = mode
        self.options = options
        self.folder = options.folder / mode
        self._routes: dict[str, Route] = {}
        self._stack = ExitStack()

    def __enter__(self) -> TwoHosts:
        with ExitStack() as stack:
            self.one = stack.enter_context(Host(self.folder / "one"))
            self.other = stack.enter_context(Host(self.folder / "other", self.one))
            core = measured_core()
            server = Place(self.one.inside.path, str(self.one.group), core)
            client = Place(self.other.inside.path, str(self.other.group), core)
            self._routes[HOST_HOST] = Route(server, client, HOST)
            self._routes[ACROSS_HOSTS] = self.build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def build(self, stack: ExitStack) -> Route:
        """The path from the client's container to the server's. Without any container: from host to host."""
        return self._routes[HOST_HOST]

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.one, self.other

    def route(self, path: str) -> Route:
        return self._routes[path]

    def between(self, server: str, client: str, address: str) -> Route:
        """The route between two namespaces, by their paths; the server has the address."""
        places = [
            Place(path, str(host.group), measured_core())
            for path, host in zip((server, client), self.hosts, strict=True)
        ]
        for place in places:
            place.write(STREAM_SETTINGS | CLIENT_SETTINGS)
        return Route(places[0], places[1], address)

    def outside(self) -> Place:
        return Place(self.other.inside.path)


class OwnHosts(TwoHosts):
    """This product's command line on both hosts, which share a store."""

    def build(self, stack: ExitStack) -> Route:
        if self.mode == MACVLAN:
            self._networks = ("-d", "macvlan", "--subnet", "192.0.2.0/24", "-o", "parent=eth0")
        else:
            transport = (f"com.datapath.transport={'direct' if self.mode == DIRECT else 'vxlan'}",)
            self._networks = ("-d", "overlay", "--subnet", "10.88.0.0/16", "-o", *transport)
            self._store = serve_etcd(stack, self.one)
        for host in self.hosts:
            config = {} if self.mode == MACVLAN else self._clustered(host)
            (host.folder / "daemon.json").write_text(json.dumps(config))
            stack.callback(self._down, host)
        self.ctl(self.one, "network", "create", *self._networks, NETWORK)
        if self.mode != MACVLAN:
            for host in self.hosts:
                self._follow(host, stack)
        if self.mode == MACVLAN:  # each host has its own, of which neither knows the other's addresses
            self.ctl(self.other, "network", "create", *self._networks, NETWORK)
            self.ctl(self.one, *self._run(SERVER, "--ip", "192.0.2.101"))
            self.ctl(self.other, *self._run(CLIENT, "--ip", "192.0.2.102"))
        else:
            self.ctl(self.one, *self._run(SERVER))
            self.ctl(self.other, *self._run(CLIENT))
        server, client = self._inspect(self.one, SERVER), self._inspect(self.other, CLIENT)
        address = server["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        paths = [f"/proc/{found['State']['Pid']}/ns/net" for found in (server, client)]
        route = self.between(paths[0], paths[1], address)
        eventually(lambda: route.client.run(["ping", "-c", "1", "-W", "1", address], 5))
        return route

    def _clustered(self, host: Host) -> dict[str, str]:
        return {"cluster-store": f"etcd://{self._store}", "cluster-advertise": host.address}

    def _run(self, name: str, *words: str, network: str = NETWORK) -> tuple[str, ...]:
        return ("run", "-d", "--name", name, "--network", network, *words, "--", "sleep", "infinity")

    def ctl(self, host: Host, *words: str) -> str:
        """What the command says, given on the host."""
        return Place(host.inside.path, str(host.group)).run(self._command(host, *words), _PATIENCE)

    def _command(self, host: Host, *words: str) -> list[str]:
        """On the host, which has a name of its own."""
        settings = host.settings().environment()
        argv = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host.folder.name]
        return [
            *argv,
            "env",
            *(f"{n}={value}" for n, value in settings.items()),
            *self.options.program,
            *words,
        ]

    def _follow(self, host: Host, stack: ExitStack) -> None:
        """Has the host hear of the other's containers."""
        place = Place(host.inside.path, str(host.group))
        stack.callback(end, place.start(self._command(host, "agent"), host.folder / "agent.log"))

    def _inspect(self, host: Host, name: str) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
        found: dict[str, dict[str, dict[str, dict[str, str]]]] = json.loads(self.ctl(host, "inspect", name))[
            0
        ]
        return found

    def _down(self, host: Host) -> None:
        self.ctl(host, "down", "--force")

    def start_remove(self, count: int, asleep: bool = False) -> tuple[float, ...]:
        """On the overlay, and then on a bridge network."""
        if self.mode != EBPF:
            raise NotImplementedError
        if OTHER not in self.ctl(self.one, "network", "ls", "--format", "{{.Name}}").split():
            self.ctl(self.one, "network", "create", OTHER)
        found: list[float] = []
        for network in (NETWORK, OTHER):
            found += timed(self._started(network), lambda: self.ctl(self.one, "rm", "-f", "another"))
        return tuple(found)

    def _started(self, network: str) -> Callable[[], object]:
        return lambda: self.ctl(self.one, *self._run("another", network=network))


class DockerHosts(TwoHosts):
    """Two Docker daemons with an overlay network: by a store of theirs, as long as Docker had that, then by swarm."""

    def build(self, stack: ExitStack) -> Route:
        store = serve_etcd(stack, self.one)
        daemons = []
        for host in self.hosts:
            daemons.append(self._daemon(host, store))
            stack.callback(daemons[-1].close)
        one, other = daemons
        body = {"Name": NETWORK, "Driver": "overlay", "Attachable": not self._stored, "CheckDuplicate": True}
        if not self._stored:
            self._swarm(one, other)
        one.api.ask("POST", "/networks/create", body)
        one.run(SERVER, NETWORK)
        eventually(lambda: other.run(CLIENT, NETWORK))  # a host hears of the network a moment later
        found = one.api.ask("GET", f"/containers/{SERVER}/json")
        address = found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        return self.between(one.netns(SERVER), other.netns(CLIENT), address)

    def _daemon(self, host: Host, store: str) -> Docker:
        flags = (f"--cluster-store=etcd://{store}/docker", f"--cluster-advertise={host.address}:2376")
        if os.path.isdir(self.options.dockerd):
            self._stored = False
            return Docker(host, self.options.dockerd)
        said = Place(host.inside.path).run([self.options.dockerd, "--version"], 10)
        self._stored = int(said.split()[2].split(".")[0]) <= _LAST_WITH_STORE
        return Docker(host, self.options.dockerd, flags if self._stored else ())

    def _swarm(self, one: Docker, other: Docker) -> None:
        listen = {"ListenAddr": f"{HOST}:2377", "AdvertiseAddr": HOST}
        one.api.ask("POST", "/swarm/init", listen)
        token = one.api.ask("GET", "/swarm")["JoinTokens"]["Worker"]
        joining = {"RemoteAddrs": [f"{HOST}:2377"], "JoinToken": token}
        other.api.ask(
            "POST", "/swarm/join", {"ListenAddr": f"{OUTSIDE}:2377", "AdvertiseAddr": OUTSIDE, **joining}
        )


class Wired(TwoHosts):
    """Containers that are joined by the kernel alone: routes to the other host's subnet, as flannel's host-gw makes
    them, or a bridge with a VXLAN device whose table is filled by hand."""

    def build(self, stack: ExitStack) -> Route:
        containers = [Namespace() for _ in self.hosts]
        for container in containers:
            stack.callback(container.close)
        make = self._routed if self.mode == ROUTED else self._bridged
        addresses = make(containers)
        return self.between(containers[0].path, containers[1].path, addresses[0])

    def _routed(self, containers: list[Namespace]) -> tuple[str, str]:
        addresses = ("10.88.1.2", "10.88.2.2")
        for i, host in enumerate(self.hosts):
            gateway, far = f"10.88.{i + 1}.1", self.hosts[1 - i].address
            host.inside.sh(
                f"ip link add c0 type veth peer name eth0 netns {containers[i].pid}",
                f"ip address add {gateway}/24 dev c0",
                "ip link set c0 up",
                f"ip route add 10.88.{2 - i}.0/24 via {far}",
                "echo 1 >/proc/sys/net/ipv4/ip_forward",
            )
            containers[i].sh(
                f"ip address add {addresses[i]}/24 dev eth0",
                "ip link set eth0 up",
                f"ip route add default via {gateway}",
            )
        return addresses

    def _bridged(self, containers: list[Namespace]) -> tuple[str, str]:
        macs = ("02:42:0a:58:00:02", "02:42:0a:58:00:03")
        addresses = (_FIRST, _SECOND)
        for i, host in enumerate(self.hosts):
            far = self.hosts[1 - i].address
            host.inside.sh(
                "ip link add br0 type bridge",
                f"ip link add vxlan0 type vxlan id {_VNI} dstport {_VXLAN_PORT} local {host.address} nolearning",
                "ip link set vxlan0 master br0 mtu 1450 up",
                f"bridge fdb append {macs[1 - i]} dev vxlan0 dst {far}",
                f"ip link add c0 type veth peer name eth0 netns {containers[i].pid}",
                "ip link set c0 master br0 mtu 1450 up",
                "ip link set br0 up",
            )
            containers[i].sh(
                f"ip link set eth0 mtu 1450 address {macs[i]}",
                f"ip address add {addresses[i]}/24 dev eth0",
                "ip link set eth0 up",
                f"ip neighbour add {addresses[1 - i]} lladdr {macs[1 - i]} dev eth0",
            )
        return addresses


def make_hosts(mode: str, options: SuiteOptions) -> TwoHosts:
    """The topology of a mode; it is built when it is entered."""
    if mode == NONE:
        return TwoHosts(mode, options)
    if mode in (EBPF, DIRECT, MACVLAN):
        return OwnHosts(mode, options)
    return DockerHosts(mode, options) if mode == DOCKER else Wired(mode, options)


def eventually(step: Callable[[], object]) -> None:
    """Repeats what fails until it does not."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            step()
            return
        except DatapathError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def serve_etcd(stack: ExitStack, host: Host) -> str:
    """A store of one server on the host until the stack is left; its address and port, as both hosts ask it."""
    url, peer = f"http://{host.address}:{_ETCD_PORT}", f"http://{host.address}:{_PEER_PORT}"
    argv = [_ETCD, "--data-dir", str(host.folder / "etcd"), "--log-level", "error", "--enable-v2"]
    argv += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer]
    argv += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    try:
        place = Place(host.inside.path, str(host.group))
        place.run(["which", _ETCD], 5)
    except ToolError:
        raise MissingError(_ETCD) from None
    stack.enter_context(place.serving(argv, _ETCD_PORT, Path(host.folder / "etcd.log")))
    return f"{host.address}:{_ETCD_PORT}"
