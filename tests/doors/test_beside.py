# SPDX-License-Identifier: Apache-2.0
"""Beside networks of Docker's and of podman's own, of the releases that are on roots: the same tests as with those of
this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doors.table import door
from tests.doors.test_podman import machine as machine
from tests.net.clients import Machine
from tests.net.hosts import Host
from tests.net.test_coexistence import (
    beside_podmans_own_bridge,
    test_a_container_on_a_bridge_of_dockers_too_leaves_and_answers_by_the_network_that_docker_says,  # noqa: F401
    test_beside_dockers_own_bridges_both_kinds_of_containers_work_and_no_rule_changes,  # noqa: F401
)
from tests.net.test_coexistence import docker as docker


@pytest.fixture(params=["trixie", "sid"])
def docker_root(request: pytest.FixtureRequest, client_root: Callable[[str], Path]) -> Path:
    return client_root(request.param)


@door("podman", 11)
def test_beside_podmans_own_bridge(host: Host, machine: Machine) -> None:
    beside_podmans_own_bridge(host, machine)
