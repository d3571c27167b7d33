# SPDX-License-Identifier: Apache-2.0
"""S25: containerd 1.7 and 2 with the CNI plugin, unmodified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doors import table
from tests.doors.table import door
from tests.net import clients, pods
from tests.net.clients import Machine
from tests.net.hosts import Host


@pytest.fixture(params=["trixie", "sid"])
def machine(
    request: pytest.FixtureRequest, host: Host, client_root: Callable[[str], Path]
) -> Iterator[Machine]:
    host.preloaded = True
    made = Machine(host, client_root(request.param))
    with contextlib.closing(made):
        table.of_machine(request, made.sh)
        yield made


@door("containerd", 1, 2)
def test_s25_containerd_runs_containers_with_cni(host: Host, machine: Machine) -> None:
    clients.containerd(machine)
    clients.runs_with_ctr(host, machine)


@door("containerd", 3)
def test_s25_containerd_runs_pods_as_kubernetes_asks_for_them(host: Host, machine: Machine) -> None:
    """2.1 asks for STATUS, and so is not ready with a configuration that cannot serve."""
    asks = int(machine.sh("containerd --version").split()[2].removeprefix("v").split(".")[0]) >= 2
    pods.runs_pods(host, machine, "1.1.0" if asks else "1.0.0")
