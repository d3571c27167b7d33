# SPDX-License-Identifier: Apache-2.0
"""allow= and deny=: how they are written, who may then connect, and what the packet programs are told; and
ports of containers with two families."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from datapath.config.tuning import Tuning, different
from datapath.dataplane import entries
from datapath.dataplane.entries import EVERY4, EVERY6
from datapath.dataplane.structs import AclKey, PortKey
from datapath.errors import ConfigError, DatapathError, NotFoundError
from datapath.model.codec import from_json, to_json
from datapath.model.endpoints import EndpointRequest
from datapath.model.observed import HostFacts
from datapath.model.ports import PortMapping, parse_acl
from datapath.plan.inspect import container_inspect
from datapath.plan.ports import plan_port_add, plan_port_remove, plan_port_set, shown
from tests.unit.planned_host import FACTS, PlannedHost

DUAL = HostFacts(
    prefixes=FACTS.prefixes,
    addresses=FACTS.addresses | {ip_address("2001:db8::10"), ip_address("fe80::10"), ip_address("::1")},
    default_mtu=1500,
    devices=FACTS.devices,
    uplinks=FACTS.uplinks,
)


# ---- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("8081:80,allow=10.0.0.0/8", "8081:80/tcp,allow=10.0.0.0/8"),
        ("8081:80,deny=10.6.6.0/24,allow=10.0.0.0/8", "8081:80/tcp,allow=10.0.0.0/8,deny=10.6.6.0/24"),
        ("8081:80/udp,allow=192.0.2.1", "8081:80/udp,allow=192.0.2.1/32"),
        ("80,allow=2001:db8::1", "80/tcp,allow=2001:db8::1/128"),
        ("[::1]:80:80,deny=::/0", "[::1]:80:80/tcp,deny=::/0"),
        ("80-82:80-82,allow=10.0.0.0/8", "80-82:80-82/tcp,allow=10.0.0.0/8"),
        ("80:80,allow=::ffff:10.0.0.0/104", "80:80/tcp,allow=10.0.0.0/8"),
        ("80:80,allow=10.0.0.0/8,allow=10.0.0.0/8", "80:80/tcp,allow=10.0.0.0/8"),
    ],
)
def test_rules_stand_behind_the_port(text: str, shown: str) -> None:
    mapping = PortMapping.parse(text)
    assert str(mapping) == shown
    assert PortMapping.parse(shown) == mapping
    assert from_json(PortMapping, to_json(mapping)) == mapping


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("10.0.0.0/8", 'invalid rule "10.0.0.0/8"'),
        ("permit=10.0.0.0/8", "expected allow=PREFIX or deny=PREFIX"),
        ("allow", 'invalid rule "allow"'),
        ("allow=10.0.0.1/8", "invalid allow prefix 10.0.0.1/8: it should be 10.0.0.0/8"),
        ("deny=all", 'invalid deny prefix "all": expected an address, or ADDRESS/LENGTH'),
        ("allow=10.0.0.0/33", "invalid CIDR block notation"),
        ("allow=10.0.0.0/8,,", 'invalid rule ""'),
        ("allow=", 'the rule "allow=" of a port names no prefix'),
        ("allow=10.0.0.0/8,deny=", 'the rule "deny=" of a port names no prefix'),
        ("allow=10.0.0.0/8,deny=10.0.0.0/8", "cannot both allow and deny 10.0.0.0/8"),
        ("allow=fe80::1%eth0", "invalid allow prefix"),
        ("allow=10.0.0.0/8\n", "invalid allow prefix"),
    ],
)
def test_rules_that_cannot_be_are_one_line(rules: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_acl(rules)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        ("", "10.0.0.1 ::1", ""),
        ("allow=10.0.0.0/8", "10.0.0.1", "192.0.2.1 2001:db8::1"),
        ("deny=10.0.0.0/8", "192.0.2.1 2001:db8::1", "10.0.0.1"),
        ("allow=10.0.0.0/8,deny=10.6.6.0/24,allow=10.6.6.6", "10.1.1.1 10.6.6.6", "10.6.6.7 11.0.0.1"),
        ("deny=::/0", "10.0.0.1", "2001:db8::1"),
        ("deny=0.0.0.0/0", "2001:db8::1", "10.0.0.1"),
        ("allow=2001:db8::/32", "2001:db8::1", "10.0.0.1 2001:db9::1"),
        ("deny=::/0,allow=0.0.0.0/0", "10.0.0.1", "2001:db8::1"),
    ],
)
def test_the_longest_prefix_decides_in_the_model_and_in_the_map(
    rules: str, allowed: str, refused: str
) -> None:
    mapping = replace(PortMapping.parse(f"80:80,{rules}".rstrip(",")), acl=7)
    rows = entries.acl_entries([mapping])
    for text, may in [*((t, True) for t in allowed.split()), *((t, False) for t in refused.split())]:
        address = ip_address(text)
        assert mapping.admits(address) == may
        assert looked_up(rows, 7, text, refuse=bool(mapping.allow)) == may


def looked_up(rows: dict[AclKey, int], number: int, text: str, *, refuse: bool) -> bool:
    """What the LPM trie answers: all addresses as IPv6 ones, IPv4 mapped."""

    def bits(address: Any) -> int:
        if address is None:
            return 0
        return int(address) | (0xFFFF << 32 if address.version == 4 else 0)

    source = bits(ip_address(text))
    best = max(
        (
            (key.prefixlen, allow)
            for key, allow in rows.items()
            if key.acl == number and (source ^ bits(key.addr)) >> (160 - key.prefixlen) == 0
        ),
        default=(0, int(not refuse)),
    )
    return bool(best[1])


# ---- numbers of rules --------------------------------------------------------------------------------------


def test_rules_get_the_lowest_free_number() -> None:
    host = PlannedHost()
    host.run("a", publish=("80:80,allow=10.0.0.0/8", "81:81", "82:82,deny=10.0.0.0/8"))
    assert [m.acl for m in host.state.container("a").ports] == [1, 0, 2]
    added = plan_port_add("a", "83:83,allow=10.0.0.0/8", host.state, host.ports)
    assert [m.acl for m in added.mappings] == [3]
    gone = plan_port_remove("a", "80:80", host.state)
    state = host.state.including(gone.container, *gone.endpoints)
    assert plan_port_add("a", "83:83,allow=::/0", state, host.ports).mappings[0].acl == 1


def test_other_rules_get_another_number_so_that_no_half_of_them_is_ever_in_force() -> None:
    host = PlannedHost()
    web = host.run("web", publish=("8081:80,allow=10.0.0.0/8",))
    made = plan_port_set("web", "1", "deny=10.6.6.0/24", host.state)
    assert made.before == web.ports[0]
    (changed,) = made.container.ports
    assert (str(changed), changed.acl) == ("8081:80/tcp,deny=10.6.6.0/24", 2)
    assert [str(m) for m in made.container.published] == ["8081:80/tcp,deny=10.6.6.0/24"]
    (way,) = made.endpoints
    assert (way.ports, way.phase) == ((changed,), "changing")


@pytest.mark.parametrize("what", ["1", "8081:80", "8081:80/tcp"])
def test_no_rules_is_everybody(what: str) -> None:
    host = PlannedHost()
    host.run("web", publish=("8081:80,allow=10.0.0.0/8",))
    (changed,) = plan_port_set("web", what, "", host.state).mappings
    assert (str(changed), changed.acl) == ("8081:80/tcp", 0)


@pytest.mark.parametrize(
    ("name", "what", "error"),
    [("nope", "1", NotFoundError), ("web", "2", NotFoundError), ("web", "x", ConfigError)],
)
def test_rules_of_what_is_not_there(name: str, what: str, error: type[DatapathError]) -> None:
    host = PlannedHost()
    host.run("web", publish=("8081:80",))
    with pytest.raises(error):
        plan_port_set(name, what, "", host.state)


def test_inspect_shows_the_rules() -> None:
    host = PlannedHost()
    web = host.run("web", publish=("8081:80,allow=10.0.0.0/8,deny=10.6.6.0/24",))
    found = container_inspect(web, host.state)
    rules = {"Allow": ["10.0.0.0/8"], "Deny": ["10.6.6.0/24"]}
    ports = found["NetworkSettings"]["Ports"]["80/tcp"]
    assert ports == [{"HostIp": "0.0.0.0", "HostPort": "8081", **rules}]
    assert found["HostConfig"]["PortBindings"]["80/tcp"] == [{"HostIp": "", "HostPort": "8081", **rules}]


def test_a_ports_row_names_its_rules_and_whether_others_may() -> None:
    host = PlannedHost()
    host.run("web", publish=("80:80,allow=10.0.0.0/8", "81:81,deny=10.0.0.0/8", "82:82"))
    (way,) = host.state.endpoints.values()
    rows = entries.port_entries(host.state.network("bridge"), way)
    assert [(value.acl, value.default_deny) for value in rows.values()] == [(1, 1), (2, 0), (0, 0)]


# ---- families -----------------------------------------------------------------------------------------------


def dual() -> PlannedHost:
    host = PlannedHost(facts=DUAL)
    host.network("net", subnets=("10.0.0.0/24", "fd00::/64"), ipv6=True)
    host.network("six", subnets=("fd01::/64",), ipv4=False, ipv6=True)
    host.network("four", subnets=("10.1.0.0/24",))
    return host


@pytest.mark.parametrize(
    ("network", "publish", "keys"),
    [
        ("net", "8081:80", [(EVERY4, "10.0.0.2"), (EVERY6, "fd00::2")]),
        ("net", "0.0.0.0:8081:80", [(EVERY4, "10.0.0.2")]),
        ("net", "[::]:8081:80", [(EVERY6, "fd00::2")]),
        ("net", "[::1]:8081:80", [(ip_address("::1"), "fd00::2")]),
        ("net", "[2001:db8::10]:8081:80", [(ip_address("2001:db8::10"), "fd00::2")]),
        ("net", "192.0.2.10:8081:80", [(ip_address("192.0.2.10"), "10.0.0.2")]),
        ("six", "8081:80", [(EVERY6, "fd01::2")]),
        ("four", "8081:80", [(EVERY4, "10.1.0.2")]),
    ],
)
def test_a_port_is_published_for_the_families_that_the_container_has(
    network: str, publish: str, keys: list[tuple[Any, str]]
) -> None:
    host = dual()
    host.run("web", network, publish=(publish,))
    (way,) = host.state.endpoints.values()
    rows = entries.port_entries(host.state.network(network), way)
    assert [(key.addr, str(value.addr)) for key, value in rows.items()] == [(a, t) for a, t in keys]
    assert all(key == PortKey(key.addr, 8081, 6) for key in rows)


@pytest.mark.parametrize(
    ("network", "publish", "message"),
    [
        ("four", "[::1]:80:80", "no IPv6 address that leads outside"),
        ("six", "127.0.0.1:80:80", "no IPv4 address that leads outside"),
        ("net", "[fe80::10]:80:80", "another device's"),
        ("net", "[2001:db8::11]:80:80", "2001:db8::11 is no address of this host"),
    ],
)
def test_a_port_is_not_published_where_nobody_could_answer(network: str, publish: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dual().plan_run("web", network, publish=(publish,))


def test_two_networks_can_share_the_ports_by_family() -> None:
    host = dual()
    four, six = EndpointRequest("four", gw_priority=1), EndpointRequest("six")
    web = host.run("web", four, six, publish=("8081:80", "[::1]:82:82"))
    by_network = {host.state.networks[e.network_id].name: e for e in host.state.endpoints.values()}
    assert by_network["four"].egress_families == (4,)
    assert by_network["six"].egress_families == (6,)
    assert [str(m) for m in by_network["four"].ports] == ["8081:80/tcp"]
    assert [str(m) for m in by_network["six"].ports] == ["8081:80/tcp", "[::1]:82:82/tcp"]
    found = container_inspect(web, host.state)["NetworkSettings"]["Ports"]
    assert [one["HostIp"] for one in found["80/tcp"]] == ["0.0.0.0", "::"]
    assert [str(m) for m in shown(web.ports[0], host.state.endpoints.values())] == [
        "0.0.0.0:8081:80/tcp",
        "[::]:8081:80/tcp",
    ]
    gone = plan_port_remove("web", "8081:80", host.state)
    assert {len(way.ports) for way in gone.endpoints} == {0, 1}


# ---- settings -----------------------------------------------------------------------------------------------


def test_settings_have_defaults_and_say_what_is_loaded_otherwise() -> None:
    chosen = Tuning.parse(
        {"max-connections": 1000, "timeouts": {"udp": 5}, "flood-limit": {"rate": 10}, "max-ports": 100}
    )
    assert chosen.sizes["conns"] == 2000
    assert (chosen.sizes["ports"], chosen.sizes["reserved"]) == (100, 100)
    assert (chosen.config["timeout_udp"], chosen.config["timeout_icmp"]) == (5, 60)
    assert (chosen.config["flood_rate"], chosen.config["flood_burst"]) == (10, 10)
    assert different(chosen.sizes, chosen.sizes) == ""
    assert different(chosen.sizes, {**chosen.sizes, "conns": 1}) == "conns 1 (not 2000)"


def test_a_network_prefix_of_a_word() -> None:
    assert parse_acl("allow=10.0.0.0/8,deny=::1") == ((ip_network("10.0.0.0/8"),), (ip_network("::1"),))
