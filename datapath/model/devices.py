# SPDX-License-Identifier: Apache-2.0
"""Kinds of network devices, by the kernel's own names."""

VETH, NETKIT, BRIDGE, MACVLAN, VLAN = "veth", "netkit", "bridge", "macvlan", "vlan"
