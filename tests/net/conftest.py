# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from datapath.store.etcd.client import EtcdCluster
from tests.net.cluster import Cluster
from tests.net.etcd import Etcd
from tests.net.hosts import Host
from tests.net.lan import on_both_sides

if os.geteuid() != 0:
    pytest.exit("tests/net needs root: it makes network namespaces", returncode=1)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A pretend host of this test alone, with tcx where the kernel has it."""
    with ExitStack() as stack:
        made = Host(tmp_path)
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A pretend host for all tests of a module: each cleans up its own containers."""
    with ExitStack() as stack:
        made = Host(tmp_path_factory.mktemp("host"))
        stack.callback(made.close)
        yield made


@pytest.fixture
def emptied(shared_host: Host) -> Iterator[Host]:
    """The module's host with nothing on it: what a test has made is taken away, and `doctor` finds nothing."""
    yield shared_host
    shared_host.end_background()
    if left := shared_host.ctl("ps -aq").split():
        shared_host.ctl(["rm", "-f", *left])
    if left := shared_host.ctl("network ls -q --filter type=custom").split():
        shared_host.ctl(["network", "rm", "-f", *left])  # some are other owners'
    found = shared_host.try_ctl("doctor")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture
def lan(emptied: Host) -> Host:
    """The same with its uplink on a LAN of both IP versions, and with the machine outside as its router."""
    return on_both_sides(emptied)


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes pretend hosts: `make_host(attach="clsact", config={"icc": False})`."""
    with ExitStack() as stack:

        def make(**options: Any) -> Host:
            folder = tmp_path / f"host{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            made = Host(folder, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`keep(prepare, …)`: what `prepare(make_host, …)` has made, once for all tests of a module that ask for the same
    with equal arguments. Each leaves it as it was found."""
    made: dict[tuple[Any, ...], Any] = {}
    with ExitStack() as stack:

        def make(**options: Any) -> Host:
            found = Host(tmp_path_factory.mktemp("host"), **options)
            stack.callback(found.close)
            return found

        def kept(prepare: Callable[..., Any], *arguments: Any) -> Any:
            if (prepare, *arguments) not in made:
                made[prepare, *arguments] = prepare(make, *arguments)
            return made[prepare, *arguments]

        yield kept


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pretend hosts and etcd, for all tests of a module: each cleans up what it made."""
    with ExitStack() as stack:
        made = Cluster(tmp_path_factory.mktemp("cluster"))
        stack.callback(made.close)
        yield made


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters of a test alone: `make_cluster(3, servers=3, mtu=1400)`."""
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Cluster:
            folder = tmp_path / f"cluster{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            made = Cluster(folder, *arguments, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with_servers = Etcd(tmp_path_factory.mktemp("etcd"))
    try:
        yield with_servers
    finally:
        with_servers.close()


@pytest.fixture
def etcd(etcd_server: Etcd) -> Etcd:
    """One server, without keys."""
    etcd_server.etcdctl("del --prefix datapath/")
    return etcd_server


@pytest.fixture
def store(etcd: Etcd) -> Iterator[EtcdCluster]:
    """A client of it, in whose namespace the test is."""
    with etcd.client() as client:
        yield client
