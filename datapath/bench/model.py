# SPDX-License-Identifier: Apache-2.0
"""The types of a benchmark: experiments, samples, runs. No I/O, no clock.

An *experiment* is one row of the report: the same work in several *modes*. A *sample* is one figure of one mode; the
samples of one round were taken one right after the other, so only ratios within a round mean anything. A *run* is
everything that one `bench run` measured, as it stands in the JSON file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Better = Literal["higher", "lower"]

EBPF, IPTABLES, NFTABLES, DOCKER_DATAPATH, DOCKER, NONE = NETWORKING = (
    *("ebpf", "iptables", "nftables"),
    *("docker-datapath", "docker", "none"),
)
"""`docker-datapath` is Docker's daemon with networks of this datapath's driver, `docker` with those of its own. `none`
is the limit: the same two programs over loopback, without any container."""

DOCKERS = (DOCKER_DATAPATH, DOCKER)

AARDVARK, DNSMASQ, UNBOUND = RESOLVERS = ("aardvark", "dnsmasq", "unbound")
"""Programs that answer questions for names, on the gateway's address of a Linux bridge: of the suite `dns` only."""

DIRECT, ROUTED, VXLAN, MACVLAN = ACROSS = ("direct", "routed", "vxlan", "macvlan")
"""Ways from one host to another, of the suite `overlay` only: this datapath's overlay without a tunnel, the kernel's
own routes, a Linux bridge with a VXLAN device, and this datapath's macvlan networks. There `ebpf` is this datapath's
overlay, `docker` Docker's, and `none` is the limit: from host to host, without any container."""

IPVS, NGINX, HAPROXY = BALANCERS = ("ipvs", "nginx", "haproxy")
"""What else gives connections to one of several servers, of the suite `services` only. There `ebpf` is a service of
this datapath, `iptables` the rules of Kubernetes' kube-proxy, and `none` is the limit: straight to a server of the same
network of this datapath, without a service."""

DSR = "dsr"
"""Of one row of the suite `services` only, that asks by another host than the container's: this datapath's service,
which that host answers for, while with `dsr` the container's answers itself. There `none` is a container's way to the
server over the overlay network, without a service."""

MODES = (*NETWORKING, *RESOLVERS, *ACROSS, *BALANCERS, DSR)

PATHS = (
    "container-container",
    "outside-published",
    "container-outside",
    "loopback-published",
    "hairpin",
)

ACROSS_HOSTS, HOST_HOST = "across-hosts", "host-host"
"""Between containers of two hosts, and between the two hosts themselves."""

TO_SERVICE, INGRESS, HOST_SERVICE = "container-service", "outside-service", "host-service"
"""From a container and from the host itself to a service's address, and from outside to its published port."""

BY_OTHER_HOST = "outside-other-host"
"""From outside to a published port of a service at another host than its container's."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a figure is of. `path` is one of those above, or "" for work of the control plane; `parameters` are what a
    sweep varies, such as {"ports": 1000}."""

    workload: str
    path: str = ""
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        words = [self.workload, self.path, *(f"{key}={value}" for key, value in self.parameters.items())]
        return " ".join(word for word in words if word)

    @property
    def swept(self) -> bool:
        """Whether it is a point of a sweep over the same path."""
        return bool(self.path and self.parameters)


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure, in the experiment's unit. `details`: whatever else the tool said, kept in the JSON as it is."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Experiment(Protocol):
    """One row. Entering it brings the topologies of all its modes to where the measurement can begin (so many ports
    published, servers running); leaving takes that back. `sample` is one warm, pinned measurement of a second or
    so; it raises DatapathError when the tool fails.

    `modes` are those that can do it, of those asked for. `title` is a heading for people. `warm`: the first sample
    counts like any other, as the programs warm up by themselves. `lost`: modes that could not be set up when it was
    entered, and why; they are no longer in `modes`, and the others are measured.
    """

    point: Point
    title: str
    unit: str
    better: Better
    modes: tuple[str, ...]
    warm: bool
    lost: dict[str, str]

    def __enter__(self) -> Experiment: ...

    def __exit__(self, *exc: object) -> None: ...

    def sample(self, mode: str) -> Sample: ...


class Suite(Protocol):
    """Named experiments over topologies that they share; a context manager that takes the topologies down at its end.

    `experiments` lists them without building anything; topologies are built when an experiment is entered.
    """

    name: str

    def __enter__(self) -> Suite: ...

    def __exit__(self, *exc: object) -> None: ...

    def experiments(self) -> list[Experiment]: ...


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What a suite is told. `seconds`: how long one sample measures. `folder`: an empty directory of this run's own
    for sockets, state and logs, removed after it. The programs are names to look up in PATH, or paths; `dockerd` may be
    a folder too, with the root of another system that has one. `program`: how datapathctl is started."""

    seconds: float
    folder: Path
    docker: str = "docker"
    dockerd: str = "dockerd"
    program: tuple[str, ...] = ("datapathctl",)


class SuiteFactory(Protocol):
    """What `datapath.bench.suites.SUITES` has for each name. It builds nothing and changes nothing; whether a mode
    can be had here (iptables, a Docker daemon) is found out when it is needed."""

    def __call__(self, modes: tuple[str, ...], options: SuiteOptions) -> Suite: ...


@dataclass(frozen=True, slots=True)
class Series:
    """All samples of one experiment: `samples[mode][round]`. Every mode has the same number of rounds.

    `stopped`: "tight" (the confidence intervals are), "rounds" or "time" (a bound was hit), "interrupted",
    "failed: …".
    """

    point: Point
    title: str
    unit: str
    better: Better
    samples: Mapping[str, tuple[Sample, ...]]
    stopped: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """`mode` relative to `base`: the median of the ratios within each round, and its confidence interval.

    `confidence` is how often such an interval covers the true median. With too few rounds for 95% the interval is
    all that was seen, and `confidence` below 0.95.
    """

    mode: str
    base: str
    median: float
    low: float
    high: float
    rounds: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Times between two points on a packet's way, in nanoseconds: `counts[i]` of [2**i, 2**(i+1))."""

    title: str
    mode: str
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one thing costs: a hook, a process, a map. `what` and `unit` are words for people."""

    mode: str
    subject: str
    what: str
    unit: str
    value: float


@runtime_checkable
class Observes(Protocol):
    """A suite that can also look inside. Asked once, after its last experiment and before it is left: what looks
    inside costs time of its own, and must not run while anything is timed."""

    def observe(self) -> tuple[tuple[Histogram, ...], tuple[Cost, ...]]: ...


@dataclass(frozen=True, slots=True)
class Run:
    """One JSON file. `machine`: kernel, CPU, versions, offloads, sysctls; `command`: what reproduces it; `skipped`:
    what was not measured, and why."""

    format: int
    started: str
    seconds: float
    command: tuple[str, ...]
    machine: Mapping[str, Any]
    series: tuple[Series, ...]
    histograms: tuple[Histogram, ...] = ()
    costs: tuple[Cost, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
