# SPDX-License-Identifier: Apache-2.0
"""Services: one name and one address in front of several endpoints of a network, its backends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from datapath.errors import ConfigError, quoted
from datapath.model.health import NOT_ASKED, HealthCheck, HealthOptions, Verdict
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, short

MAX_WEIGHT = 100
MAX_SECONDS = 7 * 24 * 3600  # of affinity
MAX_NUMBER = 2**30 - 1  # of a service: numbers of its tables are made of it


class Mode(StrEnum):
    """What a service's name resolves to."""

    VIP = "vip"  # its own address, behind which the packet programs choose a backend
    DNSRR = "dnsrr"  # the addresses of its backends


class Algorithm(StrEnum):
    """How the backend of a new connection is chosen."""

    MAGLEV = "maglev"  # by the client's and the service's address and port: the same one on every host
    RANDOM = "random"
    LEAST_CONN = "least-conn"  # of two random ones that with fewer connections


@dataclass(frozen=True, slots=True)
class Service:
    """One service on one network. `number` is of the same count as endpoints' numbers, never used twice on a host.
    `vip4`, `vip6`: its addresses; None in mode dnsrr, or where the network has none of the family. `affinity`: seconds
    in which a client that comes again gets the same backend; 0: it is chosen anew. `dsr`: backends on another host than
    the one that a client outside asks answer by their own (direct server return). `published` as asked for, `ports`
    with the host ports decided. `selector`: labels that make a container with all of them a backend; empty: only those
    that name the service are. `health`: how backends are checked; None: they are not. `grace`: nanoseconds that a
    drained backend's connections may go on for; 0: as long as they like. `numbers`: of its backends, by the endpoint's
    id; of the same count as well. `drained`: ids of endpoints that get no new connections; `ends`: by them, when their
    connections are to be ended, in milliseconds of the machine's time since its start; 0: they have been. `verdicts`:
    by the endpoint's id, of those that do not pass their checks. On a network of several hosts each host has a row of
    it, in which `number`, `numbers`, `ports`, `ends`, `verdicts` and `phase` are its own."""

    id: str
    name: str
    network_id: str
    number: int
    created: str = ""
    vip4: Address | None = None
    vip6: Address | None = None
    mode: Mode = Mode.VIP
    algorithm: Algorithm = Algorithm.MAGLEV
    affinity: int = 0
    dsr: bool = False
    published: tuple[PortMapping, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    drained: tuple[str, ...] = ()
    health: HealthCheck | None = None
    grace: int = 0
    ends: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    phase: Phase = Phase.CREATING

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def vips(self) -> tuple[Address, ...]:
        """Its addresses, the IPv4 one first."""
        return tuple(vip for vip in (self.vip4, self.vip6) if vip is not None)

    @property
    def shared(self) -> Service:
        """What all hosts that know it have alike."""
        return replace(self, number=0, numbers={}, ports=(), verdicts={}, ends={}, phase=Phase.READY)

    def of_host(self, known: Service) -> Service:
        """The service with what this host has of it, as its row `known` says."""
        return replace(
            self,
            number=known.number,
            numbers=known.numbers,
            ports=known.ports,
            verdicts=known.verdicts,
            ends=known.ends,
            phase=known.phase,
        )

    def selects(self, labels: Mapping[str, str]) -> bool:
        """A container with these labels is a backend."""
        return bool(self.selector) and self.selector.items() <= labels.items()


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a container, or one endpoint of it, a backend of the service with that id. `weight`: its share of new
    connections, against those of the others."""

    service: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """service create, as typed."""

    name: str
    network: str
    publish: tuple[str, ...] = ()
    endpoint_mode: str = "vip"
    algorithm: str = "maglev"
    affinity: str = ""
    dsr: bool = False
    vips: tuple[str, ...] = ()
    selector: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    health: HealthOptions = NOT_ASKED
    stop_grace_period: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """service update, as typed. What is left out stays."""

    publish_add: tuple[str, ...] = ()
    publish_rm: tuple[str, ...] = ()
    label_add: tuple[str, ...] = ()
    label_rm: tuple[str, ...] = ()
    algorithm: str = ""
    affinity: str = ""
    dsr: bool | None = None
    health: HealthOptions = NOT_ASKED
    stop_grace_period: str | None = None


def parse_membership(text: str, option: str = "--service") -> tuple[str, int]:
    """NAME[,weight=N] of `run --service`, or of that option: the name or id, and the weight. ConfigError."""
    name, comma, rest = text.partition(",")
    if not name or not text.isprintable():
        raise ConfigError(f"invalid {option} {quoted(text)}: expected NAME[,weight=N]")
    if not comma:
        return name, 1
    key, _, value = rest.partition("=")
    if key != "weight":
        raise ConfigError(f"invalid field {quoted(rest)} of {option}: there is weight=N")
    if not (re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= MAX_WEIGHT):
        raise ConfigError(f"invalid weight {quoted(value)} of {option}: expected 1 to {MAX_WEIGHT}")
    return name, int(value)


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_PART = re.compile(r"([0-9]{1,7})([smh]?)")


def parse_seconds(text: str, what: str) -> int:
    """Seconds, as in 90, 90s, 3h or 1h30m. ConfigError."""
    if not re.fullmatch(r"[0-9]{1,7}|([0-9]{1,7}[smh])+", text):
        raise ConfigError(f"invalid {what} {quoted(text)}: expected seconds, or a duration such as 90s or 3h")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > MAX_SECONDS:
        raise ConfigError(f"invalid {what} {quoted(text)}: a week is the most")
    return seconds


def _word(enum: type[Mode] | type[Algorithm], text: str, what: str) -> str:
    if text not in list(enum):
        raise ConfigError(f"invalid {what} {quoted(text)}: there is {', '.join(enum)}")
    return text


def parse_mode(text: str) -> Mode:
    """The value of --endpoint-mode. ConfigError."""
    return Mode(_word(Mode, text, "endpoint mode"))


def parse_algorithm(text: str) -> Algorithm:
    """The value of --algorithm. ConfigError."""
    return Algorithm(_word(Algorithm, text, "algorithm"))
