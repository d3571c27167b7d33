# SPDX-License-Identifier: Apache-2.0
"""What docs/policies.md says becomes of connections is what its policies mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from datapath.plan.policies.applying import plan_apply
from datapath.plan.policies.asking import Question, understand
from datapath.plan.policies.builtin import builtin_policies, world_here
from datapath.plan.policies.reading import read_policies
from datapath.plan.policies.why import explain
from tests.unit.planned_host import PlannedHost
from tests.unit.test_why import host_network

PAGE = Path(__file__).parents[2] / "docs/policies.md"


class Snippet(NamedTuple):
    """`verdicts`: the words of `why`, and what it says."""

    name: str
    policies: str
    verdicts: tuple[tuple[str, str], ...]


def snippets() -> list[Snippet]:
    found = re.findall(
        r"^\*\*([^*]+)\*\*.*?^```yaml\n(.*?)^```\n\n```verdicts\n(.*?)^```$",
        PAGE.read_text(),
        re.DOTALL | re.MULTILINE,
    )
    return [
        Snippet(name, text, tuple((words.strip(), verdict) for words, _, verdict in lines(verdicts)))
        for name, text, verdicts in found
    ]


def lines(text: str) -> list[tuple[str, str, str]]:
    return [line.rpartition(" ") for line in text.splitlines()]


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: snippet.name)
def test_what_the_page_says_of_connections_is_what_its_policies_mean(snippet: Snippet) -> None:
    planned = PlannedHost()
    planned.network("shop", subnets=("10.0.0.0/24",))
    planned.network("dmz", subnets=("10.1.0.0/24",))
    for name in ("db", "app", "cron"):
        planned.run(name, "shop", labels=(f"role={name}",))
    planned.run("web", "dmz", publish=("8080:80",))
    planned.run("worker", "dmz")
    host = host_network("10.0.0.1/24", "10.1.0.1/24")
    world = world_here(planned.state, host)
    policies = read_policies(snippet.policies, "page")
    assert plan_apply(policies, planned.state, planned.fresh, False).put
    for words, verdict in snippet.verdicts:
        source, destination, *rest = words.replace("192.0.2.1 ", "192.0.2.10 ").split()
        question = Question(source, destination, rest[0] if rest else "", int(rest[1]) if rest[1:] else None)
        asked = understand(question, planned.state, world, host)
        every = (*builtin_policies(planned.state), *policies)
        assert explain(asked, planned.state, every, world, host).verdict == verdict, words


def test_there_are_as_many_as_are_promised() -> None:
    assert len(snippets()) == 9
    assert all(len(snippet.verdicts) >= 2 for snippet in snippets())
