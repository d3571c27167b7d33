# SPDX-License-Identifier: Apache-2.0
"""What is promised, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.bench import bars
from datapath.bench.model import MODES, Cost, Run, Sample, SuiteOptions
from datapath.bench.suites import FULL, SUITES
from datapath.bench.tables import losses, promised, relative
from tests.unit.test_bench_files import made
from tests.unit.toy_bench import series


def rows(run: Run) -> dict[tuple[str, str], list[str]]:
    return {(row[0], row[1]): row[2:] for row in promised(run).rows}


def round_trips(ebpf: Sequence[float], none: float = 1.0, iptables: float = 2.0) -> Run:
    samples = {"ebpf": ebpf, "iptables": [iptables] * len(ebpf), "none": [none] * len(ebpf)}
    return made(series(samples, workload="tcp_rr", path="container-container"))


@pytest.mark.parametrize(
    ("ebpf", "measured", "verdict"),
    [
        ([1.04] * 6, "1.040", "met"),
        ([1.05] * 6, "1.050", "met"),
        ([1.0, 1.01, 1.02, 1.02, 1.03, 1.04], "1.020 (1.000–1.040)", "met"),
        ([1.0, 1.01, 1.02, 1.02, 1.03, 1.06], "1.020 (1.000–1.060)", "tie"),
        ([1.04, 1.1, 1.1, 1.1, 1.1, 1.1], "1.100 (1.040–1.100)", "tie"),
        ([1.06, 1.1, 1.1, 1.1, 1.1, 1.1], "1.100 (1.060–1.100)", "missed"),
        ([0.5] * 5, "0.500", "too few rounds"),
    ],
)
def test_a_bar_is_met_or_missed_by_the_whole_interval(ebpf: list[float], measured: str, verdict: str) -> None:
    found = rows(round_trips(ebpf))
    assert found["tcp_rr container-container", "ebpf/none"] == ["≤ 1.05", measured, verdict]


def test_a_lower_bar_is_met_from_above() -> None:
    for ours, verdict in ((1.39, "missed"), (1.4, "met"), (9.0, "met")):
        samples = {"ebpf": [ours] * 6, "iptables": [1.0] * 6}
        run = made(series(samples, workload="udp_pps", path="container-container", better="higher"))
        assert rows(run)["udp_pps container-container", "ebpf/iptables"][2] == verdict


def test_a_row_without_the_other_mode_is_named_and_what_was_not_asked_for_is_not() -> None:
    run = made(series({"ebpf": [1.0] * 6}, workload="attach_detach"))
    assert rows(run) == {("attach_detach", "ebpf/docker"): ["≤ 0.1", "", "not measured"]}
    assert promised(made(series({"ebpf": [1.0] * 6}))).rows == []


def many_ports(one: Sequence[float], many: Sequence[float], none: tuple[float, float] | None) -> list[str]:
    """The machine is so fast in the minutes of the one row, and of the other."""
    found = []
    for count, values, limit in ((1, one, 0), (10000, many, 1)):
        samples = {"ebpf": values} | ({"none": [none[limit]] * len(values)} if none else {})
        found.append(
            series(samples, workload="tcp_connect", path="outside-published", parameters={"ports": count})
        )
    return rows(made(*found))["tcp_connect outside-published ports=10000", "ebpf/ebpf ports=1"]


def test_two_rows_are_compared_by_what_the_machine_did_in_each() -> None:
    assert many_ports([10.0] * 6, [5.0] * 6, (20.0, 10.0)) == ["≥ 0.95", "1.000", "met"]
    assert many_ports([10.0] * 6, [9.0] * 6, (20.0, 20.0)) == ["≥ 0.95", "0.900", "missed"]
    assert many_ports([10.0] * 6, [9.0] * 6, None) == ["≥ 0.95", "0.900", "missed"]
    assert many_ports([9.0, *[10.0] * 4, 11.0], [10.0] * 6, None) == ["≥ 0.95", "1.000 (0.909–1.111)", "tie"]
    assert many_ports([10.0] * 5, [10.0] * 6, None)[2] == "too few rounds"


def test_figures_that_are_no_ratios_have_bars_too() -> None:
    publish = replace(
        series({}, workload="publish_unpublish", parameters={"ports": 10000}),
        samples={"ebpf": tuple(Sample(180.0, {"publish_ms": value}) for value in (90, 91, 92, 93, 94, 95))},
    )
    cost = Cost("ebpf", *bars.ESTABLISHED, "ns", 121.0)
    others = (
        replace(cost, what="a run, UDP packets", value=1.0),
        replace(cost, unit="instructions", value=300.0),
    )
    found = rows(replace(made(publish), costs=(cost, *others)))
    assert found == {
        ("publish_unpublish ports=10000", "ebpf, publish, ms"): ["≤ 100", "92.5 (90.0–95.0)", "met"],
        ("from_container", "ebpf, ns a packet"): ["≤ 120", "121", "missed"],
    }


def test_every_row_that_something_is_promised_of_is_measured(tmp_path: Path) -> None:
    options = SuiteOptions(1.0, tmp_path, dockerd="sh")
    there = {row.point.label for name in FULL for row in SUITES[name](MODES, options).experiments()}
    assert bars.PROMISED - there == {bars.ESTABLISHED[0]}, "that one is a cost"


def test_docker_on_the_driver_is_compared_with_docker_and_with_our_own_containers() -> None:
    started = {"ebpf": [9.0] * 6, "docker-datapath": [10.0] * 6, "docker": [90.0] * 6}
    opened = {"ebpf": [1.0] * 6, "docker-datapath": [1.04] * 6}
    run = made(
        series(started, workload="start", parameters={"ports": 200}),
        series(opened, workload="tcp_rr", path="outside-published"),
        series({"docker-datapath": [1.0] * 6, "docker": [2.0] * 6}, workload="start_asleep"),
    )
    assert rows(run) == {
        ("start ports=200", "docker-datapath/docker"): ["≤ 0.125", "0.111", "met"],
        ("tcp_rr outside-published", "docker-datapath/ebpf"): ["≤ 1.03", "1.040", "missed"],
    }
    shown = relative(run)
    assert shown.headings[1:-1] == ["EBPF/DOCKER-DATAPATH", "EBPF/DOCKER", "DOCKER-DATAPATH/DOCKER"]
    assert [row[3].partition(" ")[0] for row in shown.rows] == ["0.111", "", "0.500"]


def test_what_others_win_has_a_table_and_ties_and_the_limit_are_not_in_it() -> None:
    others = {"iptables": [1.9] * 6, "nftables": [4.0] * 6, "docker": [1.0, 3.0] * 3, "none": [1.0] * 6}
    found = made(
        series({"ebpf": [2.0] * 6, **others}, workload="latency"),
        series({"ebpf": [2.0] * 6, **others}, workload="rate", better="higher"),
        series({"ebpf": [2.0] * 5, "iptables": [1.0] * 5}, workload="few"),
    )
    assert losses(found).rows == [["latency", "iptables by 5.3%"], ["rate", "nftables 2.0×"]]
