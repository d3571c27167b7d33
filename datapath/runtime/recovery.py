# SPDX-License-Identifier: Apache-2.0
"""Containers as an owner of sandboxes: what earlier commands left unfinished, what has ended, what `doctor` says."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from datapath.config.settings import Settings
from datapath.engine import endpoints, names
from datapath.engine.transaction import Owner, Transaction, now
from datapath.errors import DatapathError
from datapath.kernel import process
from datapath.model.checks import ENDED, FILES, LEFTOVER, STRAY_FILES
from datapath.model.containers import Container
from datapath.model.findings import Check, Finding
from datapath.model.rows import OWNER, Phase, Status, short
from datapath.model.state import State
from datapath.plan.containers import ExitPlan, plan_exited
from datapath.runtime import files, groups


class ContainerOwner(Owner):
    """Our own runtime."""

    name = OWNER

    def recover(self, tx: Transaction) -> None:
        for container in list(tx.state.containers.values()):
            if container.phase == Phase.CREATING:
                if container.pid and process.alive(container.pid, container.pid_start):
                    process.terminate(container.pid, container.pid_start, 0, signal.SIGKILL)
                tx.warn(f"container {container.name} was not completely created: taken back")
                roll_back(tx, container)
            elif container.running and not process.alive(container.pid, container.pid_start):
                record_exit(tx, container)
        for container in [c for c in tx.state.containers.values() if c.phase != Phase.READY]:
            tx.warn(f"container {container.name} was being removed: done")
            try:
                files.remove(tx.settings, container.id)
            except DatapathError as error:  # or no command would ever work again
                tx.warn(str(error))
            # What its endpoints are called nobody knows without its row; they go later.
            names.update(tx, tx.state.without(container), container.sandbox_id)
            tx.delete(container)

    def check(self, settings: Settings, state: State, alive: frozenset[str]) -> Iterator[Finding]:
        folders = files.folders(settings)
        for container in state.containers.values():
            if container.phase == Phase.READY and container.running and container.id not in alive:
                detail = "it is recorded as running, its process is gone"
                yield Finding(ENDED, f"container {container.name}", detail)
        for name in sorted((folders | files.log_folders(settings)) - state.containers.keys()):
            detail = "it is of a container that is forgotten"
            yield Finding(STRAY_FILES, f"folder {short(name)}", detail, (name,))
        for container in state.containers.values():
            if container.phase == Phase.READY and container.id in alive and container.id not in folders:
                yield Finding(FILES, f"container {container.name}", "its folder is gone", (container.id,))

    def leftovers(self, settings: Settings) -> Iterator[Finding]:
        for name in sorted(files.folders(settings) | files.log_folders(settings)):
            detail = "its files are there, the store is gone"
            yield Finding(LEFTOVER, f"container {short(name)}", detail)

    def repairs(self) -> Mapping[Check, Callable[[Transaction, Finding], None]]:
        return {STRAY_FILES: _delete_files, FILES: _make_folder}


def _delete_files(tx: Transaction, finding: Finding) -> None:
    files.remove(tx.settings, finding.about[0])


def _make_folder(tx: Transaction, finding: Finding) -> None:
    files.make(tx.settings, tx.state.containers[finding.about[0]])


def release(tx: Transaction, plan: ExitPlan) -> None:
    """Records a container's end and removes what nobody uses any more. Goes through all, then reports."""
    if not plan.endpoints:  # others use its stack still; its names go with it
        names.update(tx, tx.state.including(plan.container), plan.container.sandbox_id)
    tx.commit(plan.container, *plan.endpoints, *([plan.sandbox] if plan.sandbox else []))
    groups.remove(tx.settings, plan.container.id)
    endpoints.remove_all(tx, plan.endpoints, f"container {plan.container.name}")
    if plan.sandbox:
        tx.delete(plan.sandbox)
    if plan.container.phase == Phase.REMOVING:
        files.remove(tx.settings, plan.container.id)
        tx.delete(plan.container)


def record_exit(tx: Transaction, container: Container) -> None:
    """A running container's process is gone: records it, with the exit code that its shim has recorded."""
    code = files.read_exit(tx.settings, container)
    error = "" if code is not None else "its exit code is unknown: its shim was killed"
    release(tx, plan_exited(container.id, code, tx.state, now(), error))


def roll_back(tx: Transaction, container: Container) -> None:
    """A container that is not to be: its endpoints, its files and its row go. One that has run before is again what it
    was when it had ended."""
    row = tx.state.containers[container.id]
    after = replace(row, phase=Phase.REMOVING)
    if row.finished:
        after = replace(row, phase=Phase.READY, status=Status.EXITED, pid=0, pid_start=0, shim_pid=0)
    release(tx, plan_exited(container.id, None, tx.state, now())._replace(container=after))
