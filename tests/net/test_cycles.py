# SPDX-License-Identifier: Apache-2.0
"""S30: what comes and goes leaves nothing, however often. DATAPATH_LONG=1: a thousand times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from datapath.dataplane.programs import Dataplane
from tests.net import look
from tests.net.hosts import Host, eventually, reaches
from tests.net.test_down import different

LONG = bool(os.environ.get("DATAPATH_LONG"))
CYCLES = 1000 if LONG else 10
WARM_UP = 3  # cycles after which everything has the size that it keeps
# Bytes that the process may keep of what it once needed: of the first half of the cycles, and of the second.
KEPT = 4 << 20, 1 << 20
JOURNAL = 6 << 20  # bytes; SQLite takes it into the file when it has 1000 pages

# One process that gives all the commands, as a program would that uses the library: what it keeps shows. Told
# how many cycles, it does them and says what it has: bytes of memory, open files, threads, children.
WORKER = """
import gc, json, os, sys, threading, time
from datapath.config.settings import Settings
from datapath import Containers, Host
from datapath import EndpointRequest, RunRequest

host = Host.open(Settings.from_env(os.environ))
containers = Containers(host)

def cycle(number):
    ports = (f"{9000 + number % 500}:80,deny=198.51.100.9", f"{40000 + number % 500}:80/udp")
    containers.run(RunRequest(("sleep", "3600"), name="t", detach=True, publish=ports))
    containers.connect("t", EndpointRequest("shop"))
    containers.port_add("t", "9900:81")
    containers.disconnect("shop", "t")
    containers.remove("t", force=True)

for line in sys.stdin:
    for number in range(int(line)):
        cycle(number)
    gc.collect()
    for _ in range(500):  # a thread may still take the answer of a device that was deleted
        if threading.active_count() == 1:
            break
        time.sleep(0.01)
    memory = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    counts = len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)
    print(json.dumps([memory, *counts]), flush=True)
"""


class Worker(NamedTuple):
    memory: int
    files: int
    threads: int
    children: int


def cycles(process: subprocess.Popen[str], count: int) -> Worker:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return Worker(*json.loads(line))


def host_has(host: Host) -> dict[str, Any]:
    """But for containers groups: others on the machine have theirs. With how full each map is."""
    found = look.everything(host)
    del found["cgroup"]
    loaded = Dataplane.find(host.bpffs / "datapath")
    assert loaded is not None
    with loaded:
        return found | {"maps": loaded.fill(), "rows": look.database(host)}


def kernel_has() -> dict[str, int]:
    """Of the whole machine: kB of memory, and network namespaces."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = {name: int(rows[name].split()[0]) for name in ("SUnreclaim", "Percpu", "VmallocUsed")}
    for line in Path("/proc/slabinfo").read_text().splitlines():
        if line.startswith("net_namespace "):
            found["namespaces"] = int(line.split()[1])
    return found


def test_s30_containers_that_come_and_go_leave_nothing(host: Host) -> None:
    look.settled(host)
    host.ctl("network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 shop")
    host.run("stays", "--network shop -p 8081:80")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = host.start([sys.executable, "-c", WORKER], **pipes)
    first = cycles(process, WARM_UP)
    before, kernel, database = host_has(host), kernel_has(), host.folder / "state" / "datapath.db"
    size = database.stat().st_size
    began = time.monotonic()
    half, last = (cycles(process, CYCLES // 2) for _ in range(2))
    seconds = time.monotonic() - began
    assert last[1:] == first[1:]
    assert half.memory < first.memory + KEPT[0]
    assert last.memory < half.memory + KEPT[1]
    assert database.with_name("datapath.db-wal").stat().st_size < JOURNAL
    with eventually() as until:  # shims that are about to end
        until(lambda: different(before, host_has(host)) == {})
    process.communicate()
    host.ctl("_exited nobody 0")
    assert host.try_ctl("doctor").stdout == "No problems found.\n"
    assert {path.name for path in database.parent.iterdir()} == {
        "containers",
        "datapath.db",
        "lock",
        "reserve",
    }
    assert [path.name for path in (database.parent / "containers").iterdir()] == [host.inspect("stays")["Id"]]
    assert database.stat().st_size == size
    assert reaches(host.try_, host.address("stays", "shop"))
    after = kernel_has()
    if LONG:  # others are at work on the machine too: a leak would be one for each cycle
        assert after["namespaces"] < kernel["namespaces"] + CYCLES / 4
    grown = {name: after[name] - kernel[name] for name in after}
    print(
        f"\n{CYCLES} cycles in {seconds:.0f} s: {first} -> {half} -> {last}; database {size}; kernel {grown}"
    )
