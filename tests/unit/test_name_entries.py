# SPDX-License-Identifier: Apache-2.0
"""What names resolve to, and what questions of containers are answered with, as rows of the programs' maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from datapath.config.daemon import DaemonConfig
from datapath.dataplane import name_entries
from datapath.dataplane.name_entries import SCOPE_ENDPOINT, NameRows, Touched, name_rows, touched
from datapath.dataplane.name_owners import owner_elsewhere, owner_here, told
from datapath.dataplane.structs import NameSetKey, NameValue, ResolverValue, UpstreamValue
from datapath.dataplane.wire_names import (
    AAAA,
    PTR,
    TYPES,
    A,
    endpoint_key,
    name_key,
    record,
    set_id,
    text_of,
    texts_of,
    wire,
)
from datapath.model.endpoints import EndpointRequest
from datapath.model.peers import Peer, Remote
from datapath.model.resolv import NameFacts, ResolvConf, Server, servers
from datapath.model.rows import Phase
from datapath.model.sandboxes import Sandbox
from datapath.model.state import State
from tests.unit.planned_host import PlannedHost

FACTS = NameFacts(ttl=0, servers=(Server(ip_address("192.0.2.53")),))
POOL = EndpointRequest("red", aliases=("pool",))
DUAL: dict[str, Any] = {"ipv6": True, "subnets": ("10.0.0.0/24", "fd00::/64")}


def spoken(rows: NameRows, scope: int) -> dict[str, list[str]]:
    """What everything in a scope resolves to, as people write it: type and data."""
    found: dict[str, list[str]] = {}
    for key, value in itertools.chain[tuple[Any, NameValue]](rows.names.items(), rows.long_names.items()):
        if key.scope == scope:
            found[text_of(key.name)] = [*_records(rows, value)]
    return found


def _records(rows: NameRows, value: NameValue) -> list[str]:
    lines, at = [], 0
    for row, rrset in zip(value.kept, value.sets, strict=True):
        if row:
            kept = rows.name_sets[NameSetKey(row)]
            assert (kept.count, kept.size) == (rrset.count, rrset.size)
            texts = texts_of(rrset.type, kept.records, kept.count, kept.size)
        else:
            texts = texts_of(rrset.type, value.records[at:], rrset.count, rrset.size)
            at += rrset.count * rrset.size
        lines += [f"{TYPES[rrset.type]} {text}" for text in texts]
    return lines


def named(host: PlannedHost, network: str = "red", facts: NameFacts = FACTS) -> dict[str, list[str]]:
    """The names of a network of the host's."""
    return spoken(name_rows(host.state, facts), host.state.network(network).number)


def owner(host: PlannedHost, container: str, network: str = "red") -> str:
    """What `spoken` says for the addresses of a container's endpoint."""
    endpoint = host.state.endpoint(host.state.container(container).sandbox_id, host.state.network(network).id)
    assert endpoint is not None
    return f"endpoint {endpoint.number}"


def test_a_member_has_its_name_short_id_hostname_and_aliases_each_also_with_the_networks() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("Web", EndpointRequest("red", aliases=("www", "api.v1")), hostname="front")
    short = host.state.container("Web").short_id
    both = ["A 10.0.0.2"]
    names = ("web", short, "front", "www", "api.v1")
    assert named(host) == {
        **dict.fromkeys(names, both),
        **dict.fromkeys((f"{name}.red" for name in names), both),
        owner(host, "Web"): ["PTR Web.red"],
    }


def test_a_member_of_both_families_has_two_records_in_one_row_and_one_row_for_its_addresses() -> None:
    host = PlannedHost()
    host.network("red", **DUAL)
    host.run("web", "red")
    found = named(host)
    assert found["web"] == found["web.red"] == ["A 10.0.0.2", "AAAA fd00::2"]
    assert found[owner(host, "web")] == ["PTR web.red"] and len(found) == 5
    assert not name_rows(host.state, FACTS).name_sets


