# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses and routes, through rtnetlink.

What every command does, so it is quick; Linux bridges and what is rare are in `bridges`. Only settings of single
devices are ever written, never a namespace's or the machine's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType

from datapath.errors import KernelError
from datapath.kernel import facts, rtnetlink, sysctl
from datapath.kernel.facts import Facts as Facts
from datapath.kernel.facts import Interface, translated
from datapath.kernel.facts import Uplink as Uplink
from datapath.kernel.netns import Netns, enter
from datapath.kernel.rtnetlink import (
    CREATE,
    DELLINK,
    DELROUTE,
    EXCL,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    REPLACE,
    SETLINK,
    Message,
    Refused,
    Rtnetlink,
    attribute,
    text,
    u32,
)
from datapath.model.networks import NETKIT, VETH

_IFF_UP = 0x1
_IFF_NOARP = 0x80
_IFA_F_NODAD = 0x02
_CLSACT = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of pkt_sched.h, below TC_H_CLSACT
LOOPBACK = 1  # the kernel gives every namespace's loopback this index
# linux/if_link.h, if_addr.h, rtnetlink.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_INFO_PEER = 1  # VETH_INFO_PEER and IFLA_NETKIT_PEER_INFO
_IFLA_NETKIT_MODE, _NETKIT_L2 = 5, 0
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_OIF, _RTA_GATEWAY = 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST, _RT_SCOPE_NOWHERE = 254, 4, 1, 255

# Something to do, and in words what and to whom, should it be refused.
Step = tuple[str, str, Message]

Address = IPv4Address | IPv6Address


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def find_index(name: str) -> int | None:
    """The device's index in the calling thread's namespace."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # Python 3.11 does not say which; there is no other reason
        return None


def index_of(name: str) -> int:
    index = find_index(name)
    if index is None:
        raise KernelError("look up", f"device {name}", errno.ENODEV)
    return index


def _mark(host_ifname: str) -> str:
    """The MAC address of a pair's host end, which nobody uses: by it we know the device again."""
    return (b"\x06\x64" + zlib.crc32(host_ifname.encode()).to_bytes(4, "big")).hex(":")


def quiet_ipv6(name: str) -> None:
    """Keep the kernel from speaking IPv6 on a device; it must still be down."""
    sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)


def static_ipv6(name: str) -> None:
    """IPv6 with the given addresses and the link-local one that follows from the MAC, usable at once."""
    for key, value in (("disable_ipv6", 0), ("addr_gen_mode", 0), ("accept_dad", 0), ("accept_ra", 0)):
        sysctl.write(f"net/ipv6/conf/{name}/{key}", value)


