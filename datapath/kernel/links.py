# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses and routes, through rtnetlink.

Only settings of single devices are ever written, never a namespace's or the machine's.
pyroute2 takes 0.1 s to import, so it is imported where a socket is opened. It is the 0.7 series on purpose:
0.9 runs an event loop below the same calls, which makes each request about twice as dear.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any

from datapath.errors import KernelError
from datapath.kernel import facts, sysctl
from datapath.kernel.facts import Facts as Facts
from datapath.kernel.facts import Interface, device_of, translated
from datapath.kernel.facts import Uplink as Uplink
from datapath.kernel.netns import Netns, enter

_IFF_UP = 0x1
_IFF_NOARP = 0x80
_IFA_F_NODAD = 0x02
_CLSACT = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of pkt_sched.h, below TC_H_CLSACT
LOOPBACK = 1  # the kernel gives every namespace's loopback this index

Address = IPv4Address | IPv6Address


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _index(name: str) -> int | None:
    """The device's index in the calling thread's namespace."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # Python 3.11 does not say which; there is no other reason
        return None


def _index_of(name: str) -> int:
    index = _index(name)
    if index is None:
        raise KernelError("look up", f"device {name}", errno.ENODEV)
    return index


def _mark(host_ifname: str) -> str:
    """The MAC address of a pair's host end, which nobody uses: by it we know the device again."""
    return (b"\x06\x64" + zlib.crc32(host_ifname.encode()).to_bytes(4, "big")).hex(":")


def _quiet_ipv6(name: str) -> None:
    """Keep the kernel from speaking IPv6 on a device; it must still be down."""
    sysctl.write_if_present(f"net/ipv6/conf/{name}/disable_ipv6", 1)


def _static_ipv6(name: str) -> None:
    """IPv6 with the given addresses and the link-local one that follows from the MAC, usable at once."""
    for key, value in (("disable_ipv6", 0), ("addr_gen_mode", 0), ("accept_dad", 0), ("accept_ra", 0)):
        sysctl.write(f"net/ipv6/conf/{name}/{key}", value)


