# SPDX-License-Identifier: Apache-2.0
"""What becomes of policies when some are applied, their rows in the store, and what labels add."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.errors import ConfigError
from datapath.model.codec import from_json, to_json
from datapath.model.policies import Policy
from datapath.model.rows import Phase
from datapath.plan.policies.applying import is_governed, plan_apply, rows_here
from datapath.plan.policies.labels import label_policies
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.writing import policies_text
from tests.unit.planned_host import NOW, PlannedHost
from tests.unit.policy_worlds import Draw
from tests.unit.test_policies import writable
from tests.unit.test_why import Shop, host_network

DB = 'policies: {db: {for: {label: role=db}, in: {allow: ["role=app:5432"]}}}'
APP = "policies: {app: {for: app, out: {deny: [metadata]}}}"


def read(text: str) -> tuple[Policy, ...]:
    return read_policies(text, "some.yaml")


def apply(host: PlannedHost, text: str, prune: bool = False) -> dict[str, str]:
    plan = plan_apply(read(text), host.state, host.fresh, prune)
    host.state = plan.after(host.state)
    return plan.outcomes


def test_each_takes_the_place_of_the_one_of_its_name() -> None:
    host = PlannedHost()
    assert apply(host, DB) == {"db": "created"}
    (first,) = host.state.policies.values()
    assert (first.created, first.phase, first.where) == (NOW, Phase.READY, "")
    assert apply(host, f"# a line more\n{DB}") == {"db": "unchanged"}
    assert [*host.state.policies.values()] == [first]
    assert apply(host, DB.replace("5432", "5433")) == {"db": "configured"}
    (second,) = host.state.policies.values()
    assert (second.id, second.created) == (first.id, first.created) and second != first
    assert apply(host, APP) == {"app": "created"}
    assert sorted(one.name for one in host.state.policies.values()) == ["app", "db"]
    assert apply(host, APP, prune=True) == {"app": "unchanged", "db": "removed"}


def test_rules_that_are_numbered_otherwise_are_others() -> None:
    """`hits` and `why` name rules by their numbers."""
    host = PlannedHost()
    apply(host, "policies: {a: {for: a, out: {allow: [b]}, in: {allow: [c]}}}")
    assert apply(host, "policies: {a: {for: a, in: {allow: [c]}, out: {allow: [b]}}}") == {"a": "configured"}


@pytest.mark.parametrize("seed", range(40))
def test_a_policy_is_the_same_when_it_comes_back_from_the_store(seed: int) -> None:
    for policy in Draw(seed).policies:
        row = replace(policy, id="a" * 64, created=NOW)
        assert from_json(Policy, to_json(row)) == row
        numbers = [[r.number for r in (*s.deny, *(s.allow or ()))] for s in (row.ingress, row.egress)]
        back = from_json(Policy, to_json(row))
        assert numbers == [
            [r.number for r in (*s.deny, *(s.allow or ()))] for s in (back.ingress, back.egress)
        ]
        if writable(policy):
            assert read_policies(policies_text([back]), "x")[0].subject == policy.subject


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "policies: {a: {for: app, in: {rate: 20/s}}}",
            "some.yaml:1: policy a: rate is not enforced yet: leave it out",
        ),
        (
            'policies: {a: {for: app, out: {allow: ["api.example.com:443"]}}}',
            'some.yaml:1: DNS names are not enforced yet: allow addresses in place of "api.example.com", or, if it '
            'is a container\'s, write {name: "api.example.com"}',
        ),
    ],
)
def test_what_is_not_enforced_is_refused(text: str, line: str) -> None:
    host = PlannedHost()
    with pytest.raises(ConfigError) as error:
        apply(host, text)
    assert str(error.value) == line
    assert not host.state.policies


def test_without_any_policy_there_are_no_rows() -> None:
    shop = Shop()
    assert not is_governed(shop.planned.state)
    assert not rows_here(shop.planned.state, shop.host)[0].active
    apply(shop.planned, DB)
    rows = rows_here(shop.planned.state, shop.host)[0]
    assert rows.active
    assert rows.members.keys() == {endpoint.number for endpoint in shop.planned.state.endpoints.values()}


@pytest.mark.parametrize(
    ("label", "closed", "complaint"),
    [
        ("com.datapath.in=app:80", False, ""),
        ("com.datapath.in=", True, ""),
        ("com.datapath.in=prviate", True, "unknown peer"),
        ("com.datapath.out=api.example.com:443", True, "DNS names are not enforced yet"),
    ],
)
def test_a_label_closes_also_where_it_cannot_be_understood(label: str, closed: bool, complaint: str) -> None:
    host = PlannedHost()
    host.network("shop", subnets=("10.0.0.0/24",))
    host.run("web", "shop", labels=(label,))
    assert is_governed(host.state)
    from datapath.plan.policies.builtin import world_here

    (policy,), complaints = label_policies(world_here(host.state, host_network("10.0.0.1/24")))
    rules = policy.ingress if ".in" in label else policy.egress
    assert (rules.allow == ()) is closed
    assert bool(complaints) is bool(complaint)
    assert all(complaint in line and line.endswith("nothing passes there") for line in complaints)
