# SPDX-License-Identifier: Apache-2.0
"""What `make release` leaves in dist/."""

from __future__ import annotations

import subprocess

from datapath import __version__
from tests.packages.roots import TREE

DIST = TREE / "dist"


def test_a_release_is_whole_and_its_sums_are_right() -> None:
    """Whoever has fetched it checks it with one command; nothing is in there that has no sum."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=DIST,
        check=True,
        capture_output=True,
        text=True,
    )
    names = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert names == {path.name for path in DIST.iterdir()} - {"SHA256SUMS"}
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert {
        f"datapath_{__version__}-1_{architecture}.deb",
        f"datapath-bench_{__version__}-1_{architecture}.deb",
        f"datapathctl-{__version__}.tar.gz",
        "NOTES.md",
    } < names
    assert len(names) == 5 and any(name.endswith(".whl") for name in names)


def test_its_notes_are_what_the_changelog_says_of_this_version_alone() -> None:
    notes = (DIST / "NOTES.md").read_text()
    changelog = (TREE / "CHANGELOG.md").read_text()
    assert "### Added" in notes and "\n## " not in notes
    assert f"## [{__version__}]" in changelog and notes.strip() in changelog


def test_lintian_has_nothing_to_say_of_the_packages() -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", *sorted(DIST.glob("*.deb"))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
