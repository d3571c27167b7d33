# SPDX-License-Identifier: Apache-2.0
"""Policies and real sockets: who is refused hears of it at once, who may goes on, and what is open stops with a change.
They are put into force in the maps themselves, without a command."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest

from datapath.dataplane.programs import Dataplane
from datapath.model.policies import By
from datapath.plan.policies.builtin import world_of
from datapath.plan.policies.compiling import plan_rows
from datapath.plan.policies.reading import read_policies
from datapath.store.sqlite import SQLiteStore
from tests.net.hosts import FAR, HOST, PATIENCE, Host
from tests.net.wire import Container, call, counters, fails, opened, rises, serving, start_container

GATEWAYS = ("10.77.0.1", "fd00:77::1")
DB = "policies: {db: {for: db, in: {allow: ['app:5432', 'app:53/udp']}}}"
Put = Callable[[str], Callable[[], Mapping[By, tuple[int, int]]]]


class Shop(NamedTuple):
    host: Host
    app: Container
    cron: Container
    db: Container
    put: Put


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, list[Container]]]:
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        host.ctl("network create --subnet 10.77.0.0/24 --subnet fd00:77::/64 --ipv6 shop")
        yield (
            host,
            [
                start_container(host, name, f"--network shop {more}")
                for name, more in (("app", ""), ("cron", ""), ("db", "-p 8080:80"))
            ],
        )
    finally:
        host.close()


@pytest.fixture
def shop(running: tuple[Host, list[Container]]) -> Iterator[Shop]:
    host, (app, cron, db) = running
    dataplane = Dataplane.find(host.bpffs / "datapath")
    assert dataplane is not None

    def put(text: str) -> Callable[[], Mapping[By, tuple[int, int]]]:
        with SQLiteStore(host.folder / "state", create=False, reading=True) as store:
            state = store.load()
        own = [ip_address(one) for one in (HOST, *GATEWAYS)]
        rows = plan_rows(read_policies(text, "here"), world_of(state, own, [ip_network("192.0.2.0/24")]))
        dataplane.policies.apply(rows)

        def hits() -> Mapping[By, tuple[int, int]]:
            found = dataplane.policies.hits()
            return {
                by: found[number][:2] for number, by in enumerate(rows.rules, 1) if any(found[number][:2])
            }

        return hits

    with dataplane:
        yield Shop(host, app, cron, db, put)
        dataplane.policies.clear()


def own(container: Container, version: int) -> str:
    return container.ip if version == 4 else container.ip6


@pytest.mark.parametrize(("version", "told"), [(4, errno.EHOSTUNREACH), (6, errno.EACCES)])
def test_p1_who_is_not_let_in_hears_of_it(shop: Shop, version: int, told: int) -> None:
    """As the kernel says it of what is administratively prohibited, over IPv4 and IPv6: at once, or, if connect() has
    its socket still in hand when the error comes, of the repeated SYN."""
    hits, anywhere = shop.put(DB), "0.0.0.0" if version == 4 else "::"
    with serving(shop.db, "tcp", 5432, anywhere), serving(shop.cron, "tcp", 80, anywhere):
        assert call(shop.app, "tcp", own(shop.db, version), 5432).seen == own(shop.app, version)
        before = counters(shop.host)
        assert fails(shop.cron, "tcp", own(shop.db, version), 5432, PATIENCE) == told
        assert fails(shop.host, "tcp", own(shop.db, version), 5432, PATIENCE) == told
        refused = rises(before, counters(shop.host))
        assert refused.keys() == {"DROP_IN"} and refused["DROP_IN"] >= 2
        assert call(shop.db, "tcp", own(shop.cron, version), 80).seen == own(shop.db, version)
    assert hits() == {By("db", 1): (1, 0), By("db", 0): (0, refused["DROP_IN"])}


def test_p13_answers_of_udp_come_back_and_nothing_else(shop: Shop) -> None:
    shop.put(f"{DB[:-1]}, app: {{for: app, in: {{allow: []}}}}}}")
    with serving(shop.db, "udp", 53), serving(shop.app, "udp", 9999):
        assert call(shop.app, "udp", shop.db.ip, 53).peer == shop.db.ip
        assert fails(shop.db, "udp", shop.app.ip, 9999, PATIENCE) == errno.EHOSTUNREACH


def test_p5_a_published_port_is_for_whom_the_container_lets_in(shop: Shop) -> None:
    text = f"policies: {{db: {{for: db, in: {{allow: ['{FAR}:80']}}}}}}"
    shop.put(text)
    with serving(shop.db, "tcp", 80):
        assert call(shop.host.outside, "tcp", HOST, 8080, source=(FAR, 0)).seen == FAR
        assert fails(shop.host.outside, "tcp", HOST, 8080) == errno.ETIMEDOUT
        assert fails(shop.app, "tcp", HOST, 8080, PATIENCE) == errno.EHOSTUNREACH
        assert fails(shop.host, "tcp", HOST, 8080) in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
        shop.put(text.replace("in:", "out: {allow: []}, in:"))
        assert call(shop.host.outside, "tcp", HOST, 8080, source=(FAR, 0)).seen == FAR, "it answers"
        assert fails(shop.db, "tcp", FAR, 80, PATIENCE) == errno.EHOSTUNREACH


def test_p7_what_is_open_stops_when_policies_change_and_goes_on_when_they_are_put_back(shop: Shop) -> None:
    shop.put(DB)
    with opened(shop.db) as listening, opened(shop.app) as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((shop.db.ip, 5432))
        listening.listen()
        client.connect((shop.db.ip, 5432))
        server, _ = listening.accept()
        with server:
            server.settimeout(client.gettimeout())
            client.sendall(b"before")
            assert server.recv(100) == b"before"
            hits = shop.put(DB.replace("app:5432", "cron:5432"))
            before = counters(shop.host)
            client.sendall(b"after")
            refused = rises(before, counters(shop.host))
            assert refused.keys() == {"DROP_IN"}, "its next packet, and what is sent again"
            assert hits().keys() == {By("db", 0)}
            shop.put(DB)
            assert server.recv(100) == b"after", "it was sent again"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
