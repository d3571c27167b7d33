# SPDX-License-Identifier: Apache-2.0
"""Roots of other releases with their container runtimes, made once. `python -m tests.doors.root SUITE` says where."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.packages.roots import CACHE, NETWORK, PATIENCE, Unfetched, proxies

# What a root has: every client, what the plugins need, and what looks at networks.
CLIENTS = "docker.io,docker-cli,docker-compose,podman,netavark,conmon,catatonit,containerd,runc"
INSIDE = "busybox-static,iproute2,iptables,nftables,procps,mount,util-linux,libbpf1,libelf1"
PYTHON = "python3,python3-cffi-backend,python3-click,python3-pyroute2"
# What unstable's archive says of its age is not always so.
_APT = ("Apt::Install-Recommends", "Acquire::Check-Valid-Until", "Acquire::Check-Date")


def client_root(suite: str) -> Path:
    """The folder with the root of a release. Unfetched: Debian's archive cannot be asked."""
    found = CACHE / f"{suite}-clients"
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as new:
            made = Path(new) / "root"
            argv = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{NETWORK}", "mmdebstrap", "--variant=apt"]
            options = [f'--aptopt={name} "false"' for name in _APT]
            include = f"--include={CLIENTS},{INSIDE},{PYTHON}"
            done = subprocess.run(
                [*argv, *options, include, *proxies(), suite, str(made)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            if done.returncode:
                raise Unfetched(done.stderr[-500:])
            made.rename(found)
    return found


if __name__ == "__main__":
    print(client_root(sys.argv[1]))
