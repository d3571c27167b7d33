# SPDX-License-Identifier: Apache-2.0
"""The specification of bridge networks without a bridge. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv6Network, ip_network
from typing import ClassVar

from datapath.drivers.pairs.spec import PairSpec, truth
from datapath.errors import ConfigError, quoted
from datapath.model.drivers import OptionParser, Traits
from datapath.model.networks import EBPF, OPT_FLOWS, OPT_HOST_ROUTED, OPT_MODE, Network, NetworkRequest
from datapath.model.ports import parse_prefixes

_MAPPED = IPv6Network("::ffff:0:0/96")  # what IPv4 addresses are in the maps


def _host_routed(name: str, value: str) -> str:
    prefixes = parse_prefixes(name, value)
    for prefix in map(ip_network, prefixes.split(",")):
        if isinstance(prefix, IPv6Network) and prefix.overlaps(_MAPPED):
            raise ConfigError(f"invalid prefix {quoted(str(prefix))} in option {name}: too wide")
    return prefixes


class EbpfBridge(PairSpec):
    """Driver bridge in its default mode: packet programs forward."""

    name = "bridge"
    traits = Traits(programs=True)
    options: ClassVar[Mapping[str, OptionParser]] = {
        **PairSpec.options,
        OPT_HOST_ROUTED: _host_routed,
        OPT_FLOWS: truth,
    }

    def serves(self, options: Mapping[str, str]) -> bool:
        return options.get(OPT_MODE, EBPF) == EBPF

    def check(self, request: NetworkRequest, options: Mapping[str, str]) -> None:
        super().check(request, options)
        if request.internal and options.get(OPT_HOST_ROUTED):
            raise ConfigError(f"option {OPT_HOST_ROUTED} is not available: the network is internal")

    def traits_of(self, network: Network) -> Traits:
        return self.traits if network.pair == self.traits.pair else replace(self.traits, pair=network.pair)


EBPF_BRIDGE = EbpfBridge()
