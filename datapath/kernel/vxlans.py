# SPDX-License-Identifier: Apache-2.0
"""The device of tunnels: a VXLAN device that is told each packet's network and peer by programs ("external", collect
metadata). Its socket holds the UDP port, and lets the kernel's GRO join what arrives in tunnels.

All errors are KernelError.
"""

from __future__ import annotations

from datapath.kernel.devices import index_of, quiet_ipv6
from datapath.kernel.netns import Netns, enter
from datapath.kernel.pyroute import opened, translated

KIND = "vxlan"
# Bytes: what the devices below take decides, which programs ask about each packet.
_MTU = 65000


def create(name: str, port: int, mac: str, netns: Netns = None) -> int:
    """Makes the device, up and without addresses, for both families; its index. `port`: of UDP; `mac`: what frames to
    this host are addressed to. Undone on failure: errno EADDRINUSE if the port is held by a socket or another device
    of the namespace, EEXIST if there is a device of that name or for that port."""
    with enter(netns), opened() as route:
        with translated("create", f"device {name}"):
            route.link(
                "add",
                kind=KIND,
                ifname=name,
                address=mac,
                mtu=_MTU,
                vxlan_collect_metadata=True,
                vxlan_learning=0,
                vxlan_port=port,
                vxlan_udp_zero_csum6_tx=1,
                vxlan_udp_zero_csum6_rx=1,
            )
        index = index_of(name)
        try:
            quiet_ipv6(name)
            with translated("set up", f"device {name}"):
                route.link("set", index=index, state="up")
        except BaseException:
            route.link("del", index=index)
            raise
    return index
