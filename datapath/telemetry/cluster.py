# SPDX-License-Identifier: Apache-2.0
"""What is seen of a cluster's store."""

from __future__ import annotations

from datapath.config.daemon import DaemonConfig
from datapath.config.settings import Settings
from datapath.errors import ConfigError
from datapath.store.cluster import Member as Member
from datapath.store.cluster import Status as Status


def status(settings: Settings) -> Status:
    """Each of the store's servers that daemon.json names, and whether it answers. ConfigError: it names none, or a file
    of its options cannot be used."""
    where = DaemonConfig.load(settings).cluster
    if where is None:
        raise ConfigError(
            f'{settings.config_path} names no cluster-store: add "cluster-store": "etcd://HOST:PORT"'
        )
    from datapath.store.etcd.client import EtcdCluster

    with EtcdCluster(where) as client:
        return client.status()
