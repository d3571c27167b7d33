# SPDX-License-Identifier: Apache-2.0
"""How a container is started: its process is created, its network made ready, then it runs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.config.logs import log_size
from datapath.config.settings import Settings
from datapath.engine import claims, endpoints, names, networks, policies, ports
from datapath.engine.transaction import Transaction, now
from datapath.errors import ConfigError
from datapath.kernel import netns, process, sysctl
from datapath.model.containers import Container, RunRequest
from datapath.model.rows import Phase, Row, Status
from datapath.model.sandboxes import Sandbox
from datapath.plan import run_options
from datapath.plan.containers import RunPlan, plan_run
from datapath.plan.start import plan_start, request_of
from datapath.runtime import files, groups, recovery, spawn

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """A container that `run` has started. `wait` is for the foreground: its exit code."""

    container: Container
    created: spawn.Created

    def wait(self) -> int:
        """Stays until the container has ended: its exit code, 128 + N after signal N, 255 if its shim was killed."""
        code = self.created.wait()
        return 255 if code is None else code


def run(tx: Transaction, request: RunRequest, command: Sequence[str]) -> RunningContainer:
    """Starts a container. What goes wrong before its process runs leaves nothing behind. `command`: see
    `Containers.exited_command`."""
    files.make_run_dir(tx.settings)
    endpoints.evict_dead(tx)
    claims.prepare(tx, request.networks)
    planned = plan_run(request, tx.state, tx.facts, tx.config, tx.fresh, ports.context(tx))
    for line in run_options.warnings(request):
        tx.warn(line)
    return _start(tx, planned, request, command)


def start(tx: Transaction, name: str, command: Sequence[str]) -> Container:
    """Starts a container again that has ended, in the background. What goes wrong leaves it as it was."""
    container = tx.state.container(name)
    if container.running:
        return container
    files.make_run_dir(tx.settings)
    endpoints.evict_dead(tx)
    claims.prepare(tx, request_of(container).networks, container.addresses)
    planned = plan_start(name, tx.state, tx.facts, tx.config, tx.fresh, ports.context(tx))
    files.forget_exit(tx.settings, container)
    return _start(tx, planned, request_of(container), command).container


def _start(
    tx: Transaction, planned: RunPlan, request: RunRequest, command: Sequence[str]
) -> RunningContainer:
    with ExitStack() as undo:
        for line in planned.warnings:
            tx.warn(line)
        for network in planned.networks:
            if not network.built:
                networks.build(tx, network)
        container = planned.container
        container = replace(container, log_path=str(files.log_path(tx.settings, container)))
        sandbox: tuple[Sandbox, ...] = (planned.sandbox,) if planned.sandbox else ()
        tx.commit(container, *sandbox, *planned.endpoints)
        undo.callback(recovery.roll_back, tx, container)
        claimed = claims.claim(tx, *planned.endpoints)
        files.make(tx.settings, container)
        files.write_etc(tx, container)
        created = undo.enter_context(spawn.spawn(_spec(tx, container, request, command)))
        container = replace(container, pid=created.pid, pid_start=created.start, shim_pid=created.shim_pid)
        sandbox = tuple(replace(box, key=box.key or created.netns) for box in sandbox)
        tx.commit(container, *sandbox)
        if container.network_mode == "none":
            tx.context.links.loopback_up(created.netns)
        with netns.enter(created.netns if container.sysctls else None):
            for name, value in container.sysctls.items():
                sysctl.write(name.replace(".", "/"), value)
        joined = [endpoints.attach(tx, endpoint, created.netns) for endpoint in claimed]
        if any(endpoint.joined for endpoint in joined):
            joined = endpoints.settled(tx, joined, container.ports, created.netns)
            files.write_etc(tx, container)  # addresses may be the plugin's
        container = replace(
            container,
            status=Status.RUNNING,
            started=now(),
            finished="",
            exit_code=None,
            phase=Phase.READY,
        )
        rows: tuple[Row, ...] = (
            container,
            *(replace(box, phase=Phase.READY) for box in sandbox),
            *(replace(endpoint, phase=Phase.READY) for endpoint in joined),
        )
        if joined:
            policies.admit(tx, tx.state.including(*rows), container.sandbox_id)
            names.update(tx, tx.state.including(*rows), container.sandbox_id)
        _release(created, request, container)
        undo.callback(_end_process, container)
        tx.commit(*rows)
        undo.pop_all()
        return RunningContainer(container, created)


def _release(created: spawn.Created, request: RunRequest, container: Container) -> None:
    """Let it become the user's program. ExecError says what a user of images may have expected."""
    try:
        created.release()
    except spawn.ExecError as error:
        if error.errno != errno.ENOENT:
            raise
        found = shutil.which(container.argv[0], os.F_OK, environment(container)["PATH"]) is not None
        why = run_options.missing_program(request, found)
        raise spawn.ExecError(error.command, error.errno, why) from None


