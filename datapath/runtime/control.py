# SPDX-License-Identifier: Apache-2.0
"""The library's front: one method a command. Prints nothing, exits never; raises the errors of `errors`.

Readers look at a snapshot and take no lock. Writers go through a Session: plan, record the intent, act, record
the result; on failure what was done is taken back.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath import __version__
from datapath.config.settings import Settings
from datapath.engine.session import Session, container_folder, now
from datapath.errors import ConfigError, DatapathError, PrivilegeError, StateError, quoted
from datapath.model.connections import Connection, ConnectionFilter, ConnectionStats
from datapath.model.containers import Container, RunRequest
from datapath.model.endpoints import Endpoint, EndpointRequest
from datapath.model.networks import NETKIT, Network, NetworkRequest
from datapath.model.parsing import Address
from datapath.model.ports import PortMapping
from datapath.model.rows import CHANGING, READY, Status
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State
from datapath.plan import inspect
from datapath.plan.containers import plan_exited, plan_remove, plan_run
from datapath.plan.endpoints import plan_connect, plan_disconnect
from datapath.plan.networks import plan_network_create, plan_network_prune, plan_network_remove
from datapath.plan.ports import PortContext, PortPlan, plan_port_add, plan_port_remove, plan_port_set, shown
from datapath.runtime import etc
from datapath.store.sqlite import Store

if TYPE_CHECKING:
    from datapath.dataplane.programs import Dataplane
    from datapath.model.findings import Finding
    from datapath.runtime.spawn import Held
    from datapath.telemetry.drops import DropsOfHost
    from datapath.telemetry.latency import LatencyTrace

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHIM_PATIENCE = 5.0  # seconds that a shim gets to record an exit code
_FOLLOW_INTERVAL = 0.1  # seconds
_CONNECTION_DROPS = (
    *("DROP_NAT_PORTS", "DROP_CONN_TABLE", "DROP_STALE", "DROP_NO_CONN"),
    *("DROP_DENIED", "DROP_FLOOD", "DROP_LIMIT"),
)


@dataclass(frozen=True, slots=True)
class Stats:
    """`counters`: reason -> (packets, bytes) since the programs were loaded; `fill`: map -> (entries, most)."""

    counters: dict[str, tuple[int, int]]
    fill: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A line of `port ls`: a mapping of a container, with its number there."""

    container: str
    number: int
    mapping: PortMapping


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """A container that `run` has started. `wait` is for the foreground: its exit code."""

    container: Container
    held: Held

    def wait(self) -> int:
        code = self.held.wait()
        return 255 if code is None else code


def _rewrite(path: Path, text: str) -> None:
    """Not if it says so already: emptying a file and filling it again makes some file systems write it out."""
    try:
        if path.read_bytes() == text.encode():
            return
    except OSError:
        pass  # there is none yet
    path.write_bytes(text.encode())


def _say_nothing(message: str) -> None:
    pass


