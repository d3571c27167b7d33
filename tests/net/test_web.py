# SPDX-License-Identifier: Apache-2.0
"""`datapathctl web` as a process that curl asks: who may see what, that it is what `flows` and `why` say, and that it
comes back by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ctl.web.http import CONNECTIONS
from datapath.kernel.netns import enter
from tests.net.hosts import DATAPATHCTL, PATIENCE, Host, eventually
from tests.net.web import URL, Page, served, status
from tests.net.wire import Container, call, fails, serving, start_container

HOSTILE = "</script><img src=x onerror=alert(1)>"
POLICIES = "policies: {db: {for: {label: role=db}, in: {allow: ['role=app:5432']}}}"


class Shop:
    """app, cron and db on shop, whose policy lets app alone in; the page is served all the time."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.ctl("network create --subnet 10.8.0.0/24 -o com.datapath.flows=true shop")
        self.db = start_container(host, "db", "--network shop --label role=db -p 8080:5432")
        self.app = start_container(host, "app", "--network shop --label role=app")
        self.cron = start_container(host, "cron", ["--network", "shop", "--label", f"note={HOSTILE}"])
        (host.folder / "db.yaml").write_text(POLICIES)
        host.ctl(f"policy apply -f {host.folder}/db.yaml")

    def lines(self, page: Page) -> dict[tuple[str, str, str], Any]:
        """By who, whom, and the verdict."""
        return {
            (one["source"], one["destination"], one["verdict"]): one
            for one in page.picture()["lines"].values()
        }


@pytest.fixture(scope="module")
def shop(shared_host: Host) -> Shop:
    return Shop(shared_host)


@pytest.fixture(scope="module")
def page(shop: Shop) -> Iterator[Page]:
    with served(shop.host) as found:
        yield found


def other(container: Container, to: Container, port: int, times: int) -> None:
    for _ in range(times):
        fails(container, "tcp", to.ip, port)


def test_the_page_shows_containers_in_networks_and_exact_totals(shop: Shop, page: Page) -> None:
    with serving(shop.db, "tcp", 5432):
        for _ in range(3):
            call(shop.app, "tcp", shop.db.ip, 5432)
    other(shop.cron, shop.db, 5432, 4)
    picture = page.picture()
    assert picture["networks"]["shop"]["subnets"] == ["10.8.0.0/24"]
    assert picture["containers"]["app"]["networks"] == {"shop": [shop.app.ip]}
    assert picture["containers"]["cron"]["labels"] == {"note": HOSTILE}
    lines = shop.lines(page)
    assert lines["app", "db", "allowed"]["connections"] == 3
    refused = lines["cron", "db", "refused"]
    assert (refused["connections"], refused["reason"], refused["port"]) == (4, "DROP_IN", 5432)
    assert picture["policies"]["db"]["refused"] == 4


def test_a_refusal_is_explained_and_the_line_that_would_allow_it_does(shop: Shop, page: Page) -> None:
    asked = "/why?source=cron&destination=db&protocol=tcp&port=5432"
    found = page.ask(asked)
    assert (found["verdict"], found["policy"], found["program"]["agrees"]) == ("refused", "db", True)
    remedy = found["remedy"]
    assert [line for line in remedy["text"].splitlines() if line.endswith("# added")] == [
        '        - "cron:5432"  # added'
    ]
    assert remedy["verdict"] == "allowed"
    (shop.host.folder / "opened.yaml").write_text(remedy["text"])
    try:
        shop.host.ctl(f"policy apply -f {shop.host.folder}/opened.yaml")
        with serving(shop.db, "tcp", 5432):
            call(shop.cron, "tcp", shop.db.ip, 5432)
        assert page.ask(asked)["verdict"] == "allowed"
    finally:
        shop.host.ctl(f"policy apply -f {shop.host.folder}/db.yaml")


def test_a_denied_connection_is_opened_by_leaving_a_rule_out(shop: Shop, page: Page) -> None:
    path = shop.host.folder / "deny.yaml"
    path.write_text("policies: {apart: {for: app, out: {deny: [db, cron], allow: [any]}}}")
    shop.host.ctl(f"policy apply -f {path}")
    try:
        remedy = page.ask("/why?source=app&destination=db&protocol=tcp&port=5432")["remedy"]
        assert remedy["left_out"] == ['apart: out.deny "db"'] and remedy["verdict"] == "allowed"
        assert '- "db"' not in remedy["text"] and '- "cron"' in remedy["text"]
    finally:
        shop.host.ctl("policy rm apart")


