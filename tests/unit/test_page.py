# SPDX-License-Identifier: Apache-2.0
"""The live page without a host: what has changed, who may see it, where it is served, and what it is made with."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from ctl.web import key
from ctl.web.listen import DEFAULT, parse_listen
from datapath.errors import ConfigError, InUseError
from datapath.telemetry.page import Picture, difference, patch

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "ctl/web/vendor"
MARKUP = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "eval(",
    "Function(",
    "dangerously",
)
WRONG = [("", ""), ("Bearer \xe9", "\xe9"), ("Bearer ", "")]


def picture(dice: random.Random) -> Picture:
    return {
        section: {str(dice.randrange(8)): {"count": dice.randrange(3)} for _ in range(dice.randrange(6))}
        for section in ("lines", "containers", "host")
    }


def test_a_picture_and_what_has_changed_make_the_next_one() -> None:
    dice = random.Random(18)
    shown: Picture = {}
    for _ in range(500):
        before = {section: dict(entries) for section, entries in shown.items()}
        now = picture(dice)
        changed = difference(before, now)
        patch(shown, *json.loads(json.dumps(changed)))
        assert shown == now
        assert difference(now, now) == ({}, {})
        assert all(before.get(s, {}).get(k) != e for s, some in changed.put.items() for k, e in some.items())


def test_only_the_token_or_what_it_is_exchanged_for_opens(tmp_path: Path) -> None:
    with key.kept(tmp_path / "run/web.token") as kept:
        assert kept.opens(f"Bearer {kept.token}", "") and kept.opens("", kept.cookie)
        for authorization, cookie in (
            ("", ""),
            (kept.token, ""),
            (f"Bearer {kept.cookie}", ""),
            ("", kept.token),
            ("Bearer \xe9", "\xe9"),
        ):
            assert not kept.opens(authorization, cookie)
        assert kept.path.read_text() == f"{kept.token}\n" and kept.path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(InUseError, match="another process serves the page"), key.kept(kept.path):
            pass
        first = kept.token
    assert not kept.path.exists()
    with key.kept(tmp_path / "run/web.token") as kept:
        assert kept.token != first and kept.there
        kept.path.unlink()
        assert not kept.there


def test_a_token_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "web.token").symlink_to(tmp_path / "precious")
    with pytest.raises(Exception, match=r"web\.token"), key.kept(tmp_path / "web.token"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (DEFAULT, "http://127.0.0.1:8717/"),
        ("localhost:80", "http://127.0.0.1:80/"),
        ("127.9.9.9:1", "http://127.9.9.9:1/"),
        ("[::1]:65535", "http://[::1]:65535/"),
        ("unix:/run/page.sock", "unix:/run/page.sock"),
    ],
)
def test_it_is_served_where_only_this_host_reaches_it(text: str, url: str) -> None:
    assert parse_listen(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0:80", "[::]:80", "192.0.2.1:80", "[fe80::1]:80", "[::ffff:192.0.2.1]:80", "example.com:80"),
        *(
            "",
            "8717",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:8717x",
            "::1:80",
        ),
        *("unix:", "unix:page.sock", "unix:/a\0b", "127.0.0.1:\uff11"),
    ],
)
def test_it_is_not_served_elsewhere(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_what_the_page_is_made_with_is_what_was_published() -> None:
    """Whole files, with their licences and the hashes that npm compares."""
    sums = dict(line.split()[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {one.name for one in VENDOR.iterdir()} - {
        "SHA256SUMS",
        "package.json",
        "package-lock.json",
    }
    for name, published in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == published, name
    locked = json.loads((VENDOR / "package-lock.json").read_text())["packages"]
    wanted = json.loads((VENDOR / "package.json").read_text())["devDependencies"]
    found = {name.removeprefix("node_modules/"): one for name, one in locked.items() if name}
    assert {name: one["version"] for name, one in found.items()} == wanted
    assert all(one["integrity"].startswith("sha512-") and "resolved" not in one for one in found.values())
    assert {f"{name}.LICENSE" for name in wanted} <= sums.keys()


def test_no_script_of_the_page_makes_markup_or_code_of_text() -> None:
    for path in (ROOT / "ctl/web/page").glob("*.js"):
        text = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "dangerously",
        ):
            assert word not in text, (path.name, word)
