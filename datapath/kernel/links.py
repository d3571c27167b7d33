# SPDX-License-Identifier: Apache-2.0
"""Pairs of devices that join a network namespace to the host, and what is set up at either end, through rtnetlink.

What every command does, so it is quick; Linux bridges and what is rare are in `bridges`. Only settings of single
devices are ever written, never a namespace's or the machine's.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from datapath.kernel import facts, sysctl
from datapath.kernel import link_messages as messages
from datapath.kernel.devices import Devices, find_index, index_of, inside, quiet_ipv6, static_ipv6
from datapath.kernel.facts import Interface, translated
from datapath.kernel.link_messages import IFF_NOARP, IFF_UP, LOOPBACK_UP, Address, do
from datapath.kernel.link_messages import LOOPBACK as LOOPBACK
from datapath.kernel.netns import Netns, enter
from datapath.kernel.rtnetlink import Rtnetlink
from datapath.model.devices import VETH


def _mark(host_ifname: str) -> str:
    """The MAC address of the host's end of a pair, which no packet needs: it tells our pairs from others' devices."""
    return (b"\x06\x64" + zlib.crc32(host_ifname.encode()).to_bytes(4, "big")).hex(":")


def _forward_questions(name: str) -> None:
    """Of a gateway device whose network has no IPv6: by its forwarding the kernel decides whether the packet programs
    may be told routes, and name servers can have IPv6 addresses all the same. No packet of that family passes there."""
    path = f"net/ipv6/conf/{name}"
    if not sysctl.exists(path) or sysctl.read(f"{path}/disable_ipv6") != "1":
        return
    if sysctl.read(f"{path}/forwarding") == "0":
        sysctl.write(f"{path}/forwarding", 1)


class Links(Devices):
    """Devices, and pairs of them."""

    def create_gateway(
        self, name: str, peer: str, mac: str, addresses: Sequence[Interface], mtu: int, *, ipv6: bool
    ) -> int:
        """Makes a veth pair of which `name` holds the addresses; `peer` exists so that it has a carrier. Returns the
        index of `name`. `mtu`: bytes. Undone on failure.
        """
        ends = messages.end(name, mtu, mac), messages.end(peer, mtu)
        do(self._route, ("create", f"device {name}", messages.new_pair(*ends)))
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
                    _forward_questions(name)
            do(
                self._route,
                ("set up", f"device {peer}", messages.set_flags(peer_index, IFF_UP | IFF_NOARP)),
                *messages.bring_up(index, name, addresses),
            )
        except BaseException:
            self.delete(name)
            raise
        return index

    def delete_pair(self, name: str, peer: str) -> None:
        """Deletes a veth pair by the name of its other end, or else of its first. Idempotent. A device of another
        kind that has the name now stays."""
        with enter(self._netns):
            index, other = find_index(name), find_index(peer)
        if other is not None:
            self.delete(other)
            return
        device = facts.device(self._route, index) if index is not None else None
        if device is not None and device.kind == VETH:
            self.delete(device.ifindex)

    def keep_forwarding(self, names: Iterable[str]) -> list[str]:
        """Switches IPv4 forwarding on for those of the devices that have it off; returns these. And IPv6 forwarding
        for those without addresses of that family, of which it is not said.

        Setting net.ipv4.ip_forward, to any value, sets it for every device of the namespace.
        """
        lost = []
        with enter(self._netns):
            for name in names:
                path = f"net/ipv4/conf/{name}/forwarding"
                if os.path.exists(f"/proc/sys/{path}") and sysctl.read(path) == "0":
                    sysctl.write(path, 1)
                    lost.append(name)
                _forward_questions(name)
        return lost

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
        """Makes a pair with one end in the namespace, by one message. (Index of the host's end, of the other end.)

        The host's end is up and speaks no IPv6 of its own; the other end is down, without addresses. `mtu`: bytes.
        `prepare` is told the index of the host's end while that is down: attaching a filter to a device that is up
        waits until no packet is under way in it. With netns None the other end stays here, for somebody else to
        move. `kind`: VETH or NETKIT. Undone on failure.
        """
        subject = f"devices {host_ifname} and {ifname}"
        with contextlib.ExitStack() as stack:
            if isinstance(netns, str):
                with translated("open", f"network namespace {netns}"):
                    netns = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, netns)
            ends = messages.end(host_ifname, mtu, _mark(host_ifname)), messages.end(ifname, mtu, mac, netns)
            do(self._route, ("create", subject, messages.new_pair(*ends, kind)))
            try:
                with enter(self._netns):
                    index = index_of(host_ifname)
                    quiet_ipv6(host_ifname)
                prepare(index)
                do(self._route, ("set up", f"device {host_ifname}", messages.set_flags(index, IFF_UP)))
                with enter(netns if netns is not None else self._netns):
                    return index, index_of(ifname)
            except BaseException:
                self.delete(host_ifname)
                raise

    def delete_endpoint(self, name: str, ifindex: int) -> None:
        """Deletes the pair whose host's end has that name or index (0: unknown). Idempotent. A pair that was renamed
        goes too; another's device that has the name now stays."""
        with enter(self._netns):
            found = find_index(name)
        index = found or ifindex
        # It may have gone with its container's namespace, which the kernel takes away in its own time.
        device = facts.device(self._route, index) if index and found != ifindex else None
        if index and (found == ifindex or (device and (index == ifindex or device.mac == _mark(name)))):
            self.delete(index)

    # ---- inside a namespace -----------------------------------------------------------------

    def configure(
        self,
        netns: Netns,
        ifname: str,
        addresses: Sequence[Interface],
        *,
        gateway4: IPv4Address | None = None,
        gateway6: IPv6Address | None = None,
        ipv6: bool,
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        """Sets up the loopback device and the device in the namespace, with its addresses and default routes.
        `sysctls`: settings of the device, path -> value, which it has before it is up."""
        with inside(netns) as route:
            index = index_of(ifname)
            if ipv6:
                static_ipv6(ifname)
            else:
                quiet_ipv6(ifname)
            for path, value in (sysctls or {}).items():
                sysctl.write(path, value)
            do(
                route,
                LOOPBACK_UP,
                *messages.bring_up(index, ifname, addresses, exist_ok=True),
                *(
                    messages.default_route(index, ifname, gateway)
                    for gateway in (gateway4, gateway6)
                    if gateway
                ),
            )

    def loopback_up(self, netns: Netns) -> None:
        """Sets up the loopback device of the namespace."""
        with inside(netns) as route:
            do(route, LOOPBACK_UP)

    def set_gateway(self, netns: Netns, ifname: str, gateway: Address) -> None:
        """Makes it the namespace's default route of its family, in place of all others."""
        with inside(netns) as route:
            index = index_of(ifname)
            do(
                route, messages.default_route(index, ifname, gateway)
            )  # first, so that there is no moment without
            for other in _default_devices(route, gateway.version) - {index}:
                do(route, messages.remove_default_route(other, gateway.version))

    def lead(
        self,
        netns: Netns,
        ifname: str,
        destination: IPv4Address,
        gateway: Address,
        source: IPv4Address,
        metric: int,
    ) -> None:
        """Makes an address of 127.0.0.0/8, which is the namespace's own otherwise, be reached by a gateway there, over
        the device; `metric`: which of several devices goes first. Idempotent."""
        with inside(netns) as route:
            sysctl.write(sysctl.route_localnet(ifname), 1)
            do(route, messages.host_route(index_of(ifname), ifname, destination, gateway, source, metric))

    def remove_gateway(self, netns: Netns, ifname: str, version: int) -> None:
        """Removes the default route of that IP version (4, 6) through the device, if there is one."""
        with inside(netns) as route:
            index = find_index(ifname)
            if index is not None and index in _default_devices(route, version):
                do(route, messages.remove_default_route(index, version))


def _default_devices(route: Rtnetlink, version: int) -> set[int]:
    """The indexes of devices that default routes of that IP version lead through."""
    return {
        one.device
        for one in facts.unicast_routes(route, messages.family(version))
        if not one.prefix.prefixlen and one.device
    }
