# SPDX-License-Identifier: Apache-2.0
"""What a host makes of what the cluster's store says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_network

from datapath.cluster import keys
from datapath.cluster.addresses import Part
from datapath.engine import following
from datapath.model.endpoints import Endpoint
from datapath.model.kinds import KINDS
from datapath.model.networks import Network, Subnet
from datapath.model.peers import Block, Owed, Peer, Remote
from datapath.model.rows import Phase, Row
from datapath.model.state import State
from datapath.store.cluster import Change, Entry

ME, OTHER, THIRD = "a" * 32, "b" * 32, "c" * 32
OV = Network(
    "1" * 64, "ov", 1, "overlay", vni=0x100000, scope="global", subnets=(Subnet(ip_network("10.0.0.0/24")),)
)
LAN = Network("2" * 64, "lan", 2, "bridge")
OWN = Peer(ME, "h1", 1, ip_address("192.0.2.1"), "02:00:00:00:00:01")
PEER = Peer(OTHER, "h2", 2, ip_address("192.0.2.2"), "02:00:00:00:00:02")
NEW = Peer(THIRD, "h3", 3, ip_address("192.0.2.3"), "02:00:00:00:00:03")


def block(peer: Peer, prefix: str) -> Block:
    return Block(f"{OV.id}/{prefix}", OV.id, ip_network(prefix), peer.id)


def remote(peer: Peer, address: str, ident: str = "", network: Network = OV) -> Remote:
    name = f"c{address.rpartition('.')[2]}"
    return Remote(
        ident or name * 20, network.id, peer.id, "02:42:00:00:00:05", name=name, ipv4=IPv4Address(address)
    )


def endpoint(number: int, address: str, network: Network = OV, phase: Phase = Phase.READY) -> Endpoint:
    interface = IPv4Interface(f"{address}/24")
    ident = f"{number:064x}"
    return Endpoint(
        ident,
        network.id,
        f"{number:064x}",
        number,
        number,
        "eth0",
        f"veth{number}",
        "02:42",
        interface,
        phase=phase,
    )


def state(*rows: Row) -> State:
    return State({}, ME, KINDS).including(OV, LAN, OWN, PEER, *rows)


def part(*rows: keys.ClusterRow, networks: tuple[Network, ...] = (OV,)) -> Part:
    """A list that has this host and the other, and these."""
    peers = (OWN, PEER, *keys.of_kind(rows, Peer))
    blocks, remotes = keys.of_kind(rows, Block), keys.of_kind(rows, Remote)
    return Part(7, networks, peers, tuple(blocks), tuple(remotes))


def gone(key: str) -> keys.News:
    return keys.news([Change(key, None, 8)])


BLOCK, REMOTE = block(PEER, "10.0.0.64/28"), remote(PEER, "10.0.0.66")


def test_a_host_wants_to_hear_of_the_global_networks_that_it_takes_part_in() -> None:
    assert following.interest(State({}, ME, KINDS).including(LAN)) == following.Interest()
    assert following.interest(state()) == following.Interest(ME, frozenset({OV.id}))
    leaving = replace(OV, id="3" * 64, name="old", phase=Phase.REMOVING)
    found = following.interest(state(leaving, Owed("eps/x/10.0.0.9")))
    assert found == following.Interest(ME, frozenset({OV.id}), owing=True)


def test_a_list_is_the_rows_that_differ_and_those_that_are_gone() -> None:
    old, stays = remote(PEER, "10.0.0.67"), remote(PEER, "10.0.0.68")
    before = state(BLOCK, old, stays)
    found = following.of_list(before, part(BLOCK, REMOTE, stays, NEW), following.held(before))
    assert found == following.Differences(put=(NEW, REMOTE), gone=(old,))
    assert (
        following.of_list(before, part(BLOCK, old, stays), following.held(before)) == following.Differences()
    )


def test_what_a_command_has_written_since_a_list_was_asked_for_stays() -> None:
    asked = following.held(state())
    assert following.of_list(state(BLOCK, REMOTE), part(), asked) == following.Differences()
    assert following.of_list(state(BLOCK, REMOTE), part(), following.held(state(BLOCK, REMOTE))).gone == (
        BLOCK,
        REMOTE,
    )


def test_a_network_that_is_not_in_the_list_is_gone_from_the_cluster() -> None:
    assert following.of_list(state(), part(networks=()), ()).forgotten == (OV,)
    assert following.of_news(state(), gone(f"networks/{OV.id}")).forgotten == (OV,)
    assert following.of_news(state(), gone(f"networks/{LAN.id}")) == following.Differences()
    assert following.of_news(state(), gone(f"networks/{'4' * 64}")) == following.Differences()


def test_news_of_a_host_that_is_not_known_wait_for_it() -> None:
    early = (block(NEW, "10.0.0.96/28"), remote(NEW, "10.0.0.98"))
    assert following.of_news(state(), keys.News(early)) == following.Differences(early=early)
    assert following.of_news(state(), keys.News((*early, NEW))).put == (NEW, *early)


def test_networks_that_the_host_has_no_part_in_are_passed_over() -> None:
    elsewhere = replace(OV, id="5" * 64, name="other")
    rows = (elsewhere, remote(PEER, "10.0.0.70", network=elsewhere), remote(PEER, "10.0.0.71", network=LAN))
    assert following.of_news(state(), keys.News(rows)) == following.Differences()


def test_a_host_that_is_gone_takes_what_it_had_with_it() -> None:
    found = following.of_news(state(BLOCK, REMOTE), gone(f"hosts/{OTHER}"))
    assert found.gone == (PEER, BLOCK, REMOTE) and not found.disowned


def test_keys_that_are_deleted_are_rows_that_are_gone() -> None:
    both = replace(REMOTE, ipv6=IPv6Address("fd00::66"))
    now = state(BLOCK, both)
    assert following.of_news(now, gone(keys.block_key(OV.id, BLOCK.prefix))).gone == (BLOCK,)
    for key in keys.endpoint_keys(both):
        assert following.of_news(now, gone(key)).gone == (both,)
    assert following.of_news(now, gone(keys.endpoint_key(OV.id, ip_address("10.0.0.99")))).gone == ()


def test_what_is_this_hosts_own_is_never_taken_from_it_but_noticed() -> None:
    own, mine = block(OWN, "10.0.0.32/28"), endpoint(1, "10.0.0.33")
    said = remote(OWN, "10.0.0.33", mine.id)
    now = state(own, mine)
    whole = part(own, said)
    assert following.of_list(now, whole, following.held(now)) == following.Differences()
    for lacking in (part(said), part(own), whole._replace(peers=(PEER,))):
        found = following.of_list(now, lacking, following.held(now))
        assert found.disowned and not found.gone and not found.put
    more = part(own, said, remote(OWN, "10.0.0.40"))
    assert following.of_list(now, more, following.held(now)).disowned
    for key in (f"hosts/{ME}", keys.block_key(OV.id, own.prefix), *keys.endpoint_keys(said)):
        found = following.of_news(now, gone(key))
        assert found.disowned and not found.gone
    moved = replace(OWN, number=9)
    assert following.of_news(now, keys.News((moved,))) == following.Differences(disowned=True)


def test_what_is_owed_is_not_missed() -> None:
    mine = endpoint(1, "10.0.0.33")
    key = keys.endpoint_key(OV.id, ip_address("10.0.0.33"))
    assert not following.of_list(state(mine, Owed(key, "{}")), part(), ()).disowned
    assert not following.of_list(state(Owed(key)), part(remote(OWN, "10.0.0.33")), ()).disowned
    leaving = endpoint(1, "10.0.0.33", phase=Phase.REMOVING)
    assert not following.of_news(state(leaving), gone(key)).disowned


def test_the_last_change_of_a_key_counts() -> None:
    (key,) = keys.endpoint_keys(REMOTE)
    entry = Entry(keys.remote_value(REMOTE), 5, 5)
    back = keys.news([Change(key, None, 4), Change(key, entry, 5)])
    assert following.of_news(state(), back).put == (REMOTE,)
    assert following.of_news(
        state(REMOTE), keys.news([Change(key, entry, 5), Change(key, None, 6)])
    ).gone == (REMOTE,)
