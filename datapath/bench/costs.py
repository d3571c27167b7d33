# SPDX-License-Identifier: Apache-2.0
"""What the modes cost: nanoseconds of each packet program, CPU of a gigabyte, memory."""

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
from datapath.bench.scenes import CLIENT, NETWORK, PORT, SERVER, Own
from datapath.bench.scenes_docker import DockerScene
from datapath.bench.traffic import Stage, traffic
from datapath.bench.workloads import TCP_CONNECT, TCP_STREAM, UDP_PPS
from datapath.errors import DatapathError
from datapath.kernel.counter import Counter

_REPEAT, _TIMES = 200000, 5
_FEWEST = 1000  # runs of a program that make a mean
_TIMEOUT = 20.0  # seconds


def costs(stage: Stage, modes: Sequence[str]) -> Iterator[Cost]:
    if EBPF in modes:
        yield from _member_path(stage)
        yield from _programs(stage)
    for mode in modes:
        yield _cpu(stage, mode)
        if mode != NONE:
            yield from _memory(stage, mode)


# ---- time -------------------------------------------------------------------------------------


def _programs(stage: Stage) -> Iterator[Cost]:
    """Timed by the kernel while packets pass, which costs some 20 ns itself."""
    from datapath.kernel import libbpf

    scene = stage.scene(EBPF)
    assert isinstance(scene, Own)
    for workload, packets in ((TCP_CONNECT, "short TCP connections"), (UDP_PPS, "UDP packets")):
        for path in PATHS:
            with traffic(stage, (EBPF,), workload, path) as row:
                fd = libbpf.enable_stats()
                try:
                    before = _runs(scene)
                    row.sample(EBPF)
                    after = _runs(scene)
                finally:
                    os.close(fd)
            for name, (count, spent) in after.items():
                runs = count - before[name][0]
                if runs >= _FEWEST:
                    what = f"a run, {packets}, {path}"
                    yield Cost(EBPF, name, what, "ns", round((spent - before[name][1]) / runs, 1))


def _member_path(stage: Stage) -> Iterator[Cost]:
    """The established path, hot: the same segment again and again, without a network (BPF_PROG_TEST_RUN). Instructions
    where the machine counts them, with the few of the loop around it."""
    from datapath.kernel import bpffs, libbpf, netns

    scene = stage.scene(EBPF)
    assert isinstance(scene, Own)
    client = scene.route("container-container").client
    index = json.loads(client.run(["ip", "-j", "link", "show", "eth0"], _TIMEOUT))[0]["link_index"]
    with netns.enter(scene.host.inside.path):
        ends = [scene.containers.inspect(name)["NetworkSettings"]["Networks"] for name in (CLIENT, SERVER)]
        fd = bpffs.get_pinned(scene.host.bpffs / "datapath" / "programs" / "from_container")
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


def _runs(scene: Own) -> dict[str, tuple[int, int]]:
    """Program -> how often it ran, and how many nanoseconds that took."""
    found = {}
    for path in sorted((scene.host.bpffs / "datapath" / "programs").iterdir()):
        shown = _bpftool("prog", "show", "pinned", str(path))
        found[path.name] = (shown.get("run_cnt", 0), shown.get("run_time_ns", 0))
    return found


def _cpu(stage: Stage, mode: str) -> Cost:
    """What both programs' processes used, the kernel's work for them included."""
    with traffic(stage, (mode,), TCP_STREAM, "container-container") as row:
        said = row.sample(mode).details
    share = (said["sender_cpu_percent"] + said["receiver_cpu_percent"]) / 100
    seconds = share * said["seconds"] / (said["bytes"] / 1e9)
    return Cost(mode, "TCP stream", "CPU of a gigabyte, container-container", "s", round(seconds, 4))


# ---- memory -----------------------------------------------------------------------------------


def _memory(stage: Stage, mode: str) -> Iterator[Cost]:
    scene = stage.scene(mode)
    if isinstance(scene, DockerScene):
        for name, size in scene.docker.rss().items():
            yield Cost(mode, name, "resident memory, two containers", "MiB", _mib(size))
    elif isinstance(scene, Own):
        shims = sum(_rss(container.shim_pid) for container in scene.containers.ps())
        yield Cost(mode, "shims", "resident memory, two containers", "MiB", _mib(shims))
        yield from _maps(scene)


def _maps(scene: Own) -> Iterator[Cost]:
    """The largest by name, and all. Maps are as large as their limits from the start, or grow as they fill."""
    folder = scene.host.bpffs / "datapath"
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
        yield Cost(scene.mode, f"map {name}", "memory", "MiB", _mib(sizes[name]))
    yield Cost(scene.mode, "all maps", "memory", "MiB", _mib(sum(sizes.values())))
    yield Cost(scene.mode, "all programs", "memory", "MiB", _mib(programs))


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
