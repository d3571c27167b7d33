# SPDX-License-Identifier: Apache-2.0
"""At which of its addresses other hosts reach a host, and how large a packet its underlay takes."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from datapath.errors import ConfigError
from datapath.model.clusters import Underlay, parse_advertise, underlay
from datapath.model.host import Device, DeviceAddress, HostNetwork, Route

NAMES = {1: "lo", 2: "eth0", 3: "eth1", 4: "eth2"}
HOST = HostNetwork(
    names=NAMES,
    devices={
        2: Device(2, "eth0", "", "02:00:00:00:00:02", 1500, True),
        3: Device(3, "eth1", "", "02:00:00:00:00:03", 9000, True),
        4: Device(4, "eth2", "", "02:00:00:00:00:04", 1400, True),
    },
    addresses=(
        DeviceAddress(2, 0, 0, ip_interface("192.0.2.1/24")),
        DeviceAddress(3, 0, 0, ip_interface("2001:db8::1/64")),
        DeviceAddress(3, 0, 0, ip_interface("198.51.100.1/24")),
        DeviceAddress(3, 0, 1, ip_interface("198.51.100.2/24")),
        DeviceAddress(4, 253, 0, ip_interface("fe80::4/64")),
    ),
    routes=(
        Route(ip_network("0.0.0.0/0"), (2,), 100, 0, None),
        Route(ip_network("::/0"), (3,), 50, 0, None),
    ),
)


@pytest.mark.parametrize(
    ("advertise", "expected"),
    [
        ("", Underlay(ip_address("192.0.2.1"), 1500, 2)),
        ("eth1:2376", Underlay(ip_address("198.51.100.1"), 9000, 3)),
        ("2001:db8::1", Underlay(ip_address("2001:db8::1"), 9000, 3)),
        ("198.51.100.2:2376", Underlay(ip_address("198.51.100.2"), 9000, 3)),
    ],
)
def test_s23_other_hosts_send_to_the_advertised_address_or_the_default_routes(
    advertise: str, expected: Underlay
) -> None:
    assert underlay(parse_advertise(advertise) if advertise else None, HOST) == expected


@pytest.mark.parametrize(
    ("advertise", "said"),
    [
        ("eth7", 'cluster-advertise: there is no device "eth7" on this host'),
        ("eth2", 'cluster-advertise: device "eth2" has no address that other hosts could reach'),
        ("192.0.2.2", "cluster-advertise: 192.0.2.2 is not an address of this host"),
    ],
)
def test_s37_what_this_host_does_not_have_is_not_advertised(advertise: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        underlay(parse_advertise(advertise), HOST)
    assert said in str(caught.value)


def test_s37_a_host_without_a_default_route_has_to_say_where_it_is() -> None:
    with pytest.raises(ConfigError, match='set "cluster-advertise"'):
        underlay(None, HostNetwork())


def test_s23_a_host_with_ipv6_alone_is_reached_by_it() -> None:
    alone = HostNetwork(
        names=NAMES, devices=HOST.devices, addresses=HOST.addresses[1:2], routes=HOST.routes[1:]
    )
    assert underlay(None, alone).address == ip_address("2001:db8::1")
