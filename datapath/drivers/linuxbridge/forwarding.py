# SPDX-License-Identifier: Apache-2.0
"""The host's stack forwards what comes from outside for classic networks: switched on for the outside devices alone,
noted, and put back when no such network is left.

Only an IPv6 that knows no `force_forwarding` (before Linux 6.17) has to be told for all devices at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from datapath.model.networks import Network
from datapath.store.sqlite import Store

if TYPE_CHECKING:
    from datapath.kernel.links import Uplink

_NOTE = "forwarding"  # JSON: setting -> what it was
_EVERY6 = "net/ipv6/conf/all/forwarding"


def release(store: Store) -> None:
    """No network is left: everything as it was."""
    if store.note(_NOTE) is not None:
        refresh(store, (), ())


def refresh(store: Store, networks: Iterable[Network], uplinks: Iterable[Uplink]) -> None:
    """Makes the outside devices forward what these networks need, and others as they were. KernelError."""
    from datapath.kernel import sysctl

    before: dict[str, str] = json.loads(store.note(_NOTE) or "{}")
    wanted = _wanted(_forwarded(networks), [uplink.name for uplink in uplinks])
    new = {path: sysctl.read(path) for path in wanted if path not in before and sysctl.read(path) == "0"}
    if _EVERY6 in new:  # it will change each device's own
        new |= {path: sysctl.read(path) for path in sysctl.matching("net/ipv6/conf/*/forwarding")}
    if new:
        before = {**before, **new}
        store.set_note(_NOTE, json.dumps(before))
    for path in wanted:
        if sysctl.read(path) == "0":
            sysctl.write(path, 1)
    kept = wanted | (set(sysctl.matching("net/ipv6/conf/*/forwarding")) if _EVERY6 in wanted else set())
    over = {path: value for path, value in before.items() if path not in kept}
    for path, value in sorted(over.items(), key=lambda item: item[0] != _EVERY6):
        sysctl.write_if_present(path, value)
    if over:
        left = {path: value for path, value in before.items() if path not in over}
        store.set_note(_NOTE, json.dumps(left) if left else None)


def look(
    store: Store, networks: Iterable[Network], uplinks: Iterable[Uplink]
) -> tuple[frozenset[str], frozenset[str]]:
    """(settings that have to be on and are not, settings that were switched on and that nothing needs)."""
    from datapath.kernel import sysctl

    before: dict[str, str] = json.loads(store.note(_NOTE) or "{}")
    wanted = _wanted(_forwarded(networks), [uplink.name for uplink in uplinks])
    off = frozenset(path for path in wanted if sysctl.read(path) == "0")
    return off, frozenset() if _EVERY6 in wanted else frozenset(before.keys() - wanted)


def _forwarded(networks: Iterable[Network]) -> list[Network]:
    return [network for network in networks if network.classic and not network.internal]


def _wanted(networks: list[Network], uplinks: list[str]) -> set[str]:
    from datapath.kernel import sysctl

    paths = {f"net/ipv4/conf/{name}/forwarding" for name in uplinks if any(n.ipv4 for n in networks)}
    if any(network.ipv6 for network in networks):
        single = {f"net/ipv6/conf/{name}/force_forwarding" for name in uplinks}
        paths |= single if all(sysctl.exists(path) for path in single) else {_EVERY6}
    return {path for path in paths if sysctl.exists(path)}
