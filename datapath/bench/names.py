# SPDX-License-Identifier: Apache-2.0
"""Experiments of the suite `dns`: how quickly names are answered, by whom, and among how many."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median

from datapath.bench import resolvers, stats, tools
from datapath.bench.bars import TO_ONE
from datapath.bench.docker import installed
from datapath.bench.model import (
    DOCKER,
    DOCKERS,
    EBPF,
    NONE,
    RESOLVERS,
    Better,
    Experiment,
    Point,
    Sample,
    SuiteOptions,
)
from datapath.bench.place import MissingError
from datapath.bench.resolvers import Asker, ResolverTopology
from datapath.bench.workloads import QUESTIONS, QUESTIONS_MUSL
from datapath.errors import DatapathError

NAMES, HOST_RESOLVER, STUB, FAILING = "container-names", "host-resolver", "host-stub", "failing-resolver"
MANY = 10_000
IN_FLIGHT = 32
_PIECES = 8
_PATIENCE = 15.0  # seconds that a program may take longer than it was told to measure
_LIBRARIES = {"glibc": QUESTIONS, "musl": QUESTIONS_MUSL}

Make = Callable[[str, SuiteOptions], ResolverTopology]


class Answering:
    """The topologies of the suite, each built when it is first wanted."""

    def __init__(self, options: SuiteOptions) -> None:
        self.options = replace(options, folder=options.folder / "dns")
        self._built: dict[tuple[str, str], ResolverTopology] = {}
        self._stack = ExitStack()

    def of(self, mode: str, path: str, make: Make) -> Asker:
        """Who asks in this mode, with what is said by `path` and made by `make`."""
        key = mode, path
        if key not in self._built:
            options = replace(self.options, folder=self.options.folder / path)
            self._built[key] = self._stack.enter_context(make(mode, options))
        return self._built[key].asker

    def close(self) -> None:
        self._built.clear()
        self._stack.close()


def known(count: int) -> Make:
    """So many names of containers."""
    return lambda mode, options: resolvers.names_of(mode, count, options)


def foreign(mode: str, options: SuiteOptions) -> ResolverTopology:
    """A name that the host's resolver knows."""
    return resolvers.HostResolver(mode, 1, options)


def stub(mode: str, options: SuiteOptions) -> ResolverTopology:
    """The same of systemd-resolved."""
    return resolvers.HostStub(mode, 1, options)


def failing(mode: str, options: SuiteOptions) -> ResolverTopology:
    """One that only the second of them knows."""
    return resolvers.FailingResolver(mode, 1, options)


@dataclass(slots=True)
class Asking:
    """A row: `command` of who asks, in the topologies that `make` makes. `base`: another one that each sample of ours
    is compared with, in pieces of the same second by turns: the ratio is the detail TO_ONE."""

    answering: Answering
    point: Point
    title: str
    modes: tuple[str, ...]
    make: Make
    command: Callable[[Asker, float], list[str]]
    parse: Callable[[str], Sample] = tools.questions
    unit: str = "µs"
    better: Better = "lower"
    base: Make | None = None
    programs: tuple[str, ...] = (QUESTIONS,)
    warm: bool = False
    lost: dict[str, str] = field(default_factory=dict)
    _askers: dict[str, Asker] = field(default_factory=dict)
    _base: Asker | None = None

    def __enter__(self) -> Experiment:
        for program in self.programs:
            if shutil.which(program) is None:
                raise MissingError(program)
        self.lost, ready = {}, []
        for mode in self.modes:
            try:
                if why := resolvers.missing(mode):
                    raise why
                self._askers[mode] = self.answering.of(mode, self._place(self.point), self.make)
                ready.append(mode)
            except DatapathError as error:
                if mode == stats.subject(self.modes):
                    raise
                self.lost[mode] = str(error)
        if self.base and EBPF in ready:
            self._base = self.answering.of(EBPF, NAMES, self.base)
        self.modes = tuple(ready)
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @staticmethod
    def _place(point: Point) -> str:
        return "-".join([point.path, *map(str, point.parameters.values())])

    def sample(self, mode: str) -> Sample:
        seconds = self.answering.options.seconds
        if mode != EBPF or self._base is None:
            return self._measured(self._askers[mode], seconds)
        pairs = [
            (
                self._measured(self._askers[mode], seconds / _PIECES),
                self._measured(self._base, seconds / _PIECES),
            )
            for _ in range(_PIECES)
        ]
        ratio = median(many.value / one.value for many, one in pairs)
        return Sample(median(many.value for many, _ in pairs), {**pairs[0][0].details, TO_ONE: ratio})

    def _measured(self, asker: Asker, seconds: float) -> Sample:
        found = self.parse(asker.place.run(self.command(asker, seconds), seconds + _PATIENCE))
        if found.details["lost"]:
            raise DatapathError(f"{self.point.label}: {found.details['lost']} questions were not answered")
        return found


