# SPDX-License-Identifier: Apache-2.0
"""What an address is by itself, wherever it is met."""

from __future__ import annotations

BROADCAST = b"\xff" * 6
ZERO4, ZERO6 = bytes(4), bytes(16)
MAPPED = bytes(10) + b"\xff\xff"
RESOLVER = bytes((127, 0, 0, 11))  # each container's, as Docker has it
ALL_NODES, ALL_NODES_MAC = b"\xff\x02" + bytes(13) + b"\1", b"33\0\0\0\1"


def on_link(address: bytes) -> bool:
    """IPv6 link-local: such a packet is not routed (RFC 4291, 2.5.6)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def loopback(address: bytes) -> bool:
    """127/8 and ::1: the host's own, and nobody else's."""
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def class_e(address: bytes) -> bool:
    """240/4, which the kernel takes for unicast; but the last address is broadcast."""
    return len(address) == 4 and address[0] >= 240 and address != BROADCAST[:4]


def unusable(address: bytes) -> bool:
    """Addresses that no packet beyond its link may come from, or go to as to one host."""
    if len(address) == 4:
        # All of 0/8 but its first is unicast to the kernel, too (ipv4_is_zeronet() since 5.3).
        return address in (ZERO4, BROADCAST[:4]) or address[0] == 127 or address[0] >> 4 == 14
    if address[0] == 0xFF or (address[:15] == bytes(15) and address[15] <= 1):
        return True
    return address[:12] == MAPPED or on_link(address)
