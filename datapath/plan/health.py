# SPDX-License-Identifier: Apache-2.0
"""What the checks of a backend make of it, as Docker's daemon counts them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from datapath.model.endpoints import Endpoint
from datapath.model.health import BackendState, CheckKind, HealthCheck, Verdict
from datapath.model.parsing import Address
from datapath.model.peers import Remote
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.backends import backends, is_there

# Seconds between checks: at least, whatever interval is asked for; and at most until the first one has succeeded.
_LEAST, _FIRST = 0.01, 1.0
_LONGEST = 200  # characters of a reason


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the checks of a backend have got. `failed`: how many in a row that count; `reason`: what the first one
    said since it has been in this state, "": none has failed."""

    state: BackendState = BackendState.UP
    reason: str = ""
    failed: int = 0

    @property
    def verdict(self) -> Verdict | None:
        """What is to be stored of it; None: it is up."""
        return None if self.state == BackendState.UP else Verdict(self.state, self.reason)


def known(service: Service, endpoint_id: str) -> Progress:
    """Where the checks of a backend go on, after whoever made them last."""
    verdict = service.verdicts.get(endpoint_id)
    return Progress(verdict.state, verdict.reason) if verdict else Progress()


def judge(check: HealthCheck, before: Progress, passed: bool, reason: str, age: float) -> Progress:
    """After one more check. `age`: seconds since its container has started. What fails within the time that it
    is given for that, before the first success, does not count."""
    if passed:
        return Progress()
    said = "".join(c if c.isprintable() else " " for c in reason)[:_LONGEST].strip()
    if before.state == BackendState.STARTING and age < check.grace:
        return replace(before, reason=before.reason or said)
    failed = before.failed + 1
    if before.state != BackendState.UNHEALTHY and failed >= check.tries:
        return Progress(BackendState.UNHEALTHY, said, failed)
    if before.state == BackendState.UP:
        return replace(before, failed=failed)
    return replace(before, failed=failed, reason=before.reason or said)


def pause(check: HealthCheck, progress: Progress) -> float:
    """Seconds until the next check."""
    most = _FIRST if progress.state == BackendState.STARTING else check.every
    return max(_LEAST, min(check.every, most))


class Target(NamedTuple):
    """A backend that is to be checked. `started`: when its container's process did, in clock ticks since the machine
    has started; 0: it is another runtime's."""

    service_id: str
    endpoint_id: str
    sandbox_id: str
    check: HealthCheck
    address: Address
    pid: int
    started: int
    known: Progress

    @property
    def key(self) -> tuple[str, str]:
        """What it is called by."""
        return self.service_id, self.endpoint_id

    @property
    def what(self) -> tuple[HealthCheck, Address, int, int]:
        """What is checked how: if that is another one, so are its checks."""
        return self.check, self.address, self.pid, self.started


def checkable(check: HealthCheck, endpoint: Endpoint, state: State) -> bool:
    """An endpoint of this host can be checked so: a command is run beside the process of a container of ours."""
    return check.kind != CheckKind.CMD or state.alive(endpoint.sandbox_id)


def targets(state: State) -> Iterator[Target]:
    """The backends of this host that are to be checked."""
    for service in state.services.values():
        check = service.health
        if check is None or not is_there(service):
            continue
        for one in backends(service, state):
            if isinstance(one.endpoint, Remote):
                continue
            runs = next((user for user in state.users(one.endpoint.sandbox_id) if user.running), None)
            if one.id not in service.numbers or not checkable(check, one.endpoint, state):
                continue
            yield Target(
                service.id,
                one.id,
                one.endpoint.sandbox_id,
                check,
                one.addresses[0],
                runs.pid if runs else 0,
                runs.pid_start if runs else 0,
                known(service, one.id),
            )


def title(target: Target, state: State) -> str:
    """The backend, as a line says it."""
    service, endpoint = state.services.get(target.service_id), state.endpoints.get(target.endpoint_id)
    names = service.name if service else "?", state.holder_name(endpoint) if endpoint else "?"
    return f"{names[1]} of service {names[0]}"
