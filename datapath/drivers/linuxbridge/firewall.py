# SPDX-License-Identifier: Apache-2.0
"""The packet filter of linuxbridge networks: which rules are put and taken away when, with one call of the tool for
each family and step.

New rules are added without listing any: that costs the same however many rules there are. For rules that are deleted,
or may exist already, the present ones are listed first; so it does not matter what a killed command has left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Protocol

from datapath.dataplane.structs import LinkKey, LinkValue
from datapath.drivers.linuxbridge import iptables as ipt
from datapath.drivers.linuxbridge import iptables_input as ipt_input
from datapath.drivers.linuxbridge import nftables as nft
from datapath.drivers.linuxbridge import rules
from datapath.errors import KernelError
from datapath.kernel import netfilter
from datapath.model.endpoints import Endpoint
from datapath.model.networks import IPTABLES, Network
from datapath.model.ports import PortMapping

_FEW = 16  # rules that are looked for one by one sooner than all rules are listed

Links = Mapping[LinkKey, LinkValue]


class Filter(Protocol):
    def create_network(self, network: Network) -> None:
        """The network's own rules, and what all networks share; what is there already is left or made again."""

    def delete_network(self, network: Network) -> None:
        """All rules that are about the network, and what all share with the last one."""

    def open(self, network: Network, endpoint: Endpoint) -> None:
        """A new endpoint's."""

    def close(self, network: Network, endpoint: Endpoint) -> None:
        """All rules that are about the endpoint."""

    def link(self, network: Network, links: Links) -> None:
        """Those of links that are not there."""

    def publish(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        """Those of new ports."""

    def revoke(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        """Takes away those of ports, but for what the endpoint's others need too."""

    def align(self, network: Network, endpoint: Endpoint) -> None:
        """The endpoint's rules but for links become what its row says."""


def find(mode: str) -> Filter:
    return Iptables() if mode == IPTABLES else Nftables()


def _others(endpoint: Endpoint, mappings: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
    return tuple(mapping for mapping in endpoint.ports if mapping not in mappings)


class Iptables:
    def create_network(self, network: Network) -> None:
        for version in rules.versions(network):
            wanted = ipt.network_rules(network, version)
            netfilter.iptables_restore(version, ipt_input.prepare(self._present(version), wanted))

    def delete_network(self, network: Network) -> None:
        for version in rules.versions(network):
            netfilter.iptables_restore(version, ipt_input.clear(self._present(version), network))
            left = self._present(version)
            # Without nft they stay, empty, as iptables itself leaves them.
            if left.nft and ipt.is_unused(left.rules) and netfilter.has("nft"):
                family = nft.family(version)
                tables = ipt_input.empty_tables(left)
                netfilter.nft("".join(f"delete table {family} {table}\n" for table in tables))

    def open(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            netfilter.iptables_restore(
                version, ipt_input.change(ipt.endpoint_rules(network, endpoint, version))
            )

    def close(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            ip = rules.address(endpoint, version)
            if ip is not None:
                present = self._present(version)
                about, linked = ipt.of_container(ip), ipt.of_links(ip)
                gone = {rule for rule in present.rules if about(rule) or linked(rule)}
                netfilter.iptables_restore(version, ipt_input.change(delete=gone, present=present))

    def link(self, network: Network, links: Links) -> None:
        for version in rules.versions(network):
            wanted = ipt.link_rules(network, links, version)
            new = ipt.missing(self._present(version, "filter"), wanted) if wanted else []
            netfilter.iptables_restore(version, ipt_input.change(new))

    def publish(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        others = _others(endpoint, mappings)
        for version in rules.versions(network):
            known = set(ipt.port_rules(network, endpoint, others, version))
            new = ipt.port_rules(network, endpoint, mappings, version)
            netfilter.iptables_restore(version, ipt_input.change(rule for rule in new if rule not in known))

    def revoke(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        others = _others(endpoint, mappings)
        for version in rules.versions(network):
            gone = ipt.plain(ipt.port_rules(network, endpoint, mappings, version))
            gone -= ipt.plain(ipt.port_rules(network, endpoint, others, version))
            if gone:
                self._delete(version, gone)

    def align(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            ip = rules.address(endpoint, version)
            if ip is not None:
                wanted = ipt.endpoint_rules(network, endpoint, version)
                wanted += ipt.port_rules(network, endpoint, endpoint.ports, version)
                netfilter.iptables_restore(version, ipt_input.align(self._present(version), wanted, ip))

    def _delete(self, version: int, gone: set[ipt.Rule]) -> None:
        """A few by their text, which spares looking; many, or if not all of them are there, by number."""
        if len(gone) <= _FEW:
            with contextlib.suppress(KernelError):
                netfilter.iptables_restore(version, ipt_input.change_by_text(gone))
                return
        netfilter.iptables_restore(version, ipt_input.change(delete=gone, present=self._present(version)))

    def _present(self, version: int, table: str = "") -> ipt.Present:
        return ipt.Present.parse(netfilter.iptables_save(version, table))


class Nftables:
    def create_network(self, network: Network) -> None:
        for version in rules.versions(network):
            netfilter.nft(nft.prepare(network, version))

    def delete_network(self, network: Network) -> None:
        for version in rules.versions(network):
            listed = netfilter.nft_list("table", nft.family(version), nft.TABLE)
            if listed:
                netfilter.nft(nft.clear(network, version, nft.Present.parse(listed)))

    def open(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            netfilter.nft(nft.change(version, nft.endpoint_rules(network, endpoint, version)))

    def close(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            ip = rules.address(endpoint, version)
            if ip is not None:
                about, linked = nft.of_container(ip), nft.of_links(ip)
                present = self._present(network, version)
                gone = [placed for placed in present if about(placed.rule) or linked(placed.rule)]
                netfilter.nft(nft.change(version, delete=gone))

    def link(self, network: Network, links: Links) -> None:
        for version in rules.versions(network):
            wanted = nft.link_rules(network, links, version)
            new = nft.missing(self._present(network, version), wanted) if wanted else []
            netfilter.nft(nft.change(version, new))

    def publish(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        others = _others(endpoint, mappings)
        for version in rules.versions(network):
            known = set(nft.port_rules(network, endpoint, others, version))
            new = nft.port_rules(network, endpoint, mappings, version)
            netfilter.nft(nft.change(version, (rule for rule in new if rule not in known)))

    def revoke(self, network: Network, endpoint: Endpoint, mappings: tuple[PortMapping, ...]) -> None:
        others = _others(endpoint, mappings)
        for version in rules.versions(network):
            gone = nft.plain(nft.port_rules(network, endpoint, mappings, version))
            gone -= nft.plain(nft.port_rules(network, endpoint, others, version))
            if gone:
                present = self._present(network, version, {rule.chain for rule in gone})
                found = [placed for placed in present if placed.rule in gone]
                netfilter.nft(nft.change(version, delete=found))

    def align(self, network: Network, endpoint: Endpoint) -> None:
        for version in rules.versions(network):
            ip = rules.address(endpoint, version)
            if ip is not None:
                wanted = nft.endpoint_rules(network, endpoint, version)
                wanted += nft.port_rules(network, endpoint, endpoint.ports, version)
                present = self._present(network, version)
                netfilter.nft(nft.align(version, network, present, wanted, ip))

    def _present(self, network: Network, version: int, chains: Iterable[str] = ()) -> list[nft.Placed]:
        """What stands in these chains, or wherever rules about the network's containers are put."""
        chains = chains or (nft.RAW, nft.DNAT, *nft.chains(network))
        listed = (netfilter.nft_list("chain", nft.family(version), nft.TABLE, chain) for chain in chains)
        return [placed for text in listed for placed in nft.Present.parse(text).rules]
