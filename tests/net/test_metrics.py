# SPDX-License-Identifier: Apache-2.0
"""What is seen of a host at one moment, as programs get it: in one piece, as metrics, and in `top`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from datapath.config.settings import Settings
from datapath.engine.engine import Engine
from datapath.kernel.netns import enter
from datapath.telemetry import snapshot
from tests.net.hosts import Host
from tests.net.wire import Container, opened, start_container

Keep = Callable[..., Any]
CONNECTIONS, PORT, REFUSED = 5, 5432, 7
POLICY = "policies: {db: {for: db, in: {allow: ['app:5432']}}}"


class Shop:
    """On a network with flows `app` has connected to `db`, and `cron` has tried to, whom the policy refuses."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl("network create --subnet 10.8.0.0/24 -o com.datapath.flows=true shop")
        host.ctl("network create --subnet 10.9.0.0/24 plain")
        self.app, self.db = (self.start(name) for name in ("app", "db"))
        self.cron = self.start("cron", "--label role=batch --network plain")
        (host.folder / "db.yaml").write_text(POLICY)
        host.ctl(f"policy apply -f {host.folder / 'db.yaml'}")
        with opened(self.db) as listening:
            listening.bind((self.db.ip, PORT))
            listening.listen()
            for _ in range(CONNECTIONS):
                with opened(self.app) as one:
                    one.connect((self.db.ip, PORT))
                    listening.accept()[0].close()
        for _ in range(REFUSED):
            refuse(self.cron, self.db)

    def start(self, name: str, options: str = "") -> Container:
        return start_container(self.host, name, f"--network shop {options}")

    def snapshot(self, **options: Any) -> snapshot.Snapshot:
        settings = Settings.from_env(self.host.env or {})
        with enter(self.host.path):
            return snapshot.take(Engine(settings), **options)


def refuse(client: Container, server: Container, port: int = PORT) -> None:
    """It is told so at once, with ICMP: the program has counted one packet."""
    with opened(client) as one, pytest.raises(OSError):
        one.connect((server.on("shop")["IPAddress"], port))


def _shop(make: Callable[..., Host]) -> Shop:
    return Shop(make())


@pytest.fixture
def shop(keep: Keep) -> Shop:
    found: Shop = keep(_shop)
    return found


def test_a_snapshot_has_members_networks_totals_and_what_each_policy_has_decided(shop: Shop) -> None:
    found = shop.snapshot(policies=True, live=100)
    assert [(one.name, sorted(one.networks)) for one in found.members] == [
        ("app", ["shop"]),
        ("cron", ["plain", "shop"]),
        ("db", ["shop"]),
    ]
    assert found.members[1].labels == {"role": "batch"} and found.members[1].owner == "datapath"
    watched = {one.name: (one.subnets, one.watched) for one in found.networks}
    assert watched["shop"] == (("10.8.0.0/24",), True) and watched["plain"] == (("10.9.0.0/24",), False)
    tcp = {(line.source, line.verdict, line.reason): line for line in found.totals if line.protocol == "tcp"}
    assert tcp["app", "allowed", ""].connections == CONNECTIONS
    assert tcp["cron", "refused", "DROP_IN"].sent_packets == REFUSED
    assert sum(line.connections for line in found.live if line.source == "app") == CONNECTIONS
    ((glance, openings, refused),) = found.policies
    assert (glance.name, openings, refused) == ("db", CONNECTIONS, REFUSED)
    assert found.stats.counters["DROP_IN"][0] == REFUSED


def test_a_snapshot_of_one_network_has_what_is_about_it_alone_and_becomes_json(shop: Shop) -> None:
    found = (json.dumps(snapshot.as_json(shop.snapshot(network=name, live=9))) for name in ("", "plain"))
    whole, part = map(json.loads, found)
    assert {line["source"] for line in whole["totals"]} >= {"app", "cron"} and whole["live"]
    assert whole["counters"] == part["counters"] and whole["fill"]["edges"][0] >= 1
    assert [one["name"] for one in part["members"]] == ["cron"] and part["totals"] == part["live"] == []
    assert part["members"][0]["networks"] == {"plain": [shop.cron.on("plain")["IPAddress"]]}
