# SPDX-License-Identifier: Apache-2.0
"""Health of services' backends: options as Docker takes them, what checks make of a backend, and what maps get."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.dataplane import service_entries
from datapath.errors import ConfigError
from datapath.model.codec import from_json, to_json
from datapath.model.health import (
    BackendState,
    CheckKind,
    HealthCheck,
    HealthOptions,
    Verdict,
    parse_duration,
    parse_health,
)
from datapath.model.services import Service, ServiceChange
from datapath.plan.backends import state_of
from datapath.plan.health import Progress, checkable, judge, pause, targets
from datapath.plan.services import overdue, plan_drain, plan_service_update, with_ends
from tests.unit.test_services import PORTS, STATE, WEB, behind, container, created

TCP = HealthCheck(CheckKind.TCP, "80")
MS = 10**6
STARTING, UP, UNHEALTHY = Progress(BackendState.STARTING), Progress(), Progress(BackendState.UNHEALTHY)


# ---- options -------------------------------------------------------------------------------------------------------


def test_durations_are_as_docker_has_them() -> None:
    wanted = {
        "0": 0,
        "30s": 30000 * MS,
        "1m30s": 90000 * MS,
        "1.5h": 5400000 * MS,
        "500ms": 500 * MS,
        "+1ms": MS,
    }
    assert {text: parse_duration(text, "x") for text in wanted} == wanted
    for text in ("", "5", "s", "1 s", "soon", "1d", "--1s", "9999999999h", ".s"):
        with pytest.raises(ConfigError):
            parse_duration(text, "x")
    with pytest.raises(ConfigError, match="--health-timeout cannot be negative"):
        parse_duration("-1s", "--health-timeout")


def test_what_is_not_given_is_dockers_default() -> None:
    check = parse_health(HealthOptions(http="/alive"))
    assert check == HealthCheck(CheckKind.HTTP, ":80/alive") and (check.port, check.path) == (80, "/alive")
    assert (check.every, check.patience, check.tries, check.grace) == (30, 30, 3, 0)
    assert from_json(HealthCheck, to_json(check)) == check
    assert parse_health(HealthOptions(http=":8080/a/b?c")) == HealthCheck(CheckKind.HTTP, ":8080/a/b?c")


def test_an_update_changes_what_is_given() -> None:
    before = parse_health(HealthOptions(tcp="80", interval="1s", retries="5"))
    after = parse_health(HealthOptions(cmd="true", timeout="2s"), before)
    assert after == HealthCheck(CheckKind.CMD, "true", 1000 * MS, 2000 * MS, 5)
    assert (
        parse_health(HealthOptions(), before) is before
        and parse_health(HealthOptions(none=True), before) is None
    )


WRONG = (
    (HealthOptions(tcp="80", none=True), "--no-healthcheck conflicts with --health-"),
    (HealthOptions(tcp="80", cmd="true"), "conflicting options: --health-cmd and --health-tcp"),
    (HealthOptions(interval="1s"), "nothing to check"),
    (HealthOptions(tcp="80", interval="1us"), "Interval in Healthcheck cannot be less than 1ms"),
    (HealthOptions(tcp="80", timeout="1us"), "Timeout in Healthcheck cannot be less than 1ms"),
    (HealthOptions(tcp="80", start_period="-1s"), "--health-start-period cannot be negative"),
    (HealthOptions(tcp="80", retries="-1"), "--health-retries cannot be negative"),
    (HealthOptions(tcp="80", retries="many"), "invalid --health-retries"),
    *((HealthOptions(tcp=text), "invalid --health-tcp") for text in ("", "0", "65536", "http", "-1", "80\n")),
    *(
        (HealthOptions(http=text), "invalid --health-http")
        for text in (
            "",
            "alive",
            ":0/",
            ":99999/",
            "80/x",
            "/a b",
            "/a\r\nX: y",
            "http://x/",
            "/" + "x" * 5000,
        )
    ),
    *((HealthOptions(cmd=text), "invalid --health-cmd") for text in ("", "  ", "a\0b", "x" * 5000)),
)


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_be_checked_is_refused(options: HealthOptions, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_health(options)


def test_services_without_an_address_choose_nobody() -> None:
    for asked in ({"health": HealthOptions(tcp="80")}, {"stop_grace_period": "5s"}):
        with pytest.raises(ConfigError, match="and --endpoint-mode dnsrr"):
            created(STATE, endpoint_mode="dnsrr", **asked)


# ---- what checks make of a backend ---------------------------------------------------------------------------------


def after(progress: Progress, *results: bool, check: HealthCheck = TCP, age: float = 99) -> Progress:
    for passed in results:
        progress = judge(check, progress, passed, "no", age)
    return progress


def test_one_success_makes_a_backend_up_and_so_many_failures_in_a_row_unhealthy() -> None:
    assert after(STARTING, True) == after(UNHEALTHY, True) == UP
    assert after(UP, False, False).verdict is None
    assert after(UP, False, False, True, False, False).verdict is None
    assert after(UP, False, False, False).verdict == Verdict(BackendState.UNHEALTHY, "no")
    assert after(STARTING, False, False).verdict == Verdict(BackendState.STARTING, "no")
    assert after(STARTING, False, False, False).verdict == Verdict(BackendState.UNHEALTHY, "no")


def test_failures_do_not_count_while_a_container_starts() -> None:
    check = replace(TCP, start_period=5000 * MS)
    assert after(STARTING, *[False] * 9, check=check, age=4).state == BackendState.STARTING
    assert after(STARTING, *[False] * 9, check=check, age=6).state == BackendState.UNHEALTHY
    assert after(UP, *[False] * 9, check=check, age=4).state == BackendState.UNHEALTHY


def test_what_a_check_says_is_shown_in_one_short_line() -> None:
    verdict = judge(replace(TCP, retries=1), UP, False, "a\nb\x1b[31m" + "c" * 9999, 0).verdict
    assert verdict is not None and verdict.reason.isprintable() and len(verdict.reason) <= 200


def test_one_that_starts_is_asked_more_often() -> None:
    assert (pause(TCP, UP), pause(TCP, STARTING), pause(TCP, UNHEALTHY)) == (30, 1, 30)
    assert pause(replace(TCP, interval=MS), UP) == 0.01


# ---- rows ----------------------------------------------------------------------------------------------------------


def checked(verdicts: dict[int, Verdict]) -> Service:
    found = {f"e{number:063x}": verdict for number, verdict in verdicts.items()}
    return replace(behind(WEB, 3, 4), health=TCP, verdicts=found)


SICK = checked({3: Verdict(BackendState.STARTING), 4: Verdict(BackendState.UNHEALTHY)})


def test_only_one_that_is_up_is_in_slots() -> None:
    rows = service_entries.rows(checked({4: Verdict(BackendState.UNHEALTHY)}), STATE, {})
    assert {number for slots in rows.slots.values() for number in slots.backend} == {103}
    assert not service_entries.rows(SICK, STATE, {}).slots
    states = {key.backend: row.state for key, row in service_entries.backend_rows(SICK, STATE).items()}
    assert states == {103: "BACKEND_DRAINING", 104: "BACKEND_DOWN"}


def test_where_nobody_checks_all_are_up_that_are_not_drained() -> None:
    service, alone = replace(SICK, drained=(f"e{3:063x}",)), replace(STATE, judged=False)
    assert state_of(service, alone.endpoints[f"e{3:063x}"], alone) == BackendState.DRAINING
    assert state_of(service, alone.endpoints[f"e{4:063x}"], alone) == BackendState.UP
    assert state_of(service, STATE.endpoints[f"e{4:063x}"], STATE) == BackendState.UNHEALTHY


def test_backends_are_checked_from_where_their_checks_were() -> None:
    found = list(targets(STATE.including(SICK)))
    assert [(str(one.address), one.known.state) for one in found] == [
        ("10.0.0.3", BackendState.STARTING),
        ("10.0.0.4", BackendState.UNHEALTHY),
    ]
    assert not list(targets(STATE.including(WEB)))


def test_a_command_is_run_in_containers_of_ours_alone() -> None:
    row, sandbox, endpoint = container(3)
    theirs = STATE.without(row).including(replace(sandbox, owner="docker"))
    command = HealthCheck(CheckKind.CMD, "true")
    assert checkable(command, endpoint, STATE) and not checkable(command, endpoint, theirs)
    assert checkable(TCP, endpoint, theirs)


def test_without_a_check_nothing_is_said_of_backends() -> None:
    state = STATE.including(SICK)
    change = plan_service_update("web", ServiceChange(health=HealthOptions(none=True)), state, PORTS)
    assert (change.service.health, change.service.verdicts) == (None, {})
    kept = plan_service_update("web", ServiceChange(health=HealthOptions(interval="1s")), state, PORTS)
    assert kept.service.verdicts == SICK.verdicts and kept.service.health == replace(TCP, interval=1000 * MS)


def test_connections_of_a_drained_backend_are_ended_once_when_their_time_is_over() -> None:
    service = replace(behind(WEB, 3, 4), grace=2000 * MS)
    drained = with_ends(plan_drain("web", "c3", STATE.including(service)), 1000)
    assert drained.ends == {f"e{3:063x}": 3000}
    assert with_ends(drained, 2000) == drained
    assert (overdue(drained, 2999), overdue(drained, 3000)) == ([], [f"e{3:063x}"])
    ended = replace(drained, ends={f"e{3:063x}": 0})
    assert overdue(ended, 9999) == [] and with_ends(ended, 9999) == ended
    back = with_ends(plan_drain("web", "c3", STATE.including(drained), back=True), 2000)
    assert not back.ends and not back.drained
