# SPDX-License-Identifier: Apache-2.0
"""The table of docs/lab.md: a column for each kernel of the matrix. `make lab KERNEL=… RECORD=1` without TESTS records
a run in which no test failed, and writes the table anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.vm.outcome import Counts, Kind, Outcome, Result

RECORD = Path(__file__).with_name("columns.json")
PAGE = Path(__file__).parents[2] / "docs/lab.md"
BEGIN, END = "<!-- make lab RECORD=1 -->", "<!-- end -->"
KEPT = ("release", "tcx", "netkit", "programs", "skipped_for")  # of a run's facts


def table(results: Sequence[Result]) -> str:
    """Kernels as columns, what is told about them as rows. Of a kernel that said nothing there is nothing."""
    programs = sorted({program for result in results for program in result.facts.get("programs", {})})

    def row(title: str, tell: Callable[[Result], str]) -> list[str]:
        return [title, *(tell(result) for result in results)]

    def feature(name: str, there: str, lacking: str) -> Callable[[Result], str]:
        return lambda result: "" if name not in result.facts else there if result.facts[name] else lacking

    def figure(name: str) -> Callable[[Result], str]:
        return lambda result: f"{found:,}" if (found := result.facts.get("programs", {}).get(name)) else ""

    rows = [
        row("", lambda result: result.facts.get("release", result.kernel)),
        row("---", lambda _: "---:"),
        row("outcome", lambda result: result.outcome.kind.name.lower().replace("_", " ")),
        row("tests", lambda result: ", of ".join([str(result.counts), *result.facts.get("tests", ())])),
        row("skipped for", lambda result: "; ".join(result.facts.get("skipped_for", ()))),
        row("attached by", feature("tcx", "tcx", "clsact")),
        row("netkit", feature("netkit", "yes", "no")),
        row("programs loaded", lambda result: str(len(result.facts.get("programs", ())) or "")),
        *(row(f"`{program}`", figure(program)) for program in programs),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def recorded() -> list[Result]:
    """What is recorded, in the order of the table."""
    return [
        Result(name, Outcome(Kind.PASSED, ""), Counts(*kept["counts"]), kept)
        for name, kept in json.loads(RECORD.read_text()).items()
    ]


def record(result: Result, order: Sequence[str]) -> None:
    """Takes in a run of everything, in which no test failed. `order`: the kernels that the table has, by name."""
    known = json.loads(RECORD.read_text())
    facts = {name: result.facts[name] for name in KEPT if name in result.facts}
    known[result.kernel] = {"counts": list(result.counts), **facts}
    ordered = {name: known[name] for name in order if name in known}
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text()))


def written(page: str) -> str:
    """The page with the table of what is recorded."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found and ended, f"the page has no place for {BEGIN}"
    return f"{before}{BEGIN}\n{table(recorded())}{END}{after}"
