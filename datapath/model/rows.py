# SPDX-License-Identifier: Apache-2.0
"""What every row of the store has: an id and a phase."""

from __future__ import annotations

CREATING, READY, REMOVING, CHANGING = "creating", "ready", "removing", "changing"

OWNER = "datapath"  # of what datapath's own commands made


def short(ident: str) -> str:
    """The 12 digits of an id that users are shown."""
    return ident[:12]