class Links:
    """One rtnetlink socket in a namespace. All errors are KernelError."""

    def __init__(self, netns: Netns = None) -> None:
        self._netns = netns
        with enter(netns), translated("open", "rtnetlink socket"):
            self._route = Rtnetlink()

    def __enter__(self) -> Links:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._route.close()

    # ---- looking ---------------------------------------------------------------

    def index(self, name: str) -> int | None:
        with enter(self._netns):
            return find_index(name)

    def facts(self, ours: Collection[str] = ()) -> Facts:
        """The cost grows with addresses and routes, not with devices."""
        return facts.read(self._route, self._names(), ours)

    def uplinks(self, ours: Collection[str] = ()) -> tuple[Uplink, ...]:
        """Devices that are up and have a global address, without loopback and those named in `ours`."""
        return facts.uplinks(self._route, facts.addresses(self._route), self._names(), ours)

    def _names(self) -> dict[int, str]:
        with enter(self._netns), translated("list", "devices"):
            return dict(socket.if_nameindex())

    # ---- a network's gateway device ----------------------------------------------

    def create_gateway(
        self, name: str, peer: str, mac: str, addresses: Sequence[Interface], mtu: int, *, ipv6: bool
    ) -> int:
        """A veth pair: `name` holds the addresses, `peer` exists so that it has a carrier. Its index.

        Undone on failure.
        """
        ends = _end(name, mtu, mac), _end(peer, mtu)
        _do(self._route, ("create", f"device {name}", _new_pair(*ends)))
        try:
            with enter(self._netns):
                index, peer_index = index_of(name), index_of(peer)
                quiet_ipv6(peer)
                sysctl.write(f"net/ipv4/conf/{name}/forwarding", 1)
                if ipv6:
                    static_ipv6(name)
                    sysctl.write(f"net/ipv6/conf/{name}/forwarding", 1)
                else:
                    quiet_ipv6(name)
            _do(
                self._route,
                ("set up", f"device {peer}", _set_flags(peer_index, _IFF_UP | _IFF_NOARP)),
                *_bring_up(index, name, addresses),
            )
        except BaseException:
            self.delete(name)
            raise
        return index

    def mtu(self, name: str) -> int | None:
        """Bytes; None: there is no such device."""
        with enter(self._netns):
            index = find_index(name)
        return facts.mtu(self._route, index) if index is not None else None

    def keep_forwarding(self, names: Iterable[str]) -> list[str]:
        """Switch IPv4 forwarding on again for those of the gateway devices that have lost it; which those were.

        Setting net.ipv4.ip_forward, to whatever value, sets it for every device that there is.
        """
        lost = []
        with enter(self._netns):
            for name in names:
                path = f"net/ipv4/conf/{name}/forwarding"
                if os.path.exists(f"/proc/sys/{path}") and sysctl.read(path) == "0":
                    sysctl.write(path, 1)
                    lost.append(name)
        return lost

    # ---- an endpoint's pair --------------------------------------------------------

    def create_endpoint(
        self,
        host_ifname: str,
        ifname: str,
        netns: Netns,
        mac: str,
        mtu: int,
        prepare: Callable[[int], None] = lambda index: None,
        kind: str = VETH,
    ) -> tuple[int, int]:
        """The pair, made with its container end in place, in one message. (Host index, container index.)

        The host end is up and speaks no IPv6 of its own; the container end is down, without addresses.
        `prepare` is told the host end's index while that is down: what attaches a filter to a device that is up
        waits until no packet is under way in it.
        With netns None the container end stays here, for somebody else to move. `kind`: one of model.PAIRS.
        """
        peer = _end(ifname, mtu, mac)
        subject = f"devices {host_ifname} and {ifname}"
        with contextlib.ExitStack() as stack:
            if isinstance(netns, str):
                with translated("open", f"network namespace {netns}"):
                    netns = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, netns)
            if netns is not None:
                peer += u32(_IFLA_NET_NS_FD, netns)
            end = _end(host_ifname, mtu, _mark(host_ifname))
            _do(self._route, ("create", subject, _new_pair(end, peer, kind)))
            try:
                with enter(self._netns):
                    index = index_of(host_ifname)
                    quiet_ipv6(host_ifname)
                prepare(index)
                _do(self._route, ("set up", f"device {host_ifname}", _set_flags(index, _IFF_UP)))
                with enter(netns if netns is not None else self._netns):
                    return index, index_of(ifname)
            except BaseException:
                self.delete(host_ifname)
                raise

    def configure(
        self,
        netns: Netns,
        ifname: str,
        addresses: Sequence[Interface],
        *,
        gateway4: IPv4Address | None = None,
        gateway6: IPv6Address | None = None,
        ipv6: bool,
    ) -> None:
        """Bring up loopback and the container end, with its addresses and, if asked for, default routes."""
        with _inside(netns) as route:
            index = index_of(ifname)
            if ipv6:
                static_ipv6(ifname)
            else:
                quiet_ipv6(ifname)
            _do(
                route,
                _LOOPBACK_UP,
                *_bring_up(index, ifname, addresses),
                *(_default_route(index, ifname, gateway) for gateway in (gateway4, gateway6) if gateway),
            )

    def loopback_up(self, netns: Netns) -> None:
        """All that a sandbox without a network needs."""
        with _inside(netns) as route:
            _do(route, _LOOPBACK_UP)

    def set_gateway(self, netns: Netns, ifname: str, gateway: Address) -> None:
        """Make it the namespace's default route of its family, in place of whichever there was."""
        with _inside(netns) as route:
            index = index_of(ifname)
            _do(route, _default_route(index, ifname, gateway))  # first, so that there is no moment without
            for other in _default_devices(route, gateway.version) - {index}:
                _remove_default(route, other, gateway.version)

    def remove_gateway(self, netns: Netns, ifname: str, version: int) -> None:
        """Take away the default route through the device. None there is fine; version is 4 or 6."""
        with _inside(netns) as route:
            index = find_index(ifname)
            if index is not None and index in _default_devices(route, version):
                _remove_default(route, index, version)

    def rename(self, index: int, name: str) -> None:
        """Give a device its name back. Kernels before 6.2 rename none that is up: there it goes down meanwhile."""
        body = rtnetlink.LINK.pack(0, 0, index, 0, 0) + text(_IFLA_IFNAME, name)
        step = "rename", f"device {index} to {name}", Message(SETLINK, body)
        try:
            _do(self._route, step)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            down = Message(SETLINK, rtnetlink.LINK.pack(0, 0, index, 0, _IFF_UP))
            up = "set up", f"device {name}", _set_flags(index, _IFF_UP)
            _do(self._route, ("set down", f"device {index}", down), step, up)

    def align(self, name: str, *, mac: str = "", mtu: int = 0, addresses: Sequence[Interface] = ()) -> None:
        """Give a device back what is named, and set it up."""
        with enter(self._netns):
            index = index_of(name)
            if any(address.version == 6 for address in addresses):
                sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", 0)
        body = rtnetlink.LINK.pack(0, 0, index, 0, 0)
        steps: list[Step] = []
        if mac:
            address = attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
            steps.append(("set the MAC address of", f"device {name}", Message(SETLINK, body + address)))
        if mtu:
            steps.append(("set the MTU of", f"device {name}", Message(SETLINK, body + u32(_IFLA_MTU, mtu))))
        _do(self._route, *steps, *_bring_up(index, name, addresses))

    def delete_pair(self, name: str, peer: str) -> None:
        """Delete a gateway device and its other end, which nobody else has the name of. Gone already is fine, and
        so is a device of somebody else's that has the name now: it stays."""
        with enter(self._netns):
            index, other = find_index(name), find_index(peer)
        if other is not None:
            self.delete(other)
            return
        device = facts.device(self._route, index) if index is not None else None
        if device is not None and device.kind == VETH:
            self.delete(device.ifindex)

    def delete_endpoint(self, name: str, ifindex: int) -> None:
        """Delete an endpoint's pair; gone already is fine. `ifindex` 0: it was not noted. A device of somebody
        else's that has the name stays, and one of ours that was renamed goes."""
        with enter(self._netns):
            index = find_index(name) or ifindex
        device = facts.device(self._route, index) if index and index != ifindex else None
        if index and (index == ifindex or (device is not None and device.mac == _mark(name))):
            self.delete(index)

    def delete(self, *devices: str | int) -> None:
        """Delete devices by name or index; gone already is fine. Goes through all, then reports.

        When this returns they are gone with their names and addresses, on either side. What the kernel does after
        that is to wait, without any lock, until nobody can hold them any more: see `_delete_behind`.
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
        """Returns as soon as the device is gone, not when the kernel has answered.

        The answer to the request comes 10 to 30 ms after that (netdev_run_todo: an rcu_barrier). A thread takes it.
        Nothing depends on the thread: once it is in the kernel the device goes, even if the process is killed.
        """
        with enter(self._netns), translated("open", "rtnetlink socket"):
            route = Rtnetlink()
        step = "delete", f"device {device}", Message(DELLINK, _named(device))
        failures: list[Exception] = []
        answered = threading.Event()

        def ask() -> None:
            try:
                with route:
                    _do(route, step)
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
        """Asked by a change of nothing: it takes the lock that a deletion holds from its beginning to its end."""
        try:
            self._route.do(Message(SETLINK, _named(device)))
        except Refused as error:
            if error.errno == errno.ENODEV:
                return False
        return True


def has_filters(ifindex: int) -> bool:
    """Somebody has a filter at the device's clsact qdisc."""
    with _inside(None) as route, translated("list", f"filters of device {ifindex}"):
        return any(
            route.dump(Message(rtnetlink.GETTFILTER, rtnetlink.TC.pack(0, ifindex, 0, parent, 0)))
            for parent in _CLSACT
        )