def test_both_sides_have_to_be_opened_where_both_are_closed(shop: Shop, page: Page) -> None:
    path = shop.host.folder / "shut.yaml"
    path.write_text("policies: {shut: {for: cron, out: {allow: []}}}")
    shop.host.ctl(f"policy apply -f {path}")
    try:
        remedy = page.ask("/why?source=cron&destination=db&protocol=tcp&port=5432")["remedy"]
        assert remedy["text"].count("# added") == 2 and remedy["verdict"] == "allowed"
        assert "  shut:" in remedy["text"] and "  db:" in remedy["text"]
    finally:
        shop.host.ctl("policy rm shut")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("source=nobody&destination=db&protocol=tcp&port=1", "No such container: nobody"),
        ("source=app&destination=db&protocol=tcp", "tcp has ports: which one?"),
        ("source=outside&destination=db&protocol=tcp&port=5432", "which address is meant?"),
    ],
)
def test_a_question_that_has_no_answer_is_told_in_a_line(page: Page, asked: str, said: str) -> None:
    found = page.curl(f"/why?{asked}")
    assert found.status == 422 and said in found.json["error"]


@pytest.mark.parametrize(
    ("path", "options", "token", "wanted"),
    [
        ("/", ["-H", "Host: evil.example"], True, 403),
        ("/picture", ["-H", "Host: evil.example:8717"], True, 403),
        ("/picture", ["-H", "Host: localhost.evil.example"], True, 403),
        ("/picture", ["-H", "Host: localhost:9000"], True, 200),  # the other end of a tunnel
        ("/picture", [], False, 401),
        ("/events", [], False, 401),
        ("/session", [], False, 401),
        ("/why?source=app&destination=db", [], False, 401),
        ("/picture", ["-H", "Authorization: Bearer 00"], False, 401),
        ("/picture", ["-H", "Cookie: datapathctl-web=00"], False, 401),
        ("/picture", ["-X", "POST"], True, 405),
        ("/picture", ["-X", "OPTIONS"], True, 405),
        ("/picture", ["-X", "DELETE"], False, 405),
        ("/picture", ["-H", "Origin: http://evil.example"], True, 403),
        ("/picture", ["-H", "Origin: null"], True, 403),
        ("/picture", ["-H", f"Origin: {URL}"], True, 200),
        ("/picture", ["-H", "Sec-Fetch-Site: cross-site"], True, 403),
        ("/picture", ["-H", "Sec-Fetch-Site: same-site"], True, 403),
        ("/../etc/passwd", [], True, 404),
        ("/vendor/../../../../etc/passwd", [], True, 404),
        ("/vendor/%2e%2e/%2e%2e/key.py", [], True, 404),
        ("/picture", ["-X", "GET", "-d", "body"], True, 413),
        ("/picture", ["-X", "GET", "-H", "Transfer-Encoding: chunked", "-d", "body"], True, 413),
        (f"/why?source={'a' * 301}&destination=db", [], True, 400),
        ("/why?source=app&destination=db%00&protocol=tcp", [], True, 400),
        ("/why?source=app&destination=db&protocol=tcp&port=65536", [], True, 400),
        ("/why?source=app", [], True, 400),
        ("/", [], False, 200),
    ],
)
def test_v11_what_no_page_of_this_host_asks_is_refused(
    page: Page, path: str, options: list[str], token: bool, wanted: int
) -> None:
    found = page.curl(path, *options, token=token)
    assert found.status == wanted, found
    assert not [name for name in found.headers if name.startswith("access-control")]
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"


def test_v11_headers_of_a_megabyte_are_refused_and_the_page_lives(page: Page) -> None:
    with enter_socket(page.host) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20))
        assert raw.recv(64).startswith(b"HTTP/1.1 431 ")
    assert page.curl("/").status == 200


def test_v11_the_33rd_client_is_refused(page: Page) -> None:
    with ExitStack() as stack:
        first = [stack.enter_context(enter_socket(page.host)) for _ in range(32)]
        for raw in first:
            raw.sendall(request(page, "/events"))
            assert raw.recv(64).startswith(b"HTTP/1.1 200 ")
        assert page.curl("/events").status == 503
        assert page.curl("/picture").status == 200
    with eventually() as until:
        until(lambda: page.curl("/events", "-m", "1").status == 200)


def test_connections_that_are_too_many_end_at_once(page: Page) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(enter_socket(page.host))
        more = stack.enter_context(enter_socket(page.host))
        with contextlib.suppress(ConnectionResetError):
            assert more.recv(1) == b""
    with eventually() as until:
        until(lambda: page.curl("/").status == 200)


def test_a_token_is_exchanged_for_a_cookie_that_no_script_reads(page: Page) -> None:
    found = page.curl("/session")
    assert found.status == 204
    cookie, *rest = found.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(rest) and page.token not in cookie
    assert page.curl("/picture", "-H", f"Cookie: {cookie}", token=False).status == 200
    assert page.token_file.stat().st_mode & 0o777 == 0o600 and len(page.token) == 64
    assert page.token not in page.told  # which is no terminal


def test_who_speaks_to_browsers_is_nobody_and_has_no_more_files_than_it_needs(page: Page) -> None:
    nobody = [pid for pid, user in page.children().items() if user]
    assert len(nobody) == 1
    found = status(nobody[0])
    assert found["Uid"].split() == found["Gid"].split() == ["65534"] * 4 and not found["Groups"]
    assert found["NoNewPrivs"] == "1" and not any(
        int(found[f"Cap{one}"], 16) for one in ("Eff", "Prm", "Inh", "Amb")
    )
    folder = Path(f"/proc/{nobody[0]}/fd")
    kinds = [os.readlink(one) for one in folder.iterdir()]
    assert not [kind for kind in kinds if "bpf" in kind or str(page.host.folder) in kind], kinds


