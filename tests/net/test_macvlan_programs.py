# SPDX-License-Identifier: Apache-2.0
"""What the packet programs do for macvlan networks, whose frames the kernel hands over: names by a pair of devices, and
who may talk to whom at the parent's egress (S15, S17, S24)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datapath.kernel import features
from tests.bpf import packets as pk
from tests.net import forked
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace, eventually, loses, reaches
from tests.net.lan import LAN, OUTSIDE6, healthy, on_both_sides, six, within
from tests.net.names import Upstreams, dig
from tests.net.test_trace import Tracer
from tests.net.wire import Container, call, counters, fails, rises, serving, start_container, taps
from tests.softirqs import settle

pytestmark = pytest.mark.skipif(not features.has_kind("macvlan"), reason="this kernel has no macvlan")

NO_ICC = "com.docker.network.bridge.enable_icc=false"
MARK = b"a neighbour"


def links(place: Namespace) -> dict[str, Any]:
    """The devices of a namespace by name."""
    return {one["ifname"]: one for one in json.loads(place.sh("ip -j -d link"))}


def asking(host: Host, name: str) -> str:
    """The container's device by which it asks."""
    (found,) = (word[:-1] for word in host.in_(name, "ip -o link").split() if word.startswith("dns"))
    return found.partition("@")[0]


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(shared_host: Host) -> Iterator[Host]:
    """Two containers on a network with a parent, of which one is on a network without, too."""
    host = on_both_sides(shared_host)
    host.ctl(f"network create -d macvlan {LAN} -o parent=eth0 -o com.datapath.domain=example.org lan")
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 alone")
    host.run("web", "--network lan --network-alias www")
    host.run("a", "--network lan")
    host.ctl("network connect alone web")
    host.run("b", "--network alone")
    yield host


def test_s17_members_find_each_other_by_name(named: Host) -> None:
    """Over UDP and TCP, both IP versions, by every name, and back from an address."""
    near, near6 = named.address("web", "lan"), six(named, "web")
    for name in ("web", "web.lan", "www", "web.example.org", "WEB"):
        assert dig(named, "a", f"{name} A")[0].data == [near], name
    found = dig(named, "a", "web AAAA", "web MX", f"-x {near}", options="+tcp")
    assert [one.data for one in found] == [[near6], [], ["web.lan."]]
    assert [one.data for one in dig(named, "b", "web A", "a.lan A")] == [[named.address("web", "alone")], []]
    found = dig(named, "web", "a.lan A", "b.alone A")
    assert [one.data for one in found] == [[named.address("a", "lan")], [named.address("b", "alone")]]
    assert "nameserver 127.0.0.11" in named.in_("a", "cat /etc/resolv.conf")
    assert reaches(within(named, "a"), "web")
    assert healthy(named)
    named.run("late", "--network lan")
    assert dig(named, "a", "late A")[0].data == [named.address("late", "lan")]
    named.ctl("rm -f late")
    assert "late" not in named.ctl("names ls lan") and healthy(named)


def test_s17_other_names_are_asked_of_the_hosts_servers_with_its_address(named: Host, tmp_path: Path) -> None:
    """One on the LAN, which is in the network's own subnet, and one on the host's loopback; from a network that leads
    nowhere nobody is asked."""
    router = Upstreams(named.outside, tmp_path / "router", f"{OUTSIDE}=203.0.113.70")
    own = Upstreams(named, tmp_path / "own", "127.0.0.53=203.0.113.71")
    try:
        for server, answer, asked, peer in (
            (OUTSIDE, "203.0.113.70", router, HOST),
            ("127.0.0.53", "203.0.113.71", own, "127.0.0.1"),
        ):
            named.run("c", f"--network lan --dns {server}")
            for options in ("", "+tcp"):
                assert dig(named, "c", "elsewhere.test A", options=options)[0].data == [answer]
            assert asked.asked("elsewhere.test")[0].peer == peer
            named.ctl("rm -f c")
        before = len(router.asked())
        named.run("c", f"--network alone --dns {OUTSIDE}")
        assert dig(named, "c", "elsewhere.test A")[0].status == "NXDOMAIN"
        assert len(router.asked()) == before
        named.ctl("rm -f c")
        shown = [json.loads(line) for line in named.ctl("stats --all --format json").splitlines()]
        (counted,) = (row for row in shown if row.get("Network") == "lan" and "Answered" in row)
        assert counted["Answered"] and counted["Forwarded"]
    finally:
        for one in (router, own):
            one.process.kill()
            one.process.wait()


