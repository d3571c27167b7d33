# SPDX-License-Identifier: Apache-2.0
"""A device of encrypted tunnels, as it is or is to be. Keys are public and base64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from datapath.model.parsing import Address, Prefix

Endpoint = tuple[Address, int]


class WireGuardPeer(NamedTuple):
    """Another host. `prefixes`: whose packets are believed from it, and go to it; `endpoint`: where it was reached
    last, or is to be. `handshake`: when there was the last one, seconds since 1970, 0: none; `sent`: bytes."""

    prefixes: frozenset[Prefix] = frozenset()
    endpoint: Endpoint | None = None
    handshake: int = 0
    sent: int = 0


class WireGuardDevice(NamedTuple):
    """`key`: "": it has none; `port`: of UDP; `peers`: by their keys."""

    key: str
    port: int
    peers: Mapping[str, WireGuardPeer]


class Setting(NamedTuple):
    """What a peer is to be. `prefixes`: those that it gets in addition; another peer that had one has it no more.
    `endpoint`: where it is, None: where it was. `removed`: it is to be none."""

    key: str
    prefixes: tuple[Prefix, ...] = ()
    endpoint: Endpoint | None = None
    removed: bool = False


class Encryption(NamedTuple):
    """This host's end of encrypted tunnels: what it is to be, and the `device` as it is; None: there is none. `key`: of
    the file in the state directory, `why` it cannot be read, "": it can; `mtu`: bytes of an IP packet inside; `now`:
    seconds since 1970."""

    key: str
    port: int
    mtu: int
    device: WireGuardDevice | None
    now: float
    why: str = ""
