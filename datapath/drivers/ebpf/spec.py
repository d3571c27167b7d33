# SPDX-License-Identifier: Apache-2.0
"""The specification of bridge networks without a bridge. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from datapath.drivers.pairs.spec import PairSpec
from datapath.model.drivers import Traits
from datapath.model.networks import EBPF, OPT_MODE, Network


class EbpfBridge(PairSpec):
    """Driver bridge in its default mode: packet programs forward."""

    name = "bridge"
    traits = Traits(programs=True)

    def serves(self, options: Mapping[str, str]) -> bool:
        return options.get(OPT_MODE, EBPF) == EBPF

    def traits_of(self, network: Network) -> Traits:
        return replace(self.traits, pair=network.pair)


EBPF_BRIDGE = EbpfBridge()