class Control:
    """All commands on one host. `warn` gets lines that the user should see and that are no errors.

    `exited_command` is what a container's shim runs when the container ends, with its id and exit code as further
    arguments; it has to call `exited`. Without one the next command notices.
    """

    def __init__(
        self,
        settings: Settings,
        warn: Callable[[str], None] = _say_nothing,
        exited_command: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.warn = warn
        self.exited_command = tuple(exited_command)
        self._commands = 0
        self._kept: Store | None = None

    @contextmanager
    def _session(
        self, create: bool = True, upgrading: bool = False, leaving: bool = False
    ) -> Iterator[Session]:
        opened = self._opened(create)
        with Session(self.settings, self.warn, opened, upgrading=upgrading, leaving=leaving) as session:
            yield session

    @contextmanager
    def _opened(self, create: bool) -> Iterator[Store]:
        """The store, for one command; kept for the next one by whoever gives many."""
        kept, self._kept = self._kept, None  # another thread opens its own
        if kept is not None and not kept.current:
            kept.close()
            kept = None
        with ExitStack() as stack:
            store = stack.enter_context(kept or Store(self.settings.state_dir, create=create))
            yield store
            self._commands += 1
            # A command line gives one, and leaves the file whole. One that has failed is not trusted.
            if self._commands > 1 and self._kept is None and store.current:
                self._kept = store
                stack.pop_all()

    def _snapshot(self) -> State:
        with Store(self.settings.state_dir, reading=True) as store:
            return store.load()

    # ---- networks ------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        return sorted(self._snapshot().networks.values(), key=lambda network: network.name)

    def network_inspect(self, name: str) -> dict[str, Any]:
        state = self._snapshot()
        return inspect.network_inspect(state.network(name), state)

    def network_create(self, request: NetworkRequest) -> Network:
        from datapath.drivers import pairs

        with self._session() as session:
            planned = plan_network_create(
                request, session.state, session.facts, session.config, session.fresh
            )
            if planned.pair == NETKIT:
                pairs.require_netkit()
            return session.realise(planned)

    def network_remove(self, name: str) -> Network:
        with self._session() as session:
            network = plan_network_remove(name, session.state)
            session.put(network)
            session.withdraw(network)
            return network

    def network_prune(self, filters: Sequence[str] = ()) -> list[Network]:
        with self._session() as session:
            gone = plan_network_prune(session.state, filters, now())
            session.put(*gone)
            for network in gone:
                session.withdraw(network)
            return list(gone)

    def network_connect(self, container: str, request: EndpointRequest) -> Endpoint:
        with self._session() as session, ExitStack() as undo:
            # One for the endpoint's number and the row that has it.
            with session.store.transaction(durable=False):
                planned = plan_connect(
                    container, request, session.state, session.facts, session.config, session.fresh
                )
                key = self._key(session, planned.container)
                before = {e.id: session.state.endpoints[e.id] for e in planned.changed}
                rows = (planned.endpoint, *(replace(e, phase=CHANGING) for e in before.values()))
                if planned.network.realised:
                    session.put(*rows)
            for line in planned.warnings:
                self.warn(line)
            if not planned.network.realised:
                session.realise(planned.network)
                session.put(*rows)
            if before:
                undo.callback(session.settle, planned.container.sandbox_id)
            undo.callback(session.remove_endpoint, planned.endpoint)
            endpoint = session.join(planned.endpoint, key)
            self._rewire(session, key, before, planned.changed)
            endpoint = replace(endpoint, phase=READY)
            session.put(endpoint, planned.container, *planned.changed)
            undo.pop_all()
            self._write_etc(session, planned.container)
            return endpoint

    def network_disconnect(self, network: str, container: str, force: bool = False) -> None:
        with self._session() as session:
            planned = plan_disconnect(network, container, session.state, force)
            before = {e.id: session.state.endpoints[e.id] for e in planned.changed}
            session.intend(
                planned.endpoint,
                planned.container,
                *(replace(e, phase=CHANGING) for e in before.values()),
            )
            session.remove_endpoint(planned.endpoint)
            key = session.sandbox_key(planned.endpoint.sandbox_id)
            if key is not None:
                self._rewire(session, key, before, planned.changed)
                session.put(*planned.changed)
                self._write_etc(session, planned.container)

    def _rewire(
        self, session: Session, key: str, before: dict[str, Endpoint], changed: tuple[Endpoint, ...]
    ) -> None:
        """Endpoints of a sandbox whose default routes or ports move. Their rows stay "changing"."""
        for endpoint in changed:
            session.revoke(before[endpoint.id], before[endpoint.id].ports)
        session.intend(*(replace(endpoint, phase=CHANGING) for endpoint in changed))
        for endpoint in sorted(changed, key=lambda e: e.gateway):
            network = session.state.networks[endpoint.network_id]
            session.driver(network).set_routes(network, endpoint, key)
            session.publish(endpoint, endpoint.ports)

    def _key(self, session: Session, container: Container) -> str:
        key = session.sandbox_key(container.sandbox_id)
        if key is None:
            raise ConfigError(f"container {container.name} is not running")
        return key

    # ---- containers: looking ----------------------------------------------------------------

    def containers(self, all: bool = False) -> list[Container]:
        """Newest first. One whose process has gone unnoticed is shown as what it is; ports as Docker lists them."""
        from datapath.kernel import process

        found = []
        state = self._snapshot()
        for container in state.containers.values():
            endpoints = state.endpoints_of_sandbox(container.sandbox_id)
            ports = [one for mapping in container.ports for one in shown(mapping, endpoints)]
            container = replace(container, ports=tuple(ports))
            if container.running and not process.alive(container.pid, container.pid_start):
                container = replace(container, status=Status.EXITED, exit_code=self._exit_code(container))
            if container.phase == READY and (all or container.running):
                found.append(container)
        return sorted(found, key=lambda container: container.created, reverse=True)

    def container_inspect(self, name: str) -> dict[str, Any]:
        state = self._snapshot()
        return inspect.container_inspect(state.container(name), state)

    def _exit_code(self, container: Container) -> int | None:
        from datapath.runtime import spawn

        return spawn.read_exit(str(container_folder(self.settings, container) / "exit"))

    def logs(self, name: str, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What the container has written; `tail` lines from the end; with `follow` until it ends."""
        container = self._snapshot().container(name)
        path = container_folder(self.settings, container) / "log"
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            text = file.read()
            yield text if tail is None else b"".join(text.splitlines(keepends=True)[-tail:] if tail else [])
            while follow:
                ended = not self._alive(container.id)
                if text := file.read():
                    yield text
                if ended:
                    return
                time.sleep(_FOLLOW_INTERVAL)

    def _alive(self, container_id: str) -> bool:
        from datapath.kernel import process

        container = self._snapshot().containers.get(container_id)
        return bool(container and container.running and process.alive(container.pid, container.pid_start))

    # ---- containers: run ---------------------------------------------------------------------

    def run(self, request: RunRequest) -> RunningContainer:
        """Starts a container. What goes wrong before its process runs leaves nothing behind."""
        if request.rootfs and not Path(request.rootfs).is_dir():
            raise ConfigError(f"rootfs {request.rootfs} is not a directory")
        with self._session() as session, ExitStack() as undo:
            self._make_run_dir()
            planned = plan_run(
                request, session.state, session.facts, session.config, session.fresh, self._ports(session)
            )
            for line in planned.warnings:
                self.warn(line)
            for network in planned.networks:
                if not network.realised:
                    session.realise(network)
            container = replace(planned.container, log_path=str(session.folder(planned.container) / "log"))
            spawn: tuple[Sandbox, ...] = (planned.sandbox,) if planned.sandbox else ()
            session.put(container, *spawn, *planned.endpoints)
            undo.callback(session.take_back, container)
            self._write_etc(session, container)
            held = undo.enter_context(self._spawn(session, container, request))
            container = replace(container, pid=held.pid, pid_start=held.start, shim_pid=held.shim_pid)
            spawn = tuple(replace(box, key=box.key or held.netns) for box in spawn)
            session.put(container, *spawn)
            if container.network_mode == "none":
                session.context.links.loopback_up(held.netns)
            joined = [session.join(endpoint, held.netns) for endpoint in planned.endpoints]
            held.release()
            undo.callback(self._end_process, container)
            container = replace(container, status=Status.RUNNING, started=now(), phase=READY)
            session.put(
                container,
                *(replace(box, phase=READY) for box in spawn),
                *(replace(endpoint, phase=READY) for endpoint in joined),
            )
            undo.pop_all()
            return RunningContainer(container, held)

    @staticmethod
    def _end_process(container: Container) -> None:
        """Of one that runs already, and is not to be: nobody would know of it."""
        from datapath.runtime import spawn

        spawn.terminate(container.pid, container.pid_start, 0, signal.SIGKILL)

    def _make_run_dir(self) -> None:
        """Before anything is changed: the directory may be impossible."""
        try:
            self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            folder = quoted(str(self.settings.run_dir))
            raise ConfigError(f"run directory {folder} cannot be made: {error.strerror}") from error

    def _ports(self, session: Session) -> PortContext:
        from datapath.kernel import sockets, sysctl

        def in_use(proto: str, address: Address | None, port: int) -> str | None:
            return sockets.holder(proto, address, port) if sockets.in_use(proto, address, port) else None

        return PortContext(session.facts, in_use, sysctl.ephemeral_ports(), sockets.suspects)

    def _write_etc(self, session: Session, container: Container) -> None:
        """The container's hosts, resolv.conf and hostname. Rewritten in place: the files are bind-mounted."""
        folder = session.folder(container)
        folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        owner = session.state.containers.get(container.sandbox_id, container)
        endpoints = session.state.endpoints_of_sandbox(container.sandbox_id)
        network = session.state.networks[endpoints[0].network_id] if endpoints else None
        try:
            host = Path("/etc/resolv.conf").read_text()
        except OSError:
            host = ""
        texts = {
            "hosts": etc.hosts(owner, endpoints, session.state),
            "resolv.conf": etc.resolv_conf(owner, host, network),
            "hostname": f"{owner.hostname}\n",
        }
        for name, text in texts.items():
            _rewrite(folder / name, text)

    def _spawn(self, session: Session, container: Container, request: RunRequest) -> Held:
        from datapath.runtime import spawn

        folder = session.folder(container)
        host = container.network_mode == "host"
        if container.shares:
            netns = self._key(
                session, session.state.containers[container.network_mode.removeprefix("container:")]
            )
        else:
            netns = "host" if host else "new"
        bare_host = host and not container.extra_hosts
        return spawn.spawn(
            spawn.Spec(
                argv=container.argv,
                env=self._environment(container),
                netns=netns,
                hostname=container.hostname,
                domainname=container.domainname,
                hosts="" if bare_host else str(folder / "hosts"),
                resolv_conf="" if host and not container.dns else str(folder / "resolv.conf"),
                hostname_file=str(folder / "hostname") if container.hostname else "",
                rootfs=container.rootfs,
                log=container.log_path,
                exit_file=str(folder / "exit"),
                exited=self._exited_command(container),
                exited_env=self._exited_environment(),
                detach=request.detach,
                tty=request.tty,
                interactive=request.interactive,
            )
        )

    def _environment(self, container: Container) -> dict[str, str]:
        base = {"PATH": _PATH, "HOSTNAME": container.hostname or os.uname().nodename, "HOME": "/root"}
        if container.tty:
            base["TERM"] = "xterm"
        return base | dict(pair.split("=", 1) for pair in container.env)

    def _exited_command(self, container: Container) -> tuple[str, ...]:
        return (*self.exited_command, container.id) if self.exited_command else ()

    def _exited_environment(self) -> dict[str, str]:
        """What makes the command at the container's end see this installation."""
        environment = {
            "PATH": _PATH,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "DATAPATH_STATE_DIR": str(self.settings.state_dir),
            "DATAPATH_RUN_DIR": str(self.settings.run_dir),
            "DATAPATH_BPFFS": str(self.settings.bpffs),
            "DATAPATH_ATTACH": self.settings.attach,
        }
        if self.settings.config_required:
            environment["DATAPATH_CONFIG"] = str(self.settings.config_path)
        if self.settings.cgroup is not None:
            environment["DATAPATH_CGROUP"] = str(self.settings.cgroup)
        return environment

    def exec(
        self,
        name: str,
        argv: Sequence[str],
        env: Sequence[str] = (),
        tty: bool = False,
        interactive: bool = False,
        workdir: str = "",
    ) -> int:
        """Runs a command in a running container, in the foreground; its exit code."""
        from datapath.runtime import spawn

        container = self._snapshot().container(name)
        if not self._alive(container.id):
            raise ConfigError(f"container {container.name} is not running")
        environment = self._environment(container) | dict(pair.split("=", 1) for pair in env)
        return spawn.exec_in(
            container.pid,
            container.pid_start,
            argv,
            environment,
            tty=tty,
            interactive=interactive,
            workdir=workdir or "/",
        )

    # ---- containers: the end -----------------------------------------------------------------

    def stop(self, name: str, timeout: float = 10) -> Container:
        """Asks the process to end, and after `timeout` seconds ends it. One that has ended is fine."""
        container = self._snapshot().container(name)
        while True:
            if container.running:
                self._terminate(container, timeout, signal.Signals[container.stop_signal])
            with self._session() as session:
                container = session.state.containers.get(container.id, container)
                if not self._started(session, container):
                    return container

    @staticmethod
    def _started(session: Session, container: Container) -> bool:
        """It runs, which it did not yet when a command looked at it that was to end it."""
        return container.id in session.state.containers and container.running

    def _terminate(self, container: Container, timeout: float, number: int) -> None:
        """Returns when the process is gone and its shim, if it lives, has recorded how it ended."""
        from datapath.kernel import process
        from datapath.runtime import spawn

        spawn.terminate(container.pid, container.pid_start, timeout, number)
        deadline = time.monotonic() + _SHIM_PATIENCE
        while self._exit_code(container) is None and process.start_time(container.shim_pid) is not None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)

    def remove(self, name: str, force: bool = False) -> Container:
        container = self._snapshot().container(name)
        while True:
            if force and container.running:
                self._terminate(container, 0, signal.SIGKILL)
            with self._session() as session:
                container = session.state.containers.get(container.id, container)
                if container.id not in session.state.containers and container.auto_remove:
                    return container
                if force and self._started(session, container):
                    continue
                planned = plan_remove(container.id, session.state, force)
                session.release(planned)
                return planned.container

    def exited(self, container_id: str, exit_code: int) -> None:
        """A container's shim says that its process has ended. Whoever noticed first has recorded it."""
        if not Store.exists(self.settings.state_dir):
            return  # everything has been taken away in the meantime
        try:
            with self._session(create=False) as session:
                container = session.state.containers.get(container_id)
                if container is not None and container.running:
                    session.release(plan_exited(container_id, exit_code, session.state, now()))
        except (StateError, PrivilegeError):  # or it is taken away at this moment
            if Store.exists(self.settings.state_dir):
                raise

    # ---- ports -------------------------------------------------------------------------------

    def ports(self, name: str | None = None) -> list[PublishedPort]:
        """Those of a container, or of all that run; one that is published for both families is there twice."""
        state = self._snapshot()
        containers = self.containers() if name is None else [state.container(name)]
        return [
            PublishedPort(container.name, number, one)
            for container in containers
            for number, mapping in enumerate(state.containers[container.id].ports, start=1)
            for one in shown(mapping, state.endpoints_of_sandbox(container.sandbox_id))
        ]

    def port_add(self, name: str, spec: str) -> PortMapping:
        with self._session() as session, ExitStack() as undo:
            planned = plan_port_add(name, spec, session.state, self._ports(session))
            self._journal(session, undo, planned)
            for endpoint in planned.endpoints:
                session.publish(endpoint, tuple(m for m in planned.mappings if m in endpoint.ports))
            return self._settled(session, undo, planned)

    def port_remove(self, name: str, what: str) -> PortMapping:
        with self._session() as session, ExitStack() as undo:
            planned = plan_port_remove(name, what, session.state)
            before = [session.state.endpoints[endpoint.id] for endpoint in planned.endpoints]
            self._journal(session, undo, planned)
            for endpoint in before:
                session.revoke(endpoint, tuple(m for m in planned.mappings if m in endpoint.ports))
            session.refresh_xdp()
            return self._settled(session, undo, planned)

    def port_set(self, name: str, what: str, rules: str) -> PortMapping:
        """Changes who may connect to a published port: `allow=PREFIX,deny=PREFIX,…`, "" for everybody. Whoever
        may not any more loses the connections that there are."""
        with self._session() as session, ExitStack() as undo:
            planned = plan_port_set(name, what, rules, session.state)
            assert planned.before is not None
            self._journal(session, undo, planned)
            session.reshape(planned.before, planned.mappings[0], planned.endpoints)
            return self._settled(session, undo, planned)

    def _journal(self, session: Session, undo: ExitStack, planned: PortPlan) -> None:
        """Writes what ports are going to be; if that fails they become again what they were."""
        rows = [session.state.endpoints[endpoint.id] for endpoint in planned.endpoints]
        undo.callback(session.settle, planned.container.sandbox_id)
        undo.callback(session.put, session.state.containers[planned.container.id], *rows)
        session.intend(planned.container, *planned.endpoints)

    def _settled(self, session: Session, undo: ExitStack, planned: PortPlan) -> PortMapping:
        session.put(*(replace(endpoint, phase=READY) for endpoint in planned.endpoints))
        undo.pop_all()
        return planned.mappings[0]

    # ---- connections -------------------------------------------------------------------------

    def connections(self, wanted: ConnectionFilter, container: str = "") -> list[tuple[Connection, str]]:
        """The connections that are meant, each with the names of the containers that take part."""
        state = self._snapshot()
        wanted = self._of_container(wanted, container, state)
        names = self._endpoint_names(state)
        with self._dataplane() as found:
            from datapath.dataplane import connections

            rows = list(connections.find(found, wanted)) if found else []
        words = {
            numbers: ",".join(dict.fromkeys(names.get(number, "") for number in numbers))
            for numbers in {row.endpoints for row in rows}
        }
        return [(row, words[row.endpoints]) for row in rows]

    def connections_flush(self, wanted: ConnectionFilter, container: str = "") -> int:
        """Forgets the connections that are meant; how many."""
        wanted = self._of_container(wanted, container, self._snapshot())
        with self._dataplane() as found:
            from datapath.dataplane import connections

            return connections.forget(found, connections.matcher(wanted)) if found else 0

    def connection_stats(self) -> ConnectionStats:
        names = self._endpoint_names(self._snapshot())
        with self._dataplane() as found:
            from datapath.dataplane import connections

            if found is None:
                return ConnectionStats({}, {}, {}, {}, 0, 0)
            quotas: dict[str, tuple[int, int]] = {}
            for key, quota in found.quotas.read_all():
                if key.endpoint in names:
                    had = quotas.get(names[key.endpoint], (0, 0))
                    quotas[names[key.endpoint]] = (had[0] + quota.conns, had[1] + quota.openings)
            counters, config = found.counters_sum(), found.config[0]
            return ConnectionStats(
                states=connections.states(found),
                tables=found.fill(connections.TABLES),
                drops={name: counters[name] for name in _CONNECTION_DROPS},
                quotas=quotas,
                max_connections=config.max_conns,
                max_openings=config.max_openings,
            )

    @contextmanager
    def _dataplane(self) -> Iterator[Dataplane | None]:
        """The packet programs to look at; None: they were never loaded."""
        from datapath.dataplane import programs
        from datapath.kernel import features

        features.require()
        found = programs.Dataplane.find(self.settings.bpffs)
        with found or nullcontext():
            yield found

    def _of_container(self, wanted: ConnectionFilter, name: str, state: State) -> ConnectionFilter:
        if not name:
            return wanted
        endpoints = state.endpoints_of_sandbox(state.container(name).sandbox_id)
        return replace(wanted, endpoints=frozenset(endpoint.number for endpoint in endpoints))

    def _endpoint_names(self, state: State) -> dict[int, str]:
        """Endpoint number -> name of its container."""
        holders = ((endpoint.number, state.holder(endpoint)) for endpoint in state.endpoints.values())
        return {number: holder.name for number, holder in holders if holder}

    # ---- the installation ----------------------------------------------------------------------

    def stats(self) -> Stats:
        with self._dataplane() as found:
            return Stats(found.counters_sum(), found.fill()) if found else Stats({}, {})

    def trace_latency(self, names: Sequence[str] = ()) -> LatencyTrace:
        """Between the containers: all, one and the others, or those that are named. A context manager."""
        from datapath.kernel import features
        from datapath.telemetry import latency

        features.require()
        return latency.between_containers(self._snapshot(), names)

    def trace_drops(self) -> DropsOfHost:
        """What the kernel and the packet programs drop here. A context manager."""
        from datapath.kernel import features
        from datapath.telemetry import drops

        features.require()
        return drops.DropsOfHost(self._snapshot, lambda: self.stats().counters)

    def down(self) -> None:
        """Takes everything away: containers, networks, programs, pins, and the state."""
        from datapath.kernel import process

        failures: list[Exception] = []
        shims = {c.shim_pid: process.start_time(c.shim_pid) for c in self.containers()}
        for container in self.containers():
            self._attempt(failures, lambda c=container: self._terminate(c, 0, signal.SIGKILL))  # type: ignore[misc]
        with self._session(leaving=True) as session:
            for container in list(session.state.containers.values()):
                if container.running:  # since a moment ago
                    shims[container.shim_pid] = process.start_time(container.shim_pid)
                    self._attempt(failures, lambda c=container: self._terminate(c, 0, signal.SIGKILL))  # type: ignore[misc]
                planned = plan_remove(container.id, session.state, force=True)
                self._attempt(failures, lambda p=planned: session.release(p))  # type: ignore[misc]
            for network in list(session.state.networks.values()):
                self._attempt(failures, lambda n=network: session.withdraw(n))  # type: ignore[misc]
            self._attempt(failures, session.remove_dataplane)
            if failures:
                raise ExceptionGroup("not everything could be taken away", failures)
            session.reserve_ports()
            session.store.destroy()
        # Each becomes the command that tells of its container's end, and finds that nobody wants to know.
        deadline = time.monotonic() + _SHIM_PATIENCE
        while any(start is not None and process.start_time(pid) == start for pid, start in shims.items()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)
        for folder in (self.settings.run_dir / "containers", self.settings.run_dir):
            with suppress(OSError):
                folder.rmdir() if folder == self.settings.run_dir else shutil.rmtree(folder)

    @staticmethod
    def _attempt(failures: list[Exception], step: Callable[[], object]) -> None:
        try:
            step()
        except (DatapathError, ExceptionGroup) as error:
            failures.append(error)

    def upgrade(self) -> bool:
        """The packet programs of this version in place of those that are loaded; False: there was nothing to do."""
        from datapath.kernel import features

        features.require()
        if not Store.exists(self.settings.state_dir):
            return False
        with self._session(create=False, upgrading=True) as session:
            return session.upgrade()

    def doctor(self) -> list[Finding]:
        """What is not as promised. Takes no lock, changes nothing."""
        from datapath.engine import doctor
        from datapath.kernel import features

        features.require()
        tuning, unreadable = doctor.tuning(self.settings)
        return [*unreadable, *doctor.examine(self.settings, tuning)]

    def reconcile(self) -> tuple[list[Finding], list[Finding], list[Exception]]:
        """Mends what can be: (what was mended, what is left, what went wrong)."""
        from datapath.engine.reconcile import reconcile

        before = self.doctor()
        if not Store.exists(self.settings.state_dir):
            return [], before, []
        with self._session() as session:
            found, left, failures = reconcile(session)
        mended = [finding for finding in dict.fromkeys([*before, *found]) if finding not in left]
        return mended, left, failures if left else []

    def version(self) -> dict[str, Any]:
        return {"Version": __version__, "Kernel": os.uname().release, "Python": sys.version.split()[0]}
