# SPDX-License-Identifier: Apache-2.0
"""Policies in force (SEE.md, 5.4): applied, changed, removed, and followed when containers come and go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from datapath.dataplane.programs import Dataplane
from tests.net import faults, forked
from tests.net.hosts import HOST, OUTSIDE, Host
from tests.net.test_doctor import doctor
from tests.net.wire import Container, fails, serving, start_container

MakeHost = Callable[..., Host]
DB = 'policies: {db: {for: {label: role=db}, in: {allow: ["role=app:5432"]}}}\n'


class Shop:
    """app, cron and db on shop, which has icc."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl("network create --ipv6 --subnet 10.8.0.0/24 --subnet fd08::/64 shop")
        self.app, self.cron, self.db = (
            self.start(name, f"--label role={role}")
            for name, role in (("app", "app"), ("cron", "batch"), ("db", "db"))
        )

    def start(self, name: str, options: str = "") -> Container:
        return start_container(self.host, name, f"--network shop {options}")

    def apply(self, text: str, options: str = "") -> str:
        path = self.host.folder / "some.yaml"
        path.write_text(text)
        return self.host.ctl(f"policy apply -f {path} {options}")

    def refused(self, text: str) -> str:
        path = self.host.folder / "some.yaml"
        path.write_text(text)
        return self.host.refused(f"policy apply -f {path}").replace(str(path), "FILE")

    def why(self, words: str) -> dict[str, Any]:
        """Which both, rows and programs, agree in."""
        found: dict[str, Any] = json.loads(self.host.ctl(f"why {words} --format json"))
        return found

    def rows(self, words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.host.ctl(f"{words} --format json").splitlines()]

    def opens(self, client: Container, port: int = 5432, address: str = "") -> bool:
        """What becomes of a connection; `why` says the same of it."""
        passes = fails(client, "tcp", address or self.db.ip, port) == 0
        words = f"{client.name} db tcp {port}" + (" -6" if ":" in address else "")
        assert self.why(words)["Verdict"] == ("allowed" if passes else "refused")
        return passes

    def generation(self) -> int:
        found = Dataplane.find(self.host.bpffs / "datapath")
        assert found is not None
        with found:
            return found.policies.generation()


@pytest.fixture
def shop(make_host: MakeHost) -> Shop:
    return Shop(make_host())


def test_p1_p2_p14_a_policy_is_in_force_when_it_is_applied_and_gone_when_it_is_removed(shop: Shop) -> None:
    """By both families; refused is refused at once, and what each rule has decided is counted."""
    with serving(shop.db, "tcp", 5432, "::"):
        assert shop.opens(shop.cron)
        assert shop.apply(DB) == "db created"
        for address in (shop.db.ip, shop.db.ip6):
            assert shop.opens(shop.app, address=address)
            assert not shop.opens(shop.cron, address=address)
        assert fails(shop.cron, "tcp", shop.db.ip, 5432) not in (0, 110), "rejected, not left to time out"
        hits = {(one["Rule"]): (one["Hits"], one["Refused"]) for one in shop.rows("policy hits")}
        assert hits[1] == (2, 0) and hits[0][0] == 0 and hits[0][1] >= 3
        (listed,) = shop.rows("policy ls")
        assert (listed["Name"], listed["For"], listed["In"], listed["Matches"]) == (
            "db",
            "role=db",
            "1 allow",
            1,
        )
        assert (listed["Hits"], listed["Refused"]) == (2, hits[0][1])
        assert doctor(shop.host) == []
        assert shop.apply(DB) == "db unchanged"
        assert shop.apply(DB.replace("role=app:5432", "role=batch:5432")) == "db configured"
        assert shop.opens(shop.cron) and not shop.opens(shop.app)
        assert shop.host.ctl("policy rm db") == "db"
        assert shop.opens(shop.app) and shop.opens(shop.cron)
        assert shop.generation() == 0
        assert doctor(shop.host) == []


