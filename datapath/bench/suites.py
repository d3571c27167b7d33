# SPDX-License-Identifier: Apache-2.0
"""The suites that `bench run` knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from datapath.bench import costs, latency, lifecycle
from datapath.bench.bars import PROMISED
from datapath.bench.docker import installed
from datapath.bench.model import (
    ACROSS,
    ACROSS_HOSTS,
    BALANCERS,
    DOCKER,
    DOCKER_DATAPATH,
    DOCKERS,
    DSR,
    EBPF,
    HOST_HOST,
    IPTABLES,
    NFTABLES,
    NONE,
    PATHS,
    RESOLVERS,
    Cost,
    Experiment,
    Histogram,
    Point,
    Suite,
    SuiteFactory,
    SuiteOptions,
)
from datapath.bench.names import Dns
from datapath.bench.served import services
from datapath.bench.topologies import Topology
from datapath.bench.topology_docker import MOST_CONTAINERS, MOST_NETWORKS, MOST_PORTS
from datapath.bench.topology_hosts import make_hosts
from datapath.bench.topology_services import make_services
from datapath.bench.traffic import PATH_WORDS, Topologies, Traffic, make_topology, traffic
from datapath.bench.workloads import TCP_CONNECT, TCP_RR, TCP_STREAM, UDP_PPS, UDP_RR, WORKLOADS, Workload

PORTS = (1, 10, 100, 1000, 10000)
NETWORKS = (1, 10, 50)
CONTAINERS = (2, 10, 100, 500)
STARTED = (1, 32, 200)  # ports of a container
POPULATED = (TCP_RR, TCP_CONNECT)  # workloads of the sweeps over what stands beside the two that are measured
FLOWS = (0, 10000, 100000)
MEMBERS, PUBLISHED, OUTWARD, _, HAIRPIN = PATHS

Modes = tuple[str, ...]
Rows = Callable[[Topologies, Modes], Iterable[Experiment]]


class Rowed:
    """A suite of rows that share their topologies. `own_pid_namespace`: it starts what would outlive a kill -9.
    `absent`: modes that it knows nothing of; `make` makes the topologies of the others."""

    own_pid_namespace = True
    absent: Modes = (*RESOLVERS, *ACROSS, *BALANCERS, DSR)
    make: Callable[[str, SuiteOptions], Topology] = staticmethod(make_topology)

    def __init__(self, name: str, rows: Rows, modes: Modes, options: SuiteOptions) -> None:
        self.name = name
        self._topologies = Topologies(name, options, self.make)
        if not installed(options.dockerd):
            modes = without(modes, *DOCKERS)
        self._modes = modes = without(modes, *self.absent)
        self._experiments = list(rows(self._topologies, modes))

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, *exc: object) -> None:
        self._topologies.close()

    def experiments(self) -> list[Experiment]:
        return self._experiments


def without(modes: Modes, *gone: str) -> Modes:
    return tuple(mode for mode in modes if mode not in gone)


# ---- rows -------------------------------------------------------------------------------------


def quick(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """What the product promises to be better at. Changes come first, the large one after the small ones: rows of
    short connections leave tables full of closed ones, which taking an endpoint away looks through, and 10,000 ports
    stay exposed when they are not published any more, which makes the container's row a large one."""
    yield lifecycle.attach(topologies, modes)
    yield lifecycle.publish(topologies, modes, 200)
    yield lifecycle.publish(topologies, modes, 10000)
    yield traffic(topologies, modes, TCP_RR, MEMBERS)
    yield traffic(topologies, modes, UDP_PPS, MEMBERS)
    yield traffic(topologies, modes, TCP_RR, OUTWARD)
    yield traffic(topologies, modes, TCP_CONNECT, OUTWARD)
    for path in (MEMBERS, PUBLISHED, OUTWARD):
        yield traffic(topologies, modes, TCP_STREAM, path)
    yield ports(topologies, modes, 1)
    yield ports(topologies, modes, 10000)


