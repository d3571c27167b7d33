# SPDX-License-Identifier: Apache-2.0
"""Hosts, networks and containers of a cluster as rows, for tests of its store alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from datapath.cluster import addresses, keys, members
from datapath.cluster.allotment import Known
from datapath.model.networks import Network, Subnet, mac_for
from datapath.model.peers import Peer, Remote
from datapath.model.rows import Phase
from datapath.plan import ipam
from datapath.store.cluster import Listing, Outcome, UncertainError
from datapath.store.etcd.client import EtcdCluster
from tests.net.etcd import Etcd

CLUSTER_ID = "c" * 32


class Counted(EtcdCluster):
    """A store whose transactions are counted, and may be lost on the way back."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd.where())
        self.txns = self.lists = 0
        self.lost = 0  # answers to come

    def txn(self, *asked: object) -> Outcome:
        self.txns += 1
        outcome = super().txn(*asked)  # type: ignore[arg-type]
        if self.lost:
            self.lost -= 1
            raise UncertainError("the connection was reset")
        return outcome

    def list(self, *prefixes: str) -> Listing:
        self.lists += 1
        return super().list(*prefixes)


def peer(number: int, **more: object) -> Peer:
    """The host h<number> before it joins."""
    found = Peer(
        f"{number:032x}", f"h{number}", 0, ip_address(f"192.0.2.{number}"), f"02:00:00:00:00:{number:02x}"
    )
    return replace(found, **more)  # type: ignore[arg-type]


def join(store: EtcdCluster, number: int, **more: object) -> Peer:
    return members.join(store, peer(number, **more), f"run {number}", CLUSTER_ID).peer


def network(name: str = "ov", *subnets: str, ident: str = "a") -> Network:
    found = [Subnet(ip_network(text), configured=True) for text in subnets or ("10.9.0.0/16",)]
    return Network(
        (ident * 64)[:64],
        name,
        0,
        "overlay",
        "global",
        subnets=tuple(ipam.with_gateway(subnet) for subnet in found),
        ipv6=any(subnet.prefix.version == 6 for subnet in found),
        phase=Phase.READY,
    )


def endpoint(made: Network, host: Peer, number: int, **more: object) -> addresses.Make:
    """The endpoint of a container of the host."""
    ident = f"{int(host.id, 16):032x}{number:032x}"

    def make(ipv4: IPv4Address | None, ipv6: IPv6Address | None) -> Remote:
        mac = mac_for(ipv4 or ipv6 or IPv4Address(0))
        remote = Remote(ident, made.id, host.id, mac, ident, f"c{number}-{host.name}", ipv4=ipv4, ipv6=ipv6)
        return replace(remote, **more)  # type: ignore[arg-type]

    return make


def known(store: EtcdCluster, made: Network) -> Known:
    found = addresses.part(store, [made.id])
    return Known.of(found.blocks, found.remotes)


def start(store: EtcdCluster, host: Peer, made: Network, number: int = 1, *wanted: str) -> addresses.Claimed:
    """A container of the host, as by a command that has just looked."""
    asked = [ip_address(text) for text in wanted]
    return addresses.claim(store, host.id, made, known(store, made), endpoint(made, host, number), asked)


VIEWS: dict[tuple[str, str], Known] = {}


def start_known(store: EtcdCluster, host: Peer, made: Network, number: int) -> addresses.Claimed:
    """A container of the host, which knows only what it has done itself."""
    view = VIEWS.get((host.id, made.id), Known())
    claimed = addresses.claim(store, host.id, made, view, endpoint(made, host, number))
    for block in claimed.blocks:
        view = view.owning(block.prefix, host.id)
    for address in keys.addresses_of(claimed.remote):
        view = view.using(address, claimed.remote.id)
    VIEWS[host.id, made.id] = view
    return claimed
