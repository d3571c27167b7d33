# SPDX-License-Identifier: Apache-2.0
"""`datapathctl why`: what rows and programs say of a connection is one, is what becomes of it, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath.dataplane.layout import MAPS
from datapath.dataplane.programs import Dataplane
from tests.net.hosts import FAR, HOST, OUTSIDE, Host
from tests.net.wire import fails, serving, start_container

PAIRS = [
    ("app", "db", "tcp 5432", "allowed", ""),
    ("app", "db", "tcp 80", "refused", "DROP_ICC"),
    ("cron", "db", "icmp", "refused", "DROP_ICC"),
    ("app", "web", "tcp 80", "refused", "DROP_ISOLATED"),
    ("app", FAR, "udp 53", "allowed", ""),
    ("app", FAR, "icmp", "allowed", ""),
    ("hidden", FAR, "tcp 80", "refused", "DROP_INTERNAL"),
    ("hidden", HOST, "tcp 80", "refused", "DROP_INTERNAL"),
    ("hidden", "host", "tcp 80", "allowed", ""),
    ("app", "host", "icmp", "allowed", ""),
    ("host", "db", "tcp 5432", "allowed", ""),
    ("app", ":8080", "", "allowed", ""),
    ("web", ":8080", "", "allowed", ""),
    (OUTSIDE, ":8080", "", "allowed", ""),
    (FAR, ":8080", "", "refused", "DROP_DENIED"),
    (OUTSIDE, ":8081", "", "allowed", ""),
    (OUTSIDE, "db", "tcp 5432", "refused", "DROP_DIRECT"),
    ("web", "page", "tcp 80 -6", "allowed", ""),
    ("host", "web", "tcp 80 -6", "allowed", ""),
]
COUNTED = {reason for *_, reason in PAIRS} | {"DELIVERED", "TO_OUTSIDE"}


class Topology:
    """app, db and cron on shop, without icc; web and page on front, with IPv6; hidden on vault, which is internal."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl("network create --subnet 10.8.0.0/24 -o com.docker.network.bridge.enable_icc=false shop")
        host.ctl("network create --subnet 10.9.0.0/24 --ipv6 --subnet fd09::/64 front")
        host.ctl("network create --subnet 10.10.0.0/24 --internal vault")
        publish = f"-p 8080:5432,allow={OUTSIDE},allow=10.0.0.0/8 --expose 5432"
        self.db = start_container(host, "db", f"--network shop {publish}")
        self.app = start_container(host, "app", "--network shop --link db:db")
        for name, network in (("cron", "shop"), ("web", "front"), ("page", "front"), ("hidden", "vault")):
            start_container(host, name, f"--network {network}")

    def why(self, words: str, code: int = 0) -> dict[str, Any]:
        done = self.host.try_ctl(f"why {words} --format json")
        assert done.returncode == code, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def maps(self) -> dict[str, Any]:
        """All rows, and the counters of what nobody sends by himself, as kernels do who look for their neighbours."""
        found = Dataplane.find(self.host.bpffs / "datapath")
        assert found is not None
        with found:
            rows = {
                name: sorted(map(repr, found.map(name).read_all())) for name in MAPS if name != "counters"
            }
            return rows | {name: count for name, count in found.counters_sum().items() if name in COUNTED}


@pytest.fixture(scope="module")
def topology(shared_host: Host) -> Iterator[Topology]:
    yield Topology(shared_host)
    shared_host.ctl("rm -f db app cron web page hidden")
    shared_host.ctl("network rm shop front vault")


@pytest.mark.parametrize(("source", "destination", "service", "verdict", "reason"), PAIRS)
def test_p10_rows_and_programs_say_the_same(
    topology: Topology, source: str, destination: str, service: str, verdict: str, reason: str
) -> None:
    """And who looks leaves no row, and nothing counted."""
    before = topology.maps()
    found = topology.why(f"{source} {destination} {service}")
    assert (found["Verdict"], found["Reason"], found["Agrees"]) == (verdict, reason, True), found
    assert topology.maps() == before


def test_what_it_says_is_what_becomes_of_a_connection(topology: Topology) -> None:
    app, db = topology.app, topology.db
    with serving(db, "tcp", 5432), serving(db, "tcp", 80):
        for port, verdict in ((5432, "allowed"), (80, "refused")):
            assert topology.why(f"app db tcp {port}")["Verdict"] == verdict
            assert (fails(app, "tcp", db.ip, port) == 0) == (verdict == "allowed")


def test_an_expectation_that_is_not_met_ends_with_1(topology: Topology) -> None:
    topology.why("app db tcp 5432 --expect allow")
    topology.why("app db tcp 5432 --expect deny", code=1)
    topology.why("app db tcp 80 --expect deny")
    topology.why("app db tcp 80 --expect allow", code=1)


def test_p10_a_corrupted_row_is_told(topology: Topology) -> None:
    """The rows of the store say that members may not talk; the programs' row says that they may."""
    host = topology.host
    found = Dataplane.find(host.bpffs / "datapath")
    assert found is not None
    with found:
        links = found.links
        rows = dict(links.read_all())
        links.delete_many(list(rows))
        try:
            told = topology.why("app db tcp 5432", code=1)
            assert (told["Verdict"], told["Agrees"]) == ("allowed", False)
            assert (told["Program"]["verdict"], told["Program"]["reason"]) == ("refused", "DROP_ICC")
            text = host.try_ctl("why app db tcp 5432").stdout
            assert "the packet programs say otherwise: refused (DROP_ICC)" in text
        finally:
            links.update_many(rows)
    assert topology.why("app db tcp 5432")["Agrees"] is True


def test_what_if_policies_were_in_force(topology: Topology, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text("policies: {db: {for: db, in: {allow: [cron]}}}\n")
    words = f"app db tcp 5432 --if {file}"
    found = topology.why(f"{words} --expect deny")
    assert (found["Policy"], found["Reason"], found["Agrees"]) == ("db", "DROP_IN", None)
    text = topology.host.ctl(f"why {words}")
    assert 'policy db lets in "cron"; app is without labels  ← refused here' in text
    assert "the packet programs were not asked: they know nothing of these policies" in text
