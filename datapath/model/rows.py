# SPDX-License-Identifier: Apache-2.0
"""The fields that all rows of the store have: an id, a phase, an owner."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """How far the command that wrote a row has got; every phase but READY is for the next command to finish."""

    CREATING = "creating"  # the kernel's side may not be complete
    READY = "ready"  # the kernel's side is as the row says
    REMOVING = "removing"  # the kernel's side may be partly gone
    CHANGING = "changing"  # endpoints only: published ports or default routes may not be as the row says


class Status(StrEnum):
    """What the process of a container does."""

    CREATED = "created"  # it has not been started
    RUNNING = "running"
    EXITED = "exited"


class Row(Protocol):
    """A dataclass that the store keeps: frozen, with defaults for every field that came after its first version."""

    @property
    def id(self) -> str: ...

    @property
    def phase(self) -> Phase: ...


OWNER = "datapath"  # of what datapath's own commands made


def short(ident: str) -> str:
    """The 12 digits of an id that users are shown."""
    return ident[:12]
