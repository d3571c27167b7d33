# SPDX-License-Identifier: Apache-2.0
"""The version that is upgraded from: built from the repository's history, with its own programs and extension."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.conftest import make_host as make_host
from tests.net.hosts import TREE

# A tag or commit: `make test-upgrade FROM=…`.
FROM = "DATAPATH_FROM"
PACKAGES = ("ctl", "datapath")


def git(*words: str) -> str:
    """What git prints; "": it has failed."""
    done = subprocess.run(["git", "-C", str(TREE), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def last_release() -> str:
    """The commit to upgrade from: the one that was asked for, else that of the last tag that leads here, else of the
    last release as it is written down."""
    written = Path(__file__).with_name("last_release").read_text().strip()
    wanted = os.environ.get(FROM) or git("describe", "--tags", "--abbrev=0") or written
    found = git("rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}")
    assert found, f"this repository has no commit {wanted}: its history is needed"
    return found


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release, built."""
    tree, commit = tmp_path_factory.mktemp("before"), last_release()
    print(f"from {git('log', '-1', '--format=%h %s', commit)}")
    archive = subprocess.Popen(["git", "-C", str(TREE), "archive", commit], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(tree)], stdin=archive.stdout, check=True)
    assert archive.wait() == 0
    environment = Path(sys.executable).parents[1]  # this one's, not resolved: it is only used
    subprocess.run(["make", "-s", "bpf", f"VENV={environment}"], cwd=tree, check=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tree, check=True, capture_output=True)
    return tree


def install(tree: Path, folder: Path) -> None:
    """Puts a tree's packages in a folder, in place of those that are there."""
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        shutil.copytree(tree / name, folder / f"new-{name}", ignore=shutil.ignore_patterns("__pycache__"))
        if (folder / name).exists():
            (folder / name).rename(folder / f"old-{name}")
        (folder / f"new-{name}").rename(folder / name)
        shutil.rmtree(folder / f"old-{name}", ignore_errors=True)