def test_an_alias_that_several_have_is_all_their_addresses_and_names_that_differ_in_case_are_one() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    for name in ("a", "b", "A", "c"):
        host.run(name, EndpointRequest("red", aliases=("pool",)))
    found = named(host)
    assert found["pool"] == ["A 10.0.0.2", "A 10.0.0.3", "A 10.0.0.4", "A 10.0.0.5"]
    assert found["a"] == ["A 10.0.0.2", "A 10.0.0.4"]
    assert (found[owner(host, "a")], found[owner(host, "A")]) == (["PTR a.red"], ["PTR A.red"])
    rows = name_rows(host.state, FACTS)
    (pool,) = (v for k, v in rows.names.items() if text_of(k.name) == "pool")
    kept = rows.name_sets[NameSetKey(pool.kept[0])]
    half = len(kept.records) // 2
    assert kept.records[:half] == kept.records[half:], "so that it can be read from any of them on"


def test_a_set_has_as_many_records_as_fit_twice_over() -> None:
    host = PlannedHost()
    host.network("red", ipv6=True, subnets=("10.0.0.0/24", "fd00::/64"))
    for i in range(40):
        host.run(f"c{i}", EndpointRequest("red", aliases=("pool",)))
    found = named(host)["pool"]
    assert (sum(one.startswith("A ") for one in found), sum("AAAA" in one for one in found)) == (31, 18)
    assert all(len(row.records) <= 1020 for row in name_rows(host.state, FACTS).name_sets.values())


@pytest.mark.parametrize(
    ("sentence", "change"),
    [
        ("it has ended", lambda host: host.end("web")),
        ("it is on no network", lambda host: host.disconnect("red", "web")),
    ],
)
def test_names_are_there_as_long_as_the_container_is(sentence: str, change: Any) -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("web", "red")
    change(host)
    assert not named(host), sentence


@pytest.mark.parametrize("phase", [Phase.CREATING, Phase.REMOVING])
def test_an_endpoint_that_is_not_made_yet_or_goes_has_no_names(phase: Phase) -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("web", "red")
    (endpoint,) = host.state.endpoints.values()
    rows = name_rows(host.state.including(replace(endpoint, phase=phase)), FACTS)
    assert not any(rows)


def test_the_default_network_has_no_names_and_its_questions_go_on() -> None:
    host = PlannedHost()
    host.run("web")
    (endpoint,) = host.state.endpoints.values()
    rows = name_rows(host.state, FACTS)
    assert not rows.names
    upstreams = (UpstreamValue(ip_address("192.0.2.53")),)
    assert rows.resolvers == {(endpoint.number,): ResolverValue((), 0, 1, upstreams)}


def test_networks_of_a_linux_bridge_have_no_names_and_no_resolver() -> None:
    host = PlannedHost()
    host.network("red", options=("com.datapath.mode=iptables",))
    host.run("web", "red")
    assert not any(name_rows(host.state, FACTS))


def test_a_sandbox_of_another_owner_has_its_name_and_its_endpoints_aliases() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("web", EndpointRequest("red", aliases=("www",)))
    (endpoint,) = host.state.endpoints.values()
    box = Sandbox("f" * 64, "/run/netns/pod", Phase.READY, "cni", "key", "pod")

    def rows_with(sandbox: Sandbox, **more: Any) -> NameRows:
        joined = replace(endpoint, sandbox_id=sandbox.id, **more)
        return name_rows(host.state.including(sandbox, joined), FACTS)

    number = host.state.network("red").number
    addresses = owner(host, "web")
    assert set(spoken(rows_with(box), number)) == {"pod", "pod.red", "www", "www.red", addresses}
    assert rows_with(box).resolvers
    assert not any(rows_with(replace(box, key=""))), "it waits to join"
    assert not any(rows_with(box, handed_over=True)), (
        "its owner moves the device there, and answers for its name and its questions"
    )
    pod = rows_with(replace(box, name="default/web"), dns=("192.0.2.77", "fd00::53"))
    assert set(spoken(pod, number)) == {
        *("web", "web.red", "web.default", "web.default.red", "www", "www.red", addresses)
    }
    (resolver,) = pod.resolvers.values()
    assert [str(one.addr) for one in resolver.upstreams] == ["192.0.2.77", "fd00::53"]
    assert not set(spoken(rows_with(replace(box, name="a b")), number)) & {"a b", "a b.red"}


