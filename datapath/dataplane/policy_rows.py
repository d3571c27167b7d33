# SPDX-License-Identifier: Apache-2.0
"""Rows of policies as the maps have them, packed: what `datapath.plan.policies.compiling` makes. Pure.

There are hundreds of thousands of them, of few kinds: each kind is packed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from datapath.errors import ConfigError
from datapath.kernel import abi
from datapath.model.parsing import Prefix
from datapath.model.policies import Action, Direction
from datapath.plan.policies.rows import Outcome, Rows, RuleSet, SetKey

# Map -> its rows, packed, with generation 0: so that what is in force can be compared, whichever generation it is.
Content = Mapping[str, Mapping[bytes, bytes]]
OUT, IN, IN_LISTED = 1, 2, 4  # enum policy_direction
_NUMBERS = {Direction.OUT: OUT, Direction.IN: IN}
_SPANS = 16  # that a row of a set has room for
_MOST = 0xFFFF  # of the numbers that have 16 bits


class Table(NamedTuple):
    """A map of policies: what it has, for people; the structs of its key and value; where in a key the generation is,
    in bytes."""

    what: str
    key: str
    value: str
    at: int = 0

    def key_of(self, key: bytes, generation: int) -> bytes:
        """The same key of another generation."""
        return key[: self.at] + generation.to_bytes(4, "little") + key[self.at + 4 :]

    def generation(self, key: bytes) -> int:
        return int.from_bytes(key[self.at : self.at + 4], "little")


# In the order in which they are written.
TABLES: Mapping[str, Table] = {
    "rulesets": Table("sets of rules", "ruleset_key", "ruleset"),
    "peer_classes": Table("prefixes", "peer_class_key", "peer_class", at=4),
    "port_scopes": Table("published ports", "port_scope_key", "port_scope"),
    "subjects": Table("containers", "subject_key", "subject"),
    "rule_hits": Table("rules", "rule_hit_key", "rule_hit"),
}


def content(rows: Rows) -> Content:
    """What the maps have to contain for these. ConfigError: there are too many."""
    return {
        "rulesets": dict(_rulesets(rows.sets)),
        "peer_classes": dict(_packed("peer_classes", _classes(rows.prefixes))),
        "port_scopes": dict(_packed("port_scopes", _scopes(rows))),
        "subjects": dict(_packed("subjects", _subjects(rows))),
    }


def hit_key(number: int) -> bytes:
    """Of the rule with that number."""
    return abi.layout("rule_hit_key").pack(abi.rule_hit_key(0, number))


def _packed(name: str, rows: Iterable[tuple[object, object]]) -> Iterator[tuple[bytes, bytes]]:
    table = TABLES[name]
    key, value = abi.layout(table.key), abi.layout(table.value)
    return ((key.pack(k), value.pack(v)) for k, v in rows)


def _classes(prefixes: Mapping[Prefix, int]) -> Iterator[tuple[object, object]]:
    for prefix, number in prefixes.items():
        length = 32 + prefix.prefixlen + (96 if prefix.version == 4 else 0)
        yield abi.peer_class_key(length, 0, prefix.network_address), abi.peer_class(number)


def _scopes(rows: Rows) -> Iterator[tuple[object, object]]:
    for port, number in rows.ports.items():
        if number > _MOST:
            raise ConfigError(
                f"the policies are about more than {_MOST:,} published ports: nothing was changed"
            )
        # The zero address of IPv4 is in its mapped form, as in `ports`.
        yield abi.port_scope_key(0, port.address, port.port, port.protocol), abi.port_scope(number)


def _subjects(rows: Rows) -> Iterator[tuple[object, object]]:
    picky = {
        key.subject for key, rules in rows.sets.items() if key.direction is Direction.IN and _refuses(rules)
    }
    for endpoint, member in rows.members.items():
        directions = sum(_NUMBERS[direction] for direction in member.directions)
        directions |= IN_LISTED if member.subject in picky else 0
        row = abi.subject(member.subject, member.peer4, member.peer6, directions)
        yield abi.subject_key(0, endpoint), row
    yield abi.subject_key(0, 0), abi.subject(0, rows.names)


def _refuses(rules: RuleSet) -> bool:
    return any(
        one.action is not Action.ALLOW for one in (rules.rest, *(span.outcome for span in rules.spans))
    )


def _rulesets(sets: Mapping[SetKey, RuleSet]) -> Iterator[tuple[bytes, bytes]]:
    pack, of_key = cache(_set_packer()), abi.layout("ruleset_key")
    for key, rules in sets.items():
        head = (0, key.subject, key.peer, key.published, _NUMBERS[key.direction], key.protocol)
        for part, row in enumerate(pack(rules)):
            yield of_key.pack((*head, part)), row


def _set_packer() -> Callable[[RuleSet], list[bytes]]:
    of_span, of_row = abi.layout("span"), abi.layout("ruleset")

    @cache
    def span(first: int, last: int, outcome: Outcome) -> tuple[int, ...]:
        refused = outcome.action is not Action.ALLOW
        reason = int(abi.Reason[outcome.reason]) if refused else 0
        told = int(outcome.action is Action.REJECT)
        return (first, last, outcome.rule, outcome.would, reason, told)

    def rows(rules: RuleSet) -> list[bytes]:
        """The rows of a set, each with a part of its spans."""
        parts = [rules.spans[at : at + _SPANS] for at in range(0, len(rules.spans), _SPANS)] or [()]
        rest = span(0, 0, rules.rest)
        made = ((len(part), b"".join(of_span.pack(span(*one)) for one in part)) for part in parts)
        return [of_row.pack((rest, len(parts), used, spans)) for used, spans in made]

    return rows
