# SPDX-License-Identifier: Apache-2.0
"""S25: dockerd 26 and 28, each with its own client: the same tests as with the one of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net import test_compose, test_docker
from tests.net.dockerd import DockerHost
from tests.net.test_compose import project as project
from tests.net.test_docker import host as host

for _module in (test_docker, test_compose):
    globals().update({name: test for name, test in vars(_module).items() if name.startswith("test_s25")})


@pytest.fixture(scope="module", params=["trixie", "sid"])
def shared(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    client_root: Callable[[str], Path],
) -> Iterator[DockerHost]:
    made = DockerHost(tmp_path_factory.mktemp("docker"), root=client_root(request.param))
    with contextlib.closing(made):
        test_docker.begin(made)
        yield made
