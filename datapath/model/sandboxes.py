# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: network stacks, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass

from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix
from datapath.model.rows import CREATING


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network stack, called after the container it was made for. `key` is /proc/PID/ns/net of its first
    process, "" while there is none, and "host" for the host's own."""

    id: str
    key: str = ""
    phase: str = CREATING
