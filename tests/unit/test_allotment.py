# SPDX-License-Identifier: Apache-2.0
"""How networks are cut into blocks, which addresses hosts give, and how keys of the store are read."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from datapath.cluster import keys
from datapath.cluster.allotment import (
    Known,
    block_length,
    block_of,
    choose,
    choose_offline,
    reserve,
    spare_blocks,
)
from datapath.errors import ConfigError
from datapath.model.networks import Network, Subnet
from datapath.model.parsing import Address
from datapath.model.peers import Block, Peer, Remote
from datapath.plan import ipam
from datapath.store.cluster import Change, Entry

ME, OTHER = "1" * 32, "2" * 32


def subnet(text: str, ip_range: str = "", **aux: str) -> Subnet:
    area = ip_network(ip_range) if ip_range else None
    names = {name: ip_address(value) for name, value in aux.items()}
    return ipam.with_gateway(Subnet(ip_network(text), None, area, names, configured=True))


def network(*subnets: Subnet) -> Network:
    return Network("a" * 64, "ov", 0, "overlay", "global", subnets=subnets)


@pytest.mark.parametrize(
    ("text", "ip_range", "length"),
    [
        *(("10.0.0.0/8", "", 26), ("10.0.0.0/22", "", 26), ("10.0.0.0/23", "", 27), ("10.0.0.0/24", "", 28)),
        *(("10.0.0.0/26", "", 30), ("10.0.0.0/28", "", 30), ("10.0.0.0/30", "", 30), ("10.0.0.0/31", "", 31)),
        *(("10.0.0.0/16", "10.0.5.0/24", 28), ("10.0.0.0/16", "10.0.5.7/32", 32)),
        *(("fd00::/64", "", 112), ("fd00::/110", "", 114), ("fd00::/120", "", 124), ("fd00::/127", "", 127)),
    ],
)
def test_a_small_network_has_small_blocks(text: str, ip_range: str, length: int) -> None:
    assert block_length(subnet(text, ip_range)) == length


@pytest.mark.parametrize(
    ("text", "block", "first", "last"),
    [
        (
            "10.0.0.0/24",
            "10.0.0.0/28",
            "10.0.0.2",
            "10.0.0.5",
        ),  # behind the network's address and the gateway
        ("10.0.0.0/24", "10.0.0.16/28", "10.0.0.16", "10.0.0.19"),
        ("10.0.0.0/16", "10.0.5.64/26", "10.0.5.64", "10.0.5.79"),
        ("10.0.0.0/26", "10.0.0.60/30", "10.0.0.60", "10.0.0.60"),
        ("10.0.0.0/31", "10.0.0.0/31", "10.0.0.1", "10.0.0.1"),
        ("fd00::/64", "fd00::1:0/112", "fd00::1:0", "fd00::1:3fff"),
    ],
)
def test_a_quarter_of_a_block_is_its_owners(text: str, block: str, first: str, last: str) -> None:
    low, high = reserve(subnet(text), ip_network(block))
    assert (low, high) == (int(ip_address(first)), int(ip_address(last)))


def given(net: Network, me: str, known: Known, version: int = 4) -> Iterator[tuple[Address, Known]]:
    """One address after the other, until there is none left."""
    while True:
        try:
            choice = choose(net, me, known, version)
        except ConfigError:
            return
        if choice.block is not None:
            known = known.owning(choice.block, me)
        known = known.using(choice.address, str(choice.address))
        yield choice.address, known


@pytest.mark.parametrize(
    "text", ["10.0.0.0/24", "10.0.0.0/27", "10.0.0.0/29", "10.0.0.0/30", "10.0.0.0/31", "fd00::/120"]
)
def test_one_host_alone_can_use_every_address(text: str) -> None:
    net = network(subnet(text, aux="10.0.0.9" if text == "10.0.0.0/24" else str(ip_network(text)[-1])))
    version = net.subnets[0].prefix.version
    found = [address for address, _ in given(net, ME, Known(), version)]
    assert {*found} == {*ip_network(text)} - ipam.unavailable(net.subnets[0])


def test_the_reserve_is_given_last_and_never_to_others() -> None:
    net = network(subnet("10.0.0.0/24"))
    known = Known({ip_network(f"10.0.0.{base}/28"): OTHER for base in range(0, 240, 16)})
    found = [address for address, _ in given(net, ME, known)]
    own = [address for address in found if address in ip_network("10.0.0.240/28")]
    assert found[:11] == [ip_address(f"10.0.0.{number}") for number in range(244, 255)]
    assert own[11:] == [ip_address(f"10.0.0.{number}") for number in range(240, 244)]
    assert len(found) == 15 + 15 * 12 - 2  # the gateway's block has its reserve two addresses further back
    with pytest.raises(ConfigError, match=r"no available IPv4 addresses on this network's address pools: ov"):
        choose(net, ME, Known(known.blocks, dict.fromkeys(found, "")), 4)


def test_an_address_that_a_container_had_is_given_again_if_it_is_in_an_own_block() -> None:
    net = network(subnet("10.0.0.0/24"))
    known = Known({ip_network("10.0.0.32/28"): ME, ip_network("10.0.0.48/28"): OTHER})
    before, elsewhere = ip_address("10.0.0.33"), ip_address("10.0.0.60")
    assert choose(net, ME, known, 4, prefer=[before]).address == before
    assert choose(net, ME, known, 4, prefer=[elsewhere]).address == ip_address("10.0.0.36")
    assert choose(net, ME, known.using(before, "x"), 4, prefer=[before]).address == ip_address("10.0.0.36")
    assert choose_offline(net, ME, known, 4, prefer=[before]) == before
    assert choose_offline(net, ME, known, 4, prefer=[elsewhere]) == ip_address("10.0.0.32")


def test_outside_of_an_ip_range_any_host_may_have_an_address() -> None:
    net = network(subnet("10.0.0.0/16", "10.0.5.0/24"))
    wanted = ip_address("10.0.9.9")
    assert block_of(net.subnets[0], wanted) is None
    assert choose(net, ME, Known({ip_network("10.0.5.0/28"): ME}), 4, wanted).block is None
    assert choose(net, ME, Known(), 4, wanted).block is not None  # the first one comes with a block
    assert all(address in ip_network("10.0.5.0/24") for address, _ in given(net, ME, Known()))


def test_of_blocks_without_endpoints_one_is_kept() -> None:
    blocks = {ip_network(f"10.0.0.{base}/28"): ME for base in (16, 32, 48)} | {
        ip_network("10.0.0.64/28"): OTHER
    }
    first, second, third, _ = blocks
    one, two = ip_address("10.0.0.20"), ip_address("10.0.0.36")
    assert spare_blocks(ME, Known(blocks)) == (second, third)
    assert len(spare_blocks(ME, Known(blocks), kept=0)) == 3
    assert spare_blocks(ME, Known(blocks, {one: "a"})) == (third,)
    assert spare_blocks(ME, Known(blocks, {one: "a", two: "b"})) == ()
    assert spare_blocks(ME, Known(blocks, {ip_address("10.0.0.70"): "an exception"})) == (second, third)
    six = {ip_network("fd00::/112"): ME, ip_network("fd00::1:0/112"): ME}
    assert (
        spare_blocks(ME, Known(blocks | six)) == (second, third, ip_network("fd00::1:0/112"))
        and first in blocks
    )


# ---- keys -------------------------------------------------------------------------------------

PEER = Peer(ME, "h1", 3, ip_address("192.0.2.1"), "02:00:00:00:00:01", 9000)
REMOTE = Remote(
    "e" * 64,
    "a" * 64,
    ME,
    "02:42:0a:00:00:02",
    "5" * 64,
    "web",
    ipv4=IPv4Address("10.0.0.2"),
    ipv6=IPv6Address("fd00::2"),
    aliases=("www",),
    labels={"tier": "front"},
)
BLOCK = Block("a" * 64 + "/fd00::/112", "a" * 64, ip_network("fd00::/112"), ME)


def test_rows_are_read_as_they_were_written() -> None:
    net = network(subnet("10.0.0.0/24"))
    written = {
        keys.HOSTS + ME: keys.peer_value(PEER),
        keys.NETWORKS + net.id: keys.network_value(net),
        keys.block_key(net.id, BLOCK.prefix): keys.block_value(ME),
        keys.endpoint_keys(REMOTE)[0]: keys.remote_value(REMOTE),
        keys.endpoint_keys(REMOTE)[1]: keys.remote_value(REMOTE),
    }
    rows = [keys.row_of(key, value) for key, value in written.items()]
    assert rows[0] == PEER and rows[2:] == [BLOCK, REMOTE, REMOTE]
    assert isinstance(rows[1], Network) and rows[1].subnets == net.subnets and rows[1].number == 0
    assert keys.row_of(keys.ALIVE + ME, "{}") is None
    assert max(len(value) for value in written.values()) < 350


def change(key: str, value: str | None, revision: int) -> Change:
    return Change(key, None if value is None else Entry(value, 1, revision), revision)


def test_news_are_what_was_said_last() -> None:
    first, second = keys.endpoint_keys(REMOTE)
    value, block = keys.remote_value(REMOTE), keys.block_key("a" * 64, BLOCK.prefix)
    news = keys.news(
        [
            *(change(first, value, 2), change(second, value, 2), change(block, keys.block_value(ME), 2)),
            *(
                change(block, None, 3),
                change(keys.HOSTS + OTHER, None, 3),
                change(keys.NETWORKS + "b" * 64, None, 4),
            ),
            *(change(keys.ALIVE + ME, "{}", 4), change(keys.HOSTS + ME, "{", 4)),
        ]
    )
    assert news.put == (REMOTE,) and len(news.broken) == 1
    gone_block, gone_host, gone_network = news.gone
    assert gone_block.matches(BLOCK) and not gone_block.matches(REMOTE) and not gone_block.matches(PEER)
    assert gone_host.peer == OTHER and not gone_host.matches(PEER) and gone_network.network_id == "b" * 64
    ended = keys.news([change(second, value, 5), change(second, None, 6), change("names/x", None, 6)])
    assert ended.put == () and [gone.matches(REMOTE) for gone in ended.gone] == [True]
    assert not ended.gone[0].matches(BLOCK)
