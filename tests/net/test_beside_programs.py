# SPDX-License-Identifier: Apache-2.0
"""S30, S31: beside what others run on the host. Theirs and ours work side by side, and theirs still does after a
`down`. XDP programs of others are in test_sources.py, firewalls in test_beside_others.py. DATAPATH_LONG=1: Docker."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from datapath.bench.docker import Docker
from datapath.bench.groups import group
from tests.net.hosts import HOST, OUTSIDE, Host, Namespace, loses, reaches
from tests.net.test_ipv6 import HOST6, plug_ipv6
from tests.net.wire import Container, Place, call, fails, opened, serving, start_container

LONG = bool(os.environ.get("DATAPATH_LONG"))
MakeHost = Callable[..., Host]
REFUSED, OTHERS = (
    7999,
    7998,
)  # the port of the host that somebody else's filter refuses, and one that it does not


def ours_works(host: Host, web: Container, port: int = 8081) -> None:
    """In by a published port, from outside and from the host, and out."""
    with serving(web, "tcp", 80), serving(host.outside, "tcp", 7400):
        assert call(host.outside, "tcp", HOST, port).seen == OUTSIDE
        assert call(host, "tcp", "127.0.0.1", port).peer_port == port
        assert call(web, "tcp", OUTSIDE, 7400).seen == HOST


# ---- tc ---------------------------------------------------------------------------------------------------


FILTER = f"""
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
SEC("tc") int theirs(struct __sk_buff *skb)
{{
    unsigned char proto = 0;
    unsigned short port = 0;
    bpf_skb_load_bytes(skb, 23, &proto, 1);
    bpf_skb_load_bytes(skb, 36, &port, 2);
    return proto == 6 && port == bpf_htons({REFUSED}) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.mark.parametrize("attach", ["tcx", "clsact"] if LONG else ["tcx"])
def test_a_tc_filter_of_somebody_else_works_beside_ours(
    make_host: MakeHost, tmp_path: Path, attach: str
) -> None:
    host = make_host(attach=attach)
    (tmp_path / "theirs.c").write_text(FILTER)
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    compiled = ["clang", "-O2", "-target", "bpf", include, "-c", "theirs.c", "-o", "theirs.o"]
    subprocess.run(compiled, cwd=tmp_path, check=True)
    host.sh("tc qdisc add dev eth0 clsact")
    host.sh(f"tc filter add dev eth0 ingress prio 5 bpf direct-action obj {tmp_path}/theirs.o sec tc")
    before = host.sh("tc filter show dev eth0 ingress")
    web = start_container(host, "web", f"-p 8081:80 -p {REFUSED}:80")
    ours_works(host, web)
    with serving(host, "tcp", OTHERS), serving(web, "tcp", 80):
        assert call(host.outside, "tcp", HOST, OTHERS).seen == OUTSIDE
        # With tcx ours comes before all filters, as documented.
        assert bool(fails(host.outside, "tcp", HOST, REFUSED)) == (attach == "clsact")
    host.ctl("rm -f web")
    for ours in (True, False):
        with serving(host, "tcp", REFUSED), serving(host, "tcp", OTHERS):
            assert call(host.outside, "tcp", HOST, OTHERS).seen == OUTSIDE
            assert fails(host.outside, "tcp", HOST, REFUSED)
        if ours:
            host.ctl("down")
    assert host.sh("tc filter show dev eth0 ingress") == before


# ---- bridges ----------------------------------------------------------------------------------------------


@pytest.fixture
def members(host: Host) -> Iterator[list[Namespace]]:
    """Two machines at a Linux bridge of somebody else."""
    with ExitStack() as stack:
        host.sh("ip link add br0 type bridge")
        host.sh("ip address add 10.77.0.1/24 dev br0")
        host.sh("ip link set br0 up")
        made = []
        for number in (2, 3):
            one = Namespace()
            stack.callback(one.close)
            host.sh(f"ip link add port{number} type veth peer name eth0 netns {one.pid}")
            host.sh(f"ip link set port{number} master br0 up")
            one.sh(f"ip address add 10.77.0.{number}/24 dev eth0")
            one.sh("ip link set eth0 up")
            one.sh("ip route add default via 10.77.0.1")
            made.append(one)
        yield made


def test_a_bridge_of_somebody_else_works_beside_ours(host: Host, members: list[Namespace]) -> None:
    first, second = members
    web = start_container(host, "web", "-p 8081:80")
    for _ in range(2):
        with serving(second, "tcp", 80):
            assert call(first, "tcp", "10.77.0.3", 80).seen == "10.77.0.2"
            assert call(host, "tcp", "10.77.0.3", 80).seen == "10.77.0.1"
            if "web" in host.ctl("ps -a --format {{.Names}}"):
                assert call(web, "tcp", "10.77.0.3", 80).seen == "10.77.0.1"  # another egress
                ours_works(host, web)
                with serving(web, "tcp", 80):
                    assert call(first, "tcp", "10.77.0.1", 8081).seen == "10.77.0.2"
                    assert fails(
                        first, "tcp", web.ip, 80
                    )  # the container itself is reached by its port alone
        host.ctl("down")


# ---- Docker -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (LONG and shutil.which("dockerd")), reason="DATAPATH_LONG=1, and dockerd: make bench-deps"
)
def test_docker_works_beside_ours(host: Host, tmp_path: Path) -> None:
    """Its rules drop what they do not know; its network and ours have other addresses."""
    with ExitStack() as stack:
        place = stack.enter_context(group(f"beside-{host.pid}"))
        folder = tmp_path / "docker"
        folder.mkdir()
        docker = Docker(cast(Any, SimpleNamespace(folder=folder, group=place, inside=host)), "dockerd")
        stack.callback(docker.close)
        docker.run("theirs", "bridge", ["8090/tcp"])
        web = start_container(host, "web", "-p 8081:80")
        theirs = cast(Place, SimpleNamespace(path=docker.netns("theirs")))
        assert "-P FORWARD DROP" in host.sh("iptables -S FORWARD")

        def docker_works() -> None:
            with serving(theirs, "tcp", 8090), serving(host.outside, "tcp", 7400):
                assert call(host.outside, "tcp", HOST, 8090).seen == OUTSIDE
                assert call(theirs, "tcp", OUTSIDE, 7400).seen == HOST

        docker_works()
        ours_works(host, web)
        assert web.ip.rpartition(".")[0] != "172.17.0"
        with serving(web, "tcp", 80):
            assert fails(theirs, "tcp", web.ip, 80)
        rules = host.sh("iptables-save -t filter").splitlines()[1:-1]
        docker.remove("theirs")
        ours_works(host, web)
        docker.run("theirs", "bridge", ["8090/tcp"])
        theirs = cast(Place, SimpleNamespace(path=docker.netns("theirs")))
        host.ctl("down")
        docker_works()
        assert [r for r in host.sh("iptables-save -t filter").splitlines()[1:-1] if r[0] == "-"] == [
            r for r in rules if r[0] == "-"
        ]


# ---- addresses --------------------------------------------------------------------------------------------


def test_addresses_that_a_network_manager_flushes_and_sets_again_end_no_connection(host: Host) -> None:
    """Of every device that it knows, ours too; it gives the uplink its address back, as when a lease is
    renewed. What it took from ours `reconcile` brings back."""
    plug_ipv6(host)
    host.ctl("network create --ipv6 net")
    web, peer = (
        start_container(host, "web", "--network net -p 8081:80"),
        start_container(host, "peer", "--network net"),
    )
    devices = [d["ifname"] for d in json.loads(host.sh("ip -j link")) if d["ifname"] != "lo"]
    with serving(web, "tcp", 80), opened(host.outside) as early, opened(web) as masqueraded:
        early.connect((HOST, 8081))
        with opened(host.outside) as listener:
            listener.bind((OUTSIDE, 7402))
            listener.listen()
            masqueraded.connect((OUTSIDE, 7402))
            accepted, _ = listener.accept()
        for device in devices:
            host.sh(f"ip address flush dev {device}")
        host.sh(f"ip address add {HOST}/24 dev eth0")
        host.sh(f"ip route add default via {OUTSIDE}")
        host.sh(f"ip -6 address add {HOST6}/64 dev eth0 nodad")
        assert early.recv(100).decode().split()[0] == OUTSIDE
        with accepted:
            accepted.sendall(b"still here")
            assert masqueraded.recv(100) == b"still here"
        assert call(host.outside, "tcp", HOST, 8081).seen == OUTSIDE
        assert call(peer, "tcp", web.ip, 80).seen == peer.ip
    assert loses(host.try_, web.ip)
    assert host.try_ctl("doctor").returncode != 0
    host.ctl("reconcile")
    assert reaches(host.try_, web.ip)
    assert reaches(host.try_, web.ip6)
    ours_works(host, web)
    assert host.try_ctl("doctor").returncode == 0
