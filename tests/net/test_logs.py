# SPDX-License-Identifier: Apache-2.0
"""What containers write: where it is kept, how much of it, and when it was written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.net.hosts import Host, eventually
from tests.net.test_doctor import doctor

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z "


@pytest.fixture
def host(emptied: Host) -> Host:
    return emptied


def folder(host: Host, name: str) -> Path:
    return Path(host.inspect(name)["LogPath"]).parent


def writes(host: Host, name: str, script: str, options: str = "") -> None:
    """A container that runs the script, and has when this returns."""
    done = host.folder / f"{name}.done"
    done.unlink(missing_ok=True)
    host.run(name, options, ["sh", "-c", f"{script}; touch {done}; exec sleep 3600"])
    with eventually() as until:
        until(done.exists)


def looked(host: Host, name: str) -> bool:
    """The shim has seen all that was written."""
    log = folder(host, name) / "log"
    times = log.with_name("log.times").read_bytes()
    return int.from_bytes(times[-16:-8], "little") == log.stat().st_size


def test_logs_are_kept_below_the_state_directory_until_the_container_is_removed(host: Host) -> None:
    writes(host, "web", "echo here")
    path = folder(host, "web")
    assert path == host.folder / "state/containers" / host.inspect("web")["Id"]
    assert host.ctl("logs web") == "here"
    host.ctl("stop -t 0 web")
    assert host.ctl("logs web") == "here"
    host.ctl("start web")
    with eventually() as until:
        until(lambda: host.ctl("logs web") == "here\nhere")
    host.ctl("rm -f web")
    assert not path.exists()
    host.run("b", "--rm", "true")
    with eventually() as until:
        until(lambda: not any(path.parent.iterdir()))
    host.ctl("down")
    assert not (host.folder / "state").exists()


def test_a_container_of_an_earlier_version_has_its_log_where_it_was(host: Host) -> None:
    writes(host, "web", "echo new")
    ident = host.inspect("web")["Id"]
    old = host.folder / "run/containers" / ident / "log"
    old.write_text("old\n")
    with contextlib.closing(sqlite3.connect(host.folder / "state/datapath.db")) as opened, opened:
        opened.execute("UPDATE containers SET body = json_set(body, '$.log_path', ?)", (str(old),))
    assert host.ctl("logs web") == "old"


def test_each_line_has_the_time_when_it_was_written(host: Host) -> None:
    before = time.time()
    writes(host, "web", "echo first; sleep 0.5; echo second; sleep 0.5; printf third")
    with eventually() as until:
        until(lambda: looked(host, "web"))
    lines = host.ctl("logs -t web").splitlines()
    assert [re.sub(STAMP, "", line) for line in lines] == ["first", "second", "third"]
    assert all(re.match(STAMP, line) for line in lines)
    times = [datetime.fromisoformat(line[:26]).replace(tzinfo=UTC).timestamp() for line in lines]
    assert before - 1 < times[0] and times[1] - times[0] > 0.3 and times[2] - times[1] > 0.3
    middle = (times[0] + times[1]) / 2
    assert host.ctl(f"logs --since {middle} web") == "second\nthird"
    assert host.ctl(f"logs --until {middle} web") == "first"
    assert host.ctl("logs --since 1h --until 1h web") == ""
    assert host.ctl("logs --since 1h -n 1 web") == "third"
    assert "expected a duration or a time" in host.refused("logs --since soon web")


LINES = 'i=0; while [ $i -lt 5000 ]; do echo "line $i of the log"; i=$((i+1)); done'


@pytest.mark.parametrize("where", ["run", "daemon.json"])
def test_a_log_stays_as_small_as_it_is_to_be(make_host: Callable[..., Host], where: str) -> None:
    config = {"log-opts": {"max-size": "10k", "max-file": "3"}} if where == "daemon.json" else {}
    host = make_host(config=config)
    options = "--log-opt max-size=10k --log-opt max-file=3" if where == "run" else ""
    paced = LINES.replace("i=$((i+1))", "i=$((i+1)); [ $((i % 250)) != 0 ] || sleep 0.05")
    writes(host, "web", paced, options)
    with eventually() as until:
        until(lambda: (folder(host, "web") / "log").stat().st_size <= 10240)
    assert sorted(path.name for path in folder(host, "web").iterdir()) == [
        *("log", "log.1", "log.1.times", "log.2", "log.2.times", "log.times")
    ]
    used = sum(path.stat().st_blocks * 512 for path in folder(host, "web").iterdir())
    assert used < 100 * 1024, "of 110 kB that it wrote"
    lines = host.ctl("logs web").splitlines()
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == sorted(numbers) and numbers[-1] == 4999
    assert 500 < len(lines) < 4000 and numbers[-1] - numbers[0] < len(lines) + 200, "hardly any is lost"
    stamped = host.ctl("logs -t -n 3 web").splitlines()
    assert [re.sub(STAMP, "", line) for line in stamped] == lines[-3:]
    assert host.inspect("web")["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10k", "max-file": "3"}
    host.ctl("stop -t 0 web")
    host.ctl("start web")
    assert host.inspect("web")["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10k", "max-file": "3"}


def test_following_goes_on_when_the_log_is_begun_anew(host: Host) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line $i of the log; i=$((i+1)); sleep 0.005; done"
    host.run("web", "--log-opt max-size=1k", ["sh", "-c", script])
    lines = host.ctl("logs -f web").splitlines()
    assert lines[-1] == "line 399 of the log"
    assert len(lines) > 100, "most of 7 kB, although the file has 1 kB"


def test_a_container_whose_shim_was_killed_goes_on_writing(host: Host) -> None:
    """Its output does not pass through the shim."""
    script = f"echo before; while [ ! -e {host.folder}/go ]; do sleep 0.02; done; echo after"
    host.run("web", "", ["sh", "-c", f"{script}; exec sleep 3600"])
    with eventually() as until:
        until(lambda: host.ctl("logs web") == "before")
    pid = host.process("web")
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    (host.folder / "go").touch()
    with eventually() as until:
        until(lambda: host.ctl("logs web") == "before\nafter")
    host.ctl("rm -f web")
    assert doctor(host) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--log-opt max-size=many", 'invalid max-size "many": expected a size such as 10m, or -1'),
        ("--log-opt max-file=2", "max-file has no meaning without max-size"),
        ("--log-opt max-size=1m --log-opt max-file=0", 'invalid max-file "0": expected 1 to 1000 files'),
        ("--log-opt labels=x", 'unknown log option "labels": there are max-file, max-size'),
        ("--log-opt max-size", 'invalid max-size "": expected a size such as 10m, or -1'),
    ],
)
def test_an_option_of_logs_that_cannot_be_is_refused(host: Host, options: str, says: str) -> None:
    assert host.refused(f"run {options} true") == f"datapathctl: {says}"
