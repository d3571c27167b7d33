# SPDX-License-Identifier: Apache-2.0
"""What measuring programs print, as recorded from the programs themselves, becomes figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.bench import tools
from datapath.bench.balancers import Rules, iptables_rules
from datapath.bench.docker import installed
from datapath.bench.model import Point, Sample, SuiteOptions
from datapath.bench.place import MissingError
from datapath.bench.resolvers import RESOLVED
from datapath.bench.runner import Bounds, Runner
from datapath.bench.suites import SUITES
from datapath.errors import DatapathError

OUTPUTS = Path(__file__).with_name("outputs")


def said(name: str) -> str:
    return (OUTPUTS / name).read_text()


def test_sockperf_tells_half_of_the_median_round_trip() -> None:
    found = tools.sockperf(said("sockperf.txt"))
    assert found == Sample(
        13.98,
        {"mean_us": 42.08, "p99_us": 852.976, "seconds": 0.543, "round_trips": 12904, "lost": 0},
    )


def test_iperf3_tells_what_the_receiver_got() -> None:
    found = tools.iperf3_stream(said("iperf3-stream.json"))
    assert found.value == pytest.approx(7.319, abs=1e-3)
    assert found.details["bytes"] == pytest.approx(found.value * 1e9 / 8 * found.details["seconds"])


def test_iperf3_tells_packets_whether_or_not_the_receiver_had_room() -> None:
    found = tools.iperf3_packets(said("iperf3-udp.json"))
    assert found.value == pytest.approx(found.details["packets"] / found.details["seconds"] / 1000)
    assert found.details["packets"] == 47650


def test_wrk_tells_requests_and_percentiles() -> None:
    assert tools.wrk(said("wrk.txt")) == Sample(
        23868.67,
        {"p50_us": 100.0, "p75_us": 751.0, "p90_us": 1980.0, "p99_us": 3900.0, "socket_errors": {}},
    )
    assert tools.wrk(said("wrk-close.txt")).value > 0


def test_our_own_program_tells_connections_a_second() -> None:
    found = tools.connections('{"connections": 9247, "seconds": 0.5, "slow": 2}')
    assert found == Sample(18494.0, {"connections": 9247, "seconds": 0.5, "slow": 2})


ASKED = '{"answered": 500, "lost": 1, "wrong": %d, "seconds": 0.5, "p50_ns": 2250, "p90_ns": 3000, "p99_ns": 9000}'


def test_our_own_program_tells_the_median_of_questions_and_how_many_are_answered_in_a_second() -> None:
    found = tools.questions(ASKED % 0)
    assert (found.value, found.details["lost"]) == (2.25, 1)
    assert tools.question_rate(ASKED % 0).value == 1000.0


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (tools.questions, ASKED % 3, "questions: 500 answered, 3 wrongly"),
        (tools.wrk, said("wrk-bad.txt"), "Non-2xx or 3xx responses: 19205"),
        (tools.wrk, "unable to connect to 127.0.0.1:1 Connection refused\n", "no rate"),
        (tools.iperf3_stream, said("iperf3-refused.json"), "unable to connect to server: Connection refused"),
        (tools.iperf3_packets, "iperf3: error - no route\n", "does not say JSON"),
        (
            tools.sockperf,
            "sockperf: ERROR: Can`t connect socket (errno=111 Connection refused)\n",
            "no latency",
        ),
        (tools.connections, "", "does not say JSON"),
    ],
)
def test_what_failed_is_an_error_and_no_figure(parse: Callable[[str], Sample], text: str, says: str) -> None:
    with pytest.raises(DatapathError, match=says):
        parse(text)


@pytest.mark.parametrize("name", SUITES)
def test_every_row_of_a_suite_has_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    modes = ("ebpf", "iptables", "docker-datapath", "docker", "none")
    rows = SUITES[name](modes, SuiteOptions(1.0, tmp_path, dockerd="sh")).experiments()
    assert len({row.point.label for row in rows}) == len(rows) > 0
    assert all(set(row.modes) <= set(modes) and row.title for row in rows)
    assert list(tmp_path.iterdir()) == [], "nothing is built before it is wanted"


def test_docker_is_left_out_where_there_is_no_daemon(tmp_path: Path) -> None:
    for name in ("quick", "docker", "dns"):
        modes = ("ebpf", "docker-datapath", "docker")
        rows = SUITES[name](modes, SuiteOptions(1.0, tmp_path, dockerd="no-such")).experiments()
        assert {row.modes for row in rows} <= {("ebpf",), ()}


def test_the_daemon_may_be_in_the_root_of_another_system(tmp_path: Path) -> None:
    assert not installed(str(tmp_path))
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/dockerd").touch()
    assert installed(str(tmp_path))


def test_containers_of_docker_on_networks_of_the_driver_do_all_that_those_on_its_own_do(
    tmp_path: Path,
) -> None:
    both = ("docker-datapath", "docker")
    options = SuiteOptions(1.0, tmp_path, dockerd="sh")
    for name in ("quick", "paths", "sweeps", "control", "cost", "docker"):
        for row in SUITES[name](("ebpf", *both), options).experiments():
            if row.point.label != "udp_pps hairpin":  # docker-proxy answers from another address
                assert set(row.modes) & set(both) in (set(), set(both)), row.point.label
    rows = {row.point.label: row.modes for row in SUITES["docker"](("ebpf", *both), options).experiments()}
    assert rows["start ports=200"] == ("ebpf", *both)
    assert rows["start_asleep ports=1"] == rows["start_at_once containers=20"] == both


def test_a_row_whose_program_is_not_installed_is_skipped_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = SUITES["paths"](("none",), SuiteOptions(1.0, tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    label = Point("tcp_rr", "hairpin").label
    outcome = Runner(Bounds(), lambda progress: None).run([suite], lambda row: row.point.label == label)
    assert outcome.skipped == {label: "sockperf is not installed: make bench-deps"}
    assert outcome.series == []


def test_what_is_not_installed_for_the_benchmark_says_how_to_have_it_and_what_that_does() -> None:
    said = str(MissingError(RESOLVED))
    assert said.startswith("systemd-resolved is not installed: apt-get install systemd-resolved, ")
    assert "/etc/resolv.conf" in said and "\n" not in said


def test_rules_of_a_service_give_each_backend_the_same_share() -> None:
    """As in kube-proxy's chains, where a lot is drawn for each backend in turn."""
    text = iptables_rules(Rules((("10.96.0.1", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),), "192.0.2.1", 80))
    left, shares = 1.0, []
    for line in [line for line in text.splitlines() if line.startswith("-A SVC-0 ")]:
        words = line.split()
        lot = float(words[words.index("--probability") + 1]) if "--probability" in words else 1.0
        shares.append(left * lot)
        left *= 1 - lot
    assert shares == pytest.approx([1 / 3] * 3)
