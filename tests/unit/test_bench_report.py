# SPDX-License-Identifier: Apache-2.0
"""What `bench` prints and draws, with a toy for a benchmark."""

from __future__ import annotations

import base64
import gc
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import ctl.cli.bench
from ctl.cli import main
from datapath.bench import page, plot_lines, plot_style, plots, results
from datapath.bench.model import MODES, NONE, Point, Run, Sample, Suite, SuiteFactory, SuiteOptions
from datapath.errors import DatapathError
from tests.unit.test_bench_files import FACTORS, RUN, around, made
from tests.unit.toy_bench import ObservingSuite, ToyExperiment, series

PNG = b"\x89PNG\r\n\x1a\n"


def everything() -> Run:
    """One of each kind of plot."""
    sweep = [
        series(around(FACTORS), workload="publish", parameters={"ports": ports})
        for ports in (1, 10, 1000, 100)
    ]
    single = [
        series(around(FACTORS), workload="rate", path=path, better="higher") for path in ("hairpin", "")
    ]
    return made(*sweep, *single)


# ---- pages and pictures -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return page.write(everything(), tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module", autouse=True)
def matplotlib_is_no_garbage() -> Iterator[None]:
    """What it loaded stays; collections during later tests, which take times, need not look at it."""
    yield
    gc.collect()
    gc.freeze()


