# SPDX-License-Identifier: Apache-2.0
"""Looks at the whole host for `doctor` and `reconcile`.

Looking takes no lock and changes nothing. A command that is at work meanwhile is waited for, for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.config.tuning import Tuning, drift
from datapath.dataplane import observe as pinned
from datapath.dataplane.layout import Setup
from datapath.dataplane.programs import Dataplane
from datapath.drivers import registry
from datapath.drivers.context import Context, HostView
from datapath.drivers.pairs.check import endpoint_sysctls
from datapath.engine import check, namespaces, policies, ports
from datapath.engine.transaction import Owner, devices_of, name_facts
from datapath.errors import DatapathError, NewerStateError
from datapath.kernel import observe, process, sysctl
from datapath.model.checks import (
    BUSY,
    CONFIGURATION,
    DISK,
    LEFTOVER,
    NEWER,
    NEWS,
    OLDER,
    STORE,
    UNCHECKED,
    UNPUBLISHED,
)
from datapath.model.drivers import spec_of
from datapath.model.findings import Check, Finding
from datapath.model.observed import Observed, Programs, Stack
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan.nat import WRITTEN
from datapath.plan.ports import why_not
from datapath.plan.services import unpublished
from datapath.store import heard, locking
from datapath.store.base import Store
from datapath.store.sole import AGENT
from datapath.store.sqlite import SQLiteStore
from datapath.store.translation import obstacle

_TRIES, _PAUSE = 20, 0.1  # seconds


def examine(settings: Settings, config: DaemonConfig | None, owners: Mapping[str, Owner]) -> list[Finding]:
    """Every difference between the store and the kernel. `config` None: daemon.json cannot be read."""
    if not SQLiteStore.exists(settings.state_dir):
        return _without_store(settings, owners)
    before: set[tuple[Check, str]] = set()  # what the look before has found
    for left in reversed(range(_TRIES)):
        try:
            with SQLiteStore(settings.state_dir, reading=True) as store:
                state = store.load()
                findings = compare(settings, config, state, store, owners)
                settled = not locking.held(store.lock_path) and store.load() == state
                # An agent that has just begun checks backends a moment later; and what the host has just become it is
                # about to tell the packet programs, so that nothing is told which only one look has found.
                about = {(finding.check, finding.subject) for finding in findings}
                if settled and not (left and not (state.judged and about <= before) and _agent(settings)):
                    return [*_disk(settings), *_older(store), *findings]
                before = about if settled else set()
        except FileNotFoundError:
            return _without_store(settings, owners)  # `down` came in between
        except DatapathError as error:
            check = NEWER if isinstance(error, NewerStateError) else STORE
            return [Finding(check, "state database", str(error))]
        time.sleep(_PAUSE)
    return [Finding(BUSY, "another command", "it is changing things at the moment"), *findings]


def _older(store: SQLiteStore) -> list[Finding]:
    """The database waits for a command that changes something."""
    detail = f"it has version {store.file.version}, of before this program's"
    return [Finding(OLDER, "state database", detail)] if store.file.outdated else []


def _disk(settings: Settings) -> list[Finding]:
    """Nothing could be written at the moment."""
    why = obstacle(settings.state_dir)
    return [Finding(DISK, "state database", f"it cannot be written: {why}")] if why else []


def compare(
    settings: Settings, config: DaemonConfig | None, state: State, store: Store, owners: Mapping[str, Owner]
) -> list[Finding]:
    """Looks once, and says what differs from the desired state."""
    observed = look(settings, config, state, store)
    for owner in owners.values():
        state = owner.named(state)
    findings = check.compare(state, observed)
    for owner in owners.values():
        findings += owner.check(settings, state, observed.alive)
    findings += [*_unchecked(settings, state), *_unpublished(state)]
    findings += policies.differences(state, observed.network, settings.bpffs)
    return [*findings, *_news(settings, config, state)]


def _agent(settings: Settings) -> bool:
    """An agent is at work."""
    return locking.held(settings.state_dir / AGENT)


def _unchecked(settings: Settings, state: State) -> Iterator[Finding]:
    """Services of which nobody checks the backends."""
    for service in () if state.judged else state.services.values():
        if service.health:
            why = "the agent does not do it" if _agent(settings) else "no agent is at work on this host"
            yield Finding(UNCHECKED, f"service {service.name}", f"its backends are not checked: {why}")


def _unpublished(state: State) -> Iterator[Finding]:
    """Ports of services that all hosts publish but this one."""
    for service in state.services.values():
        if service.phase != Phase.READY or not state.networks[service.network_id].spans:
            continue
        host = state.peers.get(state.installation_id)
        for mapping in unpublished(service):
            why = why_not(mapping, state, ports.in_use) or "nobody has it any more"
            detail = f"host {host.name if host else 'here'} does not publish {mapping}: {why}"
            yield Finding(UNPUBLISHED, f"service {service.name}", detail, (service.id,))


def _news(settings: Settings, config: DaemonConfig | None, state: State) -> list[Finding]:
    """What other hosts have changed may not be known here."""
    where = config.cluster if config else None
    if where is None or not any(network.spans for network in state.networks.values()):
        return []
    last = heard.read(settings.run_dir)
    if last is not None and last.age <= where.ttl:
        return []
    since = "since the machine has started" if last is None else f"for {last.age:.0f} s"
    why = (last.error if last else "") or ("" if _agent(settings) else "no agent is at work on this host")
    detail = f"nothing was heard of other hosts {since}"
    return [Finding(NEWS, "the cluster", f"{detail}: {why}" if why else detail)]


def _without_store(settings: Settings, owners: Mapping[str, Owner]) -> list[Finding]:
    """There never was a desired state, or it is lost."""
    journal = settings.state_dir / "datapath.db-wal"
    if journal.exists():
        detail = f"{settings.state_dir}/datapath.db is gone, its journal is there"
        return [Finding(STORE, "state database", detail)]
    findings = []
    programs = pinned.programs(settings.bpffs, ())
    if any(programs.pinned.values()):
        detail = f"they are pinned in {settings.bpffs}, the store is gone"
        findings.append(Finding(LEFTOVER, "packet programs", detail))
    for owner in owners.values():
        findings += owner.leftovers(settings)
    return findings


def look(settings: Settings, config: DaemonConfig | None, state: State, store: Store) -> Observed:
    """The host as it is, as far as it matters to the desired state."""
    network = observe.host(devices_of(state))
    host = Stack.of(network)
    wanted: set[str] = set()
    for one in state.networks.values():
        wanted |= spec_of(one).sysctls(one).keys() if spec_of(one).gateway_device(one) else set()
    for endpoint in state.endpoints.values():
        wanted |= endpoint_sysctls(endpoint).keys()
    alive = frozenset(
        c.id for c in state.containers.values() if c.running and process.alive(c.pid, c.pid_start)
    )
    observed = Observed(
        network=network,
        host=host,
        sandboxes=_sandboxes(state),
        alive=alive,
        sysctls=sysctl.read_existing(wanted),
        reserved_before=store.note(sysctl.RESERVED_PORTS),
        reserved_written=store.note(WRITTEN),
        programs=_programs(
            settings,
            config.datapath if config else None,
            (device.ifindex for device in host.devices.values()),
        ),
        names=name_facts(config or DaemonConfig(), network),
    )
    with Context(settings, config.datapath if config else Tuning()) as context:
        networks = registry.by_spec(state.networks.values())
        for spec, part in registry.host_parts(context).items():
            found = part.look(HostView(state, networks.get(spec, []), network, store, lambda line: None))
            observed = replace(observed, **found)  # type: ignore[arg-type]
    return observed


def _sandboxes(state: State) -> dict[str, Stack]:
    """The stacks of those with endpoints in which somebody lives."""
    found: dict[str, Stack] = {}
    for sandbox_id in {endpoint.sandbox_id for endpoint in state.endpoints.values()}:
        path = namespaces.path(state, sandbox_id)
        if path is not None:
            try:
                found[sandbox_id] = observe.stack(path)
            except DatapathError:
                continue  # it has just ended
    return found


def _programs(settings: Settings, tuning: Tuning | None, indexes: Iterable[int]) -> Programs:
    found = pinned.programs(settings.bpffs, indexes)
    if settings.cgroup is not None:
        found = replace(found, group=0)
    if tuning is None or found.missing or found.broken or found.outdated:
        return found
    with Dataplane(settings.bpffs, setup=Setup(tuning.config, tuning.sizes)) as loaded:
        actual = loaded.setup()
    other = drift(tuning, actual.config, actual.sizes)
    return replace(found, settings=f"they were loaded with other settings: {other}") if other else found


def configuration(settings: Settings) -> tuple[DaemonConfig | None, list[Finding]]:
    """That of daemon.json; a file that cannot be read is a finding."""
    try:
        return DaemonConfig.load(settings), []
    except DatapathError as error:
        path = str(settings.config_path)
        return None, [Finding(CONFIGURATION, path, str(error).removeprefix(f"configuration file {path}: "))]
