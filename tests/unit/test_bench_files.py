# SPDX-License-Identifier: Apache-2.0
"""Results as files, what is said of the machine, and two runs compared."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datapath.bench import machine, results
from datapath.bench.compare import compare
from datapath.bench.model import Cost, Histogram, Run, Sample, Series
from datapath.errors import ConfigError
from tests.unit.toy_bench import series

DICE = random.Random(11)
FACTORS = {"ebpf": 1.0, "iptables": 1.5, "nftables": 1.4, "none": 0.7}


def around(factors: dict[str, float], rounds: int = 12) -> dict[str, list[float]]:
    return {mode: [factor * DICE.gauss(1, 0.01) for _ in range(rounds)] for mode, factor in factors.items()}


def made(*found: Series) -> Run:
    return Run(
        format=results.FORMAT,
        started="2026-11-24T09:00:00+00:00",
        seconds=12.5,
        command=("datapathctl", "bench", "run", "--filter", "a b"),
        machine={"cpu": {"model": "<b>fast</b>", "usable": 2}, "load_before": [0.1, 0.2, 0.3]},
        series=found,
        histograms=(Histogram("Through the stack", "ebpf", (0, 1, 7, 2)),),
        costs=(Cost("ebpf", "from_host", "per packet", "ns", 210.0),),
        skipped={"suite docker": "no daemon"},
    )


RUN = made(
    replace(
        series(around(FACTORS), path="hairpin", parameters={"ports": 10}),
        samples={"ebpf": (Sample(1.5, {"retransmits": 3, "cpu": [1, 2]}),), "none": (Sample(0.5),)},
    ),
    series(around(FACTORS), workload="rate", better="higher", unit="1/s"),
)


# ---- files ------------------------------------------------------------------------------------


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    results.write(RUN, tmp_path / "results.json")
    assert results.read(tmp_path / "results.json") == RUN
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_run_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write(RUN, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(made(series({"ebpf": [float("nan")]})), path)
    assert results.read(path) == RUN


def damaged(change: Callable[[Any], object]) -> str:
    document = json.loads(results.dumped(RUN))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON, or damaged"),
        (results.dumped(RUN)[:-100], "is no JSON, or damaged"),
        ("[" * 100_000, "is no JSON, or damaged"),
        ("[]", "is no file that `bench run` wrote"),
        ('{"kind": "other"}', "is no file that `bench run` wrote"),
        (damaged(lambda run: run.update(format=2)), 'has format "2", this version reads 1 only'),
        (damaged(lambda run: run.pop("format")), 'has format "None"'),
        (damaged(lambda run: run.pop("series")), "is damaged: there is no 'series'"),
        (damaged(lambda run: run.update(series={})), "is damaged: {} where a list is expected"),
        (damaged(lambda run: run["series"][0].update(better="faster")), "is damaged: better is 'faster'"),
        (damaged(lambda run: run["series"][0]["point"].pop("path")), "is damaged: there is no 'path'"),
        (damaged(lambda run: run["series"][0]["samples"]["ebpf"].pop()), "unequal numbers of rounds"),
        (
            damaged(lambda run: run["series"][0]["samples"]["ebpf"][0].update(value=float("nan"))),
            "nan where a number is expected",
        ),
        (damaged(lambda run: run["series"][0]["samples"]["ebpf"][0].update(value="1")), "'1' where a number"),
        (damaged(lambda run: run["costs"][0].update(value=-1)), "-1 where a number is expected"),
        (damaged(lambda run: run["histograms"][0].update(counts=[1.5])), "1.5 where a whole number"),
        (damaged(lambda run: run.update(command="rm")), "'rm' where a list is expected"),
        (damaged(lambda run: run.update(machine=[])), "[] where an object is expected"),
    ],
    ids=lambda value: value[:40],
)
def test_another_or_a_damaged_file_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        results.read(path)
    assert says in str(caught.value) and str(caught.value).isprintable()


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "a.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            results.read(path)


# ---- the machine ------------------------------------------------------------------------------


def test_the_machine_is_described(tmp_path: Path) -> None:
    tool = tmp_path / "dockerd"
    tool.write_text("#!/bin/sh\necho == Docker version 99.1, build abc ==\n")
    tool.chmod(0o755)
    found = machine.describe(docker="/does/not/exist", dockerd=str(tool))
    assert found["kernel"]["release"] == platform.release()
    assert found["cpu"]["count"] == os.cpu_count() and found["cpu"]["model"]
    assert found["tools"]["dockerd"] == "Docker version 99.1, build abc" and "docker" not in found["tools"]
    assert found["sysctls"]["net.ipv4.tcp_rmem"].count(" ") == 2
    assert len(found["load_before"]) == 3 and found["datapath"]["version"]


DESCRIBE = "import json; from datapath.bench import machine; print(json.dumps(machine.describe()))"


@pytest.mark.skipif(os.geteuid() != 0, reason="another host name, and a network namespace, take root")
def test_the_host_is_not_named_and_offloads_are_those_of_a_veth_that_is_gone_again() -> None:
    before = set(os.listdir("/sys/class/net"))
    script = f"hostname telltale && exec {sys.executable} -c '{DESCRIBE}'"
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    assert "telltale" not in done.stdout and str(Path.home()) not in done.stdout
    assert json.loads(done.stdout)["veth_offloads"]["tcp-segmentation-offload"] in ("on", "off")
    assert set(os.listdir("/sys/class/net")) == before


# ---- comparisons ------------------------------------------------------------------------------


def two(better: str, unit: str, changed: dict[str, float]) -> tuple[Run, Run]:
    """Four experiments on two machines, the second half as fast; in "b" some modes are so many times as high."""

    def run(machine: float, changes: dict[str, float]) -> Run:
        return made(
            *(
                series(
                    around(
                        {
                            mode: factor * machine * (changes.get(mode, 1.0) if name == "b" else 1.0)
                            for mode, factor in FACTORS.items()
                        }
                    ),
                    workload=name,
                    better="higher" if better == "higher" else "lower",
                    unit=unit,
                )
                for name in "abcd"
            )
        )

    return run(1.0, {}), run(2.0, changed)


@pytest.mark.parametrize(
    ("better", "changed", "regressions"),
    [
        ("lower", {}, set()),
        ("lower", {"ebpf": 1.1}, {("b", "ebpf", "iptables"), ("b", "ebpf", "none")}),
        ("lower", {"ebpf": 0.9}, set()),
        ("higher", {"ebpf": 0.9}, {("b", "ebpf", "iptables"), ("b", "ebpf", "none")}),
        ("higher", {"ebpf": 1.1}, set()),
        ("higher", {"ebpf": 0.975}, set()),  # certain, but not worth a word
        ("higher", {"nftables": 0.5}, set()),  # not ours
        ("higher", {"iptables": 2.0}, {("b", "ebpf", "iptables")}),
    ],
)
def test_exactly_the_regression_is_flagged(
    better: str, changed: dict[str, float], regressions: set[tuple[str, str, str]]
) -> None:
    found = compare(*two(better, "µs", changed))
    assert {(r.point.workload, r.mode, r.ratio_before.base) for r in found.regressions} == regressions
    assert len(found.changes) == 4 * 6, "each mode to both bases, but to itself"


def test_another_mode_that_changes_is_shown() -> None:
    found = compare(*two("higher", "1/s", {"nftables": 0.5, "ebpf": 1.3}))
    verdicts = {(c.point.workload, c.mode): c.verdict for c in found.changes if c.ratio_before.base == "none"}
    assert {key: verdict for key, verdict in verdicts.items() if verdict != "same"} == {
        ("b", "nftables"): "worse",
        ("b", "ebpf"): "better",
    }


def test_wide_intervals_and_few_rounds_flag_nothing() -> None:
    wild = {"ebpf": [1.0, 3.0] * 5, "iptables": [1.0] * 10}
    worse = {"ebpf": [2.0, 3.5] * 5, "iptables": [1.0] * 10}
    assert compare(made(series(wild)), made(series(worse))).regressions == ()
    few = {"ebpf": [1.0] * 5, "iptables": [1.0] * 5}
    assert compare(made(series(few)), made(series(few | {"ebpf": [9.0] * 5}))).regressions == ()


def test_what_only_one_file_has_is_named() -> None:
    a, b, c = (series(around(FACTORS), workload=name) for name in "abc")
    found = compare(made(a, b), made(b, c))
    assert (found.only_before, found.only_after) == (("a",), ("c",))
    assert compare(made(a), made(replace(a, unit="ms"))).changes == (), "another unit is another figure"
