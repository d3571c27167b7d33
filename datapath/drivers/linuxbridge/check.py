# SPDX-License-Identifier: Apache-2.0
"""`doctor`, the part about classic networks: what the packet filter has, and the host's forwarding. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from datapath.dataplane import entries
from datapath.drivers.linuxbridge import iptables as ipt
from datapath.drivers.linuxbridge import nftables as nft
from datapath.drivers.linuxbridge import rules
from datapath.model.checks import FORWARDING, RULE_MISSING, RULE_ORDER, RULE_STRAY, UNBRIDGED
from datapath.model.endpoints import Endpoint
from datapath.model.findings import Finding
from datapath.model.networks import IPTABLES, Network
from datapath.model.parsing import Address

if TYPE_CHECKING:
    from datapath.engine.check import Settled

_SHARED = "what classic networks share"
_SHOWN = 160  # characters of a rule


def findings(settled: Settled) -> Iterator[Finding]:
    seen = settled.seen
    for endpoint in settled.joined:
        network = settled.state.networks[endpoint.network_id]
        bridge, device = seen.host.devices.get(network.device), seen.host.at(endpoint.host_ifindex)
        if network.classic and bridge and device and device.master != bridge.ifindex:
            detail = f"device {device.name} is no port of bridge {bridge.name}"
            yield Finding(UNBRIDGED, settled.name(endpoint), detail, (endpoint.id,))
    for path in sorted(seen.forwarding_off):
        yield Finding(FORWARDING, "the host", f"{path.replace('/', '.')} is 0, not 1")
    for path in sorted(seen.forwarding_spare):
        yield Finding(
            FORWARDING, "the host", f"{path.replace('/', '.')} is on, and nothing needs it any more"
        )
    for why in seen.unlisted:
        yield Finding(RULE_MISSING, "packet filter", why)
    for mode, version in seen.filters:
        yield from _rules(settled, mode, version)


def _rules(settled: Settled, mode: str, version: int) -> Iterator[Finding]:
    """One finding for all that is missing of somebody's."""
    found, about = compare(settled, mode, version), (mode, version)
    family = f"{mode}, IPv{version}"
    missing: dict[str, list[str]] = {}
    for owner, text in found.missing:
        missing.setdefault(owner, []).append(text)
    for owner, texts in missing.items():
        yield Finding(RULE_MISSING, owner, f"{family}: there is no {_words(texts)}", about)
    if found.stray:
        yield Finding(RULE_STRAY, family, f"there is a rule that nobody needs: {_words(found.stray)}", about)
    if found.disordered:
        yield Finding(
            RULE_ORDER, family, f"rules are in the wrong order: {', '.join(found.disordered)}", about
        )


def _words(texts: list[str]) -> str:
    first = texts[0] if len(texts[0]) <= _SHOWN else texts[0][:_SHOWN] + "…"
    return first if len(texts) == 1 else f"{first} (and {len(texts) - 1} more)"


def compare(settled: Settled, mode: str, version: int) -> rules.Differences:
    """What there is to be, and what the tool has listed."""
    text = settled.seen.filters[mode, version]
    mine = [n for n in settled.built if n.classic and n.mode == mode and version in rules.versions(n)]
    if mode == IPTABLES:
        return _iptables(settled, mine, version, text)
    return _nftables(settled, mine, version, text)


def _unsettled(settled: Settled, version: int) -> list[Address]:
    """Addresses of endpoints about which nothing can be said now."""
    found = (rules.address(endpoint, version) for endpoint in settled.unjoined)
    return [address for address in found if address]


def _members(settled: Settled, network: Network) -> Iterator[tuple[str, Endpoint]]:
    for endpoint in settled.joined:
        if endpoint.network_id == network.id:
            yield settled.name(endpoint), endpoint


def _iptables(settled: Settled, networks: list[Network], version: int, text: str) -> rules.Differences:
    wanted = dict.fromkeys(ipt.BASE if networks else (), _SHARED)
    for network in networks:
        wanted |= dict.fromkeys(ipt.network_rules(network, version), f"network {network.name}")
        links = entries.link_entries(network, settled.state)
        wanted |= dict.fromkeys(ipt.link_rules(network, links, version), f"network {network.name}")
        for name, endpoint in _members(settled, network):
            wanted |= dict.fromkeys(ipt.endpoint_rules(network, endpoint, version), name)
            wanted |= dict.fromkeys(ipt.port_rules(network, endpoint, endpoint.ports, version), name)
    spared = [test(ip) for ip in _unsettled(settled, version) for test in (ipt.of_container, ipt.of_links)]
    return ipt.compare(
        ipt.Present.parse(text),
        wanted,
        ipt.is_stray(networks),
        lambda rule: any(about(rule) for about in spared),
    )


def _nftables(settled: Settled, networks: list[Network], version: int, text: str) -> rules.Differences:
    wanted = dict.fromkeys(nft.base_rules() if networks else (), _SHARED)
    for network in networks:
        wanted |= dict.fromkeys(nft.network_rules(network, version), f"network {network.name}")
        links = entries.link_entries(network, settled.state)
        wanted |= dict.fromkeys(nft.link_rules(network, links, version), f"network {network.name}")
        for name, endpoint in _members(settled, network):
            wanted |= dict.fromkeys(nft.endpoint_rules(network, endpoint, version), name)
            wanted |= dict.fromkeys(nft.port_rules(network, endpoint, endpoint.ports, version), name)
    spared = [test(ip) for ip in _unsettled(settled, version) for test in (nft.of_container, nft.of_links)]
    return nft.compare(
        version,
        networks,
        nft.Present.parse(text),
        wanted,
        lambda rule: any(about(rule) for about in spared),
    )
