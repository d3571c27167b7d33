# SPDX-License-Identifier: Apache-2.0
"""S25 and S30: what goes wrong around Docker's driver. Requests as dockerd sends them, without that daemon."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net.docker_door import Door, create_network, starting, stopping
from tests.net.doors import Space, spaces_of_a_test
from tests.net.hosts import Host

MOST = 40 << 10  # kB that the driver may have, whatever it did


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Callable[[], Space]]:
    yield from spaces_of_a_test(tmp_path)


def doctor(host: Host) -> str:
    return host.try_ctl("doctor").stdout


# ---- the process ---------------------------------------------------------------------------------------------


def test_s25_the_driver_is_small_whatever_it_did(host: Host) -> None:
    """Also if it was the first that needed the packet programs, as after a restart of the machine; and while it loads
    them."""
    with contextlib.closing(Door(host)) as door:
        door.ask(create_network(1))
        for number in range(2, 12):
            door.ask(*starting(1, number, f"10.5.0.{number}/16", f"{8000 + number}:80"))
        assert door.memory() < MOST and door.memory("VmHWM") < MOST + (4 << 10)
    for name in host.sh("ip -br link").split():
        if name.startswith("dp-"):
            host.try_(f"ip link delete {name.partition('@')[0]}")
    shutil.rmtree(host.bpffs / "datapath")
    with contextlib.closing(Door(host)) as door:
        door.ask(*starting(1, 20, "10.5.0.20/16", "8020:80"))
        assert (host.bpffs / "datapath").exists()
        assert door.memory() < MOST and door.memory("VmHWM") < MOST + (4 << 10)
        for _ in range(3):
            door.ask(create_network(2, "10.6.0.0/16", **{"com.docker.network.x": ["x" * 100] * 100_000}))
        for number in (*range(2, 12), 20):
            door.ask(*stopping(1, number))
        assert door.memory() < MOST
        assert door.memory() < MOST
