# SPDX-License-Identifier: Apache-2.0
"""What `doctor` has to say about a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix


@dataclass(frozen=True, slots=True)
class Kind:
    """A way in which a host can differ from what was promised: what that means for whom, and what mends it."""

    name: str
    means: str
    mends: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `about` is for whoever mends it: names, keys, values, by kind."""

    kind: Kind
    subject: str
    detail: str
    about: tuple[Any, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.subject}: {self.detail}"
