# SPDX-License-Identifier: Apache-2.0
"""Policies as a file has them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from datapath.model.policies import RULE_PROTOCOLS, Action, Direction, Mode, Policy
from datapath.plan.policies.words import quoted_text, rule_text


def policies_text(policies: Iterable[Policy], remarks: Mapping[tuple[str, int], str] | None = None) -> str:
    """A file that `read_policies` takes for these policies. `remarks`: behind rules, by policy and number."""
    lines = ["policies:"]
    for policy in policies:
        lines.append(f"  {policy.name}:")
        lines.append(f"    for: {_subject_text(policy)}")
        for direction in Direction:
            lines += _rules_text(policy, direction, remarks or {})
        if policy.mode is not Mode.ENFORCE:
            lines.append(f"    mode: {policy.mode}")
        if policy.refuse is not Action.REJECT:
            lines.append(f"    refuse: {policy.refuse}")
    return "\n".join(lines) + "\n"


def _subject_text(policy: Policy) -> str:
    subject = policy.subject
    parts = [
        f"{key}: {quoted_text(text)}"
        for key, text in (("name", subject.name), ("network", subject.network))
        if text
    ]
    if subject.labels:
        parts.append(f"label: [{', '.join(quoted_text(f'{key}={value}') for key, value in subject.labels)}]")
    if policy.published:
        protocol = next(
            name for name, numbers in RULE_PROTOCOLS.items() if policy.published.protocol in numbers
        )
        parts.append(f'published: "{policy.published.first}/{protocol}"')
    return "{" + ", ".join(parts) + "}"


def _rules_text(policy: Policy, direction: Direction, remarks: Mapping[tuple[str, int], str]) -> list[str]:
    rules = policy.rules(direction)
    lines = [f"      rate: {rules.rate}/s"] if rules.rate else []
    for word, some in (("deny", rules.deny), ("allow", rules.allow)):
        if some:
            lines.append(f"      {word}:")
            for rule in some:
                remark = remarks.get((policy.name, rule.number))
                lines.append(f"        - {rule_text(rule)}" + (f"  # {remark}" if remark else ""))
        elif some is not None and word == "allow":
            lines.append("      allow: []")
    return [f"    {direction}:", *lines] if lines else []