class Links:
    """One rtnetlink socket in a namespace. All errors are KernelError."""

    def __init__(self, netns: Netns = None) -> None:
        from pyroute2 import IPRoute

        self._netns = netns
        with enter(netns), translated("open", "rtnetlink socket"):
            self._route: Any = IPRoute(strict_check=True)

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
            return _index(name)

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
        with translated("create", f"device {name}"):
            self._route.link(
                "add", kind="veth", ifname=name, address=mac, mtu=mtu, peer={"ifname": peer, "mtu": mtu}
            )
        try:
            with enter(self._netns):
                index, peer_index = _index_of(name), _index_of(peer)
                _quiet_ipv6(peer)
                sysctl.write(f"net/ipv4/conf/{name}/forwarding", 1)
                if ipv6:
                    _static_ipv6(name)
                    sysctl.write(f"net/ipv6/conf/{name}/forwarding", 1)
                else:
                    _quiet_ipv6(name)
            with translated("set up", f"device {peer}"):
                flags = _IFF_UP | _IFF_NOARP
                self._route.link("set", index=peer_index, flags=flags, change=flags)
            _bring_up(self._route, index, name, addresses)
        except BaseException:
            self.delete(name)
            raise
        return index

    # ---- a classic network's bridge ------------------------------------------------

    def create_bridge(
        self, name: str, mac: str, addresses: Sequence[Interface], mtu: int, *, ipv6: bool
    ) -> int:
        """A Linux bridge that holds the addresses, lets 127.0.0.1 of the host talk to its members, and shows the
        packet filter what its members send each other: for some of it the filter has translated. Its index.

        Undone on failure.
        """
        filtered = {"br_nf_call_iptables": 1, "br_nf_call_ip6tables": 1}
        with translated("create", f"bridge {name}"):
            self._route.link("add", kind="bridge", ifname=name, address=mac, **filtered)
        try:
            with enter(self._netns):
                index = _index_of(name)
                sysctl.write(f"net/ipv4/conf/{name}/forwarding", 1)
                sysctl.write(f"net/ipv4/conf/{name}/route_localnet", 1)
                if ipv6:
                    _static_ipv6(name)
                    sysctl.write(f"net/ipv6/conf/{name}/forwarding", 1)
                    sysctl.write_if_present(f"net/ipv6/conf/{name}/force_forwarding", 1)
                else:
                    _quiet_ipv6(name)
            with translated("set the MTU of", f"bridge {name}"):
                self._route.link("set", index=index, mtu=mtu)
            _bring_up(self._route, index, name, addresses)
        except BaseException:
            self.delete(name)
            raise
        return index

    def enslave(self, name: str, bridge: str) -> None:
        """Make a device a port of the bridge, one that may also get back what it sent (hairpin mode)."""
        with enter(self._netns):
            index, bridge_index = _index_of(name), _index_of(bridge)
        with translated("add", f"device {name} to bridge {bridge}"):
            self._route.link("set", index=index, master=bridge_index)
            self._route.brport("set", index=index, mode=1)

    def mtu(self, name: str) -> int | None:
        """Bytes; None: there is no such device."""
        with enter(self._netns):
            index = _index(name)
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
        self, host_ifname: str, ifname: str, netns: Netns, mac: str, mtu: int
    ) -> tuple[int, int]:
        """The pair, made with its container end in place, in one message. (Host index, container index.)

        The host end is up and speaks no IPv6 of its own; the container end is down, without addresses.
        With netns None the container end stays here, for somebody else to move.
        """
        peer: dict[str, Any] = {"ifname": ifname, "address": mac, "mtu": mtu}
        subject = f"devices {host_ifname} and {ifname}"
        with contextlib.ExitStack() as stack:
            if isinstance(netns, str):
                with translated("open", f"network namespace {netns}"):
                    netns = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, netns)
            if netns is not None:
                peer["net_ns_fd"] = netns
            with translated("create", subject):
                self._route.link(
                    "add", kind="veth", ifname=host_ifname, address=_mark(host_ifname), mtu=mtu, peer=peer
                )
            try:
                with enter(self._netns):
                    index = _index_of(host_ifname)
                    _quiet_ipv6(host_ifname)
                with translated("set up", f"device {host_ifname}"):
                    self._route.link("set", index=index, flags=_IFF_UP, change=_IFF_UP)
                with enter(netns if netns is not None else self._netns):
                    return index, _index_of(ifname)
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
            index = _index_of(ifname)
            if ipv6:
                _static_ipv6(ifname)
            else:
                _quiet_ipv6(ifname)
            with translated("set up", "device lo"):
                route.link("set", index=LOOPBACK, flags=_IFF_UP, change=_IFF_UP)
            _bring_up(route, index, ifname, addresses)
            for gateway in (gateway4, gateway6):
                if gateway is not None:
                    _default_route(route, index, ifname, gateway)

    def loopback_up(self, netns: Netns) -> None:
        """All that a sandbox without a network needs."""
        with _inside(netns) as route, translated("set up", "device lo"):
            route.link("set", index=LOOPBACK, flags=_IFF_UP, change=_IFF_UP)

    def set_mtu(self, netns: Netns, devices: Sequence[str], mtu: int) -> None:
        """Devices that somebody has taken away meanwhile are passed over."""
        with _inside(netns if netns is not None else self._netns) as route:
            for name in devices:
                index = _index(name)
                if index is not None:
                    with translated("set the MTU of", f"device {name}"):
                        route.link("set", index=index, mtu=mtu)

    def set_gateway(self, netns: Netns, ifname: str, gateway: Address) -> None:
        """Make it the namespace's default route of its family, in place of whichever there was."""
        with _inside(netns) as route:
            index = _index_of(ifname)
            _default_route(route, index, ifname, gateway)  # first, so that there is no moment without
            for other in _default_devices(route, gateway.version) - {index}:
                _remove_default(route, other, gateway.version)

    def remove_gateway(self, netns: Netns, ifname: str, version: int) -> None:
        """Take away the default route through the device. None there is fine; version is 4 or 6."""
        with _inside(netns) as route:
            index = _index(ifname)
            if index is not None and index in _default_devices(route, version):
                _remove_default(route, index, version)

    def rename(self, index: int, name: str) -> None:
        """Give a device its name back. Kernels before 6.2 rename none that is up: there it goes down meanwhile."""
        subject = f"device {index} to {name}"
        try:
            with translated("rename", subject):
                self._route.link("set", index=index, ifname=name)
            return
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
        with translated("rename", subject):
            self._route.link("set", index=index, flags=0, change=_IFF_UP)
            self._route.link("set", index=index, ifname=name)
            self._route.link("set", index=index, flags=_IFF_UP, change=_IFF_UP)

    def align(self, name: str, *, mac: str = "", mtu: int = 0, addresses: Sequence[Interface] = ()) -> None:
        """Give a device back what is named, and set it up."""
        with enter(self._netns):
            index = _index_of(name)
            if any(address.version == 6 for address in addresses):
                sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", 0)
        more: dict[str, Any] = ({"address": mac} if mac else {}) | ({"mtu": mtu} if mtu else {})
        if more:
            with translated("set up", f"device {name}"):
                self._route.link("set", index=index, **more)
        _bring_up(self._route, index, name, addresses)

    def delete_pair(self, name: str, peer: str) -> None:
        """Delete a gateway device and its other end, which nobody else has the name of. Gone already is fine, and
        so is a device of somebody else's that has the name now: it stays."""
        with enter(self._netns):
            index, other = _index(name), _index(peer)
        if other is not None:
            self.delete(other)
        elif index is not None and facts.kind(self._route, index) == "veth":
            self.delete(index)

    def delete_endpoint(self, name: str, ifindex: int) -> None:
        """Delete an endpoint's pair; gone already is fine. `ifindex` 0: it was not noted. A device of somebody
        else's that has the name stays, and one of ours that was renamed goes."""
        with enter(self._netns):
            index = _index(name) or ifindex
        if index and (index == ifindex or facts.mac(self._route, index) == _mark(name)):
            self.delete(index)

    def delete(self, *devices: str | int) -> None:
        """Delete devices by name or index; gone already is fine. Goes through all, then reports."""
        failures: list[Exception] = []
        for device in devices:
            which = {"index": device} if isinstance(device, int) else {"ifname": device}
            try:
                with translated("delete", f"device {device}"):
                    self._route.link("del", **which)
            except KernelError as error:
                if error.errno != errno.ENODEV:
                    failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("devices could not be deleted", failures)


