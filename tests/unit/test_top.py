# SPDX-License-Identifier: Apache-2.0
"""`top` on a terminal, as textual's Pilot types at it; looks that are made here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from ctl.cli import main
from ctl.cli.top import MISSING
from ctl.cli.top_screen import Top
from datapath.errors import NotFoundError
from datapath.model.connections import ConnectionStats
from datapath.model.flows import FlowLine
from datapath.telemetry.rates import Look
from datapath.telemetry.snapshot import Member, Segment, Snapshot
from datapath.telemetry.stats import Stats

HOSTILE = "<b>[red]x[/]\x1b[31m"
Act = Callable[[Top, Pilot[None]], Awaitable[None]]


def look(at: int) -> Look:
    """At this second: `app` has sent `db` so many hundred packets, `cron` was refused so many."""
    names = ("app", "db", "cron", HOSTILE)
    members = [Member(name, name, "datapath", {}, {"shop": ("10.0.0.2",)}, ()) for name in names]
    lines = [
        FlowLine(
            *("shop", "app", "", 0, "db", "", 5432, "tcp", "allowed", "", ""),
            *(at, 100 * at, 9000 * at, 50 * at, 4000 * at, 60.0, 0.0),
        ),
        FlowLine(
            *("shop", "cron", "", 0, "db", "", 5432, "tcp", "refused", "DROP_IN", ""),
            *(7 * at, 7 * at, 420 * at, 0, 0, 60.0, 0.0),
        ),
        FlowLine(
            *("shop", "db", "", 0, "outside", "", 443, "tcp", "allowed", "", ""),
            *(1, 1, 60, 1, 60, 60.0, 9.0),
        ),
    ]
    segment = Segment("1", "shop", "bridge", "datapath", (), False, True, True)
    stats, connections = Stats({"DROP_IN": (7 * at, 420 * at)}, {}), ConnectionStats({}, {}, {}, {}, 0, 0)
    return Look(Snapshot(float(at), members, [segment], lines, [], None, stats, connections), at / 100, None)


def typing(act: Act, looks: Callable[[], Look] | None = None, size: tuple[int, int] = (80, 24)) -> Top:
    """Two looks, a second apart; then what the act does."""
    seconds = iter(range(1, 99))
    asked: list[Any] = []

    def ask(*words: Any) -> str:
        asked.append(words)
        return f"because {words}"

    top = Top(looks or (lambda: look(next(seconds))), ask, 0, "bytes", "")

    async def play() -> None:
        async with top.run_test(size=size) as pilot:
            await settle(top, pilot)
            await press(top, pilot, "r")
            await act(top, pilot)

    asyncio.run(play())
    return top


async def settle(top: Top, pilot: Pilot[None]) -> None:
    await top.workers.wait_for_complete()
    await pilot.pause()


async def press(top: Top, pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settle(top, pilot)


def rows(top: Top) -> list[list[str]]:
    table = top.screen_stack[0].query_one("#table", DataTable)
    return [[str(cell) for cell in table.get_row_at(at)] for at in range(table.row_count)]


def text(top: Top, where: str = "#summary") -> str:
    return str(top.screen.query_one(where, Static).render())


def test_containers_are_shown_with_what_they_do_a_second_and_names_as_they_are() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        shown = {row[0]: row[1:] for row in rows(top)}
        assert shown["app"] == ["shop", "150", "4.0 kB", "9.0 kB", "1.0", "0"]
        assert shown["db"] == ["shop", "150", "9.0 kB", "4.0 kB", "1.0", "7.0"]
        assert shown["cron"] == ["shop", "0", "0 B", "0 B", "0", "7.0"]
        assert [name for name in shown if name.startswith("<b>[red]x[/]") and "\x1b" not in name]
        assert (
            "150 packets/s" in text(top) and "DROP_IN 7.0" in text(top) and "1.0% of a processor" in text(top)
        )

    typing(act)


def test_keys_choose_the_table_the_order_and_what_is_shown() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await press(top, pilot, "tab")
        assert [row[:2] for row in rows(top)] == [["app", "db:5432"], ["db", "outside:443"]]
        await press(top, pilot, "3")
        assert rows(top) == [["cron", "db:5432", "tcp", "DROP_IN", "7.0", "14", "0s"]]
        await press(top, pilot, "1", "f6", "s", "s")
        assert "by refused" in text(top) and [row[0] for row in rows(top)][:2] == ["cron", "db"]
        await press(top, pilot, "f4", "c", "r", "o", "enter")
        assert [row[0] for row in rows(top)] == ["cron"] and "only cro" in text(top)
        await press(top, pilot, "escape")
        assert len(rows(top)) == 4
        await press(top, pilot, "space")
        assert "stopped" in text(top)

    typing(act)


def test_the_cursor_stays_on_its_line_when_the_order_changes() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await press(top, pilot, "down", "down")
        chosen = top.chosen["Container"]
        await press(top, pilot, "s", "s", "s", "r")
        assert top.chosen["Container"] == chosen

    typing(act)


def test_w_says_why_a_line_is_refused_and_what_it_cannot_say() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await press(top, pilot, "w")
        assert "Choose a line" in text(top, "#page Static")
        await press(top, pilot, "escape", "3", "w")
        assert text(top, "#page Static") == "because ('cron', 'db', 'tcp', 5432)"
        await press(top, pilot, "q", "2", "down", "w")
        assert "datapathctl why FROM TO PROTO PORT" in text(top, "#page Static")
        await press(top, pilot, "escape", "f1")
        assert "F6" in text(top, "#page Static")

    typing(act)


@pytest.mark.parametrize("no_color", [True, False])
def test_it_fits_a_small_terminal_and_follows_its_size_without_colours(
    no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")

    async def act(top: Top, pilot: Pilot[None]) -> None:
        for size in ((80, 24), (40, 10), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert top.size == size and top.screen.query_one("#table").region.height > 0
        assert len(rows(top)) == 4

    typing(act)


def test_what_looking_cannot_do_ends_it_with_its_error() -> None:
    seen = iter([look(1), look(2)])

    def looking() -> Look:
        found = next(seen, None)
        if found is None:
            raise NotFoundError("network shop not found")
        return found

    async def act(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("r")
        await top.workers.wait_for_complete()

    assert isinstance(typing(act, looking).failure, NotFoundError)


def test_without_textual_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "ctl.cli.top_screen")
    for name in [name for name in sys.modules if name.partition(".")[0] == "textual"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main.run(["top"]) == 2
    assert capsys.readouterr() == ("", f"datapathctl: {MISSING}\n")
