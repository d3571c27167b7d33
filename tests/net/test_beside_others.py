# SPDX-License-Identifier: Apache-2.0
"""Beside what others do to the host: strict settings, firewalls, machines that change, devices that come later."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.net.hosts import DATAPATHCTL, FAR, HOST, OUTSIDE, TREE, Host, Namespace, eventually, loses, reaches
from tests.net.test_ipv6 import HOST6, OUTSIDE6, plug_ipv6
from tests.net.wire import (
    Container,
    call,
    counters,
    device_mac,
    fails,
    opened,
    rises,
    serving,
    start_container,
)

SO_MARK, SO_TXTIME = 36, 61  # SCM_TXTIME is the same number
MARK = 0x2A
SECOND_HOST, SECOND_OUTSIDE = "198.51.100.1", "198.51.100.2"

# Nothing is forwarded, nothing invalid is let in or out, nothing but the gateway device leads to a container.
FIREWALL = """
table inet strict {{
    chain raw {{
        type filter hook prerouting priority raw;
        iifname != "dp0" ip daddr {{ {web}, {peer} }} counter drop comment "raw"
    }}
    chain input {{
        type filter hook input priority filter;
        ct state invalid counter drop comment "invalid"
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
    }}
    chain output {{
        type filter hook output priority filter;
        ct state invalid counter drop comment "invalid"
    }}
}}
"""


def _all_ways(host: Host, web: Container, peer: Container) -> None:
    """Every way that a packet can take, over TCP and UDP, and nothing of it dropped."""
    before = counters(host)
    for proto in ("tcp", "udp"):
        with serving(web, proto, 80), serving(host.outside, proto, 7400), serving(host, proto, 7401):
            for source in (OUTSIDE, FAR):
                published = call(host.outside, proto, HOST, 8081, source=(source, 0))
                assert (published.seen, published.peer) == (source, HOST)
            for target in (OUTSIDE, FAR)[: 2 if proto == "tcp" else 1]:  # a UDP server answers from its first
                assert call(web, proto, target, 7400).seen == HOST  # masquerade
            assert call(peer, proto, web.ip, 80).seen == peer.ip
            assert call(peer, proto, HOST, 8081).peer == HOST
            assert call(web, proto, HOST, 8081).seen == web.gateway  # hairpin
            assert call(host, proto, web.ip, 80).seen == web.gateway
            assert call(host, proto, "127.0.0.1", 8081).seen == web.gateway
            assert call(host, proto, HOST, 8081).seen == HOST
            for address in (web.gateway, HOST):
                assert call(web, proto, address, 7401).seen == web.ip
    assert reaches(host.try_, web.ip)
    assert reaches(web.try_, web.gateway)
    assert reaches(web.try_, peer.ip)
    assert reaches(web.try_, FAR)
    assert rises(before, counters(host)) == {}


def _pair(host: Host) -> tuple[Container, Container]:
    return start_container(host, "web", "-p 8081:80 -p 8081:80/udp"), start_container(host, "peer")


# ---- rp_filter -----------------------------------------------------------------------------------------


def _strict(host: Host) -> None:
    devices = host.sh("ls /proc/sys/net/ipv4/conf").split()
    host.sh(["sysctl", "-qw", *(f"net/ipv4/conf/{device}/rp_filter=1" for device in devices)])
    assert {"all", "default", "lo", "eth0"} <= set(devices)


def test_rp_filter_on_every_device_before_and_after_containers_start(host: Host) -> None:
    _strict(host)
    web, peer = _pair(host)
    _all_ways(host, web, peer)
    _strict(host)  # the gateway device and whatever else was made
    assert host.sh("sysctl -n net/ipv4/conf/dp0/rp_filter") == "1"
    _all_ways(host, web, peer)


# ---- a firewall ----------------------------------------------------------------------------------------


def _stopped(host: Host, comment: str) -> int:
    """Packets that the firewall's rules of that comment dropped."""
    rules = [
        entry["rule"]
        for entry in json.loads(host.sh("nft -j list table inet strict"))["nftables"][1:]
        if "rule" in entry
    ]
    return sum(
        part["counter"]["packets"]
        for rule in rules
        if rule.get("comment") == comment
        for part in rule["expr"]
        if "counter" in part
    )


def test_a_firewall_that_drops_what_is_forwarded_invalid_or_for_a_container_stops_nothing(host: Host) -> None:
    web, peer = _pair(host)
    host.sh("nft -f -", input=FIREWALL.format(web=web.ip, peer=peer.ip))
    host.sh("iptables -P FORWARD DROP")
    _all_ways(host, web, peer)
    assert (_stopped(host, "raw"), _stopped(host, "invalid")) == (0, 0)
    # The rules are in force: what is not ours meets them.
    host.outside.sh(f"ip route add {web.ip} via {HOST}")
    assert fails(host.outside, "tcp", web.ip, 80)
    assert _stopped(host, "raw") > 0


