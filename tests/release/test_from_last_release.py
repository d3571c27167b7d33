# SPDX-License-Identifier: Apache-2.0
"""S30: from the last release to this one, with everything at work that a host has.

Not a part of `make test`: it needs the history, to build that release. The packages are replaced in place, as a package
manager does it; the containers and their shims go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from datapath.store import schema
from tests.net import look
from tests.net.hosts import (
    HOST,
    PATIENCE,
    TREE,
    Host,
    ask,
    echo_server,
    eventually,
    reaches,
    store_version,
)
from tests.net.test_upgrade import TALKER, json_lines, traffic
from tests.release.conftest import install

# Answers a request with numbers, a line each, until a file is there.
SERVER = """
import http.server, itertools, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for first in itertools.count(0, 1000):
            last = os.path.exists(sys.argv[1])
            text = "".join(f"{number}\\n" for number in range(first, first + 1000)).encode()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(text), text))
            if last:
                break
            time.sleep(0.005)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("", 80), Handler).serve_forever()
"""
# Takes what one sends, as fast as it comes, and sends back how much that was.
SINK = """
import socket
server = socket.create_server(("", 5001))
while True:
    connection, total = server.accept()[0], 0
    while data := connection.recv(1 << 20):
        total += len(data)
    connection.sendall(b"%d" % total)
    connection.close()
"""
# Sends as fast as it goes until its standard input ends; prints how much it has sent, and how much has arrived.
STREAM = """
import select, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)
print("ready", flush=True)
sent = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    sent += connection.send(bytes(1 << 16))
connection.shutdown(socket.SHUT_WR)
print(sent, int(connection.recv(100)))
"""


@contextlib.contextmanager
def streams(host: Host) -> Iterator[None]:
    """A download over HTTP and a stream as fast as it goes, from outside through published ports."""
    got, stop = host.folder / "download", host.folder / "stop"
    download = host.outside.start(["curl", "-sSN", "-o", str(got), f"http://{HOST}:8090/"], stderr=None)
    stream = host.outside.start(
        [sys.executable, "-c", STREAM, HOST, "8091"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert stream.stdout is not None and stream.stdout.readline() == "ready\n"
    with eventually() as until:
        until(lambda: got.exists() and got.stat().st_size)
    yield
    assert download.poll() is None and stream.poll() is None
    stop.touch()
    assert download.wait(PATIENCE) == 0
    lines = got.read_text().split()
    assert len(lines) > 1000 and lines == [str(number) for number in range(len(lines))]
    sent, arrived = stream.communicate("", timeout=PATIENCE)[0].split()
    assert sent == arrived and int(sent) > 1 << 20


def answers(host: Host, port: int) -> bool:
    return host.outside.try_(["bash", "-c", f"</dev/tcp/{HOST}/{port}"]).returncode == 0


def checks(host: Host) -> set[str]:
    return {row["Check"] for row in json_lines(host.try_ctl("doctor --format json").stdout)}


@pytest.mark.parametrize("attach", ["auto", "clsact"])
def test_s30_the_last_release_is_upgraded_with_traffic_and_nothing_is_lost(
    make_host: Callable[..., Host], before: Path, tmp_path: Path, attach: str
) -> None:
    host, installed = make_host(attach=attach), tmp_path / "installed"
    assert host.env is not None
    install(before, installed)
    host.env["PYTHONPATH"] = str(installed)
    host.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
    host.run("web", "-p 8081:80,deny=198.51.100.9", ["python3", "-c", TALKER])
    host.run("peer")
    host.run("pages", "--network shop -p 8090:80", ["python3", "-c", SERVER, str(host.folder / "stop")])
    host.run("sink", "--network shop -p 8091:5001", ["python3", "-c", SINK])
    with eventually() as until:
        until(lambda: all(map(partial(answers, host), (8081, 8090, 8091))))
    assert host.ctl("doctor") == "No problems found."
    version, drops = store_version(host), sum(host.drops().values())
    with traffic(host), streams(host):
        install(TREE, installed)
        assert set(host.ctl("ps --format {{.Names}}").split()) == {"web", "peer", "pages", "sink"}
        assert checks(host) <= {"outdated", "store-older", "unreadable", "programs"}
        host.ctl("upgrade")
        assert host.ctl("doctor") == "No problems found."
    assert sum(host.drops().values()) == drops
    assert store_version(host) == schema.VERSION
    assert (host.folder / f"state/datapath.db.v{version}").exists() == (version < schema.VERSION)
    assert host.ctl("upgrade") == "There is nothing to replace."
    # What the release before did not have.
    host.ctl("service create --network shop -p 8092:80 web")
    host.run("backend", "--network shop --service web", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8092)).returncode == 0)
    assert host.ctl("doctor") == "No problems found."
    # The ends of containers that the release before has started are noticed, by their own shims.
    os.kill(host.process("peer"), signal.SIGKILL)
    with eventually() as until:
        until(lambda: '"status":"exited"' in "".join(row for row in look.database(host) if "'peer'" in row))
    host.ctl("rm peer")
    host.ctl("stop -t 1 sink")
    host.ctl("rm sink")
    # And what is new works beside what was there.
    host.run("new", "--network shop -p 8082:80", echo_server("tcp", 80))
    with eventually() as until:
        until(lambda: host.outside.try_(ask("tcp", HOST, 8082)).returncode == 0)
    assert reaches(lambda command: host.try_in("new", command), host.address("pages", "shop"))
    assert host.ctl("doctor") == "No problems found."
    host.ctl("down")
    assert set(look.devices(host.sh)) == {"lo", "eth0"}
    assert not any((host.folder / "state").glob("*"))
