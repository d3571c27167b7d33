# SPDX-License-Identifier: Apache-2.0
"""The specification of ipvlan networks: addresses on the network that one of the host's devices is on. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from datapath.drivers.lan.spec import check_parent, one_of, parent_option
from datapath.drivers.pairs.spec import PairSpec
from datapath.model.drivers import OptionParser, Traits
from datapath.model.networks import (
    BRIDGE,
    L2,
    L3,
    L3S,
    OPT_DEVICE,
    OPT_DOMAIN,
    OPT_ICC,
    OPT_IFACE_PREFIX,
    OPT_IPVLAN_FLAG,
    OPT_IPVLAN_MODE,
    OPT_MTU,
    OPT_NAMES,
    OPT_PARENT,
    PRIVATE,
    VEPA,
    Network,
)
from datapath.model.parsing import Address
from datapath.model.rows import short

_WRONG_MODE = "requested ipvlan mode '{}' is not valid, 'l2' mode is the ipvlan driver default"
_WRONG_FLAG = "requested ipvlan flag '{}' is not valid, 'bridge' is the ipvlan driver default"
_SHARED = (OPT_ICC, OPT_MTU, OPT_IFACE_PREFIX, OPT_DEVICE, OPT_NAMES, OPT_DOMAIN)


class IpvlanSpec(PairSpec):
    """Docker's options of an ipvlan network, and those of bridge networks that mean the same here."""

    name = "ipvlan"
    traits = Traits(acl=False, programs=True, published=False, lan=True)
    options: ClassVar[Mapping[str, OptionParser]] = {
        OPT_IPVLAN_MODE: one_of((L2, L3, L3S), _WRONG_MODE),
        OPT_IPVLAN_FLAG: one_of((BRIDGE, PRIVATE, VEPA), _WRONG_FLAG),
        OPT_PARENT: parent_option(name),
        **{option: PairSpec.options[option] for option in _SHARED},
    }
    refuses_mac = "ipvlan interfaces do not support custom mac address assignment"

    def device(
        self, ident: str, options: Mapping[str, str], networks: Iterable[Network], there: Container[str]
    ) -> str:
        check_parent(options, networks, there)
        return f"dp-{short(ident)}"

    def beneath(self, options: Mapping[str, str], there: Container[str]) -> str:
        wanted, made = check_parent(options, (), there)
        return wanted if made else ""

    def is_internal(self, options: Mapping[str, str]) -> bool:
        return not options.get(OPT_PARENT)

    def next_hop(self, network: Network, version: int) -> Address | None:
        """In mode l3 everybody, as Docker has it: the host's routes lead on."""
        if not network.routed:
            return super().next_hop(network, version)
        if (network.subnet4 if version == 4 else network.subnet6) is None:
            return None
        return IPv4Address(0) if version == 4 else IPv6Address(0)

    def devices(self, network: Network) -> tuple[str, ...]:
        return (network.device, network.made) if network.made else (network.device,)

    def traits_of(self, network: Network) -> Traits:
        return self.traits if network.pair == self.traits.pair else replace(self.traits, pair=network.pair)


IPVLAN_SPEC = IpvlanSpec()
