# SPDX-License-Identifier: Apache-2.0
"""The costs of each mode: nanoseconds of each packet program, CPU of a gigabyte, memory."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from datapath.bench.bars import ESTABLISHED
from datapath.bench.model import EBPF, NONE, PATHS, Cost
from datapath.bench.place import MissingError
from datapath.bench.topologies import CLIENT, NETWORK, PORT, SERVER, Own
from datapath.bench.topology_docker import DockerTopology
from datapath.bench.traffic import Topologies, traffic
from datapath.bench.workloads import TCP_CONNECT, TCP_STREAM, UDP_PPS
from datapath.errors import DatapathError
from datapath.kernel.counter import Counter

_REPEAT, _TIMES = 200000, 5
_FEWEST = 1000  # runs of a program that make a mean
_TIMEOUT = 20.0  # seconds


def costs(topologies: Topologies, modes: Sequence[str]) -> Iterator[Cost]:
    if EBPF in modes:
        yield from _member_path(topologies)
        yield from _programs(topologies)
    for mode in modes:
        yield _cpu(topologies, mode)
        if mode != NONE:
            yield from _memory(topologies, mode)


# ---- time -------------------------------------------------------------------------------------


def _programs(topologies: Topologies) -> Iterator[Cost]:
    """Timed by the kernel while packets pass, which costs some 20 ns itself."""
    from datapath.kernel import libbpf

    topology = topologies.of(EBPF)
    assert isinstance(topology, Own)
    for workload, packets in ((TCP_CONNECT, "short TCP connections"), (UDP_PPS, "UDP packets")):
        for path in PATHS:
            with traffic(topologies, (EBPF,), workload, path) as row:
                fd = libbpf.enable_stats()
                try:
                    before = _runs(topology)
                    row.sample(EBPF)
                    after = _runs(topology)
                finally:
                    os.close(fd)
            for name, (count, spent) in after.items():
                runs = count - before[name][0]
                if runs >= _FEWEST:
                    what = f"a run, {packets}, {path}"
                    yield Cost(EBPF, name, what, "ns", round((spent - before[name][1]) / runs, 1))


def _member_path(topologies: Topologies) -> Iterator[Cost]:
    """The established path, hot: the same segment again and again, without a network (BPF_PROG_TEST_RUN). Instructions
    where the machine counts them, with the few of the loop around it."""
    from datapath.kernel import bpffs, libbpf, netns

    topology = topologies.of(EBPF)
    assert isinstance(topology, Own)
    client = topology.route("container-container").client
    index = json.loads(client.run(["ip", "-j", "link", "show", "eth0"], _TIMEOUT))[0]["link_index"]
    with netns.enter(topology.host.inside.path):
        ends = [topology.containers.inspect(name)["NetworkSettings"]["Networks"] for name in (CLIENT, SERVER)]
        fd = bpffs.get_pinned(topology.host.bpffs / "datapath" / "programs" / "from_container")
        if fd is None:
            raise DatapathError("the packet programs are not loaded")
        try:
            segment = _segment(ends[0][NETWORK], ends[1][NETWORK])
            with Counter() as instructions:
                runs = [
                    libbpf.test_run(fd, segment, ifindex=index, repeat=_REPEAT).duration
                    for _ in range(_TIMES)
                ]
        finally:
            os.close(fd)
    yield Cost(EBPF, *ESTABLISHED, "ns", statistics.median(runs))
    if instructions.value:
        each = instructions.value / (_TIMES * _REPEAT)
        yield Cost(EBPF, *ESTABLISHED, "instructions", round(each, 1))


def _segment(client: Mapping[str, Any], server: Mapping[str, Any]) -> bytes:
    """An acknowledgement without data from one endpoint to the other; the programs do not look at checksums."""
    macs = (bytes.fromhex(end["MacAddress"].replace(":", "")) for end in (server, client))
    addresses = (ip_address(end["IPAddress"]).packed for end in (client, server))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0)
    tcp = struct.pack("!HHIIBBHHH", 40000, PORT, 1, 1, 0x50, 0x10, 1024, 0, 0)
    return b"".join((*macs, b"\x08\x00", ip, *addresses, tcp))


def _runs(topology: Own) -> dict[str, tuple[int, int]]:
    """Program -> how often it ran, and how many nanoseconds that took."""
    found = {}
    for path in sorted((topology.host.bpffs / "datapath" / "programs").iterdir()):
        shown = _bpftool("prog", "show", "pinned", str(path))
        found[path.name] = (shown.get("run_cnt", 0), shown.get("run_time_ns", 0))
    return found


def _cpu(topologies: Topologies, mode: str) -> Cost:
    """What both programs' processes used, the kernel's work for them included."""
    with traffic(topologies, (mode,), TCP_STREAM, "container-container") as row:
        said = row.sample(mode).details
    share = (said["sender_cpu_percent"] + said["receiver_cpu_percent"]) / 100
    seconds = share * said["seconds"] / (said["bytes"] / 1e9)
    return Cost(mode, "TCP stream", "CPU of a gigabyte, container-container", "s", round(seconds, 4))


# ---- memory -----------------------------------------------------------------------------------


def _memory(topologies: Topologies, mode: str) -> Iterator[Cost]:
    topology = topologies.of(mode)
    if isinstance(topology, DockerTopology):
        for name, size in topology.docker.rss().items():
            yield Cost(mode, name, "resident memory, two containers", "MiB", _mib(size))
    elif isinstance(topology, Own):
        shims = sum(_rss(container.shim_pid) for container in topology.containers.ps())
        yield Cost(mode, "shims", "resident memory, two containers", "MiB", _mib(shims))
        yield from _maps(topology)


def _maps(topology: Own) -> Iterator[Cost]:
    """The largest by name, and all. Maps are as large as their limits from the start, or grow as they fill."""
    folder = topology.host.bpffs / "datapath"
    if not folder.exists():
        return
    sizes = {
        path.name: int(_bpftool("map", "show", "pinned", str(path)).get("bytes_memlock", 0))
        for path in (folder / "maps").iterdir()
    }
    programs = sum(
        int(_bpftool("prog", "show", "pinned", str(path)).get("bytes_memlock", 0))
        for path in (folder / "programs").iterdir()
    )
    for name in sorted(sizes, key=lambda name: -sizes[name])[:5]:
        yield Cost(topology.mode, f"map {name}", "memory", "MiB", _mib(sizes[name]))
    yield Cost(topology.mode, "all maps", "memory", "MiB", _mib(sum(sizes.values())))
    yield Cost(topology.mode, "all programs", "memory", "MiB", _mib(programs))


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def _mib(size: int) -> float:
    return round(size / (1 << 20), 2)


def _bpftool(*words: str) -> Any:
    try:
        done = subprocess.run(["bpftool", "-j", *words], capture_output=True, text=True, timeout=_TIMEOUT)
        return json.loads(done.stdout)
    except FileNotFoundError as error:
        raise MissingError("bpftool") from error
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise DatapathError(f"bpftool {' '.join(words)}: it does not say JSON") from error
