# SPDX-License-Identifier: Apache-2.0
"""The documents name what there is: files, links, targets, rooms, public calls, and code that is shown as ours."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from datapath import host, services
from tests.unit.test_house import FLOORS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Those that say where things are in the tree.
GUIDES = ("CONTRIBUTING.md", "docs/architecture.md")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# A page that is about one part of the tree names its files from there.
PLACES = [ROOT, ROOT / "datapath", ROOT / "bpf"]
TREES = {entry.name for place in PLACES for entry in place.iterdir() if entry.is_dir()}
FILES = {
    path.name
    for tree in ("bpf", "ctl", "datapath", "packaging", "tests", "docs")
    for path in (ROOT / tree).rglob("*")
}


def paths(text: str) -> list[str]:
    """What is a path of the tree in backticks: a source file, or something below one of its folders."""
    words = [
        word for word in CODE.findall(BLOCK.sub("", text)) if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", word)
    ]
    return [
        w for w in words if w.endswith((".py", ".h", ".c", ".md")) or ("/" in w and w.split("/")[0] in TREES)
    ]


def exists(path: str) -> bool:
    if "/" in path:
        return any(list(place.glob(path)) for place in PLACES)
    return path in FILES or (ROOT / path).exists()


def anchors(text: str) -> set[str]:
    """Of a page's headings, as they are made from their words."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", GUIDES)
def test_every_path_that_a_guide_names_exists(page: str) -> None:
    found = paths((ROOT / page).read_text())
    assert len(found) > 5
    assert [path for path in found if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_there(page: Path) -> None:
    links = LINK.findall(BLOCK.sub("", page.read_text()))
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    there = [(page.parent / link if link else page, anchor) for link, anchor in links if anchor]
    assert [(path.name, anchor) for path, anchor in there if anchor not in anchors(path.read_text())] == []


def test_the_readme_is_short() -> None:
    """What is longer has a page of its own."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_librarys_page_names_every_public_call() -> None:
    page = (ROOT / "docs/library.md").read_text()
    parts = {
        "networks": host.Networks,
        "sandboxes": host.Sandboxes,
        "endpoints": host.Endpoints,
        "ports": host.Ports,
        "services": services.Services,
    }
    for name, part in parts.items():
        for call in (call for call in vars(part) if not call.startswith("_")):
            assert re.search(rf"`{name}\.{call}\(|^\| `{name}\..*`\.{call}\(", page, re.MULTILINE), (
                f"{name}.{call}"
            )


def test_code_that_is_shown_as_ours_is_ours() -> None:
    """A block that begins with the path of a file is from there, word for word."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.findall(
        r"^```(?:python|c)\n(?:#|//) ((?:datapath|bpf)/\S+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL
    )
    assert len(shown) == 2
    assert [path for path, code in shown if code.strip() not in (ROOT / path).read_text()] == []


def test_the_rooms_are_in_the_order_that_is_held() -> None:
    floors = (", ".join(room.removeprefix("datapath.") for room in rooms) for rooms in FLOORS)
    assert f"```text\n{' < '.join(floors)}\n```" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_recipe_of_a_driver_names_every_step_of_the_one_that_follows_it() -> None:
    recipe = (ROOT / "CONTRIBUTING.md").read_text().partition("### a driver\n")[2]
    tree = ast.parse((ROOT / "tests/net/test_driver.py").read_text())
    (driver,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Routed")
    steps = [node.name for node in driver.body if isinstance(node, ast.FunctionDef)]
    assert len(steps) > 4
    assert [step for step in steps if f"`{step}`" not in recipe] == []


def test_every_target_of_make_that_is_named_exists() -> None:
    text = "".join((ROOT / path).read_text() for path in ("Makefile", "packaging/packages.mk"))
    targets = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    named = re.findall(
        r"(?:^|`|=\w+ )make ([a-z][a-z -]*[a-z])", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert {target for line in named for target in line.split()} <= known
