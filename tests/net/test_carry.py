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
from typing import Any

import pytest

from datapath.dataplane import carry, former, version
from datapath.kernel import abi, bpf_maps, bpffs
from datapath.kernel import bpf_calls as bpf
from tests.net import look
from tests.net.hosts import HOST, OUTSIDE, PATIENCE, TREE, Host, eventually, reaches
from tests.net.test_upgrade import (
    CALLER,
    QUICK_ENDS,
    TALKER,
    each_counted_once,
    guarded,
    json_lines,
    lost,
    populated,
    traffic,
)

LONG = bool(os.environ.get("DATAPATH_LONG"))
CARRIES = "laid out as in an earlier version: `datapathctl upgrade` carries them over"

# What the later version has changed: rows that have grown at their beginning or end, a key in another order.
GROWN = ("conn", "quota", "arrival", "counter", "admission")
PORT_OF_HOST = "\t__be16 port;\n\t__u8 proto;\n\t__u8 pad;\n"
EDITS = {
    "bpf/abi.h": [
        *((f"struct {name} {{\n", f"struct {name} {{\n\t__u64 more;\n") for name in GROWN),
        (
            f"struct external_key {{\n\tstruct ip_addr addr; /* the host's */\n{PORT_OF_HOST}",
            f"struct external_key {{\n{PORT_OF_HOST}\tstruct ip_addr addr;\n",
        ),
        ("about */\n\t__u8 pad[3];\n", "about */\n\t__u8 pad[3];\n\t__u32 more;\n"),
        ("none is used twice */\n", "none is used twice */\n\t__u32 more;\n"),
        ("bound to it too */\n", "bound to it too */\n\t__u32 more;\n"),
        ("name servers on its link */\n};", "name servers on its link */\n\t__u32 more;\n};"),
    ],
    "datapath/dataplane/structs.py": [
        ("    shared: int\n", "    shared: int\n    more: int = 0\n"),
        (
            "    linklocal: IPv6Address | None = None\n",
            "    linklocal: IPv6Address | None = None\n    more: int = 0\n",
        ),
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
    files = ("Makefile", "packaging/packages.mk", "setup.py", "pyproject.toml", "tests/__init__.py")
    for name in (*files, "tests/net/__init__.py"):
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
    drops = lost(host)
    with guarded(host), all_traffic(host):
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
    assert lost(host) == drops
    assert not next_pins(host)
    host.run("more", "-p 8082:80", ["python3", "-c", TALKER])
    with eventually() as until:
        until(lambda: host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/8082"]).returncode == 0)
    assert reaches(host.try_, host.address("more"))
    # Each that has ended is collected: it was queued for that.
    with eventually() as until:
        until(lambda: not established(host) & before)
    assert host.ctl("doctor") == "No problems found."


def test_s30_what_members_say_is_counted_once_while_rows_are_carried(
    make_host: Callable[..., Host], later: Path
) -> None:
    """The timer that ends rows rests meanwhile, and is another one afterwards."""
    host = make_host(config=QUICK_ENDS)

    def upgrade() -> None:
        become(host, later)
        assert "replaced" in host.ctl("upgrade")

    each_counted_once(host, [upgrade])


# ---- what changes while rows are copied ---------------------------------------------------------------------

TUPLE, CONN = abi.layout("tuple"), abi.layout("conn")
FRONT = 8  # bytes that a row of the version before had more of, at its beginning
MOST = 64


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Any, Any]]:
    """A table of connections of a version before, and the one that takes its place; with the queue of the GC."""
    root = tmp_path / "bpf"
    root.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(root)], check=True)
    (root / "maps").mkdir()
    timer = abi.layout("gc_timer").size
    maps = {
        "conns": (1, TUPLE.size, CONN.size + FRONT, MOST),
        "next-conns": (1, TUPLE.size, CONN.size, MOST),
        "next-confirmed": (22, 0, TUPLE.size, MOST // 2),  # BPF_MAP_TYPE_QUEUE
        "next-gc_timers": (2, 4, timer, 1),
    }
    opened = {}
    for name, (kind, *sizes) in maps.items():
        fd = bpf.lib.bpf_map_create(kind, b"tried", *sizes, bpf.options("bpf_map_create_opts"))
        opened[name] = bpf_maps.RawMap(bpf.check(fd, "create", name), name, *sizes[:2])
        bpffs.pin(fd, root / "maps" / name)
    text = (abi.OBJECTS / "abi.h").read_text()
    before = former.parse(text.replace("struct conn {\n", "struct conn {\n\t__u64 more;\n"))
    now = former.parse(text)
    found = former.conversion(before, now, "tuple"), former.conversion(before, now, "conn")
    monkeypatch.setattr(version, "conversions", lambda root, name: found)
    monkeypatch.setattr(version, "former_conn", lambda root: before["conn"])
    yield root, opened["conns"], opened["next-conns"]
    for one in opened.values():
        one.close()
    subprocess.run(["umount", str(root)], check=True)


def key_of(number: int, reply: bool = False) -> bytes:
    ports = (80, number) if reply else (number, 80)
    return bytes(TUPLE.pack(TUPLE.type(sport=ports[0], dport=ports[1], proto=6)))


def row_of(number: int, seen: int, reply: bool = False, **fields: int) -> bytes:
    flags = 2 if reply else 3
    other = TUPLE.unpack(key_of(number, not reply))
    return bytes(CONN.pack(CONN.type(other=other, last_seen=seen, flags=flags, **fields)))


def test_what_the_programs_change_while_rows_are_copied_is_not_lost(tables: tuple[Path, Any, Any]) -> None:
    """Programs of both versions are at work, on rows of their own: of each connection the later one counts, and
    an end that either has seen."""
    root, before, now = tables
    long_ago, early, late, last = 10**9, 10**12, 10**12 + 10**9, 10**12 + 2 * 10**9

    def old(number: int, seen: int, reply: bool = False, **fields: int) -> None:
        before.set_raw(key_of(number, reply), b"m" * FRONT + row_of(number, seen, reply, **fields))

    for number in range(1, 6):
        old(number, long_ago, state=2, ack=1)
        old(number, long_ago, True)
    carry._copy(root, "conns", 0)
    assert now.lookup_raw(key_of(1)) == row_of(1, long_ago, state=2, ack=1) and now.count() == 10
    old(1, late, state=2, ack=7)  # a packet by an old program
    old(2, long_ago, state=3, fin=2, ack=1)  # the end of one side, of which only the reply's row has the time
    old(2, late, True)
    old(3, late, state=3, fin=1)  # an end that an old program has seen, and packets after it by new ones
    now.set_raw(key_of(3), row_of(3, last, state=2, ack=9))
    now.set_raw(key_of(4), row_of(4, last, state=4))  # only new programs
    old(6, late, state=2)  # it was opened meanwhile
    old(6, late, True)
    now.set_raw(key_of(7), row_of(7, last, state=2))
    now.set_raw(key_of(7, True), row_of(7, last, True))
    carry._complete(root, "conns", early)
    assert {key: row for keys, rows, _ in now.batches() for key, row in pairs(keys, rows)} == {
        key_of(1): row_of(1, late, state=2, ack=7),
        key_of(2): row_of(2, long_ago, state=3, fin=2, ack=1),
        key_of(2, True): row_of(2, late, True),
        key_of(3): row_of(3, last, state=3, fin=1, ack=9),
        key_of(4): row_of(4, last, state=4),
        key_of(5): row_of(5, long_ago, state=2, ack=1),
        key_of(6): row_of(6, late, state=2),
        key_of(6, True): row_of(6, late, True),
        key_of(7): row_of(7, last, state=2),
        key_of(7, True): row_of(7, last, True),
        **{key_of(number, True): row_of(number, long_ago, True) for number in (1, 3, 4, 5)},
    }
    # Who comes after a kill does not know when it began.
    whole = dict(pair for keys, rows, _ in now.batches() for pair in pairs(keys, rows))
    now.delete_raw([key_of(5), key_of(5, True)])
    carry._complete(root, "conns", 0)
    assert dict(pair for keys, rows, _ in now.batches() for pair in pairs(keys, rows)) == whole


def pairs(keys: bytes, rows: bytes) -> Iterator[tuple[bytes, bytes]]:
    return zip(bpf_maps.cut(keys, TUPLE.size), bpf_maps.cut(rows, CONN.size), strict=True)


def test_each_connection_is_queued_for_the_gc_once(tables: tuple[Path, Any, Any]) -> None:
    """Also those that a new program has queued already; and again, after a kill."""
    root, _, now = tables
    for number in range(1, MOST // 2 + 1):
        now.set_raw(key_of(number), row_of(number, 1, state=2))
        now.set_raw(key_of(number, True), row_of(number, 1, True))
    with carry._opened(root, "next-confirmed") as queue, carry._opened(root, "next-gc_timers") as timers:
        queue.set_raw(b"", key_of(3))
        for _ in range(2):
            carry._refill_queue(root)
            told = abi.layout("gc_timer").unpack(timers.lookup_raw(bytes(4)) or b"")
            assert told.queued == MOST // 2
        queued = [queue.pop_raw() for _ in range(MOST // 2)]
        assert sorted(queued, key=str) == sorted((key_of(n) for n in range(1, MOST // 2 + 1)), key=str)
        assert queue.pop_raw() is None


# ---- killed ------------------------------------------------------------------------------------------------------


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
    chosen = range(2, steps + 1) if LONG else sorted({*range(2, steps, steps // 4), steps * 2 // 3})
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
            done = host.try_ctl("rm -f nobody")
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
