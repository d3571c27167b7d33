# SPDX-License-Identifier: Apache-2.0
"""Devices that somebody else has made and that are only moved into a namespace and back: their name, MAC address and
routes there. All errors are KernelError."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from datapath.errors import KernelError
from datapath.kernel import facts
from datapath.kernel import link_messages as messages
from datapath.kernel.devices import find_index, index_of, inside
from datapath.kernel.link_messages import do
from datapath.kernel.links import Links
from datapath.kernel.netns import OWN, Netns
from datapath.model.parsing import Address, Prefix


def free_name(netns: Netns, prefix: str) -> str:
    """The prefix and the lowest number that no device of the namespace is called by."""
    with inside(netns):
        number = 0
        while find_index(f"{prefix}{number}") is not None:
            number += 1
        return f"{prefix}{number}"


def prepare(netns: Netns, ifname: str, mac: str) -> str:
    """Gives a device that is down the MAC address ("": it keeps its own), and returns the one that it has."""
    with inside(netns) as route:
        index = index_of(ifname)
        if mac:
            step = "set the MAC address of", f"device {ifname}", messages.change(index, messages.new_mac(mac))
            do(route, step)
        device = facts.device(route, index)
        if device is None:
            raise KernelError("look up", f"device {ifname}", errno.ENODEV)
        return device.mac


def add_routes(netns: Netns, ifname: str, routes: Iterable[tuple[Prefix, Address | None]]) -> None:
    """Adds routes, each by its next hop, whichever device that is behind, or on link at the device. Those that there
    are already are replaced."""
    with inside(netns) as route:
        for destination, next_hop in routes:
            index = index_of(ifname) if next_hop is None else 0
            do(route, messages.static_route(index, destination, next_hop))


def give_back(links: Links, ifname: str, name: str) -> None:
    """Moves a device out of the namespace of `links` to that of the caller, down and under the name that it had there.
    No such device is fine: it has gone with its other end. If the name is taken the device keeps its own."""
    try:
        links.move(ifname, OWN, name)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        links.move(ifname, OWN, ifname)
