# SPDX-License-Identifier: Apache-2.0
"""Containers: processes with a name and a network stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.model.endpoints import EndpointRequest, Link
from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, Status, short
from datapath.model.services import Membership


@dataclass(frozen=True, slots=True)
class Container:
    """A process with a name and a network stack.

    `network_mode`: bridge, host, none, container:<id> or a user-defined network's name. `addresses` are those that it
    had when it ended. `published` is as requested, `ports` what came of it (concrete; while the sandbox lives its
    gateway endpoint carries them). `pid_start`: field 22 of /proc/PID/stat, clock ticks. `services`: those that it was
    made a backend of by name.
    """

    id: str
    name: str
    created: str
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    network_mode: str = "bridge"
    networks: tuple[EndpointRequest, ...] = ()
    addresses: tuple[str, ...] = ()
    sandbox_id: str = ""
    pid: int = 0
    pid_start: int = 0
    shim_pid: int = 0
    status: Status = Status.CREATED
    exit_code: int | None = None
    error: str = ""
    started: str = ""
    finished: str = ""
    exposed: tuple[tuple[int, str], ...] = ()
    published: tuple[PortMapping, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    links: tuple[Link, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    rootfs: str = ""
    user: str = ""
    workdir: str = ""
    auto_remove: bool = False
    tty: bool = False
    open_stdin: bool = False
    stop_signal: str = "SIGTERM"
    log_path: str = ""
    log_opts: Mapping[str, str] = field(default_factory=dict)
    services: tuple[Membership, ...] = ()
    phase: Phase = Phase.CREATING

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def running(self) -> bool:
        return self.status == Status.RUNNING

    @property
    def shares(self) -> bool:
        """Uses the stack of another container."""
        return self.network_mode.startswith("container:")


@dataclass(frozen=True, slots=True)
class RunRequest:
    """run. No networks: the default one. A network may also be "host", "none" or "container:NAME"."""

    argv: tuple[str, ...]
    name: str = ""
    networks: tuple[EndpointRequest, ...] = ()
    publish: tuple[str, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    add_host: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    rootfs: str = ""
    user: str = ""
    workdir: str = ""
    auto_remove: bool = False
    detach: bool = False
    tty: bool = False
    interactive: bool = False
    stop_signal: str = ""
    log_opts: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