def test_v7_an_open_page_gets_what_has_changed_and_no_more(shop: Shop, page: Page) -> None:
    with enter_socket(page.host) as raw:
        raw.sendall(request(page, "/events"))
        events = listen(raw)
        kind, whole, _ = next(events)
        assert kind == "picture"
        seen = count(whole, "cron", "db")
        other(shop.cron, shop.db, 5432, 2)
        got: list[Any] = []
        while not any(count(change, "cron", "db") == seen + 2 for change in got):
            kind, change, last = next(events)
            assert kind == "change" and "networks" not in change["put"] and "containers" not in change["put"]
            got.append(change)
    with enter_socket(page.host) as raw:  # and who comes again, what he has missed
        other(shop.cron, shop.db, 5432, 1)
        raw.sendall(request(page, "/events", f"Last-Event-ID: {last}"))
        for kind, change, _ in listen(raw):
            assert kind == "change"
            if count(change, "cron", "db") == seen + 3:
                break


def test_v13_a_killed_process_of_the_page_comes_back(shop: Shop, page: Page) -> None:
    for user in (0, 65534):
        before = page.children()
        os.kill(next(pid for pid, one in before.items() if one == user), signal.SIGKILL)

        def replaced(gone: set[int] = {*before}) -> bool:  # noqa: B006
            return len(page.children()) == 2 and not page.children().keys() & gone

        with eventually() as until:
            until(replaced)
            until(lambda: page.curl("/picture").status == 200)
        assert shop.lines(page)["app", "db", "allowed"]["connections"] >= 3


def test_v13_the_page_goes_on_while_programs_are_exchanged(shop: Shop, page: Page) -> None:
    before = page.children()
    shop.host.ctl("upgrade")
    other(shop.cron, shop.db, 5432, 1)
    seen = shop.lines(page)["cron", "db", "refused"]["connections"]
    other(shop.cron, shop.db, 5432, 1)
    assert shop.lines(page)["cron", "db", "refused"]["connections"] == seen + 1
    assert page.children() == before


def test_a_second_page_of_a_host_and_a_taken_port_are_refused(page: Page) -> None:
    assert "another process serves the page" in page.host.refused("web --listen 127.0.0.1:8718")


def test_a_page_on_a_unix_socket_is_roots_alone(make_host: Any) -> None:
    host = make_host()
    path = host.folder / "page.sock"
    with served(host, f"--listen unix:{path}") as found:
        assert path.stat().st_mode & 0o777 == 0o600
        assert found.curl("/picture", "--unix-socket", str(path)).status == 200
        assert found.curl("/picture", "--unix-socket", str(path), "-H", "Host: evil.example").status == 403
        assert found.end() == 0
    assert not path.exists() and not found.token_file.exists()


def test_v16_down_ends_the_page_and_leaves_nothing_of_it(make_host: Any) -> None:
    host = make_host()
    host.ctl("network create shop")
    with served(host) as found:
        pids = [found.process.pid, *found.children()]
        host.ctl("down")
        assert found.process.wait(PATIENCE) == 0
        assert not found.token_file.exists()
        with eventually() as until:
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_without_its_libraries_it_says_what_to_install(shop: Shop) -> None:
    hidden = (
        "import sys; sys.modules['uvicorn'] = None; from ctl.main import main; sys.argv[1:] = ['web']; main()"
    )
    found = shop.host.try_([str(Path(DATAPATHCTL).with_name("python")), "-c", hidden])
    assert found.returncode == 2
    assert found.stderr == (
        "datapathctl: the page needs uvicorn: pip install 'datapathctl[web]' (starlette and uvicorn)\n"
    )


# ---- who speaks HTTP by hand ---------------------------------------------------------------------------------------


def enter_socket(host: Host) -> socket.socket:
    """A connection to the page, from the host."""
    with enter(host.path):
        raw = socket.create_connection(("127.0.0.1", 8717), PATIENCE)
    raw.settimeout(PATIENCE)
    return raw


def request(page: Page, path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {page.token}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def listen(raw: socket.socket) -> Iterator[tuple[str, Any, str]]:
    """Events: kind, data and id."""
    text = ""
    while found := raw.recv(1 << 16):
        text += found.decode()
        for event in re.findall(r"id: (\S+)\r?\nevent: (\w+)\r?\ndata: (\{.*\})\n\n", text):
            text = text[text.index(event[2]) + len(event[2]) :]
            yield event[1], json.loads(event[2]), event[0]


def count(change: Any, source: str, destination: str) -> int:
    """Refused connections between these, as the change says; -1: it says nothing of them."""
    for line in change["put"].get("lines", {}).values():
        if (line["source"], line["destination"], line["verdict"]) == (source, destination, "refused"):
            return int(line["connections"])
    return -1
