# SPDX-License-Identifier: Apache-2.0
"""S30: an upgrade to a version that lays its maps out otherwise carries their rows over, while packets pass.

The later version is this tree with other structs: its own programs, its own extension, its own Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.net import look
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, TREE, Host, eventually, reaches
from tests.net.test_upgrade import CALLER, TALKER, json_lines, populated, traffic

LONG = bool(os.environ.get("DATAPATH_LONG"))
CARRIES = "laid out as in an earlier version: `datapathctl upgrade` carries them over"

# What the later version has changed: rows that have grown at their beginning or end, a key in another order.
GROWN = ("conn", "quota", "arrival", "counter")
PORT_OF_HOST = "\t__be16 port;\n\t__u8 proto;\n\t__u8 pad;\n"
EDITS = {
    "bpf/abi.h": [
        *((f"struct {name} {{\n", f"struct {name} {{\n\t__u64 more;\n") for name in GROWN),
        (
            f"struct external_key {{\n\tstruct ip_addr addr; /* the host's */\n{PORT_OF_HOST}",
            f"struct external_key {{\n{PORT_OF_HOST}\tstruct ip_addr addr;\n",
        ),
        ("may not connect */\n\t__u8 pad;\n", "may not connect */\n\t__u8 pad;\n\t__u32 more;\n"),
        ("\tstruct ip_addr linklocal;\n};", "\tstruct ip_addr linklocal;\n\t__u32 more;\n};"),
    ],
    "datapath/dataplane/structs.py": [
        ("    default_deny: int\n", "    default_deny: int\n    more: int = 0\n"),
        ("\n\n\nclass EndpointKey(", "\n    more: int = 0\n\n\nclass EndpointKey("),
    ],
}

# Runs datapathctl with a fault, as the preloaded one does; says at its end how many steps it took.
FAULTY = """
import os, sys
from tests.net import faults
faults.install()
from ctl.cli import main
code = main.run(sys.argv[1:])
print("steps", faults.last().steps)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("later")
    ignored = shutil.ignore_patterns("__pycache__", "objects", "*.so", "_libbpf.c")
    for name in ("bpf", "ctl", "datapath"):
        shutil.copytree(TREE / name, tree / name, ignore=ignored)
    for name in ("Makefile", "setup.py", "pyproject.toml", "tests/__init__.py", "tests/net/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, tree / name)
    shutil.copy(TREE / "tests/net/faults.py", tree / "tests/net")
    shutil.copy(TREE / "bpf/abi.h", tree / "bpf/former/abi-of-this-version")
    for file, edits in EDITS.items():
        text = (tree / file).read_text()
        for before, after in edits:
            assert text.count(before) == 1, (file, before)
            text = text.replace(before, after)
        (tree / file).write_text(text)
    environment = Path(sys.executable).parents[1]
    done = subprocess.run(
        ["make", "-s", "-j2", "bpf", f"VENV={environment}"], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tree, check=True, capture_output=True)
    return tree


def made(make_host: Callable[..., Host], attach: str) -> Host:
    """`web` is published, `peer` talks to it and to the outside."""
    host = populated(make_host, attach)
    host.outside.start([sys.executable, "-c", TALKER])
    with eventually() as until:
        until(lambda: host.try_in("peer", ["bash", "-c", f"</dev/tcp/{OUTSIDE}/80"]).returncode == 0)
    return host


def become(host: Host, tree: Path) -> None:
    """Its commands are of that version."""
    assert host.env is not None
    host.preloaded = False
    host.env["PYTHONPATH"] = str(tree)


@contextmanager
def all_traffic(host: Host) -> Iterator[None]:
    """That of any upgrade, and a connection that is masqueraded."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    peer = ["nsenter", "-t", str(host.process("peer")), "--net"]
    caller = host.start([*peer, "python3", "-c", CALLER, OUTSIDE, "80"], stdin=subprocess.PIPE, **pipes)
    assert caller.stdout is not None and caller.stdout.readline() == "ready\n"
    with traffic(host):
        yield
    said, wrong = caller.communicate("", timeout=PATIENCE)
    assert caller.returncode == 0 and int(said) > 20, wrong


def established(host: Host) -> set[tuple[str, ...]]:
    rows = json_lines(host.ctl("ct ls --format json"))
    names = ("Protocol", "Source", "Destination", "NatSource", "NatDestination")
    return {tuple(str(row[name]) for name in names) for row in rows if row["State"] == "established"}


def next_pins(host: Host) -> set[str]:
    return {Path(pin).name for pin in look.pins(host) if Path(pin).name.startswith("next")}


@pytest.mark.parametrize("attach", ["auto", "clsact"])
def test_s30_rows_are_carried_into_maps_of_another_layout(
    make_host: Callable[..., Host], later: Path, attach: str
) -> None:
    host = made(make_host, attach)
    drops = sum(host.drops().values())
    with all_traffic(host):
        before = established(host)
        delivered = counters(host)["DELIVERED"]
        assert len([row for row in before if row[0] == "tcp"]) >= 3
        become(host, later)
        for command in ("run -d sleep 3600", "stats", "ct ls"):
            assert CARRIES in host.refused(command)
        found = json_lines(host.try_ctl("doctor --format json").stdout)
        assert {row["Check"] for row in found} == {"outdated"}
        host.configure({"datapath": {"timeouts": {"icmp": 2, "closing": 2}}})
        assert "replaced" in host.ctl("upgrade")
        assert before <= established(host)
        assert counters(host)["DELIVERED"] > delivered
        assert host.ctl("doctor") == "No problems found."
    assert sum(host.drops().values()) == drops
    assert not next_pins(host)
    host.run("more", "-p 8082:80", ["python3", "-c", TALKER])
    with eventually() as until:
        until(lambda: host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/8082"]).returncode == 0)
    assert reaches(host.try_, host.address("more"))
    # Each that has ended is collected: it was queued for that.
    with eventually() as until:
        until(lambda: not established(host) & before)
    assert host.ctl("doctor") == "No problems found."


def counters(host: Host) -> dict[str, int]:
    rows = json_lines(host.ctl("stats --all --format json"))
    return {row["Counter"]: int(row["Packets"]) for row in rows if "Counter" in row}


def fault(host: Host, command: str, kind: str, number: int) -> subprocess.CompletedProcess[str]:
    assert host.env is not None
    host.env["DATAPATH_FAULT"] = f"{kind}@{number}"
    try:
        return host.try_([sys.executable, "-P", "-c", FAULTY, *command.split()])
    finally:
        del host.env["DATAPATH_FAULT"]


def test_s30_an_upgrade_that_carries_rows_and_is_killed_or_fails_is_completed(
    make_host: Callable[..., Host], later: Path
) -> None:
    """Before all is prepared everything is as it was; after that any changing command of the new version completes
    it, and one of the version before is refused."""
    host = made(make_host, "auto")
    become(host, later)
    steps = int(fault(host, "upgrade", "count", 0).stdout.split()[-1])
    host.ctl("down")
    chosen = range(2, steps + 1, 1 if LONG else steps // 7)
    seen = set()
    for at, number in enumerate(chosen):
        kind = "error" if at % 3 == 2 else "kill"
        host.preloaded = True
        assert host.env is not None
        host.env["PYTHONPATH"] = str(TREE)
        host.run("web", "-p 8081:80,deny=198.51.100.9", ["python3", "-c", TALKER])
        host.run("peer")
        with eventually() as until:
            until(lambda: host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/8081"]).returncode == 0)
        with all_traffic(host):
            before = established(host)
            become(host, later)
            ended = fault(host, "upgrade", kind, number)
            what = f"{kind} at {number} of {steps}: {ended.stderr}"
            assert ended.returncode == (-signal.SIGKILL if kind == "kill" else ended.returncode), what
            assert "internal error" not in ended.stderr, what
            done = host.try_ctl("_exited nobody 0")
            seen.add(done.returncode)
            if done.returncode:
                assert CARRIES in done.stderr, what + done.stderr
                if kind == "error":  # it took everything back
                    assert not next_pins(host), what
                host.env["PYTHONPATH"] = str(TREE)
                assert host.try_ctl("doctor").returncode == 0 or next_pins(host), what
                host.env["PYTHONPATH"] = str(later)
                host.ctl("upgrade")
            assert host.ctl("doctor") == "No problems found.", what
            assert before <= established(host), what
            assert not next_pins(host), what
        host.ctl("down")
    assert seen == {0, 10}, seen