def test_flushing_every_table_of_the_packet_filter_changes_nothing(emptied: Host) -> None:
    host = emptied
    web, peer = _pair(host)
    host.sh("nft -f -", input=FIREWALL.format(web=web.ip, peer=peer.ip))
    with serving(web, "tcp", 80), opened(host.outside) as early, opened(web) as masqueraded:
        early.connect((HOST, 8081))
        with opened(host.outside) as listener:
            listener.bind((OUTSIDE, 7402))
            listener.listen()
            masqueraded.connect((OUTSIDE, 7402))
            accepted, _ = listener.accept()
        host.sh("nft flush ruleset")
        for command in ("iptables", "ip6tables"):
            for table in ("filter", "nat", "mangle", "raw"):
                host.sh(f"{command} -t {table} -F")
        assert early.recv(100).decode().split()[0] == OUTSIDE
        with accepted:
            accepted.sendall(b"still here")
            assert masqueraded.recv(100) == b"still here"
    _all_ways(host, web, peer)


def test_no_policy_and_no_flush_of_the_packet_filter_concerns_ipv6_either(host: Host) -> None:
    plug_ipv6(host)
    host.ctl("network create --ipv6 six")
    web, peer = (
        start_container(host, "web", "--network six -p 8081:80"),
        start_container(host, "peer", "--network six"),
    )
    host.sh("ip6tables -P FORWARD DROP")
    with serving(web, "tcp", 80, "::"), serving(host.outside, "tcp", 7400, "::"):
        for command in ("true", "nft flush ruleset", "ip6tables -P FORWARD DROP"):
            host.sh(command)
            assert call(host.outside, "tcp", HOST6, 8081).seen == OUTSIDE6
            assert call(web, "tcp", OUTSIDE6, 7400).seen == HOST6
            assert call(peer, "tcp", web.ip6, 80).seen == peer.ip6
            assert call(host, "tcp", web.ip6, 80)
            assert call(host, "tcp", HOST6, 8081)


# ---- neighbours ----------------------------------------------------------------------------------------


def _recovery(host: Host, place: Host | Container, mac: str) -> float:
    """The machine outside gets another MAC, as if replaced: seconds until the place reaches it again."""
    assert reaches(place.try_, OUTSIDE)
    old = device_mac(host.outside, "eth0")
    host.outside.sh(f"ip link set eth0 address {mac}")
    began = time.monotonic()
    assert old in host.sh(f"ip neigh show {OUTSIDE} dev eth0")
    with eventually() as until:
        until(lambda: not loses(place.try_, OUTSIDE))
    assert mac in host.sh(f"ip neigh show {OUTSIDE} dev eth0")
    return time.monotonic() - began


def test_a_stale_neighbour_outside_recovers_in_the_time_that_the_host_needs(host: Host) -> None:
    for setting in (
        "base_reachable_time_ms=500",
        "delay_first_probe_time=1",
        "retrans_time_ms=100",
    ):
        host.sh(f"sysctl -qw net/ipv4/neigh/eth0/{setting}")
    one = start_container(host, "one")
    hosts_own = _recovery(host, host, "02:00:00:00:aa:01")
    containers = _recovery(host, one, "02:00:00:00:aa:02")
    assert containers < hosts_own + 10, (containers, hosts_own)


# ---- maps of another version ---------------------------------------------------------------------------


def test_a_pinned_map_of_another_layout_is_refused_and_not_misread(emptied: Host) -> None:
    host = emptied
    web = start_container(host, "web", "-p 8081:80")
    pin = host.bpffs / "datapath" / "maps" / "ports"
    aside = host.bpffs / "ports"
    facts = json.loads(host.sh(f"bpftool -j map show pinned {pin}"))
    pin.rename(aside)
    host.sh(
        f"bpftool map create {pin} type {facts['type']} key {facts['bytes_key']} "
        f"value {facts['bytes_value'] + 4} entries {facts['max_entries']} name ports flags {facts['flags']}"
    )
    for command in ("network create x", "run -d --name late -p 8082:80 sleep 60"):
        line = host.refused(command)
        assert "ports" in line and "layout" in line, line
    assert json.loads(host.sh(f"bpftool -j map dump pinned {pin}")) == []  # nothing was written there
    with serving(web, "tcp", 80):  # what runs goes on, with the map that it has
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE
    pin.unlink()
    aside.rename(pin)
    host.ctl("network create x")
    assert "late" not in host.ctl("ps -a")
    late = start_container(host, "late", "-p 8082:80")
    with serving(web, "tcp", 80), serving(late, "tcp", 80):
        for port in (8081, 8082):
            assert call(host.outside, "tcp", HOST, port).seen == OUTSIDE
            assert call(host, "tcp", "127.0.0.1", port).peer_port == port


