# SPDX-License-Identifier: Apache-2.0
"""What every row of the store has: an id and a phase."""

from __future__ import annotations

from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix

CREATING, READY, REMOVING, CHANGING = "creating", "ready", "removing", "changing"


def short(ident: str) -> str:
    """The 12 digits of an id that users are shown."""
    return ident[:12]