def test_a_network_has_names_and_a_domain_as_its_options_say() -> None:
    host = PlannedHost()
    host.network("red", options=("com.datapath.domain=.Corp.Example.",), subnets=("10.0.0.0/24",))
    host.network("mute", options=("com.datapath.names=false",))
    host.run("Web", "red")
    host.run("silent", "mute")
    rows = name_rows(host.state, FACTS)
    short = host.state.container("Web").short_id
    names = [f"{name}{more}" for name in ("web", short) for more in ("", ".red", ".corp.example")]
    assert set(spoken(rows, host.state.network("red").number)) == {*names, owner(host, "Web")}
    assert not spoken(rows, host.state.network("mute").number)
    assert len(rows.resolvers) == 2, "who has no names is answered all the same"


def test_a_link_is_a_name_that_only_its_client_sees() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("db", "red")
    host.run("app", "red", links=("db:store",))
    (client,) = host.state.endpoints_of_sandbox(host.state.container("app").id)
    rows = name_rows(host.state, FACTS)
    scope = SCOPE_ENDPOINT | client.number
    assert spoken(rows, scope) == {"store": ["A 10.0.0.2"], "store.red": ["A 10.0.0.2"]}
    assert "store" not in named(host)
    assert rows.resolvers[(client.number,)].private_scope == scope  # type: ignore[index]
    host.end("db")
    assert not spoken(name_rows(host.state, FACTS), scope)


def test_a_sandbox_asks_its_networks_in_dockers_order_and_leaves_by_its_default_route() -> None:
    host = PlannedHost()
    for name, fields in {"b": {}, "a": {}, "in": {"internal": True}, "dual": DUAL}.items():
        host.network(name, **fields)
    host.run("web", "in", "b", "a", "dual")
    number = {n.name: n.number for n in host.state.networks.values()}
    values = set(name_rows(host.state, FACTS).resolvers.values())
    assert {(value.networks, value.egress) for value in values} == {
        (tuple(number[name] for name in ("dual", "a", "b", "in")), number["dual"])
    }


def test_an_internal_networks_questions_have_no_way_out_but_to_members() -> None:
    host = PlannedHost()
    host.network("in", internal=True, subnets=("10.0.0.0/24",))
    host.run("web", "in", dns=("10.0.0.9", "192.0.2.9"))
    (value,) = name_rows(host.state, FACTS).resolvers.values()
    number = host.state.network("in").number
    assert value.egress == 0
    assert value.upstreams == (
        UpstreamValue(ip_address("10.0.0.9"), number),
        UpstreamValue(ip_address("192.0.2.9")),
    )


@pytest.mark.parametrize(
    ("sentence", "dns", "configured", "host_has", "asked"),
    [
        ("its own before all", ("9.9.9.9",), ("8.8.8.8",), "nameserver 192.0.2.1", ["9.9.9.9"]),
        ("daemon.json before the host's", (), ("8.8.8.8",), "nameserver 192.0.2.1", ["8.8.8.8"]),
        ("the host's as they stand, loopback too", (), (), "nameserver 127.0.0.53", ["127.0.0.53"]),
        ("none at all: the host itself, and no public one", (), (), "", ["127.0.0.1"]),
        (
            "three at the most",
            (),
            (),
            "nameserver ::1 ::2 ::3 ::4",
            ["::1", "::2", "::3"],
        ),
        ("a link's, by its device", (), (), "nameserver fe80::1%eth0", ["fe80::1 by 7"]),
        ("but not by one that is gone", (), (), "nameserver fe80::1%eth9\nnameserver ::1", ["::1"]),
        ("one that is named twice", (), (), "nameserver 192.0.2.1\nnameserver 192.0.2.1", ["192.0.2.1"]),
    ],
)
def test_who_is_asked_what_is_not_ours(
    sentence: str, dns: tuple[str, ...], configured: tuple[str, ...], host_has: str, asked: list[str]
) -> None:
    host = PlannedHost(config=DaemonConfig(dns=configured))
    host.network("red")
    host.run("web", "red", dns=dns)
    found = servers(configured, ResolvConf.parse(host_has).nameservers)
    (value,) = name_rows(host.state, NameFacts(0, found, {"eth0": 7})).resolvers.values()
    texts = [f"{one.addr} by {one.ifindex}" if one.ifindex else str(one.addr) for one in value.upstreams]
    assert texts == asked, sentence


