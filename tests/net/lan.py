# SPDX-License-Identifier: Apache-2.0
"""What tests of networks on the link of one of the host's devices have in common: macvlan and ipvlan."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from datapath.kernel import features
from tests.net.hosts import Host, Words

# The options of a network on the link of the host's uplink, whose router is the machine outside.
LAN = "--subnet 192.0.2.0/24 --subnet 2001:db8::/64 --ipv6 --gateway 192.0.2.2 --gateway 2001:db8::2"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"

needs_vlan = pytest.mark.skipif(not features.has_kind("vlan"), reason="this kernel has no VLANs")


def on_both_sides(host: Host) -> Host:
    """Gives the host's uplink and the machine outside, which is the LAN's router, addresses of IPv6, too; that one
    knows none of its neighbours."""
    host.sh(f"ip address replace {HOST6}/64 dev eth0 nodad")
    host.outside.sh(f"ip address replace {OUTSIDE6}/64 dev eth0 nodad")
    host.outside.sh("ip neighbour flush dev eth0")
    return host


def healthy(host: Host) -> bool:
    found = host.try_ctl("doctor")
    assert found.returncode == 0, found.stdout
    return True


def within(host: Host, name: str) -> Callable[[Words], subprocess.CompletedProcess[str]]:
    """Runs commands in a container."""
    return lambda command: host.try_in(name, command)


def six(host: Host, name: str, network: str = "lan") -> str:
    """The container's IPv6 address on the network."""
    found = host.inspect(name)["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"]
    assert isinstance(found, str)
    return found


def make_lower(host: Host) -> None:
    """A parent that may go: `lower`, of a pair."""
    host.try_("ip link delete lower")
    host.sh("ip link add lower type veth peer name far")
    host.sh("ip link set lower up")
    host.sh("ip link set far up")
