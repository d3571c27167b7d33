# SPDX-License-Identifier: Apache-2.0
"""`reconcile`, the part about Linux bridges: their ports, and packet filter rules."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.drivers.base import Repair, Repairing
from datapath.drivers.linuxbridge import check
from datapath.drivers.linuxbridge.spec import LINUX_BRIDGE
from datapath.kernel import bridges, netfilter
from datapath.model.checks import RULE_MISSING, RULE_ORDER, RULE_STRAY, UNBRIDGED
from datapath.model.drivers import spec_of
from datapath.model.findings import Check, Finding
from datapath.model.networks import IPTABLES


def _enslave(work: Repairing, finding: Finding) -> None:
    endpoint = work.state.endpoints[finding.about[0]]
    bridges.enslave(endpoint.host_ifname, work.state.networks[endpoint.network_id].device)


def _write_rules(work: Repairing, finding: Finding) -> None:
    """All that is wrong with this mode and IP version, in one transaction. Looks again: numbers of rules change, and
    findings of one mode and version share one repair."""
    if not finding.about:
        return  # the tool could not be asked
    mode, version = finding.about
    comparison = work.compare()
    mine = [network for network in comparison.networks if spec_of(network) is LINUX_BRIDGE]
    text = check.compare(comparison, mine, mode, version).text
    if mode == IPTABLES:
        netfilter.iptables_restore(version, text)
    else:
        netfilter.nft(text)


REPAIRS: Mapping[Check, Repair] = {
    UNBRIDGED: _enslave,
    RULE_MISSING: _write_rules,
    RULE_STRAY: _write_rules,
    RULE_ORDER: _write_rules,
}
