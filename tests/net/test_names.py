# SPDX-License-Identifier: Apache-2.0
"""Containers find each other by name: the rows, ways and files that are there for it, and the answers (S17)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

import datapath
from datapath import EndpointRequest, NetworkRequest
from datapath.config.settings import Settings
from datapath.dataplane.convert import to_abi
from datapath.dataplane.wire_names import address_key
from datapath.engine.names import update_elsewhere
from datapath.kernel import bpf_maps, bpffs, features, netns
from datapath.model.peers import Peer, Remote
from tests.net.agents import agent
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace, eventually
from tests.net.names import NamedHost
from tests.net.names import dig as replies_of
from tests.net.test_library import Engine

ROUTE = "127.0.0.11 via"
# A name server of the host's own.
SERVER = [
    *("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"),
    *("--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces", "--address=/x.test/203.0.113.77"),
]


@pytest.fixture(scope="module")
def prepared(shared_host: Host) -> Host:
    """Two networks, of which the second has both families, and one that has IPv6 only."""
    shared_host.ctl("network create --subnet 10.1.0.0/24 red")
    shared_host.ctl("network create --ipv6 --subnet 10.2.0.0/24 --subnet fd02::/64 blue")
    shared_host.ctl("network create --ipv6 --ipv4=false --subnet fd03::/64 six")
    return shared_host


@pytest.fixture(autouse=True)
def clean(prepared: Host) -> Iterator[None]:
    """Each test leaves no container, and nothing that doctor finds."""
    yield
    if names := prepared.ctl("ps -aq").split():
        prepared.ctl(["rm", "-f", *names])
    assert not prepared.ctl("names ls --format json")
    assert prepared.ctl("doctor") == "No problems found."


def listed(host: Host, network: str = "") -> dict[str, str]:
    """Name and type -> data, as `names ls` has it."""
    rows = [json.loads(line) for line in host.ctl(f"names ls {network} --format json").splitlines()]
    return {f"{row['Name']} {row['Type']}": row["Data"] for row in rows}


def resolve(host: Host, container: str, question: str) -> Any:
    """What `names resolve` says, of the first type that it asks for."""
    done = host.try_ctl(f"names resolve {container} {question} --format json")
    return json.loads(done.stdout.splitlines()[0])


# ---- what is there for it ----------------------------------------------------------------------------------------


def test_s17_a_container_reaches_the_resolver_by_each_of_its_networks(prepared: Host) -> None:
    """A route a network; the first counts, and the others stay when it goes."""
    prepared.run("web", "--network red")
    prepared.ctl("network connect six web")
    table = "ip route show table local 127.0.0.11"
    first, second = prepared.in_("web", table).splitlines()
    assert first.startswith(f"{ROUTE} 10.1.0.1 dev eth0 proto static src 10.1.0.2 metric")
    assert second.startswith(f"{ROUTE} inet6 fe80::") and " dev eth1 proto static src 127.0.0.1 " in second
    for device in ("eth0", "eth1"):
        assert prepared.in_("web", f"sysctl -n net.ipv4.conf.{device}.route_localnet") == "1"
    assert prepared.in_("web", "ip route get 127.0.0.11").startswith("127.0.0.11 via 10.1.0.1 dev eth0")
    prepared.ctl("network disconnect red web")
    assert prepared.in_("web", table).splitlines() == [second]
    assert prepared.ctl("doctor") == "No problems found."


@pytest.mark.parametrize("server", ["127.0.0.53", "::1", "::ffff:127.0.0.1", HOST, "2001:db8:5::53"])
def test_s17_the_hosts_loopback_is_looked_at_as_long_as_anybody_asks_the_host(
    prepared: Host, server: str
) -> None:
    """Whose addresses are those of its devices, and all that its routes say are its own. Nobody else's answer comes by
    it."""
    attached = prepared.bpffs / "datapath/links/from_loopback-1"
    if not attached.parent.exists() or not features.has_tcx():
        pytest.skip("this kernel has no tcx")
    prepared.sh("ip route add local 2001:db8:5::/64 dev lo")
    try:
        prepared.configure({"dns": [OUTSIDE]})
        prepared.run("web", "--network red")
        assert not attached.exists()
        prepared.run("other", f"--network red --dns {OUTSIDE} --dns {server}")
        assert attached.exists()
        prepared.ctl("rm -f other")
        assert not attached.exists()
        prepared.configure({"dns": [server]})
        prepared.run("other", "--network red")
        assert attached.exists()
    finally:
        prepared.sh("ip route del local 2001:db8:5::/64 dev lo")
        prepared.configure({})
    prepared.ctl("rm -f web other")
    assert not attached.exists()


@pytest.mark.parametrize(
    ("sentence", "options", "expected"),
    [
        ("the resolver, and names without dots as they are", "--network red", ["options ndots:0"]),
        ("on the default network no names, so no such option", "", []),
        (
            "search domains and options that were given, whose ndots counts",
            "--network red --dns-search a.test --dns-search b.test --dns-option ndots:2 --dns-option rotate",
            ["search a.test b.test", "options ndots:2 rotate"],
        ),
        (
            "a server that was given is asked by the resolver",
            "--network red --dns 192.0.2.53",
            ["options ndots:0"],
        ),
        ("none of the host's search domains either", "--network red --dns-search .", ["options ndots:0"]),
    ],
)
def test_s17_resolv_conf_is_dockers(prepared: Host, sentence: str, options: str, expected: list[str]) -> None:
    prepared.run("web", options)
    lines = prepared.in_("web", "cat /etc/resolv.conf").splitlines()
    with open("/etc/resolv.conf") as file:
        host_has = [line for line in file.read().splitlines() if line.startswith(("search", "options"))]
    if host_has:
        assert lines[0] == "nameserver 127.0.0.11"
    else:
        assert lines == ["nameserver 127.0.0.11", *expected], sentence


def test_s17_a_container_that_a_linux_bridge_serves_keeps_the_hosts_servers(prepared: Host) -> None:
    prepared.ctl("network create -o com.datapath.mode=nftables --subnet 10.9.0.0/24 old")
    prepared.run("web", "--network old --dns 192.0.2.53")
    assert prepared.in_("web", "cat /etc/resolv.conf").splitlines()[-1] == "nameserver 192.0.2.53"
    assert ROUTE not in prepared.in_("web", "ip route show table local")
    assert "no resolver of datapath's" in prepared.refused("names resolve web other")
    prepared.ctl("network connect red web")
    assert prepared.in_("web", "cat /etc/resolv.conf").splitlines()[0] == "nameserver 127.0.0.11"
    prepared.ctl("network disconnect red web")
    assert prepared.in_("web", "cat /etc/resolv.conf").splitlines()[-1] == "nameserver 192.0.2.53"
    prepared.ctl("rm -f web")
    prepared.ctl("network rm old")


# ---- which names there are ----------------------------------------------------------------------------------------


def test_s17_names_are_there_from_the_join_to_the_leave(prepared: Host) -> None:
    """Name, short id, hostname and aliases, each also with the network's; each address is name and network."""
    ident = prepared.run("web", "--network name=blue,alias=www --hostname front")
    both = {"A": "10.2.0.2", "AAAA": "fd02::2"}
    names = [f"{name}{suffix}" for name in ("web", ident[:12], "front", "www") for suffix in ("", ".blue")]
    assert listed(prepared) == {
        **{f"{name} {kind}": data for name in names for kind, data in both.items()},
        **{f"{address} PTR": "web.blue" for address in (*both.values(), "fe80::42:aff:fe02:2")},
    }
    prepared.ctl("network connect --alias red-web red web")
    assert listed(prepared, "red")["red-web A"] == "10.1.0.2"
    prepared.ctl("network disconnect red web")
    assert not listed(prepared, "red")
    prepared.ctl("stop -t 0 web")
    assert not listed(prepared)
    prepared.ctl("start web")
    assert listed(prepared)["front.blue A"] == "10.2.0.2"