def test_who_comes_later_is_judged_from_its_first_packet(shop: Shop) -> None:
    """P12: what a container's `out` is closed to does not hear of it, though its first act is to send."""
    shop.apply('policies: {mute: {for: "mute*", out: {allow: []}}, db: {for: db, in: {allow: [late]}}}')
    with serving(shop.db, "tcp", 5432):
        late = shop.start("late")
        assert shop.opens(late)
        for number in range(3):
            name = f"mute{number}"
            shop.host.ctl(
                ["run", "--name", name, "--network", "shop", "sh", "-c", f"nc -w 1 {shop.db.ip} 5432 || true"]
            )
        refused = {one["Policy"]: one["Refused"] for one in shop.rows("policy hits") if one["Rule"] == 0}
        assert refused["mute"] >= 3
        shop.host.ctl("rename late later")
        assert not shop.opens(Container(shop.host, "later"))


def test_p19_labels_only_narrow(shop: Shop) -> None:
    shop.apply(DB)
    shop.host.ctl("rm -f db")
    shop.db = shop.start("db", "--label role=db --label com.datapath.in=any")
    with serving(shop.db, "tcp", 5432):
        assert not shop.opens(shop.cron) and shop.opens(shop.app)
        shop.host.ctl("policy rm db")
        assert shop.opens(shop.cron)
        closed = shop.start("closed", "--label com.datapath.out=host")
        assert not shop.opens(closed)


def test_a_policy_that_nobody_would_enforce_is_refused_and_nothing_changes(shop: Shop) -> None:
    shop.apply(DB)
    before = shop.generation()
    assert shop.refused('policies: {a: {for: app, out: {allow: ["api.example.com:443"]}}}') == (
        'datapathctl: FILE:1: DNS names are not enforced yet: allow addresses in place of "api.example.com", or, '
        'if it is a container\'s, write {name: "api.example.com"}'
    )
    assert shop.refused("policies: {a: {for: app, in: {rate: 20/s}}}") == (
        "datapathctl: FILE:1: policy a: rate is not enforced yet: leave it out"
    )
    shop.host.ctl("network create -o com.datapath.mode=nftables --subnet 10.88.0.0/24 classic")
    shop.host.ctl("run -d --name old --network classic sleep 3600")
    assert shop.refused("policies: {a: {for: old, in: {allow: []}}}") == (
        "datapathctl: policy a is about old on network classic, where packets do not pass the packet programs: "
        "nothing was changed"
    )
    shop.apply("policies: {a: {for: none, in: {allow: []}}}")
    line = shop.host.refused("run -d --name none --network classic sleep 3600")
    assert line.endswith(
        "policy a is about none on network classic, where packets do not pass the packet programs: nothing was changed"
    )
    shop.host.ctl("service create --network shop -p 8089:80 --selector role=app svc")
    assert shop.refused("policies: {s: {for: {name: app, published: 8089}, in: {allow: []}}}") == (
        "datapathctl: policy s is about port 8089, which service svc publishes, and is not enforced there: leave "
        "published: out, which makes it about all who come in"
    )
    assert [one["Name"] for one in shop.rows("policy ls")] == ["a", "db"]
    assert shop.generation() > before
    assert doctor(shop.host) == []


def test_prune_dry_run_and_export(shop: Shop) -> None:
    shop.apply(DB)
    new = "policies: {app: {for: app, out: {deny: [metadata]}}}"
    assert shop.apply(new, "--dry-run --prune") == "app created (dry run)\ndb removed (dry run)"
    assert [one["Name"] for one in shop.rows("policy ls")] == ["db"]
    exported = shop.host.ctl("policy export")
    assert shop.apply(new, "--prune") == "app created\ndb removed"
    assert shop.apply(exported, "--prune") == "db created\napp removed"
    assert shop.host.ctl("policy export") == exported
    (told,) = json.loads(shop.host.ctl("policy inspect db"))
    assert told["In"] == {"Deny": [], "Allow": [{"Rule": 1, "Peer": '"role=app:5432"'}]}
    assert shop.host.refused("policy rm nothing") == "datapathctl: no such policy: nothing"


def test_p10_rows_that_somebody_changed_are_found_and_written_anew(shop: Shop) -> None:
    shop.apply(DB)
    with serving(shop.db, "tcp", 5432):
        for damage, check in ((wrong, "entry-wrong"), (missing, "entry-missing"), (none, "entry-missing")):
            found = Dataplane.find(shop.host.bpffs / "datapath")
            assert found is not None
            with found:
                damage(found)
            assert {line["Check"] for line in doctor(shop.host)} == {check}
            asked = shop.host.try_ctl("why cron db tcp 5432")
            assert asked.returncode == 1, asked.stdout
            assert shop.host.try_ctl("reconcile").stderr == ""
            assert doctor(shop.host) == []
            assert shop.opens(shop.app) and not shop.opens(shop.cron)


