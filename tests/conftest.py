# SPDX-License-Identifier: Apache-2.0
"""The whole suite leaves the machine as it found it, and starts its programs as they are started everywhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import again
from tests.doors import table
from tests.leftovers import Found, Run
from tests.net import compare

# How much longer everything may take: in an emulated machine ten times is little.
SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))

# Files, the longest first: else one process would be at work on one of them when the others have nothing left to do.
LONGEST = (
    "tests/model/test_model.py",
    "tests/net/test_transcripts.py",
    "tests/net/test_faults.py",
    "tests/net/test_docker.py",
    "tests/net/test_hostnet_nat.py",
    "tests/net/test_upgrade.py",
    "tests/net/test_library.py",
    "tests/net/test_scale.py",
    "tests/net/test_overlay_packets.py",
    "tests/net/test_overlay_host.py",
    "tests/net/test_overlay.py",
    "tests/net/test_overlay_routed.py",
    "tests/net/test_overlay_beside_swarm.py",
    "tests/net/test_overlay_doors.py",
    "tests/net/test_overlay_wireguard.py",
    "tests/net/test_macvlan.py",
    "tests/net/test_ipvlan.py",
    "tests/net/test_services_cluster.py",
    "tests/net/test_services.py",
    "tests/net/test_services_health.py",
    "tests/net/test_services_load.py",
    "tests/net/test_services_doors.py",
    "tests/net/test_macvlan_programs.py",
    "tests/net/test_plugin_faults.py",
    "tests/net/test_overlay_faults.py",
    "tests/net/test_etcd.py",
    "tests/net/test_carry.py",
    "tests/net/test_linuxbridge.py",
    "tests/net/test_overlay_names.py",
    "tests/net/test_plugins.py",
    "tests/net/test_cluster_store_faults.py",
    "tests/net/test_start.py",
    "tests/net/test_agent.py",
    "tests/net/test_real_programs.py",
    "tests/net/test_hostnet_route.py",
    "tests/net/test_hostnet_sockets.py",
    "tests/net/test_hostnet_uplinks.py",
    "tests/net/test_hostnet_words.py",
    "tests/net/test_floods.py",
    "tests/net/test_doctor.py",
    "tests/net/test_adversity.py",
    "tests/net/test_words.py",
    "tests/net/test_lifecycle.py",
    "tests/net/test_modes.py",
    "tests/net/test_sources.py",
)

RUN, LEFT = pytest.StashKey[Run](), pytest.StashKey[Found]()
RECORDER = pytest.StashKey[again.Recorder]()

# A version manager's shim for python3 is a shell script, which takes five times as long as what it starts.
os.environ["PATH"] = os.pathsep.join(
    folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder).name != "shims"
)

# Whoever is started in the background of a shell ignores it, and passes that on: some tests interrupt their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_worker() -> bool:
    """Several of them are one run: it is made, and looked at in the end, by whoever started them."""
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.pop(again.VARIABLE, ""):  # it is about this run, not about those within it
        config.stash[RECORDER] = again.Recorder(Path(path))
        config.pluginmanager.register(config.stash[RECORDER])
    if compare.VARIABLE in os.environ and not is_worker():
        config.pluginmanager.register(compare.Collector(Path(os.environ[compare.VARIABLE])))
    if table.VARIABLE in os.environ and not is_worker():
        config.pluginmanager.register(table.Collector(Path(os.environ[table.VARIABLE])))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        compare.note(item)
        table.note(item)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.hookimpl(tryfirst=True)  # before the workers are started
def pytest_sessionstart(session: pytest.Session) -> None:
    if not is_worker() and not session.config.option.collectonly:
        folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        session.config.stash[RUN] = Run(folder, apart=os.geteuid() == 0)


@pytest.hookimpl(trylast=True)  # after the fixtures and the workers have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last assertion of the suite: nothing is left."""
    run = session.config.stash.get(RUN, None)
    if run and (left := run.left_behind(in_a_hurry=session.exitstatus == pytest.ExitCode.INTERRUPTED)):
        session.config.stash[LEFT] = left
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if recorder := session.config.stash.get(RECORDER, None):
        recorder.write(session.exitstatus, session.config.stash.get(LEFT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = terminalreporter.config.stash.get(LEFT, None)
    if left:
        terminalreporter.section("left behind", red=True)
        for kind, things in left.items():
            terminalreporter.line(f"{kind}: {', '.join(sorted(things))}")