def test_s17_a_renamed_container_is_found_by_its_new_name(prepared: Host) -> None:
    prepared.run("web", "--network red --network-alias www")
    prepared.run("other", "--network red --link web:db")
    prepared.ctl("rename web shop")
    found = listed(prepared, "red")
    assert found["shop A"] == found["www A"] == "10.1.0.2" and found["10.1.0.2 PTR"] == "shop.red"
    assert "web A" not in found and "web.red A" not in found
    assert resolve(prepared, "other", "db")["Source"] == "link of other"


def test_s17_names_on_a_network_follow_what_its_owner_calls_it(prepared: Host) -> None:
    engine = Engine(prepared)
    engine.networks.create(NetworkRequest("n1", owner="docker"))
    try:
        prepared.run("web", "--network n1")
        engine.networks.rename("n1", "shop", "docker")
        assert {"web A", "web.shop A"} <= set(listed(prepared, "shop")) and "web.n1 A" not in listed(prepared)
        prepared.ctl("rm -f web")
    finally:
        prepared.ctl("network rm -f shop")


def test_s17_names_of_a_container_go_though_others_use_its_stack_still(prepared: Host) -> None:
    prepared.run("web", "--network red")
    prepared.run("beside", "--network container:web")
    os.kill(prepared.process("web"), 9)
    prepared.ctl("stop -t 0 web")
    assert not listed(prepared)
    assert prepared.in_("beside", "ip -o address show dev eth0")
    assert resolve(prepared, "beside", "beside")["Status"] != "NOERROR"


