# SPDX-License-Identifier: Apache-2.0
"""Networks, connect and disconnect: what is decided and what is refused, before anything is changed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network
from typing import Any

import pytest

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, DatapathError, ExistsError, InUseError, NotFoundError
from datapath.model.drivers import traits
from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import Network
from datapath.model.observed import HostFacts
from datapath.model.rows import Phase
from datapath.plan.endpoints import plan_disconnect, plan_gateway_endpoint
from datapath.plan.networks import plan_default_bridge, plan_network_remove
from datapath.plan.pruning import plan_network_prune
from tests.unit.planned_host import FACTS, NOW, PlannedHost, addresses

BR = "com.docker.network.bridge."


def config(text: str) -> DaemonConfig:
    return DaemonConfig.parse(text)


# ---- the predefined networks -------------------------------------------------------------------------


def test_three_networks_exist_from_the_start() -> None:
    rows = [(n.name, n.driver, n.scope, n.predefined) for n in PlannedHost().state.networks.values()]
    assert rows == [
        ("bridge", "bridge", "local", True),
        ("host", "host", "local", True),
        ("none", "null", "local", True),
    ]


@pytest.mark.parametrize("name", ["bridge", "host", "none", "default"])
def test_predefined_networks_cannot_be_created_again(name: str) -> None:
    with pytest.raises(ExistsError, match=f"operation is not permitted on predefined {name} network"):
        PlannedHost().plan_network(name)


@pytest.mark.parametrize("name", ["bridge", "host", "none"])
def test_predefined_networks_cannot_be_removed(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a pre-defined network and cannot be removed"):
        plan_network_remove(name, PlannedHost().state)


def bridge(facts: HostFacts = FACTS, text: str = "{}") -> Network:
    host = PlannedHost(facts, config(text))
    return plan_default_bridge(host.state, host.facts, host.config)


@pytest.mark.parametrize(
    ("prefixes", "text", "prefix", "gateway"),
    [
        ([], "{}", "172.17.0.0/16", "172.17.0.1"),
        (["172.17.0.0/16"], "{}", "172.18.0.0/16", "172.18.0.1"),
        (["172.17.9.1/32"], "{}", "172.18.0.0/16", "172.18.0.1"),
        ([], '{"bip": "10.5.0.9/24"}', "10.5.0.0/24", "10.5.0.9"),
        ([], '{"bip": "10.5.0.1/16", "fixed-cidr": "10.5.7.0/24"}', "10.5.0.0/16", "10.5.0.1"),
        ([], '{"fixed-cidr": "10.6.0.0/24"}', "10.6.0.0/24", "10.6.0.1"),
        ([], '{"default-address-pools": [{"base": "10.7.0.0/16", "size": 24}]}', "10.7.0.0/24", "10.7.0.1"),
    ],
)
def test_the_default_network_gets_the_first_free_pool_or_what_the_configuration_says(
    prefixes: list[str], text: str, prefix: str, gateway: str
) -> None:
    network = bridge(FACTS._replace(prefixes=tuple(ip_network(p) for p in prefixes)), text)
    assert network.subnet4 is not None
    assert (str(network.subnet4.prefix), str(network.subnet4.gateway)) == (prefix, gateway)
    assert network.device == "dp0"


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("{}", BR + "enable_icc", "true"),
        ('{"icc": false}', BR + "enable_icc", "false"),
        ('{"ip-masq": false}', BR + "enable_ip_masquerade", "false"),
        ('{"ip": "127.0.0.1"}', BR + "host_binding_ipv4", "127.0.0.1"),
        ("{}", "com.docker.network.driver.mtu", "1500"),
        ('{"mtu": 1400}', "com.docker.network.driver.mtu", "1400"),
    ],
)
def test_the_default_networks_options_come_from_the_configuration(text: str, option: str, value: str) -> None:
    assert bridge(text=text).options[option] == value


def test_the_default_networks_mtu_is_that_of_the_hosts_default_route() -> None:
    assert bridge(FACTS._replace(default_mtu=1450)).mtu == 1450


def test_ipv6_on_the_default_network_is_a_matter_of_configuration() -> None:
    assert bridge().subnet6 is None
    network = bridge(text='{"ipv6": true, "fixed-cidr-v6": "fd00:5::/64"}')
    assert network.ipv6
    assert network.subnet6 is not None
    assert str(network.subnet6.gateway) == "fd00:5::1"


def test_a_bip_that_overlaps_the_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlaps 192\.0\.2\.0/24"):
        bridge(text='{"bip": "192.0.2.1/25"}')


def test_a_realised_default_network_keeps_its_addresses_when_the_configuration_changes() -> None:
    host = PlannedHost()
    host.run("web")
    before = host.state.network("bridge")
    after = plan_default_bridge(host.state, FACTS, config('{"icc": false, "bip": "10.5.0.1/16", "mtu": 900}'))
    assert (after.subnets, after.mtu, after.icc, after.phase) == (before.subnets, 900, False, before.phase)


@pytest.mark.parametrize(("default_route", "mtu"), [(True, 1400), (False, 1500)])
def test_the_default_networks_mtu_follows_the_hosts_default_route_while_there_is_one(
    default_route: bool, mtu: int
) -> None:
    host = PlannedHost()
    host.run("web")
    facts = FACTS._replace(default_mtu=1400, default_route=default_route)
    assert plan_default_bridge(host.state, facts, config("{}")).mtu == mtu


def test_a_device_in_the_default_networks_place_is_not_taken_over() -> None:
    with pytest.raises(ExistsError, match="dp0"):
        bridge(FACTS._replace(devices=frozenset({"dp0"})))


# ---- network create ------------------------------------------------------------------------------------


def test_subnet_gateway_and_device_name_are_honoured() -> None:
    options = (BR + "name=docker1",)
    network = PlannedHost().plan_network(
        "br1", subnets=("10.0.0.0/16",), gateways=("10.0.0.1",), options=options
    )
    assert network.subnet4 is not None
    assert (network.device, str(network.subnet4.gateway), network.number) == ("docker1", "10.0.0.1", 2)


def test_without_options_the_next_free_pool_is_taken_and_the_default_networks_is_left_to_it() -> None:
    host = PlannedHost()
    found = [host.network(f"n{i}") for i in range(3)]
    assert [str(n.subnets[0].prefix) for n in found] == ["172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/16"]
    assert [n.device for n in found] == [f"dp-{n.short_id}" for n in found]
    assert all(len(n.device) <= 15 for n in found)
    assert str(bridge().subnets[0].prefix) == "172.17.0.0/16"


def test_numbers_are_the_lowest_that_are_free() -> None:
    host = PlannedHost()
    networks = [host.network(f"n{i}") for i in range(3)]
    host.state = host.state.without(networks[1])
    assert [n.number for n in networks] == [2, 3, 4]
    assert host.network("again").number == 3


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"internal": True}, lambda n: n.internal),
        ({"attachable": True}, lambda n: n.attachable),
        ({"labels": ("a=b", "c")}, lambda n: n.labels == {"a": "b", "c": ""}),
        ({"options": (BR + "enable_icc=0",)}, lambda n: not n.icc),
        ({"options": (BR + "enable_ip_masquerade=F",)}, lambda n: not n.masquerade),
        ({"options": (BR + "host_binding_ipv4=127.0.0.1",)}, lambda n: n.host_binding.is_loopback),
        ({"options": ("com.docker.network.driver.mtu=1400",)}, lambda n: n.mtu == 1400),
        ({"options": ("com.docker.network.container_iface_prefix=net",)}, lambda n: n.iface_prefix == "net"),
        ({}, lambda n: (n.mode, n.pair) == ("ebpf", "veth")),
        ({"options": ("com.datapath.device=veth",)}, lambda n: n.pair == "veth"),
        ({"options": ("com.datapath.beside=1",)}, lambda n: n.beside),
        (
            {"options": ("com.datapath.device=netkit",)},
            lambda n: traits(n).pair == "netkit" and traits(n).programs,
        ),
        ({"ipv6": True}, lambda n: n.subnet6.prefix.prefixlen == 64 and n.subnet4 is not None),
        ({"ipv6": True, "ipv4": False}, lambda n: n.subnet4 is None and n.subnet6 is not None),
        ({"ipv6": True, "subnets": ("fd00:9::/64",)}, lambda n: str(n.subnet6.gateway) == "fd00:9::1"),
        ({"ipam_driver": ""}, lambda n: n.subnet4 is not None),
        ({"scope": "local"}, lambda n: n.scope == "local"),
        (
            {"options": ("com.datapath.allow=10.0.0.0/8,10.0.0.0/8,192.0.2.7",)},
            lambda n: n.options["com.datapath.allow"] == "10.0.0.0/8,192.0.2.7/32",
        ),
    ],
)
def test_an_option_of_create_has_its_effect(fields: dict[str, Any], check: Any) -> None:
    assert check(PlannedHost().plan_network("n", **fields))


def test_default_network_opts_apply_unless_the_user_says_otherwise() -> None:
    text = f'{{"default-network-opts": {{"bridge": {{"{BR}enable_icc": "false"}}}}}}'
    host = PlannedHost(config=config(text))
    assert not host.plan_network("a").icc
    assert host.plan_network("b", options=(BR + "enable_icc=true",)).icc


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"subnets": ("10.0.0.0",)}, ConfigError, "invalid CIDR block notation"),
        ({"subnets": ("10.0.0.5/16",)}, ConfigError, "it should be 10.0.0.0/16"),
        (
            {"subnets": ("10.0.0.0/16",), "gateways": ("10.1.0.1",)},
            ConfigError,
            "no matching subnet for gateway",
        ),
        ({"subnets": ("10.0.0.0/16", "10.1.0.0/16")}, ConfigError, "takes one IPv4 subnet"),
        ({"subnets": ("fd00::/64", "fd01::/64"), "ipv6": True}, ConfigError, "takes one IPv6 subnet"),
        ({"subnets": ("fd00::/64",)}, ConfigError, "needs IPv6: add --ipv6"),
        ({"subnets": ("10.0.0.0/16",), "ipv4": False, "ipv6": True}, ConfigError, "needs IPv4"),
        ({"ipv4": False}, ConfigError, "IPv4 or IPv6 must be enabled"),
        ({"subnets": ("10.9.1.0/24",)}, ConfigError, "Pool overlaps with other one .* of network taken"),
        ({"subnets": ("10.0.0.0/8",)}, ConfigError, "Pool overlaps with other one .* of network taken"),
        ({"subnets": ("172.17.3.0/24",)}, ConfigError, "Pool overlaps with other one .* of network bridge"),
        (
            {"subnets": ("192.0.2.128/25",)},
            ConfigError,
            "overlaps 192.0.2.0/24, an address or route of this host",
        ),
        (
            {"subnets": ("192.0.0.0/16",)},
            ConfigError,
            "overlaps 192.0.2.0/24, an address or route of this host",
        ),
        ({"driver": "host"}, ConfigError, 'only one instance of "host" network is allowed'),
        ({"driver": "null"}, ConfigError, 'only one instance of "null" network is allowed'),
        ({"driver": "overlay", "scope": "local"}, ConfigError, "overlay networks are global"),
        (
            {"driver": "overlay", "options": ("com.docker.network.driver.overlay.vxlanid_list=0",)},
            ConfigError,
            'invalid vxlan id value "0" passed',
        ),
        (
            {"driver": "overlay", "options": ("com.datapath.transport=gre",)},
            ConfigError,
            "there are vxlan, direct",
        ),
        (
            {"driver": "overlay", "options": ("encrypted", "com.datapath.transport=vxlan")},
            ConfigError,
            "conflicting options: encrypted and com.datapath.transport=vxlan",
        ),
        ({"driver": "remote"}, ConfigError, '"remote" does not exist'),
        ({"driver": "zzz"}, ConfigError, '"zzz" does not exist'),
        ({"driver": ""}, ConfigError, '"" does not exist'),
        ({"scope": "swarm"}, ConfigError, '"swarm" is not available'),
        ({"ipam_driver": "dhcp"}, ConfigError, 'IPAM driver "dhcp" does not exist'),
        ({"ipam_options": ("a=b",)}, ConfigError, 'option "a" of IPAM driver'),
        ({"labels": ("=x",)}, ConfigError, "invalid label"),
        (
            {"options": ("colour=red",)},
            ConfigError,
            r'option "colour" of driver bridge is unknown: there are com\.docker\.network\.bridge\.{name,enable_icc,',
        ),
        (
            {"options": (BR + "icc_enable=true",)},
            ConfigError,
            f"not available yet: did you mean {BR}enable_icc.$",
        ),
        (
            {"options": (BR + "enable_ic=true",)},
            ConfigError,
            f"not available yet: did you mean {BR}enable_icc.$",
        ),
        ({"options": ("enable_icc=true",)}, ConfigError, f"is unknown: did you mean {BR}enable_icc.$"),
        ({"options": (BR + "inhibit_ipv4=true",)}, ConfigError, "inhibit_ipv4.* is not available yet"),
        ({"options": (BR + "default_bridge=true",)}, ConfigError, "default_bridge"),
        ({"options": ("=x",)}, ConfigError, "invalid driver option"),
        ({"options": (BR + "enable_icc=maybe",)}, ConfigError, "expected true or false"),
        ({"options": (BR + "enable_icc",)}, ConfigError, "expected true or false"),
        ({"options": (BR + "name=",)}, ConfigError, "not a device name"),
        ({"options": (BR + "name=0123456789abcdef",)}, ConfigError, "not a device name"),
        ({"options": (BR + "name=../x",)}, ConfigError, "not a device name"),
        ({"options": (BR + "name=a b",)}, ConfigError, "not a device name"),
        ({"options": (BR + "name=eth0",)}, ExistsError, "device name eth0 is already used on this host"),
        (
            {"options": (BR + "name=docker9",)},
            ExistsError,
            "device name docker9 is already used by network taken",
        ),
        ({"options": (BR + "name=dp0",)}, ExistsError, "already used by network bridge"),
        ({"options": (BR + "host_binding_ipv4=x",)}, ConfigError, "invalid value"),
        ({"options": ("com.docker.network.driver.mtu=10",)}, ConfigError, "expected 68 to 65535"),
        ({"options": ("com.docker.network.driver.mtu=-1",)}, ConfigError, "expected 68 to 65535"),
        ({"options": ("com.docker.network.driver.mtu=1200",), "ipv6": True}, ConfigError, "at least 1280"),
        (
            {"options": ("com.docker.network.container_iface_prefix=a/b",)},
            ConfigError,
            "beginning of a device",
        ),
        ({"options": ("com.datapath.device=tap",)}, ConfigError, "there are veth, netkit"),
        ({"options": ("com.datapath.domain=a..b",)}, ConfigError, "not a domain"),
        ({"options": ("com.datapath.domain=" + "a" * 101,)}, ConfigError, "not a domain"),
        ({"options": ("com.datapath.names=maybe",)}, ConfigError, "com.datapath.names"),
        (
            {"options": ("com.datapath.domain=x", "com.datapath.mode=iptables")},
            ConfigError,
            "com.datapath.domain needs com.datapath.mode=ebpf, not iptables",
        ),
        ({"options": ("com.datapath.deny=10.0.0.1/8",)}, ConfigError, "prefix in option com.datapath.deny"),
        ({"options": ("com.datapath.deny=,",)}, ConfigError, "prefix in option com.datapath.deny"),
        (
            {"options": ("com.datapath.deny=10.0.0.0/8", "com.datapath.allow=10.0.0.0/8")},
            ConfigError,
            "cannot both allow and deny 10.0.0.0/8",
        ),
        (
            {"options": ("com.datapath.deny=10.0.0.0/8", "com.datapath.mode=iptables")},
            ConfigError,
            "com.datapath.deny needs com.datapath.mode=ebpf, not iptables",
        ),
        (
            {"options": ("com.datapath.device=netkit", "com.datapath.mode=iptables")},
            ConfigError,
            "com.datapath.device=netkit needs com.datapath.mode=ebpf, not iptables",
        ),
        (
            {"options": ("com.datapath.beside=true", "com.datapath.mode=nftables")},
            ConfigError,
            "com.datapath.beside needs com.datapath.mode=ebpf, not nftables",
        ),
        (
            {"options": ("com.datapath.flows=true", "com.datapath.mode=nftables")},
            ConfigError,
            "com.datapath.flows needs com.datapath.mode=ebpf, not nftables",
        ),
        (
            {"options": ("com.datapath.host_routed=10.96.0.0/12", "com.datapath.mode=nftables")},
            ConfigError,
            "com.datapath.host_routed needs com.datapath.mode=ebpf, not nftables",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    fields: dict[str, Any], error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.network("taken", subnets=("10.9.0.0/16",), options=(BR + "name=docker9",))
    with pytest.raises(error, match=message) as caught:
        host.plan_network("n", **fields)
    assert str(caught.value).isprintable()


def test_a_name_is_given_only_once() -> None:
    host = PlannedHost()
    host.network("br1")
    with pytest.raises(ExistsError, match="network with name br1 already exists"):
        host.plan_network("br1")


BAD_NAMES = [
    "",
    "a/b",
    "..",
    ".a",
    "-a",
    "_a",
    "a b",
    "a\nb",
    "a\x1b[31m",
    "a\0",
    "é",
    "x" * 129,
    "x" * 300,
    "a:b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_network_name_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(ConfigError, match="Invalid network name") as caught:
        PlannedHost().plan_network(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["a", "A.b_c-d", "0", "x" * 128, "a..b"])
def test_a_good_network_name_is_taken(name: str) -> None:
    assert PlannedHost().plan_network(name).name == name


def test_at_most_4095_networks_fit() -> None:
    host = PlannedHost()
    many = [replace(host.state.network("host"), id=f"x{i}", name=f"x{i}", number=i) for i in range(2, 4096)]
    host.state = host.state.including(*many)
    with pytest.raises(ConfigError, match="4095 networks already"):
        host.plan_network("one-more")


# ---- network rm and prune ----------------------------------------------------------------------------------


def test_an_unused_network_is_removed_by_name_id_or_short_id() -> None:
    host = PlannedHost()
    network = host.network("br1")
    for name in ("br1", network.id, network.short_id):
        assert plan_network_remove(name, host.state) == replace(network, phase=Phase.REMOVING)


def test_a_network_with_endpoints_is_not_removed_and_they_are_named() -> None:
    host = PlannedHost()
    host.network("br1")
    host.run("web", "br1")
    with pytest.raises(InUseError, match='network br1 has active endpoints \\(name:"web" id:"'):
        plan_network_remove("br1", host.state)


def test_a_network_can_be_removed_when_its_containers_have_ended() -> None:
    host = PlannedHost()
    host.network("br1")
    host.run("web", "br1")
    host.end("web")
    assert plan_network_remove("br1", host.state).name == "br1"


@pytest.mark.parametrize("name", ["nope", "", "a\nb", "f" * 300])
def test_an_unknown_network_is_said_to_be_unknown(name: str) -> None:
    with pytest.raises(NotFoundError, match="not found") as caught:
        plan_network_remove(name, PlannedHost().state)
    assert str(caught.value).isprintable()


def test_an_abbreviated_id_must_mean_one_network() -> None:
    with pytest.raises(ConfigError, match=r"network 000000 is ambiguous \(3 matches"):
        PlannedHost().state.network("000000")


def test_a_name_goes_before_the_beginning_of_an_id() -> None:
    host = PlannedHost()
    host.network("first")
    other = host.network("0000001")
    assert host.state.network("0000001") == other


@pytest.mark.parametrize(
    ("filters", "pruned"),
    [
        ((), ["old", "new"]),
        (("label=keep",), ["new"]),
        (("label=keep=yes",), ["new"]),
        (("label=keep=no",), []),
        (("label!=keep",), ["old"]),
        (("until=24h",), ["old"]),
        (("until=1h30m",), ["old"]),
        (("until=2026-11-01T00:00:00Z",), ["old"]),
        (("until=2026-11-01",), ["old"]),
        (("until=1793491200",), ["old"]),
        (("until=2020-01-01",), []),
        (("until=24h", "label=keep"), []),
    ],
)
def test_prune_takes_every_unused_network_that_passes_the_filters(
    filters: tuple[str, ...], pruned: list[str]
) -> None:
    host = PlannedHost()
    old = host.network("old")
    host.network("new", labels=("keep=yes",))
    host.network("used")
    host.run("web", "used")
    host.state = host.state.including(replace(old, created="2026-10-01T00:00:00.123456789Z"))
    found = plan_network_prune(host.state, filters, NOW)
    assert [n.name for n in found] == pruned
    assert {n.phase for n in found} <= {"removing"}


@pytest.mark.parametrize(
    "text", ["", "x", "colour=red", "until=", "until=soon", "label=", "until=9" + "9" * 400]
)
def test_a_wrong_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="filter"):
        plan_network_prune(PlannedHost().state, [text], NOW)


# ---- connect and disconnect --------------------------------------------------------------------------------


def test_connect_adds_a_second_device_and_disconnect_takes_exactly_that_away() -> None:
    host = PlannedHost()
    host.network("my_net1", subnets=("172.18.0.0/24",))
    host.network("my_net2", subnets=("172.19.0.0/24",))
    host.run("test2", "my_net1")
    before = host.state
    made = host.connect("test2", "my_net2")
    assert (made.endpoint.ifname, str(made.endpoint.ipv4)) == ("eth1", "172.19.0.2/24")
    assert addresses(host, "test2") == {"my_net1": "172.18.0.2/24", "my_net2": "172.19.0.2/24"}
    gone = host.disconnect("my_net2", "test2")
    assert (gone.endpoint.id, gone.endpoint.phase) == (made.endpoint.id, "removing")
    assert host.state == before


def test_a_device_name_that_has_become_free_is_used_again() -> None:
    host = PlannedHost()
    for name in ("a", "b", "c"):
        host.network(name)
    host.run("web", "a", "b")
    host.disconnect("a", "web")
    assert host.connect("web", "c").endpoint.ifname == "eth0"


def test_a_slot_is_used_again_and_a_number_never_is() -> None:
    host = PlannedHost()
    for name in ("one", "two", "three"):
        host.run(name)
    (first,) = host.end("one").endpoints
    host.run("four")
    (again,) = host.state.endpoints_of_sandbox(host.state.container("four").id)
    assert (first.slot, again.slot) == (0, 0)
    assert again.number > max(e.number for e in host.state.endpoints.values() if e.id != again.id)
    assert again.ipv4 == first.ipv4


@pytest.mark.parametrize(
    ("container", "network", "error", "message"),
    [
        ("nope", "net", NotFoundError, "No such container: nope"),
        ("web", "nope", NotFoundError, "network nope not found"),
        ("web", "bridge", ExistsError, "endpoint with name web already exists in network bridge"),
        ("web", "host", ConfigError, "cannot connect container to host network"),
        ("web", "none", ConfigError, r"one of the networks in private \(none\) mode"),
        ("lonely", "net", ConfigError, r"one of the networks in private \(none\) mode"),
        ("hosty", "net", ConfigError, "sharing network namespace with another container or host"),
        ("hosty", "host", ConfigError, "cannot connect container to host network"),
        ("sharer", "net", ConfigError, "sharing network namespace with another container or host"),
        ("ended", "net", ConfigError, "container ended is not running"),
    ],
)
def test_a_connection_that_cannot_be_is_refused(
    container: str, network: str, error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web")
    host.run("lonely", "none")
    host.run("hosty", "host")
    host.run("sharer", "container:web")
    host.run("ended")
    host.end("ended")
    with pytest.raises(error, match=message):
        host.connect(container, network)


@pytest.mark.parametrize(
    ("network", "container", "message"),
    [
        ("net", "web", "container web is not connected to network net"),
        ("bridge", "sharer", "container sharer is not connected to network bridge"),
        ("bridge", "nope", "No such container: nope"),
        ("nope", "web", "network nope not found"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_connected_cannot_be_disconnected(
    network: str, container: str, message: str, force: bool
) -> None:
    host = PlannedHost()
    host.network("net")
    host.run("web")
    host.run("sharer", "container:web")
    with pytest.raises(NotFoundError, match=message):
        plan_disconnect(network, container, host.state, force)


def test_host_mode_cannot_be_disconnected() -> None:
    host = PlannedHost()
    host.run("hosty", "host")
    with pytest.raises(ConfigError, match="cannot be disconnected from host network"):
        plan_disconnect("host", "hosty", host.state)


@pytest.mark.parametrize(
    ("first", "fields", "egress"),
    [
        ({}, {}, "aaa"),
        ({"gw_priority": 1}, {}, "zzz"),
        ({}, {"gw_priority": -1}, "zzz"),
        ({"gw_priority": 5}, {"gw_priority": 6}, "aaa"),
    ],
)
def test_the_default_route_is_at_the_highest_priority_and_then_by_name(
    first: dict[str, Any], fields: dict[str, Any], egress: str
) -> None:
    host = PlannedHost()
    host.network("zzz")
    host.network("aaa")
    host.run("web", EndpointRequest("zzz", **first), publish=("8081:80",))
    host.connect("web", "aaa", **fields)
    endpoints = host.state.endpoints_of_sandbox(host.state.container("web").id)
    found = {host.state.networks[e.network_id].name: (e.gateway4, bool(e.ports)) for e in endpoints}
    assert found == {name: (name == egress, name == egress) for name in ("aaa", "zzz")}


def test_more_families_go_before_the_name_and_each_family_has_its_own_way() -> None:
    host = PlannedHost()
    host.network("aaa")
    host.network("both", ipv6=True)
    host.network("six", ipv4=False, ipv6=True)
    host.run("web", "aaa", "both", EndpointRequest("six", gw_priority=1))
    endpoints = host.state.endpoints_of_sandbox(host.state.container("web").id)
    way4, way6 = plan_gateway_endpoint(endpoints, host.state)
    assert way4 is not None
    assert way6 is not None
    assert host.state.networks[way4.network_id].name == "both"
    assert host.state.networks[way6.network_id].name == "six"


def test_an_internal_network_is_never_the_egress() -> None:
    host = PlannedHost()
    host.network("inside", internal=True)
    host.network("outside")
    host.run("web", "inside")
    assert not any(e.gateway for e in host.state.endpoints.values())
    made = host.connect("web", "outside")
    assert made.endpoint.gateway4
    assert made.changed == ()


def test_ports_move_to_the_next_egress_and_come_back() -> None:
    host = PlannedHost()
    host.network("one")
    host.network("two")
    host.run("web", "one", publish=("8081:80",))
    host.connect("web", "two")
    gone = host.disconnect("one", "web")
    (changed,) = gone.changed
    assert [str(m) for m in changed.ports] == ["8081:80/tcp"]
    host.disconnect("two", "web")
    assert [str(m) for m in host.connect("web", "one").endpoint.ports] == ["8081:80/tcp"]


# ---- addresses that users choose ---------------------------------------------------------------------------

STATIC = "10.0.0.0/24"


@pytest.mark.parametrize(
    ("asked", "attribute", "value"),
    [
        ({"ip": "10.0.0.77"}, "ipv4", IPv4Interface("10.0.0.77/24")),
        ({"ip": "10.0.0.77"}, "mac", "02:42:0a:00:00:4d"),
        ({"ip": "10.0.0.77"}, "static4", True),
        ({}, "ipv4", IPv4Interface("10.0.0.2/24")),
        ({}, "static4", False),
        ({"mac": "02:00:00:00:00:99"}, "mac", "02:00:00:00:00:99"),
        ({"aliases": ("db", "cache")}, "aliases", ("db", "cache")),
        ({"driver_options": ("com.docker.network.endpoint.ifname=lan0",)}, "ifname", "lan0"),
    ],
)
def test_what_a_user_chooses_for_an_endpoint_is_honoured(
    asked: dict[str, Any], attribute: str, value: Any
) -> None:
    host = PlannedHost()
    host.network("net", subnets=(STATIC,))
    (endpoint,) = host.plan_run("web", EndpointRequest("net", **asked)).endpoints
    assert getattr(endpoint, attribute) == value


@pytest.mark.parametrize(
    ("network", "endpoint", "port", "acl"),
    [
        ((), (), "80", ""),
        (("com.datapath.allow=10.0.0.0/8",), (), "80", "allow=10.0.0.0/8"),
        (("com.datapath.allow=10.0.0.0/8",), ("com.datapath.deny=10.1.0.0/16",), "80", "deny=10.1.0.0/16"),
        (("com.datapath.allow=10.0.0.0/8",), (), "80,deny=10.6.6.6", "deny=10.6.6.6/32"),
    ],
)
def test_who_may_connect_is_said_by_the_port_else_the_endpoint_else_the_network(
    network: tuple[str, ...], endpoint: tuple[str, ...], port: str, acl: str
) -> None:
    host = PlannedHost()
    host.network("net", subnets=(STATIC,), options=network)
    made = host.plan_run("web", EndpointRequest("net", driver_options=endpoint), publish=(f"8080:{port}",))
    assert [mapping.acl_text for mapping in made.container.ports] == [acl]


@pytest.mark.parametrize(
    ("network", "asked", "error", "message"),
    [
        ("bridge", {"ip": "172.17.0.9"}, ConfigError, "supported on user defined networks only"),
        ("bridge", {"ip6": "fd00::9"}, ConfigError, "supported on user defined networks only"),
        (
            "bridge",
            {"aliases": ("db",)},
            ConfigError,
            "alias is supported only for containers in user defined",
        ),
        ("pool", {"ip": "172.18.0.9"}, ConfigError, "networks with user configured subnets"),
        ("net", {"ip": "10.0.1.9"}, ConfigError, "no configured subnet or ip-range contain the IP address"),
        ("net", {"ip": "10.0.0.1"}, ConfigError, "is the network's gateway"),
        ("net", {"ip": "10.0.0.7"}, ConfigError, 'auxiliary address "printer"'),
        ("net", {"ip": "10.0.0.0"}, ConfigError, "network address"),
        ("net", {"ip": "10.0.0.255"}, ConfigError, "broadcast address"),
        (
            "net",
            {"ip": "10.0.0.2"},
            ExistsError,
            'Address already in use: 10.0.0.2 belongs to container "first"',
        ),
        ("net", {"ip": "0.0.0.0"}, ConfigError, "invalid IPv4 address"),
        ("net", {"ip": "fd00::9"}, ConfigError, "invalid IPv4 address"),
        ("net", {"ip": "10.0.0"}, ConfigError, "invalid IPv4 address"),
        ("net", {"ip6": "fd00::9"}, ConfigError, "network net has no IPv6"),
        ("net", {"ip6": "10.0.0.9"}, ConfigError, "invalid IPv6 address"),
        ("net", {"mac": "02:42:0a:00:00:01"}, ConfigError, "that of the network's gateway"),
        ("net", {"mac": "02:42:0a:00:00:02"}, ExistsError, 'already used by container "first"'),
        ("net", {"mac": "01:00:00:00:00:00"}, ConfigError, "not a unicast address"),
        ("net", {"mac": "x"}, ConfigError, "not a valid mac address"),
        ("net", {"aliases": ("a b",)}, ConfigError, "invalid network alias"),
        ("net", {"driver_options": ("a=b",)}, ConfigError, 'endpoint option "a" is not available'),
        (
            "net",
            {"driver_options": ("com.docker.network.endpoint.ifname=lo",)},
            ConfigError,
            "not a device name",
        ),
    ],
)
def test_a_choice_that_cannot_be_is_refused(
    network: str, asked: dict[str, Any], error: type[DatapathError], message: str
) -> None:
    host = PlannedHost()
    host.network("net", subnets=(STATIC,), aux_addresses=("printer=10.0.0.7",))
    host.network("pool")
    host.run("first", "net")
    with pytest.raises(error, match=message):
        host.plan_run("web", EndpointRequest(network, **asked))
    host.run("web", "none" if network == "bridge" else "bridge")
    if network != "bridge":
        with pytest.raises(error, match=message):
            host.connect("web", network, **asked)


def test_a_mac_address_may_be_chosen_on_the_default_network() -> None:
    (endpoint,) = PlannedHost().plan_run("web", EndpointRequest("bridge", mac="02:00:00:00:00:09")).endpoints
    assert endpoint.mac == "02:00:00:00:00:09"


def test_an_address_that_was_chosen_is_left_out_when_addresses_are_given() -> None:
    host = PlannedHost()
    host.network("net", subnets=(STATIC,))
    host.run("web", EndpointRequest("net", ip="10.0.0.2"))
    host.run("db", "net")
    assert addresses(host, "db") == {"net": "10.0.0.3/24"}


def test_a_mac_address_that_somebody_chose_is_not_given_to_another() -> None:
    host = PlannedHost()
    host.run("web", EndpointRequest("bridge", mac="02:42:ac:11:00:03"))
    host.run("db")
    macs = [e.mac for e in host.state.endpoints.values()]
    assert len(set(macs)) == 2


def test_two_hundred_members_have_two_hundred_addresses_slots_and_devices() -> None:
    host = PlannedHost()
    for i in range(200):
        host.run(f"c{i}")
    members = host.state.endpoints_of_network(host.state.network("bridge").id)
    assert [m.slot for m in members] == list(range(200))
    assert len({m.ipv4 for m in members}) == len({m.host_ifname for m in members}) == 200
    assert str(members[-1].ipv4) == "172.17.0.201/16"
    assert ip_address("172.17.0.1") not in {m.ipv4.ip for m in members if m.ipv4}
