# SPDX-License-Identifier: Apache-2.0
"""S25: containerd 1.7 and 2 with the CNI plugin, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.net import clients
from tests.net.clients import Machine
from tests.net.hosts import Host


@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_s25_containerd_runs_containers_with_cni(
    host: Host, client_root: Callable[[str], Path], suite: str
) -> None:
    host.preloaded = True
    machine = Machine(host, client_root(suite))
    try:
        clients.containerd(machine)
        clients.runs_with_ctr(host, machine)
    finally:
        machine.close()