def paths(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """Those with a bar first: time may be too short for all. Docker's proxy answers a neighbour's UDP from the
    gateway's address, not from the one that was asked, and iperf3 does not take that for an answer."""
    deaf = (UDP_PPS, HAIRPIN)
    rows = [
        traffic(topologies, without(modes, DOCKER) if (workload, path) == deaf else modes, workload, path)
        for workload in WORKLOADS
        for path in PATHS
    ]
    return iter(sorted(rows, key=lambda row: row.point.label not in PROMISED))


def sweeps(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """First the two points that have a bar, next to each other. The connections come last: tables stay full, and
    removing many would look through them for each container. Without containers nothing changes by networks,
    containers and connections of others, so `none` is left out there."""
    for count in sorted(PORTS, key=lambda count: count not in (1, 10000)):
        yield ports(topologies, modes, count)
    modes = without(modes, NONE)
    for count in NETWORKS:
        some = modes if count <= MOST_NETWORKS else without(modes, *DOCKERS)
        for workload in POPULATED:
            yield populated(topologies, some, workload, networks=count)
    for count in CONTAINERS:
        some = modes if count <= MOST_CONTAINERS else without(modes, *DOCKERS)
        for workload in POPULATED:
            yield populated(topologies, some, workload, containers=count)
    for count in FLOWS:
        for workload in POPULATED:
            yield Traffic(
                topologies,
                workload,
                Point(workload.name, PUBLISHED, {"connections": count}),
                modes,
                f"{workload.title}, {PATH_WORDS[PUBLISHED]}, with so many connections in the table",
                flows=count,
            )


def ports(topologies: Topologies, modes: Modes, count: int) -> Traffic:
    """Rules are asked in turn, so the port that comes last pays for all of them."""
    return Traffic(
        topologies,
        TCP_CONNECT,
        Point(TCP_CONNECT.name, PUBLISHED, {"ports": count}),
        modes if count <= MOST_PORTS else without(modes, *DOCKERS),
        f"{TCP_CONNECT.title}, {PATH_WORDS[PUBLISHED]}, the last of so many",
        ports=count,
    )


def populated(
    topologies: Topologies, modes: Modes, workload: Workload, *, networks: int = 0, containers: int = 0
) -> Traffic:
    parameters = {"networks": networks} if networks else {"containers": containers}
    what = "networks" if networks else "containers on the network"
    return Traffic(
        topologies,
        workload,
        Point(workload.name, MEMBERS, parameters),
        modes,
        f"{workload.title}, {PATH_WORDS[MEMBERS]}, among so many {what}",
        networks=networks or 1,
        containers=containers or 2,
    )


def control(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    yield lifecycle.attach(topologies, modes)
    for count in (1, 200, 10000):
        yield lifecycle.publish(topologies, modes, count)
    yield from starts(topologies, modes)
    yield lifecycle.restart(topologies, modes)


def starts(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """What containers take to start, with ports and without, alone and at once."""
    for count in STARTED:
        yield lifecycle.start(topologies, modes, count)
    yield lifecycle.start(topologies, modes, 1, asleep=True)
    yield lifecycle.start_many(topologies, modes, MOST_CONTAINERS)


def docker(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """What Docker's users have of the driver."""
    yield lifecycle.attach(topologies, modes)
    yield from starts(topologies, modes)
    for path in (MEMBERS, PUBLISHED):
        yield traffic(topologies, modes, TCP_RR, path)
    yield ports(topologies, modes, 1)


def overlay(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """Two hosts, a container on each. Those with a bar first."""
    ours = tuple(mode for mode in modes if mode in (EBPF, NONE))
    yield traffic(topologies, modes, TCP_RR, ACROSS_HOSTS)
    yield traffic(topologies, ours, TCP_RR, HOST_HOST)
    yield traffic(topologies, modes, TCP_STREAM, ACROSS_HOSTS)
    yield traffic(topologies, modes, UDP_PPS, ACROSS_HOSTS)
    if EBPF in modes:
        yield lifecycle.start_across(topologies, (EBPF,))
    yield traffic(topologies, modes, UDP_RR, ACROSS_HOSTS)
    yield traffic(topologies, modes, TCP_CONNECT, ACROSS_HOSTS)


# ---- the registry -----------------------------------------------------------------------------


class Costly(Rowed):
    """It looks inside afterwards."""

    def observe(self) -> tuple[tuple[Histogram, ...], tuple[Cost, ...]]:
        return (
            tuple(latency.histograms(self._topologies, self._modes)),
            tuple(costs.costs(self._topologies, self._modes)),
        )


class Across(Rowed):
    """Its topologies are pairs of hosts."""

    absent = (IPTABLES, NFTABLES, DOCKER_DATAPATH, *RESOLVERS, *BALANCERS, DSR)
    make = staticmethod(make_hosts)


class Balanced(Rowed):
    """Its topologies have several servers."""

    absent = (NFTABLES, *DOCKERS, *RESOLVERS, *ACROSS)
    make = staticmethod(make_services)


def cost(topologies: Topologies, modes: Modes) -> Iterator[Experiment]:
    """The details of this one say what CPU it took."""
    yield traffic(topologies, modes, TCP_STREAM, MEMBERS)


def _rowed(name: str, rows: Rows) -> SuiteFactory:
    kind = _KINDS.get(name, Rowed)
    return lambda modes, options: kind(name, rows, modes, options)


_KINDS: Mapping[str, type[Rowed]] = {"cost": Costly, "overlay": Across, "services": Balanced}


SUITES: Mapping[str, SuiteFactory] = {
    name: _rowed(name, rows)
    for name, rows in {
        "quick": quick,
        "paths": paths,
        "sweeps": sweeps,
        "control": control,
        "cost": cost,
        "docker": docker,
        "overlay": overlay,
        "services": services,
    }.items()
} | {"dns": Dns}

FULL = ("control", "paths", "cost", "dns", "overlay", "services", "sweeps")
"""What is measured if nobody names a suite, in this order: changes before traffic (see `quick`), and what takes long at
the end."""
