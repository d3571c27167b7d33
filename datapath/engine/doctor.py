# SPDX-License-Identifier: Apache-2.0
"""`doctor` and `reconcile`: looks at the whole host, and mends what is not as promised.

Looking takes no lock and changes nothing. A command that is at work meanwhile is waited for, for a moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.config.tuning import Tuning, drift
from datapath.dataplane import observe
from datapath.dataplane.layout import Setup
from datapath.dataplane.programs import Dataplane
from datapath.drivers.linuxbridge import forwarding, nftables, rules
from datapath.engine import check
from datapath.engine.session import RESERVED_PORTS
from datapath.errors import DatapathError, KernelError
from datapath.kernel import locks, netfilter, process, sysctl
from datapath.kernel.facts import stack
from datapath.kernel.links import Links
from datapath.model.checks import BUSY, LEFTOVER, STORE
from datapath.model.findings import Finding
from datapath.model.networks import IPTABLES, Network
from datapath.model.observed import Programs, Seen, Stack, Way
from datapath.model.rows import short
from datapath.model.state import State
from datapath.store.sqlite import Store

_TRIES, _PAUSE = 20, 0.1  # seconds


def examine(settings: Settings, tuning: Tuning | None) -> list[Finding]:
    """Every difference between the store and the kernel. `tuning` None: daemon.json cannot be read."""
    if not Store.exists(settings.state_dir):
        return _without_store(settings)
    for _ in range(_TRIES):
        try:
            with Store(settings.state_dir, reading=True) as store:
                state = store.load()
                findings = check.diagnose(state, look(settings, tuning, state, store))
                if not locks.is_held(store.lock_path) and store.load() == state:
                    return findings
        except FileNotFoundError:
            return _without_store(settings)  # `down` came in between
        except DatapathError as error:
            return [Finding(STORE, "state database", str(error))]
        time.sleep(_PAUSE)
    return [Finding(BUSY, "another command", "it is changing things at the moment"), *findings]


def _without_store(settings: Settings) -> list[Finding]:
    """Nothing was ever promised, or nobody knows any more what."""
    journal = settings.state_dir / "datapath.db-wal"
    if journal.exists():
        return [
            Finding(
                STORE, "state database", f"{settings.state_dir}/datapath.db is gone, its journal is there"
            )
        ]
    findings = []
    programs = observe.programs(settings.bpffs, ())
    if any(programs.pinned.values()):
        findings.append(
            Finding(LEFTOVER, "packet programs", f"they are pinned in {settings.bpffs}, the store is gone")
        )
    for name in sorted(_folders(settings)):
        findings.append(
            Finding(LEFTOVER, f"container {short(name)}", "its files are there, the store is gone")
        )
    return findings


def look(settings: Settings, tuning: Tuning | None, state: State, store: Store) -> Seen:
    """The host as it is, as far as it matters to what was promised."""
    with Links() as links:
        facts = links.facts({network.device for network in state.networks.values() if network.device})
    host = stack(None)
    wanted: set[str] = set()
    for network in state.networks.values():
        wanted |= check.sysctls(network).keys() if network.device else set()
    for endpoint in state.endpoints.values():
        wanted |= check.endpoint_sysctls(endpoint).keys()
    built = [n for n in state.networks.values() if n.realised and n.driver == "bridge"]
    off, spare = forwarding.look(store, built, facts.uplinks)
    filters, unlisted = _filters(built)
    alive = frozenset(
        c.id for c in state.containers.values() if c.running and process.alive(c.pid, c.pid_start)
    )
    return Seen(
        host=host,
        ways=tuple(Way(u.ifindex, u.name, u.ipv4, u.ipv6) for u in facts.uplinks),
        addresses=frozenset(address.ip for address in facts.addresses),
        default_mtu=facts.default_mtu,
        default_route=facts.default_route,
        sandboxes=_sandboxes(state, alive),
        alive=alive,
        sysctls=sysctl.read_existing(wanted),
        ephemeral=sysctl.ephemeral_ports(),
        reserved=sysctl.read(RESERVED_PORTS),
        reserved_before=store.note(RESERVED_PORTS),
        programs=_programs(settings, tuning, (device.ifindex for device in host.devices.values())),
        folders=_folders(settings),
        filters=filters,
        unlisted=unlisted,
        forwarding_off=off,
        forwarding_spare=spare,
    )


def _filters(networks: Iterable[Network]) -> tuple[dict[tuple[str, int], str], tuple[str, ...]]:
    """What the tools list of those that classic networks use, and why they do not."""
    found: dict[tuple[str, int], str] = {}
    wrong = []
    for mode, version in dict.fromkeys((n.mode, v) for n in networks if n.classic for v in rules.versions(n)):
        try:
            if mode == IPTABLES:
                found[mode, version] = netfilter.iptables_save(version)
            else:
                found[mode, version] = netfilter.nft_list("table", nftables.family(version), nftables.TABLE)
        except KernelError as error:
            wrong.append(str(error))
    return found, tuple(wrong)


def _sandboxes(state: State, alive: frozenset[str]) -> dict[str, Stack]:
    """The stacks of those with endpoints in which some process lives."""
    found: dict[str, Stack] = {}
    for sandbox_id in {endpoint.sandbox_id for endpoint in state.endpoints.values()}:
        for container in state.users(sandbox_id):
            if container.id in alive:
                try:
                    found[sandbox_id] = stack(f"/proc/{container.pid}/ns/net")
                except DatapathError:
                    continue  # it has just ended
                break
    return found


def _programs(settings: Settings, tuning: Tuning | None, indexes: Iterable[int]) -> Programs:
    from dataclasses import replace

    found = observe.programs(settings.bpffs, indexes)
    if tuning is None or found.missing or found.broken or found.outdated:
        return found
    with Dataplane(settings.bpffs, setup=Setup(tuning.config, tuning.sizes)) as loaded:
        actual = loaded.setup()
    other = drift(tuning, actual.config, actual.sizes)
    return replace(found, settings=f"they were loaded with other settings: {other}") if other else found


def _folders(settings: Settings) -> frozenset[str]:
    try:
        return frozenset(os.listdir(settings.run_dir / "containers"))
    except OSError:
        return frozenset()


def tuning(settings: Settings) -> tuple[Tuning | None, list[Finding]]:
    """Those of daemon.json; a file that cannot be read is a finding."""
    try:
        return DaemonConfig.load(settings).datapath, []
    except DatapathError as error:
        return None, [Finding(STORE, "daemon.json", str(error))]