def dns(answering: Answering, modes: tuple[str, ...]) -> Iterator[Experiment]:
    """Those with a bar first."""
    answer = tuple(mode for mode in modes if mode in (EBPF, DOCKER, *RESOLVERS))
    direct = tuple(mode for mode in modes if mode in (EBPF, NONE))
    one = known(1)

    def ask(asker: Asker, seconds: float) -> list[str]:
        return asker.ask(seconds)

    yield Asking(answering, Point("dns_rr", NAMES), "A container's name", answer, one, ask)
    yield Asking(
        answering,
        Point("dns_rr", NAMES, {"names": MANY}),
        f"Each of {MANY:,} names in turn",
        answer,
        known(MANY),
        ask,
        base=one,
    )
    yield Asking(
        answering,
        Point("dns_rr", HOST_RESOLVER),
        "A name that a resolver on the host's loopback knows, from a container and from the host itself",
        direct,
        foreign,
        ask,
    )
    for library, program in _LIBRARIES.items():
        yield Asking(
            answering,
            Point(f"getaddrinfo_{library}", FAILING),
            f"{library}'s getaddrinfo() where the first of two resolvers fails",
            direct,
            failing,
            _lookup(program),
            programs=(program,),
        )
    yield Asking(
        answering,
        Point("dns_rr", STUB),
        "A name that the host's systemd-resolved knows, from a container and from the host itself",
        direct,
        stub,
        ask,
        programs=(QUESTIONS, resolvers.RESOLVED),
    )
    yield Asking(
        answering,
        Point("dns_rate", NAMES),
        f"Questions for a container's name, {IN_FLIGHT} under way",
        answer,
        one,
        lambda asker, seconds: asker.ask(seconds, IN_FLIGHT),
        tools.question_rate,
        "answers/s",
        "higher",
    )
    for library, program in _LIBRARIES.items():
        yield Asking(
            answering,
            Point(f"getaddrinfo_{library}", NAMES),
            f"{library}'s getaddrinfo() of a container's name",
            answer,
            one,
            _lookup(program),
            programs=(program,),
        )


def _lookup(program: str) -> Callable[[Asker, float], list[str]]:
    return lambda asker, seconds: asker.lookup(program, seconds)


class Dns:
    """The suite. `own_pid_namespace`: it starts what would outlive a kill -9."""

    own_pid_namespace = True
    name = "dns"

    def __init__(self, modes: tuple[str, ...], options: SuiteOptions) -> None:
        self._answering = Answering(options)
        if not installed(options.dockerd):
            modes = tuple(mode for mode in modes if mode not in DOCKERS)
        self._experiments = list(dns(self._answering, modes))

    def __enter__(self) -> Dns:
        return self

    def __exit__(self, *exc: object) -> None:
        self._answering.close()

    def experiments(self) -> list[Experiment]:
        return list(self._experiments)
