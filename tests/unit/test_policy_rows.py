# SPDX-License-Identifier: Apache-2.0
"""Rows of policies as they lie in maps."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from datapath.dataplane.policy_rows import TABLES, content
from datapath.errors import ConfigError
from datapath.kernel import abi
from datapath.model.policies import Action, By, Direction, PublishedPort
from datapath.plan.policies.rows import MemberClass, Outcome, Rows, RuleSet, SetKey, Span

PASS, REFUSED = Outcome(Action.ALLOW), Outcome(Action.REJECT, "DROP_IN", 1)


def unpacked(rows: Rows, name: str) -> dict[Any, Any]:
    table = TABLES[name]
    key, value = abi.layout(table.key), abi.layout(table.value)
    return {key.unpack(k): value.unpack(v) for k, v in content(rows)[name].items()}


def some(**fields: Any) -> Rows:
    return Rows(True, **fields)


def test_prefixes_are_matched_behind_their_generation() -> None:
    rows = some(prefixes={ip_network("10.0.0.0/8"): 3, ip_network("::/0"): 4})
    assert unpacked(rows, "peer_classes") == {
        abi.peer_class_key(32 + 96 + 8, 0, ip_address("10.0.0.0")): (3,),
        abi.peer_class_key(32, 0, None): (4,),
    }


def test_an_endpoint_says_which_directions_somebody_restricts() -> None:
    both = frozenset(Direction)
    members = {
        7: MemberClass(1, both, 5, 6),
        8: MemberClass(2, both, 5, 0),
        9: MemberClass(3, frozenset(), 5, 0),
    }
    sets = {
        SetKey(1, 0, Direction.IN, 17, 0): RuleSet(PASS, (Span(1, 9, REFUSED),)),
        SetKey(2, 0, Direction.OUT, 17, 0): RuleSet(REFUSED),
    }
    rows = unpacked(some(members=members, sets=sets, names=11), "subjects")
    # Who lets everybody in hears groups, too.
    assert rows == {
        abi.subject_key(0, 7): (1, 5, 6, 7),
        abi.subject_key(0, 8): (2, 5, 0, 3),
        abi.subject_key(0, 9): (3, 5, 0, 0),
        abi.subject_key(0, 0): (0, 11, 0, 0),
    }


def test_a_set_of_many_spans_has_many_rows() -> None:
    spans = tuple(Span(10 * n, 10 * n + 1, REFUSED._replace(would=n)) for n in range(1, 40))
    rows = unpacked(some(sets={SetKey(1, 2, Direction.IN, 6, 3): RuleSet(PASS, spans)}), "rulesets")
    span, found = abi.layout("span"), []
    for part in range(3):
        row = rows[abi.ruleset_key(0, 1, 2, 3, 2, 6, part)]
        assert (row.parts, row.used) == (3, (16, 16, 7)[part])
        packed = row.spans
        found += [span.unpack(packed[at : at + span.size]) for at in range(0, len(packed), span.size)][
            : row.used
        ]
    reason = int(abi.Reason.DROP_IN)
    assert found == [(10 * n, 10 * n + 1, 1, n, reason, 1) for n in range(1, 40)]


def test_who_is_refused_is_told_unless_that_is_dropped() -> None:
    outcomes = [PASS, Outcome(Action.ALLOW, "WOULD_IN", 2, 3), REFUSED, Outcome(Action.DROP, "DROP_ICC", 4)]
    sets = {SetKey(n, 0, Direction.OUT, 0, 0): RuleSet(one) for n, one in enumerate(outcomes, 1)}
    found = [
        (row.rest.rule, row.rest.would, row.rest.reason, row.rest.told)
        for row in unpacked(some(sets=sets), "rulesets").values()
    ]
    assert found == [
        (0, 0, 0, 0),
        (2, 3, 0, 0),
        (1, 0, int(abi.Reason.DROP_IN), 1),
        (4, 0, int(abi.Reason.DROP_ICC), 0),
    ]


def test_more_published_ports_than_a_key_can_name_are_refused() -> None:
    port = PublishedPort(ip_address("0.0.0.0"), 6, 80, 7)
    key = abi.port_scope_key(0, ip_address("0.0.0.0"), 80, 6)
    assert unpacked(some(ports={port: 65535}), "port_scopes") == {key: (65535,)}
    with pytest.raises(ConfigError, match="the policies are about more than 65,535 published ports"):
        content(some(ports={port: 65536}, rules=(By("x", 0),)))