def test_s17_names_of_somebody_elses_sandbox(prepared: Host) -> None:
    """Of a namespace that was adopted: its name and its endpoints' aliases; and it reaches the resolver."""
    engine, box = Engine(prepared), Namespace(prepared.env)
    try:
        sandbox = engine.sandboxes.adopt(box.path, "cni", "box", "pod")
        endpoint = engine.endpoints.create(EndpointRequest("red", aliases=("api",)), "cni")
        assert not listed(prepared)
        info = engine.endpoints.join(endpoint.id, sandbox.id)
        assert str(info.resolver) == "10.1.0.1"
        assert set(listed(prepared)) == {"pod A", "pod.red A", "api A", "api.red A", "10.1.0.2 PTR"}
        assert ROUTE in box.sh("ip route show table local")
        assert resolve(prepared, "pod", "api")["Source"] == "network red"
        engine.sandboxes.adopt(box.path, "cni", "box", "renamed")
        assert "renamed A" in listed(prepared) and "pod A" not in listed(prepared)
        engine.sandboxes.rename("cni", {"box": "shown", "nobody": "x"})
        assert "shown A" in listed(prepared) and "renamed A" not in listed(prepared)
        engine.endpoints.leave(endpoint.id)
        assert not listed(prepared)
        engine.endpoints.delete(endpoint.id, "cni")
        engine.sandboxes.forget("box", "cni")
    finally:
        box.close()


def test_s17_dockers_containers_keep_dockers_resolver(prepared: Host) -> None:
    """Docker moves devices itself, and has rules of its own for that address: no row and no route is there, and none is
    missed."""
    engine, box = Engine(prepared), Namespace(prepared.env)
    try:
        engine.endpoints.create(EndpointRequest("red"), "docker", "e")
        assert engine.endpoints.hand_over("e", "docker", box.path, name="web").resolver is None
        assert not listed(prepared)
        refused = prepared.try_ctl("names resolve web web")
        assert refused.returncode and "has no resolver of datapath's" in refused.stderr
        assert ROUTE not in box.sh("ip route show table local")
        assert prepared.ctl("doctor") == "No problems found."
        engine.endpoints.delete("e", "docker")
    finally:
        box.close()


# ---- endpoints on other hosts -------------------------------------------------------------------------------------


