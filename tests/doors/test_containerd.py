# SPDX-License-Identifier: Apache-2.0
"""S25: containerd 1.7 and 2 with the CNI plugin, unmodified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net import clients
from tests.net.clients import Machine
from tests.net.hosts import Host


@door("containerd", 1, 2)
@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_s25_containerd_runs_containers_with_cni(
    request: pytest.FixtureRequest, host: Host, client_root: Callable[[str], Path], suite: str
) -> None:
    host.preloaded = True
    machine = Machine(host, client_root(suite))
    with contextlib.closing(machine):
        table.of_machine(request, machine.sh)
        clients.containerd(machine)
        clients.runs_with_ctr(host, machine)
