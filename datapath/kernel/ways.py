# SPDX-License-Identifier: Apache-2.0
"""The host's way to addresses and prefixes by a device of its own, through rtnetlink. All errors are KernelError."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from datapath.errors import KernelError
from datapath.kernel import facts
from datapath.kernel.devices import find_index, index_of
from datapath.kernel.link_messages import (
    Address,
    Prefix,
    direct_route,
    do,
    prefix_route,
    remove_direct_route,
    remove_prefix_route,
)
from datapath.kernel.observe import opened

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_RT_SCOPE_UNIVERSE = 0
_IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, DAD failed, deprecated, tentative


def lead(name: str, address: Address, source: Address | None = None) -> None:
    """Makes the host reach an address by that device; `source`: what it sends from, None: what the kernel chooses.
    Idempotent."""
    with opened() as route:
        do(route, direct_route(index_of(name), name, address, source))


def lead_no_more(name: str, address: Address) -> None:
    """Takes that route back. Idempotent."""
    index = find_index(name)
    if index is None:
        return
    try:
        with opened() as route:
            do(route, remove_direct_route(index, name, address))
    except KernelError as error:
        if error.errno not in (errno.ESRCH, errno.ENODEV):
            raise


def prefixes_of(name: str, protocol: int) -> frozenset[Prefix]:
    """The prefixes that are on the device's link by routes of that protocol (RTPROT_*); none, if it is gone."""
    index = find_index(name)
    if index is None:
        return frozenset()
    with opened() as route:
        routes = [one for family in _FAMILIES for one in facts.unicast_routes(route, family)]
    return frozenset(one.prefix for one in routes if one.device == index and one.protocol == protocol)


def set_prefixes(name: str, protocol: int, wanted: Iterable[Prefix], unwanted: Iterable[Prefix]) -> None:
    """Makes these prefixes be on the device's link by routes of that protocol, and those not. Idempotent."""
    index = find_index(name)
    if index is None:
        return
    with opened() as route:
        for prefix in wanted:
            do(route, prefix_route(index, name, prefix, protocol))
        for prefix in unwanted:
            try:
                do(route, remove_prefix_route(index, name, prefix, protocol))
            except KernelError as error:
                if error.errno not in (errno.ESRCH, errno.ENODEV):
                    raise


def own_addresses(name: str) -> dict[int, Address]:
    """What the host sends from on that device's link, by IP version; nothing, if the device is gone or has none."""
    index = find_index(name)
    found: dict[int, Address] = {}
    if index is None:
        return found
    with opened() as route:
        for one in facts.addresses(route):
            if one.ifindex == index and one.scope == _RT_SCOPE_UNIVERSE and not one.flags & _IFA_F_UNFIT:
                found.setdefault(one.interface.version, one.interface.ip)
    return found
