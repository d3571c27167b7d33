# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the devices once, programs as they are when they have just been loaded for every module, a clean connection
table for every test."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

pytest.register_assert_rewrite("tests.bpf.fixtures")

from datapath.kernel import netns  # noqa: E402
from tests.bpf import ipsec  # noqa: E402
from tests.bpf.fixtures import Copies, Programs, Topology, booted_for  # noqa: E402

MakePrograms = Callable[..., Programs]
COMMON = ("from_container", "from_uplink", "conn_gc")
_UPTIME = 62  # seconds: as far as tests go back into the time before them, but for those that wait themselves


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    booted_for(_UPTIME)
    made = Topology()
    yield made
    made.close()


@pytest.fixture(scope="session")
def copies(topology: Topology) -> Iterator[Copies]:
    """Lends programs to modules and tests: `with copies.lent(objects=…) as programs`."""
    made = Copies(topology)
    yield made
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with BOTH_UPLINKS is run twice: what arrives from outside has an Ethernet header, and has none. A test
    marked `ethernet` needs what a test run does not have without one: segments, sums of the device, the way in again of
    what was queued."""
    if "loaded" in metafunc.fixturenames and getattr(metafunc.module, "BOTH_UPLINKS", False):
        ways = {"Ethernet": False}
        if not metafunc.definition.get_closest_marker("ethernet"):
            ways["bare"] = True
        metafunc.parametrize("loaded", ways.values(), ids=ways.keys(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def loaded(copies: Copies, request: pytest.FixtureRequest) -> Iterator[Programs]:
    with copies.lent(bare=getattr(request, "param", False)) as made:
        yield made


@pytest.fixture
def programs(topology: Topology, loaded: Programs) -> Iterator[Programs]:
    """The module's programs, without connections; the test runs in the host's namespace."""
    loaded.forget()
    with netns.enter(topology.host):
        yield loaded


@pytest.fixture
def make_programs(topology: Topology, copies: Copies) -> Iterator[MakePrograms]:
    """Programs of the test's own, with other map sizes or settings: those that containers and the outside meet."""
    with ExitStack() as stack:

        def make(**how: object) -> Programs:
            return stack.enter_context(copies.lent(**{"objects": COMMON, **how}))

        with netns.enter(topology.host):
            yield make


@pytest.fixture
def policies(programs: Programs) -> Iterator[ipsec.Policies]:
    """Writes the rows of IPsec policies."""
    before = programs.maps["host"][0]
    yield functools.partial(ipsec.write, programs)
    programs.maps["host"][0] = before
    programs.maps["xfrm_policies"].delete_many(list(programs.maps["xfrm_policies"]))