def test_s14_nothing_but_questions_passes_where_members_ask(named: Host) -> None:
    """Who adds routes by that device reaches neither the host nor another member by it: each is as far as before."""
    device = asking(named, "a")
    gateway = links(named)[f"dq-{named.network('lan')['Id'][:12]}"]["address"]
    near = named.address("web", "lan")
    for address in (HOST, near, OUTSIDE):
        named.in_("a", f"ip neigh replace {address} lladdr {gateway} dev {device}")
        named.in_("a", f"ip route replace {address} dev {device}")
    try:
        before = counters(named)
        for address in (HOST, near, OUTSIDE):
            assert loses(within(named, "a"), address)
        assert rises(before, counters(named)).keys() == {"DROP_ISOLATED"}
        before = counters(named)
        named.in_("a", f"sysctl -qw net.ipv6.conf.{device}.disable_ipv6=0")
        assert loses(within(named, "a"), f"ff02::1%{device}")
        assert "DROP_MULTICAST_OFF" in rises(before, counters(named))
    finally:
        named.in_("a", f"sysctl -qw net.ipv6.conf.{device}.disable_ipv6=1")
        for address in (HOST, near, OUTSIDE):
            named.in_("a", f"ip route delete {address} dev {device}")
            named.in_("a", f"ip neigh delete {address} dev {device}")
    assert loses(within(named, "a"), HOST) and reaches(within(named, "a"), near)
    assert healthy(named)


def test_s30_what_questions_need_is_found_missing_and_put_back(named: Host) -> None:
    def found() -> set[str]:
        return set(named.try_ctl("doctor --format {{.Check}}").stdout.split())

    def repaired() -> bool:
        named.ctl("reconcile")
        return healthy(named) and dig(named, "a", "web A")[0].data == [named.address("web", "lan")]

    table = "table local 127.0.0.11"
    named.in_("a", f"ip route delete {table}")
    assert found() == {"resolver"} and repaired()
    named.in_("a", f"ip link set {asking(named, 'a')} down")
    assert "down" in found() and repaired()
    named.in_("a", f"ip link delete {asking(named, 'a')}")
    said = named.try_ctl("doctor").stdout
    assert "container a on network lan: the container's device dns" in said and "is gone" in said
    assert "pair" in found() and repaired()
    gateway = f"dq-{named.network('lan')['Id'][:12]}"
    named.sh(f"ip link delete {gateway}")
    assert "gateway" in found() and repaired()
    assert len([one for one in links(named) if one == gateway]) == 1


def test_s30_programs_that_were_lost_come_back_without_touching_members(host: Host) -> None:
    """Whose devices would go with a parent that was made for their network."""
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 alone")
    host.run("a", "--network alone")
    host.run("b", "--network alone")
    before = host.in_("a", "ip -o link"), host.in_("b", "ip -o link")
    shutil.rmtree(host.bpffs / "datapath")
    assert "programs" in host.try_ctl("doctor --format {{.Check}}").stdout
    host.ctl("network create more")
    assert healthy(host) and (host.in_("a", "ip -o link"), host.in_("b", "ip -o link")) == before
    assert dig(host, "a", "b A")[0].data == [host.address("b", "alone")]
    assert reaches(within(host, "a"), "b")


