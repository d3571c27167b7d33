# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured on: what a reader needs to judge the figures, and nothing that names it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datapath import __version__

SECONDS = 10.0  # for one tool to say its version

TOOLS: dict[str, tuple[str, ...]] = {
    "iperf3": ("iperf3", "--version"),
    "sockperf": ("sockperf", "--version"),
    "wrk": ("wrk", "-v"),
    "nginx": ("nginx", "-v"),
    "iptables": ("iptables", "--version"),
    "nft": ("nft", "--version"),
    "dockerd": ("dockerd", "--version"),
    "docker": ("docker", "--version"),
    "docker-proxy": ("docker-proxy", "--version"),
    "containerd": ("containerd", "--version"),
    "runc": ("runc", "--version"),
    "ip": ("ip", "-V"),
    "ethtool": ("ethtool", "--version"),
}

OF_DAEMON = ("dockerd", "docker-proxy", "containerd", "runc", "iptables", "nft")

SYSCTLS = (
    "net/bridge/bridge-nf-call-iptables",
    "net/core/bpf_jit_enable",
    "net/core/default_qdisc",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_sack",
    "net/ipv4/tcp_slow_start_after_idle",
    "net/ipv4/tcp_timestamps",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_window_scaling",
    "net/ipv4/tcp_wmem",
    "net/netfilter/nf_conntrack_max",
    "kernel/bpf_stats_enabled",
)

OFFLOADS = (
    "rx-checksumming",
    "tx-checksumming",
    "scatter-gather",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
)

CPU = Path("/sys/devices/system/cpu")


def describe(docker: str = "docker", dockerd: str = "dockerd") -> dict[str, Any]:
    """Everything, by subject. What cannot be found out is left out."""
    tools: dict[str, tuple[str, ...]] = TOOLS | {
        "docker": (docker, "--version"),
        "dockerd": (dockerd, "--version"),
    }
    if os.path.isdir(dockerd):  # the root of another system, with programs of its own
        for name in OF_DAEMON:
            tools[name] = ("chroot", dockerd, name, "--version")
    found: dict[str, Any] = {
        "datapath": _datapath(),
        "kernel": {"release": platform.release(), "build": platform.version(), "machine": platform.machine()},
        "cpu": _cpu(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "virtualisation": {kind: _said("systemd-detect-virt", f"--{kind}") for kind in ("vm", "container")},
        "tools": {name: _version(command) for name, command in tools.items()},
        "python": platform.python_version(),
        "veth_offloads": _offloads(),
        "sysctls": {name.replace("/", "."): _text(Path("/proc/sys") / name) for name in SYSCTLS},
        "mitigations": {path.name: _text(path) for path in _listed(CPU / "vulnerabilities")},
        "load_before": load(),
    }
    return _without_empty(found)


def load() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _without_empty(found: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in kept.items() if value not in ("", {}, None)}


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text().split())
    except OSError:
        return ""


def _listed(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _run(*command: str, cwd: Path | None = None) -> str:
    """What it said on stdout, or else on stderr (nginx); empty when it cannot be run."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() or done.stderr.strip()


def _said(*command: str) -> str:
    return _run(*command).partition("\n")[0]


def _version(command: Iterable[str]) -> str:
    """The first line that has a figure in it (sockperf's first is a line of dashes), without a copyright."""
    lines = (line.strip(" =-") for line in _run(*command).splitlines())
    first = next((line for line in lines if re.search(r"\d\.\d", line)), "")
    return re.sub(r"\s*(\[[^]]*]\s*)?(\(C\)|Copyright).*", "", first)


def _datapath() -> dict[str, str]:
    """The version, and the commit if this is a checkout; "+" when files in it were changed."""
    root = Path(__file__).parents[2]
    found = {"version": __version__}
    if (root / ".git").exists():
        commit = _run("git", "rev-parse", "--short=12", "HEAD", cwd=root)
        if re.fullmatch(r"[0-9a-f]+", commit):
            changed = _run("git", "status", "--porcelain", "--untracked-files=no", cwd=root)
            found["commit"] = commit + ("+" if changed else "")
    return found


def _cpu() -> dict[str, Any]:
    """`governor`, `turbo` and the like: nothing in most virtual machines."""
    said = dict(re.findall(r"^(model name|Hardware|CPU part)\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE))
    return {
        "model": said.get("model name") or said.get("Hardware") or said.get("CPU part", ""),
        "count": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "smt": _text(CPU / "smt/active"),
        "governor": _text(CPU / "cpu0/cpufreq/scaling_governor"),
        "driver": _text(CPU / "cpu0/cpufreq/scaling_driver"),
        "max_khz": _text(CPU / "cpu0/cpufreq/cpuinfo_max_freq"),
        "no_turbo": _text(CPU / "intel_pstate/no_turbo"),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
    }


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _offloads() -> dict[str, str]:
    """Of a veth pair that lives for the length of this question, in a network namespace of its own."""
    script = "ip link add veth0 type veth peer name veth1 && ethtool -k veth0"
    said = _run("unshare", "--net", "sh", "-c", script)
    found = dict(re.findall(r"^([a-z-]+): (on|off)\b", said, re.MULTILINE))
    return {name: found[name] for name in OFFLOADS if name in found}