def test_a_pin_of_one_map_that_is_gone_comes_back(emptied: Host) -> None:
    host = emptied
    web = start_container(host, "web", "-p 8081:80")
    (host.bpffs / "datapath" / "maps" / "ports").unlink()
    host.ctl("network create x")
    with serving(web, "tcp", 80):
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE


# ---- devices that come later -----------------------------------------------------------------------------


@contextlib.contextmanager
def _second_uplink(host: Host) -> Iterator[Namespace]:
    second = Namespace()
    try:
        host.sh(f"ip link add eth1 type veth peer name eth0 netns {second.pid}")
        host.sh("ip link set eth1 up")
        second.sh(f"ip address add {SECOND_OUTSIDE}/24 dev eth0")
        second.sh("ip link set eth0 up")
        yield second
    finally:
        second.close()


def dispatched(host: Host) -> None:
    """What NetworkManager and networkd-dispatcher call."""
    script = host.folder / "50-datapath"
    script.write_text(
        (TREE / "packaging/dispatcher").read_text().replace("@BIN@", str(Path(DATAPATHCTL).parent))
    )
    host.sh(["sh", str(script), "eth1", "up"])


@pytest.mark.parametrize(
    ("proto", "follow"),
    [("tcp", lambda host: host.ctl("network create other")), ("udp", dispatched)],
    ids=["the next changing command", "the dispatcher of a network manager"],
)
def test_a_new_uplink_is_served_after(host: Host, proto: str, follow: Callable[[Host], object]) -> None:
    dispatched(host)  # nothing is there to be followed, and nothing is made
    assert host.ctl("down --dry-run") == "There is nothing to remove."
    web = start_container(host, "web", f"-p 8081:80/{proto}")
    with _second_uplink(host) as second, serving(web, proto, 80), serving(second, proto, 7400):
        host.sh(f"ip address add {SECOND_HOST}/24 dev eth1")  # later than the device itself
        assert fails(second, proto, SECOND_HOST, 8081)  # as documented
        follow(host)
        answer = call(second, proto, SECOND_HOST, 8081)
        assert (answer.seen, answer.peer) == (SECOND_OUTSIDE, SECOND_HOST)
        assert call(web, proto, SECOND_OUTSIDE, 7400).seen == SECOND_HOST
        assert call(host.outside, proto, HOST, 8081).seen == OUTSIDE  # and the first as before


# ---- marks and time stamps --------------------------------------------------------------------------------


def _count(place: Host | Container, hook: str, port: int) -> None:
    """Count the UDP packets to a port with our mark, with another one and with none."""
    place.sh("nft add table ip marks")
    place.sh(f"nft add chain ip marks seen {{ type filter hook {hook} priority 0 ; }}")
    for name, match in (("ours", f"== {MARK}"), ("none", "== 0"), ("any", "!= 0")):
        place.sh(f"nft add counter ip marks {name}")
        place.sh(f"nft add rule ip marks seen udp dport {port} meta mark {match} counter name {name}")


def _counted(place: Host | Container) -> dict[str, int]:
    entries = json.loads(place.sh("nft -j list counters"))["nftables"]
    return {e["counter"]["name"]: e["counter"]["packets"] for e in entries if "counter" in e}


@pytest.mark.parametrize("sender", ["container", "host"])
def test_a_mark_and_a_departure_time_do_not_cross_into_a_container(emptied: Host, sender: str) -> None:
    host = emptied
    two = start_container(host, "two")
    place: Host | Container = start_container(host, "one") if sender == "container" else host
    _count(place, "output", 5300)
    _count(two, "input", 5300)
    with opened(two, socket.SOCK_DGRAM) as server, opened(place, socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 5300))
        client.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
        client.setsockopt(socket.SOL_SOCKET, SO_TXTIME, struct.pack("=II", time.CLOCK_MONOTONIC, 0))
        for number in range(3):
            leaves = time.monotonic_ns() + 60 * 10**9  # a queue that believed it would hold it for a minute
            client.sendmsg(
                [b"%d" % number],
                [(socket.SOL_SOCKET, SO_TXTIME, struct.pack("=Q", leaves))],
                0,
                (two.ip, 5300),
            )
            assert server.recv(10) == b"%d" % number
    assert _counted(place) == {"ours": 3, "none": 0, "any": 3}
    assert _counted(two) == {"ours": 0, "none": 3, "any": 0}
