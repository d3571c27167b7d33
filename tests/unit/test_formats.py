# SPDX-License-Identifier: Apache-2.0
"""--format and --json, of every command that lists or shows something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import click
import pytest

from ctl.cli import main
from datapath import __version__
from datapath.bench import results
from datapath.engine import members
from datapath.engine.policy_views import Hit
from datapath.model.connections import Connection, ConnectionStats
from datapath.model.findings import Check, Finding
from datapath.model.flows import FlowLine, Flows
from datapath.model.peers import Peer
from datapath.model.policies import (
    Action,
    By,
    Direction,
    Kind,
    Member,
    Opening,
    Party,
    Policy,
    Selector,
    Step,
    Verdict,
    World,
)
from datapath.model.rows import Phase
from datapath.model.services import Service
from datapath.model.state import State
from datapath.plan.policies.asking import Asked
from datapath.plan.policies.flows import Change, Flow
from datapath.plan.policies.overview import Glance
from datapath.plan.policies.why import Explanation, Line
from datapath.runtime.containers import PublishedPort
from datapath.telemetry import cluster
from datapath.telemetry.drops import DropRow, RefusedRow
from datapath.telemetry.names import Answer, Name
from datapath.telemetry.policies import Checked, Seen
from datapath.telemetry.rates import Look
from datapath.telemetry.snapshot import Member as SeenMember
from datapath.telemetry.snapshot import Snapshot
from datapath.telemetry.stats import ServiceUse, Stats
from datapath.telemetry.why import Program, Why
from tests.unit.test_bench_files import RUN
from tests.unit.test_cli import BR1, WEB, commands

SERVICE = Service("5" * 64, "shop-web", BR1.id, 7, vip4=IPv4Address("10.0.0.9"), phase=Phase.READY)

MEMBER = Member(1, "red", "web", addresses=(ip_address("10.0.0.2"),))
DATABASE = Member(2, "red", "db", addresses=(ip_address("10.0.0.3"),))
WEB_PARTY, DB_PARTY = (Party(Kind.MEMBER, one.addresses[0], one) for one in (MEMBER, DATABASE))
OPENING = Opening(WEB_PARTY, DB_PARTY, 6, 5432)
DROPPED = Step(Direction.IN, Action.REJECT, "DROP_IN", By("db", 0))
LINE = Line("in", "db", "policy db lets in nobody", "refused", "db", 0)
WHY = Why(
    Asked(OPENING, DATABASE.addresses[0], 5432),
    Explanation((LINE,), "refused", "DROP_IN"),
    Program("refused", "DROP_IN", ("DROP_IN",)),
)


class Library:
    """What commands that print something ask the library for: one of each thing."""

    CONNECTION = Connection(
        proto="tcp",
        source=("10.0.0.2", 4000),
        destination=("10.0.0.3", 80),
        nat_source=("10.0.0.2", 4000),
        nat_destination=("10.0.0.3", 80),
        state="established",
        idle=1.0,
        expires=9.0,
        confirmed=True,
        endpoints=(1, 2),
        owner=1,
    )
    FINDING = Finding(Check("down", "nothing passes", "reconcile"), "dp0", "is down")

    def __init__(self) -> None:
        self.networks: Any = self
        self.services: Any = self
        self.backends = lambda _: [ServiceUse("shop-web", "web", ("10.0.0.2",), 1, "up")]
        self.all = self.everywhere = lambda: [BR1]
        self.ps = lambda **_: [WEB]
        self.settings: Any = None
        self.policies: Any = self
        self.get = lambda _: Policy("db", Selector(name="db"), id="9" * 64)
        self.hits = lambda: [Hit("db", 1, 3, 0, 2.0)]
        self.snapshot = self.shown = lambda: State().including(BR1, WEB, SERVICE)
        self.inspect = lambda name: {"Name": name, "Containers": {}}
        self.ports = lambda name: [PublishedPort("web", 1, WEB.ports[0])]
        self.doctor = lambda reach=False: [self.FINDING]
        self.reconcile: Any = lambda: ([self.FINDING], [], [])

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the library of the command line, and for what counts and traces."""
        counts = ConnectionStats(
            {("conns", "new"): 1}, {"conns": (2, 9)}, {"DROP_STALE": (1, 60)}, {"web": (1, 0)}, 5, 0
        )
        monkeypatch.setattr("datapath.host.Host.open", lambda *_: self)
        monkeypatch.setattr("datapath.runtime.containers.Containers", lambda *_: self)
        found = [(self.CONNECTION, "web")]
        monkeypatch.setattr("datapath.telemetry.stats.connections", lambda *_: found)
        monkeypatch.setattr("datapath.telemetry.stats.connection_stats", lambda _: counts)
        stats = Stats({"DROP_STALE": (1, 60)}, {"conns": (2, 9)})
        monkeypatch.setattr("datapath.telemetry.stats.stats", lambda _: stats)
        line = FlowLine(
            *("red", "app", "10.0.0.2", 41822, "db", "10.0.0.3", 5432, "tcp", "allowed", "", "established"),
            *(1, 4, 240, 3, 180, 9.0, 2.0),
        )
        member = SeenMember("1", "web", "datapath", {}, {"red": ("10.0.0.2",)}, ())
        taken = iter(range(9))
        monkeypatch.setattr(
            "datapath.telemetry.rates.look",
            lambda *_: Look(Snapshot(next(taken), [member], [], [line], [], None, stats, counts), 0.0, None),
        )
        monkeypatch.setattr("ctl.cli.formatting.now", lambda: 9.0)
        monkeypatch.setattr("datapath.telemetry.flows.flows", lambda *_, **__: Flows([line], 1))
        monkeypatch.setattr("datapath.telemetry.why.why", lambda *_: WHY)
        monkeypatch.setattr("ctl.cli.policy.read", lambda _: ())
        tested = Checked([Glance("db", "role=db", "1 allow", "open", "enforce", 1)], [])
        monkeypatch.setattr("datapath.telemetry.policies.test", lambda *_: tested)
        monkeypatch.setattr("datapath.telemetry.policies.listed", lambda *_: [(tested.glances[0], 3, 0)])
        change = Change(Flow(OPENING, 3), Verdict(()), Verdict((DROPPED,)))
        compared = [change], Seen([], World(), State(), 0, True)
        monkeypatch.setattr("datapath.telemetry.policies.diff", lambda *_: compared)
        name = Name("red", "", "web", "A", ("10.0.0.2",))
        monkeypatch.setattr("datapath.telemetry.names.all_names", lambda *_: [name])
        store = cluster.Status((cluster.Member("a:2379"),), "1f")
        monkeypatch.setattr("datapath.telemetry.cluster.status", lambda _: store)
        peer = Peer("a" * 32, "h1", 1, ip_address("192.0.2.1"), "02:00:00:00:00:01")
        monkeypatch.setattr(
            "datapath.engine.members.hosts", lambda *_: members.Hosts((members.HostRow(peer, "alive"),))
        )
        answer = Answer("web", "A", "NOERROR", ("10.0.0.2",), "network red")
        monkeypatch.setattr("datapath.telemetry.names.resolve", lambda *_: [answer])
        monkeypatch.setattr("datapath.telemetry.latency.between_containers", lambda *_: nullcontext(Trace()))
        monkeypatch.setattr("datapath.telemetry.drops.of_host", lambda _: nullcontext(Trace()))
        monkeypatch.setattr("datapath.kernel.features.require", lambda: None)


