# SPDX-License-Identifier: Apache-2.0
"""Which of the host's ports masquerading chooses from, and what the kernel must therefore leave alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from datapath.model.drivers import built, traits
from datapath.model.networks import Network
from datapath.model.state import State

# The note of what this side has written last into net.ipv4.ip_local_reserved_ports.
WRITTEN = "net/ipv4/ip_local_reserved_ports, written"

_ENOUGH = 1024  # ports of a gap; with less a part of the ephemeral range is taken
_MOST = 16384  # ports of that part, and at the most a quarter of the range


def nat_ports(ephemeral: tuple[int, int]) -> tuple[int, int]:
    """The first and the last port: the larger gap that the host's ephemeral range (inclusive) leaves, or else the end
    of the range itself."""
    first, last = ephemeral
    below, above = (1024, first - 1), (last + 1, 65535)
    best = max(below, above, key=_size)
    if _size(best) >= _ENOUGH:
        return best
    return last + 1 - min(_MOST, _size(ephemeral) // 4), last


def taken_ports(ephemeral: tuple[int, int], networks: Iterable[Network]) -> frozenset[int]:
    """The ephemeral ports that are masquerading's alone, while packet programs know a network."""
    if not any(traits(network).told for network in built(networks)):
        return frozenset()
    first, last = nat_ports(ephemeral)
    return frozenset(range(max(first, ephemeral[0]), min(last, ephemeral[1]) + 1))


def reserved_ports(state: State, ephemeral: tuple[int, int]) -> frozenset[int]:
    """What the kernel must not give a socket of the host's that asks for any port: published ones, and
    masquerading's. ICMP needs nothing of the kind."""
    return ephemeral_ports(state, ephemeral) | taken_ports(ephemeral, state.networks.values())


def _size(ports: tuple[int, int]) -> int:
    return max(ports[1] + 1 - ports[0], 0)


def ephemeral_ports(state: State, ephemeral: tuple[int, int]) -> frozenset[int]:
    """The published ports that the kernel could give a socket of the host which asks for any."""
    return frozenset(
        port
        for mapping in state.published
        for port in range(
            max(mapping.host_port, ephemeral[0]), min(mapping.host_port + mapping.count - 1, ephemeral[1]) + 1
        )
    )
