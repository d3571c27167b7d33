# SPDX-License-Identifier: Apache-2.0
"""The host's way to single addresses by a device of its own, through rtnetlink. All errors are KernelError."""

from __future__ import annotations

import errno

from datapath.errors import KernelError
from datapath.kernel import facts
from datapath.kernel.devices import find_index, index_of
from datapath.kernel.link_messages import Address, direct_route, do, remove_direct_route
from datapath.kernel.observe import opened

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
