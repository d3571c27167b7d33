# SPDX-License-Identifier: Apache-2.0
"""Linux bridges and their ports, and the MTU of devices: through pyroute2, as no usual command waits for them.

What every command does is in `links`. All errors are KernelError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datapath.kernel import facts, sysctl
from datapath.kernel.devices import find_index, index_of, quiet_ipv6, static_ipv6
from datapath.kernel.facts import Interface
from datapath.kernel.netns import Netns
from datapath.kernel.pyroute import opened, translated
from datapath.kernel.rtnetlink import Rtnetlink

_IFA_F_NODAD = 0x02


def create(name: str, mac: str, addresses: Sequence[Interface], mtu: int, *, ipv6: bool) -> int:
    """A Linux bridge that holds the addresses, lets 127.0.0.1 of the host talk to its members, and shows the
    packet filter what its members send each other: for some of it the filter has translated. Its index.

    Undone on failure.
    """
    filtered = {"br_nf_call_iptables": 1, "br_nf_call_ip6tables": 1}
    with opened() as route:
        with translated("create", f"bridge {name}"):
            route.link("add", kind="bridge", ifname=name, address=mac, **filtered)
        number = index_of(name)
        try:
            sysctl.write(f"net/ipv4/conf/{name}/forwarding", 1)
            sysctl.write(f"net/ipv4/conf/{name}/route_localnet", 1)
            if ipv6:
                static_ipv6(name)
                sysctl.write(f"net/ipv6/conf/{name}/forwarding", 1)
                sysctl.write_if_present(f"net/ipv6/conf/{name}/force_forwarding", 1)
            else:
                quiet_ipv6(name)
            with translated("set the MTU of", f"bridge {name}"):
                route.link("set", index=number, mtu=mtu)
            for address in addresses:
                _hold(route, number, name, address)
            with translated("set up", f"bridge {name}"):
                route.link("set", index=number, state="up")
        except BaseException:
            with translated("delete", f"bridge {name}"):
                route.link("del", index=number)
            raise
    return number


def find(name: str, mac: str, addresses: Sequence[Interface]) -> int | None:
    """The index of the bridge of that name if it has the MAC address or one of the addresses that it was made with;
    None: there is no such device, or it is another's. People change one of these, not both."""
    index = find_index(name)
    if index is None:
        return None
    with translated("open", "rtnetlink socket"):
        socket = Rtnetlink()
    with socket as route:
        device = facts.device(route, index)
        if device is None or device.kind != "bridge":
            return None
        if device.mac == mac:
            return index
        held = {one.interface for one in facts.addresses(route) if one.ifindex == index}
    return index if held & set(addresses) else None


def _hold(route: Any, number: int, name: str, address: Interface) -> None:
    more: dict[str, Any] = {}
    if address.version == 6:
        more["flags"] = _IFA_F_NODAD
    elif address.network.prefixlen < 31:
        more["broadcast"] = str(address.network.broadcast_address)
    with translated("add", f"address {address} to {name}"):
        route.addr("add", index=number, address=str(address.ip), prefixlen=address.network.prefixlen, **more)


def enslave(name: str, bridge: str) -> None:
    """Makes a device a port of the bridge, in hairpin mode: it may also get back what it sent."""
    number, master = index_of(name), index_of(bridge)
    with opened() as route, translated("add", f"device {name} to bridge {bridge}"):
        route.link("set", index=number, master=master)
        route.brport("set", index=number, mode=1)


def set_mtu(netns: Netns, devices: Sequence[str], mtu: int) -> None:
    """Sets the MTU, in bytes, of devices in the namespace. Devices that have gone meanwhile are passed over."""
    with opened(netns) as route:
        for name in devices:
            number = find_index(name)
            if number is not None:
                with translated("set the MTU of", f"device {name}"):
                    route.link("set", index=number, mtu=mtu)
