# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a pretend host, and roots of other releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doors import root
from tests.net.conftest import host as host
from tests.packages.roots import Unfetched


@pytest.fixture(scope="session")
def client_root() -> Callable[[str], Path]:
    """Makes the root of a release, once for all runs; skips where the archive cannot be asked."""

    def make(suite: str) -> Path:
        try:
            return root.client_root(suite)
        except Unfetched as error:
            pytest.skip(f"no root of {suite} to be had here: {error}")

    return make