def wrong(found: Dataplane) -> None:
    """Nobody is anybody's subject."""
    for key, row in list(found.subjects.read_all()):
        found.subjects[key] = row._replace(subject=0, directions=0)


def missing(found: Dataplane) -> None:
    """Who has no row is closed."""
    found.subjects.delete_many([key for key, _ in found.subjects.read_all()])


def none(found: Dataplane) -> None:
    """No generation is in force."""
    found.policies.clear()


def test_p5_p6_published_ports(shop: Shop) -> None:
    """Who may come by a published port, and that what is published need not have a way out."""
    front = shop.start("front", "-p 8080:80")
    shop.apply(f'policies: {{front: {{for: front, in: {{allow: ["{OUTSIDE}:80"]}}, out: {{allow: []}}}}}}')
    with serving(front, "tcp", 80), serving(shop.db, "tcp", 5432):
        assert fails(shop.host.outside, "tcp", HOST, 8080) == 0
        assert fails(shop.app, "tcp", HOST, 8080) != 0
        assert not shop.opens(front)
        assert shop.why(f"{OUTSIDE} :8080")["Verdict"] == "allowed"
        assert shop.why("203.0.113.5 :8080")["Reason"] == "DROP_IN"
        assert shop.why("app :8080")["Reason"] == "DROP_IN"
        assert shop.why(f"front {OUTSIDE} udp 53")["Reason"] == "DROP_OUT"


def test_down_leaves_nothing_of_policies(shop: Shop) -> None:
    shop.apply(DB)
    shop.host.ctl("down")
    assert not (shop.host.bpffs / "datapath").exists()
    assert shop.host.ctl("policy ls -q") == ""


OLD = 'policies: {db: {for: db, in: {allow: ["app:1", "app:2"]}}}\n'
NEW = 'policies: {db: {for: db, in: {allow: ["cron:1", "cron:2"]}}}\n'


def test_p11_killed_at_any_step_the_old_policy_is_in_force_or_the_new_one_and_never_a_part(
    shop: Shop,
) -> None:
    """Looked at before any other command has repaired anything. What both refuse is refused throughout. At each fourth
    step; with DATAPATH_LONG=1 at each."""
    paths = {}
    for name, text in (("old", OLD), ("new", NEW)):
        paths[name] = shop.host.folder / f"{name}.yaml"
        paths[name].write_text(text)
    forked.in_child.append(faults.install)
    assert shop.host.env is not None
    seen = set()
    try:
        shop.host.ctl(f"policy apply -f {paths['old']}")
        number = 0
        while number < 400:
            number += 1 if os.environ.get("DATAPATH_LONG") else 4
            shop.host.env[faults.VARIABLE] = f"kill@{number}"
            done = shop.host.try_ctl(f"policy apply -f {paths['new']}")
            del shop.host.env[faults.VARIABLE]
            now = said(shop)
            assert now in (said_of("app"), said_of("cron")), f"step {number} ({faults.last().step}): {now}"
            seen.add(now)
            if done.returncode == 0:
                break
            assert doctor(shop.host) == [] or shop.host.try_ctl("reconcile").returncode == 0
            assert doctor(shop.host) == []
            shop.host.ctl(f"policy apply -f {paths['old']}")
        assert done.returncode == 0 and number > 5
    finally:
        forked.in_child.remove(faults.install)
    assert seen == {said_of("app"), said_of("cron")}


ASKED = (("app", 1), ("app", 2), ("cron", 1), ("cron", 3))


def said(shop: Shop) -> tuple[str, ...]:
    """What the programs say of each, whatever the rows of the store do."""
    found = []
    for name, port in ASKED:
        told = json.loads(shop.host.try_ctl(f"why {name} db tcp {port} --format json").stdout)
        found.append(told["Program"]["verdict"])
    return tuple(found)


def said_of(allowed: str) -> tuple[str, ...]:
    return tuple("allowed" if name == allowed and port < 3 else "refused" for name, port in ASKED)
