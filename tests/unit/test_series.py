# SPDX-License-Identifier: Apache-2.0
"""Totals as series of metrics: how many there are at the most, and that none ever counts less."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from ctl.cli import main
from datapath.model.flows import ALLOWED, REFUSED, FlowLine
from datapath.telemetry import exposition, metrics
from datapath.telemetry.series import OTHER, Edge, fold


def line(source: str, port: int, opened: float, *, idle: float = 0.0, **more: Any) -> FlowLine:
    found = FlowLine(
        *("shop", source, "", 0, "db", "", port, "tcp", ALLOWED, "", "", 1, 2, 120, 1, 60, opened, idle)
    )
    return found._replace(**more)


def test_the_first_totals_keep_their_series_and_no_source_has_more_than_its_share() -> None:
    lines = [line("scan", port, 1000 - port) for port in range(1, 501)] + [line("app", 5432, 1)]
    found = fold(lines, frozenset({"scan", "app", "db"}), ALLOWED, 80)
    of_scan = {edge.port: numbers for edge, numbers in found.edges.items() if edge.source == "scan"}
    assert sorted(of_scan) == sorted([*map(str, range(1, 11)), OTHER])
    assert of_scan[OTHER] == (490, 980, 58800, 490, 29400) and found.folded == 490
    assert found.edges[Edge("shop", "app", "db", "5432", "tcp", "")] == (1, 2, 120, 1, 60)


def test_there_are_few_series_whoever_there_is_and_nothing_is_lost() -> None:
    lines = [line(f"c{i}", i % 7, i, protocol=str(i % 256)) for i in range(20_000)]
    found = fold(lines, frozenset(f"c{i}" for i in range(20_000)) | {"db"}, ALLOWED, 100)
    assert len(found.edges) <= 102
    assert sum(numbers[0] for numbers in found.edges.values()) == 20_000


def test_no_series_ever_counts_less_as_traffic_goes_on() -> None:
    dice = random.Random(71)
    now, lines, before = 0.0, dict[tuple[str, int], tuple[float, int]](), dict[Edge, tuple[int, ...]]()
    for _ in range(60):
        now += 1
        for _ in range(dice.randrange(20)):
            key = (f"c{dice.randrange(6)}", dice.randrange(200))
            first, count = lines.get(key, (now + dice.random() / 2, 0))
            lines[key] = (first, count + 1)
        seen = [
            line(name, port, now + 1 - first, connections=n) for (name, port), (first, n) in lines.items()
        ]
        found = fold(seen, frozenset({"db", *(name for name, _ in lines)}), ALLOWED, 40).edges
        assert all(found[edge] >= numbers for edge, numbers in before.items())
        before = found
    assert any(edge.port == OTHER for edge in before)


def test_what_is_refused_has_no_port_and_who_is_gone_is_left_out_after_five_minutes() -> None:
    refused = [line("cron", port, 9, verdict=REFUSED, reason="DROP_IN") for port in range(99)]
    here = frozenset({"cron", "db"})
    assert fold(refused, here, REFUSED, 9).edges == {
        Edge("shop", "cron", "db", "", "tcp", "DROP_IN"): (99, 198, 11880, 99, 5940)
    }
    gone = [
        line("gone", 80, 900, idle=299.0),
        line("gone", 81, 900, idle=301.0),
        line("cron", 82, 900, idle=301),
    ]
    assert {edge.port for edge in fold(gone, here, ALLOWED, 99).edges} == {"80", "82"}


def test_labels_that_are_hostile_are_written_as_text() -> None:
    """No name of ours has these signs; that the format stays whole must not hang on it."""
    name = 'a"b\\c\nd'
    family = metrics.Family("x", "gauge", "Help.", ("name",), {(name,): 1})
    from prometheus_client import parser

    for said in ("\n".join(metrics.text([family])) + "\n", exposition.write([family]).body.decode()):
        (read,) = parser.text_string_to_metric_families(said)
        assert [(one.name, one.labels, one.value) for one in read.samples] == [
            ("datapath_x", {"name": name}, 1.0)
        ]


@pytest.mark.parametrize("wanted", [True, False])
def test_who_asks_for_openmetrics_gets_it(wanted: bool) -> None:
    family = metrics.Family("x", "counter", "Help.", (), {(): 1})
    found = exposition.write([family], openmetrics=wanted)
    assert (b"# EOF" in found.body) is ("openmetrics" in found.content_type) is wanted


def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main.run(["metrics"]) == 2
    assert capsys.readouterr() == ("", f"datapathctl: {exposition.MISSING}\n")
