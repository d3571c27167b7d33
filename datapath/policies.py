# SPDX-License-Identifier: Apache-2.0
"""`Host.policies`: who may open connections to whom. See ``docs/policies.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datapath.engine.engine import Engine
from datapath.model.policies import Policy

if TYPE_CHECKING:
    from datapath.engine.policy_views import Hit


class Policies:
    """Policies by name, id, or the unique beginning of an id."""

    def __init__(self, host: Engine) -> None:
        self._host = host

    def all(self) -> list[Policy]:
        """The policies that were applied, by name."""
        return sorted(self._host.snapshot().policies.values(), key=lambda policy: policy.name)

    def get(self, name: str) -> Policy:
        """One policy. NotFoundError; ConfigError: the beginning of an id means several."""
        return self._host.snapshot().get(Policy, name)

    def apply(
        self, policies: Sequence[Policy], *, prune: bool = False, dry_run: bool = False
    ) -> dict[str, str]:
        """Puts policies into force, all or none; each replaces the one of its name. What became of each, by name.
        `prune`: those that are not given are removed; `dry_run`: nothing is changed. ConfigError: they cannot be right
        here, are not enforced, or do not fit."""
        from datapath.engine import policies as engine
        from datapath.engine import policy_views

        if dry_run:
            return policy_views.preview(self._host, policies, prune)
        with self._host.changing() as tx:
            return engine.apply(tx, policies, prune)

    def remove(self, name: str) -> Policy:
        """Removes a policy: what it alone has refused passes again. NotFoundError."""
        from datapath.engine import policies as engine

        if not self._host.exists:
            self.get(name)
        with self._host.changing(freeing=True) as tx:
            return engine.remove(tx, name)

    def hits(self) -> list[Hit]:
        """What was counted of each rule since the policies changed last."""
        from datapath.engine import policy_views

        return policy_views.hits(self._host)
