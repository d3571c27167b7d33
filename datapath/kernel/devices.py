# SPDX-License-Identifier: Apache-2.0
"""Network devices: looking for them, renaming, changing and deleting them, through rtnetlink."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Self

from datapath.errors import KernelError
from datapath.kernel import facts, observe, rtnetlink, sysctl
from datapath.kernel import link_messages as messages
from datapath.kernel.facts import Interface, translated
from datapath.kernel.link_messages import IFF_UP, Step, do
from datapath.kernel.netns import Netns, enter
from datapath.kernel.rtnetlink import Message, Refused, Rtnetlink
from datapath.model.host import HostNetwork

_CLSACT = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of pkt_sched.h, below TC_H_CLSACT


def find_index(name: str) -> int | None:
    """The device's index in the calling thread's namespace; None: there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # Python 3.11 does not say which; there is no other reason
        return None


def index_of(name: str) -> int:
    """The same; KernelError with ENODEV: there is none of that name."""
    index = find_index(name)
    if index is None:
        raise KernelError("look up", f"device {name}", errno.ENODEV)
    return index


def name_of(netns: Netns, ifindex: int) -> str:
    """The name of the device with that index; "" if there is none, or if the namespace is gone."""
    with contextlib.suppress(KernelError, OSError), enter(netns):
        return socket.if_indextoname(ifindex)
    return ""


def quiet_ipv6(name: str) -> None:
    """Keeps the kernel from speaking IPv6 on a device, which must still be down."""
    sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)


def static_ipv6(name: str) -> None:
    """Prepares a device for IPv6 with given addresses and the link-local one that follows from the MAC, usable at once:
    no duplicate address detection, no router advertisements."""
    for key, value in (("disable_ipv6", 0), ("addr_gen_mode", 0), ("accept_dad", 0), ("accept_ra", 0)):
        sysctl.write(f"net/ipv6/conf/{name}/{key}", value)


class Devices:
    """The devices of one network namespace, through one rtnetlink socket. All errors are KernelError."""

    def __init__(self, netns: Netns = None) -> None:
        self._netns = netns
        with enter(netns), translated("open", "rtnetlink socket"):
            self._route = Rtnetlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._route.close()

    # ---- looking ---------------------------------------------------------------

    def index(self, name: str) -> int | None:
        """The index of the device of that name; None: there is none."""
        with enter(self._netns):
            return find_index(name)

    def observe(self, ours: Collection[str] = (), *, every: bool = False) -> HostNetwork:
        """The namespace's network; `ours`: names of devices that are no uplinks. It takes longer with more addresses
        and routes, and with more devices only if `every` one is looked at."""
        with enter(self._netns):
            return observe.observe(self._route, frozenset(ours), every=every)

    def mtu(self, name: str) -> int | None:
        """The device's MTU in bytes; None: there is no such device."""
        with enter(self._netns):
            index = find_index(name)
        return facts.mtu(self._route, index) if index is not None else None

    def is_cut_off(self, index: int) -> bool:
        """The device is gone, or about to go with the network namespace that its other end is in."""
        return facts.is_cut_off(self._route, index)

    def rename(self, index: int, name: str) -> None:
        """Renames a device. Kernels before 6.2 refuse it while the device is up: there it is set down meanwhile."""
        step = "rename", f"device {index} to {name}", messages.change(index, messages.new_name(name))
        try:
            do(self._route, step)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            down = "set down", f"device {index}", messages.set_down(index)
            up = "set up", f"device {name}", messages.set_flags(index, IFF_UP)
            do(self._route, down, step, up)

    def move(self, name: str, netns: str, new_name: str) -> None:
        """Moves a device that is down into another namespace, where it has a new name. No such device is fine: it
        has been moved before."""
        with enter(self._netns):
            index = find_index(name)
        if index is None:
            return
        with translated("open", f"network namespace {netns}"):
            target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            attributes = messages.moved(target) + messages.new_name(new_name)
            do(self._route, ("move", f"device {name}", messages.change(index, attributes)))
        finally:
            os.close(target)

    def align(self, name: str, *, mac: str = "", mtu: int = 0, addresses: Sequence[Interface] = ()) -> None:
        """Gives a device the MAC address, the MTU (bytes) and the addresses that are named, and sets it up. Addresses
        that it has already are KernelError with EEXIST."""
        with enter(self._netns):
            index = index_of(name)
            if any(address.version == 6 for address in addresses):
                sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", 0)
        subject = f"device {name}"
        steps: list[Step] = []
        if mac:
            steps.append(("set the MAC address of", subject, messages.change(index, messages.new_mac(mac))))
        if mtu:
            steps.append(("set the MTU of", subject, messages.change(index, messages.new_mtu(mtu))))
        do(self._route, *steps, *messages.bring_up(index, name, addresses))

    def delete(self, *devices: str | int) -> None:
        """Deletes devices by name or index. Idempotent. A failure does not keep the others from being deleted:
        KernelError, or an ExceptionGroup of several.

        When this returns the devices are gone with their names and addresses, on either side. The kernel then waits,
        without any lock, until no reference to them is left: see `_delete_behind`.
        """
        failures: list[Exception] = []
        for device in devices:
            try:
                self._delete_behind(device)
            except KernelError as error:
                if error.errno != errno.ENODEV:
                    failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("devices could not be deleted", failures)

    def _delete_behind(self, device: str | int) -> None:
        """Deletes a device, and returns as soon as it is gone, not when the kernel has answered.

        The answer to the request comes 10 to 30 ms after that (netdev_run_todo: an rcu_barrier). A thread takes it.
        Nothing depends on the thread: once it is in the kernel the device goes, even if the process is killed.
        """
        with enter(self._netns), translated("open", "rtnetlink socket"):
            route = Rtnetlink()
        step = "delete", f"device {device}", messages.delete(device)
        failures: list[Exception] = []
        answered = threading.Event()

        def ask() -> None:
            try:
                with route:
                    do(route, step)
            except KernelError as error:
                failures.append(error)
            finally:
                answered.set()

        threading.Thread(target=ask, name=f"delete {device}").start()
        while self._there(device) and not answered.wait(0.0002):
            pass
        if failures:
            raise failures[0]

    def _there(self, device: str | int) -> bool:
        """Whether the device exists. Asked by a change of nothing, which waits for the lock that a deletion holds."""
        try:
            self._route.do(messages.unchanged(device))
        except Refused as error:
            if error.errno == errno.ENODEV:
                return False
        return True


def has_filters(ifindex: int) -> bool:
    """Whether a filter is left at the device's clsact qdisc, in the caller's namespace."""
    with inside(None) as route, translated("list", f"filters of device {ifindex}"):
        return any(
            route.dump(Message(rtnetlink.GETTFILTER, rtnetlink.TC.pack(0, ifindex, 0, parent, 0)))
            for parent in _CLSACT
        )


@contextlib.contextmanager
def inside(netns: Netns) -> Iterator[Rtnetlink]:
    """A socket in the namespace, with the thread in it too (for indexes and settings)."""
    with enter(netns):
        with translated("open", "rtnetlink socket"):
            route = Rtnetlink()
        with route:
            yield route
