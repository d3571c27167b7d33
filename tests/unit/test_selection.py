# SPDX-License-Identifier: Apache-2.0
"""`ps --filter`: Docker's filters, as far as they mean something here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctl.cli.selection import Selection
from datapath.errors import ConfigError, NotFoundError
from datapath.model.rows import Status
from datapath.model.state import State
from tests.unit.planned_host import PlannedHost


def prepared() -> State:
    """e1, e10 and web, made in this order; db has ended, and was made last."""
    host = PlannedHost()
    host.network("shop")
    host.run("e1", "shop", publish=("8080:80",), labels=("tier=front",))
    host.run("e10", expose=("8000-8010/tcp", "53/udp"))
    host.run("web", publish=("9000-9002:9000-9002/udp",), rootfs="/srv/web")
    host.run("db")
    rows = []
    for minute, container in enumerate(host.state.containers.values()):
        rows.append(replace(container, created=f"2026-11-24T12:0{minute}:00.5Z"))
    rows[-1] = replace(rows[-1], status=Status.EXITED, exit_code=137)
    return host.state.including(*rows)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", "e1 e10 web db"),
        ("name=e1", "e1 e10"),
        ("name=^/e1$", "e1"),
        ("name=^e1$", "e1"),
        ("name=/e1$", "e1"),
        ("name=e[0-9]+", "e1 e10"),
        ("name=(?i)WEB", "web"),
        ("name=^e1$ name=db", "e1 db"),
        ("name=e1 label=tier", "e1"),
        ("label=tier=back", ""),
        ("status=exited", "db"),
        ("status=running name=e", "e1 e10 web"),
        ("exited=137", "db"),
        ("exited=0", ""),
        ("network=shop", "e1"),
        ("network=bridge", "e10 web db"),
        ("publish=80", "e1"),
        ("publish=80/udp", ""),
        ("publish=8080", ""),  # Docker compares the container's side
        ("publish=9001/udp", "web"),
        ("publish=9001-9100/udp publish=80", "e1 web"),
        ("expose=80", "e1"),
        ("expose=53/udp", "e10"),
        ("expose=8005-9000", "e10"),
        ("before=web", "e1 e10"),
        ("since=e10", "web db"),
        ("since=e1 before=db", "e10 web"),
        ("ancestor=/srv/web", "web"),
        ("ancestor=/srv/web/", "web"),
        ("ancestor=/", "e1 e10 db"),
        ("health=none", "e1 e10 web db"),
        ("health=healthy", ""),
        ("is-task=false", "e1 e10 web db"),
        ("is-task=true", ""),
    ],
)
def test_dockers_filters(words: str, found: str) -> None:
    state = prepared()
    selection = Selection(words.split())
    selection.look(state)
    networks = {network.id: network.name for network in state.networks.values()}
    wanted = [
        container.name
        for container in state.containers.values()
        if selection.wants(container, [networks[asked.network] for asked in container.networks])
    ]
    assert " ".join(wanted) == found


def test_a_network_is_also_found_by_the_beginning_of_its_id() -> None:
    state = prepared()
    selection = Selection([f"network={state.network('shop').id[:12]}"])
    selection.look(state)
    assert [c.name for c in state.containers.values() if selection.wants(c, ["-"])] == ["e1"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("volume=/data", 'invalid filter "volume": there are ancestor, before, exited, expose, health, id'),
        ("isolation=process", 'invalid filter "isolation"'),
        ("name=(", "no regular expression"),
        ("name=[[", "no regular expression"),
        ("status=paused", "expected created or exited or running"),
        ("exited=soon", "expected an exit code"),
        ("publish=0.0.0.0:80", r"expected PORT\[-PORT\]"),
        ("publish=http", r"expected PORT\[-PORT\]"),
        ("expose=80/sctp", r"expected PORT\[-PORT\]"),
        ("expose=0", r"expected PORT\[-PORT\]"),
        ("ancestor=nginx", "there are no images"),
        ("health=fine", "expected healthy or none"),
        ("is-task=maybe", "expected 0 or 1 or false or true"),
        ("since=", "its value is empty"),
    ],
)
def test_a_filter_that_means_nothing_is_refused_before_anything_is_looked_at(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Selection([word])


def test_who_came_first_of_somebody_unknown_is_not_known() -> None:
    selection = Selection(["since=nobody"])
    with pytest.raises(NotFoundError, match="No such container: nobody"):
        selection.look(prepared())
