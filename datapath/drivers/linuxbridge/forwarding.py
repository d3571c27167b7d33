# SPDX-License-Identifier: Apache-2.0
"""Forwarding by the host's stack, which networks with a Linux bridge need: switched on for the uplinks alone, noted,
and put back when no such network is left. The packet filter's rules are listed for `doctor`.

IPv6 without `force_forwarding` (before Linux 6.17) can only be switched for all devices at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from datapath.drivers.base import HostPart
from datapath.drivers.context import HostView
from datapath.drivers.linuxbridge.spec import LINUX_BRIDGE
from datapath.errors import KernelError
from datapath.kernel import sysctl
from datapath.model.drivers import spec_of
from datapath.model.networks import IPTABLES, Network

_NOTE = "forwarding"  # JSON: setting -> what it was
_EVERY6 = "net/ipv6/conf/all/forwarding"


class Forwarding(HostPart):
    """What networks with a Linux bridge change of the host: settings of its uplinks."""

    def refresh(self, view: HostView) -> None:
        """Makes the uplinks forward what the networks need, and others as they were."""
        noted = view.notes.note(_NOTE)
        if noted is None and not view.networks:
            return
        before: dict[str, str] = json.loads(noted or "{}")
        wanted = _wanted(view.networks, [uplink.name for uplink in view.observed.uplinks])
        new = {path: sysctl.read(path) for path in wanted if path not in before and sysctl.read(path) == "0"}
        if _EVERY6 in new:  # it will change each device's own
            new |= {path: sysctl.read(path) for path in sysctl.matching("net/ipv6/conf/*/forwarding")}
        if new:
            before = {**before, **new}
            view.notes.set_note(_NOTE, json.dumps(before))
        for path in wanted:
            if sysctl.read(path) == "0":
                sysctl.write(path, 1)
        kept = wanted | (set(sysctl.matching("net/ipv6/conf/*/forwarding")) if _EVERY6 in wanted else set())
        over = {path: value for path, value in before.items() if path not in kept}
        for path, value in sorted(over.items(), key=lambda item: item[0] != _EVERY6):
            sysctl.write_if_present(path, value)
        if over:
            left = {path: value for path, value in before.items() if path not in over}
            view.notes.set_note(_NOTE, json.dumps(left) if left else None)

    def forget_network(self, view: HostView, network: Network) -> None:
        if spec_of(network) is LINUX_BRIDGE:
            self.refresh(view)

    def idle(self, view: HostView) -> None:
        self.refresh(view)

    def look(self, view: HostView) -> dict[str, object]:
        """`forwarding_off`: settings that have to be on and are not; `forwarding_spare`: settings that were switched
        on and that nothing needs any more; `filters` and `unlisted`: what the packet filter's tools list."""
        before: dict[str, str] = json.loads(view.notes.note(_NOTE) or "{}")
        wanted = _wanted(view.networks, [uplink.name for uplink in view.observed.uplinks])
        spare = frozenset() if _EVERY6 in wanted else frozenset(before.keys() - wanted)
        filters, unlisted = _filters(view.networks)
        return {
            "forwarding_off": frozenset(path for path in wanted if sysctl.read(path) == "0"),
            "forwarding_spare": spare,
            "filters": filters,
            "unlisted": unlisted,
        }


def _wanted(networks: list[Network], uplinks: list[str]) -> set[str]:
    networks = [network for network in networks if not network.internal]
    paths = {f"net/ipv4/conf/{name}/forwarding" for name in uplinks if any(n.ipv4 for n in networks)}
    if any(network.ipv6 for network in networks):
        single = {f"net/ipv6/conf/{name}/force_forwarding" for name in uplinks}
        paths |= single if all(sysctl.exists(path) for path in single) else {_EVERY6}
    return {path for path in paths if sysctl.exists(path)}


def _filters(networks: Iterable[Network]) -> tuple[dict[tuple[str, int], str], tuple[str, ...]]:
    """What the tools list of the families that the networks use, by mode and IP version, and why they do not."""
    from datapath.drivers.linuxbridge import nftables, rules
    from datapath.kernel import netfilter

    found: dict[tuple[str, int], str] = {}
    wrong = []
    for mode, version in dict.fromkeys((n.mode, v) for n in networks for v in rules.versions(n)):
        try:
            if mode == IPTABLES:
                found[mode, version] = netfilter.iptables_save(version)
            else:
                family = nftables.family(version)
                found[mode, version] = netfilter.nft_list("table", family, nftables.TABLE)
        except KernelError as error:
            wrong.append(str(error))
    return found, tuple(wrong)
