# SPDX-License-Identifier: Apache-2.0
"""Each policy of docs/policies.md is applied, and each line beneath it is what rows and packet programs say then."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.net.hosts import Host
from tests.net.wire import start_container
from tests.unit.test_policy_page import Snippet, snippets


@pytest.fixture(scope="module")
def page(shared_host: Host) -> Iterator[Host]:
    host = shared_host
    host.ctl("network create --subnet 10.8.0.0/24 shop")
    host.ctl("network create --subnet 10.9.0.0/24 dmz")
    for name in ("db", "app", "cron"):
        start_container(host, name, f"--network shop --label role={name}")
    start_container(host, "web", "--network dmz -p 8080:80")
    start_container(host, "worker", "--network dmz")
    yield host
    host.ctl("rm -f db app cron web worker")
    host.ctl("network rm shop dmz")


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: snippet.name)
def test_p10_a_policy_of_the_page_does_what_it_says_there(page: Host, snippet: Snippet) -> None:
    path = page.folder / "page.yaml"
    path.write_text(snippet.policies)
    page.ctl(f"policy apply --prune -f {path}")
    for words, verdict in snippet.verdicts:
        told = json.loads(page.try_ctl(f"why {words} --format json").stdout)
        assert (told["Verdict"], told["Agrees"]) == (verdict, True), (words, told)