def learn(host: Host, *put: Peer | Remote, gone: Sequence[Remote] = ()) -> None:
    """The host hears of endpoints on other hosts, as it does from the cluster's store."""
    library = datapath.Host.open(Settings.from_env(host.env or {}))
    with netns.enter(host.path), library.changing() as tx:
        update_elsewhere(tx, tx.state.without(*gone))
        update_elsewhere(tx, tx.state.without(*gone).including(*put))
        tx.delete(*gone)
        tx.commit(*put)


@pytest.fixture
def peer(prepared: Host) -> Iterator[Peer]:
    """Another host of the cluster."""
    found = Peer("e" * 32, "h2", 2, ip_address("192.0.2.2"), "02:00:00:00:00:02")
    learn(prepared, found)
    yield found
    library = datapath.Host.open(Settings.from_env(prepared.env or {}))
    with netns.enter(prepared.path), library.changing() as tx:
        tx.delete(found)


def far(host: Host, peer: Peer, last: int, **fields: Any) -> Remote:
    """An endpoint on the other host, on the network of both families."""
    (shown,) = json.loads(host.ctl("network inspect blue"))
    addresses = {"ipv4": IPv4Address("10.2.0.0") + last, "ipv6": IPv6Address("fd02::") + last}
    ident = f"{last:02x}" * 32
    return Remote(ident, shown["Id"], peer.id, "02:42:0a:02:00:09", ident, **{**addresses, **fields})


def test_s17_endpoints_on_other_hosts_are_found_by_the_names_that_they_have_there(
    prepared: Host, peer: Peer
) -> None:
    """A, AAAA and PTR; by name, short id, hostname and alias, with the network's and without; another type is NODATA,
    another address is nobody's. An alias that one here has as well is both. All of it is gone with the row."""
    prepared.run("web", "--network name=blue,alias=pool")
    prepared.run("apart", "--network red")
    shop = far(prepared, peer, 9, name="Shop", hostname="front", aliases=("pool",))
    learn(prepared, shop)
    names = [f"{name}{end}" for name in ("shop", "09" * 6, "front") for end in ("", ".blue")]
    for reply in replies_of(prepared, "web", *names):
        assert (reply.status, reply.data) == ("NOERROR", ["10.2.0.9"])
    replies = replies_of(
        prepared, "web", "SHOP AAAA", "shop MX", "pool", "-x 10.2.0.9", "-x fd02::9", "-x 10.2.0.10"
    )
    assert [(one.status, one.data) for one in replies] == [
        ("NOERROR", ["fd02::9"]),
        ("NOERROR", []),
        ("NOERROR", ["10.2.0.2", "10.2.0.9"]),
        ("NOERROR", ["Shop.blue."]),
        ("NOERROR", ["Shop.blue."]),
        ("NXDOMAIN", []),
    ]
    assert resolve(prepared, "web", "10.2.0.9")["Data"] == "Shop.blue"
    assert resolve(prepared, "web", "shop A")["Source"] == "network blue"
    assert resolve(prepared, "apart", "shop A")["Status"] != "NOERROR", "it is not on that network"
    found = listed(prepared, "blue")
    assert found["shop AAAA"] == "fd02::9" and found["fd02::9 PTR"] == found["10.2.0.9 PTR"] == "Shop.blue"
    assert prepared.ctl("doctor") == "No problems found."
    moved = replace(shop, name="store", aliases=(), ipv4=IPv4Address("10.2.0.99"))
    learn(prepared, moved)
    replies = replies_of(prepared, "web", "store", "pool", "-x 10.2.0.99", "-x 10.2.0.9")
    assert [one.data for one in replies] == [["10.2.0.99"], ["10.2.0.2"], ["store.blue."], []]
    assert "shop A" not in listed(prepared, "blue")
    learn(prepared, gone=[moved])
    assert set(listed(prepared, "blue")) & {"store A", "10.2.0.99 PTR"} == set()
    assert replies_of(prepared, "web", "-x 10.2.0.99")[0].status == "NXDOMAIN"


