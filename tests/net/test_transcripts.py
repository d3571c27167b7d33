# SPDX-License-Identifier: Apache-2.0
"""What the documents show was really typed: every transcript is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import cast, transcripts

PAGES = [
    page
    for page in (transcripts.ROOT / "README.md", *sorted((transcripts.ROOT / "docs").rglob("*.md")))
    if "```console" in page.read_text()
]
FIRST_MINUTES = transcripts.ROOT / "docs/first-five-minutes.cast"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(transcripts.ROOT)))
def test_what_a_page_shows_is_what_comes(page: Path) -> None:
    """But for what no two runs have in common: ids, times, what was chosen at random."""
    wrong = [
        (step.command, transcripts.masked(step.output, step.counts), transcripts.masked(got, step.counts))
        for step, got in transcripts.replay(page)
        if transcripts.differs(step, got)
    ]
    assert wrong == []


def test_the_recording_of_the_first_five_minutes_plays_as_it_was_recorded() -> None:
    """Install, network, run, publish, restrict, why it is blocked, connections, and away: in twelve commands."""
    played = list(cast.play(FIRST_MINUTES))
    assert 8 <= len(played) <= 12
    for was, came in played:
        assert transcripts.masked(came.output) == transcripts.masked(was.output), was.command


def test_another_answer_is_noticed() -> None:
    """The masks do not cover what a page is about."""
    step = transcripts.Step("x", "eth0@if7  UP  172.17.0.2/16", "")
    assert not transcripts.differs(step, "eth0@if19   UP   172.17.0.2/16")
    assert transcripts.differs(step, "eth0@if7  UP  172.17.0.3/16")
    assert transcripts.differs(step, "eth0@if7  DOWN  172.17.0.2/16")
    counters = transcripts.Step("x", "DROP_ICC  3  246", "numbers")
    assert not transcripts.differs(counters, "DROP_ICC  17   1,246")
    assert transcripts.differs(counters, "DROP_TTL  3  246")
