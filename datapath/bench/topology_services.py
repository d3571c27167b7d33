# SPDX-License-Identifier: Apache-2.0
"""Topologies of the suite `services`: who gives connections to one of several servers. Three containers serve and one
asks, on one host, with a machine outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from datapath.bench.balancers import Rules, apply_rules, missing, proxy
from datapath.bench.host import CLIENT_SETTINGS, HOST, STREAM_SETTINGS, Host
from datapath.bench.model import (
    BY_OTHER_HOST,
    DSR,
    EBPF,
    HOST_SERVICE,
    INGRESS,
    IPTABLES,
    IPVS,
    NONE,
    TO_SERVICE,
    SuiteOptions,
)
from datapath.bench.place import Namespace, Place
from datapath.bench.topologies import CLIENT, NETWORK, PORT, Own, PathsOnly, Route, Topology, measured_core
from datapath.bench.topology_hosts import TwoHosts
from datapath.bench.topology_ingress import IngressHosts

if TYPE_CHECKING:
    from datapath.model.networks import NetworkRequest
    from datapath.model.services import ServiceRequest

SERVERS = 3  # containers; more backends are more addresses of them
MEASURED = "measured"  # the service that is asked
_LABEL = "app=server"
_FIRST_NUMBER = 1 << 29  # of backends that no container stands for
_OWN = IPv4Address("10.88.0.0")  # of peers' containers, a /24 each
_VIPS = IPv4Address("10.96.0.0")
_BACKENDS = IPv4Address("10.100.0.0")  # a /16 each


class ServiceTopology(PathsOnly):
    """One mode: so many services, of which one is measured."""

    mode: str
    host: Host

    def __enter__(self) -> Topology:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    def outside(self) -> Place:
        return Place(self.host.outside.path)

    def serve(self, services: int, backends: int) -> None:
        """Makes it so many services, the measured one the last of them, with so many backends each."""
        raise NotImplementedError

    def change(self, leaves: bool) -> None:
        """Has the measured service's last backend get no new connections, or again some."""
        raise NotImplementedError

    def route(self, path: str) -> Route:
        raise NotImplementedError

    def asked(self, path: str) -> str:
        """The addresses that connections go to in turn, by commas: where there is no service, each server's."""
        return self.route(path).address

    def places(self) -> Iterator[tuple[str, Place]]:
        """Of each path the place of its client."""
        core = measured_core()
        yield INGRESS, Place(self.host.outside.path, core=core)
        yield HOST_SERVICE, Place(self.host.inside.path, str(self.host.group), core)


class OwnServices(Own, ServiceTopology):
    """This product's. In mode `none` there is no service: the client asks a server itself, by its address, or by a port
    that this one publishes. More backends than containers are rows of maps with the containers' addresses, written by
    hand: what a table of as many costs does not depend on who is behind it."""

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        Own.__init__(self, EBPF, options)
        self.mode = mode
        self._options = options
        self._hosts: TwoHosts | None = None  # of rows of their own
        self._folder = options.folder / mode
        self._others = 0
        self._backends = SERVERS

    def build(self) -> None:
        """The network, its containers, and the measured service."""
        from datapath.kernel import netns
        from datapath.model.containers import RunRequest
        from datapath.model.endpoints import EndpointRequest

        names = [f"server{number}" for number in range(SERVERS)]
        with netns.enter(self.host.inside.path):
            self.engine.networks.create(self._network(NETWORK))
            on, sleep = (EndpointRequest(NETWORK),), ("sleep", "infinity")
            for name in (*names, CLIENT):
                labels = () if name == CLIENT else (_LABEL,)
                self.containers.run(RunRequest(sleep, name=name, networks=on, labels=labels, detach=True))
            found = {name: self.containers.inspect(name) for name in (*names, CLIENT)}
            addresses = [found[name]["NetworkSettings"]["Networks"][NETWORK]["IPAddress"] for name in names]
            address, self._addresses = addresses[0], ",".join(addresses)
            if self.mode == NONE:
                self.containers.port_add(names[0], f"{PORT}:{PORT}/tcp")
            else:
                request = self._request(MEASURED, f"{PORT}:{PORT}/tcp")
                address = str(self.engine.services.create(request).vip4)
        places = {name: self._place(found[name]["State"]["Pid"]) for name in found}
        for name, place in places.items():
            place.write(STREAM_SETTINGS | (CLIENT_SETTINGS if name == CLIENT else {}))
        server, *others = (places[name] for name in names)
        self._routes = {TO_SERVICE: Route(server, places[CLIENT], address, others=tuple(others))}
        for path, client in self.places():
            asked = HOST if path == INGRESS else address
            self._routes[path] = Route(server, client, asked, others=tuple(others))

    def _request(self, name: str, *publish: str) -> ServiceRequest:
        from datapath.model.services import ServiceRequest

        return ServiceRequest(name, NETWORK, publish=publish, selector=(_LABEL,))

    def _network(self, name: str) -> NetworkRequest:
        from datapath.model.networks import NetworkRequest

        return NetworkRequest(name)

    def route(self, path: str) -> Route:
        if path != BY_OTHER_HOST:
            return self._routes[path]
        if self._hosts is None:
            self._hosts = IngressHosts(self.mode, self._options)
            self._stack.enter_context(self._hosts)
        return self._hosts.route(path)

    def asked(self, path: str) -> str:
        return self._addresses if self.mode == NONE and path != INGRESS else self.route(path).address

    def publish(self, count: int) -> None:
        """The service's port is the only one."""

    def populate(self, networks: int, containers: int) -> None:
        """There are no others."""

    def serve(self, services: int, backends: int) -> None:
        from datapath.engine import services as engine
        from datapath.kernel import netns

        if self.mode == NONE:
            return
        with netns.enter(self.host.inside.path):
            if backends != self._backends:
                self._have(backends)
            with self.engine.changing() as tx:  # all in one: each looks at the whole host first
                while self._others < services - 1:
                    engine.create(tx, self._request(f"s{self._others}"))
                    self._others += 1
                while self._others > services - 1:
                    self._others -= 1
                    engine.remove(tx, f"s{self._others}")

    def change(self, leaves: bool) -> None:
        from datapath.kernel import netns

        change = self.engine.services.drain if leaves else self.engine.services.undrain
        with netns.enter(self.host.inside.path):
            change(MEASURED, [f"server{SERVERS - 1}"])

    def _have(self, backends: int) -> None:
        """Rows as of so many backends of the measured service."""
        from datapath.dataplane import service_entries as rows
        from datapath.dataplane.convert import to_abi
        from datapath.dataplane.service_structs import BackendKey, ServiceKey
        from datapath.plan import maglev
        from datapath.telemetry.stats import opened

        service = self.engine.services.get(MEASURED)
        with self.engine.changing() as tx:
            for part, _ in tx.parts():
                part.services.write(tx.state, [service])
        if backends > SERVERS:
            with opened(self.engine) as dataplane:
                assert dataplane is not None
                key = to_abi(ServiceKey(service.number))
                known = dataplane.services[key]
                there = list(dataplane.backends.having("service", service.number).values())
                numbers = range(_FIRST_NUMBER, _FIRST_NUMBER + backends)
                made = {to_abi(BackendKey(number)): there[number % len(there)] for number in numbers}
                table = maglev.table(MEASURED, list(map(str, numbers)), [1] * backends)
                number = known.table4 ^ 1
                lines = rows.slots(number, [numbers[place] for place in table])
                dataplane.backends.update_many(made)
                dataplane.slots.update_many({to_abi(at): to_abi(line) for at, line in lines.items()})
                dataplane.services[key] = known._replace(table4=number, size4=len(table))
        self._backends = backends


