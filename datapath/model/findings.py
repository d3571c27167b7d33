# SPDX-License-Identifier: Apache-2.0
"""Findings: the problems of a host that `doctor` reports."""

from __future__ import annotations

from typing import Any, NamedTuple

from datapath.model.parsing import Address as Address
from datapath.model.parsing import Interface as Interface
from datapath.model.parsing import Prefix as Prefix


class Check(NamedTuple):
    """One of the checks that `doctor` makes: its id, what a failure means for whom, and what repairs it."""

    name: str
    means: str
    repair: str


class Finding(NamedTuple):
    """One difference. `about` is for the repair: names, keys and values, which depend on the check."""

    check: Check
    subject: str
    detail: str
    about: tuple[Any, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.subject}: {self.detail}"
