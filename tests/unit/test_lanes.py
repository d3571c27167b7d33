# SPDX-License-Identifier: Apache-2.0
"""How many checks of backends are under way at once, and who is next."""

from __future__ import annotations

from ctl.agent.lanes import Lane


def test_those_who_may_not_answer_leave_half_of_the_places() -> None:
    lane = Lane[str](4)
    for name in "abcdef":
        lane.join(name, suspect=True)
    assert list(lane.next()) == ["a", "b"]
    for name in "uvw":
        lane.join(name, suspect=False)
    assert list(lane.next()) == ["u", "v"]
    lane.leave("a")
    lane.leave("c")  # waits no more
    assert list(lane.next()) == ["w"]
    lane.leave("b")
    assert list(lane.next()) == ["d"]