@pytest.mark.parametrize(
    ("sentence", "text", "expected"),
    [
        ("nothing", "", ResolvConf()),
        ("tabs and blanks", "nameserver\t192.0.2.1  \n  nameserver  ::1", ResolvConf(("192.0.2.1", "::1"))),
        ("two on one line", "nameserver 192.0.2.1 192.0.2.2", ResolvConf(("192.0.2.1", "192.0.2.2"))),
        ("CRLF", "nameserver 192.0.2.1\r\nsearch a b\r\n", ResolvConf(("192.0.2.1",), ("a", "b"))),
        (
            "comments",
            "# nameserver 1.1.1.1\n;x\nnameserver ::1 # ours\nsearch a ;b",
            ResolvConf(("::1",), ("a",)),
        ),
        ("a link's", "nameserver fe80::1%eth0", ResolvConf(("fe80::1%eth0",))),
        ("no address", "nameserver dns.example\nnameserver 10.0.0.300\nnameserver", ResolvConf()),
        ("the last of search and domain", "search a b\ndomain c", ResolvConf((), ("c",))),
        (
            "options",
            "options ndots:2 a\noptions x-new:1 a",
            ResolvConf((), (), ("ndots:2", "a", "x-new:1")),
        ),
        ("other lines", "sortlist 10.0.0.0/8", ResolvConf((), (), (), ("sortlist 10.0.0.0/8",))),
    ],
)
def test_a_resolv_conf_is_read_leniently(sentence: str, text: str, expected: ResolvConf) -> None:
    assert ResolvConf.parse(text) == expected, sentence
    assert ResolvConf.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("web", b"\x03web\0"),
        ("a.bc", b"\x01a\x02bc\0"),
        ("_under_score", b"\x0c_under_score\0"),
        ("x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
        ("x" * 64, b""),
        ("a..b", b""),
        ("a.", b""),
        ("", b""),
        (".".join(["x" * 50] * 5), b""),
    ],
)
def test_a_name_is_labels_with_their_lengths_or_cannot_be_asked_for(name: str, packed: bytes) -> None:
    assert wire(name) == packed


def test_a_long_name_has_a_row_in_the_other_map_and_its_address_a_record_in_a_set() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    name = "x" * 63 + "." + "y" * 40
    host.run(name, "red")
    rows = name_rows(host.state, FACTS)
    assert {text_of(key.name) for key in rows.long_names} == {name, f"{name}.red"}
    assert named(host)[owner(host, name)] == [f"PTR {name}.red"]
    assert len(rows.name_sets) == 1


def test_records_are_as_they_are_sent() -> None:
    address = ip_address("10.0.0.2").packed
    assert record(A, 600, address) == b"\xc0\x0c\0\x01\0\x01\0\0\x02\x58\0\x04" + address
    assert record(PTR, 0, b"\x03web\0") == b"\xc0\x0c\0\x0c\0\x01\0\0\0\0\0\x05\x03web\0"
    assert len(record(AAAA, 0, bytes(16))) == 28


