# SPDX-License-Identifier: Apache-2.0
"""What is seen of a cluster's store."""

from __future__ import annotations

from datapath.config.settings import Settings
from datapath.engine.members import where
from datapath.store.cluster import Member as Member
from datapath.store.cluster import Status as Status


def status(settings: Settings) -> Status:
    """Each of the store's servers that daemon.json names, and whether it answers. ConfigError: it names none, or a file
    of its options cannot be used."""
    asked = where(settings)
    from datapath.store.etcd.client import EtcdCluster

    with EtcdCluster(asked) as client:
        return client.status()
