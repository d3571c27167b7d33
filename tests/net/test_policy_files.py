# SPDX-License-Identifier: Apache-2.0
"""`policy test`, `diff` and `suggest`: files of policies beside the host and the traffic that it has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.net.hosts import FAR, OUTSIDE, Host
from tests.net.wire import Container, call, serving, start_container

SHOP = "network create --subnet 10.8.0.0/24 -o com.datapath.flows=true shop"
FILE = """
policies:
  db: {for: {label: role=db}, in: {allow: ["role=app:5432"]}}
  tpyo: {for: {label: role=bd}, out: {deny: [metadata]}, mode: audit}
"""


class Shop:
    """app has asked db at its port 5432, cron at 5432 once and at 80 twice; somebody outside at the published port."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl(SHOP)
        self.db = self.start("db", "--label role=db -p 8080:80")
        self.app, self.cron = self.start("app", "--label role=app"), self.start("cron", "--label role=batch")
        with serving(self.db, "tcp", 5432), serving(self.db, "tcp", 80):
            call(self.app, "tcp", self.db.ip, 5432)
            call(self.cron, "tcp", self.db.ip, 5432)
            call(self.cron, "tcp", self.db.ip, 80)
            call(self.cron, "tcp", self.db.ip, 80)
            call(host.outside, "tcp", "192.0.2.1", 8080)

    def start(self, name: str, options: str) -> Container:
        return start_container(self.host, name, f"--network shop {options}")

    def file(self, text: str) -> Path:
        path = self.host.folder / "shop.yaml"
        path.write_text(text)
        return path

    def rows(self, words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.host.ctl(f"{words} --format json").splitlines()]


@pytest.fixture(scope="module")
def shop(shared_host: Host) -> Shop:
    return Shop(shared_host)


def test_a_file_is_checked_against_the_containers_that_there_are(shop: Shop) -> None:
    path = shop.file(FILE)
    done = shop.host.try_ctl(f"policy test -f {path}")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "FOR", "IN", "OUT", "MODE", "MATCHES"],
        ["db", "role=db", "1", "allow", "open", "enforce", "1"],
        ["tpyo", "role=bd", "open", "1", "deny", "audit", "0"],
    ]
    assert done.stderr == f"WARNING: {path}:4: policy tpyo is for no container that there is now\n"


def test_a_file_that_cannot_be_right_is_refused_with_its_line(shop: Shop) -> None:
    path = shop.file(FILE.replace("allow", "alow"))
    expected = (
        f'datapathctl: {path}:3: unknown key of in "alow": there are allow, deny, rate; did you mean allow?'
    )
    for command in ("test", "diff"):
        assert shop.host.refused(f"policy {command} -f {path}") == expected
    path.write_bytes(b"policies: {}\n# \xff\n")
    assert shop.host.refused(f"policy test -f {path}") == f"datapathctl: {path}:2: it is not UTF-8"


def test_p15_what_is_suggested_lets_pass_what_was_seen_and_nothing_else(shop: Shop) -> None:
    """By `diff` and by `why`: nothing that was seen is refused, and with a rule less exactly that is."""
    done = shop.host.try_ctl("policy suggest --network shop")
    assert done.returncode == 0 and done.stderr == ""
    assert '- "cron:80"  # 2 connections' in done.stdout
    path = shop.file(done.stdout)
    assert shop.rows(f"policy diff -f {path}") == []
    for words, verdict in (
        ("app db tcp 5432", "allowed"),
        ("cron db tcp 80", "allowed"),
        ("app db tcp 80", "refused"),
        (f"{OUTSIDE} :8080", "allowed"),
        (f"{FAR} :8080", "refused"),
    ):
        found = json.loads(shop.host.ctl(f"why {words} --if {path} --format json"))
        assert found["Verdict"] == verdict, words
    without = "\n".join(line for line in done.stdout.splitlines() if '"cron:80"' not in line)
    (row,) = shop.rows(f"policy diff -f {shop.file(without)}")
    assert (row["Would"], row["From"], row["To"]) == ("refuse", f"cron {shop.cron.ip}", f"db {shop.db.ip}")
    assert (row["Port"], row["Connections"], row["Policy"], row["Rule"]) == (80, 2, "db", 0)


def test_nothing_seen_is_nothing_suggested(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.ctl(SHOP)
    expected = "datapathctl: nothing was seen that policies could be made of"
    assert host.refused("policy suggest --network shop") == expected
