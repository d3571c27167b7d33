# SPDX-License-Identifier: Apache-2.0
"""Policies that containers bring along in their labels. Pure.

Labels may come from an image, so their layer can only close. What a label says that cannot be understood closes its
direction altogether: a typing mistake must not open anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from datapath.errors import ConfigError
from datapath.model.policies import Direction, Layer, Member, Policy, Rules, Selector, World
from datapath.plan.policies.reading import LABELS, label_policy

_NAMES = frozenset(LABELS.values())


def has_label(labels: Mapping[str, str]) -> bool:
    """They say something of who may talk to whom."""
    return not _NAMES.isdisjoint(labels)


def label_policies(world: World) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
    """Of every container that has such a label, and a line for each label that cannot be understood."""
    found: dict[str, Policy] = {}
    complaints: list[str] = []
    for member in world.members:
        if member.ident in found or not has_label(member.labels):
            continue
        try:
            made = label_policy(member) or _closed(member)
            if any(rule.peer.domain for d in Direction for rule in made.rules(d).allow or ()):
                raise ConfigError(f"label of {member.name}: DNS names are not enforced yet")
        except ConfigError as error:
            complaints.append(f"{error}: nothing passes there")
            made = _closed(member)
        found[member.ident] = made
    return tuple(found.values()), tuple(complaints)


def _closed(member: Member) -> Policy:
    rules = {d: Rules(allow=()) for d, label in LABELS.items() if label in member.labels}
    ingress, egress = (rules.get(direction, Rules()) for direction in (Direction.IN, Direction.OUT))
    subject = Selector(ident=member.ident)
    return Policy(f"(label {member.name})", subject, ingress, egress, layer=Layer.LABEL)
