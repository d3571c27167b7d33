# SPDX-License-Identifier: Apache-2.0
"""`make cluster`: what it shows comes true, and nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.hosts import TIMEOUT, TREE

DEMO = [sys.executable, "-m", "ctl.cli.cluster_demo"]


def test_make_cluster_loses_no_packet_and_leaves_nothing() -> None:
    done = subprocess.run([*DEMO, "3"], cwd=TREE, capture_output=True, text=True, timeout=4 * TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("No packet was lost, and nothing is left.\n")
    assert not list(Path("/tmp").glob("datapath-cluster-*"))


@pytest.mark.parametrize("words", ["2", "21", "three", "-1", "3 4"])
def test_a_number_of_hosts_that_is_wrong_is_told(words: str) -> None:
    done = subprocess.run([*DEMO, *words.split()], cwd=TREE, capture_output=True, text=True, timeout=TIMEOUT)
    assert (
        done.stderr == f"cluster: the number of hosts must be 3 to 20, not {words}\n" and done.returncode == 1
    )