def test_sets_have_numbers_of_their_own_that_do_not_change() -> None:
    host = PlannedHost()
    host.network("red", ipv6=True, subnets=("10.0.0.0/24", "fd00::/64"))
    host.network("blue")
    for name in ("a", "b"):
        host.run(name, EndpointRequest("red", aliases=("pool",)), EndpointRequest("blue", aliases=("pool",)))
    first, again = name_rows(host.state, FACTS), name_rows(host.state, FACTS)
    assert first == again
    keys = [key for key in first.names if text_of(key.name) == "pool"]
    numbers = {set_id(key, kind) for key in keys for kind in (A, AAAA)}
    assert len(numbers) == 4 and 0 not in numbers


# ---- what changes ------------------------------------------------------------------------------------------------


def apply(
    rows: Mapping[str, dict[Any, Any]], before: State, after: State, *who: str
) -> dict[str, dict[Any, Any]]:
    """Rows as the driver leaves them: those of `after` that are touched are written, the others of these go."""
    gone = touched({before.container(name).sandbox_id for name in who}, before, after)
    return left_behind(rows, gone, name_rows(after, FACTS, gone))


def left_behind(
    rows: Mapping[str, dict[Any, Any]], gone: Touched, new: NameRows
) -> dict[str, dict[Any, Any]]:
    found: dict[str, dict[Any, Any]] = {}
    numbers = {(number,) for number in gone.endpoints}
    for name, there in rows.items():
        keys = {"name_sets": gone.sets, "resolvers": numbers}.get(name, gone.keys)
        kept = {key: row for key, row in there.items() if key not in keys}
        found[name] = kept | new._asdict()[name]
    return found


@pytest.mark.parametrize(
    ("sentence", "who", "change"),
    [
        ("one comes that shares an alias", "new", lambda host: host.run("new", POOL)),
        ("one goes that shared an alias", "a", lambda host: host.end("a")),
        ("the server of a link goes", "db", lambda host: host.end("db")),
        ("the client of a link goes", "app", lambda host: host.end("app")),
        ("one leaves its first network", "two", lambda host: host.disconnect("blue", "two")),
        ("one leaves its second network", "two", lambda host: host.disconnect("red", "two")),
        ("one joins another network", "a", lambda host: host.connect("a", "blue", aliases=("pool",))),
    ],
)
def test_only_what_a_container_touches_is_written_and_all_of_that(
    sentence: str, who: str, change: Any
) -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.network("blue", subnets=("10.1.0.0/24",))
    host.run("db", "red")
    host.run("a", EndpointRequest("red", aliases=("pool",)))
    host.run("b", EndpointRequest("red", aliases=("pool", "db.red")))
    host.run("two", "blue", EndpointRequest("red", links=("db:store",)))
    host.run("app", "red", links=("db:store", "a:other"))
    before = host.state
    rows = name_rows(before, FACTS)._asdict()
    change(host)
    known = before if who != "new" else host.state
    gone = touched({known.container(who).sandbox_id}, before, host.state)
    written = name_rows(host.state, FACTS, gone)
    all_keys = {*name_rows(host.state, FACTS).names}
    assert set(written.names) <= gone.keys & all_keys
    assert len(written.names) < len(all_keys), "not everything"
    if who == "new":
        before = before.including(host.state.container("new"))
    assert apply(rows, before, host.state, who) == name_rows(host.state, FACTS)._asdict(), sentence


def test_a_renamed_container_is_found_by_its_new_name_only() -> None:
    host = PlannedHost()
    host.network("red", subnets=("10.0.0.0/24",))
    host.run("web", EndpointRequest("red", aliases=("www",)))
    before = host.state
    rows = name_rows(before, FACTS)._asdict()
    after = before.including(replace(before.container("web"), name="shop"))
    found = apply(rows, before, after, "web")
    assert found == name_rows(after, FACTS)._asdict()
    number = before.network("red").number
    assert {"shop", "shop.red", "www"} < set(spoken(NameRows(**found), number))
    assert not {"web", "web.red"} & set(spoken(NameRows(**found), number))


