# SPDX-License-Identifier: Apache-2.0
"""macvlan devices, and what they stand on: through pyroute2, as starting a container waits for one of them only.

All errors are KernelError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import facts
from datapath.kernel.devices import find_index, index_of, quiet_ipv6
from datapath.kernel.events import Events
from datapath.kernel.facts import Interface
from datapath.kernel.netns import Netns, enter
from datapath.kernel.pyroute import opened, translated
from datapath.kernel.rtnetlink import Rtnetlink
from datapath.model.devices import MACVLAN, VETH, VLAN
from datapath.model.host import Device

_NO_PREFIX_ROUTE, _NODAD = 0x200, 0x02  # IFA_F_* of linux/if_addr.h
_PATIENCE = 5.0  # seconds: until the kernel has taken away what was in a namespace that has ended


def create(name: str, parent: str, mode: str, mac: str, mtu: int, netns: Netns = None) -> Device:
    """Makes a macvlan device over `parent`, which stays on the host: with the mode "passthru" it has the parent's MAC
    address. It is down and without addresses. `mtu`: bytes, 0: the parent's; `netns`: where it is made."""
    more: dict[str, Any] = {"mtu": mtu} if mtu else {}
    if mode != "passthru" and mac:
        more["address"] = mac
    with contextlib.ExitStack() as stack:
        if netns is not None:
            more["net_ns_fd"] = stack.enter_context(_opened(netns))
        route = stack.enter_context(opened())
        below = index_of(parent)
        with translated("create", f"device {name} over {parent}"):
            route.link("add", kind=MACVLAN, ifname=name, link=below, macvlan_mode=mode, **more)
    found = find(name, netns)
    if found is None:
        raise KernelError("look up", f"device {name}", errno.ENODEV)
    return found


def once_free(step: Callable[[], None]) -> None:
    """Does the step, which sets a device up. The one that had its MAC address may be in a namespace that has ended,
    and which the kernel takes away in its own time: then the step is done again whenever a device of the calling
    thread's namespace has changed, as the parent does when it loses one, for five seconds at most."""
    try:
        step()
        return
    except KernelError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    deadline = time.monotonic() + _PATIENCE
    with Events() as events:
        while True:
            try:
                step()
                return
            except KernelError as error:
                left = deadline - time.monotonic()
                if error.errno != errno.EADDRINUSE or left <= 0:
                    raise
            select.select(events.filenos(), [], [], left)
            events.drain()


@contextlib.contextmanager
def _opened(netns: Netns) -> Iterator[int]:
    """A file descriptor of the namespace."""
    if isinstance(netns, int):
        yield netns
        return
    with translated("open", f"network namespace {netns}"):
        fd = os.open(str(netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def find(name: str, netns: Netns = None) -> Device | None:
    """The device of that name in the namespace; None: there is none."""
    with enter(netns), translated("open", "rtnetlink socket"):
        route = Rtnetlink()
    with route, enter(netns):
        index = find_index(name)
        return None if index is None else facts.device(route, index)


def create_vlan(name: str, below: str, number: int) -> None:
    """Makes the VLAN `number` of a device, and sets it up. Undone on failure."""
    with opened() as route:
        link = index_of(below)
        with translated("create", f"VLAN {number} of device {below}"):
            route.link("add", kind=VLAN, ifname=name, link=link, vlan_id=number)
        try:
            with translated("set up", f"device {name}"):
                route.link("set", index=index_of(name), state="up")
        except BaseException:
            route.link("del", ifname=name)
            raise


def create_idle(name: str, peer: str, mtu: int) -> None:
    """Makes a parent for members that are to reach each other and nobody else: a pair of devices of which nobody uses
    the other end, as not every kernel has the kind "dummy". `mtu`: bytes, 0: the kernel's. Undone on failure."""
    more = {"mtu": mtu} if mtu else {}
    with opened() as route:
        with translated("create", f"device {name}"):
            route.link("add", kind=VETH, ifname=name, peer={"ifname": peer, **more}, **more)
        try:
            for end in (name, peer):
                quiet_ipv6(end)
                with translated("set up", f"device {end}"):
                    route.link("set", index=index_of(end), state="up")
        except BaseException:
            route.link("del", ifname=name)
            raise


def stand_in(name: str, parent: str, mode: str, addresses: Sequence[Interface]) -> None:
    """Makes a macvlan device for the host itself, through which members of `parent` see it: with the host's addresses
    of IPv6, as the kernel answers neighbour solicitations at no other device than an address's own; those of IPv4 it
    answers for at any."""
    create(name, parent, mode, "", 0)
    with opened() as route:
        index = index_of(name)
        if not addresses:
            quiet_ipv6(name)
        for address in addresses:
            with translated("add", f"address {address.ip} to {name}"):
                route.addr(
                    *("add", index),
                    address=str(address.ip),
                    prefixlen=address.max_prefixlen,
                    flags=_NO_PREFIX_ROUTE | _NODAD,
                )
        with translated("set up", f"device {name}"):
            route.link("set", index=index, state="up")
