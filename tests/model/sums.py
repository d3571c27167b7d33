# SPDX-License-Identifier: Apache-2.0
"""Sums as RFC 1071 and RFC 1624 have them."""

from __future__ import annotations


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    value = int.from_bytes(data, "big") % 65535
    return 65535 - value if value else 0


def adjusted(check: int, delta: int) -> int:
    """The sum after words changed by `delta` in all (new less old)."""
    value = (65535 - check + delta) % 65535
    return 65535 - value if value else 0


def num(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "big")
