# SPDX-License-Identifier: Apache-2.0
"""Whether a network may have no address left: a look into the database without the library, for who is asked again and
again. The answer is for `plan.ipam` to give; this says when it need not be asked."""

from __future__ import annotations

import json
import sqlite3

_RESERVED = 3  # of an area at most: the network's own address, the broadcast, the gateway
_NETWORK = "SELECT id, body FROM networks WHERE name = ?"
_MEMBERS = "SELECT count(*) FROM endpoints WHERE network_id = ?"


def may_be_full(path: str, network: str) -> bool:
    """`path`: of the database. False for a network that is not there yet, and where nothing can be read now."""
    try:
        opened = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0)
        try:
            found = opened.execute(_NETWORK, (network,)).fetchone()
            if found is None:
                return False
            ident, body = found
            members = int(opened.execute(_MEMBERS, (ident,)).fetchone()[0])
        finally:
            opened.close()
    except sqlite3.Error:
        return False
    return any(
        _size(subnet.get("ip_range") or subnet["prefix"]) <= members + len(subnet.get("aux", ())) + _RESERVED
        for subnet in json.loads(body).get("subnets", ())
    )


def _size(prefix: str) -> int:
    """How many addresses it has."""
    address, _, length = prefix.partition("/")
    return 1 << ((128 if ":" in address else 32) - int(length))
