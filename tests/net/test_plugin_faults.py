# SPDX-License-Identifier: Apache-2.0
"""S30 for plugins: a command that is killed at any step, or whose plugin is, is taken back, and the plugin is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.net import faults, forked
from tests.net.hosts import TIMEOUT, Host, reaches
from tests.net.plugins import Plugin, impatient
from tests.net.test_faults import quiet_ends

LONG = bool(os.environ.get("DATAPATH_LONG"))
STRIDE = 1 if LONG else 53  # of the steps of an operation that are tried


def remove_all(host: Host) -> None:
    for name in host.ctl("ps -aq").split():
        host.ctl(f"rm -f {name}")
    for name in ("far", "near"):
        host.try_ctl(f"network rm {name}")


def networks(host: Host) -> None:
    remove_all(host)
    host.ctl("network create -d weave --ipam-driver weave far")
    host.ctl("network create near")


def one(host: Host) -> None:
    networks(host)
    host.run("a", "--network far -p 8080:80")


def beside(host: Host) -> None:
    networks(host)
    host.run("a", "--network near -p 8080:80")


OPERATIONS: dict[str, tuple[str, Callable[[Host], None]]] = {
    "create": ("network create -d weave --ipam-driver weave far", remove_all),
    "run": ("run -d --name a --network far -p 8080:80 sleep 3600", networks),
    "connect": ("network connect --gw-priority 9 far a", beside),
    "rm": ("rm -f a", one),
    "remove": ("network rm far", networks),
}


@pytest.fixture(scope="module")
def plugin(shared_host: Host) -> Iterator[Plugin]:
    impatient(shared_host, 3)  # so that one that is not answered is repeated once
    forked.in_child.extend([faults.install, quiet_ends])
    try:
        yield Plugin(shared_host)
    finally:
        del forked.in_child[-2:]


def with_fault(host: Host, command: str, fault: str) -> None:
    assert host.env is not None
    forked.datapathctl(command.split(), host.path, {**host.env, faults.VARIABLE: fault}, TIMEOUT)


lost_pools: list[str] = []


def settled(plugin: Plugin, step: str) -> None:
    """The next command has left nothing half done: what the plugin has is what the rows say. But for what it had given
    out and nobody knew of yet, when the command was killed."""
    host = plugin.host
    host.ctl("network create next")
    host.ctl("network rm next")
    found = host.try_ctl("doctor")
    assert found.returncode == 0, found.stdout
    state = plugin.state
    names = host.ctl("network ls --format {{.Name}}").split()
    if step.endswith("after IpamDriver.RequestPool"):
        lost_pools.extend(pool for pool in state["pools"] if pool not in lost_pools)
    there = {pool: used for pool, used in state["pools"].items() if pool not in lost_pools}
    assert len(state["networks"]) == len(there) == int("far" in names)
    members = list(host.network("far")["Containers"].values()) if "far" in names else []
    assert set(state["endpoints"]) == {member["EndpointID"] for member in members}
    lost = int(step.endswith("after IpamDriver.RequestAddress"))
    assert sum(map(len, there.values())) - lost <= len(members) + int("far" in names)
    assert sum(map(len, there.values())) >= len(members) + int("far" in names)
    assert host.sh("ip -o link").count(": pi") == 0
    if members and host.ctl("ps -q"):
        gateway = host.network("far")["IPAM"]["Config"][0]["Gateway"]
        assert reaches(lambda command: host.try_in("a", command), gateway)


@pytest.mark.parametrize("kind", ["kill", "error"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_s30_a_command_that_asks_a_plugin_may_be_killed_or_fail_at_any_step(
    plugin: Plugin, operation: str, kind: str
) -> None:
    command, prepare = OPERATIONS[operation]
    prepare(plugin.host)
    with_fault(plugin.host, command, "none@0")
    steps, number = faults.last().steps, 1 + len(operation + kind) % STRIDE
    assert steps > 10
    while number <= steps:
        prepare(plugin.host)
        with_fault(plugin.host, command, f"{kind}@{number}")
        step = faults.last().step  # which the next command begins anew
        settled(plugin, step if kind == "kill" else "")
        number += STRIDE


METHODS = ("RequestAddress", "CreateEndpoint", "Join", "ProgramExternalConnectivity")
DEATHS = [(method, when) for method in METHODS for when in ("before", "after")]
SAMPLE = [(method, ("after", "before")[place % 2]) for place, method in enumerate(METHODS)]


@pytest.mark.parametrize(("method", "when"), DEATHS if LONG else SAMPLE)
def test_s30_a_plugin_may_be_killed_between_any_two_steps(plugin: Plugin, method: str, when: str) -> None:
    """The command says so; when the plugin is back the next one leaves nothing with it but what was never answered."""
    host = plugin.host
    networks(host)
    plugin.fail(**{method: {f"die {when}": True, "once": True}})
    try:
        assert (
            "plugin weave does not answer" in host.try_ctl("run -d --name a --network far sleep 3600").stderr
        )
    finally:
        plugin.fail()
        plugin.start()
    assert host.ctl("ps -aq") == ""
    found = host.try_ctl("doctor")
    assert found.returncode == 0, found.stdout
    host.run("a", "--network far")
    gateway = host.network("far")["IPAM"]["Config"][0]["Gateway"]
    assert reaches(lambda command: host.try_in("a", command), gateway)
    remove_all(host)
    plugin.kill()
    (plugin.folder / "state").unlink()  # as the plugin kept what was asked for and not said
    for device in [line.split(": ")[1].partition("@")[0] for line in host.sh("ip -o link").splitlines()]:
        if device.startswith(("po", "pl")):
            host.try_(f"ip link delete {device}")
    plugin.start()