class Trace:
    def pairs(self) -> dict[tuple[str, str], tuple[int, ...]]:
        return {("a", "b"): (0, 1)}

    def rows(self) -> list[DropRow]:
        return [DropRow("", "eth0", "TC_INGRESS", "sch_handle_ingress", 3)]

    def refused(self) -> list[RefusedRow]:
        return [RefusedRow("web", "veth1", "DROP_ICC", "tcp", "10.0.0.2", "10.0.0.3:80", 2)]

    def counters(self) -> dict[str, tuple[int, int]]:
        return {"DROP_STALE": (1, 60)}


# Command: the arguments that it needs, a key that it prints, and its value in the first row.
PRINTS: dict[str, tuple[str, str, Any]] = {
    "network ls": ("", "Name", "br1"),
    "network inspect": ("a", "Name", "a"),
    "inspect": ("a", "Name", "a"),
    "ps": ("", "Names", "web"),
    "port ls": ("", "HostPort", 8081),
    "ct ls": ("", "NatSource", "10.0.0.2:4000"),
    "ct stats": ("", "Connections", 1),
    "service ls": ("", "Name", "shop-web"),
    "service ps": ("a", "Container", "web"),
    "service inspect": ("a", "Name", "a"),
    "cluster hosts": ("", "Name", "h1"),
    "cluster status": ("", "Server", "a:2379"),
    "flows": ("", "From", "app:41822"),
    "why": ("web db tcp 5432", "Agrees", True),
    "policy test": ("-f a.yaml", "For", "role=db"),
    "policy ls": ("", "Hits", 3),
    "policy inspect": ("db", "Name", "db"),
    "policy hits": ("", "Policy", "db"),
    "policy diff": ("-f a.yaml", "Would", "refuse"),
    "names ls": ("", "Data", "10.0.0.2"),
    "names resolve": ("a web", "Source", "network red"),
    "stats": ("", "Counter", "DROP_STALE"),
    "top": ("--once -d 0.01", "Container", "web"),
    "doctor": ("", "Check", "down"),
    "reconcile": ("", "Check", "down"),
    "version": ("", "Version", __version__),
    "trace latency": ("--seconds 0.01", "Counts", [0, 1]),
    "trace drops": ("--seconds 0.01", "Container", ""),
    "container inspect": ("a", "Name", "a"),
    "container ls": ("", "Names", "web"),
    "container port ls": ("", "HostPort", 8081),
    "bench ls": ("--suite cost", "Suite", "cost"),
    "bench compare": ("a.json a.json", "Verdict", "same"),
}


