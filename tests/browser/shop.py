# SPDX-License-Identifier: Apache-2.0
"""What is looked at, and a window on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab

from tests.net.hosts import PATIENCE, Host, eventually
from tests.net.web import URL, Page
from tests.net.wire import call, fails, serving, start_container

HOSTILE = "<img src=x onerror=window.hurt=1>"


class Shop:
    """A shop behind a proxy: whoever may talk does, and cron is refused 17 times."""

    def __init__(self, host: Host) -> None:
        self.host = host
        flows = "-o com.datapath.flows=true"
        host.ctl(f"network create --subnet 10.8.0.0/24 {flows} shop")
        host.ctl(f"network create --subnet 10.9.0.0/24 {flows} dmz")
        self.db = start_container(host, "db", "--network shop --label role=db")
        self.app = start_container(host, "app", "--network shop --label role=app")
        self.cron = start_container(host, "cron", ["--network", "shop", "--label", f"note={HOSTILE}"])
        self.proxy = start_container(host, "proxy", "--network dmz -p 8080:80")
        host.ctl("network connect shop proxy")
        path = host.folder / "db.yaml"
        path.write_text("policies: {db: {for: {label: role=db}, in: {allow: ['role=app:5432']}}}")
        host.ctl(f"policy apply -f {path}")
        with serving(self.db, "tcp", 5432):
            call(self.app, "tcp", self.db.ip, 5432)
        self.refuse(17)

    def refuse(self, times: int) -> None:
        """cron asks db in vain."""
        for _ in range(times):
            assert fails(self.cron, "tcp", self.db.ip, 5432)


class View:
    """A window. `complaints`: what the browser said of the page, `foreign`: what it asked others for."""

    def __init__(self, tab: Tab, page: Page) -> None:
        self.tab, self.page = tab, page
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        tab.on("console", lambda said: self.complaints.append(said.text) if said.type != "log" else None)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("request", lambda asked: None if asked.url.startswith(URL) else self.foreign.append(asked.url))

    def open(self, fragment: str = "") -> None:
        """As who is given the address that the command prints."""
        self.tab.goto(f"{URL}/#token={self.page.token}{fragment}")
        self.live()

    def live(self) -> None:
        """It is connected, and shows something."""
        self.tab.get_by_text("● live").wait_for(timeout=PATIENCE * 1000)
        self.until("cy.nodes().nonempty()")

    def graph(self, expression: str) -> Any:
        """What the drawing says, in the words of cytoscape: `cy` is it."""
        return self.tab.evaluate(f"(() => {{ const cy = window.datapathGraph; return {expression}; }})()")

    def until(self, expression: str) -> None:
        """It says so."""
        self.becomes(f"(() => {{ const cy = window.datapathGraph; return {expression}; }})()")

    def becomes(self, expression: str) -> None:
        """The page's script says so. It is asked again and again: what the browser would wait with is evaluated by the
        page, whose policy forbids that."""
        with eventually() as until:
            until(lambda: self.tab.evaluate(expression))

    def panel(self) -> str:
        return str(self.tab.locator("aside").inner_text())

    def click_edge(self, source: str, destination: str, verdict: str) -> None:
        """In the middle of its line, with the mouse. Both by network and name."""
        source, destination = source.replace("\t", "\\t"), destination.replace("\t", "\\t")
        box = self.tab.locator(".drawing").bounding_box()
        at = self.graph(
            f"(edge => edge.renderedMidpoint())(cy.edges().filter(e => e.data('verdict') === '{verdict}' && "
            f"e.data('source') === '{source}' && e.data('target') === '{destination}'))"
        )
        assert box is not None
        self.tab.mouse.click(box["x"] + at["x"], box["y"] + at["y"])


@contextmanager
def viewed(browser: Browser, page: Page, scheme: Literal["light", "dark"] = "light") -> Iterator[View]:
    """With a profile of its own; nothing was complained about when it ends."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    try:
        view = View(context.new_page(), page)
        yield view
        assert view.complaints == [] and view.foreign == [], (view.complaints, view.foreign)
    finally:
        context.close()


def shot(view: View, name: str) -> None:
    """A picture for who looks at it: in the folder that PICTURES names, if it does."""
    if folder := os.environ.get("PICTURES"):
        view.tab.screenshot(path=f"{folder}/{name}.png")
