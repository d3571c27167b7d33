# SPDX-License-Identifier: Apache-2.0
"""What a shell offers behind a part of a command line."""

from __future__ import annotations

from typing import Any

import pytest
from click.shell_completion import ShellComplete

from ctl.cli import main
from ctl.cli.ps import ps
from ctl.cli.selection import _KNOWN
from datapath.model.connections import STATES
from tests.unit.test_formats import Library

ROWS: list[tuple[str, set[str]]] = [
    ("net", {"network"}),
    ("co", {"completion", "container"}),
    ("help netw", {"network"}),
    ("help network cr", {"create"}),
    ("port a", {"add"}),
    ("port w", {"web"}),
    ("port rm web ", {"1", "8081:80/tcp"}),
    ("port set web 8", {"8081:80/tcp"}),
    ("port add ", {"web"}),
    ("run --network ", {"br1", "container:web"}),
    ("run --network container:", {"container:web"}),
    ("run --stop-signal SIGU", {"SIGUSR1", "SIGUSR2"}),
    ("network create -d ", {"bridge", "ipvlan", "macvlan", "overlay"}),
    (
        "network create -o com.datapath.",
        {
            f"com.datapath.{option}="
            for option in (
                "device",
                "beside",
                "host_routed",
                "flows",
                "mode",
                "allow",
                "deny",
                "names",
                "domain",
                "resolver",
            )
        },
    ),
    ("network create -o com.docker.network.driver", {"com.docker.network.driver.mtu="}),
    ("network ls --filter t", {"type=builtin", "type=custom"}),
    ("network ls --filter d", {"dangling=true", "dangling=false", "driver="}),
    ("network prune --filter l", {"label=", "label!="}),
    ("network rm ", {"br1"}),
    ("network inspect ", {"br1"}),
    ("network connect br1 ", {"web"}),
    ("ct ls --state ", set(STATES)),
    ("ct ls --proto i", {"icmp", "icmpv6"}),
    ("ct flush --container ", {"web"}),
    ("ps --filter s", {"since=", "status=created", "status=running", "status=exited"}),
    ("ps --format ", {"json", "table"}),
    ("stats --format p", {"prometheus"}),
    ("top --sort n", {"name"}),
    ("stats --reasons DROP_D", {"DROP_DENIED", "DROP_DEVICE", "DROP_DIRECT"}),
    ("bench run --suite f", {"full"}),
    ("bench run --modes ebpf,n", {"ebpf,nftables", "ebpf,none", "ebpf,nginx"}),
    ("cluster f", {"forget"}),
    ("cluster drain-host ", set()),
    ("stop ", {"web"}),
    ("stop -s SIGK", {"SIGKILL"}),
    ("start ", set()),
    ("rename ", {"web"}),
    ("exec ", {"web"}),
    ("why w", {"web"}),
    ("why web db u", {"udp"}),
    ("why web db tcp 80 --expect ", {"allow", "deny"}),
    ("completion z", {"zsh"}),
]


def offered(line: str) -> list[tuple[str, str]]:
    *words, incomplete = line.split(" ")
    found = ShellComplete(main.cli, {}, "datapathctl", "_X").get_completions(words, incomplete)
    return [(item.type, item.value) for item in found]


@pytest.mark.parametrize(("line", "wanted"), ROWS, ids=[line for line, _ in ROWS])
def test_what_is_offered(line: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Library().stand_in(monkeypatch)
    assert {value for _, value in offered(line)} == wanted


@pytest.mark.parametrize(
    "line",
    [
        "run --rootfs ",
        "run --env-file ",
        "run --label-file ",
        "--config ",
        "--state-dir ",
        "bench report --out ",
    ],
)
def test_a_path_is_completed_by_the_shell(line: str) -> None:
    assert {kind for kind, _ in offered(line)} <= {"file", "dir"}


def test_every_filter_of_ps_is_offered() -> None:
    (param,) = [param for param in ps.params if param.name == "filters"]
    found: Any = param.shell_complete
    assert {item.value.partition("=")[0] for item in found(None, "")} == _KNOWN


def test_an_error_is_no_place_for_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datapath.host.Host.open", None)
    assert offered("network rm ") == [] and capsys.readouterr() == ("", "")
