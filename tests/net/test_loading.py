# SPDX-License-Identifier: Apache-2.0
"""When the packet programs are loaded (docs/decisions/0056): those of every network with the first, each of the others
before something leads to it (S20, S30)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath.dataplane import version
from datapath.dataplane.layout import FIRST, OBJECT_FILES, TAILS, tails_of
from datapath.kernel import abi, features
from tests.net import faults, forked
from tests.net.hosts import HOST, OUTSIDE, Host
from tests.net.services import heard, serve

NO_ICC = "com.docker.network.bridge.enable_icc=false"
# What a host of bridge networks has loaded, with a container that asks others than the host for names.
PLAIN = {program for name in FIRST for program in OBJECT_FILES[name]}
ASKED = {"dns": [OUTSIDE]}


@pytest.fixture(scope="module", autouse=True)
def with_faults() -> Iterator[None]:
    forked.in_child.append(faults.install)
    yield
    forked.in_child.clear()


def pin(host: Host, program: str) -> Path:
    return host.bpffs / "datapath/programs" / program


def loaded(host: Host) -> set[str]:
    found = (path.name for path in (host.bpffs / "datapath/programs").iterdir())
    return {name for name in found if "-" not in name and not version.is_mark(name)}


def in_place(host: Host) -> set[str]:
    """The programs that others go on in, as far as they are where these look for them."""
    rows = json.loads(host.sh(["bpftool", "-j", "map", "dump", "pinned", tails(host)]))
    numbers = {int(row["key"][0], 0) for row in rows if "value" in row}
    return {name for name, place in TAILS.items() if abi.Tail[place] in numbers}


def tails(host: Host) -> str:
    return str(host.bpffs / "datapath/maps/tails")


def forget(host: Host, program: str) -> None:
    """As if nothing had needed it yet."""
    pin(host, program).unlink()
    if program in TAILS:
        place = int(abi.Tail[TAILS[program]])
        host.sh(["bpftool", "map", "delete", "pinned", tails(host), "key", str(place), "0", "0", "0"])
    assert program not in loaded(host) | in_place(host)


def doctor(host: Host) -> list[dict[str, str]]:
    """What it finds, but for settings that are not in force."""
    found = [json.loads(line) for line in host.try_ctl("doctor --json").stdout.splitlines()]
    return [one for one in found if one["Check"] != "settings"]


def led_to(host: Host) -> set[str]:
    """Where packets of networks go on, as their rows say."""
    rows = json.loads(
        host.sh(["bpftool", "-j", "map", "dump", "pinned", str(host.bpffs / "datapath/maps/networks")])
    )
    flags = [int(row["formatted"]["value"]["flags"]) for row in rows]
    return set().union(*(tails_of({flag.name for flag in abi.NetworkFlag if one & flag}) for one in flags))


def settings(host: Host, program: str) -> Any:
    """What a program was loaded with."""
    shown = json.loads(host.sh(["bpftool", "-j", "prog", "show", "pinned", str(pin(host, program))]))
    for number in shown["map_ids"]:
        rows = json.loads(host.sh(["bpftool", "-j", "map", "dump", "id", str(number)]))
        value = rows[0].get("formatted", {}).get("value") if rows else None
        if isinstance(value, dict) and ".rodata.config" in value:
            return value[".rodata.config"]
    raise AssertionError(program)


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """A network and a container."""
    shared_host.configure(ASKED)
    shared_host.ctl("network create --ipv6 --subnet 10.71.0.0/24 --subnet fd71::/64 shop")
    shared_host.run("client", "--network shop")
    return shared_host


def test_s20_a_host_of_bridge_networks_has_loaded_no_other_networks_programs(prepared: Host) -> None:
    assert loaded(prepared) == PLAIN
    assert prepared.ctl("doctor") == "No problems found."


def test_s30_a_program_that_is_loaded_later_and_a_command_that_ends_meanwhile(prepared: Host) -> None:
    """No row leads to a program that is not in its place; the next command completes or takes back the rest."""
    create = "network create -d ipvlan --subnet 10.91.0.0/24 lan"

    def ended(kind: str, at: object) -> faults.Outcome:
        assert prepared.env is not None
        prepared.env[faults.VARIABLE] = f"{kind}@{at}"
        try:
            assert prepared.try_ctl(create).returncode
        finally:
            del prepared.env[faults.VARIABLE]
        outcome = faults.last()
        what = f"{kind} at {outcome.step}"
        assert outcome.step and led_to(prepared) <= in_place(prepared), what
        assert loaded(prepared) & TAILS.keys() <= in_place(prepared), what
        assert prepared.try_ctl("_exited nobody 0").returncode == 0, what
        assert prepared.ctl("doctor") == "No problems found.", what
        prepared.try_ctl("network rm lan")
        if "to_lan" in loaded(prepared) | in_place(prepared):
            prepared.ctl(create)
            prepared.ctl("network rm lan")
            forget(prepared, "to_lan")
        return outcome

    behind = ended("kill", "after:bpf_object__load").steps
    tried = [
        (kind, behind + at) for at, kind in enumerate(("error", "kill", "error", "kill", "kill"), start=-1)
    ]
    steps = [ended(*each).step for each in tried]
    assert "bpf_object__load" in steps[0] and any("bpf_obj_pin" in step for step in steps)
    assert loaded(prepared) == PLAIN


def test_s30_programs_are_loaded_when_something_first_needs_them(prepared: Host) -> None:
    """With the settings of those that are there, whatever daemon.json says by now."""
    prepared.configure({**ASKED, "datapath": {"timeouts": {"udp": 33}}})
    lan = "--subnet 192.0.2.0/24 --gateway 192.0.2.2 -o parent=eth0"
    commands = {
        "run -d --name asking --network shop --dns 127.0.0.1 sleep 3600": {"from_loopback"},
        "run -d --name denying -p 8081:80,deny=198.51.100.9 sleep 3600": {"xdp_uplink"},
        "service create --network shop -p 8080:80 web": {"to_service"},
        f"network create -d ipvlan {lan} lan": {"from_parent", "to_lan"},
        "network rm lan": set[str](),
    }
    if features.has_kind("macvlan"):
        commands[f"network create -d macvlan {lan} -o {NO_ICC} apart"] = {"to_parent"}
    for command, wanted in commands.items():
        before = loaded(prepared)
        done = prepared.try_ctl(command)
        assert done.returncode == 0, done.stderr
        assert loaded(prepared) - before == wanted, command
        assert loaded(prepared) & TAILS.keys() == in_place(prepared)
        assert all(settings(prepared, name) == settings(prepared, "from_host") for name in wanted)
    assert prepared.try_ctl("doctor --format {{.Check}}").stdout.split() == ["settings"]
    serve(prepared, "one", "--network shop --service web", "shop")
    assert heard(prepared.outside.try_, "tcp", HOST, 8080)


def test_s30_programs_that_are_needed_are_missed_and_loaded_again(prepared: Host) -> None:
    """Those that nothing needs are not missed (see above)."""
    forget(prepared, "to_service")
    (finding,) = doctor(prepared)
    assert finding["Check"] == "detached" and "to_service" in finding["Detail"]
    assert "repaired" in prepared.try_ctl("reconcile").stdout
    assert doctor(prepared) == [] and heard(prepared.outside.try_, "tcp", HOST, 8080)
    pin(prepared, "xdp_uplink").unlink()
    (finding,) = doctor(prepared)
    assert finding["Check"] == "detached" and "xdp_uplink" in finding["Detail"]
    assert "repaired" in prepared.try_ctl("reconcile").stdout
    assert doctor(prepared) == []


def test_s30_an_upgrade_replaces_the_programs_that_are_loaded(prepared: Host) -> None:
    """And no other; all of them have the settings of now."""
    before, old = loaded(prepared), settings(prepared, "from_host")
    assert before > PLAIN
    assert "replaced" in prepared.ctl("upgrade")
    assert loaded(prepared) == before and loaded(prepared) & TAILS.keys() == in_place(prepared)
    assert settings(prepared, "from_host") != old
    for name in ("to_service", "xdp_uplink"):
        assert settings(prepared, name) == settings(prepared, "from_host")
    assert heard(prepared.outside.try_, "tcp", HOST, 8080)
    assert prepared.ctl("doctor") == "No problems found."