@contextlib.contextmanager
def _inside(netns: Netns) -> Iterator[Rtnetlink]:
    """A socket in a container's namespace, with the thread in it too (for indexes and sysctls)."""
    with enter(netns):
        with translated("open", "rtnetlink socket"):
            route = Rtnetlink()
        with route:
            yield route


def _do(route: Rtnetlink, *steps: Step) -> None:
    """All steps, in one system call. KernelError names the one that was refused first."""
    try:
        route.do(*(message for _, _, message in steps))
    except Refused as error:
        operation, subject, _ = steps[error.place]
        raise KernelError(operation, subject, error.errno or 0) from error
    except OSError as error:
        raise KernelError(*steps[0][:2], error.errno or 0) from error


def _end(name: str, mtu: int, mac: str = "") -> bytes:
    """The attributes of one end of a new pair."""
    address = attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + address


def _new_pair(one: bytes, other: bytes, kind: str = VETH) -> Message:
    """Of netkit, `one` is the primary device, which alone may change how either end works."""
    header = rtnetlink.LINK.pack(0, 0, 0, 0, 0)
    data = attribute(_INFO_PEER, header + other)
    if kind == NETKIT:
        data += u32(_IFLA_NETKIT_MODE, _NETKIT_L2)
    info = attribute(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind) + attribute(_IFLA_INFO_DATA, data))
    return Message(NEWLINK, header + one + info, CREATE | EXCL)


