# SPDX-License-Identifier: Apache-2.0
"""Fixtures: machines, and what was built."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.packages.built import ARCHITECTURE, debs_of, wheel_of
from tests.packages.roots import SUITES, Machine, Unfetched

if os.geteuid() != 0:
    pytest.exit("tests/packages needs root: it makes namespaces", returncode=1)


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A fresh machine of each release, for the tests of a module, which are in order."""
    try:
        made = Machine(request.param)
    except Unfetched as error:
        pytest.skip(f"no root of {request.param} to be had here: {error}")
    with closing(made):
        yield made


@pytest.fixture(scope="session")
def debs() -> dict[str, Path]:
    """By package, what `make deb` made."""
    return debs_of(ARCHITECTURE)


@pytest.fixture(scope="session")
def wheel() -> Path:
    """What `make wheel` made."""
    return wheel_of(platform.machine())
