# SPDX-License-Identifier: Apache-2.0
"""What a namespace, and the machine around a pretend host, looks like: to compare before and after."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.net import forked
from tests.net.hosts import Host, Namespace, eventually

Run = Callable[[str], str]

# What the kernel changes by itself while it works; no command sets these.
_RESTLESS = ("nf_conntrack_count", "/stable_secret", "netdev_rss_key")


def settled(host: Host) -> Host:
    """The host with nothing that is about to change by itself: duplicate address detection takes a second."""
    host.sh("ip -6 address flush dev eth0")
    host.sh("ip address add fe80::1/64 dev eth0 nodad")
    with eventually() as until:  # the route to itself comes from a worker of the kernel's
        until(lambda: host.sh("ip -6 route show table local fe80::1"))
    return host


def detected(host: Host) -> Host:
    """The host once the kernel knows of each of its addresses that nobody else has it, and so may be sent from."""
    with eventually() as until:
        until(lambda: not host.sh("ip -6 -o address show tentative"))
    return host


def devices(run: Run) -> dict[str, Any]:
    """Name -> the device as `ip -json -details address` shows it. `run` is `Namespace.sh`, for one."""
    return {device["ifname"]: device for device in json.loads(run("ip -j -d address"))}


def addresses(device: Any, family: str = "inet") -> list[str]:
    """Its addresses of that family, with prefix length; link-local ones left out."""
    return [
        f"{info['local']}/{info['prefixlen']}"
        for info in device["addr_info"]
        if info["family"] == family and info["scope"] != "link"
    ]


def default_routes(run: Run, version: int = 4) -> list[tuple[str, str]]:
    """(gateway, device) of every default route."""
    routes = json.loads(run(f"ip -{version} -j route show default"))
    return [(route.get("gateway", ""), route["dev"]) for route in routes]


def namespace_of(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


@contextlib.contextmanager
def holding(pid: int) -> Iterator[str]:
    """The network namespace of the process. Its number is no other's, also when its processes have ended."""
    with open(f"/proc/{pid}/ns/net"):
        yield namespace_of(pid)


def alive(pid: int) -> bool:
    """There is such a process, and not only for its parent to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def members_of(namespace: str) -> set[int]:
    """The processes in a network namespace."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/net") == namespace:
                    found.add(int(entry.name))
    return found


def mentioning(text: str) -> set[int]:
    """The processes with that text in their command line or environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if text.encode() in said:
                    found.add(int(entry.name))
    return found


def database(host: Host) -> list[str]:
    """Every row of the state database, as SQL; but for the counter of endpoint numbers. What it has handed out
    is not used again, also when the command was refused in the end."""
    path = host.folder / "state" / "datapath.db"
    if not path.exists():
        return []
    with forked.database(path.parent) as opened:
        return [
            row for row in opened.iterdump() if not row.startswith("INSERT INTO \"meta\" VALUES('endpoint'")
        ]


def sysctls(space: Namespace) -> dict[str, str]:
    """All of /proc/sys/net as a process in the namespace reads it."""
    text = space.try_(["grep", "-rs", "", "/proc/sys/net"]).stdout  # a few can only be written
    found: dict[str, str] = {}
    for line in text.splitlines():
        path, _, value = line.partition(":")
        if not any(word in path for word in _RESTLESS):
            found[path] = f"{found[path]}\n{value}" if path in found else value
    return found


_IPROUTE2 = {"ip", "tc", "xdp"}  # folders that it makes in the first bpffs that it finds, whoever runs it


def pins(host: Host) -> set[str]:
    found = host.bpffs.rglob("*")
    return {str(path) for path in found if path.relative_to(host.bpffs).parts[0] not in _IPROUTE2}


def kernel_ids(host: Host) -> set[tuple[str, int]]:
    """The BPF programs, maps and links that this host has pinned, by the kernel's own numbers."""
    found = set()
    for kind, folder in (("prog", "programs"), ("map", "maps"), ("link", "links")):
        for path in (host.bpffs / "datapath" / folder).iterdir():
            shown = host.sh(["bpftool", "-j", kind, "show", "pinned", str(path)])
            found.add((kind, int(json.loads(shown)["id"])))
    return found


def gone(host: Host, numbers: set[tuple[str, int]]) -> bool:
    """None of those objects is there any more."""
    for kind in ("prog", "map", "link"):
        alive = {item["id"] for item in json.loads(host.sh(f"bpftool -j {kind} show"))}
        if any((kind, number) in numbers for number in alive):
            return False
    return True


def everything(host: Host) -> dict[str, Any]:
    """What S31 is about, of the pretend host and the machine that it is on."""

    def text(command: str) -> list[str]:
        return re.sub(r"expires \d+sec|age \d+", "", host.sh(command)).splitlines()

    mounts = [
        line.split()[3:5]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(host.folder) in line
    ]
    return {
        "devices": text("ip -d address"),
        "routes": text("ip -4 route show table all") + text("ip -6 route show table all"),
        "rules": text("ip -4 rule") + text("ip -6 rule"),
        "neighbours": text("ip neighbour show nud permanent"),
        "qdiscs": text("tc qdisc show"),
        "filters": text("tc filter show dev eth0 ingress") + text("tc filter show dev eth0 egress"),
        "packet filter": text("nft list ruleset") + text("iptables-save") + text("ip6tables-save"),
        "sysctls": sysctls(host),
        "pins": pins(host),
        "mounts": mounts,
        "processes": members_of(namespace_of(host.pid)),
        "helpers": mentioning(str(host.folder / "state")),
        "files": {str(path) for path in host.folder.rglob("*") if host.bpffs not in path.parents},
        # Containers of other tests may be in the group of all; what is left in there, test_groups looks for.
        "cgroup": sorted(name for name in os.listdir("/sys/fs/cgroup") if name != "datapath"),
    }