def test_our_networks_subnets_are_rows_of_their_own() -> None:
    host = PlannedHost()
    network = host.network("red", **DUAL)
    found = name_entries.subnet_entries([network])
    assert {(key.prefixlen, str(key.addr)): row.network for key, row in found.items()} == {
        (96 + 24, "10.0.0.0"): network.number,
        (64, "fd00::"): network.number,
    }
    assert ip_network("10.0.0.0/24") == network.subnets[0].prefix


@pytest.mark.parametrize(
    ("sentence", "fields", "count"),
    [
        ("of IPv4", {"subnets": ("10.0.0.0/24",)}, 5),
        ("of both families", DUAL, 5),
        (
            "of a network of podman's, with its domain",
            DUAL | {"options": ("com.datapath.domain=dns.podman",)},
            7,
        ),
    ],
)
def test_a_containers_names_take_as_many_rows_as_it_has_names_and_one(
    sentence: str, fields: Mapping[str, Any], count: int
) -> None:
    """An element of `names` is its key, its value, and what the kernel's hash table (48 bytes) and its allocator (8)
    keep beside them. The allocator has pieces of 128, 192 and 256 bytes: a byte more would be a piece more."""
    from datapath.kernel import abi

    host = PlannedHost()
    host.network("red", **fields)
    host.run("web", "red")
    rows = name_rows(host.state, FACTS)
    element = 48 + 8 + abi.layout("name_key").size + abi.layout("name").size
    assert (len(rows.names), element) == (count, 192), sentence
    assert not rows.long_names and not rows.name_sets
    assert count * element <= 1024 or "domain" in sentence


# ---- endpoints on other hosts --------------------------------------------------------------------------------------


def remote(host: PlannedHost, name: str, last: int, network: str = "red", **fields: Any) -> Remote:
    """An endpoint on another host, of both families."""
    at = host.state.network(network)
    found = [subnet.prefix.network_address + last for subnet in at.subnets]
    usual = {"ipv4": found[0], "ipv6": found[1], "sandbox_id": f"{last:02x}" * 32, "mac": "02:42:00:00:00:01"}
    return Remote(f"{last:064x}", at.id, "e" * 32, name=name, **{**usual, **fields})


def with_remotes(host: PlannedHost, *remotes: Remote) -> State:
    return host.state.including(
        Peer("e" * 32, "h2", 2, ip_address("192.0.2.2"), "02:00:00:00:00:02"), *remotes
    )


def test_an_endpoint_on_another_host_has_the_names_that_it_has_there() -> None:
    host = PlannedHost()
    host.network("red", **DUAL, options=("com.datapath.domain=corp",))
    far = remote(host, "Far", 9, hostname="front", aliases=("www", "Far"))
    rows = name_rows(with_remotes(host, far), FACTS)
    names = [f"{name}{end}" for name in ("far", "09" * 6, "front", "www") for end in ("", ".red", ".corp")]
    assert spoken(rows, host.state.network("red").number) == {
        **{name: ["A 10.0.0.9", "AAAA fd00::9"] for name in names},
        **{address: ["PTR Far.red"] for address in ("10.0.0.9", "fd00::9")},
    }
    assert not rows.resolvers and not rows.name_sets


def test_an_alias_on_several_hosts_is_all_their_addresses() -> None:
    host = PlannedHost()
    host.network("red", **DUAL)
    host.run("near", EndpointRequest("red", aliases=("pool",)))
    state = with_remotes(host, *(remote(host, f"far{i}", i, aliases=("pool",)) for i in (8, 9)))
    found = spoken(name_rows(state, FACTS), host.state.network("red").number)
    assert found["pool"] == [f"A 10.0.0.{i}" for i in (2, 8, 9)] + [f"AAAA fd00::{i}" for i in (2, 8, 9)]
    assert found["near"] == ["A 10.0.0.2", "AAAA fd00::2"]