def test_s17_names_of_endpoints_on_other_hosts_are_compared_and_repaired(prepared: Host, peer: Peer) -> None:
    prepared.run("web", "--network blue")
    shop = far(prepared, peer, 9, name="shop")
    learn(prepared, shop)
    there = listed(prepared, "blue")
    fd = bpffs.get_pinned(prepared.bpffs / "datapath/maps/names")
    assert fd is not None
    with contextlib.closing(bpf_maps.Map(fd, "names", "name_key", "name")) as rows:
        lost = [key for key in rows if b"shop" in key.name or key.name[0] == 255]
        stray = to_abi(address_key(lost[0].scope, ip_address("10.2.0.77")))
        rows[stray] = rows[lost[0]]
        for key in lost:
            del rows[key]
    assert len(lost) == 4
    said = prepared.try_ctl("doctor").stdout
    assert said.count("there is no row") == len(lost) and said.count("a row that nobody needs") == 1
    prepared.ctl("reconcile")
    assert listed(prepared, "blue") == there and there["fd02::9 PTR"] == "shop.blue"
    prepared.ctl("rm -f web")
    assert set(listed(prepared, "blue")) < set(there) and "shop AAAA" in listed(prepared, "blue")
    learn(prepared, gone=[shop])


# ---- who is asked -------------------------------------------------------------------------------------------------


def test_s17_names_resolve_says_who_would_answer(prepared: Host) -> None:
    prepared.run("db", "--network red")
    prepared.run("web", "--network red --dns 127.0.0.1 --link db:store")
    prepared.run("apart", "--network six")

    def said(container: str, question: str) -> tuple[str, str, str]:
        row = resolve(prepared, container, question)
        return row["Status"], row["Data"], row["Source"]

    assert said("web", "db") == ("NOERROR", "10.1.0.2", "network red")
    assert said("web", "DB.Red") == ("NOERROR", "10.1.0.2", "network red")
    assert said("web", "store A") == ("NOERROR", "10.1.0.2", "link of web")
    assert said("web", "db AAAA") == ("NODATA", "", "network red")
    assert said("web", "db MX") == ("NODATA", "", "network red")
    assert said("web", "10.1.0.2") == ("NOERROR", "db.red", "network red")
    assert said("web", "2.0.1.10.in-addr.arpa PTR") == ("NOERROR", "db.red", "network red")
    assert said("web", "10.1.0.77") == ("NXDOMAIN", "", "datapath")
    assert said("apart", "fd03::77") == ("NXDOMAIN", "", "datapath")
    server = prepared.start(SERVER)
    with eventually() as until:
        until(lambda: prepared.try_("dig +time=1 +tries=1 @127.0.0.1 x.test").returncode == 0)
    assert said("web", "X.test A") == ("NOERROR", "203.0.113.77", "upstream 127.0.0.1")
    assert said("web", "apart A") == ("REFUSED", "", "upstream 127.0.0.1"), "it is another network's name"
    server.kill()
    server.wait()
    assert "is no name that can be asked for" in prepared.refused("names resolve web a..b")
    assert "is no type of DNS records" in prepared.refused("names resolve web db BAD")
    assert "No such container: nobody" in prepared.refused("names resolve nobody db")


def upstreams(host: Host) -> set[tuple[str, ...]]:
    """Of each container, as the packet programs have them."""
    rows = json.loads(
        host.sh(["bpftool", "-j", "map", "dump", "pinned", f"{host.bpffs}/datapath/maps/resolvers"])
    )
    found = set()
    for row in rows:
        raw = bytes(int(byte, 16) for byte in row["value"])[72:]
        parts = (raw[at : at + 24] for at in range(0, 72, 24))
        found.add(
            tuple(
                str(IPv6Address(part[:16]).ipv4_mapped or IPv6Address(part[:16]))
                for part in parts
                if any(part)
            )
        )
    return found


