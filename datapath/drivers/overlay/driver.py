# SPDX-License-Identifier: Apache-2.0
"""Overlay networks: on each host as bridge networks without a bridge. Packets for members on other hosts the programs
send there, in tunnels; what they have to know for that is the host part's: see `host`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from datapath.drivers.base import Repair
from datapath.drivers.comparison import Comparison
from datapath.drivers.ebpf.driver import EbpfBridge
from datapath.drivers.overlay.spec import OVERLAY, TUNNEL_DEVICE, encrypted
from datapath.errors import NotSupportedError
from datapath.kernel import features, vxlans
from datapath.kernel.vxlans import KIND as VXLAN
from datapath.model.findings import Check, Finding
from datapath.model.networks import WIREGUARD, Network


class Overlay(EbpfBridge):
    """Driver overlay."""

    spec = OVERLAY

    def require(self, network: Network) -> None:
        super().require(network)
        if vxlans.port_of(TUNNEL_DEVICE) is None and not features.has_kind(VXLAN):
            raise NotSupportedError("VXLAN devices (CONFIG_VXLAN), which overlay networks need")
        if encrypted(network) and not features.has_kind(WIREGUARD):
            raise NotSupportedError("WireGuard (CONFIG_WIREGUARD), which encrypted networks need")

    @staticmethod
    def check(comparison: Comparison, networks: list[Network]) -> Iterator[Finding]:
        from datapath.drivers.overlay import check

        return check.findings(comparison, networks)

    @staticmethod
    def repairs() -> Mapping[Check, Repair]:
        from datapath.drivers.overlay import repair

        return repair.REPAIRS
