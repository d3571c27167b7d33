# SPDX-License-Identifier: Apache-2.0
"""Lines of who talks to whom: which are meant, and what has been added."""

from __future__ import annotations

from typing import Any

import pytest

from datapath.model.flows import FlowFilter, FlowLine, grown, head_of

LINE = FlowLine("shop", "app", "", 0, "db", "", 80, "tcp", "allowed", "", "", 3, 30, 3000, 20, 2000, 9.0, 1.0)


def test_what_has_been_added_is_the_difference() -> None:
    more = LINE._replace(connections=4, sent_packets=35, sent_bytes=3500, received_bytes=2100)
    other = LINE._replace(source="cron")
    before = {head_of(LINE): LINE}
    assert grown([LINE], before) == []
    (added,) = grown([more], before)
    assert added == more._replace(
        connections=1, sent_packets=5, sent_bytes=500, received_packets=0, received_bytes=100
    )
    assert grown([other], before) == [other]


def test_a_total_that_counts_less_is_another_one() -> None:
    new = LINE._replace(connections=1)
    assert grown([new], {head_of(LINE): LINE}) == [new]


@pytest.mark.parametrize(
    "words, meant",
    [
        ({}, True),
        ({"port": 80, "protocol": "tcp"}, True),
        ({"port": 81}, False),
        ({"between": ("db", "app")}, True),
        ({"between": ("db", "cron")}, False),
        ({"verdict": "refused"}, False),
        ({"network": "other"}, False),
        ({"port": 81, "negated": True}, True),
        ({"port": 80, "negated": True}, False),
        ({"network": "other", "port": 81, "negated": True}, False),
    ],
)
def test_which_lines_are_meant(words: dict[str, Any], meant: bool) -> None:
    assert FlowFilter(**words).wants(head_of(LINE)) is meant


def test_without_the_labels_a_line_is_not_meant() -> None:
    wanted = FlowFilter(labels=("role",))
    assert wanted.wants(head_of(LINE), labelled=True) and not wanted.wants(head_of(LINE), labelled=False)
    assert wanted._replace(negated=True).wants(head_of(LINE), labelled=False)
