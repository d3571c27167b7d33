# SPDX-License-Identifier: Apache-2.0
"""Containers as processes of this host: one client of the network engine among others.

containers = Containers(Host.open())
running = containers.run(RunRequest(("sleep", "3600"), name="web", publish=("8080:80",), detach=True))
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.config.settings import Settings
from datapath.engine.engine import Engine
from datapath.engine.transaction import Transaction, now
from datapath.errors import ConfigError, PrivilegeError, StateError
from datapath.model.containers import Container, RunRequest
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.ports import PortMapping
from datapath.model.rows import Phase, Status
from datapath.model.state import State, stack_of
from datapath.plan.containers import plan_exited, plan_remove
from datapath.plan.inspect import container_inspect
from datapath.plan.ports import carried, shown
from datapath.runtime.logs import LogRequest

if TYPE_CHECKING:
    from datapath.runtime.start import RunningContainer

_SHIM_PATIENCE = 5.0  # seconds that a shim gets to record an exit code
_ALL = LogRequest()


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A line of `port ls`: a mapping of a container, with its number there. Not `active`: no network of the container
    carries it, and it leads nowhere."""

    container: str
    number: int
    mapping: PortMapping
    active: bool = True


class Containers:
    """All about containers on one host. `engine`: its network engine, such as a `datapath.Host`.

    `exited_command` is what a container's shim runs when the container ends, with its id and exit code as further
    arguments; it has to call `exited`. Without one the next command notices.
    """

    def __init__(self, engine: Engine, exited_command: Sequence[str] = ()) -> None:
        self.engine = engine
        self.exited_command = tuple(exited_command)

    # ---- looking -----------------------------------------------------------------------------

    def ps(self, all: bool = False, state: State | None = None) -> list[Container]:
        """Newest first; with `all` also those that have ended. One whose process has gone unnoticed is shown as
        what it is; ports as Docker lists them. `state`: a snapshot that the caller has already."""
        from datapath.kernel import process
        from datapath.runtime import files

        found = []
        state = state or self.engine.snapshot()
        for container in state.containers.values():
            endpoints = state.endpoints_of_sandbox(container.sandbox_id)
            carried_ = [mapping for mapping in container.ports if carried(mapping, endpoints)]
            ports = [one for mapping in carried_ for one in shown(mapping, endpoints)]
            container = replace(container, ports=tuple(ports))
            if container.running and not process.alive(container.pid, container.pid_start):
                code = files.read_exit(self.engine.settings, container)
                container = replace(container, status=Status.EXITED, exit_code=code)
            if container.phase == Phase.READY and (all or container.running):
                found.append(container)
        return sorted(found, key=lambda container: container.created, reverse=True)

    def inspect(self, name: str) -> dict[str, Any]:
        """Docker's JSON of one container. NotFoundError."""
        state = self.engine.snapshot()
        return container_inspect(state.container(name), state)

    def logs(self, name: str, request: LogRequest = _ALL) -> Iterator[bytes]:
        """What the container has written, as far as it is asked for. NotFoundError."""
        from datapath.runtime import files, logs

        container = self.engine.snapshot().container(name)
        path = files.log_path(self.engine.settings, container)
        return logs.read(path, request, lambda: self._alive(container.id))

    def _alive(self, container_id: str) -> bool:
        from datapath.kernel import process

        container = self.engine.snapshot().containers.get(container_id)
        return bool(container and container.running and process.alive(container.pid, container.pid_start))

    # ---- running -----------------------------------------------------------------------------

    def run(self, request: RunRequest) -> RunningContainer:
        """Starts a container. What goes wrong before its process runs leaves nothing behind. ConfigError,
        NotFoundError, ExistsError, KernelError."""
        from datapath.runtime import start

        if request.rootfs and not Path(request.rootfs).is_dir():
            raise ConfigError(f"rootfs {request.rootfs} is not a directory")
        with self.engine.changing() as tx:
            return start.run(tx, request, self.exited_command)

    def start(self, name: str) -> Container:
        """Starts a container again that has ended, in the background, with its addresses if they are free; one that
        runs is fine. What goes wrong leaves it as it was. NotFoundError, ConfigError, ExistsError, KernelError."""
        from datapath.runtime import start

        self.engine.snapshot().container(name)  # so that no store is made for one that is not there
        with self.engine.changing() as tx:
            return start.start(tx, name, self.exited_command)

    def rename(self, name: str, wanted: str) -> Container:
        """Gives a container another name. NotFoundError, ConfigError, ExistsError."""
        from datapath.runtime import membership

        self.engine.snapshot().container(name)
        with self.engine.changing() as tx:
            return membership.rename(tx, name, wanted)

    def exec(
        self,
        name: str,
        argv: Sequence[str],
        env: Sequence[str] = (),
        tty: bool = False,
        interactive: bool = False,
        workdir: str = "",
        user: str = "",
    ) -> int:
        """Runs a command in a running container, in the foreground; its exit code. `workdir` and `user`: "" for the
        container's own. NotFoundError, ConfigError."""
        from datapath.plan import run_options
        from datapath.runtime import exec as runner
        from datapath.runtime import start

        user, workdir = run_options.user(user), run_options.workdir(workdir)

        container = self.engine.snapshot().container(name)
        if not self._alive(container.id):
            raise ConfigError(f"container {container.name} is not running")
        return runner.exec_in(
            container.pid,
            container.pid_start,
            argv,
            start.environment(container, user) | dict(pair.split("=", 1) for pair in env),
            tty=tty,
            interactive=interactive,
            workdir=workdir or container.workdir or "/",
            user=user or container.user,
        )

    # ---- the end -----------------------------------------------------------------------------

    def stop(self, name: str, timeout: float = 10, signal_name: str = "") -> Container:
        """Asks the process to end, by that signal ("": the container's), and after `timeout` seconds ends it. One that
        has ended is fine. NotFoundError, ConfigError."""
        from datapath.plan import run_options

        asked = run_options.stop_signal(signal_name) if signal_name else ""
        container = self.engine.snapshot().container(name)
        self.engine.refuse_read_only()
        while True:
            if container.running:
                self._terminate(container, timeout, signal.Signals[asked or container.stop_signal])
            with self.engine.changing(freeing=True) as tx:
                container = tx.state.containers.get(container.id, container)
                if not _started(tx, container):
                    return container

    def _terminate(self, container: Container, timeout: float, number: int) -> None:
        """Returns when the process is gone and its shim, if it lives, has recorded how it ended."""
        from datapath.kernel import process

        process.terminate(container.pid, container.pid_start, timeout, number)
        _wait_for_shims(self.engine.settings, [container])

    def remove(self, name: str, force: bool = False) -> Container:
        """Forgets a container; with `force` also one that runs: it is killed. NotFoundError, InUseError."""
        from datapath.runtime import recovery

        container = self.engine.snapshot().container(name)
        self.engine.refuse_read_only()
        while True:
            if force and container.running:
                self._terminate(container, 0, signal.SIGKILL)
            with self.engine.changing(freeing=True) as tx:
                container = tx.state.containers.get(container.id, container)
                if container.id not in tx.state.containers and container.auto_remove:
                    return container
                if force and _started(tx, container):
                    continue
                planned = plan_remove(container.id, tx.state, force)
                recovery.release(tx, planned)
                return planned.container

    def exited(self, container_id: str, exit_code: int) -> None:
        """Called by a container's shim when its process has ended. Only the first report of it is recorded, and none
        that comes when the container has been started again."""
        from datapath.kernel import process
        from datapath.runtime import groups, recovery

        groups.remove(
            self.engine.settings, container_id
        )  # of one whose shim does not, as of an earlier version
        if not self.engine.exists:
            return  # everything has been taken away in the meantime
        try:
            with self.engine.changing(create=False, freeing=True) as tx:
                container = tx.state.containers.get(container_id)
                if container is None or not container.running:
                    return
                if not process.alive(container.pid, container.pid_start):
                    recovery.release(tx, plan_exited(container_id, exit_code, tx.state, now()))
        except (StateError, PrivilegeError):  # or it is taken away at this moment
            if self.engine.exists:
                raise

    # ---- networks and ports ------------------------------------------------------------------

    def connect(self, name: str, request: EndpointRequest) -> Endpoint:
        """Connects a running container to a network. NotFoundError, ConfigError, ExistsError."""
        from datapath.runtime import membership

        with self.engine.changing() as tx:
            return membership.connect(tx, name, request)

    def disconnect(self, network: str, name: str, force: bool = False) -> None:
        """Disconnects a container from a network; `force`: also if it has ended while others share its stack.
        NotFoundError, ConfigError."""
        from datapath.runtime import membership

        with self.engine.changing(freeing=True) as tx:
            membership.disconnect(tx, network, name, force)

    def ports(self, name: str | None = None) -> list[PublishedPort]:
        """Those of a container, or of all that run, and of other owners' sandboxes; one that is published for both
        families is there twice. NotFoundError."""
        state = self.engine.shown()
        containers: list[Container] = []
        others = [sandbox for sandbox in state.sandboxes.values() if sandbox.foreign and sandbox.key]
        if name is None:
            containers = self.ps(state=state)
        elif (stack := stack_of(state, name)) in state.sandboxes and state.sandboxes[stack].foreign:
            others = [state.sandboxes[stack]]
        else:
            containers, others = [state.container(name)], []
        rows = [(one.name, one.sandbox_id, state.containers[one.id].ports) for one in containers]
        for sandbox in others:
            theirs = (mapping for e in state.endpoints_of_sandbox(sandbox.id) for mapping in e.ports)
            rows.append((sandbox.label, sandbox.id, tuple(dict.fromkeys(theirs))))
        return [
            PublishedPort(label, number, one, carried(mapping, endpoints))
            for label, sandbox_id, ports in rows
            for endpoints in [state.endpoints_of_sandbox(sandbox_id)]
            for number, mapping in enumerate(ports, start=1)
            for one in shown(mapping, endpoints)
        ]

    def port_add(self, name: str, spec: str) -> PortMapping:
        """Publishes ports of a running container: Docker's -p, with allow= and deny=; what became of it.
        NotFoundError, ConfigError, ExistsError."""
        from datapath.runtime import membership

        with self.engine.changing() as tx:
            return membership.port_add(tx, name, spec)

    def port_remove(self, name: str, what: str) -> PortMapping:
        """Takes published ports back, by their number in `ports` or by their spec. NotFoundError, ConfigError."""
        from datapath.runtime import membership

        with self.engine.changing(freeing=True) as tx:
            return membership.port_remove(tx, name, what)

    def port_set(self, name: str, what: str, acl: str) -> PortMapping:
        """Changes who may connect to a published port: `allow=PREFIX,deny=PREFIX,…`, "" for everybody. Clients that
        may not connect any more lose their connections. NotFoundError, ConfigError."""
        from datapath.runtime import membership

        with self.engine.changing() as tx:
            return membership.port_set(tx, name, what, acl)

    # ---- the installation --------------------------------------------------------------------

    def down(self, force: bool = False) -> None:
        """Takes everything away: containers, networks, programs, pins, and the state. InUseError: other owners have
        networks or sandboxes here, and not `force`. ExceptionGroup: not everything could be taken away."""
        from datapath.engine import endpoints
        from datapath.kernel import process
        from datapath.runtime import groups

        self.engine.refuse_foreign(force)
        self.engine.refuse_read_only()
        failures: list[Exception] = []
        settings = self.engine.settings
        with self.engine.changing(leaving=True, freeing=True) as tx:
            running = [container for container in tx.state.containers.values() if container.running]
            shims = {container.shim_pid: process.start_time(container.shim_pid) for container in running}
            process.kill_all(((container.pid, container.pid_start) for container in running), failures)
            _wait_for_shims(settings, running)
            gone = [
                replace(one, phase=Phase.REMOVING, status=Status.EXITED if one.running else one.status)
                for one in tx.state.containers.values()
            ]
            tx.commit(*gone, *endpoints.going(tx.state))
            for parent in (settings.run_dir, settings.state_dir):  # logs of what is not known as well
                with suppress(OSError):
                    shutil.rmtree(parent / "containers")
            tx.delete(*gone)
            self.engine.remove_all(tx, failures)
        # Each is about to tell of its container's end, and finds that nobody wants to know.
        deadline = time.monotonic() + _SHIM_PATIENCE
        while any(start is not None and process.start_time(pid) == start for pid, start in shims.items()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)
        groups.remove(settings, *(container.id for container in gone))
        with suppress(OSError):
            settings.page_token.unlink()
        with suppress(OSError):
            settings.run_dir.rmdir()


def _started(tx: Transaction, container: Container) -> bool:
    """It runs, which it did not yet when a command looked at it that was to end it."""
    return container.id in tx.state.containers and container.running


def _wait_for_shims(settings: Settings, containers: Sequence[Container]) -> None:
    """Returns when the shims of containers that have ended, as far as they live, have recorded how."""
    from datapath.kernel import process
    from datapath.runtime import files

    deadline = time.monotonic() + _SHIM_PATIENCE
    for container in containers:
        while files.read_exit(settings, container) is None:
            if process.start_time(container.shim_pid) is None or time.monotonic() > deadline:
                break
            time.sleep(0.002)