def _set_flags(index: int, flags: int) -> Message:
    return Message(SETLINK, rtnetlink.LINK.pack(0, 0, index, flags, flags))


def _named(device: str | int) -> bytes:
    """Whom a message is about, by name or index."""
    if isinstance(device, int):
        return rtnetlink.LINK.pack(0, 0, device, 0, 0)
    return rtnetlink.LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, device)


_LOOPBACK_UP: Step = ("set up", "device lo", _set_flags(LOOPBACK, _IFF_UP))


def _bring_up(index: int, name: str, addresses: Sequence[Interface]) -> Iterator[Step]:
    for address in addresses:
        length, packed = address.network.prefixlen, address.ip.packed
        body = rtnetlink.ADDR.pack(_family(address.version), length, 0, 0, index)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        if address.version == 6:
            body += u32(_IFA_FLAGS, _IFA_F_NODAD)
        elif length < 31:
            body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
        yield "add", f"address {address} to {name}", Message(NEWADDR, body, CREATE | EXCL)
    yield "set up", f"device {name}", _set_flags(index, _IFF_UP)


def _default_route(index: int, name: str, gateway: Address) -> Step:
    header = rtnetlink.ROUTE.pack(
        *(_family(gateway.version), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
    )
    body = header + attribute(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)
    return "add", f"default route via {gateway} to {name}", Message(NEWROUTE, body, CREATE | REPLACE)


def _default_devices(route: Rtnetlink, version: int) -> set[int]:
    return {
        one.device
        for one in facts.unicast_routes(route, _family(version))
        if not one.prefix.prefixlen and one.device
    }


def _remove_default(route: Rtnetlink, index: int, version: int) -> None:
    header = rtnetlink.ROUTE.pack(_family(version), 0, 0, 0, _RT_TABLE_MAIN, 0, _RT_SCOPE_NOWHERE, 0, 0)
    message = Message(DELROUTE, header + u32(_RTA_OIF, index))
    _do(route, ("remove", f"default route of device {index}", message))
