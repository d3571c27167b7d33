# SPDX-License-Identifier: Apache-2.0
"""The device of encrypted tunnels, told by netlink what it is to be: between two hosts without anything else."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from datapath.drivers.overlay import encryption
from datapath.errors import KernelError
from datapath.kernel import features, netns, wireguard
from datapath.model.wireguard import Setting, WireGuardPeer
from tests.net.hosts import Namespace, eventually, pinging, sent_and_lost

pytestmark = pytest.mark.skipif(not features.has_kind("wireguard"), reason="this kernel has no WireGuard")
NAME, PORT = "dp-wg", 51820


class End(Namespace):
    """`number`: 1 or 2; its address outside is 192.0.2.N, that inside of the tunnel 10.9.N.1."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.private = number, wireguard.new_key()
        self.public = wireguard.public_key(self.private)

    def begin(self) -> None:
        with netns.enter(self.path):
            wireguard.create(NAME, self.private, PORT, 1440)
        self.sh(f"ip address add 10.9.{self.number}.1/32 dev {NAME}")
        self.sh(f"ip route add 10.9.0.0/16 dev {NAME}")

    def knows(self, other: End, *keys: str) -> None:
        """Makes the other end by these keys what there is of peers: all of its addresses are the last one's."""
        with netns.enter(self.path):
            there = wireguard.find(NAME)
            assert there is not None
            where = (ip_address(f"192.0.2.{other.number}"), PORT)
            wanted = {key: WireGuardPeer(frozenset(), where) for key in keys[:-1]}
            wanted[keys[-1]] = WireGuardPeer(frozenset({ip_network(f"10.9.{other.number}.0/24")}), where)
            wireguard.configure(NAME, encryption.changes(there.peers, wanted, wireguard.new_key()))

    @property
    def peers(self) -> dict[str, WireGuardPeer]:
        with netns.enter(self.path):
            found = wireguard.find(NAME)
        assert found is not None and found.key == self.public and found.port == PORT
        return dict(found.peers)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    one, other = End(1), End(2)
    try:
        one.sh(f"ip link add eth0 type veth peer name eth0 netns {other.pid}")
        for end in (one, other):
            end.sh(f"ip address add 192.0.2.{end.number}/24 dev eth0")
            end.sh("ip link set eth0 up")
            end.begin()
        one.knows(other, other.public)
        other.knows(one, one.public)
        yield one, other
    finally:
        other.close()
        one.close()


def test_a_peer_is_told_and_read_back(ends: tuple[End, End]) -> None:
    one, other = ends
    (peer,) = one.peers.values()
    assert list(one.peers) == [other.public]
    assert peer.prefixes == {ip_network("10.9.2.0/24")} and peer.endpoint == (ip_address("192.0.2.2"), PORT)
    with eventually() as until:  # without a packet that would need it
        until(lambda: one.peers[other.public].handshake > 0)
    with netns.enter(one.path):
        more = (ip_network("fd09::/64"), ip_network("10.9.7.7/32"))
        wireguard.configure(NAME, [Setting(other.public, more)])
        assert one.peers[other.public].prefixes == {ip_network("10.9.2.0/24"), *more}
    one.knows(other, other.public)
    assert one.peers[other.public].prefixes == {ip_network("10.9.2.0/24")} and len(one.peers) == 1


def test_many_prefixes_of_a_peer_are_told_and_read_back(ends: tuple[End, End]) -> None:
    one, other = ends
    many = tuple(ip_network(f"10.{64 + (n >> 8)}.{n & 255}.0/24") for n in range(2000))
    with netns.enter(one.path):
        wireguard.configure(NAME, [Setting(other.public, many)])
        assert one.peers[other.public].prefixes == {ip_network("10.9.2.0/24"), *many}


def test_a_port_that_somebody_has_is_refused_and_leaves_no_device(ends: tuple[End, End]) -> None:
    one, _ = ends
    with netns.enter(one.path):
        with pytest.raises(KernelError) as refused:
            wireguard.create("other", one.private, PORT, 1440)
        assert refused.value.errno == errno.EADDRINUSE
        assert wireguard.find("other") is None
        assert wireguard.find("eth0") is None  # of another kind


def test_another_key_loses_no_packet_if_the_device_has_it_before_the_others(ends: tuple[End, End]) -> None:
    """`cluster rotate-key`, without the cluster: three times, with packets both ways."""
    one, other = ends
    with eventually() as until:
        until(lambda: one.try_("ping -c 1 -W 1 10.9.2.1").returncode == 0)
    there, back = pinging(one, "10.9.2.1", 71, 0.01), pinging(other, "10.9.1.1", 72, 0.01)
    for _ in range(3):
        one.private = wireguard.new_key()
        one.public = wireguard.public_key(one.private)
        with netns.enter(one.path):
            wireguard.configure(NAME, key=one.private)
        other.knows(one, one.public)
        with eventually() as until:
            until(lambda: other.peers[one.public].handshake > 0)
        assert list(other.peers) == [one.public]
    for process in (there, back):
        sent, lost = sent_and_lost(process)
        print(f"{sent} packets, {lost} lost")
        assert sent > 0 and lost == 0
