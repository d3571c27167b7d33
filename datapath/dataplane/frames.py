# SPDX-License-Identifier: Apache-2.0
"""Frames that begin a connection, for test runs of the packet programs. Pure: nothing of it is ever sent."""

from __future__ import annotations

import struct

from datapath.model.parsing import PROTOCOLS, Address

_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_HOPS = 64
_SYN = 0x02
_ECHO, _ECHO6 = 8, 128
_DONT_FRAGMENT = 0x4000


def opening_frame(
    macs: tuple[str, str], source: Address, destination: Address, protocol: int, port: int, source_port: int
) -> bytes:
    """An Ethernet frame with the first packet of a connection: a SYN, a datagram without payload, or an echo request
    with `source_port` as its identifier. `macs`: to whom, from whom; ports in host order. Checksums are right."""
    addresses = source.packed + destination.packed
    carried = _carried(protocol, port, source_port, addresses)
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(carried), 0, _DONT_FRAGMENT, _HOPS, protocol, 0)
        total = checksum(head + addresses)
        header = head[:10] + struct.pack("!H", total) + addresses
    else:
        header = struct.pack("!IHBB", 6 << 28, len(carried), protocol, _HOPS) + addresses
    ends = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return ends + struct.pack("!H", _ETHERTYPES[source.version]) + header + carried


def _carried(protocol: int, port: int, source_port: int, addresses: bytes) -> bytes:
    """The packet's own header, with its checksum."""
    if protocol == PROTOCOLS["tcp"]:
        data, at = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, _SYN, 0xFFFF, 0, 0), 16
    elif protocol == PROTOCOLS["udp"]:
        data, at = struct.pack("!HHHH", source_port, port, 8, 0), 6
    else:
        kind = _ECHO if protocol == PROTOCOLS["icmp"] else _ECHO6
        data, at = struct.pack("!BBHHH", kind, 0, 0, source_port, 1), 2
    # The sum is the same for both families' pseudo headers (RFC 8200, 8.1); ICMP over IPv4 has none.
    pseudo = b"" if protocol == PROTOCOLS["icmp"] else addresses + struct.pack("!II", len(data), protocol)
    total = checksum(pseudo + data) or 0xFFFF
    return data[:at] + struct.pack("!H", total) + data[at + 2 :]


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