def test_what_another_host_is_told_of_an_endpoint_gives_it_the_names_that_it_has_here() -> None:
    host = PlannedHost()
    host.network("red", **DUAL)
    host.run("Web", EndpointRequest("red", aliases=("www",)), hostname="front")
    (endpoint,) = host.state.endpoints.values()
    box = Sandbox("f" * 64, "/run/netns/pod", Phase.READY, "cni", "key", "default/web")
    pod = replace(endpoint, sandbox_id=box.id)
    number = host.state.network("red").number
    for state, one in ((host.state, endpoint), (host.state.including(box, pod), pod)):
        there = remote(host, last=2, **told(one, state)._asdict())
        assert there.ipv4 == one.ipv4.ip  # type: ignore[union-attr]
        here, far = owner_here(one, number, state), owner_elsewhere(there, number)
        assert here[:2] == far[:2] and here.names
    assert not any(told(replace(endpoint, handed_over=True), host.state))


@pytest.mark.parametrize(
    ("sentence", "change"),
    [
        ("of another network", {"network": "blue"}),
        ("of a network without names", {"network": "mute"}),
    ],
)
def test_names_of_endpoints_on_other_hosts_are_those_of_their_network(
    sentence: str, change: dict[str, Any]
) -> None:
    host = PlannedHost()
    host.network("red", **DUAL)
    host.network("blue", ipv6=True, subnets=("10.1.0.0/24", "fd01::/64"))
    host.network(
        "mute", ipv6=True, subnets=("10.2.0.0/24", "fd02::/64"), options=("com.datapath.names=false",)
    )
    state = with_remotes(host, remote(host, "far", 9, **change))
    rows = name_rows(state, FACTS)
    assert not spoken(rows, host.state.network("red").number), sentence
    assert bool(rows.names) == (change["network"] == "blue")
    blue = host.state.network("blue")
    gone = name_rows(state.including(replace(blue, built=False)), FACTS)
    assert not gone.names, "a network that is not built here"


def test_only_what_an_endpoint_on_another_host_touches_is_written_and_all_of_that() -> None:
    """Rows as the driver leaves them after each change are those that there have to be."""
    host = PlannedHost()
    host.network("red", **DUAL)
    host.network("blue", ipv6=True, subnets=("10.1.0.0/24", "fd01::/64"))
    host.run("near", EndpointRequest("red", aliases=("pool", "far.red")), "blue")
    host.run("other", "red")
    far, fellow = remote(host, "far", 9, aliases=("pool",)), remote(host, "fellow", 8, aliases=("pool",))
    elsewhere = remote(host, "far", 7, "blue")
    states = [
        with_remotes(host),
        with_remotes(host, far),
        with_remotes(host, far, fellow, elsewhere),
        with_remotes(host, replace(far, name="new", aliases=()), fellow, elsewhere),
        with_remotes(host, replace(far, name="new", aliases=(), ipv4=IPv4Address("10.0.0.77")), fellow),
        with_remotes(host, fellow, replace(fellow, id="d" * 64, name="pool")),
        with_remotes(host, replace(fellow, ipv6=None, aliases=("far",))),
        with_remotes(host),
    ]
    rows = name_rows(states[0], FACTS)._asdict()
    for before, after in itertools.pairwise(states):
        both = [*before.rows(Remote).values(), *after.rows(Remote).values()]
        changed = [one for one in both if before.rows(Remote).get(one.id) != after.rows(Remote).get(one.id)]
        gone = name_entries.touched_elsewhere(changed, before, after)
        assert not gone.endpoints and not gone.keys & {endpoint_key(1, 1), name_key(1, "other")}
        rows = left_behind(rows, gone, name_rows(after, FACTS, gone))
        assert rows == name_rows(after, FACTS)._asdict()
    host.run("new", EndpointRequest("red", aliases=("pool",)))
    before, after = states[2], with_remotes(host, *states[2].rows(Remote).values())
    gone = touched({host.state.container("new").sandbox_id}, before, after)
    rows = left_behind(name_rows(before, FACTS)._asdict(), gone, name_rows(after, FACTS, gone))
    assert rows == name_rows(after, FACTS)._asdict(), "a local endpoint that shares an alias"
