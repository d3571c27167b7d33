# SPDX-License-Identifier: Apache-2.0
"""Digests, from a library that is loaded when one is asked for. Pure."""


def sha256(data: bytes) -> bytes:
    """The SHA-256 of the data (FIPS 180-4), 32 bytes."""
    # hashlib loads libcrypto: 6 ms and 4 MB, which no command that only looks has a use for.
    from hashlib import sha256 as of

    return of(data).digest()