class PeerServices(ServiceTopology):
    """Another's: containers on links of their own, between which the host routes, as under Kubernetes with Calico:
    there is no bridge. More backends than containers are more addresses of these."""

    def __init__(self, mode: str, options: SuiteOptions) -> None:
        self.mode = mode
        self._folder = options.folder / mode
        self._stack = ExitStack()
        self._now = (0, 0)

    def __enter__(self) -> PeerServices:
        if why := missing(self.mode):
            raise why
        with ExitStack() as stack:
            self.host = stack.enter_context(Host(self._folder))
            self._build(stack)
            self._balancer = stack.enter_context(ExitStack())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _build(self, stack: ExitStack) -> None:
        core, places = measured_core(), []
        for number in range(SERVERS + 1):
            container = Namespace()
            stack.callback(container.close)
            subnet = _OWN + 256 * (number + 1)
            self.host.inside.sh(
                f"ip link add c{number} type veth peer name eth0 netns {container.pid}",
                f"ip address add {subnet + 1}/24 dev c{number}",
                f"ip link set c{number} up",
                *(
                    [f"ip route add {_BACKENDS + (number << 16)}/16 via {subnet + 2}"]
                    if number < SERVERS
                    else []
                ),
            )
            container.sh(
                f"ip address add {subnet + 2}/24 dev eth0",
                "ip link set eth0 up",
                f"ip route add default via {subnet + 1}",
                f"ip route add local {_BACKENDS + (number << 16)}/16 dev lo",
            )
            places.append(Place(container.path, str(self.host.group), core))
        self.host.inside.sh("echo 1 >/proc/sys/net/ipv4/ip_forward")
        if self.mode != IPTABLES:  # the others take what is for the host's own addresses
            self.host.inside.sh(f"ip route add local {_VIPS}/16 dev lo")
        *servers, client = places
        for place in places:
            place.write(STREAM_SETTINGS | (CLIENT_SETTINGS if place is client else {}))
        self._clients = dict(self.places()) | {TO_SERVICE: client}
        self._servers = servers

    def route(self, path: str) -> Route:
        asked = HOST if path == INGRESS else self._rules().services[-1][0]
        server, *others = self._servers
        return Route(server, self._clients[path], asked, others=tuple(others))

    def serve(self, services: int, backends: int) -> None:
        if (services, backends) != self._now:
            self._balancer.close()
            self._now = (services, backends)
            self._start()

    def _start(self) -> None:
        if self.mode in (IPTABLES, IPVS):
            apply_rules(self.mode, self.host, self._rules())
        else:
            reload = self._balancer.enter_context(proxy(self.mode, self.host, self._rules()))
            self._reload = reload

    def _rules(self, left: int = 0) -> Rules:
        """`left`: so many of the measured service's backends get no new connections."""
        services, backends = self._now
        addresses = [
            str(_BACKENDS + ((number % SERVERS) << 16) + number // SERVERS + 1) for number in range(backends)
        ]
        every = [(str(_VIPS + number + 1), addresses) for number in range(services)]
        every[-1] = (every[-1][0], addresses[: backends - left])
        return Rules(tuple(every), HOST, PORT)

    def change(self, leaves: bool) -> None:
        rules = self._rules(1 if leaves else 0)
        if self.mode in (IPTABLES, IPVS):
            apply_rules(self.mode, self.host, rules)
        else:
            self._reload(rules)


def make_services(mode: str, options: SuiteOptions) -> Topology:
    """The topology of a mode; it is built when it is entered."""
    if mode == DSR:
        return IngressHosts(mode, options)
    return OwnServices(mode, options) if mode in (EBPF, NONE) else PeerServices(mode, options)
