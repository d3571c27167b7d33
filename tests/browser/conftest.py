# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium on a pretend host: it reaches nothing else."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.net.hosts import Host
from tests.net.web import Page, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.shop import Shop, View

# Where nobody has asked for a browser, these tests are none: `make web-deps`.
if importlib.util.find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]

if os.geteuid() != 0:
    pytest.exit("tests/browser needs root: it makes network namespaces", returncode=1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    from tests.browser.shop import Shop

    host = Host(tmp_path_factory.mktemp("host"))
    try:
        yield Shop(host)
    finally:
        host.close()


@pytest.fixture(scope="module")
def page(shop: Shop) -> Iterator[Page]:
    with served(shop.host) as found:
        yield found


@pytest.fixture(scope="module")
def browser(shop: Shop) -> Iterator[Browser]:
    with opened(shop.host) as found:
        yield found


@pytest.fixture
def view(browser: Browser, page: Page) -> Iterator[View]:
    """The page as a window shows it, with a session, and without a complaint of the browser's in the end."""
    from tests.browser.shop import viewed

    with viewed(browser, page) as found:
        yield found


@contextmanager
def opened(host: Host) -> Iterator[Browser]:
    """A browser whose profile goes with it. It is started in the host's namespace, and is spoken to by pipes."""
    from playwright.sync_api import sync_playwright

    wrapper = Path(host.folder) / "chromium"
    wrapper.write_text(f'#!/bin/sh\nexec nsenter --net={host.path} {CHROMIUM} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(wrapper), args=FLAGS)
        try:
            yield found
        finally:
            found.close()
