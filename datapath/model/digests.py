# SPDX-License-Identifier: Apache-2.0
"""Digests, from a library that is loaded when one is asked for. Pure."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

# hashlib loads libcrypto: 6 ms and 4 MB. Python's own is enough here, as for its `random`: since 3.12, before that, and
# where it is left out.
_MODULES = ("_sha2", "_sha256", "hashlib")


def sha256(data: bytes) -> bytes:
    """The SHA-256 of the data (FIPS 180-4), 32 bytes."""
    digest: bytes = _library().sha256(data).digest()
    return digest


@cache
def _library() -> Any:
    for name in _MODULES:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("this Python has no SHA-256")
