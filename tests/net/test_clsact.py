# SPDX-License-Identifier: Apache-2.0
"""The main scenarios by both ways to attach a program to a device: tcx, and clsact before 6.6."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.bpf import packets as pk
from tests.net.hosts import BOTH_WAYS, FAR, HOST, OUTSIDE, PATIENCE, Host, needs_tcx, reaches
from tests.net.wire import (
    Container,
    call,
    counters,
    device_mac,
    fails,
    from_,
    rises,
    serving,
    start_container,
    taps,
    unreachable,
)
from tests.softirqs import settle

HOOKS = {"from_container": "ingress", "from_host": "egress", "from_uplink": "ingress"}
BPF_LINK_TYPE_TCX = 11


class Topology(NamedTuple):
    host: Host
    attach: str
    web: Container  # publishes 8081:80
    peer: Container
    other: Container  # on another network
    alone: Container  # without icc, with `linked`
    linked: Container


@pytest.fixture(scope="module", params=BOTH_WAYS)
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    host = Host(tmp_path_factory.mktemp("host"), attach=request.param)
    try:
        host.ctl("network create elsewhere")
        host.ctl(
            "network create -o com.docker.network.bridge.enable_icc=false "
            "-o com.docker.network.bridge.name=alone alone"
        )
        yield Topology(
            host,
            request.param,
            start_container(host, "web", "-p 8081:80 -p 8081:80/udp"),
            start_container(host, "peer"),
            start_container(host, "other", "--network elsewhere"),
            start_container(host, "alone", "--network alone --expose 80"),
            start_container(host, "linked", "--network alone --link alone"),
        )
    finally:
        host.close()


def filters(host: Host, device: str, side: str) -> list[str]:
    """The names of the programs that are filters of clsact there."""
    shown = json.loads(host.sh(f"tc -j filter show dev {device} {side}") or "[]")
    found = [f.get("options", {}).get("bpf_name", "") for f in shown]
    return [name.partition(":")[0] for name in found if name]


def test_the_programs_are_attached_in_the_way_that_was_asked_for(topology: Topology) -> None:
    """Each to its side of every device, and nothing else is there."""
    host = topology.host
    names = {d["ifname"]: d["ifindex"] for d in json.loads(host.sh("ip -j link"))}
    hook_of = {name: "from_container" for name in names if name.startswith("veth")}
    hook_of |= {name: "from_host" for name in names if name in ("dp0", "alone") or name.startswith("dp-")}
    hook_of["eth0"] = "from_uplink"
    assert len(hook_of) == 5 + 3 + 1
    links = host.bpffs / "datapath" / "links"
    for name, hook in hook_of.items():
        pin = links / f"{hook}-{names[name]}"
        as_filters = [filters(host, name, side) for side in ("ingress", "egress")]
        if topology.attach == "tcx":
            link = json.loads(host.sh(f"bpftool -j link show pinned {pin}"))
            program = json.loads(host.sh(f"bpftool -j prog show id {link['prog_id']}"))
            assert (link["type"], program["name"]) == (BPF_LINK_TYPE_TCX, hook)
            assert as_filters == [[], []] and "clsact" not in host.sh(f"tc qdisc show dev {name}")
        else:
            assert not pin.exists()
            assert as_filters == ([[hook], []] if HOOKS[hook] == "ingress" else [[], [hook]])
            assert hook in host.sh(f"bpftool net show dev {name}")


def test_members_reach_each_other_and_the_host_and_other_networks_do_not(topology: Topology) -> None:
    assert reaches(topology.peer.try_, topology.web.ip, 3)
    assert reaches(topology.peer.try_, topology.peer.gateway) and reaches(topology.host.try_, topology.web.ip)
    with serving(topology.web, "tcp", 7700) as server:
        assert call(topology.peer, "tcp", topology.web.ip, 7700).seen == topology.peer.ip
        assert call(topology.host, "tcp", topology.web.ip, 7700).seen == topology.web.gateway
        server.peers.clear()
        assert fails(topology.other, "tcp", topology.web.ip, 7700)
        assert unreachable(topology.other, topology.web.ip)
        assert not server.peers


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_published_port_is_reached_from_everywhere(topology: Topology, proto: str) -> None:
    """Hairpin too."""
    gateway = topology.web.gateway
    with serving(topology.web, proto, 80):
        assert call(topology.host.outside, proto, HOST, 8081).seen == OUTSIDE
        assert call(topology.host, proto, "127.0.0.1", 8081).seen == gateway
        assert call(topology.host, proto, HOST, 8081).seen == HOST
        assert call(topology.other, proto, HOST, 8081).seen == topology.other.ip
        assert call(topology.peer, proto, HOST, 8081).seen == gateway
        assert call(topology.web, proto, HOST, 8081).seen == gateway
    assert fails(topology.host.outside, proto, HOST, 8081, PATIENCE) == errno.ECONNREFUSED


def test_containers_go_out_with_the_hosts_address(topology: Topology) -> None:
    for client in (topology.web, topology.other, topology.alone):
        assert reaches(client.try_, OUTSIDE)
        for proto in ("tcp", "udp"):
            with serving(topology.host.outside, proto, 7701, FAR):
                assert call(client, proto, FAR, 7701).seen == HOST
            assert fails(client, proto, FAR, 7701, PATIENCE) == errno.ECONNREFUSED
    shown = topology.web.sh(f"traceroute -n -q 1 -w 20,0,0 {OUTSIDE}")
    assert [line.split()[1] for line in shown.splitlines()[1:]] == [topology.web.gateway, OUTSIDE]


def test_without_icc_only_a_link_leads_to_a_neighbour(topology: Topology) -> None:
    with serving(topology.alone, "tcp", 80), serving(topology.alone, "tcp", 81):
        assert call(topology.linked, "tcp", topology.alone.ip, 80).seen == topology.linked.ip
        assert fails(topology.linked, "tcp", topology.alone.ip, 81)
    assert unreachable(topology.alone, topology.linked.ip)
    assert reaches(topology.alone.try_, topology.alone.gateway)


def test_raw_frames_and_spoofed_ones_reach_nobody(topology: Topology) -> None:
    me, you = topology.peer, topology.web
    with taps(me, you, topology.other, (topology.host, "dp0")) as (sender, *watching):
        before = counters(topology.host)
        kinds = (0x26, 0x8847, 0x88B5, 0x88CC)
        for kind in kinds:
            sender.send(pk.ethernet(you.mac, me.mac, kind, bytes(46)))
        udp = pk.udp(1, 2)
        for src in (you.ip, me.gateway, HOST, OUTSIDE):
            sender.send(pk.ethernet(you.mac, me.mac, pk.ETH_IPV4, pk.ipv4(src, you.ip, udp)))
        sender.send(pk.ethernet(you.mac, you.mac, pk.ETH_IPV4, pk.ipv4(me.ip, you.ip, udp)))
        tagged = b"\0\1\x08\0" + pk.ipv4(me.ip, you.ip, udp)
        for kind in (pk.ETH_VLAN, pk.ETH_QINQ):
            sender.send(pk.ethernet(you.mac, me.mac, kind, tagged))
        claim = pk.arp(pk.REPLY, me.mac, me.gateway, you.mac, you.ip)
        sender.send(pk.ethernet(you.mac, me.mac, pk.ETH_ARP, claim))
        gateway = device_mac(topology.host, "dp0")
        elsewhere = pk.ipv4(me.ip, topology.other.ip, udp)
        sender.send(pk.ethernet(gateway, me.mac, pk.ETH_IPV4, elsewhere))
        settle()
        assert not from_([frame for tap in watching for frame in tap.frames()], me)
        assert rises(before, counters(topology.host)) == {
            "DROP_ETHERTYPE": len(kinds),
            "DROP_SPOOFED_ADDR": 4,
            "DROP_SPOOFED_MAC": 1,
            "DROP_VLAN": 2,
            "DROP_SPOOFED_ARP": 1,
            "DROP_ISOLATED": 1,
        }


@pytest.mark.parametrize("attach", BOTH_WAYS)
def test_down_leaves_no_filter_and_no_program_on_the_uplink(
    make_host: Callable[..., Host], attach: str
) -> None:
    host = make_host(attach=attach)
    host.run("any")
    host.ctl("down")
    assert filters(host, "eth0", "ingress") == []
    assert "from_uplink" not in host.sh("bpftool net show dev eth0")


@needs_tcx
def test_left_to_itself_what_is_ours_alone_has_filters_and_what_others_share_has_links(
    make_host: Callable[..., Host],
) -> None:
    host = make_host(attach="auto")
    host.run("any", "-p 8080:80")
    names = {d["ifname"]: d["ifindex"] for d in json.loads(host.sh("ip -j link"))}
    (own,) = (name for name in names if name.startswith("veth"))
    pins = {path.name for path in (host.bpffs / "datapath" / "links").glob("from_*")}
    # The loopback device is others' too: what the host asks of published ports is answered by it.
    assert pins == {
        f"from_uplink-{names['eth0']}",
        f"from_host-{names['dp0']}",
        f"from_loopback-{names['lo']}",
    }
    assert filters(host, own, "ingress") == ["from_container"]
    for name in ("eth0", "dp0", "lo"):
        assert "clsact" not in host.sh(f"tc qdisc show dev {name}")
