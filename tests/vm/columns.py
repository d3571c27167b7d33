# SPDX-License-Identifier: Apache-2.0
"""The table of docs/lab.md: a column for each kernel of the matrix, of what the selection came to there.
`make lab KERNEL=… RECORD=1` records a run, and writes the table anew; `TESTS=` a part of the selection, which may take
hours where processors are emulated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.vm.outcome import Counts, Kind, Outcome, Result, cases, total

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("columns.json")
PAGE = ROOT / "docs/lab.md"
BEGIN, END = "<!-- make lab RECORD=1 -->", "<!-- end -->"
KEPT = ("release", "tcx", "netkit", "programs")  # of a run's facts


def _tests(result: Result) -> str:
    asked = result.facts.get("tests", ())
    return ", of ".join([str(result.counts), *(asked if len(asked) < 4 else [f"{len(asked)} arguments"])])


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
        row("tests", _tests),
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
        Result(
            name, Outcome(Kind.PASSED, ""), total(Counts(*counts) for counts in kept["parts"].values()), kept
        )
        for name, kept in json.loads(RECORD.read_text()).items()
    ]


def record(result: Result, junit: str, asked: Sequence[str], selection: Path, order: Sequence[str]) -> None:
    """Takes in what a run was asked for, of which the selection's lines are recorded that it had wholly and in which no
    test failed; what it was not asked for stays, if it had only some. `order`: the kernels that the table has."""
    known = json.loads(RECORD.read_text())
    lines = selection.read_text().splitlines()
    mine = known.setdefault(result.kernel, {"parts": {}})
    had = {} if not asked else {key: counts for key, counts in mine["parts"].items() if _part(key, lines)}
    if had or not asked or not mine["parts"]:  # else what came out is known of the whole only
        for key, counts in _parts(junit, asked, lines).items():
            had.pop(key, None)
            if not counts.failed:
                had[key] = counts
        mine["parts"] = dict(sorted(had.items()))
        mine["tests"] = [] if _wanted(lines) <= had.keys() else ["a part of the selection"]
    skipped_for = {*result.facts.get("skipped_for", ()), *(mine.get("skipped_for", ()) if asked else ())}
    mine |= {name: result.facts[name] for name in KEPT if name in result.facts}
    mine["skipped_for"] = sorted(skipped_for)
    text = json.dumps({name: known[name] for name in order if name in known}, indent=1)
    RECORD.write_text(
        re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", text) + "\n"
    )  # a line each
    PAGE.write_text(written(PAGE.read_text()))


def _part(node: str, lines: Sequence[str]) -> str | None:
    """Under which name the record has a test: that of its line; of a whole folder, that of its file."""
    for line in lines:
        if _covers(line, node):
            return line if ".py" in line else node.partition("::")[0]
    return None


def _covers(asked: str, node: str) -> bool:
    return node == asked or node.startswith((f"{asked}/", f"{asked}::", f"{asked}["))


def _parts(junit: str, asked: Sequence[str], lines: Sequence[str]) -> dict[str, Counts]:
    """What came out of each part that was asked for as a whole."""
    found: dict[str, list[Counts]] = {}
    for case in cases(junit):
        key = _part(case.node, lines)
        if key and (not asked or any(_covers(one, key) for one in asked)):
            found.setdefault(key, []).append(case.counts)
    return {key: total(counts) for key, counts in found.items()}


def _wanted(lines: Sequence[str]) -> set[str]:
    """The parts that a whole run has."""
    files = {line for line in lines if ".py" in line}
    folders = (ROOT / line for line in lines if ".py" not in line)
    return files | {str(path.relative_to(ROOT)) for folder in folders for path in folder.glob("test_*.py")}


def written(page: str) -> str:
    """The page with the table of what is recorded."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found and ended, f"the page has no place for {BEGIN}"
    return f"{before}{BEGIN}\n{table(recorded())}{END}{after}"