def test_every_command_that_prints_data_has_a_format() -> None:
    """The others print a line, a log or the tables of a file."""
    found = []
    for path in commands(main.cli):
        command: click.Command = main.cli
        for word in path:
            assert isinstance(command, click.Group)
            found_ = command.get_command(click.Context(command), word)
            assert found_ is not None
            command = found_
        options = {name for param in command.params for name in param.opts}
        assert ("--format" in options) == ("--json" in options)
        if "--format" in options:
            found.append(" ".join(path))
    assert sorted(found) == sorted(PRINTS)


@pytest.mark.parametrize("words", PRINTS)
def test_json_is_one_object_a_line_with_every_command(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """For `inspect`, as with Docker, one array. A template takes the same keys."""
    arguments, key, value = PRINTS[words]
    results.write(RUN, tmp_path / "a.json")
    monkeypatch.chdir(tmp_path)
    Library().stand_in(monkeypatch)
    printed = []
    for asked in ("--format=json", "--json", f"--format={{{{json .{key}}}}}"):
        assert main.run([*words.split(), *arguments.split(), asked]) == (20 if words == "doctor" else 0)
        printed.append(capsys.readouterr().out)
    as_json, as_flag, filled = printed
    assert as_json == as_flag
    lines = [json.loads(line) for line in as_json.splitlines()]
    first = lines[0][0] if "inspect" in words else lines[0]
    assert first[key] == value and isinstance(first, dict)
    assert json.loads(filled.splitlines()[0]) == value


def test_a_wrong_template_is_told_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datapath.host.Host.open", None)
    monkeypatch.setattr("datapath.runtime.containers.Containers", None)
    assert main.run(["reconcile", "--format", "{{"]) == 2
    assert "template parsing error" in capsys.readouterr().err
    assert main.run(["ps", "--json", "--format", "{{.Names}}"]) == 2
    assert "--json and --format exclude each other" in capsys.readouterr().err


# ---- on a terminal --------------------------------------------------------------------

RUN_IT = f"{sys.executable} -c 'from ctl.cli.main import main; main()'"
BOLD = re.compile(r"\x1b\[1m(.*?)\x1b\[0m")


def on_terminal(typed: str, **environ: str) -> str:
    """What a terminal of 80 columns gets."""
    given = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    return subprocess.run(
        ["script", "-qec", f"stty cols 80; {RUN_IT} {typed}", "/dev/null"],
        env=given | {"TERM": "xterm"} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.replace("\r", "")


def test_headings_and_drops_are_bold_on_a_terminal_and_sentences_fit_it() -> None:
    first, *lines = on_terminal("stats --reasons DELIVERED DROP_DENIED").splitlines()
    assert BOLD.fullmatch(first) and BOLD.sub(r"\1", first).split()[0] == "COUNTER"
    delivered, denied, *more = lines
    assert not BOLD.search(delivered) and BOLD.fullmatch(denied) and more
    assert max(len(BOLD.sub(r"\1", line)) for line in (first, *lines)) <= 80
    from datapath.model.reasons import MEANINGS

    words = " ".join(BOLD.sub(r"\1", line) for line in lines).split()
    assert sorted(words) == sorted(
        f"DELIVERED DROP_DENIED {' '.join(' '.join(MEANINGS[name]) for name in ('DELIVERED', 'DROP_DENIED'))}".split()
    )


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_nothing_is_bold_where_it_is_not_wanted(environ: dict[str, str]) -> None:
    assert "\x1b" not in on_terminal("stats --reasons DROP_DENIED", **environ)


def test_a_pipe_gets_neither_bold_letters_nor_broken_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["stats", "--reasons", "DROP_DENIED"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\n") == 2