def has_filters(ifindex: int) -> bool:
    """Somebody has a filter at the device's clsact qdisc."""
    with _inside(None) as route, translated("list", f"filters of device {ifindex}"):
        return any(list(route.get_filters(index=ifindex, parent=parent)) for parent in _CLSACT)


@contextlib.contextmanager
def _inside(netns: Netns) -> Iterator[Any]:
    """A socket in a container's namespace, with the thread in it too (for indexes and sysctls)."""
    from pyroute2 import IPRoute

    with enter(netns):
        with translated("open", "rtnetlink socket"):
            route = IPRoute(strict_check=True)
        try:
            yield route
        finally:
            route.close()


def _bring_up(route: Any, index: int, name: str, addresses: Sequence[Interface]) -> None:
    for address in addresses:
        more: dict[str, Any] = {}
        if address.version == 6:
            more["flags"] = _IFA_F_NODAD
        elif address.network.prefixlen < 31:
            more["broadcast"] = str(address.network.broadcast_address)
        with translated("add", f"address {address} to {name}"):
            route.addr(
                "add",
                index=index,
                family=_family(address.version),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **more,
            )
    with translated("set up", f"device {name}"):
        route.link("set", index=index, flags=_IFF_UP, change=_IFF_UP)


def _default_route(route: Any, index: int, name: str, gateway: Address) -> None:
    with translated("add", f"default route via {gateway} to {name}"):
        route.route("replace", family=_family(gateway.version), gateway=str(gateway), oif=index)


def _default_devices(route: Any, version: int) -> set[int]:
    routes = facts.unicast_routes(route, _family(version))
    return {device_of(message) for message in routes if not message["dst_len"]}


def _remove_default(route: Any, index: int, version: int) -> None:
    destination = "0.0.0.0/0" if version == 4 else "::/0"
    with translated("remove", f"default route of device {index}"):
        route.route("del", family=_family(version), dst=destination, oif=index)