def test_s30_a_container_of_a_version_without_names_keeps_the_hosts_servers(host: Host) -> None:
    """Until it is started again: it has no way to the resolver, and nobody misses it. New ones have."""
    host.ctl("network create -d macvlan --subnet 10.77.0.0/24 lan")
    host.run("old", "--network lan")
    ends = [name for name in links(host) if name.startswith("veth")]
    host.ctl("network create other")
    for device in (*ends, f"dq-{host.network('lan')['Id'][:12]}"):
        host.sh(f"ip link delete {device}")
    with forked.database(host.folder / "state") as opened:
        opened.execute("UPDATE endpoints SET body = json_set(body, '$.host_ifindex', 0)")
        opened.commit()
    host.ctl("reconcile")
    assert healthy(host)
    host.ctl("rename old older")
    host.ctl("network connect other older")
    assert "127.0.0.11" in host.in_("older", "cat /etc/resolv.conf") and healthy(host)
    host.ctl("network disconnect other older")
    assert "127.0.0.11" not in host.in_("older", "cat /etc/resolv.conf") and healthy(host)
    host.run("new", "--network lan")
    assert "older" not in host.ctl("names ls lan") and "new" in host.ctl("names ls lan")
    assert reaches(within(host, "new"), host.address("older", "lan")) and healthy(host)
    for command in ("stop -t 0 older", "start older"):
        host.ctl(command)
    assert reaches(within(host, "new"), "older") and healthy(host)


def test_s24_without_names_nothing_is_made_for_them(host: Host) -> None:
    """Nor are the programs loaded, which would see each packet of the uplink."""
    before = host.sh("ip -o link")
    host.ctl("network create -d macvlan --subnet 192.0.2.0/24 -o parent=eth0 -o com.datapath.names=false lan")
    host.run("a", "--network lan")
    assert host.sh("ip -o link") == before and not host.sh("tc filter show dev eth0 ingress")
    assert "dns" not in host.in_("a", "ip -o link")
    assert "127.0.0.11" not in host.in_("a", "cat /etc/resolv.conf")
    assert not list((host.bpffs / "datapath").glob("links/*")) and healthy(host)


# ---- who may talk to whom ------------------------------------------------------------------------------------------


class Topology(NamedTuple):
    host: Host
    server: Container  # exposes 80 and 53/udp
    linked: Container  # --link server:db
    other: Container


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Members that may not talk, but for one with a link."""
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        on_both_sides(host)
        host.ctl(f"network create -d macvlan {LAN} -o parent=eth0 -o {NO_ICC} lan")
        server = start_container(host, "server", "--network lan --expose 80 --expose 53/udp")
        linked = start_container(host, "linked", "--network lan --link server:db")
        other = start_container(host, "other", "--network lan")
        yield Topology(host, server, linked, other)
    finally:
        host.close()


def test_s15_what_a_member_has_for_another_is_dropped_at_the_parent_and_counted(apart: Topology) -> None:
    """O16."""
    for client, target in (
        (apart.other, apart.server),
        (apart.server, apart.other),
        (apart.other, apart.linked),
    ):
        with serving(target, "tcp", 80) as tcp, serving(target, "udp", 53) as udp:
            before = counters(apart.host)
            assert loses(client.try_, target.ip)
            assert fails(client, "tcp", target.ip, 80)
            assert fails(client, "udp", target.ip, 53)
            assert rises(before, counters(apart.host)).keys() == {"DROP_ICC"}
            assert not tcp.peers + udp.peers
    before = counters(apart.host)
    assert loses(apart.other.try_, six(apart.host, "server"))
    assert rises(before, counters(apart.host)).keys() == {"DROP_ICC"}


def test_s15_who_is_kept_from_whom_is_shown_as_it_happens(apart: Topology) -> None:
    """At the parent, which is nobody's: by the addresses."""
    tracer = Tracer(apart.host, "drops")
    assert loses(apart.other.try_, apart.server.ip)
    lines = tracer.stop()
    assert [one["Packets"] for one in lines if one.get("Counter") == "DROP_ICC"]  # others may try again still
    (shown,) = (one for one in lines if (one.get("Source"), one.get("Protocol")) == (apart.other.ip, "icmp"))
    assert (shown["Device"], shown["Destination"]) == ("eth0", apart.server.ip)


def test_s15_a_link_opens_what_is_exposed_and_leads_one_way_on_macvlan_too(apart: Topology) -> None:
    six_of = six(apart.host, "server")
    for proto, port in (("tcp", 80), ("udp", 53)):
        with serving(apart.server, proto, port):
            assert call(apart.linked, proto, apart.server.ip, port).seen == apart.linked.ip
        with serving(apart.server, proto, port, six_of):
            assert call(apart.linked, proto, six_of, port).seen == six(apart.host, "linked")
    for proto, port in (("udp", 80), ("tcp", 53), ("tcp", 81)):
        with serving(apart.server, proto, port) as server:
            assert fails(apart.linked, proto, apart.server.ip, port)
            assert not server.peers
    with serving(apart.linked, "tcp", 80) as back:
        assert fails(apart.server, "tcp", apart.linked.ip, 80)
        assert not back.peers
    assert dig(apart.host, "linked", "db A")[0].data == [apart.server.ip]


