# SPDX-License-Identifier: Apache-2.0
"""Rows for the tests of stores: a network, a container on it, and a second endpoint."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Any

from datapath.model.containers import Container
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network
from datapath.model.ports import PortMapping
from datapath.model.sandboxes import Sandbox
from datapath.store.base import Store

WEB, DB = "c" * 64, "d" * 64


def network(**fields: Any) -> Network:
    return replace(Network("a" * 64, "net", 2, device="dp-a"), **fields)


def endpoint(**fields: Any) -> Endpoint:
    first = Endpoint(
        *("e" * 64, "a" * 64, WEB, 1, 0, "eth0", "veth1", "02:42:0a:00:00:02"),
        ipv4=IPv4Interface("10.0.0.2/24"),
        ports=(PortMapping.parse("8081:80"),),
    )
    return replace(first, **fields)


def second(**fields: Any) -> Endpoint:
    """An endpoint that has nothing but the network in common with the first one."""
    return endpoint(
        **{
            "id": "f" * 64,
            "sandbox_id": DB,
            "number": 2,
            "slot": 1,
            "host_ifname": "veth2",
            "mac": "02:42:0a:00:00:03",
            "ipv4": IPv4Interface("10.0.0.3/24"),
            **fields,
        }
    )


def fill(store: Store) -> None:
    with store.transaction():
        for thing in (
            network(),
            Sandbox(WEB),
            Sandbox(DB),
            endpoint(),
            Container(WEB, "web", "now", ("true",)),
        ):
            store.put(thing)
