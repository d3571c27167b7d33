# SPDX-License-Identifier: Apache-2.0
"""Endpoints on other hosts, as far as plans have to know of them. Pure."""

from __future__ import annotations

from datapath.model.networks import Network
from datapath.model.parsing import Address
from datapath.model.peers import Remote
from datapath.model.rows import short
from datapath.model.state import State


def addresses_elsewhere(network: Network, state: State) -> dict[Address, Remote]:
    """Who on other hosts has which address of the network."""
    remotes = state.remotes_of_network(network.id)
    return {address: one for one in remotes for address in (one.ipv4, one.ipv6) if address is not None}


def format_remote(remote: Remote, state: State) -> str:
    """An endpoint on another host, as messages name it."""
    name = f'container "{remote.name}"' if remote.name else f"endpoint {short(remote.id)}"
    return f"{name} on host {host_name(remote.peer, state)}"


def host_name(peer: str, state: State) -> str:
    """What a host of the cluster is called; the beginning of its id if it is not known."""
    known = state.peers.get(peer)
    return known.name if known is not None else short(peer)
