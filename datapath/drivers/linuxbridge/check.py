# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about Linux bridges: their ports, what the packet filter has, the host's forwarding. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from datapath.dataplane import entries
from datapath.drivers.comparison import Comparison
from datapath.drivers.linuxbridge import iptables as ipt
from datapath.drivers.linuxbridge import iptables_input as ipt_input
from datapath.drivers.linuxbridge import nftables as nft
from datapath.drivers.linuxbridge import rules
from datapath.drivers.pairs import check as pairs
from datapath.model.checks import FORWARDING, RULE_MISSING, RULE_ORDER, RULE_STRAY, UNBRIDGED
from datapath.model.findings import Finding
from datapath.model.networks import IPTABLES, Network

_SHARED = "what Linux bridge networks share"
_SHOWN = 160  # characters of a rule


def findings(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
    """All about these networks, which a Linux bridge each forwards."""
    yield from pairs.findings(comparison, networks)
    observed = comparison.observed
    for network in networks:
        bridge = observed.host.devices.get(network.device)
        for endpoint in comparison.members(network):
            device = observed.host.at(endpoint.host_ifindex)
            if bridge and device and device.master != bridge.ifindex:
                detail = f"device {device.name} is no port of bridge {bridge.name}"
                yield Finding(UNBRIDGED, comparison.name(endpoint), detail, (endpoint.id,))
    for path in sorted(observed.forwarding_off):
        yield Finding(FORWARDING, "the host", f"{path.replace('/', '.')} is 0, not 1")
    for path in sorted(observed.forwarding_spare):
        yield Finding(
            FORWARDING, "the host", f"{path.replace('/', '.')} is on, and nothing needs it any more"
        )
    for why in observed.unlisted:
        yield Finding(RULE_MISSING, "packet filter", why)
    for mode, version in observed.filters:
        yield from _rules(comparison, networks, mode, version)


def _rules(comparison: Comparison, networks: list[Network], mode: str, version: int) -> Iterator[Finding]:
    """One finding for all that is missing of somebody's."""
    found, about = compare(comparison, networks, mode, version), (mode, version)
    family = f"{mode}, IPv{version}"
    missing: dict[str, list[str]] = {}
    for owner, text in found.missing:
        missing.setdefault(owner, []).append(text)
    for owner, texts in missing.items():
        yield Finding(RULE_MISSING, owner, f"{family}: there is no {_format_rules(texts)}", about)
    if found.orphans:
        yield Finding(
            RULE_STRAY, family, f"there is a rule that nobody needs: {_format_rules(found.orphans)}", about
        )
    if found.disordered:
        yield Finding(
            RULE_ORDER, family, f"rules are in the wrong order: {', '.join(found.disordered)}", about
        )


def _format_rules(texts: list[str]) -> str:
    """The first rule, cut if it is long, and how many more there are."""
    first = texts[0] if len(texts[0]) <= _SHOWN else texts[0][:_SHOWN] + "…"
    return first if len(texts) == 1 else f"{first} (and {len(texts) - 1} more)"


def compare(comparison: Comparison, networks: list[Network], mode: str, version: int) -> rules.Differences:
    """The differences between the wanted rules and those that the tool has listed."""
    text = comparison.observed.filters[mode, version]
    mine = [n for n in networks if n.mode == mode and version in rules.versions(n)]
    if mode == IPTABLES:
        return ipt_input.compare(
            ipt.Present.parse(text),
            _wanted(ipt, comparison, mine, version),
            ipt_input.is_orphan(mine),
            _ignored(ipt, comparison, version),
        )
    return nft.compare(
        version,
        mine,
        nft.Present.parse(text),
        _wanted(nft, comparison, mine, version),
        _ignored(nft, comparison, version),
    )


def _wanted(
    ruleset: rules.Ruleset[rules.R], comparison: Comparison, networks: list[Network], version: int
) -> dict[rules.R, str]:
    """Rule -> whose it is, in the order in which they are put."""
    wanted = dict.fromkeys(ruleset.BASE if networks else (), _SHARED)
    for network in networks:
        owner, links = f"network {network.name}", entries.link_entries(network, comparison.state)
        wanted |= dict.fromkeys(ruleset.network_rules(network, version), owner)
        wanted |= dict.fromkeys(ruleset.link_rules(network, links, version), owner)
        for endpoint in comparison.members(network):
            found = ruleset.endpoint_rules(network, endpoint, version)
            found += ruleset.port_rules(network, endpoint, endpoint.ports, version)
            wanted |= dict.fromkeys(found, comparison.name(endpoint))
    return wanted


def _ignored(
    ruleset: rules.Ruleset[rules.R], comparison: Comparison, version: int
) -> Callable[[rules.R], bool]:
    """Whether a rule is about an endpoint of which nothing can be said now."""
    addresses = [rules.address(endpoint, version) for endpoint in comparison.unsettled]
    tests = [test(ip) for ip in addresses if ip for test in (ruleset.of_container, ruleset.of_links)]
    return lambda rule: any(about(rule) for about in tests)
