# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a pretend host, and roots of other releases."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.net.conftest import host as host
from tests.packages.roots import CACHE, NETWORK, PATIENCE, proxies

# What a root has: every client, what the plugins need, and what looks at networks.
CLIENTS = "docker.io,docker-cli,docker-compose,podman,netavark,conmon,catatonit,containerd,runc"
INSIDE = "busybox-static,iproute2,iptables,nftables,procps,mount,util-linux,libbpf1,libelf1"
PYTHON = "python3,python3-cffi-backend,python3-click,python3-pyroute2"
# What unstable's archive says of its age is not always so.
_APT = ("Apt::Install-Recommends", "Acquire::Check-Valid-Until", "Acquire::Check-Date")


@pytest.fixture(scope="session")
def client_root() -> Callable[[str], Path]:
    """Makes the root of a release, once for all runs; skips where the archive cannot be asked."""

    def make(suite: str) -> Path:
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
                    pytest.skip(f"no root of {suite} to be had here: {done.stderr[-500:]}")
                made.rename(found)
        return found

    return make