def test_s17_a_changed_resolv_conf_is_followed_by_each_command_and_by_the_agent(tmp_path: Path) -> None:
    """Nothing has to be started again, and doctor says what is not followed yet."""
    with contextlib.closing(NamedHost(tmp_path, "nameserver 127.0.0.1\n")) as host:
        host.ctl("network create red")
        host.run("web", "--network red")
        host.run("own", "--network red --dns 192.0.2.9")
        assert upstreams(host) == {("127.0.0.1",), ("192.0.2.9",)}
        host.resolvers(
            "search a\r\nnameserver\t127.0.0.53 # stub\noptions x-new\nnameserver fe80::1%eth0 ::1\n"
        )
        assert "entry-wrong" in host.try_ctl("doctor --json").stdout
        host.ctl("reconcile")
        assert upstreams(host) == {("127.0.0.53", "fe80::1", "::1"), ("192.0.2.9",)}
        assert host.ctl("doctor") == "No problems found."
        with agent(host) as one:
            host.resolvers("nameserver 192.0.2.1\n")
            one.says("name servers: 192.0.2.1")
            assert upstreams(host) == {("192.0.2.1",), ("192.0.2.9",)}
            host.resolvers("")
            one.says("name servers: none")
            assert upstreams(host) == {("127.0.0.1",), ("192.0.2.9",)}


def test_s17_how_long_an_answer_may_be_kept_is_a_setting(prepared: Host) -> None:
    prepared.run("web", "--network red")
    prepared.configure({"datapath": {"dns-ttl": 600}})
    try:
        assert "entry-wrong" in prepared.try_ctl("doctor --json").stdout
        prepared.ctl("reconcile")
        assert prepared.ctl("doctor") == "No problems found."
    finally:
        prepared.configure({})
        prepared.ctl("reconcile")


# ---- the answers --------------------------------------------------------------------------------------------------


def dig(host: Host, container: str, words: str, server: str = "127.0.0.11") -> str:
    """What dig prints in a container, without what it says about itself."""
    return host.in_(container, f"dig +short +time=5 +tries=1 @{server} {words}")


def status(host: Host, container: str, words: str) -> str:
    """The response code's name."""
    said = host.in_(container, f"dig +time=5 +tries=1 @127.0.0.11 {words}")
    return said.partition("status: ")[2].partition(",")[0]


@pytest.fixture
def server(prepared: Host) -> Iterator[Popen[str]]:
    """A name server at the host's loopback address, which containers' questions go on to."""
    prepared.configure({"dns": ["127.0.0.1"]})
    process = prepared.start(SERVER)
    with eventually() as until:
        until(lambda: prepared.try_("dig +time=1 +tries=1 @127.0.0.1 x.test").returncode == 0)
    yield process
    os.killpg(process.pid, signal.SIGKILL)  # it has a child for each connection
    process.wait()
    prepared.configure({})


def test_s17_members_find_each_other_by_every_name_that_they_have(prepared: Host, server: Popen[str]) -> None:
    """A, AAAA and PTR; by name, short id, hostname and alias, with and without the network's, in any case;
    at 127.0.0.11, from any socket, and at the gateway's addresses."""
    ident = prepared.run("db", "--network name=blue,alias=store --hostname data")
    prepared.run("web", "--network blue")
    for name in ("db", "DB", ident[:12], "data", "store", "db.blue", "Store.Blue"):
        assert dig(prepared, "web", name) == "10.2.0.2", name
        assert dig(prepared, "web", f"{name} AAAA") == "fd02::2", name
    assert dig(prepared, "web", "-x 10.2.0.2") == dig(prepared, "web", "-x fd02::2") == "db.blue."
    assert dig(prepared, "web", "db", "10.2.0.1") == dig(prepared, "web", "db", "fd02::1") == "10.2.0.2"
    assert dig(prepared, "web", "-b 127.0.0.1 db") == "10.2.0.2"
    assert dig(prepared, "web", "+tcp db") == "10.2.0.2"
    assert dig(prepared, "db", "web") == "10.2.0.3"
    assert prepared.in_("web", "getent hosts db").split() == ["fd02::2", "db"]
    assert status(prepared, "web", "db MX") == "NOERROR" and not dig(prepared, "web", "db MX")
    assert status(prepared, "web", "-x 10.2.0.77") == "NXDOMAIN"
    assert dig(prepared, "web", "x.test") == "203.0.113.77", "of the host's own server"


