# SPDX-License-Identifier: Apache-2.0
"""Pairs of devices, one end of each in a sandbox, whatever forwards the packets at the other."""

from __future__ import annotations

from collections.abc import Callable

from datapath.drivers.inside.driver import InsideDriver, names_inside
from datapath.kernel import bridges
from datapath.model.endpoints import Endpoint


class PairDriver(InsideDriver):
    """Networks whose members have a pair of devices each."""

    def set_mtu(
        self,
        devices: tuple[str, ...],
        members: tuple[Endpoint, ...],
        mtu: int,
        sandbox: Callable[[Endpoint], str | None],
    ) -> None:
        """Of the network's own devices, and of both ends of its members' pairs; bytes of an IP packet."""
        bridges.set_mtu(None, (*devices, *(member.host_ifname for member in members)), mtu)
        for member in members:
            path = sandbox(member)
            if path is not None:
                bridges.set_mtu(path, names_inside(member, path), mtu)