def test_s15_nothing_else_gets_from_one_member_to_another(apart: Topology) -> None:
    """Whatever the frame: broadcast, multicast, another's address, another protocol. All of it leaves to the LAN, or is
    dropped."""
    me, you = apart.other, apart.server
    bodies = [
        (pk.ETH_IPV4, pk.ipv4(me.ip, "255.255.255.255", pk.udp(1, 2, MARK))),
        (pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK), fragment=pk.MORE_FRAGMENTS)),
        (pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, pk.udp(1, 53, MARK), fragment=3)),
        (pk.ETH_IPV4, pk.ipv4(apart.linked.ip, you.ip, pk.udp(1, 53, MARK))),
        (pk.ETH_IPV4, pk.ipv4("203.0.113.9", you.ip, pk.udp(1, 53, MARK))),
        (pk.ETH_IPV6, pk.ipv6("fe80::1", "ff02::1", pk.udp(1, 2, MARK))),
        (pk.ETH_ARP, pk.arp(pk.REPLY, me.mac, me.ip, you.mac, you.ip)),
        (0x88B5, MARK * 5),
    ]
    with taps(me, you, apart.linked) as (sender, *watching):
        for kind, body in bodies:
            for mac in (you.mac, pk.BROADCAST, "01:00:5e:00:00:01"):
                with contextlib.suppress(OSError):  # it was dropped, as the kernel tells at once
                    sender.send(pk.ethernet(mac, me.mac, kind, body))
        settle()
        seen = [frame for tap in watching for frame in tap.frames()]
        assert not [frame for frame in seen if MARK in frame]


def test_s15_the_lan_is_reached_as_ever(apart: Topology) -> None:
    for far in (OUTSIDE, OUTSIDE6):
        assert reaches(apart.other.try_, far)
        with serving(apart.host.outside, "tcp", 7203, far):
            call(apart.other, "tcp", far, 7203)
    assert healthy(apart.host)


def test_s30_a_program_that_is_gone_from_the_parent_is_found_and_put_back(apart: Topology) -> None:
    host = apart.host
    index = links(host)["eth0"]["ifindex"]
    (host.bpffs / f"datapath/links/to_parent-{index}").unlink()
    said = host.try_ctl("doctor").stdout
    assert "device eth0: program to_parent is not attached" in said
    host.ctl("reconcile")
    assert healthy(host)
    before = counters(host)
    assert loses(apart.other.try_, apart.server.ip)
    assert rises(before, counters(host)).keys() == {"DROP_ICC"}
    host.ctl("rm -f server linked other")
    host.ctl("network rm lan")
    with eventually() as until:
        until(lambda: not list((host.bpffs / "datapath").glob("links/*_parent-*")))
    assert healthy(host)


def test_s30_both_programs_of_a_parent_come_and_go_as_filters_too(make_host: Callable[..., Host]) -> None:
    """The qdisc that they share goes with the last of them."""
    host = make_host(attach="clsact")
    host.ctl(f"network create -d macvlan --subnet 192.0.2.0/24 -o parent=eth0 -o {NO_ICC} lan")
    host.run("a", "--network lan")
    host.run("b", "--network lan")
    before = counters(host)
    assert loses(within(host, "a"), host.address("b", "lan"))
    assert rises(before, counters(host)).keys() == {"DROP_ICC"} and healthy(host)
    assert dig(host, "a", "b.lan A")[0].data == [host.address("b", "lan")]
    host.ctl("rm -f a b")
    host.ctl("network rm lan")
    assert "to_parent" not in host.sh("tc filter show dev eth0 egress")
    assert "from_uplink" in host.sh("tc filter show dev eth0 ingress") and healthy(host)
    host.ctl("down")
    assert "clsact" not in host.sh("tc qdisc show dev eth0")
