# SPDX-License-Identifier: Apache-2.0
"""What IPAM plugins have given out and no row says yet: noted in the store, so that it goes back if no row ever does.

An address is noted as soon as the plugin has answered. The row that has it comes later, or never: when the command
fails, or is killed. What the note says and no row has goes back at the end of the command, or at the beginning of the
next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

from datapath.drivers.notes import Notes
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.plugins import Lease
from datapath.model.state import State

_NOTE = "leases of plugins"


class Leases:
    """The note. Without a store nothing is noted: for those who only look."""

    def __init__(self, notes: Notes | None = None) -> None:
        self._notes = notes

    def all(self) -> list[Lease]:
        """Those that are noted."""
        text = self._notes.note(_NOTE) if self._notes else None
        with suppress(ValueError, TypeError):
            return [Lease(*map(str, words)) for words in json.loads(text or "[]")]
        return []

    def add(self, lease: Lease) -> None:
        """Before anything else is done with it."""
        self._write([*self.all(), lease])

    def remove(self, gone: Lease) -> None:
        """It is a row's, or was given back."""
        known = self.all()
        if gone in known:
            known.remove(gone)
            self._write(known)

    def _write(self, leases: list[Lease]) -> None:
        if self._notes is not None:
            with self._notes.transaction(durable=False):
                self._notes.set_note(_NOTE, json.dumps(leases) if leases else None)


def held(state: State) -> set[Lease]:
    """What rows have."""
    found: set[Lease] = set()
    for network in state.networks.values():
        found.update(of_network(network))
    for endpoint in state.endpoints.values():
        found.update(of_endpoint(state.networks[endpoint.network_id], endpoint))
    return found


def of_network(network: Network) -> Iterator[Lease]:
    """A network's own: in the order in which they go back."""
    if not network.leased:
        return
    for subnet in network.subnets:
        for address in (*subnet.aux.values(), subnet.gateway):
            if address is not None:
                yield Lease(network.ipam_driver, subnet.pool, str(address))
        yield Lease(network.ipam_driver, subnet.pool)


def of_endpoint(network: Network, endpoint: Endpoint) -> Iterator[Lease]:
    """An endpoint's addresses."""
    if not network.leased:
        return
    for interface in (endpoint.ipv4, endpoint.ipv6):
        for subnet in network.subnets:
            if interface is not None and interface.ip in subnet.prefix:
                yield Lease(network.ipam_driver, subnet.pool, str(interface.ip))
