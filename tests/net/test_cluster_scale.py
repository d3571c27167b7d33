# SPDX-License-Identifier: Apache-2.0
"""Many hosts on one store, in small: what a start tells whom (S23). `python -m tests.cluster_scale` has it in large."""

from __future__ import annotations

from pathlib import Path

from tests.cluster_scale import Plan, interested, measure
from tests.net.etcd import Etcd


def test_s23_a_start_is_one_transaction_and_told_to_the_hosts_of_its_network_only(tmp_path: Path) -> None:
    plan = Plan(hosts=40, containers=20, share=8)
    assert interested(plan) == [8] * 10
    etcd = Etcd(tmp_path, options="--unsafe-no-fsync")
    try:
        found = measure(etcd, plan, 0.2, 2)
    finally:
        etcd.close()
    assert found["txns_per_start"] == 1.0
    assert found["told_each"] == 8 and found["told"] == 8 * 40
    assert found["agent"]["remotes"] == 2 * 8 * 10 and found["agent"]["peers"] == 40
    assert found["agent"]["peak"] < 40
