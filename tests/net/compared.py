# SPDX-License-Identifier: Apache-2.0
"""What came out of the cases of hosts, kernel by kernel: the record of it, and the tables that are written from that.

    .venv/bin/python -m tests.net.compared [--whole] FILE    # takes in what one run has left in FILE

A run in the lab that does not have every case (`make lab KERNEL=6.12 COMPARE=1 TESTS=…`) changes what is recorded of
those that it had. `--whole`: the run had every case; what it did not have is no case any more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.net.compare import EBPF, IPTABLES, NOT_RUN, RIGHT, WRONG

RECORD = Path(__file__).with_name("compared.json")
PAGE = Path(__file__).parents[2] / "docs/compatibility.md"
CASES_HERE, UPLINKS_HERE = "<!-- make compare-host -->", "<!-- make compare-host: uplinks -->"
END = "<!-- end -->"

# Series of kernels -> case ("1 A sentence.") -> uplink ("": it is not about one) -> mode -> what came out.
Cases = dict[str, dict[str, dict[str, str]]]
Record = dict[str, Cases]


def _numbers(series: str) -> list[int]:
    return [int(number) for number in series.split(".")]


def _order(case: str) -> tuple[int, str]:
    number, _, sentence = case.partition(" ")
    return int(number), sentence


def taken_in(record: Record, release: str, found: Cases, whole: bool) -> Record:
    """The record with what a run on that kernel found. What a kernel has no device for is not recorded."""
    series = ".".join(release.split(".")[:2])
    known = {
        kernel: {case: variants for case, variants in cases.items() if not whole or case in found}
        for kernel, cases in record.items()
    }
    ours = {} if whole else known.get(series, {})
    for case, variants in found.items():
        for variant, modes in variants.items():
            ran = {mode: told for mode, told in modes.items() if told != NOT_RUN}
            if ran:
                ours.setdefault(case, {}).setdefault(variant, {}).update(ran)
    known[series] = ours
    return {
        kernel: {
            case: {
                variant: dict(sorted(known[kernel][case][variant].items())) for variant in sorted(variants)
            }
            for case, variants in sorted(known[kernel].items(), key=lambda item: _order(item[0]))
        }
        for kernel in sorted(known, key=_numbers)
    }


class Cell:
    """What came out in one mode, on all kernels. `about` tells one outcome from others where one is wrong."""

    def __init__(self, outcomes: Sequence[tuple[str, str, str]]) -> None:
        """`outcomes`: kernel, what it was about, what came out."""
        self.kernels = sorted({kernel for kernel, _, _ in outcomes}, key=_numbers)
        self._wrong = sorted(
            {f"{kernel} ({about})" if about else kernel for kernel, about, told in outcomes if told == WRONG}
        )
        self._told = next((told for _, _, told in outcomes), NOT_RUN)

    def __str__(self) -> str:
        if self._wrong:
            return f"**wrong** on {', '.join(self._wrong)}"
        return self._told if self._told in (RIGHT, NOT_RUN) else f"no: {self._told}"


def _every(record: Record) -> Iterator[tuple[str, str, str, str, str]]:
    """Kernel, case, uplink, mode, what came out."""
    for kernel, cases in record.items():
        for case, variants in cases.items():
            for variant, modes in variants.items():
                for mode, told in modes.items():
                    yield kernel, case, variant, mode, told


def cases_table(record: Record) -> list[str]:
    lines = [
        "| kind | what is right | kernel (iptables mode) | datapath (eBPF) | seen on |",
        "|---|---|---|---|---|",
    ]
    everything = list(_every(record))
    for case in sorted({case for _, case, _, _, _ in everything}, key=_order):
        cells = [
            Cell(
                [
                    (kernel, about, told)
                    for kernel, name, about, mode, told in everything
                    if (name, mode) == row
                ]
            )
            for row in ((case, IPTABLES), (case, EBPF))
        ]
        number, sentence = _order(case)
        lines.append(f"| {number} | {sentence} | {cells[0]} | {cells[1]} | {', '.join(cells[1].kernels)} |")
    return lines


def uplinks_table(record: Record) -> list[str]:
    lines = ["| uplink | kernel (iptables mode) | datapath (eBPF) |", "|---|---|---|"]
    everything = [one for one in _every(record) if one[2]]
    for uplink in sorted({uplink for _, _, uplink, _, _ in everything}):
        cells = []
        for mode in (IPTABLES, EBPF):
            cell = Cell(
                [
                    (kernel, _order(case)[1], told)
                    for kernel, case, name, how, told in everything
                    if (name, how) == (uplink, mode)
                ]
            )
            on = f" on {', '.join(cell.kernels)}" if str(cell) == RIGHT else ""
            cells.append(f"{cell}{on}")
        lines.append(f"| {uplink} | {cells[0]} | {cells[1]} |")
    return lines


def written(page: str, record: Record) -> str:
    """The page with the tables of that record."""
    makers: tuple[tuple[str, Callable[[Record], list[str]]], ...] = (
        (CASES_HERE, cases_table),
        (UPLINKS_HERE, uplinks_table),
    )
    for begin, make in makers:
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(END)
        assert found and ended, f"the page has no place for {begin}"
        page = before + "\n".join([begin, *make(record), END]) + after
    return page


def take_in(file: Path, whole: bool) -> None:
    """What a run has left changes the record and the page. A run that had no case has left nothing."""
    if not file.exists():
        return
    run = json.loads(file.read_text())
    record = taken_in(json.loads(RECORD.read_text()), run["release"], run["cases"], whole)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(written(PAGE.read_text(), record))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compared")
    parser.add_argument("--whole", action="store_true", help="the run had every case")
    parser.add_argument("file", type=Path)
    asked = parser.parse_args(argv)
    take_in(asked.file, asked.whole)
    return 0


if __name__ == "__main__":
    sys.exit(main())