class Reader(HTMLParser):
    """Collects what a browser would fetch, and what it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def test_the_page_needs_nothing_else_and_runs_nothing(written: list[Path]) -> None:
    text, reader = written[0].read_text(), read(written[0])
    outside = [found for found in reader.fetched if not found.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"@import|url\((?!['\"]?#)", text)
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    assert reader.tags.count("svg") == len(plots.plots(everything()))
    assert len(reader.ids) == len(set(reader.ids)), "plots share one page"


def test_the_page_carries_its_samples_and_its_command(written: list[Path], tmp_path: Path) -> None:
    reader = read(written[0])
    (data,) = [found for found in reader.fetched if found.startswith("data:application/json;base64,")]
    (tmp_path / "again.json").write_bytes(base64.b64decode(data.partition(",")[2]))
    again = results.read(tmp_path / "again.json")
    assert [s.point for s in again.series] == [s.point for s in everything().series]
    assert "datapathctl bench run --filter 'a b'" in reader.text


def test_words_in_results_are_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & \"y\" $\\a_b$"
    run = made(series(around(FACTORS), workload=evil, unit=evil))
    page.write(run, tmp_path)
    reader = read(tmp_path / "report.html")
    assert "script" not in reader.tags and "b" in reader.tags
    assert evil in reader.text and "<b>fast</b>" in reader.text


def test_colours_follow_the_reader(written: list[Path]) -> None:
    text = written[0].read_text()
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert plot_style.INK not in svgs and "currentColor" in svgs
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"fill: (#[0-9a-f]{6})", svgs)) <= set(plot_style.COLOURS.values()), (
        "no black, no white"
    )


def test_every_plot_is_a_picture(written: list[Path]) -> None:
    pictures = {path.name: path.read_bytes() for path in written if path.suffix == ".png"}
    assert set(pictures) == {
        "summary.png",
        "relative-hairpin.png",
        "relative-control-plane.png",
        "sweep-publish-ports.png",
        "latency-through-the-stack.png",
    }
    for name, picture in pictures.items():
        width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
        assert picture.startswith(PNG) and width == 1440 and height > 200, name


def test_hardly_anything_measured_is_a_page_too(tmp_path: Path) -> None:
    """One mode, no rounds, zeros: what an interrupted or failed run leaves."""
    for number, run in enumerate(
        (
            made(),
            made(series({"ebpf": []}, stopped="failed: x"), series({"ebpf": [1.0]})),
            made(
                series({"ebpf": [0.0] * 6, "iptables": [1.0] * 6}),
                series({"ebpf": [1.0] * 2, NONE: [0.0] * 2}),
            ),
            made(
                *(
                    series({"ebpf": [0.0, 1.0], "iptables": [1.0, 0.0]}, parameters={"n": n})
                    for n in (0, 1, 2)
                )
            ),
        )
    ):
        (tmp_path / str(number)).mkdir()
        assert page.write(run, tmp_path / str(number))


def test_labels_are_moved_apart_but_not_out_of_order() -> None:
    placed = plot_lines.apart({"a": 0.0, "b": 1.0, "c": 2.0, "d": 100.0}, 10)
    assert placed == {"a": -9.0, "b": 1.0, "c": 11.0, "d": 100.0}


# ---- the commands -----------------------------------------------------------------------------


def toys(*works: Callable[[str], Sample]) -> dict[str, SuiteFactory]:
    from tests.unit.toy_bench import hashing

    class Toy(ObservingSuite):
        """Lives in the directory that it was given."""

    def factory(modes: tuple[str, ...], options: SuiteOptions) -> Suite:
        assert options.folder.is_dir() and options.seconds > 0
        made = [
            ToyExperiment(Point("hash", "hairpin", {"n": n}), modes, work)
            for n, work in enumerate(works or (hashing,))
        ]
        return Toy(made)

    return {"toy": factory}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctl.cli.bench, "registry", toys)
    monkeypatch.chdir(tmp_path)


def test_run_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "run", "--rounds", "6", "--seconds", "0.01", "--out", "out", "--filter", "HASH hairpin"]
    assert main.run(argv) == 0
    out, err = capsys.readouterr()
    assert "Medians\nEXPERIMENT" in out and "WHO WINS" in out and "hash hairpin n=0" in out
    assert err.startswith("[1/1] hash hairpin n=0 · 6 rounds · iptables ") and "out/results.json" in err
    run = results.read(tmp_path / "out/results.json")
    assert {mode: len(samples) for mode, samples in run.series[0].samples.items()} == dict.fromkeys(MODES, 6)
    assert run.costs and run.histograms and len(run.machine["load_after"]) == 3
    assert run.command[-2:] == ("--filter", "HASH hairpin") and "--out" not in run.command
    assert (tmp_path / "out/summary.png").exists() and (tmp_path / "out/report.html").exists()
    assert main.run(argv) == 2, "nothing is overwritten"
    assert "is there already: choose another --out" in capsys.readouterr().err


def test_run_goes_on_after_a_failure_and_says_so_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(mode: str) -> Sample:
        raise DatapathError("wrk is gone")

    ctl.cli.bench.registry = lambda: toys(fails, lambda mode: Sample(1.0))  # put back by the fixture
    assert main.run(["bench", "run", "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert "failed: wrk is gone" in out and "hash hairpin n=1" in out
    assert err.splitlines()[-1].startswith("datapathctl: 1 of the experiments or suites failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_is_written(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupted(mode: str) -> Sample:
        calls.append(mode)
        if len(calls) == 4 * len(MODES):
            signal.raise_signal(number)  # to this thread: another might take it a round later
        return Sample(1.0)

    before = signal.getsignal(number)
    ctl.cli.bench.registry = lambda: toys(interrupted)
    assert main.run(["bench", "run", "--out", "out"]) == 130
    (series,) = results.read(tmp_path / "out/results.json").series
    assert series.stopped == "interrupted" and len(series.samples["ebpf"]) in (2, 3)
    assert capsys.readouterr().err.endswith("datapathctl: interrupted\n")
    assert signal.getsignal(number) == before


def test_ls_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "ls", "--modes", "ebpf none"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "SUITE     EXPERIMENT         TITLE          UNIT      MODES",
        "toy       hash hairpin n=0   The toy hash   µs        ebpf,none",
    ]
    assert main.run(["bench", "list", "--filter", "other"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_compare_ends_with_1_when_it_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = FACTORS | {"ebpf": 2 * FACTORS["ebpf"]}
    results.write(made(series(around(FACTORS)), series(around(FACTORS), workload="old")), tmp_path / "a.json")
    results.write(made(series(around(slower))), tmp_path / "b.json")
    assert main.run(["bench", "compare", "a.json", "a.json"]) == 0
    assert "REGRESSION" not in capsys.readouterr().out
    assert main.run(["bench", "compare", "a.json", "b.json"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^hash +ebpf/iptables .* -\d\d\.\d% +REGRESSION$", out, re.MULTILINE)
    assert err == "WARNING: only in a.json: old\ndatapathctl: worse than before: hash\n"
    assert main.run(["bench", "compare", "b.json", "a.json"]) == 0


def test_report_draws_a_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(everything(), tmp_path / "a.json")
    assert main.run(["bench", "report", "a.json", "--out", "new/place"]) == 0
    assert (tmp_path / "new/place/report.html").exists() and "Ratios" in capsys.readouterr().out


WITHOUT = """
import sys
sys.modules["{missing}"] = None
import ctl.cli.bench, tests.unit.test_bench_report as here
from ctl.cli.main import main
ctl.cli.bench.registry = here.toys
main()
"""


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_there_are_samples_tables_and_one_line(missing: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT.format(missing=missing),
            "bench",
            "run",
            "--rounds",
            "6",
            "--out",
            "out",
        ],
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0 and "WHO WINS" in done.stdout, done.stderr
    assert f"WARNING: no plots and no page without {missing}: pip install 'datapathctl[bench]'" in done.stderr
    assert os.listdir(tmp_path / "out") == ["results.json"]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["run", "--suite", "nope"], 3, 'no suite is called "nope"; there are: toy'),
        (["run", "--modes", "ebpf,lvs"], 2, 'invalid mode "lvs": expected some of ebpf, iptables'),
        (["run", "--modes", ","], 2, "no mode is given"),
        (["run", "--filter", "zebra"], 3, 'no experiment is called like "zebra"'),
        (["run", "--rounds", "0"], 2, "'0' is not one to three numbers above 0, with commas between."),
        (["run", "--rounds", "9,x"], 2, "'9,x' is not one to three numbers above 0"),
        (["run", "--rounds", "9,8,7,6"], 2, "'9,8,7,6' is not one to three numbers above 0"),
        (["run", "--seconds", "-1"], 2, "-1.0 is not in the range"),
        (["run", "--tight", "nan"], 2, "'nan' is not a valid number."),
        (["run", "--out", "/dev/null/x"], 1, "/dev/null/x"),
        (["compare", "a.json"], 2, "Missing argument 'B.json'"),
        (["compare", "no.json", "no.json"], 2, "no.json: No such file or directory"),
        (["report", "bad.json"], 2, "bad.json is no JSON, or damaged"),
        (["report"], 2, "Missing argument 'FILE'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(
    argv: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("{")
    assert main.run(["bench", *argv]) == code
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1 and err.startswith("datapathctl: ")
    assert os.listdir(tmp_path) == ["bad.json"], "nothing was written"


def test_nothing_in_common_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(RUN, tmp_path / "a.json")
    results.write(made(series(around(FACTORS), workload="other")), tmp_path / "b.json")
    assert main.run(["bench", "compare", "a.json", "b.json"]) == 2
    assert "nothing in common" in capsys.readouterr().err


def test_the_raw_samples_are_in_the_file_as_they_were(tmp_path: Path) -> None:
    assert main.run(["bench", "run", "--rounds", "2", "--modes", "ebpf,none", "--out", "out"]) == 0
    document: dict[str, Any] = json.loads((tmp_path / "out/results.json").read_text())
    samples = document["series"][0]["samples"]
    assert [sample["details"] for sample in samples["ebpf"]] == [{"kib": 16}] * 2
