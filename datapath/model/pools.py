# SPDX-License-Identifier: Apache-2.0
"""Address pools that networks are cut from."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_network
from typing import NamedTuple

from datapath.errors import ConfigError
from datapath.model.digests import sha256
from datapath.model.parsing import Prefix, parse_interface


class Pool(NamedTuple):
    """Networks of prefix length `size` are cut from `base`."""

    base: Prefix
    size: int
    spare: bool = False  # only used when the others of its family are exhausted


DEFAULT_POOLS = (
    *(
        Pool(ip_network(base), size)
        for base, size in (
            ("172.17.0.0/16", 16),
            ("172.18.0.0/16", 16),
            ("172.19.0.0/16", 16),
            ("172.20.0.0/14", 16),
            ("172.24.0.0/14", 16),
            ("172.28.0.0/14", 16),
            ("192.168.0.0/16", 20),
        )
    ),
    Pool(ip_network("10.0.0.0/8"), 24, spare=True),  # Docker stops before this, after 31 networks
)


def ula_pool(installation_id: str) -> Pool:
    """This installation's unique local IPv6 networks (RFC 4193): fd, 40 bits made from its id, /64 each."""
    digest = sha256(installation_id.encode())
    return Pool(IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48)), 64)


def parse_pool(base: str, size: int, what: str) -> Pool:
    """One entry of default-address-pools; `what` names it in messages."""
    prefix = parse_interface(base, f"base of {what}").network
    if not prefix.prefixlen <= size <= (31 if prefix.version == 4 else 126):
        raise ConfigError(f"invalid size {size} of {what}: networks of that size cannot be cut from {prefix}")
    return Pool(prefix, size)
