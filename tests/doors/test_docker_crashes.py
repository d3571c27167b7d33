# SPDX-License-Identifier: Apache-2.0
"""S25 and S30: dockerd 26 and 28 and the driver are killed while much is under way; and two daemons at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net import test_docker_crashes
from tests.net.dockerd import DockerHost
from tests.net.test_docker_crashes import host as host

globals().update(
    {name: test for name, test in vars(test_docker_crashes).items() if name.startswith("test_s25")}
)


@pytest.fixture(scope="module", params=["trixie", "sid"])
def shared(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    client_root: Callable[[str], Path],
) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"), root=client_root(request.param))
    with contextlib.closing(made):
        test_docker_crashes.begin(made)
        yield made
