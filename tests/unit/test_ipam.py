# SPDX-License-Identifier: Apache-2.0
"""Pools, subnets, addresses and MACs are chosen as Docker chooses them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from datapath.errors import ConfigError
from datapath.model.networks import Subnet, mac_for
from datapath.model.parsing import Prefix
from datapath.model.pools import DEFAULT_POOLS, Pool, ula_pool
from datapath.plan import ipam


def pool(base: str, size: int) -> Pool:
    return Pool(ip_network(base), size)


def subnet(prefix: str, gateway: str = "", ip_range: str = "", **aux: str) -> Subnet:
    return Subnet(
        ip_network(prefix),
        ip_address(gateway) if gateway else None,
        ip_network(ip_range) if ip_range else None,
        {name: ip_address(text) for name, text in aux.items()},
    )


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ([], "172.17.0.0/16"),
        (["172.17.0.0/16"], "172.18.0.0/16"),
        (["172.17.5.0/24"], "172.18.0.0/16"),
        (["172.17.0.1/32"], "172.18.0.0/16"),
        (["172.18.0.0/16"], "172.17.0.0/16"),
        (["0.0.0.0/0"], "172.17.0.0/16"),
        (["0.0.0.0/1", "128.0.0.0/1"], "172.17.0.0/16"),
        (["fd00::/8"], "172.17.0.0/16"),
        (["172.16.0.0/12"], "192.168.0.0/20"),
        (["172.16.0.0/12", "192.168.0.0/20"], "192.168.16.0/20"),
        (["172.16.0.0/12", "192.168.1.0/24"], "192.168.16.0/20"),
        (["172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16"], "172.20.0.0/16"),
        (["172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/16"], "172.21.0.0/16"),
        (["172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/14"], "172.24.0.0/16"),
    ],
)
def test_the_next_network_is_the_first_of_dockers_pools_that_is_free(taken: list[str], chosen: str) -> None:
    assert str(ipam.choose_pool(DEFAULT_POOLS, [ip_network(text) for text in taken])) == chosen


def test_after_the_31_networks_of_dockers_pools_there_are_small_ones_and_then_a_clear_refusal() -> None:
    taken: list[Prefix] = []
    for _ in range(32):
        taken.append(ipam.choose_pool(DEFAULT_POOLS, taken))
    assert len(set(taken)) == 32
    assert [str(prefix) for prefix in taken[-2:]] == ["192.168.240.0/20", "10.0.0.0/24"]
    taken.append(ip_network("10.0.0.0/8"))
    with pytest.raises(ConfigError, match="could not find an available, non-overlapping IPv4 address pool"):
        ipam.choose_pool(DEFAULT_POOLS, taken)


def test_a_pool_of_many_small_networks_is_searched_quickly() -> None:
    taken = [ip_network("10.0.0.0/9"), ip_network("10.128.0.0/10")]
    assert str(ipam.choose_pool([pool("10.0.0.0/8", 30)], taken)) == "10.192.0.0/30"


def test_ipv6_networks_come_from_a_prefix_that_is_this_installations_own() -> None:
    one, two = ula_pool("one"), ula_pool("two")
    assert one == ula_pool("one") != two
    assert one.base.subnet_of(ip_network("fd00::/8"))  # type: ignore[arg-type]
    first = ipam.choose_pool([one], [], 6)
    assert first.prefixlen == 64
    assert ipam.choose_pool([one], [first], 6) != first


@pytest.mark.parametrize(
    ("where", "used", "chosen"),
    [
        (subnet("172.17.0.0/16", "172.17.0.1"), [], "172.17.0.2"),
        (subnet("172.17.0.0/16", "172.17.0.1"), ["172.17.0.2", "172.17.0.4"], "172.17.0.3"),
        (subnet("10.0.0.0/24", "10.0.0.254"), [], "10.0.0.1"),
        (subnet("10.0.0.0/24", "10.0.0.1", printer="10.0.0.2"), [], "10.0.0.3"),
        (subnet("10.0.0.0/16", "10.0.0.1", "10.0.4.0/24"), [], "10.0.4.0"),
        (subnet("10.0.0.0/16", "10.0.0.1", "10.0.0.0/24"), [], "10.0.0.2"),
        (subnet("10.0.0.0/31", "10.0.0.0"), [], "10.0.0.1"),
        (subnet("fd00::/127", "fd00::"), [], "fd00::1"),
        (subnet("fd00::/127", "fd00::1"), [], "fd00::"),
        (subnet("10.0.0.0/30", "10.0.0.1"), [], "10.0.0.2"),
        (subnet("fd00::/64", "fd00::1"), [], "fd00::2"),
        (subnet("fd00::/64", "fd00::1"), ["fd00::2"], "fd00::3"),
    ],
)
def test_the_next_address_is_the_lowest_that_nobody_has(where: Subnet, used: list[str], chosen: str) -> None:
    assert str(ipam.choose_address(where, {ip_address(text) for text in used})) == chosen


@pytest.mark.parametrize(
    ("where", "used"),
    [
        (subnet("10.0.0.0/30", "10.0.0.1"), ["10.0.0.2"]),
        (subnet("10.0.0.0/31", "10.0.0.0"), ["10.0.0.1"]),
        (subnet("fd00::/127", "fd00::"), ["fd00::1"]),
        (subnet("10.0.0.0/16", "10.0.0.1", "10.0.4.4/32"), ["10.0.4.4"]),
    ],
)
def test_when_no_address_is_left_that_is_said(where: Subnet, used: list[str]) -> None:
    with pytest.raises(ConfigError, match="no available IP addresses"):
        ipam.choose_address(where, {ip_address(text) for text in used})


@pytest.mark.parametrize(
    ("subnets", "ranges", "gateways", "aux", "gateway"),
    [
        (["10.0.0.0/16"], [], [], [], "10.0.0.1"),
        (["10.0.0.0/16"], [], ["10.0.0.9"], [], "10.0.0.9"),
        (["10.0.0.0/16"], [], [], ["a=10.0.0.1"], "10.0.0.2"),
        (["10.0.0.0/16"], ["10.0.4.0/24"], [], [], "10.0.4.0"),
        (["10.0.0.0/16"], ["10.0.4.0/24"], ["10.0.0.1"], [], "10.0.0.1"),
        (["10.0.0.0/31"], [], [], [], "10.0.0.0"),
        (["fd00::/127"], [], [], [], "fd00::"),
        (["fd00::/127"], [], ["fd00::1"], [], "fd00::1"),
        (["fd00::/126"], [], [], [], "fd00::1"),
        (["fd00::/64"], [], [], [], "fd00::1"),
        (["fd00::/64"], [], ["fd00::ffff"], [], "fd00::ffff"),
    ],
)
def test_the_gateway_is_the_first_address_that_can_be_one_unless_it_is_given(
    subnets: list[str], ranges: list[str], gateways: list[str], aux: list[str], gateway: str
) -> None:
    (found,) = ipam.parse_subnets(subnets, ranges, gateways, aux)
    assert str(found.gateway) == gateway
    assert found.configured


def test_each_gateway_and_range_goes_to_the_subnet_around_it() -> None:
    four, six = ipam.parse_subnets(
        ["10.0.0.0/16", "fd00::/64"], ["10.0.8.0/24"], ["fd00::7", "10.0.0.7"], ["a=fd00::8", "b=10.0.0.8"]
    )
    assert (str(four.gateway), str(four.ip_range), dict(four.aux)) == (
        "10.0.0.7",
        "10.0.8.0/24",
        {"b": ip_address("10.0.0.8")},
    )
    assert (str(six.gateway), six.ip_range, dict(six.aux)) == ("fd00::7", None, {"a": ip_address("fd00::8")})


@pytest.mark.parametrize(
    ("subnets", "ranges", "gateways", "aux", "message"),
    [
        ([], ["10.0.0.0/24"], [], [], "must have a corresponding subnet"),
        ([], [], ["10.0.0.1"], [], "must have a corresponding subnet"),
        ([], [], [], ["a=10.0.0.1"], "must have a corresponding subnet"),
        (["10.0.0.0"], [], [], [], "invalid CIDR block notation"),
        (["10.0.0.0/33"], [], [], [], "invalid CIDR block notation"),
        (["10.0.0.1/16"], [], [], [], "it should be 10.0.0.0/16"),
        (["10.0.0.0/32"], [], [], [], "no room"),
        (["fd00::/128"], [], [], [], "no room"),
        (["fd00::/126"], [], ["fd00::"], [], "it is the network address"),
        (["0.0.0.0/0"], [], [], [], "no container can have"),
        (["127.0.0.0/8"], [], [], [], "no container can have"),
        (["224.0.0.0/24"], [], [], [], "no container can have"),
        (["fe80::/64"], [], [], [], "no container can have"),
        (["ff02::/64"], [], [], [], "no container can have"),
        (["::ffff:10.0.0.0/112"], [], [], [], "no container can have"),
        (["::/0"], [], [], [], "no container can have"),
        (["10.0.0.0/16", "10.0.1.0/24"], [], [], [], "multiple overlapping subnet"),
        (["10.0.0.0/16"], [], ["10.1.0.1"], [], "no matching subnet for gateway 10.1.0.1"),
        (["10.0.0.0/16"], [], ["fd00::1"], [], "no matching subnet for gateway fd00::1"),
        (["10.0.0.0/16"], [], ["10.0.0.0"], [], "network address"),
        (["10.0.0.0/16"], [], ["10.0.255.255"], [], "broadcast address"),
        (["10.0.0.0/16"], [], ["10.0.0.1", "10.0.0.2"], [], "cannot configure multiple gateways"),
        (["10.0.0.0/16"], [], ["gw"], [], "invalid gateway"),
        (["10.0.0.0/16"], ["10.1.0.0/24"], [], [], "no matching subnet for range"),
        (["10.0.0.0/16"], ["10.0.0.0/8"], [], [], "bigger than its parent subnet"),
        (["10.0.0.0/16"], ["10.0.0.1/24"], [], [], "it should be 10.0.0.0/24"),
        (["10.0.0.0/16"], ["10.0.0.0/24", "10.0.1.0/24"], [], [], "cannot configure multiple ranges"),
        (["10.0.0.0/16"], [], [], ["a=10.1.0.1"], "no matching subnet for aux-address"),
        (["10.0.0.0/16"], [], [], ["10.0.0.5"], "expected name=address"),
        (["10.0.0.0/16"], [], [], ["=10.0.0.5"], "expected name=address"),
        (["10.0.0.0/16"], [], [], ["a=b"], "invalid auxiliary address"),
        (["10.0.0.0/16"], [], [], ["a=10.0.0.5", "b=10.0.0.5"], "already in use"),
        (["10.0.0.0/16"], [], [], ["a=10.0.0.5", "a=10.0.0.6"], "given twice"),
        (["10.0.0.0/16"], [], [], ["a=10.0.255.255"], "already in use"),
        (["10.0.0.0/16"], [], ["10.0.0.5"], ["a=10.0.0.5"], "gateway and auxiliary address"),
        (["10.0.0.0/31"], [], ["10.0.0.0"], ["a=10.0.0.0"], "gateway and auxiliary address"),
    ],
)
def test_a_subnet_that_cannot_be_is_refused(
    subnets: list[str], ranges: list[str], gateways: list[str], aux: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ipam.parse_subnets(subnets, ranges, gateways, aux)


WHERE = subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.128/25", printer="10.0.0.7")


@pytest.mark.parametrize("address", ["10.0.0.2", "10.0.0.200"])
def test_an_address_of_the_subnet_may_be_asked_for_in_and_out_of_the_range(address: str) -> None:
    ipam.check_static(WHERE, ip_address(address))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.0.1.2", "no configured subnet or ip-range contain the IP address 10.0.1.2"),
        ("fd00::1", "no configured subnet or ip-range contain"),
        ("10.0.0.1", "Address already in use: 10.0.0.1 is the network's gateway"),
        ("10.0.0.7", 'Address already in use: 10.0.0.7 is the auxiliary address "printer"'),
        ("10.0.0.0", "Address already in use: 10.0.0.0 is the network address"),
        ("10.0.0.255", "Address already in use: 10.0.0.255 is the broadcast address"),
    ],
)
def test_an_address_that_is_outside_or_reserved_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ipam.check_static(WHERE, ip_address(address))


def test_the_mac_address_is_made_of_the_ipv4_address() -> None:
    assert mac_for(ip_address("172.17.0.2")) == "02:42:ac:11:00:02"


def test_a_mac_address_that_is_taken_is_not_given_again() -> None:
    address = ip_address("172.17.0.2")
    used = {mac_for(address)}
    other = ipam.choose_mac(address, used)
    assert other not in used
    assert other.startswith("02:42:")
    assert ipam.choose_mac(address, used) == other
    assert ipam.choose_mac(address, {*used, other}) not in {*used, other}
