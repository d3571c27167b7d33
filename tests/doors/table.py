# SPDX-License-Identifier: Apache-2.0
"""Which client does what: the record of it, and the tables of docs/doors.md that are written from that.

    .venv/bin/python -m tests.doors.table [FILE]    # takes in what a run has left in FILE: `make doors`

A test with `door` is one or several rows of a client's table, and its column the release that the client is of. What a
run did not have stays as it was recorded.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

VARIABLE = "DOORS_SEEN"  # the file in which it is left what came out
RECORD = Path(__file__).with_name("seen.json")
PAGE = Path(__file__).parents[2] / "docs/doors.md"
END = "<!-- end -->"
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "unstable"}
RIGHT, WRONG = "works", "**failed**"

ROWS: dict[str, dict[int, str]] = {
    "Docker": {
        1: "a network of ours: its gateway is on the host, and there is no docker_gwbridge",
        2: "a published port answers from outside, at the host's address and 127.0.0.1, from another container and "
        "from itself, without a bridge, a listener or a rule",
        3: "a port that a container or a process has is refused, and who has it is named",
        4: "`-p 80`, `-P`, `-p 8000-8010:80`: a port is chosen, and `port ls` names it",
        5: "`--ip` and `--mac-address` hold; no other source passes",
        6: "on two networks, and through `connect`, `disconnect` and `restart`, ports answer and always have one owner",
        7: "`--internal`: no way out, no published port",
        8: "names, aliases and links resolve",
        9: "`restart`, `stop` and `start`, `--restart always` of a killed process: the port works again; the "
        "fastest of four took less than 1 s",
        10: "dockerd is killed: containers start with their addresses and ports, nothing stale is left",
        11: "`live-restore`: a download through a published port outlives the daemon's end and kill",
        12: "the driver is killed after any request; nothing of it runs or listens while Docker is quiet",
        13: "after a reboot networks are there, and containers start",
        14: "ten containers at once, all removed at once",
        15: "200 ports are published within 1.5 s; where the machine is busy, within thrice the time of one port",
        16: "overlaps, another IPAM driver and unknown options are refused by name, and no network is left",
        17: "networks of datapathctl beside Docker's: each is its owner's",
        18: "beside Docker's own bridges, as installed: both kinds of containers reach the outside and each other's "
        "ports; a restart of the daemon and a flush of its rules harm nothing",
        19: "a container on a bridge of Docker's, too, leaves by the network that Docker says, and its ports are there",
        20: "the driver or dockerd is killed while several containers start and are removed, or comes late",
        21: "two daemons share a host and its ports",
    },
    "Compose": {
        1: "`up` of three services on two networks: names, aliases and ports",
        2: "`up` again with a change: what is meant is made anew, the rest goes on",
        3: "`restart` and `stop` of one service",
        4: "`down`: nothing is left",
    },
    "podman": {
        1: "published ports answer from outside and at 127.0.0.1, although podman listens on them itself",
        2: "`podman ps` has the ports",
        3: "`ip=`, `mac=`, `interface_name=` of a container",
        4: "`network connect`, `network disconnect`, `restart`",
        5: "a port that is taken is refused",
        6: "a network without a subnet is given a free one; an overlap is refused by name",
        7: "`network reload`, `stop` and `start`, pods, 200 ports",
        8: "a container whose processes were killed is removed, and made again",
        9: "when all is removed, nothing is left",
        10: "names and ids of containers resolve",
        11: "beside podman's own bridges: both kinds of containers reach the outside and each other's ports",
    },
    "containerd": {
        1: "`ctr run --cni`, in the foreground and in the background",
        2: "a container that ended unsaid: `doctor` says so, and its address is given again",
        3: "pods by the Container Runtime Interface: published ports, stopped and removed twice, a lost namespace, "
        "the host's network",
    },
}

Test = TypeVar("Test", bound=Callable[..., Any])
# Client -> release -> "version", and "rows": number of a row -> what came out.
Record = dict[str, dict[str, dict[str, Any]]]


def door(client: str, *rows: int) -> Callable[[Test], Test]:
    """Decorates a test that is these rows of a client's table. The release is one of its parameters, or else that of
    the machine. A fixture has to say by `client` which version it has met."""
    assert set(rows) <= ROWS[client].keys()
    return pytest.mark.door(client, rows)


def client(request: pytest.FixtureRequest, said: str) -> None:
    """A fixture's word: what the client that the test is with says of its version."""
    found = re.search(r"\d+(\.\d+)+", said)
    assert found, said
    request.node.user_properties.append(("version", found[0]))


def of_machine(request: pytest.FixtureRequest, ask: Callable[[str], str]) -> None:
    """The same for a client that is a program of that name. `ask` runs a command where it is."""
    if mark := request.node.get_closest_marker("door"):
        client(request, ask(f"{mark.args[0]} --version"))


def note(item: pytest.Item) -> None:
    """Called for each test before it runs: what it is about goes with its report, also from another process."""
    mark = item.get_closest_marker("door")
    if mark:
        params = (
            item.callspec.params.values()
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else ()
        )
        release = next((value for value in params if value in RELEASES), next(iter(RELEASES)))
        item.user_properties.append(("door", [*mark.args, release]))


class Collector:
    """A plugin of pytest, in the process that knows of all tests. It leaves what came out in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: Record = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        about = said.get("door")
        if not isinstance(about, list | tuple) or report.skipped or (report.when != "call" and report.passed):
            return
        name, rows, release = about
        column = self._found.setdefault(name, {}).setdefault(release, {"version": "", "rows": {}})
        column["version"] = said.get("version") or column["version"]
        for row in map(str, rows):
            if column["rows"].get(row) != WRONG:
                column["rows"][row] = RIGHT if report.passed else WRONG

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # not interrupted
            self._file.write_text(json.dumps({"kernel": os.uname().release, "seen": self._found}))


def taken_in(record: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The record with what a run has found."""
    seen: Record = record.get("seen", {})
    for name, releases in run["seen"].items():
        for release, column in releases.items():
            mine = seen.setdefault(name, {}).setdefault(release, {"version": "", "rows": {}})
            mine["version"] = column["version"] or mine["version"]
            mine["rows"] |= column["rows"]
    ordered: Record = {}
    for name, rows in ROWS.items():
        for release in (release for release in RELEASES if release in seen.get(name, {})):
            column = seen[name][release]
            kept = {str(row): column["rows"][str(row)] for row in rows if str(row) in column["rows"]}
            ordered.setdefault(name, {})[release] = {"version": column["version"], "rows": kept}
    return {"kernel": run["kernel"], "seen": ordered}


def table(name: str, releases: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A client's, as lines: scenarios as rows, versions as columns."""
    heads = [f"{column['version']} ({RELEASES[release]})" for release, column in releases.items()]
    yield f"| | | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 2) + "|"
    for row, title in ROWS[name].items():
        cells = [column["rows"].get(str(row), "") for column in releases.values()]
        yield f"| {row} | {title} | {' | '.join(cells)} |"


def written(page: str, record: dict[str, Any]) -> str:
    """The page with the tables of that record."""
    for name, releases in record["seen"].items():
        begin = f"<!-- make doors: {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(END)
        assert found and ended, f"the page has no place for {begin}"
        page = before + "\n".join([begin, *table(name, releases), END]) + after
    return page


def main(*files: Path) -> None:
    """What a run has left changes the record, and the page is written. One that was interrupted has left nothing."""
    record = json.loads(RECORD.read_text())
    for file in files:
        if file.exists():
            record = taken_in(record, json.loads(file.read_text()))
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), record))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
