# SPDX-License-Identifier: Apache-2.0
"""`top` on a terminal, drawn by textual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from datapath.errors import DatapathError, printable
from datapath.model.flows import OUTSIDE, PEER
from datapath.telemetry.rates import Look, Rates, between

from .top_rows import SORTS, cell, summary, tables

_MOST = 200  # lines of a table: who scans ports makes thousands
_VIEWS = ("containers", "flows", "refused")
_HELP = """\
1, 2, 3      containers; who talks to whom; what is refused
Tab          the next one of these
F6, >, s     sort by the next of: bytes, packets, connections, refused, name
F4, /        only lines with a word in a name; Escape: all again
w, Enter     why this line passes, or does not
Space        stop looking, and go on
r            look now
q, F10       quit
"""


class Page(ModalScreen[None]):
    """Text above the tables."""

    CSS = "Page { align: center middle; } #page { width: 90%; height: 80%; border: round; padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,f1,f10", "app.pop_screen", "Close", priority=True)
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="page"):
            yield Static(Text(self.text))


class Looking(App[None]):
    """Looks again and again, in a thread beside. `look`: sees what there is; `delay`: seconds between looks, 0: only
    when it is told to."""

    def __init__(self, look: Callable[[], Look], delay: float) -> None:
        super().__init__()
        self._look_at, self._delay = look, delay
        self.stopped = False
        self.found: Rates | None = None
        self._before: Look | None = None
        self.failure: Exception | None = None

    def show(self) -> None:
        """Until the user has enough. Raises what looking has raised."""
        self.run()
        if self.failure is not None:
            raise self.failure

    def draw(self) -> None:
        """Shows what was found last."""
        raise NotImplementedError

    def begin(self) -> None:
        """Looks from now on."""
        if self._delay:
            self.set_interval(self._delay, self._due)
        self.action_look()

    def action_pause(self) -> None:
        self.stopped = not self.stopped
        self.draw()

    def _due(self) -> None:
        if not self.stopped:
            self.action_look()

    def action_look(self) -> None:
        """One at a time: what takes longer than the delay is not looked at twice."""
        if not any(worker.group == "look" and not worker.is_finished for worker in self.workers):
            self.run_worker(self._look, group="look", thread=True)

    def _look(self) -> None:
        try:
            now = self._look_at()
        except DatapathError as error:
            self.call_from_thread(self._fail, error)
            return
        self.call_from_thread(self._seen, now)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.exit()

    def _seen(self, now: Look) -> None:
        self.found = between(self._before or now, now)
        self._before = now
        self.draw()


class Top(Looking):
    """`look`, `delay`: as of `Looking`; `ask`: why something passes or does not, as text, also in a thread beside;
    `sort`: one of SORTS; `word`: of names that are shown."""

    CSS = """
    #summary { height: auto; padding: 0 1; text-style: reverse; }
    #table { height: 1fr; }
    #filter { display: none; }
    #filter.shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,h,question_mark", "keys", "Keys", key_display="F1"),
        Binding("tab", "next_view", "Table", priority=True),
        Binding("1", "view(0)", show=False),
        Binding("2", "view(1)", show=False),
        Binding("3", "view(2)", show=False),
        Binding("f4,slash", "filter", "Filter", key_display="F4"),
        Binding("f6,greater_than_sign,s", "sort", "Sort", key_display="F6"),
        Binding("w", "why", "Why"),
        Binding("space", "pause", "Stop"),
        Binding("r", "look", "Look", show=False),
        Binding("escape", "clear", show=False),
        Binding("f10,q", "quit", "Quit", key_display="F10"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        look: Callable[[], Look],
        ask: Callable[[str, str, str, int], str],
        delay: float,
        sort: str,
        word: str,
    ) -> None:
        super().__init__(look, delay)
        self._ask, self._sort, self._word, self._view = ask, sort, word, 0
        self._rows: list[Any] = []

    def compose(self) -> ComposeResult:
        yield Static("", id="summary")
        yield DataTable(id="table", cursor_type="row", zebra_stripes=False)
        yield Input(placeholder="a word in a name", id="filter")
        yield Footer()

    @property
    def table(self) -> DataTable[Text]:
        return self.query_one("#table", DataTable)

    def on_mount(self) -> None:
        self.table.focus()
        self.begin()

    # ---- drawing ------------------------------------------------------------------------------

    def draw(self) -> None:
        if self.found is None:
            return
        words = [_VIEWS[self._view], f"by {self._sort}"]
        words += [f"only {printable(self._word)}"] if self._word else []
        words += ["stopped"] if self.stopped else []
        first = "[" + ", ".join(words) + "] "
        self.query_one("#summary", Static).update(Text(first + summary(self.found)))
        rows, columns = tables(self.found, self._sort, self._word)[self._view]
        table, chosen = self.table, self.chosen
        table.clear(columns=True)
        table.add_columns(*(Text(heading, style="bold") for heading in columns.values()))
        self._rows = list(rows[:_MOST])
        for row in self._rows:
            table.add_row(*(Text(cell(row[key])) for key in columns))
        if chosen is not None and (same := _place(self._rows, chosen)) is not None:
            table.move_cursor(row=same)

    @property
    def chosen(self) -> Any:
        """The line that the cursor is on, None: there is none."""
        at = self.table.cursor_row
        return self._rows[at] if 0 <= at < len(self._rows) else None

    # ---- keys ---------------------------------------------------------------------------------

    def action_keys(self) -> None:
        self.push_screen(Page(_HELP))

    def action_view(self, view: int) -> None:
        self._view = view
        self.draw()

    def action_next_view(self) -> None:
        self.action_view((self._view + 1) % len(_VIEWS))

    def action_sort(self) -> None:
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self.draw()

    def action_filter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.add_class("shown")
        asked.value = self._word
        asked.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._word = event.value
        self.draw()

    def on_input_submitted(self) -> None:
        self.query_one("#filter", Input).remove_class("shown")
        self.table.focus()

    def action_clear(self) -> None:
        self.query_one("#filter", Input).value = self._word = ""
        self.on_input_submitted()
        self.draw()

    def on_data_table_row_selected(self) -> None:
        self.action_why()

    def action_why(self) -> None:
        row = self.chosen
        if row is None or "From" not in row:
            self.push_screen(Page("Choose a line of who talks to whom (2), or of what is refused (3)."))
            return
        ends = (row["From"], row["Destination"])
        if {"", OUTSIDE, PEER} & set(ends):
            self.push_screen(
                Page(
                    "An end of this line has no name here. With an address: datapathctl why FROM TO PROTO PORT."
                )
            )
            return
        self.run_worker(lambda: self._why(*ends, row["Protocol"], row["Port"]), group="why", thread=True)

    def _why(self, source: str, destination: str, protocol: str, port: int) -> None:
        said = self._ask(source, destination, protocol, port)
        self.call_from_thread(self._show, said)

    def _show(self, text: str) -> None:
        self.push_screen(Page(text))


def _place(rows: list[Any], wanted: Any) -> int | None:
    """Where the same line is now."""
    keys = (
        ("Kind", "Container")
        if "Container" in wanted
        else ("Kind", "Network", "From", "To", "Protocol", "Reason")
    )
    same = [wanted[key] for key in keys]
    return next((i for i, row in enumerate(rows) if [row.get(key) for key in keys] == same), None)
