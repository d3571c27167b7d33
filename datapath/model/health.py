# SPDX-License-Identifier: Apache-2.0
"""How the health of a service's backends is checked, in Docker's words: options, defaults and what is refused. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from datapath.errors import ConfigError, quoted

SECOND = 10**9  # in nanoseconds, which durations are in
_LEAST, _MOST = SECOND // 1000, 2**63 - 1  # of a duration: Docker's least, and what Docker's program can hold
_INTERVAL = _TIMEOUT = 30 * SECOND
_RETRIES = 3
_LONGEST = 4096  # characters of a command or path
DEFAULT_PORT = 80


class BackendState(StrEnum):
    """What a backend of a service is to clients: only one that is up gets new connections."""

    UP = "up"
    STARTING = "starting"  # no check of it has succeeded yet
    UNHEALTHY = "unhealthy"  # too many checks in a row have failed
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a backend that runs is not up: what its checks have said last when it became so."""

    state: BackendState
    reason: str = ""


class CheckKind(StrEnum):
    """What a check does, as the first word of Docker's `Test`; Docker itself has the first one alone."""

    CMD = "CMD-SHELL"  # a command in the container: its exit code has to be 0
    TCP = "TCP"  # a connection to a port: it has to be accepted
    HTTP = "HTTP"  # a request: the status of its answer has to be less than 400


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check. `test`: the command, the port, or :PORT/PATH. Durations are nanoseconds, 0 where Docker's default holds;
    so is `retries`."""

    kind: CheckKind
    test: str
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0

    @property
    def port(self) -> int:
        """The one that is connected to."""
        return int(self.test if self.kind == CheckKind.TCP else self.test[1:].partition("/")[0])

    @property
    def path(self) -> str:
        """What is asked for over HTTP, with the slash that it begins with."""
        return "/" + self.test.partition("/")[2]

    @property
    def every(self) -> float:
        """Seconds from the end of one check to the next one."""
        return (self.interval or _INTERVAL) / SECOND

    @property
    def patience(self) -> float:
        """Seconds that a check may take."""
        return (self.timeout or _TIMEOUT) / SECOND

    @property
    def tries(self) -> int:
        """Failures in a row that make a backend unhealthy."""
        return self.retries or _RETRIES

    @property
    def grace(self) -> float:
        """Seconds from a container's start in which failures do not count."""
        return self.start_period / SECOND


class HealthOptions(NamedTuple):
    """The options of `service create` and `update`, as typed; None: not given."""

    cmd: str | None = None
    tcp: str | None = None
    http: str | None = None
    interval: str | None = None
    timeout: str | None = None
    retries: str | None = None
    start_period: str | None = None
    none: bool = False

    @property
    def given(self) -> bool:
        """One of them is."""
        return self.none or any(text is not None for text in self[:7])


NOT_ASKED = HealthOptions()


def parse_health(options: HealthOptions, before: HealthCheck | None = None) -> HealthCheck | None:
    """The check that is asked for; what is not given stays as it was `before`. None: there is none. ConfigError."""
    if not options.given:
        return before
    if options.none:
        if any(text is not None for text in options[:7]):
            raise ConfigError("--no-healthcheck conflicts with --health-* options")
        return None
    tests = [
        (option, found)
        for option, text, parse in (
            ("--health-cmd", options.cmd, _command),
            ("--health-tcp", options.tcp, _tcp),
            ("--health-http", options.http, _http),
        )
        if text is not None
        for found in [parse(text)]
    ]
    if len(tests) > 1:
        raise ConfigError(f"conflicting options: {tests[0][0]} and {tests[1][0]}: a service has one check")
    if tests:
        base = replace(before, kind=tests[0][1].kind, test=tests[0][1].test) if before else tests[0][1]
    elif before:
        base = before
    else:
        raise ConfigError("there is nothing to check: use --health-cmd, --health-tcp or --health-http")
    return replace(
        base,
        interval=_given(options.interval, "--health-interval", "Interval", base.interval),
        timeout=_given(options.timeout, "--health-timeout", "Timeout", base.timeout),
        retries=base.retries if options.retries is None else _retries(options.retries),
        start_period=_given(options.start_period, "--health-start-period", "StartPeriod", base.start_period),
    )


def _given(text: str | None, option: str, field: str, before: int) -> int:
    if text is None:
        return before
    found = parse_duration(text, option)
    if 0 < found < _LEAST:
        raise ConfigError(f"{field} in Healthcheck cannot be less than 1ms")
    return found


def _command(text: str) -> HealthCheck:
    if not text.strip() or len(text) > _LONGEST or "\0" in text:
        raise ConfigError(
            f"invalid --health-cmd {quoted(text[:100])}: expected a command for the container's shell"
        )
    return HealthCheck(CheckKind.CMD, text)


def _tcp(text: str) -> HealthCheck:
    return HealthCheck(CheckKind.TCP, _port(text, text, "--health-tcp", "a port, 1 to 65535"))


def _http(text: str) -> HealthCheck:
    """[:PORT]/PATH"""
    wanted = "[:PORT]/PATH, as in /health or :8080/health"
    found = re.fullmatch(r"(?::([0-9]{1,5}))?(/[!-~]*)", text)
    if found is None or len(text) > _LONGEST:
        raise ConfigError(f"invalid --health-http {quoted(text[:100])}: expected {wanted}")
    port = _port(found[1] or str(DEFAULT_PORT), text, "--health-http", wanted)
    return HealthCheck(CheckKind.HTTP, f":{port}{found[2]}")


def _port(number: str, text: str, option: str, wanted: str) -> str:
    if not (re.fullmatch(r"[0-9]{1,5}", number) and 1 <= int(number) <= 65535):
        raise ConfigError(f"invalid {option} {quoted(text[:100])}: expected {wanted}")
    return str(int(number))


def _retries(text: str) -> int:
    if re.fullmatch(r"-[0-9]+", text):
        raise ConfigError("--health-retries cannot be negative")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"invalid --health-retries {quoted(text[:100])}: expected a number")
    return int(text)


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": SECOND, "m": 60 * SECOND}
_UNITS |= {"h": 3600 * SECOND}
_PART = re.compile(r"([0-9]{1,19})(?:\.([0-9]{0,18}))?(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str, option: str) -> int:
    """Nanoseconds of a duration as Docker takes it: 1m30s, 500ms, 1.5h, 0. ConfigError."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    if digits != "0" and not re.fullmatch(f"({_PART.pattern})+", digits):
        raise ConfigError(f"invalid {option} {quoted(text[:100])}: expected a duration such as 30s or 500ms")
    found: int = sum(
        int(whole) * _UNITS[unit] + int(part or "0") * _UNITS[unit] // 10 ** len(part)
        for whole, part, unit in _PART.findall(digits)
    )
    if sign and found:
        raise ConfigError(f"{option} cannot be negative")
    if found > _MOST:
        raise ConfigError(f"invalid {option} {quoted(text[:100])}: it is too long")
    return found