def test_s17_a_container_sees_names_of_its_networks_and_of_no_other(
    prepared: Host, server: Popen[str]
) -> None:
    prepared.run("on-red", "--network red --network-alias both")
    prepared.run("on-blue", "--network blue --network-alias both")
    prepared.run("web", "--network red")
    unknown = status(prepared, "web", "nobody")
    assert (
        status(prepared, "web", "on-blue") == status(prepared, "web", "on-blue.blue") == unknown != "NOERROR"
    )
    prepared.ctl("network connect blue web")
    assert dig(prepared, "web", "on-blue") == "10.2.0.2" and dig(prepared, "web", "on-red") == "10.1.0.2"
    assert dig(prepared, "web", "both") == "10.2.0.2", "the network with both families comes first"
    assert dig(prepared, "web", "both.red") == "10.1.0.2"
    prepared.ctl("network disconnect blue web")
    assert status(prepared, "web", "on-blue") == unknown
    prepared.run("default", "")
    assert status(prepared, "default", "default") == unknown, "the default network has no names"
    assert dig(prepared, "default", "x.test") == "203.0.113.77"


def test_s17_what_a_command_changed_the_next_question_finds(prepared: Host, server: Popen[str]) -> None:
    """An alias that several have is all of them."""
    for name in ("a", "b", "c"):
        prepared.run(name, "--network red --network-alias pool")
    prepared.run("web", "--network red --link a:first")
    assert sorted(dig(prepared, "web", "pool").split()) == ["10.1.0.2", "10.1.0.3", "10.1.0.4"]
    orders = {dig(prepared, "web", "pool").split()[0] for _ in range(40)}
    assert len(orders) == 3, "each comes first at times"
    assert dig(prepared, "web", "first") == "10.1.0.2" and status(prepared, "b", "first") != "NOERROR"
    prepared.ctl("rename a z")
    assert dig(prepared, "web", "z") == dig(prepared, "web", "first") == "10.1.0.2"
    assert status(prepared, "web", "a") != "NOERROR"
    prepared.ctl("stop -t 0 z")
    assert sorted(dig(prepared, "web", "pool").split()) == ["10.1.0.3", "10.1.0.4"]
    assert status(prepared, "web", "first") != "NOERROR"
    prepared.ctl("network disconnect red b")
    assert dig(prepared, "web", "pool") == "10.1.0.4"
    prepared.ctl("start z")
    assert sorted(dig(prepared, "web", "pool").split()) == ["10.1.0.2", "10.1.0.4"]


def test_s17_a_container_with_ipv6_alone_asks_at_the_same_address(prepared: Host, server: Popen[str]) -> None:
    prepared.run("db", "--network six")
    prepared.run("web", "--network six")
    assert prepared.in_("web", "ip -4 -o address show scope global") == ""
    assert dig(prepared, "web", "db AAAA") == "fd03::2" and dig(prepared, "web", "-x fd03::2") == "db.six."
    assert status(prepared, "web", "db A") == "NOERROR" and not dig(prepared, "web", "db A")
    assert prepared.in_("web", "getent ahosts db").split()[0] == "fd03::2"
    assert dig(prepared, "web", "x.test") == "203.0.113.77"


def test_s17_questions_are_counted_by_network(prepared: Host, server: Popen[str]) -> None:
    prepared.run("web", "--network red")

    def counts() -> dict[str, int]:
        rows = (json.loads(line) for line in prepared.ctl("stats --json").splitlines())
        return next((row for row in rows if row.get("Network") == "red"), {})

    before = counts()
    for question in ("web", "web MX", "-x 10.1.0.77", "x.test"):
        dig(prepared, "web", question)
    grown = {key: number - before.get(key, 0) for key, number in counts().items() if isinstance(number, int)}
    expected = {"Answered": 1, "Nodata": 1, "Nxdomain": 1, "Forwarded": 1, "FailedOver": 0, "Refused": 0}
    assert grown == expected
    assert 'datapath_questions_total{network="red",result="answered"}' in prepared.ctl(
        "stats --format prometheus"
    )