def _end_process(container: Container) -> None:
    """Of one that runs already, and is not to be: nobody would know of it."""
    process.terminate(container.pid, container.pid_start, 0, signal.SIGKILL)


def exited_command(command: Sequence[str], container: Container) -> tuple[str, ...]:
    """What the container's shim runs at its end, but for the exit code; (): nothing."""
    return (*command, container.id) if command else ()


def _warn_of_missing_files(tx: Transaction, container: Container) -> None:
    """What was asked for is in files that have to be mounted over the host's own, which need not be there."""
    asked = {
        "/etc/resolv.conf": container.dns or container.dns_search or container.dns_options,
        "/etc/hosts": container.extra_hosts or container.links,
    }
    for place, wanted in asked.items():
        if wanted and not container.rootfs and not Path(place).exists():
            tx.warn(
                f"this host has no {place} that the container's could be mounted over: it has none either"
            )


def _spec(tx: Transaction, container: Container, request: RunRequest, command: Sequence[str]) -> spawn.Spec:
    folder = files.folder(tx.settings, container)
    _warn_of_missing_files(tx, container)
    host = container.network_mode == "host"
    if container.shares:
        other = tx.state.containers[container.network_mode.removeprefix("container:")]
        namespace = running_path(tx, other)
    else:
        namespace = "host" if host else "new"
    bare_host = host and not container.extra_hosts
    return spawn.Spec(
        argv=container.argv,
        env=environment(container),
        workdir=container.workdir or "/",
        user=container.user,
        netns=namespace,
        hostname=container.hostname,
        domainname=container.domainname,
        hosts="" if bare_host else str(folder / "hosts"),
        resolv_conf="" if host and not container.dns else str(folder / "resolv.conf"),
        hostname_file=str(folder / "hostname") if container.hostname else "",
        rootfs=container.rootfs,
        log=container.log_path,
        log_size=log_size(container.log_opts),
        log_files=int(container.log_opts.get("max-file", "1")),
        exit_file=str(folder / "exit"),
        exited=exited_command(command, container),
        exited_env=_exited_environment(tx.settings),
        cgroup=str(groups.of(tx.settings, container.id)) if request.detach else "",
        detach=request.detach,
        tty=request.tty,
        interactive=request.interactive,
    )


def running_path(tx: Transaction, container: Container) -> str:
    """The path of a running container's network namespace. ConfigError: it does not run."""
    path = tx.path(container.sandbox_id)
    if path is None:
        raise ConfigError(f"container {container.name} is not running")
    return path


def environment(container: Container, user: str = "") -> dict[str, str]:
    """The variables that a container's processes get. `user`: whose process it is; "": the container's own."""
    base = {"PATH": _PATH, "HOSTNAME": container.hostname or os.uname().nodename}
    if not (user or container.user):  # whose home is in the container's /etc/passwd
        base["HOME"] = "/root"
    if container.tty:
        base["TERM"] = "xterm"
    return base | dict(pair.split("=", 1) for pair in container.env)


def _exited_environment(settings: Settings) -> dict[str, str]:
    """What makes the command at the container's end see this installation."""
    variables = {
        "PATH": _PATH,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "DATAPATH_STATE_DIR": str(settings.state_dir),
        "DATAPATH_RUN_DIR": str(settings.run_dir),
        "DATAPATH_BPFFS": str(settings.bpffs),
        "DATAPATH_ATTACH": settings.attach,
    }
    if settings.config_required:
        variables["DATAPATH_CONFIG"] = str(settings.config_path)
    if settings.cgroup is not None:
        variables["DATAPATH_CGROUP"] = str(settings.cgroup)
    return settings.environment() | variables
