# SPDX-License-Identifier: Apache-2.0
"""Policies as the packet programs have them."""

from __future__ import annotations

from collections.abc import Sequence

from datapath.drivers.base import PolicyPart
from datapath.drivers.context import Context
from datapath.errors import NotSupportedError
from datapath.model.policies import By
from datapath.plan.policies.rows import Rows


class EbpfPolicies(PolicyPart):
    """Who may talk to whom, in the programs' maps."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._written: Rows | None = None  # by this command

    def active(self) -> bool:
        """Or were, and whoever took them away was killed: rows of hits go last."""
        loaded = self.context.loaded
        if loaded is None or not loaded.has("policy_state"):
            return False
        return bool(loaded.policies.generation()) or next(iter(loaded.rule_hits), None) is not None

    def write(self, rows: Rows, former: Sequence[By]) -> None:
        """Only what is not so already. Until programs are loaded there is nobody to decide about."""
        loaded = self.context.loaded
        if loaded is None or (rows is self._written and rows.active):
            return
        if not loaded.has("policy_state"):
            if rows.active:
                raise NotSupportedError(
                    "policies by the packet programs that are loaded, which are of another version: "
                    "use `datapathctl upgrade`"
                )
            return
        from datapath.dataplane.policy_rows import content

        known = loaded.policies
        if not (rows.active and known.generation() and known.current() == content(rows)):
            known.apply(rows, former)
        elif known.leftovers():
            known.sweep()
        self._written = rows

    def sweep(self) -> None:
        loaded = self.context.loaded
        self._written = None
        if loaded is not None and loaded.has("policy_state"):
            loaded.policies.sweep()
